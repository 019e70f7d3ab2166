//! What must hold for every model and setting, and naive twins of grouping and of the blocks of a request.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::group::{Group, MemoryOrder, group};
use super::request::{RequestContext, blocks_per_request};
use super::spec::tests::{FULL, spec};
use super::spec::{Spec, SpecKind};
use super::{Backend, Gpu, KvDtype, Layout, MaxModelLen, Settings, layout};
use crate::arch::{AttentionScales, Cache, CacheKind, Heads, Layer, Model, State};
use crate::dtype::Dtype;

const H100: Gpu = Gpu {
    major: 9,
    minor: 0,
    memory_bytes: 80 << 30,
    a100: false,
    hopper: false,
    memory_unknown: false,
};

fn heads() -> impl Strategy<Value = Heads> {
    let small = (1_u64..=16, prop::sample::select(vec![64_u64, 96, 128, 256]));
    (small, any::<bool>()).prop_map(|((kv_heads, head_dim), follows_kv_dtype)| Heads {
        kv_heads,
        head_dim,
        head_dim_v: head_dim,
        follows_kv_dtype,
    })
}

fn kind() -> impl Strategy<Value = CacheKind> {
    prop_oneof![
        3 => heads().prop_map(CacheKind::Full),
        3 => (heads(), 1_u64..5000).prop_map(|(heads, window)| CacheKind::Sliding { heads, window }),
        1 => (heads(), 1_u64..9000).prop_map(|(heads, chunk)| CacheKind::Chunked { heads, chunk }),
        1 => heads().prop_map(CacheKind::Cross),
        1 => (1_u64..600, any::<bool>()).prop_map(|(width, sparse)| CacheKind::Latent { width, nope: 128, rope: 64, sparse }),
        1 => (1_u64..2000, 1_u64..5000).prop_map(|(width, window)| CacheKind::SlidingLatent { width, window }),
        1 => Just(CacheKind::Indexer { bytes_per_token: 132, kernel_block: 64 }),
        1 => (1_u64..40, any::<bool>()).prop_map(|(pool, paged)| CacheKind::PooledIndexer { bytes_per_entry: 132, pool, paged }),
        1 => (1_u64..40, any::<bool>()).prop_map(|(pool, doubling)| CacheKind::Ring { vectors: 2, width: 128, pool, doubling }),
        1 => (prop::sample::select(vec![0_u64, 1, 4, 128]), 1_u64..600)
            .prop_map(|(ratio, head_dim)| CacheKind::Compressed { ratio, head_dim, window: 128, index_head_dim: 128 }),
        1 => (0_u64..3, 0_u64..2, 1_u64..600).prop_map(|(ratio, behind, head_dim)| CacheKind::SharedCompressed {
            ratio,
            behind,
            head_dim,
            window: 128,
            index_head_dim: 128,
            output_groups: 8,
        }),
        2 => (1_u64..64, 1_u64..256, 1_u64..8).prop_map(|(heads, dim, kernel)| CacheKind::State(State::Kda {
            heads,
            dim,
            kernel,
            checkpoint: true,
            conv: None,
            ssm: None,
        })),
    ]
}

/// A model whose layers repeat a short pattern of caches.
fn model() -> impl Strategy<Value = Model> {
    (
        prop::collection::vec(prop::collection::vec(kind(), 0..3), 1..4),
        1_usize..40,
        1_u64..64,
    )
        .prop_map(|(pattern, count, query_heads)| Model {
            name: "random".to_owned(),
            architecture: "RandomForCausalLM".to_owned(),
            model_type: "random".to_owned(),
            dtype: Some(Dtype::Bf16),
            max_position: Some(131_072),
            num_attention_heads: query_heads,
            num_kv_heads: query_heads,
            hidden_size: 1024,
            vocab_size: 32_000,
            layers_path: "model.layers".to_owned(),
            layers: (0..count)
                .map(|i| Layer {
                    caches: pattern[i % pattern.len()]
                        .iter()
                        .map(|kind| Cache {
                            name: "attn".to_owned(),
                            kind: kind.clone(),
                        })
                        .collect(),
                    weights: Vec::new().into(),
                })
                .collect(),
            outside: Vec::new(),
            mtp_layers: 1,
            modules: None,
            pooling: None,
            attention_scales: AttentionScales::default(),
            sized_for: None,
            encoder_heads: None,
            sees_whole_images: false,
            encoder_decoder: false,
        })
}

/// Models of attention alone, which any number of tensor-parallel ranks up to 16 divides.
fn plain_model() -> impl Strategy<Value = Model> {
    (model(), prop::collection::vec((0_u64..4, any::<bool>()), 1..30)).prop_map(|(mut model, layers)| {
        model.num_attention_heads = 64;
        model.layers = layers
            .into_iter()
            .map(|(window, wide)| {
                let heads = Heads {
                    kv_heads: if wide { 16 } else { 8 },
                    head_dim: 128,
                    head_dim_v: 128,
                    follows_kv_dtype: true,
                };
                let kind = match window {
                    0 => CacheKind::Full(heads),
                    n => CacheKind::Sliding {
                        heads,
                        window: 512 << n,
                    },
                };
                Layer {
                    caches: vec![Cache {
                        name: "attn".to_owned(),
                        kind,
                    }],
                    weights: Vec::new().into(),
                }
            })
            .collect();
        model
    })
}

fn laid_out(model: &Model, settings: &Settings, available: u64) -> Option<Layout> {
    layout(model, settings, H100, &[available]).unwrap().layout
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_setting_however_large_panics(
        model in model(),
        tp in prop_oneof![1_u64..20, any::<u64>()],
        pp in prop_oneof![1_u64..5, Just(65_536)],
        dcp in prop_oneof![Just(1_u64), 1_u64..9],
        block in prop::option::of(prop_oneof![Just(16_u64), 1_u64..2000, any::<u64>()]),
        length in prop_oneof![1_u64..200_000, any::<u64>()],
        batched in prop::option::of(prop_oneof![1_u64..100_000, any::<u64>()]),
        blocks in prop::option::of(prop_oneof![1_u64..100_000, any::<u64>()]),
        available in prop_oneof![0_u64..(1 << 40), any::<u64>()],
        dtype in prop::sample::select(KvDtype::all().collect::<Vec<_>>()),
        backend in prop::option::of(prop::sample::select(vec![Backend::FlashMla, Backend::FlashInfer, Backend::TritonAttn])),
        hybrid in any::<bool>(),
        major in 7_u32..14,
    ) {
        let settings = Settings {
            tensor_parallel_size: tp,
            pipeline_parallel_size: pp,
            decode_context_parallel_size: dcp,
            block_size: block,
            max_model_len: MaxModelLen::Tokens(length),
            max_num_batched_tokens: batched,
            num_gpu_blocks_override: blocks,
            kv_cache_dtype: dtype,
            attention_backend: backend,
            disable_hybrid_kv_cache_manager: hybrid,
            ..Settings::default()
        };
        let gpu = Gpu { major, ..H100 };
        if let Ok(outcome) = layout(&model, &settings, gpu, &[available]) {
            prop_assert!(outcome.layout.is_some() || outcome.refused.is_some());
            if let Some(layout) = outcome.layout {
                prop_assert!(layout.stages.iter().all(|stage| blocks.is_some()
                    || layout.kv_layers == 0
                    || stage.allocated_bytes <= stage.available_bytes));
                prop_assert_eq!(layout.stages.iter().map(|stage| stage.kv_layers).sum::<u64>(), layout.kv_layers);
            }
        }
    }

    #[test]
    fn absurd_models_are_errors_or_refusals(size in any::<u64>(), other in any::<u64>(), window in any::<u64>()) {
        let heads = Heads { kv_heads: size, head_dim: other, head_dim_v: other, follows_kv_dtype: true };
        for kind in [
            CacheKind::Full(heads),
            CacheKind::Sliding { heads, window },
            CacheKind::ConvWindow { heads, window },
            CacheKind::Latent { width: size, nope: other, rope: window, sparse: false },
            CacheKind::SlidingLatent { width: size, window: other },
            CacheKind::Indexer { bytes_per_token: size, kernel_block: other },
            CacheKind::PooledIndexer { bytes_per_entry: size, pool: other, paged: true },
            CacheKind::Ring { vectors: size, width: other, pool: window, doubling: true },
            CacheKind::Compressed { ratio: 4, head_dim: size, window, index_head_dim: other },
            CacheKind::SharedCompressed { ratio: 2, behind: 0, head_dim: size, window, index_head_dim: other, output_groups: other },
            CacheKind::State(State::Mamba1 { inner: size, state: other, kernel: window, conv: None, ssm: None }),
        ] {
            let layer = Layer { caches: vec![Cache { name: "attn".to_owned(), kind }], weights: Vec::new().into() };
            let model = Model {
                name: "absurd".to_owned(),
                architecture: String::new(),
                model_type: String::new(),
                dtype: None,
                max_position: Some(window.max(1)),
                num_attention_heads: size,
                num_kv_heads: size,
                hidden_size: size,
                vocab_size: size,
                layers_path: String::new(),
                layers: vec![layer; 3],
                outside: Vec::new(),
                mtp_layers: size,
                modules: None,
                pooling: None,
                attention_scales: AttentionScales::default(),
                sized_for: None,
                encoder_heads: None,
                sees_whole_images: false,
                encoder_decoder: false,
            };
            let _ = layout(&model, &Settings::default(), H100, &[other]);
        }
    }

    #[test]
    fn more_memory_never_holds_less(model in plain_model(), available in 1_u64 << 28..1 << 40, more in 0_u64..1 << 36) {
        let settings = Settings::default();
        let (less, more) = (laid_out(&model, &settings, available), laid_out(&model, &settings, available + more));
        let (less, more) = (less.unwrap(), more.unwrap());
        prop_assert!(less.num_blocks <= more.num_blocks);
        prop_assert!(less.capacity_tokens <= more.capacity_tokens);
    }

    #[test]
    fn more_ranks_never_need_more_bytes_each(model in plain_model(), power in 0_u32..3) {
        let at = |tp| laid_out(&model, &Settings { tensor_parallel_size: tp, ..Settings::default() }, 1 << 36).unwrap();
        let (few, many) = (at(1 << power), at(2 << power));
        prop_assert!(many.stages[0].bytes_per_block <= few.stages[0].bytes_per_block);
    }

    #[test]
    fn longer_requests_and_more_tokens_in_flight_never_take_fewer_blocks(
        model in plain_model(), length in 1_u64..200_000, longer in 0_u64..100_000, batched in 1_u64..20_000, more in 0_u64..20_000,
    ) {
        let at = |batched| {
            let settings = Settings { max_num_batched_tokens: Some(batched), max_num_seqs: Some(1), ..Settings::default() };
            laid_out(&model, &settings, 1 << 36).unwrap()
        };
        let layout = at(batched);
        prop_assert!(layout.request_blocks_at(length).unwrap() <= layout.request_blocks_at(length + longer).unwrap());
        let busier = at(batched + more);
        prop_assert!(layout.request_blocks_at(length).unwrap() <= busier.request_blocks_at(length).unwrap());
    }

    #[test]
    fn the_longest_request_that_fits_is_the_last_that_fits(model in plain_model(), requests in 1_u64..50) {
        let layout = laid_out(&model, &Settings::default(), 1 << 34).unwrap();
        let longest = layout.max_tokens_for(requests).unwrap();
        if longest > 0 {
            prop_assert!(layout.whole_requests_at(longest).unwrap() >= requests);
        }
        if longest < layout.max_model_len {
            prop_assert!(layout.whole_requests_at(longest + 1).unwrap() < requests);
        }
    }

    #[test]
    fn the_length_a_refusal_names_is_accepted_and_the_next_is_not(model in plain_model(), available in 1_u64 << 20..1 << 31) {
        let with = |length| layout(&model, &Settings { max_model_len: MaxModelLen::Tokens(length), ..Settings::default() }, H100, &[available]).unwrap();
        if let Some(length) = with(131_072).refused.and_then(|refusal| refusal.estimated_max_model_len) {
            // The batch shrinks with the length where its default is capped by it; with 1024 sequences it is not.
            prop_assert!(with(length).refused.is_none());
            prop_assert!(with(length + 1).refused.is_some());
            let auto = Settings { max_model_len: MaxModelLen::Auto, ..Settings::default() };
            prop_assert_eq!(laid_out(&model, &auto, available).unwrap().max_model_len, length);
        }
    }

    #[test]
    fn grouping_equals_its_naive_twin(pattern in prop::collection::vec((0_u64..3, 1_u64..4), 1..5), count in 1_usize..70) {
        let specs: Vec<Spec> = (0..count)
            .map(|i| {
                let (window, _) = pattern[i % pattern.len()];
                spec(if window == 0 { FULL } else { SpecKind::Sliding { window: window * 512, extra: 0 } }, 8)
            })
            .collect();
        let grouping = group(specs.clone(), MemoryOrder::LayerOutermost, false).unwrap().unwrap();
        let ours: Vec<Vec<usize>> = grouping.groups.iter().map(|group: &Group| group.layers.clone()).collect();
        prop_assert_eq!(ours, naive_groups(&specs));
    }

    #[test]
    fn blocks_of_a_request_equal_those_of_writing_it_token_by_token(
        block_size in 1_u64..40, length in 1_u64..400, window in 1_u64..100, in_flight in 0_u64..60,
    ) {
        let context = RequestContext { max_model_len: length, max_in_flight_tokens: in_flight, max_encoder_tokens: 0, dcp: 1, align_states: false };
        let full = blocks_per_request(&spec(FULL, 1).with_block_size(block_size), &context);
        let written: std::collections::BTreeSet<u64> = (0..length).map(|token| token / block_size).collect();
        prop_assert_eq!(full, written.len() as u64);
        // A window with the tokens in flight behind it, at every offset in a block: never more than is charged, and
        // at most one less, as the engine charges one block for the offset.
        let sliding = spec(SpecKind::Sliding { window, extra: 0 }, 1).with_block_size(block_size);
        let charged = blocks_per_request(&sliding, &context);
        let held = (window - 1 + in_flight).min(length);
        let worst = (0..block_size)
            .map(|start| if held == 0 { 0 } else { (start + held - 1) / block_size + 1 })
            .max()
            .unwrap();
        prop_assert!(worst <= charged && charged <= worst + 1, "{worst} {charged}");
    }
}

/// Groups of equally shaped layers, written down as the engine's documentation tells it: one list a kind, all cut to
/// the length of the shortest (or of the longest, if that is less than half longer), dealt out in turn.
fn naive_groups(specs: &[Spec]) -> Vec<Vec<usize>> {
    let key = |spec: &Spec| match spec.kind {
        SpecKind::Sliding { window, .. } => window,
        _ => 0,
    };
    let mut lists: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, spec) in specs.iter().enumerate() {
        let first = specs.iter().position(|other| key(other) == key(spec)).unwrap();
        lists.entry(first).or_default().push(index);
    }
    if lists.len() == 1 {
        return lists.into_values().collect();
    }
    let shortest = lists.values().map(Vec::len).min().unwrap();
    let longest = lists.values().map(Vec::len).max().unwrap();
    let size = if (longest as f64) < shortest as f64 * 1.5 {
        longest
    } else {
        shortest
    };
    let mut groups = Vec::new();
    for list in lists.into_values() {
        let count = list.len().div_ceil(size);
        for start in 0..count {
            groups.push(
                list.iter()
                    .copied()
                    .enumerate()
                    .filter(|(i, _)| i % count == start)
                    .map(|(_, layer)| layer)
                    .collect(),
            );
        }
    }
    groups
}
