//! Files whose metadata and tensors are wrong: an error or no graph, never a panic, and never a graph without end.

use std::sync::OnceLock;

use proptest::prelude::*;

use super::golden::headers;
use crate::engine::llamacpp::{Header, Hparams, Meta, Settings, Weights, buffers, caches, place};

static HEADERS: OnceLock<Vec<Header>> = OnceLock::new();

/// What a key may hold instead.
fn wrong(choice: u8, was: &Meta) -> Option<Meta> {
    Some(match choice % 9 {
        0 => return None,
        1 => Meta::Int(0),
        2 => Meta::Int(1),
        3 => Meta::Int(i128::from(u64::MAX)),
        4 => Meta::Int(-1),
        5 => Meta::Int(1 << 26),
        6 => Meta::Text("x".to_owned()),
        7 => Meta::Ints(vec![i64::MAX, 0, 3]),
        _ => match was {
            Meta::Int(n) => Meta::Int(n * 2 + 1),
            other => other.clone(),
        },
    })
}

/// Plans a file on two GPUs, partly with the host.
fn plan(header: &Header, settings: &Settings) {
    let Ok(model) = Hparams::read(header) else { return };
    let Ok(weights) = Weights::of_file(header, &model) else {
        return;
    };
    if settings.validate().is_err() {
        return;
    }
    let placement = place(model.layers.len() as u64, settings);
    let settings = settings.clone().with_flash_attention_resolved(&model, &placement);
    let Ok(made) = caches(&model, &settings) else {
        return;
    };
    let _ = buffers(&model, &weights, &settings, &made, &placement);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn wrong_files_are_no_panic(
        which: prop::sample::Index,
        keys in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        tensors in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ctx in 0_u64..1 << 33, parallel in 0_u64..300, ngl in prop::option::of(0_u64..9), cpu_moe in 0_u64..3, flash: bool,
    ) {
        let all = HEADERS.get_or_init(headers);
        let header = &mut all[which.index(all.len())].clone();
        for (key, choice) in keys {
            let names: Vec<String> = header.metadata.keys().cloned().collect();
            let name = &names[key.index(names.len())];
            let was = header.metadata[name].clone();
            match wrong(choice, &was) {
                Some(value) => header.metadata.insert(name.clone(), value),
                None => header.metadata.remove(name),
            };
        }
        for (tensor, choice) in tensors {
            let i = tensor.index(header.tensors.len());
            let shape = &mut header.tensors[i].shape;
            match choice % 6 {
                0 => shape.clear(),
                // One that was cleared before stays so.
                1 => shape.iter_mut().take(1).for_each(|n| *n = 1),
                2 => shape.reverse(),
                3 => shape.iter_mut().take(1).for_each(|n| *n = u64::MAX),
                4 => shape.push(7),
                _ => { header.tensors.remove(i); }
            }
        }
        let settings = Settings {
            ctx_size: Some(ctx), parallel, gpu_layers: ngl, gpus: 2, cpu_moe_layers: cpu_moe, flash_attn: flash,
            flash_attn_auto: flash, kv_unified: parallel % 2 == 0, ..Settings::default()
        };
        plan(header, &settings);
    }
}
