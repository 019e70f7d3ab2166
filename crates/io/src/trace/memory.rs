//! How much memory a trace may take: what is asked for, or what the machine has.

use kvwise_core::units::human_bytes;
use kvwise_core::{Error, Result};
use kvwise_sim::trace::TraceBuilder;

use super::ReadOptions;

/// The limit where nobody gives one and the machine does not say what is free.
const FALLBACK_BYTES: u64 = 16 << 30;
/// How much of a file has to be read before the rest is judged by it.
const SAMPLE_BYTES: u64 = 16 << 20;

/// Three quarters of the memory that is available now, at most 1 TiB; 16 GiB where that is not known.
pub fn default_memory_limit() -> u64 {
    let available = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| available_bytes(&text));
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

/// Stops a trace that is too large.
pub(super) fn check_memory(builder: &TraceBuilder, options: &ReadOptions<'_>, name: &str) -> Result<()> {
    let needed = builder.memory_bytes();
    if needed > options.max_memory_bytes {
        return Err(too_large(
            name,
            builder,
            needed,
            options.max_memory_bytes,
            "takes",
        ));
    }
    Ok(())
}

/// Stops a trace whose start shows that the whole will be too large: token ids and lengths take the same memory in every
/// part of a file (prefixes of hash ids repeat, so their traces are read as far as they go).
pub(super) fn check_forecast(
    builder: &TraceBuilder,
    options: &ReadOptions<'_>,
    name: &str,
    read_bytes: u64,
    total_bytes: Option<u64>,
) -> Result<()> {
    let Some(total) = total_bytes.filter(|_| options.limit.is_none() && !builder.has_block_ids()) else {
        return Ok(());
    };
    if read_bytes < SAMPLE_BYTES || read_bytes >= total {
        return Ok(());
    }
    let forecast = u128::from(builder.memory_bytes()) * u128::from(total) / u128::from(read_bytes);
    let forecast = u64::try_from(forecast).unwrap_or(u64::MAX);
    if forecast > options.max_memory_bytes {
        return Err(too_large(
            name,
            builder,
            forecast,
            options.max_memory_bytes,
            "shows that the whole will take about",
        ));
    }
    Ok(())
}

fn too_large(name: &str, builder: &TraceBuilder, needed: u64, limit: u64, verb: &str) -> Error {
    Error::input(format!(
        "{name}: after {} requests the trace {verb} {} of memory, more than the limit of {}",
        builder.len(),
        human_bytes(needed),
        human_bytes(limit)
    ))
    .hint("read a part with --limit N, or raise --max-memory")
}

#[cfg(test)]
mod tests {
    use kvwise_sim::trace::{IdMeaning, NewRequest, PromptIds};

    use super::*;

    fn builder(prompt: PromptIds<'_>) -> TraceBuilder {
        let mut builder = TraceBuilder::new("t", 16, IdMeaning::Content);
        for _ in 0..1000 {
            builder
                .push(&NewRequest {
                    prompt,
                    ..NewRequest::default()
                })
                .unwrap();
        }
        builder
    }

    #[test]
    fn a_file_of_tokens_is_refused_by_its_start() {
        let tokens = builder(PromptIds::Tokens(&[7; 1000])); // 4 MB
        let options = |limit| ReadOptions {
            max_memory_bytes: limit,
            ..ReadOptions::default()
        };
        let ten_gb = Some(10_000_000_000);
        // 20 MB of the file took 4 MB: the whole takes 2 GB
        let check = |limit, read| check_forecast(&tokens, &options(limit), "t", read, ten_gb);
        let error = check(1 << 30, 20_000_000).unwrap_err().to_string();
        assert!(
            error.contains("will take about 1.8") || error.contains("will take about 1.9"),
            "{error}"
        );
        check(4 << 30, 20_000_000).unwrap();
        // too early to tell
        check(1 << 30, 1_000_000).unwrap();
        let blocks = builder(PromptIds::Blocks(&[7; 1000]));
        check_forecast(&blocks, &options(1 << 20), "t", 20_000_000, ten_gb).unwrap();
    }

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
