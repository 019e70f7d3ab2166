//! Requests on their way through the scheduler, and the batches they are in.

use kvwise_cache::radix::RequestKv;

use crate::sched::sglang::{CLIP_MAX_NEW_TOKENS, Request};

/// A request: what it asks for and how far it is.
#[derive(Default)]
pub(super) struct Job {
    pub(super) tag: u32,
    pub(super) prompt: usize,
    /// Tokens it asks for, which may be none (`max_new_tokens`).
    pub(super) asked: usize,
    /// Tokens generated, as far as results are known.
    pub(super) generated: usize,
    pub(super) priority: i64,
    /// Names its entry into the queue, later ones larger.
    pub(super) entered: u64,
    /// Prompt tokens prefilled before that.
    pub(super) entered_after_tokens: u64,
    /// Cached tokens at the last look, at most all but one.
    pub(super) matched: usize,
    /// Tokens and cached tokens at its last turn at the gate: what preemption weighs, though it may be out of date.
    pub(super) weighed: (usize, usize),
    pub(super) retractions: u32,
    /// Its tokens, from its first look at the cache until it ends or is retracted: a long queue holds none.
    pub(super) content: Option<Request>,
}

impl Job {
    /// Tokens that it generates: one even if it asks for none.
    pub(super) fn output(&self) -> usize {
        self.asked.max(1)
    }

    /// Known tokens: prompt and generated ones.
    pub(super) fn known(&self) -> usize {
        self.prompt + self.generated
    }

    /// Tokens still to come, as far as the gate counts them.
    pub(super) fn to_come(&self) -> usize {
        self.asked.saturating_sub(self.generated).min(CLIP_MAX_NEW_TOKENS)
    }

    /// Tokens asked for, as far as the gate counts them.
    pub(super) fn clipped(&self) -> usize {
        self.asked.min(CLIP_MAX_NEW_TOKENS)
    }
}

/// A request that holds memory.
pub(super) struct Active {
    pub(super) job: Job,
    /// Its row, slots and lock, until they are given back.
    pub(super) kv: Option<RequestKv>,
    /// Names this admission: a place may be taken again while results of the one before are under way.
    pub(super) serial: u64,
    /// Tokens that have been given to a prefill batch.
    pub(super) computed: usize,
    /// Tokens published by a chunk.
    pub(super) published: usize,
    /// Chunks under way that are not the last.
    pub(super) middle_chunks: u32,
    /// Tokens being computed whose results are not known.
    pub(super) in_flight: usize,
    /// Whether its last token is computed, though perhaps not known to be.
    pub(super) done: bool,
    /// Whether it is among the running requests or those of the last prefill batch.
    pub(super) listed: bool,
}

impl Active {
    /// Tokens that have a slot.
    pub(super) fn owned_len(&self) -> usize {
        self.kv.as_ref().map_or(0, RequestKv::owned_len)
    }
}

/// A request in a batch whose results are not known yet.
pub(super) struct InFlight {
    pub(super) place: usize,
    pub(super) serial: u64,
    /// Whether it computes (part of) its prompt, and does not decode.
    pub(super) prefill: bool,
}

/// A batch whose results are not known yet.
pub(super) struct Pending {
    pub(super) prefill: bool,
    pub(super) batch: Vec<InFlight>,
}

impl Pending {
    /// Requests that decode a token.
    pub(super) fn decoding(&self) -> usize {
        self.batch.iter().filter(|row| !row.prefill).count()
    }
}

/// The last prefill batch, until it joins the running requests.
pub(super) struct LastPrefill {
    pub(super) places: Vec<usize>,
    pub(super) chunked: Option<usize>,
}
