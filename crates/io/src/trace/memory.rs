//! How much memory a trace may take: what is asked for, or what the machine has.

use kvwise_core::units::human_bytes;
use kvwise_core::{Error, Result};
use kvwise_sim::trace::TraceBuilder;

use super::ReadOptions;

/// The limit where nobody gives one and the machine does not say what is free.
const FALLBACK_BYTES: u64 = 16 << 30;

/// Three quarters of the memory that is available now, or that a container grants; at most 1 TiB, 16 GiB where neither is
/// known.
pub fn default_memory_limit() -> u64 {
    let available = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| available_bytes(&text));
    let available = match (available, granted_bytes()) {
        (Some(machine), Some(granted)) => Some(machine.min(granted)),
        (machine, granted) => machine.or(granted),
    };
    available.map_or(FALLBACK_BYTES, |bytes| (bytes / 4 * 3).min(1 << 40))
}

/// `MemAvailable` of Linux's `/proc/meminfo`, in bytes.
fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).filter(|&bytes| bytes > 0)
}

/// What a control group grants this process, version 2 or 1; `None` where nothing is limited.
fn granted_bytes() -> Option<u64> {
    [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]
    .iter()
    .find_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok())
}

/// Whether a file of so many bytes on disk surely stays far below `limit_bytes`: it needs no forecast. What is held for a
/// byte of text is at most a few bytes in any real trace; the factor leaves room for compression, and the check while
/// reading for everything else.
pub fn too_small_to_matter(file_bytes: u64, limit_bytes: u64) -> bool {
    file_bytes.saturating_mul(256) < limit_bytes
}

/// Stops a trace that takes more memory than it may, together with what will be computed from it.
pub(super) fn check_memory(builder: &TraceBuilder, options: &ReadOptions<'_>, name: &str) -> Result<()> {
    check_bytes(builder, 0, options, name)
}

/// As [`check_memory`], where `waiting` bytes are held besides.
pub(super) fn check_bytes(
    builder: &TraceBuilder,
    waiting: u64,
    options: &ReadOptions<'_>,
    name: &str,
) -> Result<()> {
    let size = builder.size();
    let beside = options.beside.map_or(0, |bytes| bytes(&size));
    let needed = builder
        .reading_bytes()
        .saturating_add(waiting)
        .max(size.held_bytes().saturating_add(beside));
    if needed <= options.max_memory_bytes {
        return Ok(());
    }
    Err(Error::input(format!(
        "{name}: after {} requests the trace and what is computed from it take {} of memory, more than the limit of {}",
        builder.len(),
        human_bytes(needed),
        human_bytes(options.max_memory_bytes)
    ))
    .hint("read a part with --limit N, or raise --max-memory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_has_is_read_from_its_own_words() {
        let text = "MemTotal:       24689764 kB\nMemFree:  1 kB\nMemAvailable:   12345678 kB\n";
        assert_eq!(available_bytes(text), Some(12_345_678 * 1024));
        for text in ["", "MemAvailable: many kB\n", "MemAvailable: 5 MB\n"] {
            assert_eq!(available_bytes(text), None, "{text}");
        }
        assert!(default_memory_limit() > 0);
    }
}
