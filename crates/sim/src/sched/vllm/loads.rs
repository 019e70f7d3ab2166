//! Requests whose keys and values are on their way: blocks are reserved, nothing is computed until they are there.

use kvwise_cache::manager::Allocation;
use kvwise_cache::pool::NULL_BLOCK;

use super::connector::{KvConnector, Load, Matched, Query};
use super::{Admission, BlockTables, ContentKeys, Rejection, Scheduler, SchedulerEvents, State};

/// What became of the request at the head of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// It left the queue: it loads, waits for its connector, or can never run.
    Gone,
    /// There is no room for what it would load: nobody behind it is tried.
    Stuck,
    /// Nothing to load: it is admitted as ever.
    Local,
}

impl Scheduler {
    /// Something that a connector does on its own is over: the next step must look at the requests that wait for it.
    pub fn wake(&mut self) {
        self.woken = true;
        self.refused = None;
    }

    /// Gives back the blocks of a finished request that its connector kept; nothing happens if there are none.
    pub fn release_held(&mut self, tag: u32) {
        if let Some(slot) = self.held.remove(&tag) {
            self.manager.close(slot);
            self.wake();
        }
    }

    /// Whether a request waits for its connector: it loads, or was told to ask again.
    pub fn waits_for_connector(&self) -> bool {
        !self.loading.is_empty() || !self.deferred.is_empty()
    }

    /// Whether nobody but the waiting requests has or expects blocks, so that what does not fit now never will.
    pub(super) fn nobody_else_holds_blocks(&self) -> bool {
        self.running.is_empty() && self.loading.is_empty() && self.held.is_empty()
    }

    /// The request that would be admitted next: one whose keys and values are there goes before those that wait.
    pub(super) fn next_candidate(&self) -> Option<u32> {
        self.loading
            .iter()
            .copied()
            .find(|&r| self.requests[r as usize].arrived)
            .or_else(|| self.waiting.first())
    }

    /// Requests that were told to ask again go back to the front of the queue, in their order.
    pub(super) fn requeue_deferred(&mut self) {
        for r in std::mem::take(&mut self.deferred).into_iter().rev() {
            let request = &self.requests[r as usize];
            self.waiting.put_back(r, request.priority, request.arrival);
        }
    }

    /// Blocks that requests under way still need for what they know (`_inflight_prefill_reserved_blocks`): a load
    /// holds its blocks without progress, so it may not take these.
    fn reserved_blocks(&mut self) -> u32 {
        let mut sum = 0_u32;
        let under_way: Vec<u32> = self
            .running
            .iter()
            .copied()
            .filter(|&r| !self.requests[r as usize].decoding)
            .chain(self.loading.iter().copied())
            .collect();
        for r in under_way {
            let request = &self.requests[r as usize];
            sum += self
                .manager
                .missing_blocks(request.slot(), request.computed, request.known);
        }
        sum
    }

    /// Asks the connector about the first waiting request, whose hit is in `self.hit`.
    pub(super) fn ask_connector<C: ContentKeys, E: SchedulerEvents, K: KvConnector>(
        &mut self,
        step: u64,
        r: u32,
        content: &mut C,
        events: &mut E,
        connector: &mut K,
    ) -> Asked {
        let request = &self.requests[r as usize];
        let (tag, known, resumed) = (request.tag, request.known, request.preemptions > 0);
        let local_tokens = self.hit.num_tokens;
        let external_tokens = match connector.matched(&Query {
            tag,
            keys: &request.keys,
            local_tokens,
            num_tokens: known,
            resumed,
        }) {
            Matched::Tokens(0) => return Asked::Local,
            Matched::Tokens(n) => n.min(known - local_tokens),
            Matched::Later => {
                self.waiting.pop_first();
                self.deferred.push(r);
                return Asked::Gone;
            }
        };
        let reserved_blocks = self.reserved_blocks();
        let request = &self.requests[r as usize];
        let slot = request.slot();
        let granted = self.manager.allocate(
            slot,
            &Allocation {
                num_prompt_tokens: request.prompt,
                shared_prefix_boundary: request.boundary,
                full_sequence_must_fit: self.config.reserve_full_isl,
                apply_watermark: !self.running.is_empty(),
                external_tokens,
                delay_naming: true,
                reserved_blocks,
                ..Allocation::new(&request.keys, 0, 0, known)
            },
            Some(&self.hit),
        );
        if !granted {
            if self.nobody_else_holds_blocks() {
                self.waiting.pop_first();
                self.forget(step, r, Rejection::TooManyBlocks, content, events);
                return Asked::Gone;
            }
            return Asked::Stuck;
        }
        self.report_evictions(step, events);
        let mut blocks = 0_u32;
        for g in 0..self.manager.groups().len() {
            let held = self
                .manager
                .blocks(slot, g)
                .iter()
                .filter(|&&b| b != NULL_BLOCK)
                .count();
            let hit = self.hit.blocks[g].iter().filter(|&&b| b != NULL_BLOCK).count();
            // Windows may have given hits back that a longer prefix leaves behind.
            blocks += held.saturating_sub(hit) as u32;
        }
        if !resumed {
            self.totals.hit_tokens += u64::from(local_tokens);
            self.totals.query_tokens += u64::from(known);
        }
        let request = &mut self.requests[r as usize];
        request.state = State::Loading;
        request.local = local_tokens;
        request.computed = local_tokens + external_tokens;
        request.arrived = false;
        connector.load(&Load {
            tag,
            keys: &request.keys,
            local_tokens,
            external_tokens,
            blocks,
        });
        self.waiting.pop_first();
        self.shortage = None;
        self.loading.push(r);
        Asked::Gone
    }

    /// Admits requests whose keys and values are there, before any other; `false` if one of them found no room or no
    /// place, so that nobody behind it is tried.
    pub(super) fn admit_loaded<C: ContentKeys, E: SchedulerEvents, K: KvConnector>(
        &mut self,
        step: u64,
        budget: &mut u32,
        content: &mut C,
        events: &mut E,
        connector: &mut K,
    ) -> bool {
        let mut i = 0;
        while i < self.loading.len() {
            if *budget == 0 || self.running.len() >= self.config.max_num_seqs as usize {
                // What has arrived is looked for as soon as somebody leaves.
                self.woken = true;
                return false;
            }
            let r = self.loading[i];
            if !self.requests[r as usize].arrived {
                if !connector.arrived(self.requests[r as usize].tag) {
                    i += 1;
                    continue;
                }
                self.take_in(r);
            }
            let attempt = (r, self.manager.pool().version(), *budget);
            let request = &self.requests[r as usize];
            let tokens = (request.known - request.computed).min(*budget);
            let granted = self.manager.allocate(
                request.slot(),
                &Allocation {
                    num_prompt_tokens: request.prompt,
                    shared_prefix_boundary: request.boundary,
                    full_sequence_must_fit: self.config.reserve_full_isl,
                    apply_watermark: !self.running.is_empty(),
                    ..Allocation::new(&request.keys, request.computed, tokens, request.known)
                },
                None,
            );
            if !granted {
                if self.running.is_empty() && self.loading.len() == 1 && self.held.is_empty() {
                    self.loading.remove(i);
                    self.forget(step, r, Rejection::TooManyBlocks, content, events);
                    continue;
                }
                self.refused = Some(attempt);
                return false;
            }
            self.report_evictions(step, events);
            let request = &mut self.requests[r as usize];
            request.state = State::Running;
            request.scheduled = tokens;
            let admission = Admission {
                tag: request.tag,
                hit_tokens: request.local,
                num_tokens: request.known,
                resumed: request.preemptions > 0,
            };
            let tables = BlockTables {
                manager: &self.manager,
                slot: request.slot(),
            };
            events.admitted(step, &admission, &tables);
            self.loading.remove(i);
            self.running.push(r);
            self.due.push(self.tick);
            self.num_prefilling += 1;
            *budget -= tokens;
        }
        true
    }

    /// What was loaded is named, so that others find it; the last token is computed again to sample the next.
    fn take_in(&mut self, r: u32) {
        let request = &mut self.requests[r as usize];
        request.arrived = true;
        let loaded = request.computed;
        if request.computed == request.known {
            request.computed -= 1;
        }
        let request = &self.requests[r as usize];
        self.manager.name_loaded(
            request.slot(),
            loaded,
            &Allocation {
                num_prompt_tokens: request.prompt,
                shared_prefix_boundary: request.boundary,
                ..Allocation::new(&request.keys, 0, 0, request.known)
            },
        );
    }
}
