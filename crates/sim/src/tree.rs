//! Which shared prefixes save most: the prefix tree of a trace, its unbranched stretches merged.
//!
//! A stretch of blocks that the same requests share is one [`SharedPrefix`]. With unlimited room it is computed once
//! and reused by all later requests, so it saves `(requests - 1) * own_blocks` blocks of prefill.
//!
//! Cost: one addition a run of a path and two passes over the nodes; a block access costs nothing.

use crate::trace::{BlockPaths, ROOT, TraceSize, size_of_u64};

/// A stretch of blocks shared by the same requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedPrefix {
    /// Number of this stretch: its place in [`shared_prefixes`]'s order of nodes.
    pub number: u32,
    /// The stretch that this one continues; `None` from the start of the prompt.
    pub parent: Option<u32>,
    /// Requests that use it.
    pub requests: u32,
    /// First request that uses it.
    pub first_request: u32,
    /// Blocks of the stretch itself.
    pub own_blocks: u32,
    /// Blocks from the start of the prompt to its end.
    pub prefix_blocks: u32,
    /// First node of the stretch.
    pub first_node: u32,
    /// Last node of the stretch.
    pub last_node: u32,
}

impl SharedPrefix {
    /// Blocks that need not be computed again, with unlimited room.
    pub fn saved_blocks(&self) -> u64 {
        u64::from(self.requests.saturating_sub(1)) * u64::from(self.own_blocks)
    }
}

/// All stretches that at least two requests share, parents before children.
pub fn shared_prefixes(paths: &BlockPaths) -> Vec<SharedPrefix> {
    let nodes = paths.unique_blocks() as usize;
    let mut visits = vec![0u32; nodes + 1];
    let mut first_request = vec![u32::MAX; nodes];
    for index in 0..paths.len() {
        let request = u32::try_from(index).expect("a trace has fewer than 2^32 requests");
        for run in paths.get(index).runs() {
            // consecutive nodes: a difference array counts a run in two steps
            let (from, to) = (run.first as usize, (run.first + run.len) as usize);
            visits[from] = visits[from].wrapping_add(1);
            visits[to] = visits[to].wrapping_sub(1);
            // only the first use of a stretch starts at a new node, so its first node has not been seen
            if first_request[to - 1] == u32::MAX {
                for first in first_request[from..to]
                    .iter_mut()
                    .rev()
                    .take_while(|f| **f == u32::MAX)
                {
                    *first = request;
                }
            }
        }
    }
    let mut sum = 0u32;
    for count in &mut visits {
        sum = sum.wrapping_add(*count);
        *count = sum;
    }
    let mut found: Vec<SharedPrefix> = Vec::new();
    let mut stretch_of = vec![u32::MAX; nodes];
    for (node, &parent) in (0u32..).zip(paths.parents()) {
        let requests = visits[node as usize];
        if requests < 2 {
            continue;
        }
        let above = (parent != ROOT).then(|| stretch_of[parent as usize]);
        let depth = above.map_or(0, |s| found[s as usize].prefix_blocks);
        if let Some(stretch) = above {
            let open = &mut found[stretch as usize];
            // as many requests as the parent: nobody leaves between the two
            if open.requests == requests && open.last_node == parent {
                open.own_blocks += 1;
                open.prefix_blocks += 1;
                open.last_node = node;
                stretch_of[node as usize] = stretch;
                continue;
            }
        }
        let number = u32::try_from(found.len()).expect("fewer stretches than nodes");
        stretch_of[node as usize] = number;
        found.push(SharedPrefix {
            number,
            parent: above,
            requests,
            first_request: first_request[node as usize],
            own_blocks: 1,
            prefix_blocks: depth + 1,
            first_node: node,
            last_node: node,
        });
    }
    found
}

/// Bytes that [`shared_prefixes`] holds beside the trace, for a trace of `size`: three words a distinct block, and the
/// stretches, of which there are at most two a run of a path.
pub fn working_bytes(size: &TraceSize) -> u64 {
    let words = 3 * 4 * size.distinct_blocks;
    size.to_blocks_bytes()
        .saturating_add(words + 2 * size_of_u64::<SharedPrefix>() * size.runs)
}

/// The `count` stretches that save most, the best first; ties by node.
pub fn most_saving(mut prefixes: Vec<SharedPrefix>, count: usize) -> Vec<SharedPrefix> {
    prefixes.sort_by_key(|p| (std::cmp::Reverse(p.saved_blocks()), p.first_node));
    prefixes.truncate(count);
    prefixes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trace::{IdMeaning, NewRequest, PromptIds, TraceBuilder};

    fn paths(requests: &[Vec<u64>]) -> BlockPaths {
        let mut builder = TraceBuilder::new("t", 16, IdMeaning::Content);
        for ids in requests {
            builder
                .push(&NewRequest {
                    prompt: PromptIds::Blocks(ids),
                    ..NewRequest::default()
                })
                .unwrap();
        }
        builder.finish().to_blocks(None).unwrap().into_owned()
    }

    #[test]
    fn a_system_prompt_and_the_examples_below_it_are_two_stretches() {
        let paths = paths(&[vec![1, 2, 3, 4, 9], vec![1, 2, 5], vec![1, 2, 3, 4, 8], vec![7]]);
        let found = shared_prefixes(&paths);
        assert_eq!(found.len(), 2);
        let (system, examples) = (found[0], found[1]);
        assert_eq!(
            (
                system.requests,
                system.own_blocks,
                system.prefix_blocks,
                system.saved_blocks()
            ),
            (3, 2, 2, 4)
        );
        assert_eq!(
            (examples.requests, examples.own_blocks, examples.prefix_blocks),
            (2, 2, 4)
        );
        assert_eq!(
            (examples.parent, examples.first_request, examples.saved_blocks()),
            (Some(0), 0, 2)
        );
        assert_eq!(most_saving(found, 1)[0].number, 0);
    }

    proptest! {
        /// Property: what all stretches save together is what an unlimited cache hits, and each is used by as many
        /// requests as start with its blocks.
        #[test]
        fn savings_add_up_to_the_ideal(
            requests in prop::collection::vec(prop::collection::vec(0u64..3, 1..8), 1..40),
        ) {
            let paths = paths(&requests);
            let found = shared_prefixes(&paths);
            let ideal = paths.block_accesses() - u64::from(paths.unique_blocks());
            prop_assert_eq!(found.iter().map(SharedPrefix::saved_blocks).sum::<u64>(), ideal);
            for stretch in &found {
                let first = &requests[stretch.first_request as usize][..stretch.prefix_blocks as usize];
                let users: Vec<usize> = (0..requests.len()).filter(|&i| requests[i].starts_with(first)).collect();
                prop_assert_eq!(users.len(), stretch.requests as usize);
                prop_assert_eq!(users[0], stretch.first_request as usize);
            }
        }
    }
}
