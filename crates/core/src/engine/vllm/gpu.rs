//! The properties of a GPU that decide how vLLM lays out its cache.

/// A CUDA GPU as vLLM sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpu {
    /// Compute capability, major number (8 Ampere/Ada, 9 Hopper, 10 and 12 Blackwell).
    pub major: u32,
    /// Compute capability, minor number.
    pub minor: u32,
    /// Memory in bytes as the driver reports it (not the marketing figure).
    pub memory_bytes: u64,
    /// Whether the device name contains "a100", which keeps the smaller batch defaults.
    pub a100: bool,
    /// Whether it is an H100 or H200 by name, which early releases asked for.
    pub hopper: bool,
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
        }
    }
}
