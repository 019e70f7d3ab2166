//! What a turn of the loop did: in sums for a clock, and event for event for whoever asks.

/// What a step did.
#[derive(Debug, Default)]
pub struct StepOutcome {
    /// Request, prompt tokens found in the cache, whether it had been retracted.
    pub admitted: Vec<(u32, u32, bool)>,
    /// Request, tokens computed, tokens before them.
    pub prefills: Vec<(u32, u32, u32)>,
    /// Requests that have their first token.
    pub first_tokens: Vec<u32>,
    /// Request, generated tokens, retractions.
    pub finished: Vec<(u32, u32, u32)>,
    /// Requests that can never run.
    pub rejected: Vec<u32>,
    /// Of a decode engine with overlap, in place of `finished`: requests whose last token came with the step before.
    pub ended: Vec<(u32, u32, u32)>,
    /// Of a prefill engine: request, tokens of its prompt that are ready to be read, whether they are all.
    pub sent: Vec<(u32, u32, bool)>,
    /// Of a decode engine: requests that have room for their prompt.
    pub placed: Vec<u32>,
    /// Of a decode engine: requests whose prompt came, and which join the batch with their first token: request, cached
    /// tokens, whether that token was all (and they left).
    pub joined: Vec<(u32, u32, bool)>,
}

impl StepOutcome {
    /// Whether nothing was computed and nobody turned away.
    pub fn is_empty(&self) -> bool {
        self.prefills.is_empty()
            && self.finished.is_empty()
            && self.rejected.is_empty()
            && self.placed.is_empty()
            && self.joined.is_empty()
            && self.ended.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.admitted.clear();
        self.prefills.clear();
        self.first_tokens.clear();
        self.finished.clear();
        self.rejected.clear();
        self.sent.clear();
        self.placed.clear();
        self.joined.clear();
        self.ended.clear();
    }
}

/// Slots that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotRun {
    /// The first one.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// One thing that happened, in SGLang's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepEvent {
    /// A node of the tree was evicted.
    Evicted {
        /// Its tokens.
        tokens: u32,
        /// The slot of its first token.
        first_slot: u32,
    },
    /// A request joined a prefill batch.
    Admitted {
        /// The request.
        tag: u32,
        /// Tokens found in the cache.
        hit_tokens: u32,
        /// Tokens known: the prompt, and what was generated before a retraction.
        tokens: u32,
        /// Whether it ran before.
        resumed: bool,
    },
    /// A prompt, or a chunk of it, is computed.
    Prefilled {
        /// The request.
        tag: u32,
        /// Tokens computed.
        new_tokens: u32,
        /// Tokens before them.
        past_tokens: u32,
        /// Where the computed ones lie.
        slots: Vec<SlotRun>,
    },
    /// A running request lost its memory and waits again.
    Lost {
        /// The request.
        tag: u32,
        /// Tokens that had slots.
        computed_tokens: u32,
        /// Tokens generated, as far as results were known.
        generated: u32,
        /// Whether a more important request took its place (preemption), not the decoding of others (retraction).
        to_priority: bool,
    },
    /// The last request left ran out of memory.
    Aborted {
        /// The request.
        tag: u32,
        /// Tokens generated.
        generated: u32,
    },
    /// A request can never run.
    Rejected {
        /// The request.
        tag: u32,
        /// Whether its prompt is too long for the context or the pool; else it and its page do not fit the empty pool.
        too_long: bool,
    },
    /// A request has all its tokens, and its memory goes to the tree.
    Finished {
        /// The request.
        tag: u32,
        /// Tokens generated.
        generated: u32,
        /// Times it lost its memory.
        retractions: u32,
        /// Where its tokens lie, in order.
        slots: Vec<SlotRun>,
    },
}

/// The events of a scheduler, each with the turn in which it happened, if they are kept.
#[derive(Debug, Default)]
pub(super) struct EventLog {
    pub(super) kept: bool,
    pub(super) evicted_nodes: u64,
    pub(super) evicted_tokens: u64,
    pub(super) events: Vec<(u64, StepEvent)>,
}

impl EventLog {
    /// Keeps an event, if events are kept; it is made only then.
    pub(super) fn note(&mut self, turn: u64, event: impl FnOnce() -> StepEvent) {
        if self.kept {
            self.events.push((turn, event()));
        }
    }

    /// The slots of an evicted node.
    pub(super) fn evicted(&mut self, turn: u64, slots: &[u32]) {
        self.evicted_nodes += 1;
        self.evicted_tokens += slots.len() as u64;
        self.note(turn, || StepEvent::Evicted {
            tokens: super::small(slots.len()),
            first_slot: slots[0],
        });
    }
}

/// Slots as runs.
pub(super) fn runs(slots: &[u32]) -> Vec<SlotRun> {
    slots
        .chunk_by(|a, b| a.checked_add(1) == Some(*b))
        .map(|run| SlotRun {
            first: run[0],
            count: super::small(run.len()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_broken_where_slots_do_not_follow_each_other() {
        let as_pairs = |slots: &[u32]| -> Vec<(u32, u32)> {
            runs(slots).iter().map(|run| (run.first, run.count)).collect()
        };
        assert_eq!(as_pairs(&[]), []);
        assert_eq!(as_pairs(&[3, 4, 5, 9, 8, 7, 8]), [(3, 3), (9, 1), (8, 1), (7, 2)]);
    }
}
