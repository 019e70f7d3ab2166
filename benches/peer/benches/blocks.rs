//! The same requests through kvwise's block manager and through `kvbm-logical` 1.6.1, NVIDIA Dynamo's block manager.
//!
//! Both are given ready-made names of blocks (hashing tokens is not timed), a pool of 50,000 blocks that has been full for
//! long, and requests of 64 blocks: the first half is one of 16 shared prefixes, the second half is evicted before it comes
//! again. A turn looks the request up, takes blocks for what is missing (evicting others), names them, and gives all of
//! them back, last block first.
//!
//! What differs and is not held against either: kvbm's blocks are typed, reference-counted handles behind a lock, made for
//! several threads and devices; kvwise's are numbers, without lock, to be owned by one scheduler. Dynamo's simulated vLLM
//! pool and SGLang tree (crate `aisimulate-core` 0.13.0) are private to that crate, so they cannot be timed from outside.

use divan::Bencher;
use dynamo_tokens::TokenBlockSequence;
use kvbm_logical::blocks::{CompleteBlock, ImmutableBlock};
use kvbm_logical::manager::{BlockManagerConfigBuilder, FrequencyTrackingCapacity, LineageEviction};
use kvbm_logical::{BlockManager, BlockRegistry, KvbmSequenceHashProvider, SequenceHash};
use kvwise_cache::hash::fast_chain;
use kvwise_cache::manager::{Allocation, EngineKvCache, Hit, ManagerConfig};

fn main() {
    divan::main();
}

const POOL: usize = 50_000;
const BLOCK: u32 = 16;
const REQUEST: u32 = 64;
/// Their own halves are 131,072 blocks together: more than the pool.
const REQUESTS: u32 = 4096;
const WARM_UP: u32 = 2 * REQUESTS;

fn tokens(request: u32) -> Vec<u32> {
    let half = REQUEST / 2 * BLOCK;
    let system = request % 16;
    (0..half)
        .map(|i| system * half + i)
        .chain((0..half).map(|i| 1_000_000 + request * half + i))
        .collect()
}

/// The request of turn `turn`, in an order unlike that of the memory.
fn pick(turn: u32) -> usize {
    (turn.wrapping_mul(1_103) % REQUESTS) as usize
}

#[divan::bench]
fn kvwise_request_of_64_blocks(bencher: Bencher<'_, '_>) {
    let names: Vec<Vec<u128>> = (0..REQUESTS)
        .map(|r| {
            let mut parent = 0;
            tokens(r)
                .chunks_exact(BLOCK as usize)
                .map(|block| {
                    parent = fast_chain(parent, block);
                    parent
                })
                .collect()
        })
        .collect();
    let config = ManagerConfig::full_attention(u32::try_from(POOL).expect("small") + 1, BLOCK);
    let mut cache: EngineKvCache<u128> = EngineKvCache::with_hashes(&config).expect("a good size");
    let mut hit = Hit::default();
    let mut turn = 0u32;
    let mut serve = || {
        turn = turn.wrapping_add(1);
        let names = &names[pick(turn)];
        // one token more than the blocks, so that all 64 may be hit
        let known = REQUEST * BLOCK + 1;
        cache.lookup(names, known, &mut hit);
        let slot = cache.open();
        let step = Allocation::new(names, 0, known - 1 - hit.num_tokens, known);
        assert!(cache.allocate(slot, &step, Some(&hit)), "the pool is large enough");
        cache.close(slot);
        hit.num_tokens
    };
    let mut hits = 0;
    for _ in 0..WARM_UP {
        hits = serve();
    }
    assert_eq!(hits, REQUEST / 2 * BLOCK, "half of a request is shared");
    bencher.bench_local(serve);
}

type Backend = fn(BlockManagerConfigBuilder<()>) -> BlockManagerConfigBuilder<()>;

fn kvbm(bencher: Bencher<'_, '_>, backend: Backend) {
    let hashes: Vec<Vec<SequenceHash>> = (0..REQUESTS)
        .map(|r| {
            let sequence = TokenBlockSequence::from_slice(&tokens(r), BLOCK, None);
            sequence
                .blocks()
                .iter()
                .map(KvbmSequenceHashProvider::kvbm_sequence_hash)
                .collect()
        })
        .collect();
    let registry = BlockRegistry::builder()
        .frequency_tracker(FrequencyTrackingCapacity::default().create_tracker())
        .build();
    let builder = BlockManager::<()>::builder()
        .block_count(POOL)
        .block_size(BLOCK as usize)
        .registry(registry);
    let manager = backend(builder).build().expect("a good configuration");
    let mut turn = 0u32;
    let mut serve = || {
        turn = turn.wrapping_add(1);
        let hashes = &hashes[pick(turn)];
        let mut held: Vec<ImmutableBlock<()>> = manager.match_blocks(hashes);
        let hits = held.len();
        let fresh = manager
            .allocate_blocks(hashes.len() - hits)
            .expect("the pool is large enough");
        let complete: Vec<CompleteBlock<()>> = fresh
            .into_iter()
            .zip(&hashes[hits..])
            .map(|(block, &hash)| block.stage(hash, BLOCK as usize).expect("the same block size"))
            .collect();
        held.extend(manager.register_blocks(complete));
        while held.pop().is_some() {} // last block first
        hits
    };
    let mut hits = 0;
    for _ in 0..WARM_UP {
        hits = serve();
    }
    assert_eq!(hits, REQUEST as usize / 2, "half of a request is shared");
    bencher.bench_local(serve);
}

#[divan::bench]
fn kvbm_lru_request_of_64_blocks(bencher: Bencher<'_, '_>) {
    kvbm(bencher, |b| b.with_lru_backend());
}

#[divan::bench]
fn kvbm_lineage_request_of_64_blocks(bencher: Bencher<'_, '_>) {
    kvbm(bencher, |b| b.with_lineage_backend_eviction(LineageEviction::Tick));
}
