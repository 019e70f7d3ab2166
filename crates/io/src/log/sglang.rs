//! The lines of `SGLang`, 0.2 to 0.5.23 (`tests/sglang_tags.tsv` says which release has which wording). Sizes are labelled GB and are GiB (`get_available_gpu_memory` divides by 2^30).

use super::boot::{Boot, EngineKind, Refusal};
use super::figure::{after, count, gib, number};
use super::line::Line;
use super::python::{self, Value};

/// Why it does not start for want of memory, in all releases' words.
const NO_MEMORY: [&str; 6] = [
    "Not enough memory. Please try to increase --mem-fraction-static",
    "Loaded weights leave no GPU memory for the KV cache",
    "Not enough GPU memory for hybrid (mamba/linear-attention) state cache",
    "cannot hold even one request: the prefill admission floor",
    "state cache is too small to serve any requests",
    "leaves no room for the full",
];

fn sum(a: super::Figure, b: super::Figure) -> Option<super::Figure> {
    Some(super::Figure {
        bytes: a.bytes.checked_add(b.bytes)?,
        step_bytes: a.step_bytes.saturating_add(b.step_bytes),
    })
}

fn difference(before: super::Figure, after: super::Figure) -> Option<super::Figure> {
    Some(super::Figure {
        bytes: before.bytes.checked_sub(after.bytes)?,
        step_bytes: before.step_bytes.saturating_add(after.step_bytes),
    })
}

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
        let free = after(rest, "avail mem=").and_then(gib).map(|(free, _)| free);
        let rank = boot.rank(&line.worker);
        let used = match after(rest, "mem usage=").and_then(gib) {
            Some((used, _)) => used,
            // Until 0.4.3 only what is left is printed: the rest is the difference to what there was.
            None => difference(rank.free_after_load.or(rank.free_at_start)?, free?)?,
        };
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
    } else if let Some(rest) =
        after(text, "KV Cache is allocated.").or_else(|| after(text, "KV cache allocated."))
    {
        let (tokens, tail) = match after(rest, "#tokens: ").and_then(count) {
            Some((tokens, tail)) => (Some(tokens), tail),
            // 0.4.1 to 0.4.4 leave the number of tokens to the scheduler's line.
            None => (None, rest),
        };
        let bytes = match after(tail, "K size: ").and_then(gib) {
            Some((keys, tail)) => {
                let (values, _) = gib(after(tail, "V size: ")?)?;
                Some(sum(keys, values)?)
            }
            None => after(tail, "KV size: ").and_then(gib).map(|(f, _)| f),
        };
        let target = target && !text.contains("Draft KV");
        let window = boot.swa_tokens.is_some() && tokens == boot.swa_tokens && tokens != boot.tokens;
        if boot.kv_bytes.is_none() && target && !window {
            boot.tokens = tokens.or(boot.tokens);
            boot.kv_bytes = bytes;
        } else if window || !target || !line.worker.is_empty() || tokens.is_none() || boot.tokens == tokens {
            // The window's pool, another rank, or the drafter's pool of the same tokens.
        } else {
            boot.swa_tokens = boot.swa_tokens.or(tokens);
        }
    // model_executor/pool_configurator.py: comes before the pools are made
    } else if let Some(rest) = after(text, "full_layer_tokens=") {
        let (full, tail) = count(rest)?;
        boot.tokens = Some(full);
        boot.swa_tokens = after(tail, "swa_layer_tokens=")
            .and_then(count)
            .map(|(n, _)| n)
            .filter(|&n| n > 0);
    } else if let Some(rest) = after(text, "The available memory for KV cache is ") {
        let (left, _) = gib(rest)?;
        boot.rank(&line.worker).available_kv = Some(left);
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
        // Beside a drafter, what verification keeps is allocated with the states.
        let mut all: Option<super::Figure> = None;
        for name in [
            "conv_state size: ",
            "ssm_state size: ",
            "intermediate_ssm_state_cache size: ",
            "intermediate_conv_window_cache size: ",
        ] {
            if let Some((part, _)) = after(rest, name).and_then(gib) {
                all = Some(all.map_or(Some(part), |all| sum(all, part))?);
            }
        }
        boot.state_bytes = Some(all?);
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
        // Graphs of decoding, of prompts and of a drafter are captured one after the other.
        let rank = boot.rank(&line.worker);
        rank.graphs = Some(rank.graphs.map_or(Some(used), |before| sum(before, used))?);
    } else if NO_MEMORY.iter().any(|words| text.contains(words)) {
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
