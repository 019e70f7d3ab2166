//! The lines of llama.cpp (and of what embeds it), 2024 to 2026: buffers by device, context, cache types.
//!
//! The prefix names the function that prints: `llm_load_tensors`, later `load_tensors`; `llama_kv_cache_init`, `init`,
//! `llama_kv_cache_unified`, later `llama_kv_cache`; `llama_new_context_with_model`, `llama_init_from_model`, later
//! `llama_context`, `sched_reserve`. Buffers of `CPU`, `CPU_Mapped` and `CUDA_Host` are host memory. Until the end of 2024 the
//! buffers of weights had no word of their own (`CUDA0 buffer size`), and one line gave all of the cache (`KV self size`).

use super::boot::{Boot, EngineKind, Refusal};
use super::figure::{Figure, after, count, size};
use super::line::Line;
use super::python::Value;

/// Reads one line; true if it is one of llama.cpp's.
pub fn read_line(boot: &mut Boot, line: &Line) -> bool {
    if boot.engine.is_some_and(|engine| engine != EngineKind::Llamacpp) {
        return false;
    }
    read(boot, line).is_some()
}

/// Whether the line is the first of a model's load.
pub fn begins_server(text: &str) -> bool {
    text.contains("llama_model_loader: loaded meta data")
}

fn add(slot: &mut Option<Figure>, more: Figure) {
    *slot = Some(match *slot {
        None => more,
        Some(sum) => Figure {
            bytes: sum.bytes.saturating_add(more.bytes),
            step_bytes: sum.step_bytes.saturating_add(more.step_bytes),
        },
    });
}

/// The device of a buffer line, the word in front of the phrase, if it is not the host.
fn on_gpu<'a>(text: &'a str, phrase: &str) -> Option<&'a str> {
    let device = text
        .split(phrase)
        .next()
        .and_then(|before| before.split_whitespace().last())
        .unwrap_or("");
    let host = device.starts_with("CPU") || device.contains("Host") || device.ends_with(':');
    (!host && !device.is_empty()).then_some(device)
}

fn read(boot: &mut Boot, line: &Line) -> Option<()> {
    let text = line.text.as_str();
    let mib = |rest: &str| size(rest, 1 << 20).map(|(f, _)| f);
    if let Some(rest) = after(text, "llama_model_loader: loaded meta data") {
        if let Some(path) = after(rest, " from ") {
            let path = path.split(" (version").next().unwrap_or(path).trim();
            boot.model = Some(path.to_owned());
        }
        boot.has_engine_line = true;
    } else if let Some(rest) = after(text, "model buffer size =") {
        let bytes = mib(rest)?;
        if let Some(device) = on_gpu(text, "model buffer size") {
            add(&mut boot.rank(device).model_load, bytes);
        }
    } else if let (Some(rest), true) = (after(text, " buffer size ="), text.contains("llm_load_tensors:")) {
        let bytes = mib(rest)?;
        if let Some(device) = on_gpu(text, "buffer size") {
            add(&mut boot.rank(device).model_load, bytes);
        }
    } else if let Some(rest) = after(text, "KV self size") {
        // The sum of the buffers, which an earlier line may lack.
        let bytes = mib(rest.trim_start().strip_prefix('=')?)?;
        boot.kv_bytes.get_or_insert(bytes);
        cache_types(boot, text);
    } else if let Some(rest) = after(text, "kv_size = ") {
        let (cells, _) = count(rest)?;
        boot.tokens = Some(boot.tokens.map_or(cells, |n| n.max(cells)));
        for (name, key) in [("type_k = '", "cache_type_k"), ("type_v = '", "cache_type_v")] {
            if let Some(kind) = after(text, name).and_then(|rest| rest.split('\'').next()) {
                let kind = kind.chars().take(20).collect();
                boot.config.entry(key.to_owned()).or_insert(Value::Text(kind));
            }
        }
    } else if let Some(rest) = after(text, "KV buffer size =") {
        let bytes = mib(rest)?;
        add(&mut boot.kv_bytes, bytes);
    } else if let Some(rest) = after(text, "RS buffer size =") {
        let bytes = mib(rest)?;
        add(&mut boot.state_bytes, bytes);
    } else if let Some(rest) = after(text, "compute buffer size =") {
        let bytes = mib(rest)?;
        if on_gpu(text, "compute buffer size").is_some() {
            add(&mut boot.compute_bytes, bytes);
            // Builds that reserve apart from making the context may reserve logits for few tokens.
            let apart = text.contains("sched_reserve:");
            boot.config
                .insert("reserves_apart".to_owned(), Value::Bool(apart));
        }
    } else if text.contains("llama_kv_cache") && text.contains(" cells") {
        let before = text.split(" cells").next()?;
        let (cells, _) = count(before.rsplit(['(', ' ']).find(|w| !w.is_empty())?)?;
        boot.tokens = Some(boot.tokens.map_or(cells, |n| n.max(cells)));
        cache_types(boot, text);
    } else if text.contains("using full-size SWA cache") {
        boot.config.insert("swa_full".to_owned(), Value::Bool(true));
    } else if let Some((key, value)) = context_setting(text) {
        if key == "n_ctx" {
            boot.max_model_len = Some(value);
        }
        boot.config
            .insert(key.to_owned(), Value::Int(i64::try_from(value).ok()?));
    } else if let Some((key, value)) = context_word(text) {
        boot.config.insert(key.to_owned(), value);
    } else if let Some(rest) =
        after(text, "print_info: file type").or_else(|| after(text, "llm_load_print_meta: model ftype"))
    {
        let name = rest.trim_start().strip_prefix('=')?.trim();
        if name.is_empty() || name.len() > 40 {
            return None;
        }
        boot.config
            .insert("file_type".to_owned(), Value::Text(name.to_owned()));
    } else if let Some(rest) = after(text, "offloaded ") {
        let (layers, tail) = count(rest)?;
        let (of, tail) = count(tail.strip_prefix('/')?)?;
        if !tail.contains("layers to GPU") {
            return None;
        }
        boot.config
            .insert("n_gpu_layers".to_owned(), Value::Int(i64::try_from(layers).ok()?));
        boot.config
            .insert("layers_total".to_owned(), Value::Int(i64::try_from(of).ok()?));
    } else if let Some(rest) = after(text, "general.architecture str ") {
        let name = rest.trim_start_matches(['=', ' ']).trim();
        boot.config.insert(
            "architecture".to_owned(),
            Value::Text(name.chars().take(40).collect()),
        );
    } else if text.contains("failed to allocate") && text.contains("buffer") {
        boot.engine?;
        boot.refusal.get_or_insert(Refusal::OutOfMemory {
            tried: None,
            others: None,
        });
    } else if let Some(rest) = after(text, "  Device 0: ") {
        let name = rest.split(',').next()?.trim();
        if name.is_empty() || name.len() > 80 || !text.contains("compute capability") {
            return None;
        }
        boot.gpu.get_or_insert_with(|| name.to_owned());
    } else if text.contains("server is listening") || text.contains("llama runner started") {
        boot.engine?;
        boot.is_up = true;
    } else {
        return None;
    }
    boot.engine = Some(EngineKind::Llamacpp);
    Some(())
}

/// Element types of keys and values, as `K (f16):` and `V (f16):` name them.
fn cache_types(boot: &mut Boot, text: &str) {
    for (name, key) in [("K (", "cache_type_k"), ("V (", "cache_type_v")] {
        if let Some(kind) = after(text, name) {
            let kind: String = kind.chars().take_while(|c| *c != ')').take(20).collect();
            boot.config.entry(key.to_owned()).or_insert(Value::Text(kind));
        }
    }
}

/// What a line about the context says, behind the name of the function that prints it.
fn of_context(text: &str) -> Option<(&str, &str)> {
    [
        "llama_context: ",
        "llama_new_context_with_model: ",
        "llama_init_from_model: ",
    ]
    .into_iter()
    .find_map(|prefix| after(text, prefix))?
    .split_once('=')
}

/// `llama_context: n_ctx         = 4096` and its older forms.
fn context_setting(text: &str) -> Option<(&'static str, u64)> {
    let (key, value) = of_context(text)?;
    let key = match key.trim() {
        "n_ctx_per_seq" => "n_ctx_seq",
        key => key,
    };
    let key = [
        "n_ctx",
        "n_batch",
        "n_ubatch",
        "n_seq_max",
        "n_ctx_seq",
        "n_outputs_max",
    ]
    .into_iter()
    .find(|k| *k == key)?;
    Some((key, count(value)?.0))
}

/// Settings of the context that are words: whether the sequences share the cells, and whether flash attention is on.
fn context_word(text: &str) -> Option<(&'static str, Value)> {
    if let Some(rest) = after(text, "Flash Attention was auto, set to ") {
        return Some(("flash_attn", Value::Bool(rest.trim() == "enabled")));
    }
    let (key, value) = of_context(text)?;
    match (key.trim(), value.trim()) {
        ("kv_unified", "true") => Some(("kv_unified", Value::Bool(true))),
        ("kv_unified", "false") => Some(("kv_unified", Value::Bool(false))),
        ("flash_attn", "enabled" | "1") => Some(("flash_attn", Value::Bool(true))),
        ("flash_attn", "disabled" | "0") => Some(("flash_attn", Value::Bool(false))),
        _ => None,
    }
}
