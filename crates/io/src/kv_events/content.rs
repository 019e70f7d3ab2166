//! What is cached, followed event by event.

use rustc_hash::{FxHashMap, FxHashSet};

use super::batch::{Batch, KvEvent};

/// Most contents remembered after they were removed, to see that they are computed again.
const MAX_REMEMBERED: usize = 1 << 20;

/// Totals since the subscription began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContentTotals {
    /// Contents that became findable.
    pub stored: u64,
    /// Contents that were removed.
    pub removed: u64,
    /// Contents stored that had been removed before: computed again because they were evicted.
    pub recomputed: u64,
    /// Times that the whole cache was cleared.
    pub cleared: u64,
    /// Batches that were published but never arrived.
    pub missed_batches: u64,
    /// Tokens of one block, as last told.
    pub block_tokens: i64,
}

/// One content that was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    /// How long it was cached; `None` if it was stored before the subscription began.
    pub lifetime_us: Option<i64>,
}

/// The cache's content in GPU memory.
#[derive(Debug, Clone, Default)]
pub struct Content {
    /// When each content was stored; several blocks may hold the same.
    cached: FxHashMap<u64, (i64, u32)>,
    gone: FxHashSet<u64>,
    /// Totals.
    pub totals: ContentTotals,
}

impl Content {
    /// Contents cached now that were stored since the subscription began.
    pub fn cached(&self) -> usize {
        self.cached.len()
    }

    /// Follows one batch; returns what was removed.
    pub fn follow(&mut self, batch: &Batch) -> Vec<Removal> {
        #[expect(clippy::cast_possible_truncation, reason = "microseconds since 1970 fit")]
        let now_us = (batch.time_s * 1e6) as i64;
        let mut removals = Vec::new();
        for event in &batch.events {
            match event {
                KvEvent::Stored {
                    blocks,
                    block_tokens,
                    on_gpu: true,
                } => {
                    self.totals.block_tokens = *block_tokens;
                    for block in blocks {
                        self.totals.stored += 1;
                        if self.gone.remove(block) {
                            self.totals.recomputed += 1;
                        }
                        self.cached.entry(*block).or_insert((now_us, 0)).1 += 1;
                    }
                }
                KvEvent::Removed { blocks, on_gpu: true } => {
                    for block in blocks {
                        self.totals.removed += 1;
                        removals.push(self.remove(*block, now_us));
                    }
                }
                KvEvent::Cleared => {
                    self.totals.cleared += 1;
                    self.cached.clear();
                    self.gone.clear();
                }
                KvEvent::Stored { .. } | KvEvent::Removed { .. } => {}
            }
        }
        removals
    }

    fn remove(&mut self, block: u64, now_us: i64) -> Removal {
        let mut lifetime_us = None;
        if let Some((since, copies)) = self.cached.get_mut(&block) {
            lifetime_us = Some(now_us - *since);
            *copies -= 1;
            if *copies > 0 {
                return Removal { lifetime_us };
            }
            self.cached.remove(&block);
        }
        // forgetting everything once in a while undercounts recomputation a little and bounds the memory
        if self.gone.len() >= MAX_REMEMBERED {
            self.gone.clear();
        }
        self.gone.insert(block);
        Removal { lifetime_us }
    }

    /// Batches were lost for good: what is cached is not known any more.
    pub fn lost(&mut self, batches: u64) {
        self.totals.missed_batches += batches;
        self.cached.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(time_s: f64, events: Vec<KvEvent>) -> Batch {
        Batch {
            time_s,
            events,
            rank: None,
            unknown: 0,
        }
    }

    fn stored(blocks: &[u64]) -> KvEvent {
        KvEvent::Stored {
            blocks: blocks.to_vec(),
            block_tokens: 16,
            on_gpu: true,
        }
    }

    fn removed(blocks: &[u64]) -> KvEvent {
        KvEvent::Removed {
            blocks: blocks.to_vec(),
            on_gpu: true,
        }
    }

    #[test]
    fn content_that_comes_back_after_its_eviction_was_recomputed() {
        let mut c = Content::default();
        c.follow(&batch(1.0, vec![stored(&[1, 2, 3])]));
        let gone = c.follow(&batch(3.5, vec![removed(&[2])]));
        assert_eq!(
            gone,
            [Removal {
                lifetime_us: Some(2_500_000)
            }]
        );
        assert_eq!(c.cached(), 2);
        c.follow(&batch(4.0, vec![stored(&[2, 4])]));
        assert_eq!(
            (c.totals.stored, c.totals.removed, c.totals.recomputed),
            (5, 1, 1)
        );
        assert_eq!(c.cached(), 4);
    }

    #[test]
    fn two_blocks_with_the_same_content_are_gone_only_together() {
        let mut c = Content::default();
        c.follow(&batch(1.0, vec![stored(&[1]), stored(&[1])]));
        c.follow(&batch(2.0, vec![removed(&[1])]));
        assert_eq!(c.cached(), 1);
        c.follow(&batch(3.0, vec![removed(&[1]), stored(&[1])]));
        assert_eq!((c.cached(), c.totals.recomputed), (1, 1));
    }

    #[test]
    fn clearing_the_cache_is_no_eviction() {
        let mut c = Content::default();
        c.follow(&batch(1.0, vec![stored(&[1]), KvEvent::Cleared, stored(&[1])]));
        assert_eq!((c.cached(), c.totals.recomputed, c.totals.cleared), (1, 0, 1));
    }

    #[test]
    fn other_tiers_do_not_count() {
        let mut c = Content::default();
        let offloaded = KvEvent::Stored {
            blocks: vec![9],
            block_tokens: 16,
            on_gpu: false,
        };
        c.follow(&batch(1.0, vec![offloaded]));
        assert_eq!((c.cached(), c.totals.stored), (0, 0));
    }
}
