//! What a launched batch comes to: tokens, publications, and memory given back.
//!
//! SGLang 0.5.23, `sglang/srt/managers/scheduler_components/batch_result_processor.py` and `mem_cache/common.py`.

use kvwise_core::Result;

use super::{Pending, Side, SteppedScheduler, small};
use crate::sched::sglang::of_cache;

impl SteppedScheduler<'_> {
    /// A batch is launched: its requests get a token, and those that get their last one are done.
    pub(super) fn launch(&mut self, prefill: bool, places: &[usize]) -> Pending {
        let lags = self.lags();
        let mut batch = Vec::with_capacity(places.len());
        for &place in places {
            let Some(a) = &mut self.active[place] else {
                continue;
            };
            batch.push((place, a.serial));
            let sends = prefill && self.config.side == Side::Prefill;
            if prefill && a.middle_chunks > 0 && Some(place) == self.chunked {
                if sends {
                    // A page that is not full goes with the next chunk.
                    let page = self.config.page_size;
                    self.outcome
                        .sent
                        .push((a.job.tag, small(a.computed / page * page), false));
                }
                continue;
            }
            if sends {
                self.outcome.sent.push((a.job.tag, small(a.computed), true));
            }
            let produced = a.job.generated + a.in_flight + 1;
            a.in_flight += 1;
            if prefill {
                self.outcome.first_tokens.push(a.job.tag);
            }
            if produced >= a.job.output && !a.done && !lags {
                a.done = true;
                self.done += 1;
                self.outcome
                    .finished
                    .push((a.job.tag, small(produced), a.job.retractions));
            }
        }
        Pending { prefill, batch }
    }

    /// The results of a batch are known.
    pub(super) fn process(&mut self, pending: Pending) -> Result<()> {
        let Pending { prefill, batch } = pending;
        let lags = self.lags();
        for (place, serial) in batch {
            let Some(a) = self.active[place].as_mut().filter(|a| a.serial == serial) else {
                continue;
            };
            if lags && a.done {
                // The step in vain.
                continue;
            }
            if prefill && a.middle_chunks > 0 {
                a.middle_chunks -= 1;
                continue;
            }
            a.job.generated += 1;
            a.in_flight -= 1;
            if a.job.generated < a.job.output {
                if prefill {
                    let up_to = a.computed;
                    self.publish(place, up_to)?;
                }
                continue;
            }
            if self.config.side == Side::Prefill {
                self.hold(place)?;
                continue;
            }
            let listed = a.listed;
            if lags {
                a.done = true;
                self.done += 1;
                self.outcome
                    .ended
                    .push((a.job.tag, small(a.job.generated), a.job.retractions));
            }
            self.release_place(place)?;
            if !listed {
                self.vacate(place);
            }
        }
        Ok(())
    }

    /// Publishes what a request that ended has, and gives its memory back.
    pub(super) fn release_place(&mut self, place: usize) -> Result<()> {
        self.unblock();
        let Some(a) = &mut self.active[place] else {
            return Ok(());
        };
        // The place stays taken until its lists have let go of it.
        let Some(kv) = a.kv.take() else {
            return Ok(());
        };
        self.rows -= 1;
        let owned = kv.owned_len();
        match &a.job.content {
            Some(r) => self.cache.finish(kv, &r.tokens[..owned], a.job.prompt.min(owned)),
            None => self.cache.retract(kv),
        }
        .map_err(of_cache)
    }

    pub(super) fn publish(&mut self, place: usize, up_to: usize) -> Result<()> {
        let Some(a) = &mut self.active[place] else {
            return Ok(());
        };
        match (&a.job.content, &mut a.kv) {
            (Some(r), Some(kv)) => self
                .cache
                .checkpoint(kv, &r.tokens[..up_to], a.job.prompt.min(up_to))
                .map_err(of_cache),
            _ => Ok(()),
        }
    }

    /// Publishes the chunk that a prompt has computed, once.
    pub(super) fn publish_chunk(&mut self, place: usize) -> Result<()> {
        let Some(a) = &mut self.active[place] else {
            return Ok(());
        };
        let up_to = a.computed;
        if up_to > a.published {
            a.published = up_to;
            self.publish(place, up_to)?;
        }
        Ok(())
    }
}
