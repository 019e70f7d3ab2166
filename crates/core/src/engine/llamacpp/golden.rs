//! Caches that the real llama.cpp (build b11549) made of 59 small models, compared figure by figure.
//!
//! `tests/data/llamacpp_caches.jsonl` was made by `tests/reference/llamacpp_caches.py`: a prebuilt llama.cpp makes each
//! model from its metadata alone and logs cells, layers, streams and sizes of every cache, to a hundredth of a MiB, for
//! twelve settings.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{GgmlType, Header, Hparams, Meta, Settings, caches};

#[derive(Deserialize)]
struct Model {
    name: String,
    metadata: Map<String, Value>,
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    settings: Map<String, Value>,
    #[serde(default)]
    kv: Vec<(u64, u64, u64, f64, f64)>,
    #[serde(default)]
    rs: Vec<(u64, f64, f64)>,
    refused: Option<String>,
}

/// The metadata as the reader of files would give it.
pub(super) fn header(metadata: &Map<String, Value>) -> Header {
    let mut header = Header {
        version: 3,
        ..Header::default()
    };
    for (key, value) in metadata {
        let meta = match value {
            Value::Bool(b) => Meta::Bool(*b),
            Value::Number(n) => n
                .as_i64()
                .map_or_else(|| Meta::Float(n.as_f64().unwrap()), |n| Meta::Int(i128::from(n))),
            Value::String(s) => Meta::Text(s.clone()),
            Value::Array(list) => Meta::Ints(
                list.iter()
                    .map(|v| v.as_i64().unwrap_or_else(|| i64::from(v.as_bool().unwrap())))
                    .collect(),
            ),
            other => panic!("{key}: {other}"),
        };
        header.metadata.insert(key.clone(), meta);
    }
    header
}

pub(super) fn settings(run: &Map<String, Value>) -> Settings {
    let mut s = Settings {
        ctx_size: Some(4096),
        ..Settings::default()
    };
    for (key, value) in run {
        let n = value.as_u64();
        let kind = || GgmlType::cache(key, value.as_str().unwrap()).unwrap();
        match key.as_str() {
            "n_ctx" => s.ctx_size = n,
            "n_seq_max" => s.parallel = n.unwrap(),
            "kv_unified" => s.kv_unified = value.as_bool().unwrap(),
            "swa_full" => s.swa_full = value.as_bool().unwrap(),
            "type_k" => s.cache_type_k = kind(),
            "type_v" => s.cache_type_v = kind(),
            "flash_attn" => s.flash_attn = n == Some(1),
            "flash_attn_auto" => s.flash_attn_auto = value.as_bool().unwrap(),
            "n_ubatch" => s.ubatch_size = n.unwrap(),
            other => panic!("{other}"),
        }
    }
    s
}

fn mib(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / 1_048_576.0)
}

/// What the log would print, from our layout: (cells, layers, streams, keys, values) of each cache, then the states.
fn log(model: &Hparams, s: &Settings) -> Result<Vec<String>, String> {
    let c = caches(model, s).map_err(|e| e.to_string())?;
    let mut lines = Vec::new();
    for (sliding, cells) in [(false, c.cells), (true, c.window_cells)] {
        let of = |list: &[u64]| -> u64 {
            (0..model.layers.len())
                .filter(|&i| model.layers[i].attention.is_some_and(|a| a.sliding == sliding))
                .map(|i| list[i])
                .sum()
        };
        let layers = model
            .layers
            .iter()
            .filter(|l| l.attention.is_some_and(|a| a.sliding == sliding))
            .count();
        // An architecture with windows has both caches, even if one is empty.
        if layers > 0 || model.sliding.is_some() {
            lines.push(format!(
                "{cells} cells, {layers} layers, {} streams, K {} V {}",
                c.streams,
                mib(of(&c.key_bytes)),
                mib(of(&c.value_bytes))
            ));
        }
    }
    let (conv, state) = model
        .layers
        .iter()
        .filter_map(|l| l.recurrent)
        .fold((0, 0), |(r, z), l| {
            (r + l.conv * s.parallel * 4, z + l.state * s.parallel * 4)
        });
    if model.layers.iter().any(|l| l.recurrent.is_some()) {
        assert_eq!(c.state_bytes.iter().sum::<u64>(), conv + state);
        lines.push(format!(
            "states of {}: R {} S {}",
            s.parallel,
            mib(conv),
            mib(state)
        ));
    }
    Ok(lines)
}

#[test]
fn cells_layers_and_sizes_are_those_that_llama_cpp_logs() {
    let mut wrong = Vec::new();
    let mut runs = 0;
    for line in include_str!("../../../tests/data/llamacpp_caches.jsonl").lines() {
        let model: Model = serde_json::from_str(line).unwrap();
        let hparams = match Hparams::read(&header(&model.metadata)) {
            Ok(hparams) => hparams,
            Err(e) => {
                wrong.push(format!("{}: {e}", model.name));
                continue;
            }
        };
        for run in &model.runs {
            runs += 1;
            let s = settings(&run.settings);
            let mut theirs: Vec<String> = run
                .kv
                .iter()
                .map(|(cells, layers, streams, k, v)| {
                    format!("{cells} cells, {layers} layers, {streams} streams, K {k:.2} V {v:.2}")
                })
                .collect();
            theirs.extend(
                run.rs
                    .iter()
                    .map(|(cells, r, z)| format!("states of {cells}: R {r:.2} S {z:.2}")),
            );
            let ours = log(&hparams, &s);
            let same = match (&ours, &run.refused) {
                (_, Some(_)) => ours.is_err() || s.refusal(&hparams).is_some(),
                (Ok(ours), None) => *ours == theirs,
                (Err(_), None) => false,
            };
            if !same {
                wrong.push(format!(
                    "{} {}: {ours:?} instead of {theirs:?} {:?}",
                    model.name,
                    Value::Object(run.settings.clone()),
                    run.refused
                ));
            }
        }
    }
    assert!(runs > 600, "only {runs} runs");
    assert!(
        wrong.is_empty(),
        "{} of {runs} runs differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
