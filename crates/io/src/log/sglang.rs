//! The lines of `SGLang`, 0.4 to 0.5.23. Sizes are labelled GB and are GiB (`get_available_gpu_memory` divides by 2^30).

use super::boot::{Boot, EngineKind, Refusal};
use super::figure::{after, count, gib, number};
use super::line::Line;
use super::python::{self, Value};

/// Reads one line; true if it is one of `SGLang`'s.
pub fn read_line(boot: &mut Boot, line: &Line) -> bool {
    if boot.engine.is_some_and(|engine| engine != EngineKind::Sglang) {
        return false;
    }
    read(boot, line).is_some()
}

/// Whether the line is the first of a server's start.
pub fn begins_server(text: &str) -> bool {
    text.contains("server_args=ServerArgs(") || text.contains("server_args={")
}

fn read(boot: &mut Boot, line: &Line) -> Option<()> {
    let text = line.text.as_str();
    let target = !text.contains("draft");
    // entrypoints/engine.py
    if let Some(rest) = after(text, "server_args=ServerArgs(").or_else(|| after(text, "server_args={")) {
        boot.flags = python::pairs(rest);
        if let Some(Value::Text(model)) = boot.flags.get("model_path") {
            boot.model = Some(model.clone());
        }
        boot.utilization = boot.flags.get("mem_fraction_static").and_then(Value::number);
        boot.has_engine_line = true;
    // model_executor/model_runner.py
    } else if let Some(rest) = after(text, "Load weight begin. avail mem=") {
        let (free, _) = gib(rest)?;
        // A drafter is loaded later; the first load has all of the memory.
        boot.rank(&line.worker).free_at_start.get_or_insert(free);
    } else if let Some(rest) = after(text, "Load weight end.") {
        let (used, _) = gib(after(rest, "mem usage=")?)?;
        let free = after(rest, "avail mem=").and_then(gib).map(|(free, _)| free);
        let rank = boot.rank(&line.worker);
        if let (Some(free), None) = (free, rank.free_after_load) {
            rank.free_after_load = Some(free);
            // The engine prints the difference of both; a log may lack the first line.
            rank.free_at_start.get_or_insert(super::Figure {
                bytes: free.bytes.checked_add(used.bytes)?,
                step_bytes: free.step_bytes.saturating_add(used.step_bytes),
            });
        }
        rank.model_load = Some(match rank.model_load {
            // Target and drafter are both weights.
            Some(first) => super::Figure {
                bytes: first.bytes.checked_add(used.bytes)?,
                step_bytes: first.step_bytes.saturating_add(used.step_bytes),
            },
            None => used,
        });
        if let Some(kind) = after(rest, "type=") {
            let name: String = kind
                .chars()
                .take_while(char::is_ascii_alphanumeric)
                .take(80)
                .collect();
            boot.config
                .entry("architecture".to_owned())
                .or_insert(Value::Text(name));
        }
        if let Some(dtype) = after(rest, "dtype=") {
            let name: String = dtype
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '.')
                .take(40)
                .collect();
            boot.config.entry("dtype".to_owned()).or_insert(Value::Text(name));
        }
    // mem_cache/memory_pool.py; older versions put the tokens first, newer ones the type
    } else if let Some(rest) = after(text, "KV Cache is allocated.") {
        let (tokens, tail) = count(after(rest, "#tokens: ")?)?;
        let keys = after(tail, "K size: ").and_then(gib);
        let bytes = match keys {
            Some((keys, tail)) => {
                let (values, _) = gib(after(tail, "V size: ")?)?;
                Some(super::Figure {
                    bytes: keys.bytes.checked_add(values.bytes)?,
                    step_bytes: keys.step_bytes.saturating_add(values.step_bytes),
                })
            }
            None => after(tail, "KV size: ").and_then(gib).map(|(f, _)| f),
        };
        if boot.tokens.is_none() && target {
            boot.tokens = Some(tokens);
            boot.kv_bytes = bytes;
        } else if !line.worker.is_empty() || boot.tokens == Some(tokens) {
            // Another rank, or the drafter's pool of the same tokens.
        } else {
            boot.swa_tokens.get_or_insert(tokens);
        }
    } else if let Some(rest) = after(text, "SWAKVPool mem usage: ") {
        let (bytes, tail) = gib(rest)?;
        boot.swa_tokens = after(tail, "swa size: ").and_then(count).map(|(n, _)| n);
        boot.tokens = after(tail, "full size: ")
            .and_then(count)
            .map(|(n, _)| n)
            .or(boot.tokens);
        boot.kv_bytes = Some(bytes);
    } else if let Some(rest) = after(text, "Mamba Cache is allocated.") {
        boot.state_slots = after(rest, "max_mamba_cache_size: ")
            .and_then(count)
            .map(|(n, _)| n);
        let (conv, tail) = gib(after(rest, "conv_state size: ")?)?;
        let (ssm, _) = gib(after(tail, "ssm_state size: ")?)?;
        boot.state_bytes = Some(super::Figure {
            bytes: conv.bytes.checked_add(ssm.bytes)?,
            step_bytes: conv.step_bytes.saturating_add(ssm.step_bytes),
        });
    } else if let Some(rest) = after(text, "Memory pool end. avail mem=") {
        let (free, _) = gib(rest)?;
        // A drafter's pool comes later.
        boot.rank(&line.worker).free_after_pools.get_or_insert(free);
    // managers/scheduler.py
    } else if let Some(rest) = after(text, "max_total_num_tokens=") {
        let (tokens, tail) = count(rest)?;
        boot.tokens = Some(tokens);
        boot.max_num_batched_tokens = after(tail, "chunked_prefill_size=")
            .and_then(count)
            .map(|(n, _)| n);
        boot.max_model_len = after(tail, "context_len=").and_then(count).map(|(n, _)| n);
        if let Some((running, _)) = after(tail, "max_running_requests=").and_then(count) {
            boot.config.insert(
                "max_running_requests".to_owned(),
                Value::Int(i64::try_from(running).ok()?),
            );
        }
    } else if text.contains("graph end.") && text.contains("mem usage=") {
        let (used, _) = gib(after(text, "mem usage=")?)?;
        boot.rank(&line.worker).graphs = Some(used);
    } else if text.contains("Not enough memory. Please try to increase --mem-fraction-static") {
        boot.refusal.get_or_insert(Refusal::NoMemory);
    } else if text.contains("The server is fired up and ready to roll!") {
        boot.is_up = true;
    // layers/moe: the file of tuned kernels that was looked for is named after the GPU
    } else if let Some(rest) = after(text, "device_name=")
        && boot.engine == Some(EngineKind::Sglang)
    {
        let name: String = rest
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || "_-".contains(*c))
            .take(80)
            .map(|c| if c == '_' { ' ' } else { c })
            .collect();
        if name.is_empty() {
            return None;
        }
        boot.gpu.get_or_insert(name);
    } else if let Some(rest) = after(text, "mem_fraction_static=")
        && boot.engine == Some(EngineKind::Sglang)
    {
        boot.utilization = Some(number(rest)?.0);
    } else {
        return None;
    }
    boot.engine = Some(EngineKind::Sglang);
    Some(())
}
