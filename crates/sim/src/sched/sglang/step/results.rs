//! What becomes of a batch: it is launched, its results get known, memory is published and given back.
//!
//! SGLang 0.5.23, `sglang/srt/managers/scheduler.py` (`get_next_batch_to_run`, the merge at its beginning),
//! `scheduler_components/batch_result_processor.py` and `mem_cache/common.py` (`checkpoint_kv_cache`, `release_kv_cache`).

use kvwise_cache::radix::RequestKv;
use kvwise_core::Result;

use super::events::runs;
use super::job::{Active, InFlight, Pending};
use super::{Side, StepEvent, SteppedScheduler, small};
use crate::sched::sglang::of_cache;

impl SteppedScheduler<'_> {
    /// What was computed last joins the running requests, and what has ended leaves.
    pub(super) fn merge(&mut self) -> Result<()> {
        if let Some(place) = self.chunked {
            self.publish_chunk(place)?;
        }
        if self.config.side == Side::Prefill {
            // Nobody runs here after the prompt.
            self.last_prefill = None;
            self.full = false;
            return Ok(());
        }
        if let Some(last) = self.last_prefill.take() {
            let before = last.places.len();
            let mut kept = Vec::with_capacity(before);
            for place in last.places {
                if Some(place) == self.chunked || Some(place) == last.chunked {
                    continue;
                }
                if self.has_ended(place) {
                    self.vacate(place);
                } else {
                    kept.push(place);
                }
            }
            if kept.len() < before {
                self.full = false;
            }
            if self.running.is_empty() && !kept.is_empty() {
                // The batch takes the place of the empty one, and was never full itself.
                self.full = false;
            }
            self.running.append(&mut kept);
        }
        let before = self.running.len();
        for place in std::mem::take(&mut self.running) {
            if self.has_ended(place) {
                self.vacate(place);
            } else {
                self.running.push(place);
            }
        }
        if self.running.len() < before {
            self.full = false;
        }
        Ok(())
    }

    /// Whether the request is known to have all its tokens.
    fn has_ended(&self, place: usize) -> bool {
        self.active[place]
            .as_ref()
            .is_none_or(|a| a.job.generated >= a.job.output())
    }

    pub(super) fn occupy(&mut self, active: Active) -> usize {
        if let Some(place) = self.vacant.pop() {
            self.active[place] = Some(active);
            place
        } else {
            self.active.push(Some(active));
            self.active.len() - 1
        }
    }

    /// Frees a place whose memory is released.
    pub(super) fn vacate(&mut self, place: usize) -> Option<Active> {
        let active = self.active[place].take();
        // One less is promised anything.
        self.unblock();
        if let Some(a) = &active {
            self.vacant.push(place);
            self.done -= usize::from(a.done);
        }
        active
    }

    /// A batch is launched, the first `prefills` of its requests with their prompts: its requests get a token, and those that
    /// get their last one are done.
    pub(super) fn launch(&mut self, places: &[usize], prefills: usize) -> Pending {
        let lags = self.lags();
        let mut batch = Vec::with_capacity(places.len());
        for (row, &place) in places.iter().enumerate() {
            let Some(a) = &mut self.active[place] else {
                continue;
            };
            let prefill = row < prefills;
            batch.push(InFlight {
                place,
                serial: a.serial,
                prefill,
            });
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
            if produced >= a.job.output() && !a.done && !lags {
                a.done = true;
                self.done += 1;
                self.outcome
                    .finished
                    .push((a.job.tag, small(produced), a.job.retractions));
            }
        }
        Pending {
            prefill: prefills > 0,
            batch,
        }
    }

    /// The results of a batch are known.
    pub(super) fn process(&mut self, pending: Pending) -> Result<()> {
        let lags = self.lags();
        for InFlight {
            place,
            serial,
            prefill,
        } in pending.batch
        {
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
            if a.job.generated < a.job.output() {
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
        self.generated_tokens += a.job.generated as u64;
        let slots = self.log.kept.then(|| slots_of(&self.cache, &kv)).transpose()?;
        self.log.note(self.turn, || StepEvent::Finished {
            tag: a.job.tag,
            generated: small(a.job.generated),
            retractions: a.job.retractions,
            slots: slots.map_or_else(Vec::new, runs),
        });
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
    fn publish_chunk(&mut self, place: usize) -> Result<()> {
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

/// The slots of a request's tokens.
fn slots_of<'c>(cache: &'c kvwise_cache::radix::RadixCache<i64>, kv: &RequestKv) -> Result<&'c [u32]> {
    let Some(row) = kv.row() else {
        return Ok(&[]);
    };
    let slots = cache.rows().get(row).map_err(of_cache)?;
    Ok(&slots[..kv.owned_len()])
}
