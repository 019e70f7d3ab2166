//! The buffers for intermediate results, to the byte: the graph of a forward pass as llama.cpp builds it, its devices,
//! and the places of its tensors.
//!
//! `builder`, `attention`, `feed`, `recurrent` and `delta` are the pieces, `models` puts them together, one file a family of
//! architectures; `decoder` says in what they differ. Written after b11434 (`src/llama-graph.cpp`, `src/models`,
//! `ggml/src/ggml-backend.cpp`, `ggml/src/ggml-alloc.c`) and compared with b11549, whose own loader, scheduler and allocator were run over GPUs that exist on paper
//! (`tests/reference/llamacpp_gpus.py`): every buffer of every device is equal
//! (`golden::buffers_of_every_device_are_those_that_llama_cpp_reserves`). The GPUs answer as CUDA's backend does; others
//! align and copy a little differently.
//!
//! Not every architecture's graph is built here: [`Decoder::of`] says `None` for the others, which
//! [`compute`](super::compute()) estimates.

mod allocate;
mod attention;
mod builder;
mod decoder;
mod delta;
mod feed;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod hostile;
mod models;
#[cfg(test)]
mod placed;
mod recurrent;
mod schedule;
mod tensor;

pub(super) use allocate::{GPU_ALIGNMENT, row_padding};
pub use decoder::Decoder;

use super::cache::Caches;
use super::hparams::Hparams;
use super::place::{Placement, Weights};
use super::settings::Settings;

/// Batches in flight where layers are spread over GPUs (`GGML_SCHED_MAX_COPIES`).
const COPIES: usize = 4;

/// Bytes of the buffers for intermediate results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffers {
    /// On each GPU.
    pub gpus: Vec<u64>,
    /// With the host.
    pub host: u64,
}

/// The buffers of a context, or `None` where the graph of the architecture is not built here, a setting changes it in ways
/// that are not modelled, or a size leaves all bounds.
pub fn buffers(
    model: &Hparams,
    weights: &Weights,
    settings: &Settings,
    caches: &Caches,
    placement: &Placement,
) -> Option<Buffers> {
    let decoder = Decoder::of(model, weights)?;
    let gpus = usize::try_from(settings.gpus).ok()?;
    if settings.no_kv_offload {
        return None;
    }
    let all_on_gpus = placement.devices.iter().all(Option::is_some);
    let devices = placement
        .devices
        .iter()
        .map(|device| device.map_or(Some(gpus), |gpu| usize::try_from(gpu).ok()))
        .collect::<Option<Vec<usize>>>()?;
    // Tensors that are placed by name turn the pipeline off.
    let copies = if gpus > 1 && all_on_gpus && !settings.names_place_tensors() {
        COPIES
    } else {
        1
    };
    let most = caches.step;
    let outputs = match settings.outputs {
        super::Outputs::Sequences => settings.parallel,
        super::Outputs::Tokens | super::Outputs::Unknown => most,
    };
    let mut sizes: Option<Vec<u64>> = None;
    // A batch of prompts, and one token of each sequence.
    for (tokens, outputs) in [(most, outputs.min(most)), (settings.parallel, settings.parallel)] {
        let batch = decoder::Batch {
            tokens: tokens.checked_next_multiple_of(settings.parallel)?,
            outputs,
            all_on_gpus,
        };
        let mut graph = decoder.build(model, weights, settings, caches, &devices, gpus, batch)?;
        let schedule = schedule::schedule(&mut graph, gpus, copies);
        let made = allocate::allocate(&graph, &schedule, gpus)?;
        sizes = Some(match sizes {
            None => made,
            Some(before) => before.into_iter().zip(made).map(|(a, b)| a.max(b)).collect(),
        });
    }
    let mut gpus = sizes?;
    let host = gpus.pop()?;
    Some(Buffers { gpus, host })
}
