//! SGLang's radix cache: a prefix tree from tokens to KV slots, with its allocators and request rows.
//!
//! One request through all parts, as an engine would drive them:
//!
//! ```
//! use kvwise_cache::radix::{Namespace, RadixCache, RadixCacheConfig, TreePolicy};
//!
//! let mut cache = RadixCache::new(RadixCacheConfig {
//!     capacity_tokens: 64,
//!     page_size: 1,
//!     policy: TreePolicy::Lru,
//!     max_requests: 4,
//!     max_context_tokens: 32,
//!     enabled: true,
//! })?;
//!
//! let prompt = [11u32, 12, 13, 14];
//! let mut request = cache.lookup(Namespace::DEFAULT, &prompt, 0)?; // finds and locks the cached prefix
//! cache.start(&mut request)?; // a row that begins with the prefix's slots
//! let slots = cache.extend(&mut request, prompt.len(), |_victim| {})?; // evicts if it must
//! assert_eq!(slots, [1, 2, 3, 4]); // compute K and V of these tokens, write them to these slots
//! cache.checkpoint(&mut request, &prompt, prompt.len())?; // others may share the prompt from now on
//!
//! let all = [11, 12, 13, 14, 99, 98]; // two tokens were generated; the last one has no K and V
//! cache.extend(&mut request, 5, |_| {})?;
//! cache.finish(request, &all[..5], prompt.len())?;
//!
//! let mut next = cache.lookup(Namespace::DEFAULT, &[11, 12, 13, 14, 99, 7], 0)?;
//! assert_eq!(next.prefix_len(), 5);
//! cache.start(&mut next)?;
//! cache.retract(next)?; // or finish it
//! # Ok::<(), kvwise_cache::Error>(())
//! ```
//!
//! **Slots of a request.** Attention reads all of a request's tokens through its row:
//! `cache.rows().get(request.row().unwrap())?[..n]` are the slots of its first `n` tokens ([`RequestKv::owned_len`] have one).
//! Read it anew in each step: a checkpoint exchanges slots of tokens that another request published first. The slots index
//! a [`KvStore`](crate::store::KvStore) of the same capacity and page size.
//!
//! **Refusals.** A request that was looked up and is not admitted is given back with [`RadixCache::retract`]; so is one that
//! is pushed out while it decodes ([`RadixCache::extend`] failed). Admit only while [`RadixCache::obtainable_tokens`]
//! covers what the request will need: its lookup has locked the prefix, which then counts as neither free nor evictable.
//!
//! The parts can be used alone: [`RadixTree`] only maps tokens to slots and *decides* (what is a duplicate, what is
//! evicted); it never frees anything itself but hands the slots to a closure. [`SlotAllocator`] and [`RowTable`]
//! are the other two; [`RadixCache`] is the controller that moves slots between them.
//!
//! # Rules (SGLang 0.5.23)
//!
//! Source: `sglang/srt/mem_cache/` of the 0.5.23 wheel: `unified_radix_cache.py` and
//! `unified_cache/unified_tree_core.py` (one full-attention component), `radix_cache.py` (keys),
//! `evict_policy.py`, `allocator/`, `memory_pool.py`. Replays were compared, event for event and slot for slot, with
//! that code, its Rust core included (`tests/reference/` of the repository).
//!
//! - A key is cut to whole pages. A match that ends inside a node splits it. A new suffix is one leaf, however long.
//! - The request keeps the tree's slots for what was there before and has its own freed.
//! - A checkpoint that goes beyond the prompt cuts the tree at the prompt's end, raises the prompt's priority by
//!   one and makes it younger than the output, so outputs go first.
//! - A lock counts on the node and all its ancestors; a split copies the count. Only unlocked leaves are evicted,
//!   whole; a parent follows when its last child is gone.
//! - A request counts one hit on a node, however often it checkpoints.
//! - KV events name pages by position-aware hashes: see [`EventLog`].
//! - Times are ticks of the tree's own counter, so equal calls give equal results on any machine.
//!
//! # Costs
//!
//! | operation | cost |
//! |---|---|
//! | match, insert | tokens compared (in chunks of 64, as memory compares) + one hash of a page per node on the path |
//! | split | O(1) besides one hash: nodes are spans of a common arena, nothing is copied |
//! | lock, unlock | nodes on the path |
//! | evict a node | O(log leaves), amortised (SGLang: O(leaves) a call) |
//! | allocate, free | pages touched |
//!
//! Budget: 88 bytes a node (and about 40 in the queue and the child table), 8 bytes a cached token (a 4-byte token
//! and its slot, with as much again in reserve as [`RadixTree::new`] is told to hold). After the pool has filled once
//! no operation allocates: nodes are recycled by index, the arena is compacted in place, the queue of leaves is
//! rebuilt in place. The benchmark `radix` states the ceilings and checks them.
//!
//! The child table hashes tokens with `FxHasher`: fast, but a client that chooses tokens to collide can slow a tree
//! down. Put a per-tenant salt in the [`Namespace`] if that matters.
//!
//! # Invariants
//!
//! [`RadixTree::check_invariants`] walks them all: links both ways, spans disjoint and whole pages, child table
//! complete, locks monotone towards the root, totals exact, no slot twice.
//!
//! # Not modelled
//!
//! Sliding-window and Mamba components, the host tier (`HiCache`), sessions, page interleaving over ranks.
//! EAGLE's bigram keys need nothing special: use `[u32; 2]` as the token type and pass neighbouring pairs.

// Token counts, slots and node indices are 32-bit inside; `RadixTree::insert` and `SlotAllocator::new` refuse what
// would not fit (see `MAX_TOKENS`), so the narrowing casts behind these doors cannot truncate.
#![allow(clippy::cast_possible_truncation)]

pub mod allocator;
mod arena;
pub mod cache;
mod check;
pub mod events;
#[cfg(test)]
mod naive;
mod namespace;
mod observer;
mod policy;
pub mod rows;
#[cfg(test)]
mod tests;
mod tree;

pub use allocator::SlotAllocator;
pub use cache::{RadixCache, RadixCacheConfig, RequestKv};
pub use events::{CacheEvent, EventLog};
pub use namespace::{Namespace, Namespaces};
pub use observer::TreeObserver;
pub use policy::TreePolicy;
pub use rows::{Row, RowTable};
pub use tree::{Insert, Inserted, LockReceipt, MAX_TOKENS, Match, NodeId, RadixTree};
