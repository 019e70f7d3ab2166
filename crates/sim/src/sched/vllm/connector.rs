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

/// Where keys and values come from besides the pool, and where they go.
pub trait KvConnector {
    /// Whether the scheduler asks at all.
    const ENABLED: bool;
    /// How much of a request can be loaded.
    fn matched(&mut self, query: &Query<'_>) -> Matched;
    /// A load begins.
    fn load(&mut self, load: &Load<'_>);
    /// Whether the load of a request is over.
    fn arrived(&mut self, tag: u32) -> bool;
    /// After a step the first `tokens` tokens of a request are in the pool.
    fn computed(&mut self, tag: u32, keys: &[u32], tokens: u32);
    /// A request has all its tokens; `true` keeps its blocks until [`Scheduler::release_held`](super::Scheduler::release_held).
    fn finished(&mut self, tag: u32, keys: &[u32], tokens: u32) -> bool;
}

/// No connector.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoConnector;

impl KvConnector for NoConnector {
    const ENABLED: bool = false;
    fn matched(&mut self, _: &Query<'_>) -> Matched {
        Matched::Tokens(0)
    }
    fn load(&mut self, _: &Load<'_>) {}
    fn arrived(&mut self, _: u32) -> bool {
        false
    }
    fn computed(&mut self, _: u32, _: &[u32], _: u32) {}
    fn finished(&mut self, _: u32, _: &[u32], _: u32) -> bool {
        false
    }
}
