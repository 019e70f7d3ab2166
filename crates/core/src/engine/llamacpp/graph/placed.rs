//! Starts with tensors placed by name, uneven shares and nothing split, compared byte for byte.
//!
//! `tests/data/llamacpp_placed.jsonl` was made by `tests/reference/llamacpp_placed.py` with the files of the other rows.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;

use super::golden::{Case, asked, cache_bytes, files, on_gpu, read};
use crate::engine::llamacpp::{Hparams, Weights, buffers, caches, place};

#[derive(Deserialize)]
struct Row {
    name: String,
    cases: Vec<Case>,
}

/// What a start is counted as, in the order of the page.
const KINDS: [&str; 5] = [
    "tensors by name, one GPU (`--override-tensor`)",
    "tensors by name, two and three GPUs",
    "tensors by name and `--n-cpu-moe` on two GPUs",
    "uneven shares on three GPUs (`--tensor-split`)",
    "`--split-mode none` with `--main-gpu`, and `--main-gpu` alone",
];

fn kind(case: &Case) -> usize {
    match (case.place.is_empty(), case.cpu_moe, case.free_mib.len()) {
        (true, _, 3) => 3,
        (true, ..) => 4,
        (_, 1.., _) => 2,
        (_, _, 1) => 0,
        _ => 1,
    }
}

/// A section of the page of conformance, and what differs.
pub(super) fn compare() -> (String, Vec<String>) {
    let known: BTreeMap<String, (Hparams, Weights)> = files()
        .map(|file| {
            let made = read(&file);
            (file.name, made)
        })
        .collect();
    let (mut wrong, mut counts, mut refused) = (Vec::new(), [(0, 0); KINDS.len()], 0);
    for line in include_str!("../../../../tests/data/llamacpp_placed.jsonl").lines() {
        let row: Row = serde_json::from_str(line).unwrap();
        let (hparams, weights) = &known[&row.name];
        for case in &row.cases {
            if let Some(said) = &case.refused {
                let ours = asked(case, &serde_json::Map::new()).refusal(hparams);
                refused += 1;
                if !(said.contains("split buffers") || said.contains("main_gpu")) || ours.is_none() {
                    wrong.push(format!("{}: the engine says {said}, we {ours:?}", row.name));
                }
                continue;
            }
            for (i, (run, kv, compute)) in case.runs.iter().enumerate() {
                let settings = asked(case, run);
                assert_eq!(settings.refusal(hparams), None, "{}", row.name);
                let (settings, _) = settings.on_used_devices();
                let made = caches(hparams, &settings).unwrap();
                let placement = place(hparams.layers.len() as u64, &settings);
                let placed = weights.placed(&placement, &settings).unwrap();
                let ours = buffers(hparams, weights, &settings, &made, &placement);
                let mut said = Vec::new();
                let mut differs = |what: String, ours: u64, theirs: u64| {
                    if ours != theirs {
                        said.push(format!("{what} {ours}, not {theirs}"));
                    }
                };
                // Where nothing is split, the first GPU of ours is the one that was named.
                let first = if case.split_mode == 0 { case.main_gpu } else { 0 };
                for gpu in 0..settings.gpus {
                    let Some(named) = gpu.checked_add_signed(first) else {
                        continue;
                    };
                    let at = usize::try_from(gpu).unwrap();
                    let cache = cache_bytes(&placement, &made, gpu);
                    differs(format!("GPU {gpu} caches"), cache, on_gpu(kv, named));
                    if i == 0 {
                        differs(
                            format!("GPU {gpu} weights"),
                            placed.gpus[at],
                            on_gpu(&case.model, named),
                        );
                    }
                    if let Some(ours) = &ours {
                        differs(
                            format!("GPU {gpu} computes in"),
                            ours.gpus[at],
                            on_gpu(compute, named),
                        );
                    }
                }
                if let (Some(ours), true) = (&ours, first >= 0) {
                    let mib = format!("{:.2}", ours.host as f64 / 1_048_576.0);
                    if mib != format!("{:.2}", compute["CUDA_Host"]) {
                        said.push(format!(
                            "the host computes in {mib} MiB, not {}",
                            compute["CUDA_Host"]
                        ));
                    }
                }
                if ours.is_none() {
                    said.push("the graph is not built".to_owned());
                }
                let count = &mut counts[kind(case)];
                count.0 += 1;
                count.1 += usize::from(said.is_empty());
                if !said.is_empty() {
                    let (free, names) = (&case.free_mib, &case.place);
                    wrong.push(format!(
                        "{} {free:?} {:?} {:?} {names:?} {run:?}: {}",
                        row.name,
                        case.ngl,
                        case.split,
                        said.join(", ")
                    ));
                }
            }
        }
    }
    let all: usize = counts.iter().map(|c| c.0).sum();
    assert!(all > 850 && refused >= 6, "only {all} starts, {refused} refused");
    let mut section = format!(
        "\n## Placed by name, by shares, or not split\n\nThe same files, every one in about half of 16 ways, two starts each (`tests/reference/llamacpp_placed.py`): \
         experts, whole layers, attention, norms, the head or the embedding moved to the host or to another GPU. {refused} starts \
         more were refused, as planned: `--split-mode row`, which CUDA's backend no longer has, and a `--main-gpu` that is not there.\n\n| starts | equal |\n| :-- | --: |\n"
    );
    for (kind, (starts, equal)) in KINDS.iter().zip(counts) {
        let cell = if starts == equal {
            format!("= {starts}")
        } else {
            format!("{equal} of {starts}")
        };
        writeln!(section, "| {kind} | {cell} |").unwrap();
    }
    (section, wrong)
}
