use super::*;

const H100: Gpu = Gpu {
    major: 9,
    minor: 0,
    memory_bytes: 80 << 30,
    a100: false,
    hopper: false,
    memory_unknown: false,
};
const B200: Gpu = Gpu {
    major: 10,
    minor: 0,
    memory_bytes: 180 << 30,
    a100: false,
    hopper: false,
    memory_unknown: false,
};
const A100: Gpu = Gpu {
    major: 8,
    minor: 0,
    memory_bytes: 80 << 30,
    a100: true,
    hopper: false,
    memory_unknown: false,
};
const RTX5090: Gpu = Gpu {
    major: 12,
    minor: 0,
    memory_bytes: 32 << 30,
    a100: false,
    hopper: false,
    memory_unknown: false,
};

fn latent(kv_dtype: KvDtype, sparse: bool, query_heads: u64) -> Demand {
    Demand {
        latent: true,
        sparse,
        head_size: 576,
        nope: 128,
        rope: 64,
        query_heads,
        kv_heads: 1,
        sees: Sight::Earlier,
        kv_dtype,
        block_size: None,
        dcp: 1,
        pool: 1,
    }
}

fn dense(kv_dtype: KvDtype, head_size: u64) -> Demand {
    Demand {
        latent: false,
        sparse: false,
        head_size,
        nope: 0,
        rope: 0,
        query_heads: 32,
        kv_heads: 8,
        sees: Sight::Earlier,
        kv_dtype,
        block_size: None,
        dcp: 1,
        pool: 1,
    }
}

#[test]
fn latent_attention_takes_the_backend_and_block_size_of_its_gpu_generation() {
    let block = |gpu, demand: Demand| {
        let backend = select(gpu, &demand, None).unwrap();
        (backend, backend.preferred_block_size(gpu, &demand, 16))
    };
    assert_eq!(
        block(H100, latent(KvDtype::Auto, false, 128)),
        (Backend::FlashAttnMla, 16)
    );
    assert_eq!(
        block(H100, latent(KvDtype::Fp8, false, 128)),
        (Backend::FlashMla, 64)
    );
    assert_eq!(
        block(B200, latent(KvDtype::Auto, false, 128)),
        (Backend::FlashInferMla, 32)
    );
    assert_eq!(
        block(A100, latent(KvDtype::Auto, false, 128)),
        (Backend::TritonMla, 16)
    );
    assert_eq!(
        block(RTX5090, latent(KvDtype::Auto, false, 128)),
        (Backend::TritonMla, 16)
    );
    assert_eq!(
        block(H100, latent(KvDtype::Auto, true, 128)),
        (Backend::FlashAttnMlaSparse, 64)
    );
    assert_eq!(
        block(H100, latent(KvDtype::Fp8, true, 128)),
        (Backend::FlashMlaSparse, 64)
    );
    assert_eq!(
        select(B200, &latent(KvDtype::Auto, true, 16), None).unwrap(),
        Backend::FlashInferMlaSparse
    );
    assert_eq!(
        select(B200, &latent(KvDtype::Auto, true, 128), None).unwrap(),
        Backend::FlashMlaSparse
    );
    assert_eq!(
        Backend::FlashMlaSparse.stored_kv_dtype(KvDtype::Fp8),
        KvDtype::Fp8DsMla
    );
    assert!(select(A100, &latent(KvDtype::Auto, true, 128), None).is_err());
}

#[test]
fn dense_attention_falls_back_where_a_cache_type_is_not_supported() {
    assert_eq!(
        select(H100, &dense(KvDtype::Auto, 128), None).unwrap(),
        Backend::FlashAttn
    );
    assert_eq!(
        select(B200, &dense(KvDtype::Auto, 128), None).unwrap(),
        Backend::FlashInfer
    );
    assert_eq!(
        select(A100, &dense(KvDtype::Fp8, 128), None).unwrap(),
        Backend::FlashInfer
    );
    assert_eq!(
        select(A100, &dense(KvDtype::Fp8, 80), None).unwrap(),
        Backend::TritonAttn
    );
    assert_eq!(
        select(H100, &dense(KvDtype::Int8PerTokenHead, 128), None).unwrap(),
        Backend::TritonAttn
    );
    assert_eq!(
        select(H100, &dense(KvDtype::TurboquantK8v4, 128), None).unwrap(),
        Backend::TurboQuant
    );
    assert!(select(H100, &dense(KvDtype::Ultraquant4bit, 128), None).is_err());
    assert!(select(H100, &dense(KvDtype::Auto, 128), Some(Backend::FlashMla)).is_err());
}

#[test]
fn models_whose_images_see_both_ways_take_backends_that_let_them() {
    let chosen = |gpu, kv_dtype, head_size| {
        let demand = Demand {
            sees: Sight::WholeImages(ImageRule::Pair),
            ..dense(kv_dtype, head_size)
        };
        let backend = select(gpu, &demand, None).unwrap();
        (backend, backend.preferred_block_size(gpu, &demand, 16))
    };
    // Gemma-4's two sizes of heads on Hopper: FlashAttention 4 fixes the pages of the larger one in 8 bits.
    assert_eq!(chosen(H100, KvDtype::Fp8, 256), (Backend::TritonFlashAttn, 16));
    assert_eq!(chosen(H100, KvDtype::Fp8, 512), (Backend::TritonFlashAttn, 64));
    assert_eq!(chosen(H100, KvDtype::Auto, 512), (Backend::TritonFlashAttn, 16));
    // Gemma-3's heads of 128 resolve to FlashAttention 3 there, which cannot.
    assert_eq!(chosen(H100, KvDtype::Auto, 128), (Backend::TritonAttn, 16));
    assert_eq!(chosen(B200, KvDtype::Auto, 128), (Backend::FlashAttn, 16));
    assert_eq!(chosen(B200, KvDtype::Auto, 256), (Backend::TritonFlashInfer, 64));
    assert_eq!(chosen(A100, KvDtype::Fp8, 128), (Backend::TritonAttn, 16));
    let forced = select(
        H100,
        &Demand {
            sees: Sight::WholeImages(ImageRule::Pair),
            ..dense(KvDtype::Fp8, 128)
        },
        Some(Backend::FlashAttn),
    );
    assert!(
        forced
            .unwrap_err()
            .contains("SM90 FP8 KV with mm_prefix requires Triton")
    );
}
