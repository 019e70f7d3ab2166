//! Cases whose expected values vLLM 0.32.0's own `KVCacheManager` gave, and laws that hold for every manager.

use proptest::prelude::*;

use super::*;
use crate::hash::fast_chain;
use crate::pool::ReleaseOrder;

const BLOCK: u32 = 16;

type Cache = EngineKvCache<u128>;

fn cache(groups: Vec<GroupSpec>, num_blocks: u32, retention: Retention) -> Cache {
    Cache::with_hashes(&ManagerConfig {
        max_model_len: 8192,
        max_in_flight_tokens: 8192,
        retention,
        ..ManagerConfig::new(num_blocks, groups)
    })
    .unwrap()
}

fn names(tokens: &[u32], salt: u128) -> Vec<u128> {
    let mut names: Vec<u128> = Vec::new();
    for block in tokens.chunks_exact(BLOCK as usize) {
        names.push(fast_chain(
            names.last().copied().unwrap_or(u128::MAX - salt),
            block,
        ));
    }
    names
}

/// Looks a request up and admits it: hit tokens, hit blocks, and its tables unless refused.
type Admitted = (u32, Vec<Vec<BlockId>>, Option<Vec<Vec<BlockId>>>);

fn admit(cache: &mut Cache, tokens: &[u32], salt: u128) -> (Slot, Admitted) {
    let keys = names(tokens, salt);
    let known = u32::try_from(tokens.len()).unwrap();
    let slot = cache.open();
    let mut hit = Hit::default();
    cache.lookup(&keys, known, &mut hit);
    let a = Allocation {
        shared_prefix_boundary: 0,
        ..Allocation::new(&keys, 0, known - hit.num_tokens, known)
    };
    let granted = cache.allocate(slot, &a, Some(&hit));
    cache.check().unwrap();
    let tables = granted.then(|| {
        (0..cache.groups().len())
            .map(|g| cache.blocks(slot, g).to_vec())
            .collect()
    });
    (slot, (hit.num_tokens, hit.blocks.clone(), tables))
}

fn free_order(cache: &Cache) -> Vec<BlockId> {
    cache.pool().free_order().collect()
}

fn common() -> Vec<u32> {
    (0..3).flat_map(|i| [i; 16]).collect()
}

fn with(mut tokens: Vec<u32>, more: u32, n: usize) -> Vec<u32> {
    tokens.extend(vec![more; n]);
    tokens
}

#[test]
fn unnamed_tails_are_reused_first_and_named_blocks_deepest_first() {
    let mut m = cache(vec![GroupSpec::full(BLOCK)], 11, Retention::ReplayOnly);
    let (a, first) = admit(&mut m, &with(common(), 3, 7), 0);
    let (b, second) = admit(&mut m, &with(common(), 3, 5), 0);
    assert_eq!(first, (0, vec![vec![]], Some(vec![vec![1, 2, 3, 4]])));
    assert_eq!(second, (48, vec![vec![1, 2, 3]], Some(vec![vec![1, 2, 3, 5]])));
    assert!((m.pool().usage() - 0.5).abs() < 1e-12);
    m.release(a);
    m.release(b);
    assert_eq!(free_order(&m), [5, 4, 6, 7, 8, 9, 10, 3, 2, 1]);
    let (_, all) = admit(&mut m, &[99; 160], 0);
    assert_eq!(all.2, Some(vec![vec![5, 4, 6, 7, 8, 9, 10, 3, 2, 1]]));
}

#[test]
fn one_release_put_the_partial_blocks_of_windows_first_and_those_of_full_attention_last() {
    for (group, order) in [
        (GroupSpec::full(BLOCK), [5, 6, 7, 8, 9, 10, 4, 3, 2, 1]),
        (
            GroupSpec::sliding_window(BLOCK, 1000),
            [4, 5, 6, 7, 8, 9, 10, 3, 2, 1],
        ),
    ] {
        let mut m = Cache::with_hashes(&ManagerConfig {
            release_order: ReleaseOrder::WindowsUnnamedFirst,
            retention: Retention::Dense,
            ..ManagerConfig::new(11, vec![group])
        })
        .unwrap();
        let (a, _) = admit(&mut m, &with(common(), 3, 7), 0);
        m.release(a);
        assert_eq!(free_order(&m), order, "{group:?}");
    }
}

#[test]
fn before_the_change_of_may_2026_partial_blocks_queued_like_cached_ones() {
    let mut m = Cache::with_hashes(&ManagerConfig {
        release_order: ReleaseOrder::AllLast,
        ..ManagerConfig::full_attention(11, BLOCK)
    })
    .unwrap();
    let (a, _) = admit(&mut m, &with(common(), 3, 7), 0);
    m.release(a);
    assert_eq!(free_order(&m), [5, 6, 7, 8, 9, 10, 4, 3, 2, 1]);
}

#[test]
fn a_fully_cached_aligned_prompt_recomputes_its_last_block() {
    let mut m = cache(vec![GroupSpec::full(BLOCK)], 11, Retention::ReplayOnly);
    let tokens: Vec<u32> = (0..65).collect();
    let (a, _) = admit(&mut m, &tokens[..64], 0);
    m.release(a);
    let (b, second) = admit(&mut m, &tokens[..64], 0);
    assert_eq!(second, (48, vec![vec![1, 2, 3]], Some(vec![vec![1, 2, 3, 5]])));
    m.release(b);
    // Of the two copies of block 3 the older one is hit.
    let (_, third) = admit(&mut m, &tokens, 0);
    assert_eq!(
        third,
        (64, vec![vec![1, 2, 3, 4]], Some(vec![vec![1, 2, 3, 4, 6]]))
    );
    assert_eq!(free_order(&m), [7, 8, 9, 10, 5]);
}

#[test]
fn a_salt_separates_equal_prompts() {
    let mut m = cache(vec![GroupSpec::full(BLOCK)], 11, Retention::ReplayOnly);
    let tokens: Vec<u32> = (0..64).collect();
    admit(&mut m, &tokens, 1);
    let (_, other) = admit(&mut m, &tokens, 0);
    assert_eq!(other, (0, vec![vec![]], Some(vec![vec![5, 6, 7, 8]])));
}

#[test]
fn hit_blocks_that_are_free_count_against_the_room() {
    let mut m = cache(vec![GroupSpec::full(BLOCK)], 6, Retention::ReplayOnly);
    let tokens: Vec<u32> = (0..48).collect();
    let (a, _) = admit(&mut m, &tokens, 0);
    m.release(a);
    let (_, refused) = admit(&mut m, &with(tokens, 7, 48), 0);
    assert_eq!(refused, (48, vec![vec![1, 2, 3]], None));
    assert_eq!(free_order(&m), [4, 5, 3, 2, 1]);
}

#[test]
fn a_drafter_drops_the_last_matched_block() {
    let mut m = Cache::with_hashes(&ManagerConfig {
        use_eagle: true,
        ..ManagerConfig::full_attention(11, BLOCK)
    })
    .unwrap();
    let tokens: Vec<u32> = (0..70).collect();
    let (a, _) = admit(&mut m, &tokens[..64], 0);
    m.release(a);
    let (_, second) = admit(&mut m, &tokens, 0);
    assert_eq!(second, (48, vec![vec![1, 2, 3]], Some(vec![vec![1, 2, 3, 5, 6]])));
}

fn hybrid(retention: Retention) -> Cache {
    let groups = vec![
        GroupSpec::full(BLOCK),
        GroupSpec::sliding_window(BLOCK, 32),
        GroupSpec::sliding_window(BLOCK, 32),
    ];
    cache(groups, 41, retention)
}

#[test]
fn dense_retention_shares_any_prefix_in_a_hybrid_model() {
    let mut m = hybrid(Retention::Dense);
    let (_, a) = admit(&mut m, &with(common(), 3, 7), 0);
    assert_eq!(a.2.unwrap(), [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]);
    let (_, b) = admit(&mut m, &with(common(), 3, 5), 0);
    assert_eq!(b.0, 48);
    assert_eq!(b.1, [[1, 2, 3], [0, 6, 7], [0, 10, 11]]);
    assert_eq!(b.2.unwrap(), [[1, 2, 3, 13], [0, 6, 7, 14], [0, 10, 11, 15]]);
    let (_, c) = admit(&mut m, &with(common()[..32].to_vec(), 8, 20), 0);
    assert_eq!((c.0, c.1), (32, vec![vec![1, 2], vec![5, 6], vec![9, 10]]));
    assert_eq!(c.2.unwrap(), [[1, 2, 16, 17], [5, 6, 18, 19], [9, 10, 20, 21]]);
}

#[test]
fn sparse_retention_shares_only_the_whole_prompt_until_a_junction_is_seen() {
    let mut m = hybrid(Retention::ReplayOnly);
    admit(&mut m, &with(common(), 3, 7), 0);
    let (_, b) = admit(&mut m, &with(common(), 3, 5), 0);
    assert_eq!((b.0, b.2.unwrap()[1].clone()), (48, vec![0, 6, 7, 14]));
    let short = with(common()[..32].to_vec(), 8, 20);
    let (_, c) = admit(&mut m, &short, 0);
    assert_eq!((c.0, c.1), (0, vec![vec![], vec![], vec![]]));
    // The lookup says where the shared prefix ends; a request admitted with it leaves the junction cached.
    let mut hit = Hit::default();
    let again = with(common()[..32].to_vec(), 9, 20);
    m.lookup(&names(&again, 0), 52, &mut hit);
    assert_eq!((hit.num_tokens, hit.shared_prefix_boundary), (0, 32));
    let slot = m.open();
    let keys = names(&again, 0);
    let a = Allocation {
        shared_prefix_boundary: hit.shared_prefix_boundary,
        ..Allocation::new(&keys, 0, 52, 52)
    };
    assert!(m.allocate(slot, &a, Some(&hit)));
    let (_, d) = admit(&mut m, &with(common()[..32].to_vec(), 11, 20), 0);
    assert_eq!(d.0, 32);
}

#[test]
fn a_reset_needs_all_blocks_free() {
    let mut m = cache(vec![GroupSpec::full(BLOCK)], 11, Retention::ReplayOnly);
    let tokens: Vec<u32> = (0..64).collect();
    let (a, _) = admit(&mut m, &tokens, 0);
    assert!(!m.pool_mut().reset());
    m.release(a);
    assert!(m.pool_mut().reset());
    let (_, again) = admit(&mut m, &tokens, 0);
    assert_eq!(again, (0, vec![vec![]], Some(vec![vec![5, 6, 7, 8]])));
}

#[test]
fn the_watermark_is_a_share_of_all_blocks_rounded_down() {
    let config = ManagerConfig {
        watermark: 0.1,
        ..ManagerConfig::full_attention(101, BLOCK)
    };
    assert_eq!(Cache::with_hashes(&config).unwrap().watermark_blocks(), 10);
}

#[test]
fn configurations_that_vllm_refuses_are_refused_with_their_field() {
    let base = || ManagerConfig::full_attention(11, BLOCK);
    let swa = GroupSpec::sliding_window(BLOCK, 32);
    for (config, word) in [
        (
            ManagerConfig {
                groups: vec![],
                ..base()
            },
            "groups is empty",
        ),
        (
            ManagerConfig {
                groups: vec![GroupSpec::full(0)],
                ..base()
            },
            "block size of 0",
        ),
        (
            ManagerConfig {
                groups: vec![GroupSpec::sliding_window(BLOCK, 0)],
                ..base()
            },
            "window of 0",
        ),
        (
            ManagerConfig {
                groups: vec![GroupSpec::chunked_local(BLOCK, 0)],
                ..base()
            },
            "chunk of 0",
        ),
        (
            ManagerConfig {
                groups: vec![GroupSpec::full(32), GroupSpec::chunked_local(16, 64)],
                ..base()
            },
            "common size 32",
        ),
        (
            ManagerConfig {
                retention: Retention::Every(64),
                ..base()
            },
            "no sliding-window",
        ),
        (
            ManagerConfig {
                groups: vec![swa],
                retention: Retention::Every(40),
                ..base()
            },
            "multiple of 16",
        ),
        (
            ManagerConfig {
                watermark: -0.5,
                ..base()
            },
            "watermark is -0.5",
        ),
        (
            ManagerConfig {
                hash_block_size: Some(8),
                ..base()
            },
            "hash_block_size is 8",
        ),
        (
            ManagerConfig {
                max_model_len: 0,
                ..base()
            },
            "max_model_len is 0",
        ),
        (
            ManagerConfig {
                num_blocks: 0,
                ..base()
            },
            "num_blocks is 0",
        ),
    ] {
        let error = Cache::with_hashes(&config).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[derive(Debug, Clone)]
enum Act {
    Admit { prompt: usize, tokens: u32 },
    Decode(usize),
    Finish(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => (0_usize..6, 1_u32..90).prop_map(|(prompt, tokens)| Act::Admit { prompt, tokens }),
        6 => (0_usize..8).prop_map(Act::Decode),
        2 => (0_usize..8).prop_map(Act::Finish),
    ];
    prop::collection::vec(act, 1..60)
}

fn models() -> impl Strategy<Value = Vec<GroupSpec>> {
    prop_oneof![
        Just(vec![GroupSpec::full(4)]),
        Just(vec![GroupSpec::full(4), GroupSpec::sliding_window(4, 9)]),
        Just(vec![GroupSpec::sliding_window(4, 12)]),
        Just(vec![GroupSpec::full(8), GroupSpec::sliding_window(4, 6)]),
        Just(vec![GroupSpec::full(4), GroupSpec::chunked_local(4, 16)]),
    ]
}

/// One running request of the property test.
struct Running {
    slot: Slot,
    tokens: Vec<u32>,
    prompt: u32,
    computed: u32,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever is asked, the pool's and the tables' invariants hold, decode steps that are announced as idle change
    /// nothing, and at the end every block is free again.
    #[test]
    fn invariants_hold_and_idle_steps_are_idle(groups in models(), blocks in 4_u32..80, acts in acts()) {
        let mut m = Cache::with_hashes(&ManagerConfig {
            max_model_len: 512,
            max_in_flight_tokens: 128,
            ..ManagerConfig::new(blocks, groups)
        }).unwrap();
        let unit = m.hash_block_size() as usize;
        let names = |tokens: &[u32]| {
            let mut names: Vec<u128> = Vec::new();
            for block in tokens.chunks_exact(unit) {
                names.push(fast_chain(names.last().copied().unwrap_or(0), block));
            }
            names
        };
        let mut running: Vec<Running> = Vec::new();
        for act in acts {
            match act {
                Act::Admit { prompt, tokens } => {
                    // Prompts 0..6 share ever shorter prefixes.
                    let tokens: Vec<u32> =
                        (0..tokens).map(|i| if i < 60 - 10 * prompt as u32 { i } else { i + 100 * prompt as u32 }).collect();
                    let known = tokens.len() as u32;
                    let keys = names(&tokens);
                    let mut hit = Hit::default();
                    m.lookup(&keys, known, &mut hit);
                    prop_assert!(hit.num_tokens < known);
                    let slot = m.open();
                    let a = Allocation {
                        full_sequence_must_fit: true,
                        shared_prefix_boundary: hit.shared_prefix_boundary,
                        ..Allocation::new(&keys, 0, known - hit.num_tokens, known)
                    };
                    if m.allocate(slot, &a, Some(&hit)) {
                        running.push(Running { slot, prompt: known, tokens, computed: known });
                    } else {
                        m.close(slot);
                    }
                }
                Act::Decode(i) if i < running.len() && running[i].tokens.len() < 500 => {
                    let r = &mut running[i];
                    r.tokens.push(7);
                    let known = r.tokens.len() as u32;
                    let keys = names(&r.tokens);
                    let idle = r.computed > r.prompt && m.next_decode_event(r.computed) > r.computed;
                    let version = m.pool().version();
                    let a = Allocation {
                        num_prompt_tokens: r.prompt,
                        ..Allocation::new(&keys, r.computed, 1, known)
                    };
                    if m.allocate(r.slot, &a, None) {
                        r.computed += 1;
                    } else {
                        let r = running.swap_remove(i);
                        m.close(r.slot);
                    }
                    prop_assert!(!idle || m.pool().version() == version, "an idle step changed the pool");
                }
                Act::Finish(i) if i < running.len() => {
                    let r = running.swap_remove(i);
                    m.close(r.slot);
                }
                Act::Decode(_) | Act::Finish(_) => {}
            }
            m.check().map_err(TestCaseError::fail)?;
        }
        for r in running {
            m.close(r.slot);
        }
        prop_assert_eq!(m.pool().num_free(), blocks - 1);
    }
}
