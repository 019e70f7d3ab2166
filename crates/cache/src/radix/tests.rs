//! The tree against its naive twin (random and enumerated operations) and against SGLang's documented cases.

use proptest::prelude::*;

use super::naive::NaiveTree;
use super::*;

#[derive(Debug, Clone)]
enum Op {
    Match {
        namespace: u32,
        key: Vec<u32>,
    },
    Insert {
        namespace: u32,
        key: Vec<u32>,
        priority: i64,
        owned: usize,
        counted: usize,
    },
    /// Locks the node found or made last.
    Lock,
    /// Releases the receipt taken this many ago.
    Unlock(usize),
    Evict,
    Clear,
}

/// Drives both trees and compares everything that can be seen after every step.
struct Pair {
    fast: RadixTree<u32>,
    slow: NaiveTree,
    policy: TreePolicy,
    next_slot: u32,
    last: Option<(NodeId, usize)>,
    locks: Vec<(LockReceipt, usize)>,
}

impl Pair {
    fn new(page: usize, policy: TreePolicy) -> Self {
        Self {
            fast: RadixTree::new(page, policy, 8).unwrap(),
            slow: NaiveTree::new(page, policy),
            policy,
            next_slot: 1,
            last: None,
            locks: Vec::new(),
        }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Match { namespace, key } => {
                assert_eq!(self.fast.peek_prefix(Namespace(*namespace), key), {
                    self.slow.clone().match_prefix(*namespace, key).0
                });
                let found = self.fast.match_prefix(Namespace(*namespace), key);
                let (len, name) = self.slow.match_prefix(*namespace, key);
                assert_eq!(found.len, len);
                assert_eq!(self.fast.path_len(found.node).unwrap(), len);
                self.last = Some((found.node, name));
            }
            Op::Insert {
                namespace,
                key,
                priority,
                owned,
                counted,
            } => {
                let slots: Vec<u32> = (self.next_slot..).take(key.len()).collect();
                self.next_slot += key.len() as u32;
                let insert = Insert {
                    namespace: Namespace(*namespace),
                    key,
                    slots: &slots,
                    priority: *priority,
                    owned_by_tree: *owned,
                    already_counted: *counted,
                };
                let (mut freed, mut freed_slow) = (Vec::new(), Vec::new());
                let done = self
                    .fast
                    .insert(insert, |run| freed.extend_from_slice(run))
                    .unwrap();
                let (prefix_len, name) = self.slow.insert(&insert, &mut freed_slow);
                assert_eq!(done.prefix_len, prefix_len);
                assert_eq!(freed, freed_slow);
                self.last = Some((done.node, name));
            }
            Op::Lock => {
                if let Some((node, name)) = self.last {
                    // a node found earlier may have been evicted since; then its handle is refused
                    if let Ok(receipt) = self.fast.lock(node) {
                        self.slow.lock(name, 1);
                        self.locks.push((receipt, name));
                    }
                }
            }
            Op::Unlock(which) => {
                if !self.locks.is_empty() {
                    let (receipt, name) = self.locks.remove(which % self.locks.len());
                    self.fast.unlock(receipt).unwrap();
                    self.slow.lock(name, -1);
                }
            }
            Op::Evict => {
                let mut freed = None;
                self.fast.evict_one(|run| freed = Some(run.to_vec()));
                assert_eq!(freed, self.slow.evict_one());
            }
            Op::Clear => {
                self.fast.clear();
                self.slow = NaiveTree::new(self.fast.page_size(), self.policy);
                self.last = None;
                for (receipt, _) in self.locks.drain(..) {
                    assert!(
                        self.fast.unlock(receipt).is_err(),
                        "a receipt from before a clear was accepted"
                    );
                }
            }
        }
        assert_eq!(
            (self.fast.evictable_tokens(), self.fast.protected_tokens()),
            self.slow.totals()
        );
        self.fast.check_invariants().unwrap();
    }

    /// Empties both trees in eviction order: the order of everything that is left is compared, too.
    fn drain(mut self) {
        while let Some((receipt, name)) = self.locks.pop() {
            self.fast.unlock(receipt).unwrap();
            self.slow.lock(name, -1);
        }
        while self.fast.evictable_tokens() > 0 {
            self.step(&Op::Evict);
        }
        assert!(self.slow.evict_one().is_none());
        assert_eq!(self.fast.node_count(), 1);
    }
}

fn policies() -> Vec<TreePolicy> {
    let mut all: Vec<TreePolicy> = TreePolicy::NAMES
        .iter()
        .map(|name| name.parse().unwrap())
        .collect();
    all.push(TreePolicy::Slru {
        protected_threshold: 3,
    });
    all.push(TreePolicy::Tlru {
        threshold: 5,
        next_prompt_estimate: 1,
    });
    all
}

fn operation() -> impl Strategy<Value = Op> {
    let key = || prop::collection::vec(0u32..3, 0..14);
    let namespace = || prop_oneof![4 => Just(0u32), 1 => Just(1u32)];
    prop_oneof![
        6 => (namespace(), key(), -1i64..3, 0usize..6, 0usize..6).prop_map(
            |(namespace, key, priority, owned, counted)| Op::Insert { namespace, key, priority, owned, counted }
        ),
        4 => (namespace(), key()).prop_map(|(namespace, key)| Op::Match { namespace, key }),
        2 => Just(Op::Lock),
        2 => (0usize..4).prop_map(Op::Unlock),
        4 => Just(Op::Evict),
        1 => prop::bool::weighted(0.1).prop_map(|clear| if clear { Op::Clear } else { Op::Evict }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Property: after any operations, tree and twin agree on matches, duplicates, victims and totals, and all
    /// invariants hold.
    #[test]
    fn tree_and_naive_twin_agree_on_every_operation(
        page in 1usize..4,
        policy in prop::sample::select(policies()),
        operations in prop::collection::vec(operation(), 1..80),
    ) {
        let mut pair = Pair::new(page, policy);
        for op in &operations {
            pair.step(op);
        }
        pair.drain();
    }
}

#[test]
fn all_short_histories_over_two_tokens_agree_with_the_twin() {
    let mut keys = vec![vec![]];
    for length in 1..=3u32 {
        keys.extend((0..1 << length).map(|bits| (0..length).map(|i| bits >> i & 1).collect::<Vec<u32>>()));
    }
    let mut operations: Vec<Op> = vec![Op::Lock, Op::Unlock(0), Op::Evict];
    for key in &keys {
        operations.push(Op::Match {
            namespace: 0,
            key: key.clone(),
        });
        operations.push(Op::Insert {
            namespace: 0,
            key: key.clone(),
            priority: 0,
            owned: 0,
            counted: 0,
        });
    }
    for policy in policies() {
        // the first operation of any history that does something is an insert
        for first in operations.iter().filter(|op| matches!(op, Op::Insert { .. })) {
            for second in &operations {
                for third in &operations {
                    let mut pair = Pair::new(1, policy);
                    for op in [first, second, third] {
                        pair.step(op);
                    }
                    pair.drain();
                }
            }
        }
    }
}

fn put(tree: &mut RadixTree<u32>, namespace: Namespace, key: &[u32]) -> Inserted {
    let base = 100 * (1 + tree.total_tokens() as u32);
    let slots: Vec<u32> = (base..).take(key.len()).collect();
    let insert = Insert {
        namespace,
        key,
        slots: &slots,
        priority: 0,
        owned_by_tree: 0,
        already_counted: 0,
    };
    tree.insert(insert, |_| {}).unwrap()
}

fn slots_of(tree: &mut RadixTree<u32>, namespace: Namespace, key: &[u32]) -> Vec<u32> {
    let found = tree.match_prefix(namespace, key);
    let mut slots = vec![0; found.len];
    tree.path_slots(found.node, 0, &mut slots).unwrap();
    slots
}

const NONE: Namespace = Namespace::DEFAULT;

// The cases below restate what SGLang's own unit tests check (0.5.23,
// test/registered/unit/mem_cache/test_radix_cache_unit.py).

#[test]
fn an_insert_into_an_empty_tree_is_found_whole_and_in_part() {
    let mut tree = RadixTree::new(1, TreePolicy::Lru, 16).unwrap();
    assert_eq!(put(&mut tree, NONE, &[1, 2, 3]).prefix_len, 0);
    assert_eq!(
        (
            tree.total_tokens(),
            tree.evictable_tokens(),
            tree.protected_tokens()
        ),
        (3, 3, 0)
    );
    let all = slots_of(&mut tree, NONE, &[1, 2, 3]);
    assert_eq!(all.len(), 3);
    assert_eq!(slots_of(&mut tree, NONE, &[1, 2]), all[..2]);
    tree.clear();
    assert_eq!(
        (
            tree.total_tokens(),
            tree.evictable_tokens(),
            tree.protected_tokens()
        ),
        (0, 0, 0)
    );
}

#[test]
fn a_split_keeps_the_content() {
    for page in [1, 2] {
        let mut tree = RadixTree::new(page, TreePolicy::Lru, 16).unwrap();
        put(&mut tree, NONE, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let all = slots_of(&mut tree, NONE, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let second = put(&mut tree, NONE, &[1, 2, 9, 10]);
        assert_eq!((second.prefix_len, tree.total_tokens()), (2, 10));
        assert_eq!(slots_of(&mut tree, NONE, &[1, 2, 3, 4, 999, 1000]), all[..4]);
        assert_eq!(tree.total_tokens(), 10);
        assert_eq!(slots_of(&mut tree, NONE, &[1, 2, 3, 4, 5, 6]), all[..6]);
        assert_eq!(slots_of(&mut tree, NONE, &[1, 2, 3, 4, 5, 6, 7, 8]), all);
        assert_eq!(slots_of(&mut tree, NONE, &[1, 2, 9, 10]).len(), 4);
        tree.check_invariants().unwrap();
    }
}

#[test]
fn only_whole_pages_are_kept_and_found() {
    for (page, tokens) in [(1usize, 5u32), (2, 5), (4, 6)] {
        let key: Vec<u32> = (0..tokens).collect();
        let mut tree = RadixTree::new(page, TreePolicy::Lru, 16).unwrap();
        put(&mut tree, NONE, &key);
        let whole = key.len() / page * page;
        assert_eq!(tree.total_tokens(), whole);
        assert_eq!(tree.match_prefix(NONE, &key).len, whole);
        let short = tree.match_prefix(NONE, &key[..page - 1]);
        assert_eq!((short.len, short.node), (0, tree.root()));
    }
}

#[test]
fn namespaces_never_share() {
    let mut names = Namespaces::default();
    let spaces = [
        names.intern(None, None).unwrap(),
        names.intern(Some(""), None).unwrap(),
        names.intern(Some("key1"), None).unwrap(),
        names.intern(Some("key1"), Some("salt")).unwrap(),
    ];
    let mut tree = RadixTree::new(1, TreePolicy::Lru, 16).unwrap();
    for space in spaces {
        assert_eq!(put(&mut tree, space, &[1, 2, 3]).prefix_len, 0);
    }
    let found: Vec<Vec<u32>> = spaces
        .iter()
        .map(|&space| slots_of(&mut tree, space, &[1, 2, 3]))
        .collect();
    for (at, slots) in found.iter().enumerate() {
        assert_eq!(slots.len(), 3);
        assert!(!found[at + 1..].contains(slots));
    }
    assert_eq!(
        tree.match_prefix(names.intern(Some("key2"), None).unwrap(), &[1, 2, 3])
            .len,
        0
    );
}

#[test]
fn locks_nest_cover_all_ancestors_and_survive_a_split() {
    let mut tree = RadixTree::new(1, TreePolicy::Lru, 16).unwrap();
    let node = put(&mut tree, NONE, &[1, 2, 3]).node;
    let (first, second) = (tree.lock(node).unwrap(), tree.lock(node).unwrap());
    assert_eq!((tree.evictable_tokens(), tree.protected_tokens()), (0, 3));
    tree.match_prefix(NONE, &[1]);
    assert_eq!(tree.node_count(), 3);
    assert_eq!(tree.evict(3, |_| panic!("a locked node was evicted")), 0);
    tree.unlock(first).unwrap();
    assert_eq!((tree.evictable_tokens(), tree.protected_tokens()), (0, 3));
    tree.unlock(second).unwrap();
    assert_eq!((tree.evictable_tokens(), tree.protected_tokens()), (3, 0));
    tree.check_invariants().unwrap();
}

#[test]
fn eviction_takes_whole_leaves_oldest_first_and_walks_up() {
    let mut tree = RadixTree::new(1, TreePolicy::Lru, 16).unwrap();
    put(&mut tree, NONE, &[1, 2]);
    put(&mut tree, NONE, &[3, 4]);
    let mut freed = Vec::new();
    assert_eq!(tree.evict(1, |run| freed.push(run.len())), 2);
    assert_eq!(freed, [2]);
    assert_eq!(tree.match_prefix(NONE, &[1, 2]).len, 0);
    put(&mut tree, NONE, &[3, 4, 5]);
    assert_eq!(tree.evict(3, |run| freed.push(run.len())), 3);
    assert_eq!(
        freed,
        [2, 1, 2],
        "the parent follows its last child in the same pass"
    );
}

#[test]
fn a_handle_of_an_evicted_node_is_refused() {
    let mut tree = RadixTree::new(1, TreePolicy::Lru, 16).unwrap();
    let old = put(&mut tree, NONE, &[1, 2]).node;
    tree.evict(2, |_| {});
    put(&mut tree, NONE, &[7, 8]);
    assert_eq!(tree.lock(old).unwrap_err().kind(), crate::ErrorKind::Stale);
    assert!(tree.path_len(old).is_err());
}

#[test]
fn one_request_counts_a_node_once_however_often_it_checkpoints() {
    // two tokens survive an eviction under slru only after a second request used them
    for (requests, survivor) in [(1, vec![8, 9]), (2, vec![1, 2])] {
        let config = RadixCacheConfig {
            capacity_tokens: 16,
            page_size: 1,
            policy: TreePolicy::Slru {
                protected_threshold: 2,
            },
            max_requests: 2,
            max_context_tokens: 16,
            enabled: true,
        };
        let mut cache = RadixCache::new(config).unwrap();
        let mut serve = |tokens: &[u32]| {
            let mut request = cache.lookup(NONE, tokens, 0).unwrap();
            cache.start(&mut request).unwrap();
            for end in 1..=tokens.len() {
                if end > request.owned_len() {
                    cache.extend(&mut request, end, |_| {}).unwrap();
                    cache
                        .checkpoint(&mut request, &tokens[..end], tokens.len())
                        .unwrap();
                }
            }
            cache.finish(request, tokens, tokens.len()).unwrap();
        };
        for _ in 0..requests {
            serve(&[1, 2]);
        }
        serve(&[8, 9]);
        cache.make_room(14, |_| {});
        let tree = cache.tree();
        assert_eq!(tree.peek_prefix(NONE, &survivor), 2, "{requests} requests");
    }
}

#[test]
fn ten_thousand_keys_with_a_common_prefix_are_kept_once() {
    let common: Vec<u32> = (0..2000).collect();
    let mut tree = RadixTree::new(1, TreePolicy::Lru, 0).unwrap();
    for own in 0..10_000u32 {
        let key: Vec<u32> = common
            .iter()
            .copied()
            .chain((0..10).map(|i| 1_000_000 + own * 10 + i))
            .collect();
        tree.insert(
            Insert {
                namespace: NONE,
                key: &key,
                slots: &key,
                priority: 0,
                owned_by_tree: key.len(),
                already_counted: 0,
            },
            |_| {},
        )
        .unwrap();
    }
    assert_eq!(tree.total_tokens(), 2000 + 10 * 10_000);
    // the first key's leaf was split off the common prefix
    assert_eq!(tree.node_count(), 1 + 1 + 10_000);
}

#[test]
fn an_insert_without_enough_slots_changes_nothing() {
    let mut tree = RadixTree::new(1, TreePolicy::Lru, 16).unwrap();
    let insert = Insert {
        namespace: NONE,
        key: &[1u32, 2, 3],
        slots: &[1, 2],
        priority: 0,
        owned_by_tree: 0,
        already_counted: 0,
    };
    assert!(tree.insert(insert, |_| {}).is_err());
    assert_eq!((tree.total_tokens(), tree.node_count()), (0, 1));
    assert!(RadixTree::<u32>::new(0, TreePolicy::Lru, 16).is_err());
}
