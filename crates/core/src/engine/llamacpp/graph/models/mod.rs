//! The forward passes, one file a family of architectures.

mod delta;
mod gemma;
mod latent;
mod plain;
mod recurrent;

use super::builder::Builder;
use super::decoder::Family;

/// Builds the graph of the decoder's family.
pub(super) fn run(b: &mut Builder) {
    match b.decoder.family {
        Family::Plain => plain::run(b),
        Family::Latent => latent::run(b),
        Family::Altup => gemma::altup(b),
        Family::PerLayer => gemma::per_layer(b),
        Family::Delta => delta::run(b),
        Family::Recurrent => recurrent::run(b),
    }
}
