//! The three parts of a step: running requests, waiting ones, and what the step's computation leads to.

use kvwise_cache::manager::Allocation;

use super::config::Junctions;
use super::connector::KvConnector;
use super::loads::Asked;
use super::{Admission, BlockTables, ContentKeys, Rejection, Scheduler, SchedulerEvents, State, StepWork};

impl Scheduler {
    /// Gives every running request its tokens; returns whether one was preempted.
    pub(super) fn schedule_running<C: ContentKeys, E: SchedulerEvents>(
        &mut self,
        step: u64,
        budget: &mut u32,
        content: &mut C,
        events: &mut E,
    ) -> bool {
        let mut preempted = false;
        (self.batch_runs, self.batch_prefills) = (false, false);
        let places = self.draft_places();
        let mut i = 0;
        // With a token for everyone and no chunk under way, only due requests need to be visited.
        let sweep = self.num_prefilling == 0 && self.running.len() <= *budget as usize;
        if sweep {
            *budget -= self.running.len() as u32;
            i = next_due(&self.due, 0, self.tick);
        }
        while i < self.running.len() && (sweep || *budget > places) {
            if self.due[i] != self.tick {
                *budget -= 1;
                i += 1;
                continue;
            }
            let r = self.running[i];
            let tokens = self.wanted_tokens(r, if sweep { u32::MAX } else { *budget - places });
            if tokens == 0 {
                self.requests[r as usize].scheduled = 0;
                i += 1;
                continue;
            }
            let mut granted = false;
            loop {
                if self.allocate_running(r, tokens, content) {
                    granted = true;
                    break;
                }
                self.report_evictions(step, events);
                let victim = self.victim();
                let v = self.running.remove(victim);
                self.due.remove(victim);
                if victim < i {
                    i -= 1;
                    let returned = self.requests[v as usize].scheduled;
                    if !sweep && returned > 0 {
                        *budget += returned + places;
                    }
                }
                self.preempt(step, v, events);
                preempted = true;
                if v == r {
                    break;
                }
            }
            self.report_evictions(step, events);
            if !granted {
                break;
            }
            let request = &mut self.requests[r as usize];
            request.scheduled = tokens;
            self.batch_runs = true;
            self.batch_prefills |= !request.drafting;
            if sweep {
                i = next_due(&self.due, i + 1, self.tick);
            } else {
                *budget -= tokens + places;
                i += 1;
            }
        }
        if i < self.running.len() {
            self.delay_from(i);
        }
        preempted
    }

    /// Requests from position `i` on got nothing in this step: their next event is a step later.
    pub(super) fn delay_from(&mut self, i: usize) {
        for (&r, due) in self.running[i..].iter().zip(&mut self.due[i..]) {
            let request = &mut self.requests[r as usize];
            request.scheduled = 0;
            request.offset -= 1;
            *due += 1;
        }
    }

    /// Whether request `r` would bring one adapter more into the batch than fit; those behind it go on.
    fn adapter_must_wait(&self, r: u32) -> bool {
        let Some(most) = self.config.max_loras else {
            return false;
        };
        let lora = self.requests[r as usize].lora;
        if lora == 0 {
            return false;
        }
        let mut present: Vec<u32> = Vec::with_capacity(most as usize);
        for &running in &self.running {
            let other = self.requests[running as usize].lora;
            if other == lora {
                return false;
            }
            if other != 0 && !present.contains(&other) {
                present.push(other);
            }
        }
        present.len() >= most as usize
    }

    /// Admits waiting requests until the first that does not fit.
    pub(super) fn admit_waiting<C: ContentKeys, E: SchedulerEvents, K: KvConnector>(
        &mut self,
        step: u64,
        budget: &mut u32,
        content: &mut C,
        events: &mut E,
        connector: &mut K,
    ) {
        if K::ENABLED || self.config.max_loras.is_some() {
            self.requeue_deferred();
        }
        if K::ENABLED && !self.admit_loaded(step, budget, content, events, connector) {
            return;
        }
        let places = self.draft_places();
        while *budget > places && self.running.len() < self.config.max_num_seqs as usize {
            let Some(r) = self.waiting.first() else {
                break;
            };
            if self.adapter_must_wait(r) {
                self.waiting.pop_first();
                self.deferred.push(r);
                continue;
            }
            let attempt = (r, self.manager.pool().version(), *budget);
            if self.refused == Some(attempt) {
                break;
            }
            if !self.running.is_empty() && self.still_short(r) {
                self.refused = Some(attempt);
                break;
            }
            let request = &mut self.requests[r as usize];
            if request.slot.is_none() {
                request.slot = Some(self.manager.open());
                request.keys = self.spare_keys.pop().unwrap_or_default();
            }
            if self.config.prefix_caching {
                content.extend(request.tag, request.known, &mut request.keys);
            }
            self.manager.lookup(&request.keys, request.known, &mut self.hit);
            request.boundary = match self.config.junctions {
                Junctions::Ignored => 0,
                Junctions::EndChunks | Junctions::Retained => self.hit.shared_prefix_boundary,
            };
            if K::ENABLED {
                match self.ask_connector(step, r, content, events, connector) {
                    Asked::Gone => continue,
                    Asked::Stuck => {
                        self.refused = Some(attempt);
                        break;
                    }
                    Asked::Local => {}
                }
            }
            let hit_tokens = self.hit.num_tokens;
            let known = self.requests[r as usize].known;
            let room = *budget - places;
            let alone = self.running.is_empty();
            let Some(wanted) = self.padded_tokens(hit_tokens, known - hit_tokens, room) else {
                if alone && self.nobody_else_holds_blocks() {
                    self.waiting.pop_first();
                    self.forget(step, r, Rejection::BatchTooSmall, content, events);
                    continue;
                }
                break;
            };
            let mut tokens = wanted.min(room);
            let mut padded = wanted > known - hit_tokens;
            if let Some(align) = &self.mamba {
                tokens = self.mamba_chunk(align, &self.requests[r as usize], hit_tokens, tokens, room);
                // empty drafts that a chunk's end would cut are all left out
                if padded && tokens > 0 && tokens < wanted {
                    (tokens, padded) = (1, false);
                }
            }
            let lookahead_tokens = self.lookahead_tokens();
            let request = &self.requests[r as usize];
            let granted = tokens > 0
                && self.manager.allocate(
                    request.slot(),
                    &Allocation {
                        num_prompt_tokens: request.prompt,
                        shared_prefix_boundary: self.config.retained_junction(request.boundary),
                        full_sequence_must_fit: self.config.reserve_full_isl,
                        apply_watermark: !alone,
                        lookahead_tokens,
                        ..Allocation::new(&request.keys, 0, tokens, request.known)
                    },
                    Some(&self.hit),
                );
            if !granted {
                if alone && self.nobody_else_holds_blocks() {
                    // Every block is free and it does not fit: it never will.
                    self.waiting.pop_first();
                    self.forget(step, r, Rejection::TooManyBlocks, content, events);
                    continue;
                }
                // A state written in this step is readable in the next, without any change of the pool.
                self.refused = self.mamba.is_none().then_some(attempt);
                self.note_shortage(r);
                break;
            }
            self.report_evictions(step, events);
            let request = &mut self.requests[r as usize];
            let admission = Admission {
                tag: request.tag,
                hit_tokens,
                num_tokens: request.known,
                resumed: request.preemptions > 0,
            };
            if !admission.resumed {
                self.totals.hit_tokens += u64::from(hit_tokens);
                self.totals.query_tokens += u64::from(request.known);
            }
            request.state = State::Running;
            request.computed = hit_tokens;
            request.scheduled = tokens;
            request.padded = padded;
            let tables = BlockTables {
                manager: &self.manager,
                slot: request.slot(),
            };
            events.admitted(step, &admission, &tables);
            self.waiting.pop_first();
            self.shortage = None;
            self.running.push(r);
            self.due.push(self.tick);
            self.num_prefilling += 1;
            *budget -= tokens + places;
        }
    }

    /// Advances computed tokens, gives finished prompts and decoding requests their next token, ends requests.
    pub(super) fn settle<C: ContentKeys, E: SchedulerEvents, K: KvConnector>(
        &mut self,
        step: u64,
        content: &mut C,
        events: &mut E,
        connector: &mut K,
    ) -> StepWork {
        let mut ended = false;
        let mut work = StepWork {
            decode_requests: self.running.len() as u32,
            ..StepWork::default()
        };
        let proposed = self.proposed_drafts();
        let mut i = next_due(&self.due, 0, self.tick);
        while i < self.running.len() {
            let r = self.running[i] as usize;
            let request = &mut self.requests[r];
            if let Some(speculation) = &self.config.speculation
                && request.scheduled > 0
                && request.computed + request.scheduled >= request.known
            {
                if !request.drafting {
                    work.decode_requests -= 1;
                    work.prefill_tokens += request.scheduled;
                    events.prefilled(step, request.tag, request.scheduled, request.computed, true);
                }
                speculation.verify(request, proposed);
                if K::ENABLED {
                    connector.computed(request.tag, &request.keys, request.computed);
                }
                if request.known >= request.limit {
                    ended = true;
                    self.num_prefilling -= 1;
                    self.finish(step, r as u32, content, events, connector);
                } else {
                    self.due[i] = self.tick + 1;
                }
                i = next_due(&self.due, i + 1, self.tick);
                continue;
            }
            if request.decoding {
                request.computed += 1;
                request.known = request.computed + 1;
            } else {
                work.decode_requests -= 1;
                work.prefill_tokens += request.scheduled;
                let past = request.computed;
                request.computed += request.scheduled;
                let done = request.computed >= request.known;
                events.prefilled(step, request.tag, request.scheduled, past, done);
            }
            if K::ENABLED {
                connector.computed(request.tag, &request.keys, request.computed);
            }
            if !request.decoding && request.computed < request.known {
                let room = self.config.max_model_len - request.computed;
                if room <= 1 && request.scheduled == 0 {
                    // The last token of a prompt as long as the longest sequence never gets its turn.
                    request.state = State::Done;
                    self.num_prefilling -= 1;
                    ended = true;
                    self.totals.rejected += 1;
                    events.rejected(step, request.tag, Rejection::TooLong);
                    self.retire(r as u32, content);
                } else {
                    self.due[i] = self.tick + 1;
                }
            } else {
                let first = !request.decoding;
                if first {
                    request.decoding = true;
                    self.num_prefilling -= 1;
                    request.known += 1;
                }
                if request.known >= request.limit {
                    ended = true;
                    self.finish(step, r as u32, content, events, connector);
                } else {
                    let computed = request.computed;
                    request.offset = i64::from(computed) - (i64::from(self.tick) + 1);
                    let last = request.limit - 2;
                    // The first step after a prefill gives back what the whole chunk left behind its windows.
                    let next = if first {
                        computed
                    } else {
                        self.manager.next_decode_event(computed).min(last)
                    };
                    self.due[i] = self.tick + 1 + (next - computed);
                }
            }
            i = next_due(&self.due, i + 1, self.tick);
        }
        if ended {
            let requests = &self.requests;
            let mut kept = 0;
            for i in 0..self.running.len() {
                if requests[self.running[i] as usize].state == State::Running {
                    self.running[kept] = self.running[i];
                    self.due[kept] = self.due[i];
                    kept += 1;
                } else {
                    self.unused.push(self.running[i]);
                }
            }
            self.running.truncate(kept);
            self.due.truncate(kept);
        }
        self.tick += 1;
        work
    }
}

/// The first position from `from` on whose request is due at `tick`; the length if there is none.
#[inline]
fn next_due(due: &[u32], from: usize, tick: u32) -> usize {
    let mut at = from.min(due.len());
    // Sixteen at a time without early exit, so that the comparison is vectorised.
    while at + 16 <= due.len() {
        let mut any = false;
        for &d in &due[at..at + 16] {
            any |= d == tick;
        }
        if any {
            break;
        }
        at += 16;
    }
    while at < due.len() && due[at] != tick {
        at += 1;
    }
    at
}
