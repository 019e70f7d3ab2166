//! A buddy allocator over token slots, as the PagedAttention paper assumes for servers without paging.

/// Chunks are powers of two of slots up to `largest`; a pool that is no multiple of `largest` ends in smaller chunks.
#[derive(Debug, Clone)]
pub struct BuddyAllocator {
    /// Free chunk starts by order, each list sorted descending so that the lowest is popped.
    free: Vec<Vec<u64>>,
    capacity: u64,
}

impl BuddyAllocator {
    /// A pool of `capacity` slots with chunks of up to `largest` slots, a power of two.
    ///
    /// # Panics
    /// If `largest` is not a power of two.
    pub fn new(capacity: u64, largest: u64) -> Self {
        assert!(largest.is_power_of_two(), "the largest chunk is a power of two");
        let top = largest.trailing_zeros() as usize;
        let mut free = vec![Vec::new(); top + 1];
        let mut start = 0;
        for order in (0..=top).rev() {
            while capacity - start >= 1 << order {
                free[order].push(start);
                start += 1 << order;
            }
        }
        for list in &mut free {
            list.reverse();
        }
        Self { free, capacity }
    }

    /// Slots of the pool.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The chunk that a request for `slots` gets: its size, the next power of two.
    fn order_of(slots: u64) -> usize {
        slots.max(1).next_power_of_two().trailing_zeros() as usize
    }

    /// Takes a chunk for `slots`, splitting a larger one if need be; `None` if there is none.
    pub fn alloc(&mut self, slots: u64) -> Option<u64> {
        let order = Self::order_of(slots);
        let from = (order..self.free.len()).find(|&o| !self.free[o].is_empty())?;
        let start = self.free[from].pop()?;
        for split in (order..from).rev() {
            self.give(split, start + (1 << split));
        }
        Some(start)
    }

    /// Gives the chunk of a request for `slots` back and merges it with free buddies.
    pub fn free(&mut self, mut start: u64, slots: u64) {
        let mut order = Self::order_of(slots);
        while order + 1 < self.free.len() {
            let buddy = start ^ (1 << order);
            let Some(at) = self.free[order].iter().position(|&s| s == buddy) else {
                break;
            };
            self.free[order].remove(at);
            start = start.min(buddy);
            order += 1;
        }
        self.give(order, start);
    }

    /// Free slots, in chunks of whatever size.
    pub fn available(&self) -> u64 {
        self.free
            .iter()
            .enumerate()
            .map(|(order, list)| (list.len() as u64) << order)
            .sum()
    }

    fn give(&mut self, order: usize, start: u64) {
        let list = &mut self.free[order];
        let at = list.partition_point(|&s| s > start);
        list.insert(at, start);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pool_that_is_no_power_of_two_ends_in_smaller_chunks() {
        let mut pool = BuddyAllocator::new(11, 8);
        assert_eq!(pool.available(), 11);
        assert_eq!(pool.alloc(5), Some(0)); // 8 slots
        assert_eq!(pool.alloc(3), None); // 2 and 1 are left
        assert_eq!(pool.alloc(2), Some(8));
        pool.free(0, 5);
        assert_eq!(pool.alloc(8), Some(0));
    }

    proptest! {
        /// Property: chunks never overlap, and when all are back the pool is as it was.
        #[test]
        fn chunks_never_overlap_and_merge_back(
            capacity in 1u64..200,
            steps in prop::collection::vec((any::<bool>(), 1u64..40), 1..60),
        ) {
            let mut pool = BuddyAllocator::new(capacity, 64);
            let fresh = pool.free.clone();
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (take, n) in steps {
                if take {
                    if let Some(start) = pool.alloc(n) {
                        let end = start + n.next_power_of_two();
                        prop_assert!(end <= capacity);
                        prop_assert!(held.iter().all(|&(s, m)| end <= s || s + m.next_power_of_two() <= start));
                        held.push((start, n));
                    }
                } else if !held.is_empty() {
                    let (start, n) = held.swap_remove(usize::try_from(n).unwrap() % held.len());
                    pool.free(start, n);
                }
                let taken: u64 = held.iter().map(|h| h.1.next_power_of_two()).sum();
                prop_assert_eq!(pool.available(), capacity - taken);
            }
            for (start, n) in held {
                pool.free(start, n);
            }
            prop_assert_eq!(pool.free, fresh);
        }
    }
}
