//! Eviction policies behind one seam, for caches of equal-sized entries: blocks of a pool, nodes of a tier.
//!
//! ```
//! use kvwise_cache::policy::{Access, Capacity, EvictionPolicy, PolicyCache, Sieve};
//!
//! let mut cache: PolicyCache<Sieve> = PolicyCache::new(Capacity::new(2)?, ());
//! let mut hits = Vec::new();
//! for (time, key) in [7, 8, 7, 9, 7].into_iter().enumerate() {
//!     hits.push(cache.access(&Access::new(key, time as u64)).hit);
//! }
//! assert_eq!(hits, [false, false, true, false, true]); // 9 replaced 8: 7 had been visited
//! # Ok::<(), kvwise_cache::Error>(())
//! ```
//!
//! A policy knows entries as numbers below the capacity and decides only which goes first. The caller owns the
//! entries: an engine that must not evict a block in use calls [`EvictionPolicy::on_remove`] while it is in use and
//! [`EvictionPolicy::on_insert`] when it is released. Everything is monomorphised; nothing allocates in steady state but
//! the ghost tables of S3-FIFO and ARC, which are sized at construction; time is the caller's counter.
//!
//! | policy | source | cost of a hit, of a victim |
//! |---|---|---|
//! | [`Lru`], [`Fifo`] | folklore | O(1), O(1) |
//! | [`Slru`] | Karedla, Love, Wherry: Caching strategies to improve disk system performance, IEEE Computer 27(3), 1994 | O(1), O(1) |
//! | [`S3Fifo`] | Yang, Zhang, Qiu, Yue, Vinayak: FIFO queues are all you need for cache eviction, SOSP 2023, algorithm 1 | O(1), amortised O(1) |
//! | [`Sieve`] | Zhang, Yang, Yue, Vigfusson, Vinayak: SIEVE is simpler than LRU, NSDI 2024, algorithm 1 | O(1), amortised O(1) |
//! | [`Arc`] | Megiddo, Modha: ARC, a self-tuning low overhead replacement cache, FAST 2003, figure 4 | O(1), O(1) |
//! | [`Lfu`] | frequency while resident, ties least recently used | amortised O(log n) |
//! | [`Priority`] | lowest priority, then least recently used | amortised O(log n) |
//! | [`Ttl`] | earliest expiry, then least recently used | amortised O(log n) |
//! | [`Belady`] | Belady: A study of replacement algorithms for a virtual-storage computer, IBM Systems Journal 5(2), 1966 | amortised O(log n) |

// Entries are below a capacity that `Capacity::new` keeps under 2^31.
#![allow(clippy::cast_possible_truncation)]

mod arc;
mod cache;
mod ghost;
mod list;
mod queues;
mod ranked;
mod s3fifo;
mod sieve;
mod slru;
#[cfg(test)]
mod tests;

pub use arc::Arc;
pub use cache::{AccessOutcome, PolicyCache};
pub use queues::{Fifo, Lru};
pub use ranked::{Belady, Lfu, Priority, Ttl};
pub use s3fifo::S3Fifo;
pub use sieve::Sieve;
pub use slru::{Slru, SlruConfig};

use crate::error::{Error, Result};

/// How many entries a cache has room for: 1 to 2^31 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity(u32);

impl Capacity {
    /// A capacity of `entries`.
    ///
    /// # Errors
    /// If it is 0 or 2^31 or more.
    pub fn new(entries: usize) -> Result<Self> {
        match u32::try_from(entries) {
            Ok(entries) if entries > 0 && entries < 1 << 31 => Ok(Self(entries)),
            _ => Err(Error::invalid(format!(
                "capacity is {entries} entries, expected 1 to 2^31 - 1"
            ))),
        }
    }

    /// As a count.
    pub fn get(self) -> usize {
        self.0 as usize
    }
}

/// One access, with everything that some policy looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// What is accessed; policies with ghosts recognise keys that were evicted lately.
    pub key: u64,
    /// The caller's clock; never goes back.
    pub now: u64,
    /// When this key is accessed next, `u64::MAX` for never ([`Belady`] alone).
    pub next_use: u64,
    /// Priority ([`Priority`] alone).
    pub priority: i64,
    /// When the entry expires ([`Ttl`] alone).
    pub expires: u64,
}

impl Access {
    /// An access without knowledge of the future, priority or expiry.
    pub fn new(key: u64, now: u64) -> Self {
        Self {
            key,
            now,
            next_use: u64::MAX,
            priority: 0,
            expires: u64::MAX,
        }
    }
}

/// Decides which entry goes first.
///
/// Contract: an entry is a number below the capacity. `on_hit` and `on_remove` are called for entries the policy
/// holds, `on_insert` for entries it does not hold; breaking this panics or gives a wrong order, never undefined
/// behaviour. A miss in a full cache is `pop_victim` with the incoming access, then `on_insert` with the same.
pub trait EvictionPolicy {
    /// What can be tuned.
    type Config;

    /// A policy holding nothing.
    fn new(capacity: Capacity, config: Self::Config) -> Self;

    /// An entry was filled with the key of `access`.
    fn on_insert(&mut self, entry: u32, access: &Access);

    /// An entry was used.
    fn on_hit(&mut self, entry: u32, access: &Access);

    /// An entry was taken out by the caller (in use, invalidated); it leaves no ghost.
    fn on_remove(&mut self, entry: u32);

    /// Chooses the entry that has to go for `incoming` and forgets it; `None` if the policy holds none.
    fn pop_victim(&mut self, incoming: &Access) -> Option<u32>;
}
