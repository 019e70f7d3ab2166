//! Replays a token trace (JSON lines) through vLLM's scheduler and prints every event.
//!
//! `cargo run -p kvwise-sim --example replay_vllm -- TRACE.jsonl NUM_BLOCKS [name=value ...]` with the names
//! `block_size max_model_len max_num_seqs max_num_batched_tokens watermark groups retention policy caching
//! reserve_full_isl hash_block step_time`. `kvwise replay` does the same for every trace format.

use std::io::Write as _;

use kvwise_cache::manager::{GroupSpec, Retention};
use kvwise_sim::replay::vllm::{Clock, EventLines, Isolation, ReplayConfig, run};
use kvwise_sim::sched::vllm::{Policy, SchedulerConfig};
use kvwise_sim::trace::{IdMeaning, NewRequest, PromptIds, TraceBuilder};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().collect();
    let [_, path, blocks, options @ ..] = args.as_slice() else {
        return Err("usage: replay_vllm TRACE.jsonl NUM_BLOCKS [name=value ...]".into());
    };
    let mut scheduler = SchedulerConfig::new(blocks.parse()?, 16);
    let mut groups = "full:1".to_owned();
    let mut block_size = 16;
    let mut hash_block = 512;
    let mut clock = Clock::Steps;
    for option in options {
        let (name, value) = option.split_once('=').ok_or("options are name=value")?;
        match name {
            "block_size" => block_size = value.parse()?,
            "max_model_len" => scheduler.max_model_len = value.parse()?,
            "max_num_seqs" => scheduler.max_num_seqs = value.parse()?,
            "max_num_batched_tokens" => scheduler.max_num_batched_tokens = value.parse()?,
            "watermark" => scheduler.watermark = value.parse()?,
            "groups" => value.clone_into(&mut groups),
            "retention" => {
                scheduler.retention = match value {
                    "none" => Retention::Dense,
                    "0" => Retention::ReplayOnly,
                    tokens => Retention::Every(tokens.parse()?),
                }
            }
            "policy" => {
                scheduler.policy = if value == "priority" {
                    Policy::Priority
                } else {
                    Policy::Fcfs
                }
            }
            "caching" => scheduler.prefix_caching = value.parse()?,
            "reserve_full_isl" => scheduler.reserve_full_isl = value.parse()?,
            "hash_block" => hash_block = value.parse()?,
            "step_time" => {
                clock = Clock::Seconds {
                    step_time: value.parse()?,
                }
            }
            _ => return Err(format!("unknown option {name}").into()),
        }
    }
    scheduler.groups = parse_groups(&groups, block_size)?;

    let text = std::fs::read_to_string(path)?;
    let mut builder = TraceBuilder::new(path.as_str(), hash_block, IdMeaning::Content);
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        let row: serde_json::Value = serde_json::from_str(line)?;
        let numbers = |name: &str| -> Option<Vec<u64>> {
            row.get(name)?
                .as_array()
                .map(|a| a.iter().filter_map(serde_json::Value::as_u64).collect())
        };
        let small = |numbers: Vec<u64>| -> Vec<u32> {
            numbers
                .into_iter()
                .map(|n| u32::try_from(n).unwrap_or(u32::MAX))
                .collect()
        };
        let tokens = numbers("tokens").map(small);
        let ids = numbers("hash_ids");
        let outputs = numbers("output_tokens").map(small);
        let length = |a: &str, b: &str| {
            row.get(a)
                .or_else(|| row.get(b))
                .and_then(serde_json::Value::as_u64)
        };
        let mut output_len = length("output_len", "output_length").unwrap_or(1);
        let mut padded = outputs.clone();
        if let Some(padded) = &mut padded {
            padded.truncate(usize::try_from(output_len)?);
            if (padded.len() as u64) < output_len {
                output_len = output_len.max(padded.len() as u64);
            }
        }
        builder.push(&NewRequest {
            arrival: Some(arrival(line)?),
            input_len: tokens
                .as_ref()
                .map(|t| t.len() as u64)
                .or_else(|| length("input_len", "input_length")),
            output_len: Some(output_len),
            prompt: match (&tokens, &ids) {
                (Some(tokens), _) => PromptIds::Tokens(tokens),
                (None, Some(ids)) => PromptIds::Blocks(ids),
                (None, None) => PromptIds::Unknown,
            },
            output_tokens: padded.as_deref().filter(|p| p.len() as u64 == output_len),
            priority: row
                .get("priority")
                .and_then(serde_json::Value::as_i64)
                .unwrap_or(0),
            cache_salt: row.get("cache_salt").and_then(serde_json::Value::as_str),
            lora: row.get("lora").and_then(serde_json::Value::as_str),
            id_json: row.get("id").map(ToString::to_string).as_deref(),
            ..NewRequest::default()
        })?;
    }
    let trace = builder.finish();
    let mut events = EventLines::new(&trace);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let config = ReplayConfig {
        scheduler,
        clock,
        isolation: Isolation::default(),
    };
    let summary = run(&trace, &config, &mut events, |events| {
        out.write_all(events.text.as_bytes())
            .map_err(|e| kvwise_core::Error::io(e.to_string()))?;
        events.text.clear();
        Ok(())
    })?;
    events.summary(&summary);
    out.write_all(events.text.as_bytes())?;
    Ok(())
}

/// The arrival time to the last bit, which `serde_json`'s own number does not promise.
fn arrival(line: &str) -> Result<f64, Failure> {
    let Some((_, rest)) = line.split_once("\"arrival\":") else {
        return Ok(0.0);
    };
    let number = rest.trim_start();
    let end = number.find([',', '}', ' ']).unwrap_or(number.len());
    Ok(number[..end].parse()?)
}

fn parse_groups(text: &str, block_size: u32) -> Result<Vec<GroupSpec>, Failure> {
    let mut groups = Vec::new();
    for item in text.split(',') {
        let (kind, count) = item.split_once(':').ok_or("groups are kind:count")?;
        let (kind, block_size) = match kind.split_once('@') {
            Some((kind, size)) => (kind, size.parse()?),
            None => (kind, block_size),
        };
        let group = if let Some(window) = kind.strip_prefix("swa") {
            GroupSpec::sliding_window(block_size, window.parse()?)
        } else if let Some(chunk) = kind.strip_prefix("chunk") {
            GroupSpec::chunked_local(block_size, chunk.parse()?)
        } else if kind == "mamba" {
            GroupSpec::mamba_align(block_size)
        } else {
            GroupSpec::full(block_size)
        };
        for _ in 0..count.parse::<usize>()? {
            groups.push(group);
        }
    }
    Ok(groups)
}
