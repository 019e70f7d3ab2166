//! SGLang's radix cache.

// Token counts, slots and node indices are 32-bit inside; `RadixTree::insert` and `SlotAllocator::new` refuse what
// would not fit (see `MAX_TOKENS`), so the narrowing casts behind these doors cannot truncate.
#![allow(clippy::cast_possible_truncation)]

pub mod allocator;
mod arena;
pub mod cache;
mod check;
#[cfg(test)]
mod naive;
mod namespace;
mod policy;
pub mod rows;
#[cfg(test)]
mod tests;
mod tree;

pub use allocator::SlotAllocator;
pub use cache::{RadixCache, RadixCacheConfig, RequestKv};
pub use namespace::{Namespace, Namespaces};
pub use policy::TreePolicy;
pub use rows::{Row, RowTable};
pub use tree::{Insert, Inserted, LockReceipt, MAX_TOKENS, Match, NodeId, RadixTree};
