//! Invariants of the tree, walked in full: for tests, and for embedders who suspect their own bookkeeping.

use std::collections::HashSet;
use std::hash::Hash;

use super::observer::TreeObserver;
use super::tree::{NIL, ROOT, RadixTree};

impl<T: Copy + Eq + Hash, O: TreeObserver<T>> RadixTree<T, O> {
    /// Walks the whole tree and returns the first broken invariant. O(tokens).
    ///
    /// Checked: links both ways; each node once; spans disjoint and whole pages; depth = depth of the parent +
    /// own length; each child filed in the child table under its parent, namespace and first page; a lock
    /// count at most that of the parent; evictable and protected totals; no slot twice.
    ///
    /// # Errors
    /// With a sentence on what is broken.
    pub fn check_invariants(&self) -> Result<(), String> {
        let (mut stack, mut seen) = (vec![ROOT], 1usize);
        let (mut evictable, mut protected, mut slots) = (0usize, 0usize, HashSet::new());
        let mut spans = Vec::new();
        while let Some(at) = stack.pop() {
            let node = &self.nodes[at as usize];
            let (mut child, mut previous) = (node.first_child, NIL);
            while child != NIL {
                let c = &self.nodes[child as usize];
                seen += 1;
                if seen > self.nodes.len() {
                    return Err("the child links run in a circle".to_owned());
                }
                if c.parent != at || c.previous != previous {
                    return Err(format!(
                        "node {child} does not link back to its parent {at} and sibling"
                    ));
                }
                if c.len == 0 || !c.len.is_multiple_of(self.page) {
                    return Err(format!("node {child} holds {} tokens, no whole pages", c.len));
                }
                if c.depth != node.depth + c.len {
                    return Err(format!(
                        "node {child} is at depth {}, its parent at {}",
                        c.depth, node.depth
                    ));
                }
                if at != ROOT && c.locks > node.locks {
                    return Err(format!("node {child} has more locks than its parent {at}"));
                }
                if self.children.find(c.hash, |&filed| filed == child).is_none() {
                    return Err(format!("node {child} is not filed in the child table"));
                }
                if c.locks == 0 {
                    evictable += c.len as usize;
                } else {
                    protected += c.len as usize;
                }
                for &slot in self.arena.slots(c.start, c.len) {
                    if !slots.insert(slot) {
                        return Err(format!("slot {slot} is in the tree twice"));
                    }
                }
                spans.push((c.start, c.len));
                stack.push(child);
                (previous, child) = (child, c.next);
            }
        }
        spans.sort_unstable();
        if spans.windows(2).any(|w| w[0].0 + w[0].1 > w[1].0) {
            return Err("two nodes share a part of the arena".to_owned());
        }
        if (evictable, protected) != (self.evictable, self.protected) {
            return Err(format!(
                "{evictable} evictable and {protected} protected tokens were counted, {} and {} were kept",
                self.evictable, self.protected
            ));
        }
        if evictable + protected != self.arena.live() {
            return Err(format!(
                "{} tokens are alive, {} in the arena",
                evictable + protected,
                self.arena.live()
            ));
        }
        if seen != self.node_count() || self.children.len() + 1 != seen {
            return Err(format!(
                "{seen} nodes hang in the tree, {} are counted",
                self.node_count()
            ));
        }
        Ok(())
    }
}
