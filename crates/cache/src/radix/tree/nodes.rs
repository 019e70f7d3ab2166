//! The tree's nodes: their lives, their places in the child table and in the queue of leaves, splits and compaction.

use std::hash::{Hash, Hasher};

use rustc_hash::FxHasher;

use super::{NIL, Node, NodeId, ROOT, RadixTree, TICK};
use crate::error::{Error, Result};
use crate::radix::namespace::Namespace;
use crate::radix::observer::TreeObserver;
use crate::radix::policy::{LeafFacts, Rank, TreePolicy};

impl<T: Copy + Eq + Hash, O: TreeObserver<T>> RadixTree<T, O> {
    pub(in crate::radix) fn id(&self, index: u32) -> NodeId {
        NodeId {
            index,
            generation: self.nodes[index as usize].generation,
        }
    }

    pub(super) fn resolve(&self, id: NodeId) -> Result<u32> {
        match self.nodes.get(id.index as usize) {
            Some(node) if node.generation == id.generation => Ok(id.index),
            _ => Err(Error::stale("the node was evicted or belongs to another tree")),
        }
    }

    pub(super) fn tick(&mut self) -> u64 {
        self.clock += TICK;
        self.clock
    }

    pub(super) fn touch(&mut self, node: u32) {
        let now = self.tick();
        self.nodes[node as usize].last_access = now;
        self.rank_may_have_fallen(node);
    }

    pub(in crate::radix) fn is_evictable_leaf(&self, node: u32) -> bool {
        let n = &self.nodes[node as usize];
        n.locks == 0 && n.first_child == NIL && node != ROOT
    }

    /// Makes the node a candidate if it is an evictable leaf.
    pub(super) fn offer(&mut self, node: u32) {
        if self.is_evictable_leaf(node) {
            let n = &self.nodes[node as usize];
            self.queue
                .candidate(self.policy, node, n.generation, rank(self.policy, n));
            self.trim_queue();
        }
    }

    pub(super) fn rank_may_have_fallen(&mut self, node: u32) {
        if self.is_evictable_leaf(node) {
            let n = &self.nodes[node as usize];
            self.queue
                .rank_fell(self.policy, node, n.generation, rank(self.policy, n));
            self.trim_queue();
        }
    }

    pub(super) fn trim_queue(&mut self) {
        if self.queue.is_bloated(self.node_count()) {
            self.queue.rebuild();
            for index in 1..self.nodes.len() as u32 {
                // dead nodes are locked, see `remove_leaf`
                if self.is_evictable_leaf(index) {
                    let n = &self.nodes[index as usize];
                    self.queue
                        .candidate(self.policy, index, n.generation, rank(self.policy, n));
                }
            }
        }
    }

    /// Tokens, in whole pages, that the node's key and `key` have in common.
    pub(super) fn common(&self, node: u32, key: &[T]) -> u32 {
        let n = &self.nodes[node as usize];
        let own = self.arena.tokens(n.start, n.len);
        let common = common_prefix(own, key) as u32;
        common - common % self.page
    }

    pub(super) fn child_hash(parent: u32, namespace: Namespace, page: &[T]) -> u64 {
        let mut hasher = FxHasher::default();
        hasher.write_u64((u64::from(parent) << 32) | u64::from(namespace.0));
        for token in page {
            token.hash(&mut hasher);
        }
        hasher.finish()
    }

    pub(super) fn child(&self, parent: u32, namespace: Namespace, key: &[T]) -> Option<u32> {
        if self.nodes[parent as usize].first_child == NIL {
            return None;
        }
        let page = &key[..self.page as usize];
        self.children
            .find(Self::child_hash(parent, namespace, page), |&index| {
                let n = &self.nodes[index as usize];
                n.parent == parent
                    && n.namespace == namespace
                    && self.arena.tokens(n.start, self.page) == page
            })
            .copied()
    }

    pub(super) fn file(&mut self, index: u32) {
        let n = &self.nodes[index as usize];
        let hash = Self::child_hash(n.parent, n.namespace, self.arena.tokens(n.start, self.page));
        self.nodes[index as usize].hash = hash;
        let nodes = &self.nodes;
        self.children
            .insert_unique(hash, index, |&other| nodes[other as usize].hash);
    }

    pub(super) fn next_life(&mut self) -> u64 {
        self.lives += 1;
        self.lives
    }

    /// Files nothing and links nothing. Indices cannot run out: each node but the root holds at least one of at
    /// most [`MAX_TOKENS`] tokens.
    pub(super) fn new_node(&mut self, node: Node) -> u32 {
        let node = Node {
            generation: self.next_life(),
            ..node
        };
        let index = if let Some(index) = self.vacant.pop() {
            self.nodes[index as usize] = node;
            index
        } else {
            self.nodes.push(node);
            self.nodes.len() as u32 - 1
        };
        self.queue.register(index);
        index
    }

    /// Cuts `child` after `len` tokens; the new node in front keeps its lock count, hits, priority and age.
    pub(super) fn split(&mut self, child: u32, len: u32) -> u32 {
        let old = self.nodes[child as usize];
        debug_assert!(len > 0 && len < old.len && len.is_multiple_of(self.page));
        let now = self.tick();
        let front = self.new_node(Node {
            first_child: child,
            len,
            depth: old.depth - (old.len - len),
            last_access: now,
            ..old
        });
        // the front half takes the child's place among its siblings and in the child table
        if old.previous == NIL {
            self.nodes[old.parent as usize].first_child = front;
        } else {
            self.nodes[old.previous as usize].next = front;
        }
        if old.next != NIL {
            self.nodes[old.next as usize].previous = front;
        }
        let filed = self.children.find_mut(old.hash, |&index| index == child);
        *filed.expect("every node but the root is filed in the child table") = front;
        let now = self.tick();
        let rest = &mut self.nodes[child as usize];
        rest.parent = front;
        rest.previous = NIL;
        rest.next = NIL;
        rest.start = old.start + len;
        rest.len = old.len - len;
        rest.last_access = now;
        self.file(child);
        self.rank_may_have_fallen(child);
        self.observer.split(
            old.parent,
            front,
            child,
            old.namespace,
            self.arena.tokens(old.start, len),
        );
        front
    }

    pub(super) fn add_leaf(
        &mut self,
        parent: u32,
        namespace: Namespace,
        key: &[T],
        slots: &[u32],
        priority: i64,
        hits: u64,
    ) -> u32 {
        if self.arena.wants_compaction(key.len()) {
            self.compact();
        }
        let start = self.arena.append(key, slots);
        let above = &self.nodes[parent as usize];
        let (len, next) = (key.len() as u32, above.first_child);
        let depth = above.depth + len;
        let now = self.tick();
        let leaf = self.new_node(Node {
            parent,
            first_child: NIL,
            previous: NIL,
            next,
            start,
            len,
            namespace,
            locks: 0,
            generation: 0,
            depth,
            history: depth,
            hits,
            priority,
            last_access: now,
            created: now,
            hash: 0,
        });
        if next != NIL {
            self.nodes[next as usize].previous = leaf;
        }
        self.nodes[parent as usize].first_child = leaf;
        if self.policy.needs_history() {
            let mut walk = parent;
            while walk != NIL && self.nodes[walk as usize].history < depth {
                self.nodes[walk as usize].history = depth;
                walk = self.nodes[walk as usize].parent;
            }
        }
        self.file(leaf);
        self.evictable += key.len();
        self.offer(leaf);
        self.observer.stored(parent, leaf, namespace, key);
        leaf
    }

    pub(super) fn remove_leaf(&mut self, leaf: u32) {
        let Node {
            parent,
            previous,
            next,
            start,
            len,
            hash,
            namespace,
            ..
        } = self.nodes[leaf as usize];
        self.observer
            .removed(parent, leaf, namespace, self.arena.tokens(start, len));
        let filed = self.children.find_entry(hash, |&index| index == leaf);
        filed
            .expect("every node but the root is filed in the child table")
            .remove();
        if previous == NIL {
            self.nodes[parent as usize].first_child = next;
        } else {
            self.nodes[previous as usize].next = next;
        }
        if next != NIL {
            self.nodes[next as usize].previous = previous;
        }
        self.arena.release(len);
        self.evictable -= len as usize;
        let death = self.next_life();
        let dead = &mut self.nodes[leaf as usize];
        dead.generation = death;
        dead.locks = 1; // never a candidate
        dead.parent = NIL;
        self.vacant.push(leaf);
        self.offer(parent);
    }

    /// Closes the arena's holes.
    pub(super) fn compact(&mut self) {
        self.spans.clear();
        for (index, node) in self.nodes.iter().enumerate().skip(1) {
            if node.parent != NIL {
                self.spans.push((node.start, node.len, index as u32));
            }
        }
        self.spans.sort_unstable();
        let Self {
            arena, nodes, spans, ..
        } = self;
        arena.compact(spans, |node, start| nodes[node as usize].start = start);
    }
}

pub(super) fn rank(policy: TreePolicy, node: &Node) -> Rank {
    policy.rank(&LeafFacts {
        last_access: node.last_access,
        created: node.created,
        hits: node.hits,
        priority: node.priority,
        history: node.history,
        tokens_above: node.depth - node.len,
    })
}

/// Length of the common prefix, compared in chunks that the compiler turns into wide compares.
fn common_prefix<T: Eq>(a: &[T], b: &[T]) -> usize {
    const CHUNK: usize = 64;
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut at = 0;
    while at + CHUNK <= n && a[at..at + CHUNK] == b[at..at + CHUNK] {
        at += CHUNK;
    }
    at + a[at..].iter().zip(&b[at..]).take_while(|(x, y)| x == y).count()
}
