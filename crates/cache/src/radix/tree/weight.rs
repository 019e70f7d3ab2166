//! Requests in the order of their branches: SGLang's `dfs-weight`.
//!
//! SGLang 0.5.23, `sglang/srt/mem_cache/base_prefix_cache.py`, `_dfs_weight_order`.

use std::cmp::Reverse;
use std::hash::Hash;

use super::{NIL, NodeId, ROOT, RadixTree};
use crate::error::Result;
use crate::radix::observer::TreeObserver;

impl<T: Copy + Eq + Hash, O: TreeObserver<T>> RadixTree<T, O> {
    /// The positions of `ends`, depth first: at each node the branch with most of them first (of equal ones the oldest), and
    /// those that end at a node after those below it. O(paths of `ends` + children beside them).
    ///
    /// # Errors
    /// If a node is gone.
    pub fn order_by_weight(&self, ends: &[NodeId]) -> Result<Vec<usize>> {
        let mut weights = vec![0_u32; self.nodes.len()];
        let mut at_node: Vec<(u32, usize)> = Vec::with_capacity(ends.len());
        for (position, &end) in ends.iter().enumerate() {
            let node = self.resolve(end)?;
            at_node.push((node, position));
            let mut walk = node;
            while walk != NIL {
                weights[walk as usize] += 1;
                walk = self.nodes[walk as usize].parent;
            }
        }
        at_node.sort_unstable();
        let mut order = Vec::with_capacity(ends.len());
        let mut stack = vec![(ROOT, false)];
        while let Some((node, below_done)) = stack.pop() {
            if below_done {
                let first = at_node.partition_point(|&(other, _)| other < node);
                let here = at_node[first..].iter().take_while(|&&(other, _)| other == node);
                order.extend(here.map(|&(_, position)| position));
                continue;
            }
            stack.push((node, true));
            // Children are linked youngest first: the stack turns them round.
            let below = stack.len();
            let mut child = self.nodes[node as usize].first_child;
            while child != NIL {
                if weights[child as usize] > 0 {
                    stack.push((child, false));
                }
                child = self.nodes[child as usize].next;
            }
            stack[below..].reverse();
            stack[below..].sort_by_key(|&(child, _)| Reverse(weights[child as usize]));
            stack[below..].reverse();
        }
        Ok(order)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::radix::{Insert, Namespace, RadixTree, TreePolicy};

    fn tree_of(keys: &[Vec<u32>]) -> RadixTree<u32> {
        let mut tree = RadixTree::new(1, TreePolicy::Lru, 4096).unwrap();
        for key in keys {
            let slots: Vec<u32> = (0..).take(key.len()).collect();
            let insert = Insert {
                namespace: Namespace::DEFAULT,
                key,
                slots: &slots,
                priority: 0,
                owned_by_tree: 0,
                already_counted: 0,
            };
            tree.insert(insert, |_| {}).unwrap();
        }
        tree
    }

    #[test]
    fn the_branch_with_most_requests_comes_first_and_a_node_after_what_is_below_it() {
        let mut tree = tree_of(&[vec![1, 2], vec![5], vec![5, 6], vec![5, 7]]);
        let mut end = |key: &[u32]| tree.match_prefix(Namespace::DEFAULT, key).node;
        // One asks for [1, 2], one for [5], one for [5, 6], two for [5, 7], one for nothing that is there.
        let ends = [&[1, 2][..], &[5], &[5, 6], &[5, 7], &[9], &[5, 7]].map(&mut end);
        assert_eq!(tree.order_by_weight(&ends).unwrap(), [3, 5, 2, 1, 0, 4]);
    }

    /// The same by paths: at each depth the requests are grouped by their next node.
    fn naive(tree: &mut RadixTree<u32>, keys: &[Vec<u32>], asked: &[Vec<u32>]) -> Vec<usize> {
        fn visit(paths: &[(usize, Vec<u32>)], at: &[u32], first_seen: &[Vec<u32>], order: &mut Vec<usize>) {
            let below = |path: &Vec<u32>| path.len() > at.len();
            let mut nexts: Vec<u32> = Vec::new();
            for key in first_seen
                .iter()
                .filter(|key| key.len() > at.len() && key.starts_with(at))
            {
                if !nexts.contains(&key[at.len()]) {
                    nexts.push(key[at.len()]);
                }
            }
            let count = |token: u32| {
                paths
                    .iter()
                    .filter(|(_, path)| below(path) && path[at.len()] == token)
                    .count()
            };
            nexts.sort_by_key(|&token| std::cmp::Reverse(count(token)));
            for token in nexts {
                let inside: Vec<_> = paths
                    .iter()
                    .filter(|(_, path)| below(path) && path[at.len()] == token)
                    .cloned()
                    .collect();
                if !inside.is_empty() {
                    let at: Vec<u32> = at.iter().copied().chain([token]).collect();
                    visit(&inside, &at, first_seen, order);
                }
            }
            order.extend(
                paths
                    .iter()
                    .filter(|(_, path)| path.len() == at.len())
                    .map(|(i, _)| *i),
            );
        }
        let paths: Vec<(usize, Vec<u32>)> = asked
            .iter()
            .enumerate()
            .map(|(i, key)| {
                let len = tree.match_prefix(Namespace::DEFAULT, key).len;
                (i, key[..len].to_vec())
            })
            .collect();
        let mut order = Vec::new();
        visit(&paths, &[], keys, &mut order);
        order
    }

    proptest! {
        #[test]
        fn branches_are_ordered_as_their_paths_token_by_token(
            keys in prop::collection::vec(prop::collection::vec(0_u32..3, 1..7), 1..12),
            asked in prop::collection::vec(prop::collection::vec(0_u32..3, 0..8), 0..12),
        ) {
            let mut tree = tree_of(&keys);
            let ends: Vec<_> = asked.iter().map(|key| tree.match_prefix(Namespace::DEFAULT, key).node).collect();
            let order = tree.order_by_weight(&ends).unwrap();
            prop_assert_eq!(order, naive(&mut tree, &keys, &asked));
        }
    }
}
