//! Buffers of llama.cpp b11549 over GPUs that exist on paper, compared byte for byte.
//!
//! `tests/data/llamacpp_gpus.jsonl` was made by `tests/reference/llamacpp_gpus.py` from GGUF files of real widths with few
//! layers, whose tensors were never written: one, two, three and four GPUs, split by free memory and by shares, partly
//! offloaded, with context, batch, sequences, cache types and flash attention varied.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::engine::llamacpp::golden::{header, settings};
use crate::engine::llamacpp::{
    Caches, GgmlType, Hparams, Placement, Settings, Tensor, Weights, buffers, caches, place,
};

#[derive(Deserialize)]
struct File {
    name: String,
    metadata: Map<String, Value>,
    outside: Vec<(String, String, Vec<u64>)>,
    layer: Vec<(String, String, Vec<u64>)>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    free_mib: Vec<u64>,
    ngl: Option<u64>,
    #[serde(default)]
    split: Vec<f64>,
    model: BTreeMap<String, f64>,
    runs: Vec<(Map<String, Value>, Devices, Devices)>,
}

/// Bytes on GPUs, MiB to a hundredth with the host.
type Devices = BTreeMap<String, f64>;

fn tensor(name: String, kind: &str, shape: &[u64]) -> Tensor {
    let kind = GgmlType::by_name(kind).unwrap();
    let elements: u64 = shape.iter().product();
    Tensor {
        name,
        shape: shape.to_vec(),
        kind,
        bytes: kind.row_bytes(elements).unwrap(),
    }
}

fn read(file: &File) -> (Hparams, Weights) {
    let mut header = header(&file.metadata);
    for (name, kind, shape) in &file.outside {
        header.tensors.push(tensor(name.clone(), kind, shape));
    }
    let layers = header.required("block_count").unwrap();
    for layer in 0..layers {
        for (name, kind, shape) in &file.layer {
            header
                .tensors
                .push(tensor(format!("blk.{layer}.{name}"), kind, shape));
        }
    }
    let hparams = Hparams::read(&header).unwrap();
    let weights = Weights::of_file(&header, &hparams).unwrap();
    (hparams, weights)
}

fn asked(case: &Case, run: &Map<String, Value>) -> Settings {
    let mut run = run.clone();
    let outputs = run.remove("out");
    let mut settings = settings(&run);
    settings.gpus = case.free_mib.len() as u64;
    settings.gpu_layers = case.ngl;
    settings.tensor_split = if case.split.is_empty() {
        case.free_mib.iter().map(|&mib| mib as f64).collect()
    } else {
        case.split.clone()
    };
    if outputs.is_some_and(|n| n.as_u64() == Some(settings.ubatch_size)) {
        settings.outputs = crate::engine::llamacpp::Outputs::Tokens;
    }
    settings
}

fn on_gpu(devices: &Devices, gpu: u64) -> u64 {
    devices
        .get(&format!("CUDA{gpu}"))
        .map_or(0, |&bytes| bytes as u64)
}

fn cache_bytes(placement: &Placement, caches: &Caches, gpu: u64) -> u64 {
    let layers = placement.devices.len() - 1;
    (0..layers)
        .filter(|&layer| placement.devices[layer] == Some(gpu))
        .map(|layer| caches.layer_bytes(layer) + caches.padding[layer])
        .sum()
}

fn weight_bytes(placement: &Placement, weights: &Weights, gpu: u64) -> u64 {
    let shared = if placement.copies_shared(gpu) {
        weights.rotations
    } else {
        0
    };
    let layers = placement.devices.iter().enumerate();
    let own: u64 = layers
        .filter(|(_, at)| **at == Some(gpu))
        .map(|(layer, _)| {
            weights.layers.get(layer).copied().unwrap_or(weights.output) + weights.padding[layer]
        })
        .sum();
    own + shared
}

#[test]
fn buffers_of_every_device_are_those_that_llama_cpp_reserves() {
    let (mut wrong, mut runs) = (Vec::new(), 0);
    for line in include_str!("../../../../tests/data/llamacpp_gpus.jsonl").lines() {
        let file: File = serde_json::from_str(line).unwrap();
        let (hparams, weights) = read(&file);
        for case in &file.cases {
            for (i, (run, kv, compute)) in case.runs.iter().enumerate() {
                let settings = asked(case, run);
                let made = caches(&hparams, &settings).unwrap();
                let placement = place(hparams.layers.len() as u64, &settings);
                let mut differs = |what: String| {
                    wrong.push(format!(
                        "{} {:?} {:?} {run:?}: {what}",
                        file.name, case.free_mib, case.ngl
                    ));
                };
                for gpu in 0..settings.gpus {
                    let (ours, theirs) = (cache_bytes(&placement, &made, gpu), on_gpu(kv, gpu));
                    if ours != theirs {
                        differs(format!("GPU {gpu} caches {ours}, not {theirs}"));
                    }
                    let (ours, theirs) = (weight_bytes(&placement, &weights, gpu), on_gpu(&case.model, gpu));
                    if i == 0 && ours != theirs {
                        differs(format!("GPU {gpu} weights {ours}, not {theirs}"));
                    }
                }
                let Some(ours) = buffers(&hparams, &weights, &settings, &made, &placement) else {
                    // Phi-3's fused projection beside weights of the host is left to the estimate.
                    assert!(file.name == "phi3" && case.ngl.is_some(), "{}", file.name);
                    continue;
                };
                runs += 1;
                for gpu in 0..settings.gpus {
                    let (ours, theirs) = (ours.gpus[gpu as usize], on_gpu(compute, gpu));
                    if ours != theirs {
                        differs(format!("GPU {gpu} computes in {ours}, not {theirs}"));
                    }
                }
                let mib = format!("{:.2}", ours.host as f64 / 1_048_576.0);
                if mib != format!("{:.2}", compute["CUDA_Host"]) {
                    differs(format!(
                        "the host computes in {mib} MiB, not {}",
                        compute["CUDA_Host"]
                    ));
                }
            }
        }
    }
    assert!(runs > 380, "only {runs} runs");
    assert!(
        wrong.is_empty(),
        "{} differences in {runs} runs:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
