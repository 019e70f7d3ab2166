//! Which leaf goes first: SGLang's eight eviction policies and the queue that keeps their order.
//!
//! SGLang builds a heap over all evictable leaves in every eviction call, O(leaves) each. Here one heap lives as
//! long as the tree and is corrected lazily, which gives the same order at O(log leaves) a victim and nothing at
//! all on a hit: an entry remembers the rank its leaf had when it was pushed. Ranks of most policies only grow
//! (a use makes a leaf younger, a hit counts up), so an outdated entry surfaces too early, is compared with the
//! leaf's present rank and pushed back. For the two policies whose ranks can fall (`mru` on a use, `tlru` when
//! a split moves a node's start deeper) a second entry is pushed at that moment. The invariant is: *every
//! evictable leaf has an entry whose rank is at most its present one*; hence an entry that equals its leaf's
//! present rank is the minimum of all.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Order in which unlocked leaves are evicted (SGLang 0.5.23, `sglang/srt/mem_cache/evict_policy.py`).
///
/// ```
/// use kvwise_cache::radix::TreePolicy;
/// let policy: TreePolicy = "slru".parse()?;
/// assert_eq!(policy, TreePolicy::Slru { protected_threshold: 2 });
/// assert_eq!(policy.name(), "slru");
/// # Ok::<(), kvwise_cache::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TreePolicy {
    /// Least recently used first (SGLang's default).
    #[default]
    Lru,
    /// Fewest hits first, then least recently used. One request counts a node once.
    Lfu,
    /// Oldest node first; a split's prefix inherits the node's age.
    Fifo,
    /// Most recently used first.
    Mru,
    /// Youngest node first.
    Filo,
    /// Lowest priority first, then least recently used. A node carries the highest priority that touched it.
    Priority,
    /// Nodes with fewer than `protected_threshold` hits first, each segment least recently used first.
    Slru {
        /// Hits from which a node is protected (2 in SGLang).
        protected_threshold: u64,
    },
    /// Tail-optimised LRU (arXiv 2510.15152): tokens that the next prefill can recompute within its latency
    /// budget go first, then least recently used. Both parameters are token counts.
    Tlru {
        /// Tokens a prefill may recompute and still meet its target.
        threshold: u64,
        /// Tokens the next prompt of a conversation is expected to add.
        next_prompt_estimate: u64,
    },
}

impl TreePolicy {
    /// All names accepted by [`FromStr`], as SGLang spells them.
    pub const NAMES: [&'static str; 8] = ["lru", "lfu", "slru", "priority", "tlru", "fifo", "mru", "filo"];

    /// The engine's name of this policy.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Lfu => "lfu",
            Self::Fifo => "fifo",
            Self::Mru => "mru",
            Self::Filo => "filo",
            Self::Priority => "priority",
            Self::Slru { .. } => "slru",
            Self::Tlru { .. } => "tlru",
        }
    }

    /// Whether a leaf's rank can fall while it stays in the tree.
    fn ranks_can_fall(self) -> bool {
        matches!(self, Self::Mru | Self::Tlru { .. })
    }

    /// Whether the tree has to keep each branch's greatest depth.
    pub(super) fn needs_history(self) -> bool {
        matches!(self, Self::Tlru { .. })
    }

    /// The rank of a leaf: smallest goes first.
    #[inline]
    pub(super) fn rank(self, leaf: &LeafFacts) -> Rank {
        match self {
            Self::Lru => Rank(0, leaf.last_access),
            Self::Lfu => Rank(i64::try_from(leaf.hits).unwrap_or(i64::MAX), leaf.last_access),
            Self::Fifo => Rank(0, leaf.created),
            Self::Mru => Rank(0, !leaf.last_access),
            Self::Filo => Rank(0, !leaf.created),
            Self::Priority => Rank(leaf.priority, leaf.last_access),
            Self::Slru { protected_threshold } => {
                Rank(i64::from(leaf.hits >= protected_threshold), leaf.last_access)
            }
            Self::Tlru {
                threshold,
                next_prompt_estimate,
            } => {
                let budget = u64::from(leaf.history)
                    .saturating_add(next_prompt_estimate)
                    .saturating_sub(threshold);
                let safe = u64::from(leaf.tokens_above) >= budget;
                Rank(if safe { -1 } else { 0 }, leaf.last_access)
            }
        }
    }
}

impl FromStr for TreePolicy {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Ok(match name.to_ascii_lowercase().as_str() {
            "lru" => Self::Lru,
            "lfu" => Self::Lfu,
            "fifo" => Self::Fifo,
            "mru" => Self::Mru,
            "filo" => Self::Filo,
            "priority" => Self::Priority,
            "slru" => Self::Slru {
                protected_threshold: 2,
            },
            "tlru" => Self::Tlru {
                threshold: 0,
                next_prompt_estimate: 0,
            },
            _ => {
                return Err(Error::invalid(format!(
                    "eviction policy \"{name}\" is not known; SGLang's are {}",
                    Self::NAMES.join(", ")
                )));
            }
        })
    }
}

/// What a policy may look at.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeafFacts {
    pub last_access: u64,
    pub created: u64,
    pub hits: u64,
    pub priority: i64,
    /// Greatest depth in tokens this branch ever reached.
    pub history: u32,
    /// Tokens on the path above this leaf.
    pub tokens_above: u32,
}

/// Position in the eviction order; ties cannot occur between two leaves, because times are unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(pub i64, pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    rank: Rank,
    node: u32,
    generation: u64,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.rank, self.node, self.generation).cmp(&(other.rank, other.node, other.generation))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What the queue finds when it looks at an entry's node.
pub(super) enum Standing {
    /// The node of this entry is gone.
    Gone,
    /// Locked, or has children: not a candidate now.
    Busy,
    /// A candidate with this rank.
    Leaf(Rank),
}

/// The evictable leaves in policy order, corrected lazily.
#[derive(Debug, Clone, Default)]
pub(super) struct EvictionQueue {
    heap: BinaryHeap<Reverse<Entry>>,
    /// Entries in the heap for each node index.
    queued: Vec<u32>,
}

impl EvictionQueue {
    pub(super) fn with_capacity(nodes: usize) -> Self {
        Self {
            heap: BinaryHeap::with_capacity(nodes.saturating_mul(2)),
            queued: Vec::with_capacity(nodes),
        }
    }

    pub(super) fn clear(&mut self) {
        self.heap.clear();
        self.queued.clear();
    }

    /// A node index starts its life (again): entries of its former life do not count.
    pub(super) fn register(&mut self, node: u32) {
        let index = node as usize;
        if index >= self.queued.len() {
            self.queued.resize(index + 1, 0);
        }
        self.queued[index] = 0;
    }

    /// The node has become an evictable leaf, with this rank.
    pub(super) fn candidate(&mut self, policy: TreePolicy, node: u32, generation: u64, rank: Rank) {
        if self.queued[node as usize] == 0 || policy.ranks_can_fall() {
            self.push(node, generation, rank);
        }
    }

    /// The rank of an evictable leaf may have fallen.
    pub(super) fn rank_fell(&mut self, policy: TreePolicy, node: u32, generation: u64, rank: Rank) {
        if policy.ranks_can_fall() {
            self.push(node, generation, rank);
        }
    }

    fn push(&mut self, node: u32, generation: u64, rank: Rank) {
        self.queued[node as usize] += 1;
        self.heap.push(Reverse(Entry {
            rank,
            node,
            generation,
        }));
    }

    /// Whether so many entries are outdated that the queue should be rebuilt.
    pub(super) fn is_bloated(&self, live_nodes: usize) -> bool {
        self.heap.len() > live_nodes.saturating_mul(2) + 64
    }

    /// Forgets all entries; the caller then offers every evictable leaf again.
    pub(super) fn rebuild(&mut self) {
        self.heap.clear();
        self.queued.fill(0);
    }

    /// The next victim, left in the queue; it is dropped when its node is found gone.
    pub(super) fn next(&mut self, mut standing: impl FnMut(u32, u64) -> Standing) -> Option<u32> {
        while let Some(&Reverse(entry)) = self.heap.peek() {
            match standing(entry.node, entry.generation) {
                Standing::Gone => {
                    self.heap.pop();
                }
                Standing::Busy => {
                    self.heap.pop();
                    self.queued[entry.node as usize] -= 1;
                }
                Standing::Leaf(rank) if rank == entry.rank => return Some(entry.node),
                Standing::Leaf(rank) => {
                    self.heap.pop();
                    if rank > entry.rank {
                        self.heap.push(Reverse(Entry { rank, ..entry }));
                    } else {
                        // a younger entry with the lower rank was pushed when the rank fell
                        self.queued[entry.node as usize] -= 1;
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_to_the_policy_of_that_name() {
        for name in TreePolicy::NAMES {
            assert_eq!(name.parse::<TreePolicy>().unwrap().name(), name);
            assert_eq!(name.to_uppercase().parse::<TreePolicy>().unwrap().name(), name);
        }
        let error = "arc".parse::<TreePolicy>().unwrap_err();
        assert!(error.to_string().contains("arc"), "{error}");
    }

    #[test]
    fn tail_optimised_lru_counts_a_tail_as_safe_exactly_from_its_budget_on() {
        let policy = TreePolicy::Tlru {
            threshold: 10,
            next_prompt_estimate: 2,
        };
        let facts = |tokens_above| LeafFacts {
            last_access: 7,
            created: 0,
            hits: 0,
            priority: 0,
            history: 20,
            tokens_above,
        };
        // budget = 20 + 2 - 10 = 12 tokens have to stay
        assert_eq!(policy.rank(&facts(12)), Rank(-1, 7));
        assert_eq!(policy.rank(&facts(11)), Rank(0, 7));
    }
}
