//! What the engine answers instead of starting.

/// Why this version of the engine would not start with these settings, in its own terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The rule that is broken.
    pub kind: RefusalKind,
    /// One sentence in the engine's terms.
    pub reason: String,
    /// The longest `--max-model-len` that would be accepted, where the engine estimates one.
    pub estimated_max_model_len: Option<u64>,
}

/// The rules whose violation stops a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusalKind {
    /// Heads or states cannot be divided over the tensor-parallel ranks.
    TensorParallel,
    /// Layers cannot be divided over the pipeline stages.
    PipelineParallel,
    /// Decode context parallelism does not fit the heads or ranks.
    DecodeContextParallel,
    /// `--max-model-len` is above what the configuration allows.
    MaxModelLen,
    /// Scheduler limits contradict each other.
    Scheduler,
    /// No attention backend, or not the selected one, supports this combination.
    AttentionBackend,
    /// Caches of different kinds cannot share one block pool.
    Pages,
    /// Speculative decoding is not possible this way.
    Speculative,
    /// Adapters are not possible for this model.
    Adapters,
    /// The memory does not hold one request of `--max-model-len`.
    Memory,
}

impl Refusal {
    /// A refusal without an estimated length.
    pub(crate) fn new(kind: RefusalKind, reason: impl Into<String>) -> Self {
        Self {
            kind,
            reason: reason.into(),
            estimated_max_model_len: None,
        }
    }
}
