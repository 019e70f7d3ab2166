//! Whole layouts of hand-made models against numbers that vLLM 0.32.0's own code and a real server gave.

use super::{
    Draft, Gpu, Layout, MaxModelLen, Method, Outcome, RefusalKind, Settings, Speculative, Version, layout,
};
use crate::arch::{AttentionScales, Cache, CacheKind, Config, Heads, Layer, Model};
use crate::dtype::Dtype;

const H100: Gpu = Gpu {
    major: 9,
    minor: 0,
    memory_bytes: 80 << 30,
    a100: false,
    hopper: false,
    memory_unknown: false,
};
const GIB: u64 = 1 << 30;

fn full(kv_heads: u64, head_dim: u64) -> CacheKind {
    CacheKind::Full(heads(kv_heads, head_dim))
}

fn heads(kv_heads: u64, head_dim: u64) -> Heads {
    Heads {
        kv_heads,
        head_dim,
        head_dim_v: head_dim,
        follows_kv_dtype: true,
    }
}

fn model(kinds: impl IntoIterator<Item = CacheKind>) -> Model {
    let layer = |kind| Layer {
        caches: vec![Cache {
            name: "self_attn.attn".to_owned(),
            kind,
        }],
        weights: Vec::new().into(),
    };
    Model {
        name: "hand-made".to_owned(),
        architecture: "LlamaForCausalLM".to_owned(),
        model_type: "llama".to_owned(),
        dtype: Some(Dtype::Bf16),
        max_position: Some(1 << 20),
        num_attention_heads: 32,
        num_kv_heads: 8,
        hidden_size: 4096,
        vocab_size: 128_256,
        layers_path: "model.layers".to_owned(),
        layers: kinds.into_iter().map(layer).collect(),
        outside: Vec::new(),
        mtp_layers: 0,
        modules: None,
        pooling: None,
        attention_scales: AttentionScales::default(),
        sized_for: None,
        encoder_heads: None,
        sees_whole_images: false,
        encoder_decoder: false,
    }
}

fn at(length: u64) -> Settings {
    Settings {
        max_model_len: MaxModelLen::Tokens(length),
        max_num_batched_tokens: Some(8192),
        max_num_seqs: Some(256),
        ..Settings::default()
    }
}

fn outcome(model: &Model, settings: &Settings, available: &[u64]) -> Outcome {
    layout(model, settings, H100, available).unwrap()
}

fn accepted(model: &Model, settings: &Settings, available: &[u64]) -> Layout {
    let outcome = outcome(model, settings, available);
    assert_eq!(outcome.refused, None);
    outcome.layout.unwrap()
}

#[test]
fn llama_8b_with_exactly_one_request_is_refused_for_the_null_block() {
    let llama = model(vec![full(8, 128); 32]);
    let held = accepted(&llama, &at(131_072), &[40 * GIB]);
    assert_eq!((held.num_blocks, held.capacity_tokens), (20_480, Some(327_680)));
    assert_eq!(held.max_concurrency.map(f64::to_bits), Some(2.5_f64.to_bits()));
    let exact = outcome(&llama, &at(131_072), &[16 * GIB]);
    let refusal = exact.refused.unwrap();
    assert_eq!(
        (refusal.kind, refusal.estimated_max_model_len),
        (RefusalKind::Memory, Some(131_056))
    );
    assert_eq!(exact.layout.unwrap().num_blocks, 8192);
    let more = accepted(&llama, &at(131_072), &[16 * GIB + (2 << 20)]);
    assert_eq!((more.num_blocks, more.capacity_tokens), (8193, Some(131_088)));
}

#[test]
fn releases_before_the_null_block_was_reserved_accept_exactly_one_request() {
    let llama = model(vec![full(8, 128); 32]);
    let settings = Settings {
        version: Version::new(0, 22, 0),
        ..at(131_072)
    };
    assert_eq!(accepted(&llama, &settings, &[16 * GIB]).num_blocks, 8192);
    let newer = Settings {
        version: Version::new(0, 40, 0),
        ..at(8192)
    };
    assert_eq!(outcome(&llama, &newer, &[40 * GIB]).warnings.len(), 1);
}

#[test]
fn an_override_of_blocks_decides_what_is_refused() {
    // A real server: 64 blocks of 16 with 2048 tokens refused, at most 1008; 65 blocks of 32 log 2,080 tokens.
    let small = model(vec![full(2, 64); 2]);
    let settings = Settings {
        num_gpu_blocks_override: Some(64),
        ..at(2048)
    };
    let refusal = outcome(&small, &settings, &[GIB]).refused.unwrap();
    assert_eq!(refusal.estimated_max_model_len, Some(1008));
    let settings = Settings {
        num_gpu_blocks_override: Some(65),
        block_size: Some(32),
        ..at(2048)
    };
    assert_eq!(accepted(&small, &settings, &[GIB]).capacity_tokens, Some(2080));
}

#[test]
fn the_stage_with_the_least_memory_decides_for_all() {
    let llama = model(vec![full(8, 128); 32]);
    let settings = Settings {
        pipeline_parallel_size: 2,
        ..at(8192)
    };
    let held = accepted(&llama, &settings, &[4 * GIB, 3 * GIB]);
    assert_eq!(held.num_blocks, 3072);
    assert_eq!(
        held.stages
            .iter()
            .map(|stage| stage.bytes_per_block)
            .collect::<Vec<_>>(),
        [1 << 20, 1 << 20]
    );
}

#[test]
fn gemma3_holds_more_without_asynchronous_scheduling() {
    let window = CacheKind::Sliding {
        heads: heads(16, 128),
        window: 1024,
    };
    let gemma = model((0..62).map(|i| {
        if (i + 1) % 6 == 0 {
            full(16, 128)
        } else {
            window.clone()
        }
    }));
    let tokens = |settings: &Settings| accepted(&gemma, settings, &[40 * GIB]).capacity_tokens;
    assert_eq!(tokens(&at(131_072)), Some(291_658));
    assert_eq!(
        tokens(&Settings {
            async_scheduling: Some(false),
            ..at(131_072)
        }),
        Some(368_540)
    );
    assert_eq!(tokens(&at(4096)), Some(74_648));
    let dense = Settings {
        disable_hybrid_kv_cache_manager: true,
        ..at(131_072)
    };
    assert_eq!(accepted(&gemma, &dense, &[80 * GIB]).num_blocks, 10_570);
}

#[test]
fn an_eagle_drafter_pads_the_windows_of_gpt_oss_to_thirteen_layers() {
    let window = CacheKind::Sliding {
        heads: heads(8, 64),
        window: 128,
    };
    let target = model((0..24).map(|i| if i % 2 == 1 { full(8, 64) } else { window.clone() }));
    let plain = accepted(&target, &at(131_072), &[10 * GIB]);
    assert_eq!(
        (plain.stages[0].bytes_per_block, plain.num_blocks),
        (393_216, 27_306)
    );
    let draft = Some(Box::new(Draft {
        model: model([full(8, 64)]),
        config: Config::from_map(serde_json::Map::new()),
        has_embedding: None,
        has_head: None,
    }));
    let speculative = Some(Speculative {
        method: Method::Eagle3,
        num_tokens: 3,
        draft,
    });
    let drafted = accepted(
        &target,
        &Settings {
            speculative,
            ..at(131_072)
        },
        &[10 * GIB],
    );
    assert_eq!(
        (drafted.stages[0].bytes_per_block, drafted.num_blocks),
        (425_984, 25_206)
    );
    assert_eq!(
        drafted
            .groups
            .iter()
            .map(|group| group.layers)
            .collect::<Vec<_>>(),
        [12, 13]
    );
}

#[test]
fn what_the_engine_refuses_is_an_answer_with_the_numbers_that_are_left() {
    let llama = model(vec![full(8, 128); 32]);
    let refused = |settings: &Settings| {
        let outcome = outcome(&llama, settings, &[40 * GIB]);
        (outcome.refused.unwrap().kind, outcome.layout.is_some())
    };
    assert_eq!(
        refused(&Settings {
            tensor_parallel_size: 3,
            ..at(8192)
        }),
        (RefusalKind::TensorParallel, false)
    );
    assert_eq!(refused(&at(2 << 20)), (RefusalKind::MaxModelLen, true));
    assert_eq!(
        refused(&Settings {
            block_size: Some(20),
            ..at(8192)
        }),
        (RefusalKind::AttentionBackend, true)
    );
    assert_eq!(
        refused(&Settings {
            max_num_batched_tokens: Some(100),
            ..at(8192)
        }),
        (RefusalKind::Scheduler, true)
    );
    let divided = Settings {
        tensor_parallel_size: 4,
        decode_context_parallel_size: 2,
        ..at(8192)
    };
    assert_eq!(refused(&divided), (RefusalKind::DecodeContextParallel, true));
    let mtp = Some(Speculative {
        method: Method::Mtp,
        num_tokens: 1,
        draft: None,
    });
    assert_eq!(
        refused(&Settings {
            speculative: mtp,
            ..at(8192)
        }),
        (RefusalKind::Speculative, false)
    );
}

#[test]
fn automatic_length_takes_the_longest_that_fits() {
    let llama = model(vec![full(8, 128); 32]);
    let settings = Settings {
        max_model_len: MaxModelLen::Auto,
        ..at(1)
    };
    let held = accepted(&llama, &settings, &[16 * GIB]);
    assert_eq!(
        (
            held.max_model_len,
            held.whole_requests_at(held.max_model_len).unwrap()
        ),
        (131_056, 1)
    );
    assert_eq!(held.bytes_per_token(), 131_072);
    assert_eq!(held.max_tokens_for(4).unwrap(), 8191 / 4 * 16);
}
