//! The few factors that kernel measurements do not give.

/// Factors between kernels measured alone and the same kernels inside a server.
///
/// The defaults were chosen on served points of two models (the accuracy page of the documentation says which, and
/// what the errors are when the factors are chosen on one model and tested on the other).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuning {
    /// Share of the experts' launch floor that remains: the benchmark launches them eagerly, a server replays a graph.
    pub expert_floor: f64,
    /// Small kernels a layer besides products and attention.
    pub small_kernels: f64,
    /// Share of the bandwidth that small kernels reach; `None`: as the calibration says.
    pub elementwise_bandwidth: Option<f64>,
    /// Share of the bandwidth that updates of recurrent states reach.
    pub state_bandwidth: f64,
    /// Share of the 16-bit rate that chunked prefill of recurrent states reaches.
    pub state_rate: f64,
    /// Host time of launching one layer's kernels one by one, seconds: how long a step without CUDA graphs takes at least.
    pub launch_s_per_layer: f64,
    /// How far the busiest expert-parallel rank lies above the mean, in standard deviations of a Poisson load times
    /// the expected largest of as many draws as there are ranks.
    pub expert_imbalance: f64,
    /// Factor on the experts' time under expert parallelism for engines and GPUs where the kernels have no tuned
    /// configuration for whole experts (vLLM with 8-bit blocks on compute capability 9).
    pub whole_expert_penalty: f64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            expert_floor: 0.5,
            small_kernels: 5.0,
            elementwise_bandwidth: None,
            state_bandwidth: 0.8,
            state_rate: 0.15,
            launch_s_per_layer: 7.0e-4,
            expert_imbalance: 1.0,
            whole_expert_penalty: 1.6,
        }
    }
}
