//! How long one engine step takes: kernels from the model's weights and caches, timed by fitted efficiencies.
//!
//! - [`calibration`]: coefficients per GPU, fitted to measured kernels; for other GPUs the nearest relative's
//!   efficiencies are applied to the datasheet and the answer says so.
//! - [`kernel`]: the closed forms: matrix products, attention, mixtures of experts, collectives.
//! - [`step`]: the kernels of one layer stack put together for a batch of prefill chunks and decoding sequences.
//!
//! Models: dense and quantised matrix products by shape, attention prefill with past and decode (windows,
//! latent attention), routed experts by expected number of active experts, all-reduce, elementwise traffic, launch
//! floors, host time. Does not model: kernel switches inside one shape range, power or clock limits, network
//! topology beyond one node.

pub mod calibration;
pub mod kernel;
pub mod step;

pub use calibration::{Calibration, Engine, GpuSpec};
pub use step::{Batch, Precision, Prefill, StepModel, StepOptions, StepTime};
