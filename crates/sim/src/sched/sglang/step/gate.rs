//! Which requests a prefill batch takes in.
//!
//! SGLang 0.5.23, `sglang/srt/managers/scheduler.py` (`_get_new_batch_prefill_raw`), `schedule_policy.py`
//! (`PrefillAdder`), `mem_cache/prefill_budget.py` and `mem_cache/allocation.py` (`alloc_for_extend`).

use kvwise_cache::radix::{Namespace, RequestKv};
use kvwise_core::{Error, Result};

use super::events::runs;
use super::job::{Active, Job, LastPrefill, Pending};
use super::{SchedulePolicy, StepEvent, SteppedScheduler, fill, small};
use crate::sched::sglang::of_cache;

/// What is left for a batch.
pub(super) struct Budget {
    page: usize,
    /// Tokens that admitted and running requests will take, now and until they end.
    pub(super) total: f64,
    /// Tokens that admitted requests take now.
    current: usize,
    /// Prompt tokens that may still be started.
    input: usize,
    /// Prompt tokens that may still be computed; `None` without chunks.
    chunk: Option<usize>,
}

/// What the gate says of a request.
enum Verdict {
    /// All its missing tokens are computed.
    Whole(usize),
    /// Some of them are.
    Chunk(usize),
    /// It must wait for memory.
    NoRoom,
    /// It must wait for another batch.
    NotNow,
}

/// Whether the next candidate is looked at.
#[derive(PartialEq, Eq)]
enum State {
    Continue,
    /// No memory is left.
    NoToken,
    /// No prompt tokens are left.
    Spent,
}

impl Budget {
    fn state(&self, obtainable: usize) -> State {
        if obtainable as f64 - self.total <= 0.0 || obtainable <= self.current {
            State::NoToken
        } else if self.input == 0 || self.chunk == Some(0) {
            State::Spent
        } else {
            State::Continue
        }
    }

    /// Takes what an admitted request needs: its tokens in whole pages, a page, and its output.
    fn charge(&mut self, new: usize, output: usize) {
        let pages = new.next_multiple_of(self.page);
        self.total += (pages + self.page + output) as f64;
        self.current += pages + self.page;
        self.input = self.input.saturating_sub(pages);
        if let Some(chunk) = &mut self.chunk {
            *chunk = chunk.saturating_sub(pages);
        }
    }
}

impl SteppedScheduler<'_> {
    /// Composes a prefill batch; `None` if there is none.
    pub(super) fn prefill(&mut self) -> Result<Option<Pending>> {
        if self.running.is_empty() || self.preemption().is_some() {
            // Nobody can leave an empty batch, and only leaving clears the flag elsewhere; a full one may be preempted.
            self.full = false;
        }
        if (self.full || self.waiting.is_empty()) && self.chunked.is_none() {
            return Ok(None);
        }
        if self.allocatable(0) == 0 && self.chunked.is_none() && self.preemption().is_none() {
            self.full = true;
            return Ok(None);
        }
        self.order_waiting()?;
        let mixed = if self.config.mixed_chunk {
            self.running.len()
        } else {
            0
        };
        let expected: f64 = self
            .running
            .iter()
            .map(|&place| self.expected_tokens(place))
            .sum();
        let mut budget = Budget {
            page: self.config.page_size,
            total: mixed as f64 + expected,
            current: mixed,
            input: self.config.max_prefill_tokens.saturating_sub(mixed),
            chunk: self
                .config
                .chunked_prefill_tokens
                .map(|chunk| chunk.saturating_sub(mixed)),
        };
        // Place, and tokens to compute.
        let mut batch: Vec<(usize, usize)> = Vec::new();
        if let Some(place) = self.chunked {
            batch.push((place, self.next_chunk(place, &mut budget)));
        }
        let mut lost = Vec::new();
        self.admit(&mut budget, &mut batch, &mut lost)?;
        for job in lost {
            self.enter(job);
        }
        if batch.is_empty() {
            return Ok(None);
        }
        if let Some(a) = self.chunked.and_then(|place| self.active[place].as_mut()) {
            a.middle_chunks += 1;
        }
        self.allocate(&batch)?;
        let mut places: Vec<usize> = batch.iter().map(|b| b.0).collect();
        self.prefilled_tokens += batch.iter().map(|b| b.1 as u64).sum::<u64>();
        if self.config.mixed_chunk && !self.running.is_empty() {
            self.join_decoding(&mut places)?;
        }
        let pending = self.launch(&places, batch.len());
        self.last_prefill = Some(LastPrefill {
            places,
            chunked: self.chunked,
        });
        Ok(Some(pending))
    }

    /// Requests that a batch may hold, `held` of which have rows already.
    fn allocatable(&self, held: usize) -> usize {
        let rows = self.config.max_running.saturating_sub(self.rows) + held;
        rows.min(self.config.max_running.saturating_sub(self.running.len()))
    }

    /// The running requests decode in this prefill batch, if there is room for a token of each after its prompts.
    fn join_decoding(&mut self, places: &mut Vec<usize>) -> Result<()> {
        self.set_ending_aside();
        if self.running.is_empty() || !self.fits() {
            return Ok(());
        }
        self.take_tokens()?;
        for &place in &self.running {
            if let Some(a) = &mut self.active[place] {
                a.job.weighed.0 = a.job.known();
            }
        }
        self.prefilled_tokens += self.running.len() as u64;
        places.append(&mut self.running);
        Ok(())
    }

    /// Tokens that the prompt which is half way through computes now; it is no longer half way if they are all.
    fn next_chunk(&mut self, place: usize, budget: &mut Budget) -> usize {
        let obtainable = self.cache.obtainable_tokens() as f64;
        let Some(a) = &self.active[place] else {
            return 0;
        };
        let missing = a.job.known() - a.computed;
        let limit = budget.chunk.unwrap_or(usize::MAX);
        let memory = whole(obtainable - budget.total);
        // It must get on to release its memory, whatever the budget says.
        let limit = if memory == 0 { limit } else { limit.min(memory) };
        let limit = limit.min(self.left_by_shorter(missing, budget).unwrap_or(usize::MAX));
        let new = missing.min(limit);
        if new == missing {
            budget.charge(new, a.job.clipped());
            self.chunked = None;
        } else {
            budget.charge(new, 0);
        }
        new
    }

    /// Tokens of this batch that a long prompt may take under `shortest-prefill-first`, so that shorter ones that wait get in.
    fn left_by_shorter(&self, missing: usize, budget: &Budget) -> Option<usize> {
        let (page, chunk) = (budget.page, budget.chunk?);
        if self.config.schedule != SchedulePolicy::ShortestPrefillFirst || chunk < 2 * page {
            return None;
        }
        let mut reserved = 0;
        for job in &self.waiting {
            let work = (job.known() - job.matched).max(1);
            let charge = work.next_multiple_of(page);
            if work >= missing || reserved + charge > chunk - page {
                break;
            }
            reserved += charge;
        }
        (reserved > 0).then(|| (chunk - reserved) / page * page)
    }

    /// Takes requests from the queue as long as the gate lets them in; those that had to make room for them go to `lost`.
    fn admit(
        &mut self,
        budget: &mut Budget,
        batch: &mut Vec<(usize, usize)>,
        lost: &mut Vec<Job>,
    ) -> Result<()> {
        // Only the prompt that is half way through has a row.
        let held = batch.len();
        while let Some(mut job) = self.waiting.pop_front() {
            if budget.state(self.cache.obtainable_tokens()) == State::Spent {
                self.waiting.push_front(job);
                break;
            }
            if batch.len() >= self.allocatable(held) {
                self.full = true;
            }
            if self.full && !self.preempt_for(&job, budget, lost)? {
                self.waiting.push_front(job);
                break;
            }
            fill(self.feed.as_mut(), &mut job)?;
            let kv = self.lookup(&job)?;
            job.weighed = (job.known(), kv.prefix_len());
            let verdict = self.weigh(&job, &kv, budget, batch);
            let (new, chunked) = match verdict {
                Verdict::Whole(new) => (new, false),
                Verdict::Chunk(new) => (new, true),
                Verdict::NoRoom => {
                    self.cache.retract(kv).map_err(of_cache)?;
                    let somebody = !batch.is_empty() || !self.running.is_empty();
                    if !somebody && self.rows == 0 {
                        // Everything is free or evictable and it does not fit: it never will.
                        self.outcome.rejected.push(job.tag);
                        self.log.note(self.turn, || StepEvent::Rejected {
                            tag: job.tag,
                            too_long: false,
                        });
                        continue;
                    }
                    self.full = somebody;
                    self.waiting.push_front(job);
                    break;
                }
                Verdict::NotNow => {
                    self.cache.retract(kv).map_err(of_cache)?;
                    self.waiting.push_front(job);
                    break;
                }
            };
            let output = if chunked { 0 } else { job.clipped() };
            let place = self.take_in(job, kv, new);
            batch.push((place, new));
            if chunked {
                self.chunked = Some(place);
            }
            budget.charge(new, output);
            match budget.state(self.cache.obtainable_tokens()) {
                State::Continue => {}
                State::NoToken => {
                    self.full = true;
                    break;
                }
                State::Spent => break,
            }
        }
        Ok(())
    }

    /// What the gate makes of a request that holds the lock on its prefix.
    fn weigh(&self, job: &Job, kv: &RequestKv, budget: &Budget, batch: &[(usize, usize)]) -> Verdict {
        if self
            .config
            .prefill_max_requests
            .is_some_and(|most| batch.len() >= most)
        {
            return Verdict::NotNow;
        }
        let extend = job.known() - kv.prefix_len();
        let pages = extend.next_multiple_of(budget.page);
        let needed = (extend + job.to_come() + budget.page) as f64;
        if needed >= self.cache.obtainable_tokens() as f64 - budget.total {
            return Verdict::NoRoom;
        }
        match budget.chunk {
            // Without chunks the first request may be longer than the batch.
            None if !batch.is_empty() && pages >= budget.input => Verdict::NotNow,
            Some(limit) if pages > limit => {
                let only_one = self.config.schedule == SchedulePolicy::ShortestPrefillFirst;
                let end = kv.prefix_len() + limit / budget.page * budget.page;
                let new = (end / budget.page * budget.page).saturating_sub(kv.prefix_len());
                if new == 0 || (only_one && self.chunked.is_some()) {
                    Verdict::NotNow
                } else {
                    Verdict::Chunk(new)
                }
            }
            _ => Verdict::Whole(extend),
        }
    }

    fn lookup(&mut self, job: &Job) -> Result<RequestKv> {
        let known = job.known();
        match &job.content {
            Some(r) => self
                .cache
                .lookup(r.namespace, &r.tokens[..known.min(r.tokens.len())], r.priority),
            None => self.cache.lookup(Namespace(0), &self.blank[..known], 0),
        }
        .map_err(of_cache)
    }

    fn take_in(&mut self, job: Job, kv: RequestKv, new: usize) -> usize {
        let again = job.retractions > 0;
        let hit = kv.prefix_len();
        if !again {
            self.hit_tokens += hit as u64;
            self.query_tokens += job.known() as u64;
        }
        self.outcome.admitted.push((job.tag, small(hit), again));
        self.log.note(self.turn, || StepEvent::Admitted {
            tag: job.tag,
            hit_tokens: small(hit),
            tokens: small(job.known()),
            resumed: again,
        });
        self.admissions += 1;
        debug_assert!(new > 0, "a batch computes something of each of its requests");
        self.occupy(Active {
            job,
            serial: self.admissions,
            computed: hit,
            published: hit,
            kv: Some(kv),
            middle_chunks: 0,
            in_flight: 0,
            done: false,
            listed: true,
        })
    }

    /// Evicts for the whole batch, then gives each request its slots.
    fn allocate(&mut self, batch: &[(usize, usize)]) -> Result<()> {
        let page = self.config.page_size;
        let new: usize = batch.iter().map(|b| b.1).sum();
        for &(place, _) in batch {
            if let Some(a) = &mut self.active[place]
                && let Some(kv) = &mut a.kv
                && kv.row().is_none()
            {
                self.cache.start(kv).map_err(of_cache)?;
                self.rows += 1;
            }
        }
        self.make_room(if page == 1 { new } else { new + batch.len() * page });
        for &(place, new) in batch {
            let Some(a) = &mut self.active[place] else {
                continue;
            };
            let past = a.computed;
            a.computed = past + new;
            a.job.weighed.0 = a.job.known();
            if let Some(kv) = &mut a.kv {
                let slots = self.cache.grow(kv, past + new).map_err(|e| out_of_memory(&e))?;
                self.log.note(self.turn, || StepEvent::Prefilled {
                    tag: a.job.tag,
                    new_tokens: small(new),
                    past_tokens: small(past),
                    slots: runs(slots),
                });
            }
            self.outcome.prefills.push((a.job.tag, small(new), small(past)));
        }
        Ok(())
    }
}

/// SGLang's own end where a chunk that has to get on finds no room after all.
fn out_of_memory(error: &kvwise_cache::Error) -> Error {
    Error::unsupported(format!(
        "SGLang's scheduler stops here with \"Prefill out of memory\": {error}"
    ))
    .hint("raise the pool's tokens, or lower --chunked-prefill-size or --max-running-requests")
}

/// The number without its fraction; 0 where it is negative.
fn whole(x: f64) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "tokens of a pool, cut below at 0"
    )]
    {
        x.max(0.0) as usize
    }
}
