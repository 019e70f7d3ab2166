//! Keys and values that come from elsewhere: vLLM's KV connectors, as the scheduler sees them.
//!
//! Source: vLLM 0.32.0, `vllm/v1/core/sched/scheduler.py` (`get_num_new_matched_tokens`, `WAITING_FOR_REMOTE_KVS`,
//! `_update_waiting_for_remote_kv`, `_inflight_prefill_reserved_blocks`). All loads are asynchronous, as those of the
//! NIXL and offloading connectors are.

/// A request that is about to be admitted.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The caller's number of the request.
    pub tag: u32,
    /// Names of its full hash blocks.
    pub keys: &'a [u32],
    /// Tokens found in the pool.
    pub local_tokens: u32,
    /// Tokens known: the prompt, and what was generated before a preemption.
    pub num_tokens: u32,
    /// Whether it ran before and lost its blocks.
    pub resumed: bool,
}

/// What a connector has of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matched {
    /// So many tokens beyond those in the pool can be loaded; 0 if none.
    Tokens(u32),
    /// Not known yet: the request is asked for again in the next step, those behind it go on.
    Later,
}

/// A load that begins: the blocks are there, what belongs in them is not.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    /// The caller's number of the request.
    pub tag: u32,
    /// Names of its full hash blocks.
    pub keys: &'a [u32],
    /// Tokens found in the pool.
    pub local_tokens: u32,
    /// Tokens that come.
    pub external_tokens: u32,
    /// Blocks of all groups that they fill; windows need fewer than the tokens fill.
    pub blocks: u32,
}

/// Where keys and values come from besides the pool, and where they go; what is not written loads and keeps nothing.
pub trait KvConnector {
    /// Whether the scheduler asks at all.
    const ENABLED: bool;
    /// How much of a request can be loaded.
    fn matched(&mut self, _query: &Query<'_>) -> Matched {
        Matched::Tokens(0)
    }
    /// A load begins.
    fn load(&mut self, _load: &Load<'_>) {}
    /// Whether the load of a request is over.
    fn arrived(&mut self, _tag: u32) -> bool {
        false
    }
    /// After a step the first `tokens` tokens of a request are in the pool.
    fn computed(&mut self, _tag: u32, _keys: &[u32], _tokens: u32) {}
    /// A request has all its tokens; `true` keeps its blocks until [`Scheduler::release_held`](super::Scheduler::release_held).
    fn finished(&mut self, _tag: u32, _keys: &[u32], _tokens: u32) -> bool {
        false
    }
}

/// No connector.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoConnector;

impl KvConnector for NoConnector {
    const ENABLED: bool = false;
}
