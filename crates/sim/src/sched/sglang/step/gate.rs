//! Which requests a prefill batch takes in.
//!
//! SGLang 0.5.23, `sglang/srt/managers/scheduler.py` (`_get_new_batch_prefill_raw`), `schedule_policy.py`
//! (`PrefillAdder`), `mem_cache/prefill_budget.py` and `mem_cache/allocation.py` (`alloc_for_extend`).

use kvwise_cache::radix::{Namespace, RequestKv};
use kvwise_core::Result;

use super::{Active, Job, LastPrefill, Pending, SteppedScheduler, fill, small};
use crate::sched::sglang::{CLIP_MAX_NEW_TOKENS, of_cache};

/// What is left for a batch.
struct Budget {
    page: usize,
    /// Tokens that admitted and running requests will take, now and until they end.
    total: f64,
    /// Tokens that admitted requests take now.
    current: usize,
    /// Prompt tokens that may still be started.
    input: usize,
    /// Prompt tokens that may still be computed; `None` without chunks.
    chunk: Option<usize>,
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
        if self.running.is_empty() {
            // Nobody can leave an empty batch, and only leaving clears the flag elsewhere.
            self.full = false;
        }
        if (self.full || self.waiting.is_empty()) && self.chunked.is_none() {
            return Ok(None);
        }
        let rows_free = self.config.max_running.saturating_sub(self.rows);
        let allocatable = self.config.max_running.saturating_sub(self.running.len());
        if rows_free.min(allocatable) == 0 && self.chunked.is_none() {
            self.full = true;
            return Ok(None);
        }
        self.order_waiting()?;
        let mut budget = Budget {
            page: self.config.page_size,
            total: self
                .running
                .iter()
                .filter_map(|&place| self.active[place].as_ref())
                .map(|a| a.job.to_come() as f64 * self.ratio)
                .sum(),
            current: 0,
            input: self.config.max_prefill_tokens,
            chunk: self.config.chunked_prefill_tokens,
        };
        // Place, and tokens to compute.
        let mut batch: Vec<(usize, usize)> = Vec::new();
        if let Some(place) = self.chunked {
            batch.push((place, self.next_chunk(place, &mut budget)));
        }
        let held = batch.len();
        self.admit(&mut budget, &mut batch, (rows_free + held).min(allocatable))?;
        if batch.is_empty() {
            return Ok(None);
        }
        if let Some(a) = self.chunked.and_then(|place| self.active[place].as_mut()) {
            a.middle_chunks += 1;
        }
        self.allocate(&batch)?;
        let places: Vec<usize> = batch.iter().map(|b| b.0).collect();
        let pending = self.launch(true, &places);
        self.last_prefill = Some(LastPrefill {
            places,
            chunked: self.chunked,
        });
        Ok(Some(pending))
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
        let new = missing.min(limit);
        if new == missing {
            budget.charge(new, a.job.output.min(CLIP_MAX_NEW_TOKENS));
            self.chunked = None;
        } else {
            budget.charge(new, 0);
        }
        new
    }

    /// Takes requests from the queue as long as the gate lets them in.
    fn admit(
        &mut self,
        budget: &mut Budget,
        batch: &mut Vec<(usize, usize)>,
        allocatable: usize,
    ) -> Result<()> {
        while let Some(mut job) = self.waiting.pop_front() {
            if budget.state(self.cache.obtainable_tokens()) == State::Spent {
                self.waiting.push_front(job);
                break;
            }
            if batch.len() >= allocatable {
                self.full = true;
            }
            if self.full {
                self.waiting.push_front(job);
                break;
            }
            fill(self.feed.as_mut(), &mut job)?;
            let kv = self.lookup(&job)?;
            let extend = job.known() - kv.prefix_len();
            let pages = extend.next_multiple_of(budget.page);
            let needed = (extend + job.to_come() + budget.page) as f64;
            if needed >= self.cache.obtainable_tokens() as f64 - budget.total {
                self.cache.retract(kv).map_err(of_cache)?;
                let somebody = !batch.is_empty() || !self.running.is_empty();
                if !somebody && self.rows == 0 {
                    // Everything is free or evictable and it does not fit: it never will.
                    self.outcome.rejected.push(job.tag);
                    continue;
                }
                self.full = somebody;
                self.waiting.push_front(job);
                break;
            }
            let refused = match budget.chunk {
                // Without chunks the first request may be longer than the batch.
                None => !batch.is_empty() && pages >= budget.input,
                Some(_) => false,
            };
            let cut = budget.chunk.filter(|&limit| pages > limit).map(|limit| {
                let end = kv.prefix_len() + limit / budget.page * budget.page;
                (end / budget.page * budget.page).saturating_sub(kv.prefix_len())
            });
            if refused || cut == Some(0) {
                self.cache.retract(kv).map_err(of_cache)?;
                self.waiting.push_front(job);
                break;
            }
            let new = cut.unwrap_or(extend);
            let output = job.output.min(CLIP_MAX_NEW_TOKENS);
            let place = self.take_in(job, kv, new);
            batch.push((place, new));
            if cut.is_some() {
                self.chunked = Some(place);
                budget.charge(new, 0);
            } else {
                budget.charge(new, output);
            }
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
        self.cache
            .make_room(if page == 1 { new } else { new + batch.len() * page }, |_| {});
        for &(place, new) in batch {
            let Some(a) = &mut self.active[place] else {
                continue;
            };
            let past = a.computed;
            a.computed = past + new;
            if let Some(kv) = &mut a.kv {
                self.cache.grow(kv, past + new).map_err(of_cache)?;
            }
            self.outcome.prefills.push((a.job.tag, small(new), small(past)));
        }
        Ok(())
    }
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
