//! The radix tree itself: match, insert, split, lock, evict.

mod nodes;
mod weight;

use std::hash::Hash;

use hashbrown::HashTable;

use crate::error::{Error, Result};
use crate::radix::arena::Arena;
use crate::radix::namespace::Namespace;
use crate::radix::observer::TreeObserver;
use crate::radix::policy::{EvictionQueue, Standing, TreePolicy};

use nodes::rank;

/// No node.
pub(in crate::radix) const NIL: u32 = u32::MAX;
/// The root's index: always there, always locked, its key is empty.
pub(in crate::radix) const ROOT: u32 = 0;
/// Most tokens one tree can hold.
pub const MAX_TOKENS: usize = 1 << 31;
/// How far one tick moves the clock. A match stamps its whole path in one tick, each ancestor one unit older
/// than its child, as SGLang does with steps of 1e-5 of a tick.
const TICK: u64 = 100_000;

/// A node of one tree. Handles of evicted nodes are recognised and refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId {
    pub(in crate::radix) index: u32,
    /// Which life of that index; never given out twice.
    pub(in crate::radix) generation: u64,
}

/// Proof of one [`RadixTree::lock`]; give it back with [`RadixTree::unlock`].
///
/// It remembers the node it was given out for, is neither `Copy` nor `Clone`, and so cannot release another
/// holder's lock, nor release twice.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the path stays locked until the receipt is given back to `unlock`"]
pub struct LockReceipt {
    anchor: NodeId,
}

impl LockReceipt {
    /// The node that was locked together with its ancestors.
    pub fn node(&self) -> NodeId {
        self.anchor
    }
}

/// The cached part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// Cached tokens, a multiple of the page size.
    pub len: usize,
    /// The node where the cached part ends (the root for 0 tokens).
    pub node: NodeId,
}

/// What [`RadixTree::insert`] puts in the tree.
#[derive(Debug, Clone, Copy)]
pub struct Insert<'a, T> {
    /// Namespace of the key (extra key, cache salt, LoRA adapter).
    pub namespace: Namespace,
    /// The tokens; what exceeds whole pages is ignored.
    pub key: &'a [T],
    /// The slot of each token: at least as many as `key` has in whole pages.
    pub slots: &'a [u32],
    /// Priority of the inserting request (0 where unused).
    pub priority: i64,
    /// The first `owned_by_tree` slots already are the tree's own: overlap there is no duplicate.
    pub owned_by_tree: usize,
    /// Nodes ending within the first `already_counted` tokens get no hit: the request counted there before.
    pub already_counted: usize,
}

/// What [`RadixTree::insert`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inserted {
    /// Tokens that were in the tree before.
    pub prefix_len: usize,
    /// Tokens of the key in whole pages: the depth of `node`.
    pub len: usize,
    /// The node where the key ends.
    pub node: NodeId,
}

#[derive(Debug, Clone, Copy)]
pub(in crate::radix) struct Node {
    pub parent: u32,
    pub first_child: u32,
    pub previous: u32,
    pub next: u32,
    /// Span of the key and the slots in the arena.
    pub start: u32,
    pub len: u32,
    pub namespace: Namespace,
    /// Locks on this node and its descendants.
    pub locks: u32,
    /// Number of this node's life, or of its death.
    pub generation: u64,
    /// Tokens from the root through this node.
    pub depth: u32,
    /// Greatest depth this branch ever reached (kept for `tlru` alone).
    pub history: u32,
    pub hits: u64,
    pub priority: i64,
    pub last_access: u64,
    pub created: u64,
    /// Hash of (parent, namespace, first page), as filed in the child table.
    pub hash: u64,
}

const _: () = assert!(
    size_of::<Node>() == 88,
    "the module's documentation states this size"
);

/// A prefix tree from token sequences to KV slots with SGLang's rules. See the [module](super) for an example.
#[derive(Debug, Clone)]
pub struct RadixTree<T, O = ()> {
    pub(in crate::radix) nodes: Vec<Node>,
    pub(in crate::radix) arena: Arena<T>,
    /// Child table of all nodes: filed by hash, compared by (parent, namespace, first page).
    pub(in crate::radix) children: HashTable<u32>,
    /// Dead node indices.
    vacant: Vec<u32>,
    queue: EvictionQueue,
    /// Reused by compaction.
    spans: Vec<(u32, u32, u32)>,
    pub(in crate::radix) page: u32,
    policy: TreePolicy,
    clock: u64,
    lives: u64,
    pub(in crate::radix) evictable: usize,
    pub(in crate::radix) protected: usize,
    observer: O,
}

impl<T: Copy + Eq + Hash> RadixTree<T> {
    /// An empty tree over pages of `page_size` tokens, with room for `capacity_tokens` before it has to grow.
    ///
    /// # Errors
    /// If the page size is 0 or above `u32::MAX / 2`.
    pub fn new(page_size: usize, policy: TreePolicy, capacity_tokens: usize) -> Result<Self> {
        Self::with_observer(page_size, policy, capacity_tokens, ())
    }
}

impl<T: Copy + Eq + Hash, O: TreeObserver<T>> RadixTree<T, O> {
    /// An empty tree that tells `observer` what enters and leaves it.
    ///
    /// # Errors
    /// As [`RadixTree::new`].
    pub fn with_observer(
        page_size: usize,
        policy: TreePolicy,
        capacity_tokens: usize,
        observer: O,
    ) -> Result<Self> {
        let page = u32::try_from(page_size)
            .ok()
            .filter(|&p| p > 0 && p <= u32::MAX / 2)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "page size is {page_size}, expected a positive 31-bit count of tokens"
                ))
            })?;
        // a guess: most nodes are far longer than one page
        let nodes = (capacity_tokens / page_size / 16).min(1 << 20);
        let mut tree = Self {
            nodes: Vec::with_capacity(nodes + 1),
            arena: Arena::with_capacity(capacity_tokens)?,
            children: HashTable::with_capacity(nodes),
            vacant: Vec::with_capacity(nodes),
            queue: EvictionQueue::with_capacity(nodes),
            spans: Vec::new(),
            page,
            policy,
            clock: 0,
            lives: 0,
            evictable: 0,
            protected: 0,
            observer,
        };
        tree.plant_root();
        Ok(tree)
    }

    fn plant_root(&mut self) {
        let generation = self.next_life();
        self.nodes.push(Node {
            parent: NIL,
            first_child: NIL,
            previous: NIL,
            next: NIL,
            start: 0,
            len: 0,
            namespace: Namespace::DEFAULT,
            locks: 1,
            generation,
            depth: 0,
            history: 0,
            hits: 0,
            priority: i64::MIN,
            last_access: 0,
            created: 0,
            hash: 0,
        });
        self.queue.register(ROOT);
    }

    /// Forgets everything; all node handles and lock receipts become stale. Memory is kept.
    ///
    /// The slots are not reported: whoever resets the tree resets the allocator as well.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.arena.clear();
        self.children.clear();
        self.vacant.clear();
        self.queue.clear();
        self.evictable = 0;
        self.protected = 0;
        self.plant_root();
        self.observer.cleared();
    }

    /// Whoever hears what enters and leaves the tree.
    pub fn observer(&self) -> &O {
        &self.observer
    }

    /// As [`RadixTree::observer`], to change (to take events).
    pub fn observer_mut(&mut self) -> &mut O {
        &mut self.observer
    }

    /// Tokens per page.
    pub fn page_size(&self) -> usize {
        self.page as usize
    }

    /// The eviction policy.
    pub fn policy(&self) -> TreePolicy {
        self.policy
    }

    /// The root.
    pub fn root(&self) -> NodeId {
        self.id(ROOT)
    }

    /// Tokens that eviction could free by and by: those of all unlocked nodes.
    pub fn evictable_tokens(&self) -> usize {
        self.evictable
    }

    /// Tokens under a lock.
    pub fn protected_tokens(&self) -> usize {
        self.protected
    }

    /// Tokens in the tree.
    pub fn total_tokens(&self) -> usize {
        self.arena.live()
    }

    /// Nodes in the tree, the root included.
    pub fn node_count(&self) -> usize {
        self.nodes.len() - self.vacant.len()
    }

    /// `len` rounded down to whole pages.
    fn aligned(&self, len: usize) -> usize {
        len - len % self.page as usize
    }

    /// The cached prefix of `key`, marked as used now. O(tokens compared + nodes on the path).
    ///
    /// A match that ends inside a node splits it, so that the returned node ends exactly at the match. To keep
    /// the last token of a prompt for computing (an engine needs its logits), pass the prompt without it.
    pub fn match_prefix(&mut self, namespace: Namespace, key: &[T]) -> Match {
        let key = &key[..self.aligned(key.len())];
        if key.is_empty() {
            return Match {
                len: 0,
                node: self.root(),
            };
        }
        let (mut node, mut matched) = (ROOT, 0usize);
        while matched < key.len() {
            let Some(child) = self.child(node, namespace, &key[matched..]) else {
                break;
            };
            let common = self.common(child, &key[matched..]);
            matched += common as usize;
            if common < self.nodes[child as usize].len {
                node = self.split(child, common);
                break;
            }
            node = child;
        }
        let mut now = self.tick();
        let mut walk = node;
        while walk != NIL {
            self.nodes[walk as usize].last_access = now;
            now = now.saturating_sub(1);
            walk = self.nodes[walk as usize].parent;
        }
        self.rank_may_have_fallen(node);
        Match {
            len: matched,
            node: self.id(node),
        }
    }

    /// Cached tokens of `key`, changing nothing: for routing and for sorting a queue.
    pub fn peek_prefix(&self, namespace: Namespace, key: &[T]) -> usize {
        let key = &key[..self.aligned(key.len())];
        let (mut node, mut matched) = (ROOT, 0usize);
        while matched < key.len() {
            let Some(child) = self.child(node, namespace, &key[matched..]) else {
                break;
            };
            let common = self.common(child, &key[matched..]);
            matched += common as usize;
            if common < self.nodes[child as usize].len {
                break;
            }
            node = child;
        }
        matched
    }

    /// Puts a key and its slots in the tree; where the tree has a prefix already, its own slots stay, and the
    /// caller's slots of that range are given to `duplicate` (in path order, node by node) to be freed.
    ///
    /// Whatever of the key is new becomes one leaf. Every node on the way counts as used, gains a hit unless
    /// `already_counted` covers it, and is raised to `priority`.
    ///
    /// # Errors
    /// If there are fewer slots than tokens in whole pages, or the tree would pass [`MAX_TOKENS`]. Nothing has
    /// been changed then, and no duplicate reported.
    pub fn insert(&mut self, insert: Insert<'_, T>, mut duplicate: impl FnMut(&[u32])) -> Result<Inserted> {
        let len = self.aligned(insert.key.len());
        if insert.slots.len() < len {
            return Err(Error::invalid(format!(
                "insert of {len} tokens came with {} slots, expected one a token",
                insert.slots.len()
            )));
        }
        if self.arena.live() + len > MAX_TOKENS {
            return Err(Error::overflow(format!(
                "a radix tree holds at most {MAX_TOKENS} tokens"
            )));
        }
        let (key, slots) = (&insert.key[..len], &insert.slots[..len]);
        let now = self.tick();
        let root = &mut self.nodes[ROOT as usize];
        root.last_access = now;
        root.priority = root.priority.max(insert.priority);
        let (mut node, mut done) = (ROOT, 0usize);
        while done < len {
            let Some(child) = self.child(node, insert.namespace, &key[done..]) else {
                break;
            };
            self.touch(child);
            let common = self.common(child, &key[done..]);
            node = if common < self.nodes[child as usize].len {
                self.split(child, common)
            } else {
                child
            };
            let end = done + common as usize;
            let from = insert.owned_by_tree.clamp(done, end);
            if from < end {
                duplicate(&slots[from..end]);
            }
            let walked = &mut self.nodes[node as usize];
            walked.priority = walked.priority.max(insert.priority);
            if end > insert.already_counted {
                walked.hits += 1;
            }
            done = end;
        }
        if done < len {
            let hit = u64::from(len > insert.already_counted);
            node = self.add_leaf(
                node,
                insert.namespace,
                &key[done..],
                &slots[done..],
                insert.priority,
                hit,
            );
        }
        Ok(Inserted {
            prefix_len: done,
            len,
            node: self.id(node),
        })
    }

    /// Locks a node and its ancestors against eviction. O(nodes on the path).
    ///
    /// # Errors
    /// If the node is gone.
    pub fn lock(&mut self, node: NodeId) -> Result<LockReceipt> {
        let mut walk = self.resolve(node)?;
        while walk != ROOT {
            let n = &mut self.nodes[walk as usize];
            if n.locks == 0 {
                self.evictable -= n.len as usize;
                self.protected += n.len as usize;
            }
            n.locks += 1;
            walk = n.parent;
        }
        Ok(LockReceipt { anchor: node })
    }

    /// Releases one lock. O(nodes on the path). A node that was split under the lock is released with both halves.
    ///
    /// # Errors
    /// If the receipt is from before a [`RadixTree::clear`] or from another tree; nothing is released then.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a receipt is used up by its release"
    )]
    pub fn unlock(&mut self, receipt: LockReceipt) -> Result<()> {
        let anchor = self.resolve(receipt.anchor)?;
        if self.nodes[anchor as usize].locks == 0 {
            return Err(Error::stale(
                "the lock receipt does not belong to this tree's present content",
            ));
        }
        let mut walk = anchor;
        while walk != ROOT {
            let n = &mut self.nodes[walk as usize];
            n.locks -= 1;
            if n.locks == 0 {
                self.evictable += n.len as usize;
                self.protected -= n.len as usize;
                let parent = n.parent;
                self.offer(walk);
                walk = parent;
            } else {
                walk = n.parent;
            }
        }
        Ok(())
    }

    /// Evicts the policy's first leaf and hands its slots to `free`; `None` if every leaf is locked.
    /// O(log leaves), amortised.
    pub fn evict_one(&mut self, free: impl FnOnce(&[u32])) -> Option<usize> {
        let Self {
            queue, nodes, policy, ..
        } = self;
        let victim = queue.next(|index, generation| {
            let node = &nodes[index as usize];
            if node.generation != generation {
                Standing::Gone
            } else if node.locks > 0 || node.first_child != NIL {
                Standing::Busy
            } else {
                Standing::Leaf(rank(*policy, node))
            }
        })?;
        let (start, len) = (self.nodes[victim as usize].start, self.nodes[victim as usize].len);
        free(self.arena.slots(start, len));
        self.remove_leaf(victim);
        Some(len as usize)
    }

    /// Evicts leaves until at least `tokens` are freed or nothing is left to evict; returns how many were freed.
    /// Whole nodes go, so it can be more than asked for.
    pub fn evict(&mut self, tokens: usize, mut free: impl FnMut(&[u32])) -> usize {
        let mut freed = 0;
        while freed < tokens {
            match self.evict_one(&mut free) {
                Some(len) => freed += len,
                None => break,
            }
        }
        freed
    }

    /// Writes the slots of the path that ends at `node`, from token `from` on, into `out`.
    ///
    /// # Errors
    /// If the node is gone, or `out` is not exactly the path's length less `from`.
    pub fn path_slots(&self, node: NodeId, from: usize, out: &mut [u32]) -> Result<()> {
        let mut walk = self.resolve(node)?;
        let depth = self.nodes[walk as usize].depth as usize;
        if depth.checked_sub(from) != Some(out.len()) {
            return Err(Error::invalid(format!(
                "the path is {depth} tokens long, so {} slots from token {from} on do not match it",
                out.len()
            )));
        }
        while walk != ROOT {
            let n = &self.nodes[walk as usize];
            let end = n.depth as usize;
            if end <= from {
                break;
            }
            let start = end - n.len as usize;
            let skip = from.saturating_sub(start);
            let slots = &self.arena.slots(n.start, n.len)[skip..];
            out[start + skip - from..end - from].copy_from_slice(slots);
            walk = n.parent;
        }
        Ok(())
    }

    /// Tokens from the root through `node`.
    ///
    /// # Errors
    /// If the node is gone.
    pub fn path_len(&self, node: NodeId) -> Result<usize> {
        Ok(self.nodes[self.resolve(node)? as usize].depth as usize)
    }
}
