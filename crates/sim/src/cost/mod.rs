//! How long one engine step takes: kernels from the model's weights and caches, timed by fitted efficiencies.
//!
//! - [`calibration`]: coefficients per GPU, fitted to measured kernels; for other GPUs the nearest relative's
//!   efficiencies are applied to the datasheet and the answer says so.
//! - [`kernel`]: the closed forms: matrix products, attention, mixtures of experts, collectives.
//! - [`Memo`]: what steps with the same number of tokens share.
//! - [`network`]: what sums and hand-overs between machines add.
//! - [`step`]: the kernels of all layers put together for a batch of prefill chunks and decoding sequences.
//! - [`bound`]: the same batch at datasheet rates: what no implementation can beat.
//! - [`tuning`]: the few factors that kernel measurements do not give.
//!
//! Models: dense and quantised matrix products by shape, attention prefill with past and decode (windows,
//! latent attention), recurrent states, routed experts by expected number of active experts on the busiest rank,
//! all-reduce, pipeline rounds, data-parallel ranks that share experts, speculation with an acceptance rate,
//! elementwise traffic, launch floors, steps without CUDA graphs, host time. Does not model: kernel switches inside one shape range, power or
//! clock limits, the topology of networks between machines, the spread of accepted lengths around their mean.

pub mod bound;
pub mod calibration;
pub mod kernel;
mod memo;
pub mod network;
pub mod precision;
mod stack;
pub mod step;
pub mod tuning;

pub use bound::Bound;
pub use calibration::{Calibration, Engine, GpuSpec};
pub use memo::Memo;
pub use network::Network;
pub use precision::Precision;
pub use step::{Batch, Graphs, Prefill, Speculation, StepModel, StepOptions, StepTime};
pub use tuning::Tuning;
