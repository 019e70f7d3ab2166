//! The properties of a GPU that decide how vLLM lays out its cache.

/// A CUDA GPU as vLLM sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpu {
    /// Compute capability, major number (8 Ampere/Ada, 9 Hopper, 10 and 12 Blackwell); 0 is vLLM's CPU platform.
    pub major: u32,
    /// Compute capability, minor number.
    pub minor: u32,
    /// Memory in bytes as the driver reports it (not the marketing figure).
    pub memory_bytes: u64,
    /// Whether the device name contains "a100", which keeps the smaller batch defaults.
    pub a100: bool,
    /// Whether it is an H100 or H200 by name, which early releases asked for.
    pub hopper: bool,
    /// Whether its driver does not tell NVML the size of its memory (GB10), so that vLLM finds none and keeps the smaller
    /// batch defaults (vLLM 0.32.0, `get_batch_defaults` in `engine/arg_utils.py`; start-up logs of 0.13 and 0.27 on GB10
    /// print 2048 tokens and capture graphs of 256 sequences).
    pub memory_unknown: bool,
}

/// Scheduler limits that vLLM takes when the user names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchDefaults {
    /// `--max-num-batched-tokens`, tokens a step.
    pub max_num_batched_tokens: u64,
    /// `--max-num-seqs`, sequences at once.
    pub max_num_seqs: u64,
}

impl Gpu {
    /// A GPU from its name, compute capability and driver-visible memory.
    pub fn new(name: &str, major: u32, minor: u32, memory_bytes: u64) -> Self {
        let name = name.to_ascii_lowercase();
        Self {
            major,
            minor,
            memory_bytes,
            a100: name.contains("a100"),
            hopper: name.contains("h100") || name.contains("h200"),
            memory_unknown: name.contains("gb10"),
        }
    }

    /// Whether vLLM runs on its CPU platform, which has rules of its own (vLLM 0.32.0, `platforms/cpu.py`).
    pub const fn is_cpu(&self) -> bool {
        self.major == 0
    }
}

impl BatchDefaults {
    /// The defaults of that many ranks; only the CPU platform multiplies by them.
    #[must_use]
    pub fn of_ranks(self, gpu: &Gpu, ranks: u64) -> Self {
        if !gpu.is_cpu() {
            return self;
        }
        Self {
            max_num_batched_tokens: self.max_num_batched_tokens.saturating_mul(ranks),
            max_num_seqs: self.max_num_seqs.saturating_mul(ranks),
        }
    }
}
