//! What goes into the scheduler and what it reports.

use kvwise_cache::manager::Slot;
use kvwise_cache::pool::BlockId;

use super::Manager;

/// A request as the scheduler sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewRequest {
    /// The caller's number of the request.
    pub tag: u32,
    /// Prompt length, in tokens.
    pub prompt_tokens: u32,
    /// Tokens to generate; at least one is generated even if 0.
    pub max_tokens: u32,
    /// Smaller is more important, under [`super::Policy::Priority`].
    pub priority: i64,
    /// Number of its LoRA adapter, 0 for none.
    pub lora: u32,
}

/// Names the contents of requests.
pub trait ContentKeys {
    /// Extends `keys` to the names of all full hash blocks of the first `num_tokens` tokens of request `tag`.
    fn extend(&mut self, tag: u32, num_tokens: u32, keys: &mut Vec<u32>);
    /// The request is done; nothing will be asked about it again.
    fn finish(&mut self, tag: u32) {
        let _ = tag;
    }
}

/// What happened, for whoever records it.
pub trait SchedulerEvents {
    /// Whether evictions are to be reported block by block.
    const EVICTIONS: bool;
    /// A cached block was handed out again.
    fn evicted(&mut self, step: u64, block: BlockId);
    /// A request was admitted.
    fn admitted(&mut self, step: u64, admission: &Admission, blocks: &BlockTables<'_>);
    /// A running request lost its blocks and waits again.
    fn preempted(&mut self, step: u64, tag: u32, computed_tokens: u32, blocks: &BlockTables<'_>);
    /// A request has all its tokens.
    fn finished(&mut self, step: u64, tag: u32, generated: u32, preemptions: u32, blocks: &BlockTables<'_>);
    /// A request can never run.
    fn rejected(&mut self, step: u64, tag: u32, reason: Rejection);
    /// A request that does not decode yet computed `new_tokens` after `past_tokens`; `done` if it now has its first
    /// (or, after a preemption, its next) token.
    fn prefilled(&mut self, step: u64, tag: u32, new_tokens: u32, past_tokens: u32, done: bool) {
        let _ = (step, tag, new_tokens, past_tokens, done);
    }
}

/// Records nothing.
impl SchedulerEvents for () {
    const EVICTIONS: bool = false;
    fn evicted(&mut self, _: u64, _: BlockId) {}
    fn admitted(&mut self, _: u64, _: &Admission, _: &BlockTables<'_>) {}
    fn preempted(&mut self, _: u64, _: u32, _: u32, _: &BlockTables<'_>) {}
    fn finished(&mut self, _: u64, _: u32, _: u32, _: u32, _: &BlockTables<'_>) {}
    fn rejected(&mut self, _: u64, _: u32, _: Rejection) {}
}

/// Details of an admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// The caller's number of the request.
    pub tag: u32,
    /// Tokens found in the cache.
    pub hit_tokens: u32,
    /// Tokens known: the prompt, and what was generated before a preemption.
    pub num_tokens: u32,
    /// Whether it ran before.
    pub resumed: bool,
}

/// Why a request can never run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// The prompt is longer than the longest sequence (or as long, and was cut in chunks so that its last token never
    /// gets its turn).
    TooLong,
    /// Its blocks are more than the pool has.
    TooManyBlocks,
    /// All its prompt but a token is cached, and that token with its drafts is more than a step may compute: vLLM's queue
    /// stands still behind it.
    BatchTooSmall,
}

impl Rejection {
    /// A short name for machines.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooLong => "longer_than_max_model_len",
            Self::TooManyBlocks => "larger_than_pool",
            Self::BatchTooSmall => "drafts_exceed_max_num_batched_tokens",
        }
    }
}

/// The block tables of one request.
#[derive(Debug, Clone, Copy)]
pub struct BlockTables<'a> {
    pub(super) manager: &'a Manager,
    pub(super) slot: Slot,
}

impl BlockTables<'_> {
    /// Groups of the model.
    pub fn num_groups(&self) -> usize {
        self.manager.groups().len()
    }

    /// The table in one group, 0 where a block was given back.
    pub fn group(&self, group: usize) -> &[BlockId] {
        self.manager.blocks(self.slot, group)
    }
}

/// Counters of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Tokens found in the cache at first admissions.
    pub hit_tokens: u64,
    /// Tokens of first admissions.
    pub query_tokens: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// Requests that can never run.
    pub rejected: u64,
    /// Requests with all their tokens.
    pub finished: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
}

/// What a step computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepWork {
    /// Tokens of prompts (and of replays after a preemption).
    pub prefill_tokens: u32,
    /// Requests that computed one further token.
    pub decode_requests: u32,
}
