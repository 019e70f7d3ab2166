#![expect(clippy::cast_possible_truncation, reason = "small numbers of a test")]

use proptest::prelude::*;

use super::*;
use crate::trace::{IdMeaning, NewRequest, PromptIds, TraceBuilder};

/// A trace of block contents; the last block of each prompt lacks `missing` tokens.
fn trace(requests: &[(Vec<u64>, u32)], block_tokens: u32) -> Trace {
    let mut builder = TraceBuilder::new("t", block_tokens, IdMeaning::Content);
    for (k, (ids, missing)) in requests.iter().enumerate() {
        let input_len = ids.len() as u64 * u64::from(block_tokens) - u64::from(*missing);
        builder
            .push(&NewRequest {
                input_len: Some(input_len),
                arrival: Some(k as f64),
                prompt: PromptIds::Blocks(ids),
                ..NewRequest::default()
            })
            .unwrap();
    }
    builder.finish()
}

fn path(paths: &BlockPaths, index: usize) -> Vec<u32> {
    paths.get(index).iter().collect()
}

/// The definition, word by word: a pool of blocks, hits pinned, the least recent evicted, released tail first.
fn naive_prefix_lru(paths: &BlockPaths, lens: &[u32], capacity: usize) -> (u64, u64, f64) {
    let mut cache: Vec<u32> = Vec::new(); // least recent first
    let (mut hit_blocks, mut hit_tokens, mut shares) = (0, 0, 0.0);
    for (index, &len) in lens.iter().enumerate() {
        let mut blocks = path(paths, index);
        let hits = blocks.iter().take_while(|&b| cache.contains(b)).count();
        hit_blocks += hits as u64;
        let tokens = (hits as u64 * u64::from(paths.block_tokens())).min(u64::from(len));
        hit_tokens += tokens;
        shares += tokens as f64 / f64::from(len);
        blocks.truncate(capacity);
        cache.retain(|b| !blocks.contains(b));
        while cache.len() + blocks.len() > capacity {
            cache.remove(0);
        }
        cache.extend(blocks.iter().rev());
    }
    (hit_blocks, hit_tokens, shares / lens.len() as f64)
}

/// vLLM's pool with plain lists: the free list holds (block, node or none), lookups scan all blocks.
fn naive_vllm(paths: &BlockPaths, lens: &[u32], capacity: usize) -> SerialRun {
    let block_tokens = paths.block_tokens() as usize;
    let mut node_of: Vec<Option<(u32, u64)>> = vec![None; capacity]; // node, when registered
    let mut free: Vec<usize> = (0..capacity).collect();
    let mut clock = 0;
    let mut run = SerialRun::default();
    for (index, &len) in lens.iter().enumerate() {
        let len = len as usize;
        let total = len.div_ceil(block_tokens);
        if total > capacity {
            run.refused += 1;
            continue;
        }
        let nodes: Vec<u32> = path(paths, index).into_iter().take(len / block_tokens).collect();
        let mut held = Vec::new();
        for &node in nodes.iter().take((len - 1) / block_tokens) {
            let oldest = (0..capacity)
                .filter(|&b| node_of[b].is_some_and(|(n, _)| n == node))
                .min_by_key(|&b| node_of[b].map(|(_, at)| at));
            let Some(block) = oldest else { break };
            held.push(block);
        }
        free.retain(|b| !held.contains(b));
        run.hit_blocks += held.len() as u64;
        run.hit_tokens += (held.len() * block_tokens) as u64;
        run.request_shares += (held.len() * block_tokens) as f64 / len as f64;
        for position in held.len()..total {
            let block = free.remove(0);
            node_of[block] = None;
            held.push(block);
            if let Some(&node) = nodes.get(position) {
                clock += 1;
                node_of[block] = Some((node, clock));
            }
        }
        for &block in held.iter().rev() {
            if node_of[block].is_some() {
                free.push(block);
            } else {
                free.insert(0, block);
            }
        }
    }
    run
}

fn requests(most_blocks: usize, ids: u64) -> impl Strategy<Value = Vec<(Vec<u64>, u32)>> {
    prop::collection::vec((prop::collection::vec(0..ids, 1..most_blocks), 0u32..4), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Property: at every capacity the one pass counts what a pool of blocks, run at that capacity, counts.
    #[test]
    fn the_one_pass_equals_a_run_at_every_capacity(requests in requests(7, 3)) {
        let trace = trace(&requests, 4);
        let paths = trace.to_blocks(None).unwrap();
        let curve = curve(&trace, None, Semantics::PrefixLru).unwrap();
        for capacity in 1..=u64::from(paths.unique_blocks()) + 2 {
            let (blocks, tokens, mean) = naive_prefix_lru(&paths, trace.input_lens(), capacity as usize);
            prop_assert_eq!(curve.hit_blocks(capacity), blocks, "capacity {}", capacity);
            prop_assert_eq!(curve.hit_tokens(capacity), tokens, "capacity {}", capacity);
            prop_assert!((curve.mean_request_hit_rate(capacity) - mean).abs() < 1e-9, "capacity {}", capacity);
        }
        prop_assert_eq!(curve.hit_blocks(curve.capacity_needed()), curve.ideal_hit_blocks());
    }

    /// Property: the fast pool equals the plain one at every capacity, and where the curve says that it is exact
    /// the one pass equals both.
    #[test]
    fn vllm_curves_equal_a_run_at_every_capacity(requests in requests(6, 3)) {
        let trace = trace(&requests, 4);
        let paths = trace.to_blocks(None).unwrap();
        let curve = curve(&trace, None, Semantics::Vllm).unwrap();
        for capacity in 1..=u64::from(paths.unique_blocks()) + 3 {
            let naive = naive_vllm(&paths, trace.input_lens(), capacity as usize);
            let fast = vllm_serial_run(&paths, trace.input_lens(), capacity);
            prop_assert_eq!(fast, naive, "capacity {}", capacity);
            if capacity >= curve.exact_from() {
                prop_assert_eq!(curve.hit_blocks(capacity), naive.hit_blocks, "capacity {}", capacity);
                prop_assert_eq!(curve.hit_tokens(capacity), naive.hit_tokens);
            }
            let point = curve.point(&paths, trace.input_lens(), capacity).unwrap();
            prop_assert_eq!(point.hit_blocks, naive.hit_blocks);
            prop_assert_eq!(point.refused_requests, naive.refused);
        }
    }

    /// Property: no eviction rule beats Belady's, it never loses hits with room, and all room gives all hits.
    #[test]
    fn beladys_bound_lies_between_lru_and_the_ideal(requests in requests(6, 3)) {
        let trace = trace(&requests, 4);
        let paths = trace.to_blocks(None).unwrap();
        let curve = curve(&trace, None, Semantics::PrefixLru).unwrap();
        let mut before = 0;
        for capacity in 0..=u64::from(paths.unique_blocks()) {
            let bound = belady_hit_blocks(&paths, capacity);
            prop_assert!(bound >= curve.hit_blocks(capacity) && bound >= before);
            before = bound;
        }
        prop_assert_eq!(before, curve.ideal_hit_blocks());
    }

    /// Property: splitting room into tiers changes no hit.
    #[test]
    fn tiers_add_up_to_the_curve(requests in requests(6, 3), sizes in prop::collection::vec(0u64..20, 1..4)) {
        let curve = curve(&trace(&requests, 4), None, Semantics::PrefixLru).unwrap();
        let tiers = tier_hits(&curve, &sizes);
        let total: u64 = sizes.iter().sum();
        prop_assert_eq!(tiers.iter().map(|t| t.hit_blocks).sum::<u64>(), curve.hit_blocks(total));
        prop_assert_eq!(tiers.iter().map(|t| t.hit_tokens).sum::<u64>(), curve.hit_tokens(total));
    }
}

#[test]
fn vllm_prompts_without_full_duplicates_are_exact_from_the_longest_request_on() {
    // prompts of 2 full blocks and one partial: nothing is ever computed twice
    let mut requests = Vec::new();
    for k in 0..200u64 {
        requests.push((vec![k % 7, k % 3, 1000 + k], 1));
    }
    let trace = trace(&requests, 4);
    let paths = trace.to_blocks(None).unwrap();
    let curve = curve(&trace, None, Semantics::Vllm).unwrap();
    assert_eq!((curve.duplicated_blocks, curve.exact_from()), (0, 3));
    for capacity in 3..60 {
        let naive = naive_vllm(&paths, trace.input_lens(), capacity as usize);
        assert_eq!(
            curve.hit_blocks(capacity),
            naive.hit_blocks,
            "capacity {capacity}"
        );
    }
}

#[test]
fn salts_and_adapters_keep_prompts_apart() {
    let mut builder = TraceBuilder::new("t", 4, IdMeaning::Content);
    for (salt, lora) in [
        (None, None),
        (Some("a"), None),
        (None, Some("a")),
        (Some("a"), None),
        (None, None),
    ] {
        builder
            .push(&NewRequest {
                prompt: PromptIds::Tokens(&[1, 2, 3, 4, 5, 6, 7, 8, 9]),
                cache_salt: salt,
                lora,
                ..NewRequest::default()
            })
            .unwrap();
    }
    let curve = curve(&builder.finish(), Some(4), Semantics::PrefixLru).unwrap();
    assert_eq!(
        (
            curve.unique_blocks,
            curve.ideal_hit_blocks(),
            curve.ideal_hit_tokens()
        ),
        (9, 6, 18)
    );
}

#[test]
fn reuse_times_count_blocks_by_the_time_since_their_last_use() {
    let curve = curve(
        &trace(&[(vec![1, 2], 0), (vec![3], 0), (vec![1, 2, 4], 0)], 4),
        None,
        Semantics::PrefixLru,
    );
    assert_eq!(
        curve.unwrap().reuse_times,
        [ReuseTime {
            seconds: 2.0,
            blocks: 2
        }]
    );
}

#[test]
fn knees_name_shares_of_the_ideal_and_the_bend() {
    // ten blocks used again at once, one used again only after 100 others
    let mut requests: Vec<(Vec<u64>, u32)> = vec![(vec![9999], 0)];
    for k in 0..100 {
        requests.extend([(vec![k], 0), (vec![k], 0)]);
    }
    requests.push((vec![9999], 0));
    let curve = curve(&trace(&requests, 4), None, Semantics::PrefixLru).unwrap();
    let found = knees(&curve);
    assert!(
        found.contains(&Knee {
            capacity_blocks: 1,
            kind: KneeKind::ShareOfIdeal(99)
        }),
        "{found:?}"
    );
    assert!(
        found.contains(&Knee {
            capacity_blocks: 1,
            kind: KneeKind::Bend
        }),
        "{found:?}"
    );
    assert_eq!(curve.capacity_needed(), 101);
}

#[test]
fn log_capacities_run_from_one_to_the_last() {
    assert_eq!(log_capacities(30, 2), [1, 3, 10, 30]);
    assert_eq!(log_capacities(1, 10), [1]);
    assert_eq!(log_capacities(0, 10), [1]);
}
