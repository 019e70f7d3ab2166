//! What the wordings have in common: sizes as vLLM rounds them, names, flags and command lines.

use super::super::boot::{Boot, EngineKind, Refusal};
use super::super::figure::{self, Figure, after, count, number};
use super::super::line::Line;
use super::super::python::{self, Value};

/// Rounding of sizes: never coarser than two decimals of a GiB, also where trailing zeros are not printed.
const GIB_HUNDREDTH: u64 = (1 << 30) / 100 + 1;

/// A size in GiB with vLLM's rounding.
pub(super) fn gib(text: &str) -> Option<(Figure, &str)> {
    let (mut figure, rest) = figure::gib(text)?;
    if figure.step_bytes > GIB_HUNDREDTH {
        figure.step_bytes = GIB_HUNDREDTH;
    }
    Some((figure, rest))
}

/// The size behind a phrase.
pub(super) fn gib_after(text: &str, phrase: &str) -> Option<Figure> {
    gib(after(text, phrase)?).map(|(figure, _)| figure)
}

/// Marks the boot as vLLM's; the end of most readers.
#[expect(clippy::unnecessary_wraps, reason = "readers answer an option")]
pub(super) fn own(boot: &mut Boot) -> Option<()> {
    boot.engine.get_or_insert(EngineKind::Vllm);
    Some(())
}

pub(super) fn version(boot: &mut Boot, rest: &str) -> Option<()> {
    let text = rest.split([' ', ',', ')']).next()?.trim_start_matches('v');
    if text.is_empty() || text.len() > 60 || !text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    boot.version = Some(text.to_owned());
    own(boot)
}

pub(super) fn set_model(boot: &mut Boot, name: &str) {
    if !name.is_empty() && name.len() <= 1024 {
        boot.model.get_or_insert_with(|| name.to_owned());
    }
}

pub(super) fn set_gpu(boot: &mut Boot, name: &str) -> Option<()> {
    let name = name.trim();
    if name.is_empty() || name.len() > 80 {
        return None;
    }
    boot.gpu.get_or_insert_with(|| name.to_owned());
    Some(())
}

/// After flags were read: the model is one of them.
pub(super) fn flags_read(boot: &mut Boot) -> Option<()> {
    let model = ["model_tag", "model"]
        .iter()
        .find_map(|&key| match boot.flags.get(key) {
            Some(Value::Text(name)) => Some(name.clone()),
            _ => None,
        });
    if let Some(model) = model {
        boot.model = Some(model);
    }
    own(boot)
}

/// `0.9.2) with config: model='...', ...`
pub(super) fn engine_line(boot: &mut Boot, rest: &str) -> Option<()> {
    version(boot, rest)?;
    boot.has_engine_line = true;
    if let Some(config) = after(rest, "with config: ") {
        boot.config = python::pairs(config);
        if let Some(Value::Text(model)) = boot.config.get("model") {
            boot.model.get_or_insert_with(|| model.clone());
        }
        if let Some(length) = boot.config.get("max_seq_len").and_then(Value::count) {
            boot.max_model_len.get_or_insert(length);
        }
        boot.cpu |= boot
            .config
            .get("device_config")
            .and_then(Value::text)
            .is_some_and(|device| device.trim() == "cpu");
    }
    Some(())
}

/// All terms in one line; the peak contains the weights, which an earlier line gives.
pub(super) fn profiling_results(boot: &mut Boot, line: &Line, rest: &str) -> Option<()> {
    let term = |name: &str| gib_after(rest, name);
    let utilization = after(rest, "gpu_memory_utilization=").and_then(number);
    boot.utilization = utilization.map(|(value, _)| value).or(boot.utilization);
    let rank = boot.rank(&line.worker);
    rank.total = term("total_gpu_memory=").or(rank.total);
    rank.non_torch = term("non_torch_memory=").or(rank.non_torch);
    rank.available_kv = term("kv_cache_size=").or(rank.available_kv);
    if let (Some(peak), Some(weights)) = (term("peak_torch_memory="), rank.model_load) {
        rank.activation = Some(peak.minus(weights));
    }
    own(boot)
}

/// The terms of the V0 engine, wherever they stand in the line.
pub(super) fn v0_terms(boot: &mut Boot, line: &Line) {
    let text = &line.text;
    let rank = boot.rank(&line.worker);
    let term = |names: [&str; 2]| names.iter().find_map(|name| gib_after(text, name));
    if let Some(figure) = term(["model weights take ", "model weights take\t"]) {
        rank.model_load.get_or_insert(figure);
    }
    if let Some(figure) = term(["non_torch_memory takes ", "non_torch_memory "]) {
        rank.non_torch = Some(figure);
    }
    if let Some(figure) = term([
        "PyTorch activation peak memory takes ",
        "PyTorch activation peak memory ",
    ]) {
        rank.activation = Some(figure);
    }
    if let Some(figure) = term(["reserved for KV Cache is ", "available_kv_cache_memory "]) {
        rank.available_kv = Some(figure);
    }
}

/// `Maximum concurrency for 2,048 tokens per request: 34.30x`
pub(super) fn concurrency(boot: &mut Boot, text: &str) {
    if let Some((length, rest)) = after(text, "Maximum concurrency for ").and_then(count)
        && let Some((requests, _)) = after(rest, "per request: ").and_then(number)
    {
        boot.concurrency = Some((requests, length));
        boot.max_model_len = Some(length);
    }
}

pub(super) fn refuse(boot: &mut Boot, refusal: Refusal) -> Option<()> {
    // The engine prints its refusal several times on its way up; the first, most detailed one counts.
    boot.refusal.get_or_insert(refusal);
    own(boot)
}

/// `Using FLASH_ATTN attention backend out of ...`, `Using AttentionBackendEnum.FLASHINFER backend.`
pub(super) fn backend(boot: &mut Boot, text: &str) -> Option<()> {
    let rest = after(text, "Using ")?.trim_start_matches("AttentionBackendEnum.");
    let name = rest.split([' ', '.']).next()?;
    let proper = name.len() >= 4
        && name.len() <= 40
        && name
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    if !proper || rest.to_ascii_lowercase().contains("vit") {
        return None;
    }
    boot.backend.get_or_insert_with(|| name.to_owned());
    own(boot)
}

/// A size that a user gave in whole GiB (`VLLM_CPU_KVCACHE_SPACE` takes no others) is exact.
pub(super) fn whole_gib(figure: Figure) -> Figure {
    const GIB: i64 = 1 << 30;
    if figure.bytes > 0 && figure.bytes % GIB == 0 {
        Figure::exact(figure.bytes)
    } else {
        figure
    }
}

/// A command line in the log (`+ vllm serve MODEL --flag value`): its flags, where the engine prints none.
pub(super) fn command(boot: &mut Boot, text: &str) -> bool {
    let Some(words) = after(text, "vllm serve ")
        .or_else(|| after(text, "vllm.entrypoints.openai.api_server "))
        .filter(|w| w.len() < 8192 && (w.starts_with("--") || !w.starts_with('-')))
    else {
        return false;
    };
    // Sentences and paths that mention the program are no command lines.
    if !words.contains("--") || words.contains("deprecated") {
        return false;
    }
    let words = shell_words(words);
    let mut flags = std::collections::BTreeMap::new();
    let mut at = 0;
    if let Some(first) = words.first().filter(|w| !w.starts_with('-')) {
        set_model(boot, first);
        at = 1;
    }
    while let Some(word) = words.get(at) {
        at += 1;
        let Some(name) = word.strip_prefix("--") else {
            continue;
        };
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Value::read(value)),
            None => match words.get(at).filter(|next| !next.starts_with("--")) {
                Some(next) => {
                    at += 1;
                    (name, Value::read(next))
                }
                None => (name, Value::Bool(true)),
            },
        };
        if name.len() <= 80 && flags.len() < 256 {
            let value = match value {
                Value::Other(text) => Value::Text(text),
                value => value,
            };
            flags.insert(name.replace('-', "_"), value);
        }
    }
    for (name, value) in flags {
        boot.flags.entry(name).or_insert(value);
    }
    if let Some(Value::Text(model)) = boot.flags.get("model") {
        boot.model.get_or_insert_with(|| model.clone());
    }
    own(boot).is_some()
}

/// Words of a command line, with quotes taken off.
pub(super) fn shell_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quote, mut any) = (None, false);
    for c in text.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                any = true;
            }
            (None, c) if c.is_whitespace() => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            (None, '\\') => {}
            (_, c) => word.push(c),
        }
        if words.len() > 512 {
            break;
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}
