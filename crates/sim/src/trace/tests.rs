use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn blocks(ids: &[u64], input_len: u64) -> NewRequest<'_> {
    NewRequest {
        input_len: Some(input_len),
        prompt: PromptIds::Blocks(ids),
        ..NewRequest::default()
    }
}

fn path(trace: &Trace, index: usize) -> Vec<u32> {
    match trace.prompt(index) {
        Prompt::Blocks(path) => path.iter().collect(),
        Prompt::Unknown | Prompt::Tokens(_) => panic!("not a trace of blocks"),
    }
}

#[test]
fn a_repeated_prefix_is_one_run() {
    let mut builder = TraceBuilder::new("t", 16, IdMeaning::Prefix);
    builder.push(&blocks(&[50, 51, 52, 53], 64)).unwrap();
    builder.push(&blocks(&[50, 51, 52, 60, 61], 80)).unwrap();
    builder.push(&blocks(&[50, 51, 52, 60, 61, 62], 96)).unwrap();
    let trace = builder.finish();
    let Content::Blocks(paths) = trace.content() else {
        panic!("not blocks")
    };
    assert_eq!(paths.unique_blocks(), 7);
    assert_eq!(paths.get(0).runs(), [Run { first: 0, len: 4 }]);
    assert_eq!(
        paths.get(1).runs(),
        [Run { first: 0, len: 3 }, Run { first: 4, len: 2 }]
    );
    assert_eq!(
        paths.get(2).runs(),
        [Run { first: 0, len: 3 }, Run { first: 4, len: 3 }]
    );
    assert_eq!(paths.parents(), [ROOT, 0, 1, 2, 2, 4, 5]);
    assert_eq!(
        paths.get(2).raw_ids().collect::<Vec<_>>(),
        [50, 51, 52, 60, 61, 62]
    );
    assert_eq!(paths.block_accesses(), 15);
}

#[test]
fn an_id_after_two_parents_is_an_error_and_leaves_the_trace_as_it_was() {
    let mut builder = TraceBuilder::new("t", 16, IdMeaning::Prefix);
    builder.push(&blocks(&[1, 2, 3], 48)).unwrap();
    let e = builder.push(&blocks(&[1, 7, 8, 3], 64)).unwrap_err();
    assert_eq!(
        e.to_string(),
        "hash id 3 stands after id 8 here but after id 2 in an earlier request, but an id names one whole prefix"
    );
    builder
        .push(&blocks(&[9, 7], 32))
        .expect("the failed request left no id behind");
    assert_eq!(builder.finish().len(), 2);
}

#[test]
fn a_cycle_of_ids_is_an_error() {
    let mut builder = TraceBuilder::new("t", 16, IdMeaning::Prefix);
    let e = builder.push(&blocks(&[1, 2, 1], 48)).unwrap_err();
    assert_eq!(
        e.to_string(),
        "hash id 1 stands twice in one request, but an id names one prefix"
    );
}

#[test]
fn ids_of_single_blocks_may_stand_anywhere() {
    let mut builder = TraceBuilder::new("t", 16, IdMeaning::Content);
    builder.push(&blocks(&[1, 1, 1], 48)).unwrap();
    builder.push(&blocks(&[1, 1, 2], 48)).unwrap();
    builder.push(&blocks(&[2, 1], 32)).unwrap();
    let trace = builder.finish();
    assert_eq!(path(&trace, 0), [0, 1, 2]);
    assert_eq!(path(&trace, 1), [0, 1, 3]);
    assert_eq!(path(&trace, 2), [4, 5]);
}

#[test]
fn lengths_that_disagree_with_the_content_are_errors() {
    let mut builder = TraceBuilder::new("t", 16, IdMeaning::Prefix);
    for (ids, len) in [
        (&[1u64, 2][..], 49),
        (&[1, 2][..], 15),
        (&[][..], 16),
        (&[1][..], 0),
    ] {
        assert!(
            builder.push(&blocks(ids, len)).is_err(),
            "{ids:?} of {len} tokens"
        );
    }
    builder
        .push(&blocks(&[1, 2], 17))
        .expect("the last block may be partial");
    builder
        .push(&blocks(&[1, 2], 47))
        .expect("a trace may list full blocks only");
    let e = builder
        .push(&NewRequest {
            input_len: Some(5),
            prompt: PromptIds::Tokens(&[1, 2]),
            ..NewRequest::default()
        })
        .unwrap_err();
    assert_eq!(e.to_string(), "input length is 5, but 2 tokens are given");
}

#[test]
fn huge_lengths_and_impossible_times_are_errors() {
    let mut builder = TraceBuilder::new("t", 16, IdMeaning::Prefix);
    let base = NewRequest {
        input_len: Some(5),
        ..NewRequest::default()
    };
    assert!(
        builder
            .push(&NewRequest {
                input_len: Some(u64::MAX),
                ..base
            })
            .is_err()
    );
    assert!(
        builder
            .push(&NewRequest {
                output_len: Some(1 << 40),
                ..base
            })
            .is_err()
    );
    for time in [-1.0, f64::NAN, f64::INFINITY, 1e19] {
        assert!(
            builder
                .push(&NewRequest {
                    arrival: Some(time),
                    ..base
                })
                .is_err(),
            "{time}"
        );
    }
    builder
        .push(&NewRequest {
            arrival: Some(1.0),
            ..base
        })
        .unwrap();
    assert!(
        builder.push(&base).is_err(),
        "a time for one request but not for the next"
    );
}

#[test]
fn optional_columns_start_where_they_are_first_given() {
    let mut builder = TraceBuilder::new("t", 16, IdMeaning::Prefix);
    let base = NewRequest {
        input_len: Some(5),
        ..NewRequest::default()
    };
    builder.push(&base).unwrap();
    builder
        .push(&NewRequest {
            cache_salt: Some("s"),
            priority: 3,
            output_tokens: Some(&[4, 5]),
            ..base
        })
        .unwrap();
    builder.push(&base).unwrap();
    let trace = builder.finish();
    assert_eq!(
        (0..3).map(|i| trace.cache_salt(i)).collect::<Vec<_>>(),
        [None, Some("s"), None]
    );
    assert_eq!((0..3).map(|i| trace.priority(i)).collect::<Vec<_>>(), [0, 3, 0]);
    assert_eq!(
        (0..3).map(|i| trace.output_tokens(i)).collect::<Vec<_>>(),
        [None, Some(&[4, 5][..]), None]
    );
    assert_eq!(trace.output_lens(), [1, 2, 1]);
    assert_eq!(trace.id_json(2), "2");
}

#[test]
fn ids_keep_their_json_kind() {
    let mut builder = TraceBuilder::new("t", 16, IdMeaning::Prefix);
    for id in ["7", r#""r0""#, r#""a\"\u00e9\ud83d\ude00\n""#] {
        builder
            .push(&NewRequest {
                input_len: Some(5),
                id_json: Some(id),
                ..NewRequest::default()
            })
            .unwrap();
    }
    let trace = builder.finish();
    assert_eq!(trace.id_json(1), r#""r0""#);
    assert_eq!(
        (0..3).map(|i| trace.id(i)).collect::<Vec<_>>(),
        ["7", "r0", "a\"é😀\n"]
    );
}

#[test]
fn blocks_expand_to_tokens_that_are_equal_where_the_blocks_are() {
    let mut builder = TraceBuilder::new("t", 4, IdMeaning::Prefix);
    builder.push(&blocks(&[100, 200], 7)).unwrap();
    builder.push(&blocks(&[100, 300], 11)).unwrap();
    let trace = builder.finish();
    let mut tokens = Vec::new();
    trace.append_tokens(0, &mut tokens).unwrap();
    assert_eq!(tokens, [0, 1, 2, 3, 4, 5, 6]);
    tokens.clear();
    trace.append_tokens(1, &mut tokens).unwrap();
    assert_eq!(
        tokens,
        [0, 1, 2, 3, 8, 9, 10, 11],
        "full blocks only: the last 3 of 11 tokens are unknown"
    );
}

#[test]
fn arrival_order_is_stable_and_select_follows_it() {
    let mut builder = TraceBuilder::new("t", 16, IdMeaning::Prefix);
    for (k, time) in [2.0, 1.0, 2.0, 0.5].into_iter().enumerate() {
        let ids = [k as u64];
        builder
            .push(&NewRequest {
                arrival: Some(time),
                ..blocks(&ids, 16 - k as u64)
            })
            .unwrap();
    }
    let trace = builder.finish();
    let order = trace.arrival_order().unwrap();
    assert_eq!(order, [3, 1, 0, 2]);
    let sorted = trace.select(&order);
    assert_eq!(sorted.input_lens(), [13, 15, 16, 14]);
    assert_eq!(
        (0..4).map(|i| path(&sorted, i)[0]).collect::<Vec<_>>(),
        [3, 1, 0, 2]
    );
    assert_eq!(sorted.arrival_ns(0), Some(500_000_000));
}

#[test]
fn appended_traces_share_nothing_even_with_equal_ids() {
    let one = || {
        let mut builder = TraceBuilder::new("part", 16, IdMeaning::Prefix);
        builder
            .push(&NewRequest {
                arrival: Some(1.0),
                session: Some(3),
                ..blocks(&[1, 2], 32)
            })
            .unwrap();
        builder
            .push(&NewRequest {
                arrival: Some(2.0),
                session: Some(3),
                ..blocks(&[1, 2, 3], 50)
            })
            .unwrap();
        builder.finish()
    };
    let mut builder = TraceBuilder::new("all", 512, IdMeaning::Prefix);
    builder.append(&one(), None).unwrap();
    builder.append(&one(), None).unwrap();
    let trace = builder.finish();
    assert_eq!(trace.block_tokens(), Some(16));
    assert_eq!(trace.input_lens(), [32, 50, 32, 50]);
    assert_eq!(
        (0..4).map(|i| path(&trace, i)).collect::<Vec<_>>(),
        [vec![0, 1], vec![0, 1, 2], vec![3, 4], vec![3, 4, 5]]
    );
}

proptest! {
    /// Property: with ids of single blocks, two requests have the same node at position j exactly if their first
    /// j + 1 ids are equal; and the file's ids come back.
    #[test]
    fn nodes_are_equal_exactly_where_prefixes_are(
        requests in prop::collection::vec(prop::collection::vec(0u64..4, 1..12), 1..40),
    ) {
        let mut builder = TraceBuilder::new("t", 1, IdMeaning::Content);
        for ids in &requests {
            builder.push(&blocks(ids, ids.len() as u64)).unwrap();
        }
        let trace = builder.finish();
        let mut node_of_prefix: BTreeMap<&[u64], u32> = BTreeMap::new();
        let mut prefix_of_node: BTreeMap<u32, &[u64]> = BTreeMap::new();
        for (index, ids) in requests.iter().enumerate() {
            let nodes = path(&trace, index);
            prop_assert_eq!(nodes.len(), ids.len());
            for (j, &node) in nodes.iter().enumerate() {
                prop_assert_eq!(*node_of_prefix.entry(&ids[..=j]).or_insert(node), node);
                prop_assert_eq!(*prefix_of_node.entry(node).or_insert(&ids[..=j]), &ids[..=j]);
            }
            let Prompt::Blocks(path) = trace.prompt(index) else { unreachable!() };
            prop_assert_eq!(&path.raw_ids().collect::<Vec<_>>(), ids);
        }
    }

    /// Property: where ids name prefixes, naming each prefix by one id gives the same tree as naming blocks, and a
    /// failed request changes nothing.
    #[test]
    fn both_meanings_of_ids_give_the_same_tree(
        requests in prop::collection::vec(prop::collection::vec(0u64..3, 1..10), 1..30),
        spread in prop::sample::select(vec![1u64, 1_000_003, u64::MAX / 1000]),
    ) {
        let mut by_content = TraceBuilder::new("t", 1, IdMeaning::Content);
        let mut by_prefix = TraceBuilder::new("t", 1, IdMeaning::Prefix);
        let mut names: BTreeMap<Vec<u64>, u64> = BTreeMap::new();
        for ids in &requests {
            by_content.push(&blocks(ids, ids.len() as u64)).unwrap();
            let named: Vec<u64> = (0..ids.len())
                .map(|j| {
                    let fresh = names.len() as u64 * spread;
                    *names.entry(ids[..=j].to_vec()).or_insert(fresh)
                })
                .collect();
            let mut broken = vec![u64::MAX, u64::MAX - 1];
            broken.push(u64::MAX);
            prop_assert!(by_prefix.push(&blocks(&broken, 3)).is_err());
            by_prefix.push(&blocks(&named, named.len() as u64)).unwrap();
        }
        let (a, b) = (by_content.finish(), by_prefix.finish());
        for index in 0..requests.len() {
            prop_assert_eq!(path(&a, index), path(&b, index));
        }
    }
}

#[test]
fn appended_traces_can_be_made_one_conversation_each() {
    let mut part = TraceBuilder::new("part", 16, IdMeaning::Prefix);
    part.push(&NewRequest {
        arrival: Some(1.0),
        ..blocks(&[1, 2], 32)
    })
    .unwrap();
    let part = part.finish();
    let mut builder = TraceBuilder::new("all", 16, IdMeaning::Prefix);
    builder.append(&part, Some(0)).unwrap();
    builder.append(&part, Some(1)).unwrap();
    let trace = builder.finish();
    assert_eq!((trace.session(0), trace.session(1)), (Some(0), Some(1)));
}
