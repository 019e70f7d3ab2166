//! llama.cpp's caches as groups of a report, and how they come about.

use super::CACHE_SOURCE;
use crate::engine::llamacpp::{Caches, Hparams, Settings};
use crate::plan::ledger::{Derivation, Step};
use crate::plan::report::GroupPart;
use crate::units::{grouped, human_bytes};

/// The caches of a kind of layers each.
pub(super) fn groups(model: &Hparams, caches: &Caches) -> Vec<GroupPart> {
    let mut out = Vec::new();
    for (sliding, cells) in [(false, caches.cells), (true, caches.window_cells)] {
        let of: Vec<usize> = (0..model.layers.len())
            .filter(|&i| model.layers[i].attention.is_some_and(|a| a.sliding == sliding))
            .collect();
        if let Some(&first) = of.first() {
            let bytes = caches.key_bytes[first].saturating_add(caches.value_bytes[first]);
            out.push(GroupPart {
                kind: match (sliding, model.mla) {
                    (true, _) => format!("sliding {}", model.sliding.map_or(0, |s| s.tokens)),
                    (false, true) => "latent".to_owned(),
                    (false, false) => "full".to_owned(),
                },
                layers: of.len() as u64,
                block_size: 1,
                page_bytes: bytes
                    .checked_div(cells.saturating_mul(caches.streams))
                    .unwrap_or(0),
                blocks_per_request: cells,
            });
        }
    }
    let states: Vec<usize> = (0..model.layers.len())
        .filter(|&i| model.layers[i].recurrent.is_some())
        .collect();
    if let Some(&first) = states.first() {
        out.push(GroupPart {
            kind: "state".to_owned(),
            layers: states.len() as u64,
            block_size: 1,
            page_bytes: caches.state_bytes[first] / caches.streams.max(1),
            blocks_per_request: 1,
        });
    }
    out
}

/// Adds the steps from the context to the caches.
pub(super) fn explain(
    steps: &mut Derivation,
    model: &Hparams,
    settings: &Settings,
    caches: &Caches,
    on_gpu: u64,
) {
    steps.add(|| {
        Step::new(
            "context",
            format!(
                "{} sequence(s){}, padded to 256",
                settings.parallel,
                if settings.kv_unified {
                    " in one cache"
                } else {
                    ", each with its part"
                }
            ),
            format!(
                "{} tokens, {} a sequence",
                grouped(caches.ctx),
                grouped(caches.ctx_per_sequence)
            ),
        )
        .of(CACHE_SOURCE)
    });
    for group in groups(model, caches) {
        steps.add(|| {
            Step::new(
                format!("cache: {}", group.kind),
                format!(
                    "{} layers x {} cells x {} streams x {} B (K {}, V {})",
                    group.layers,
                    grouped(group.blocks_per_request),
                    caches.streams,
                    grouped(group.page_bytes),
                    settings.cache_type_k.name,
                    settings.cache_type_v.name
                ),
                human_bytes(
                    group
                        .layers
                        .saturating_mul(group.blocks_per_request)
                        .saturating_mul(caches.streams)
                        .saturating_mul(group.page_bytes),
                ),
            )
            .of(CACHE_SOURCE)
        });
    }
    steps
        .add(|| Step::new("caches on this GPU", "sum over its layers", human_bytes(on_gpu)).of(CACHE_SOURCE));
}
