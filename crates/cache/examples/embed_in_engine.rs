//! An engine's loop over either cache: requests arrive, are looked up and admitted, prefilled in chunks, decoded token
//! by token, preempted when the pool is full, and released. Only the type behind [`PrefixCache`] differs.
//!
//! ```text
//! cargo run -p kvwise-cache --example embed_in_engine
//! ```
//!
//! The "model" makes the next token from the last one and the position, so that a request's tokens depend on nothing but
//! its prompt: whatever is shared, evicted or preempted, the outputs must come out the same. The test
//! `tests/embed_in_engine.rs` holds both caches, and pools too small for all requests at once, to that.
#![allow(clippy::print_stdout, reason = "an example prints its result")]

use std::collections::VecDeque;

use kvwise_cache::Result;
use kvwise_cache::hash::fast_chain;
use kvwise_cache::manager::{Allocation, EngineKvCache, Hit, ManagerConfig, Slot};
use kvwise_cache::radix::{Namespace, RadixCache, RadixCacheConfig, RequestKv, TreePolicy};

/// What an engine's loop asks of its cache.
pub(crate) trait PrefixCache {
    /// What the cache keeps about a running request.
    type Held;
    /// Looks the known tokens up and makes room for the first `chunk` beyond the cached ones; answers how many were
    /// cached, or `None` if there is no room.
    fn admit(&mut self, tokens: &[u32], chunk: usize) -> Result<Option<(Self::Held, usize)>>;
    /// Makes room to compute tokens `computed..computed + count` of the known ones; `false` if there is none.
    fn append(
        &mut self,
        held: &mut Self::Held,
        tokens: &[u32],
        computed: usize,
        count: usize,
    ) -> Result<bool>;
    /// The K and V of the first `computed` tokens are in the cache now.
    fn computed(
        &mut self,
        held: &mut Self::Held,
        tokens: &[u32],
        computed: usize,
        prompt: usize,
    ) -> Result<()>;
    /// The request ended with K and V of its first `computed` tokens.
    fn finish(&mut self, held: Self::Held, tokens: &[u32], computed: usize, prompt: usize) -> Result<()>;
    /// The request gives everything back and will start over.
    fn preempt(&mut self, held: Self::Held) -> Result<()>;
    /// Blocks or tokens whose contents were given up so far.
    fn evicted(&self) -> u64;
}

/// vLLM's way: blocks of 16 tokens, found by the names of their contents.
pub(crate) struct BlockCache {
    manager: EngineKvCache<u128>,
    hit: Hit,
}

/// A request in a [`BlockCache`].
pub(crate) struct BlockRequest {
    slot: Slot,
    names: Vec<u128>,
}

const BLOCK: usize = 16;

impl BlockCache {
    /// A pool of `blocks` blocks, the null block included.
    pub(crate) fn new(blocks: u32) -> Result<Self> {
        let config = ManagerConfig::full_attention(blocks, u32::try_from(BLOCK).expect("16"));
        Ok(Self {
            manager: EngineKvCache::with_hashes(&config)?,
            hit: Hit::default(),
        })
    }
}

/// Names the blocks that `tokens` fill beyond those named already. An engine that isolates tenants starts the chain from
/// a hash of the tenant's salt instead of 0.
fn extend_names(names: &mut Vec<u128>, tokens: &[u32]) {
    for block in tokens.chunks_exact(BLOCK).skip(names.len()) {
        let parent = names.last().copied().unwrap_or(0);
        names.push(fast_chain(parent, block));
    }
}

/// Lengths in this example are small; a real engine checks `max_model_len` when a request arrives.
fn small(tokens: usize) -> u32 {
    u32::try_from(tokens).expect("sequences of this example are short")
}

impl PrefixCache for BlockCache {
    type Held = BlockRequest;

    fn admit(&mut self, tokens: &[u32], chunk: usize) -> Result<Option<(BlockRequest, usize)>> {
        let mut names = Vec::new();
        extend_names(&mut names, tokens);
        let known = small(tokens.len());
        self.manager.lookup(&names, known, &mut self.hit);
        let cached = self.hit.num_tokens;
        let slot = self.manager.open();
        let step = Allocation {
            full_sequence_must_fit: true, // do not start what cannot end its prefill
            ..Allocation::new(&names, 0, small(chunk).min(known - cached), known)
        };
        if !self.manager.allocate(slot, &step, Some(&self.hit)) {
            self.manager.close(slot);
            return Ok(None);
        }
        Ok(Some((BlockRequest { slot, names }, cached as usize)))
    }

    fn append(
        &mut self,
        held: &mut BlockRequest,
        tokens: &[u32],
        computed: usize,
        count: usize,
    ) -> Result<bool> {
        extend_names(&mut held.names, tokens);
        let step = Allocation::new(&held.names, small(computed), small(count), small(tokens.len()));
        Ok(self.manager.allocate(held.slot, &step, None))
    }

    fn computed(&mut self, _: &mut BlockRequest, _: &[u32], _: usize, _: usize) -> Result<()> {
        Ok(()) // blocks were named when they were allocated: a step's requests may share at once
    }

    fn finish(&mut self, held: BlockRequest, _: &[u32], _: usize, _: usize) -> Result<()> {
        self.manager.close(held.slot);
        Ok(())
    }

    fn preempt(&mut self, held: BlockRequest) -> Result<()> {
        self.manager.close(held.slot); // full blocks can be hit when it comes back
        Ok(())
    }

    fn evicted(&self) -> u64 {
        self.manager.pool().num_evicted()
    }
}

/// SGLang's way: single tokens in a radix tree.
pub(crate) struct TreeCache {
    cache: RadixCache<u32>,
    evicted: u64,
}

impl TreeCache {
    /// A pool of `tokens` tokens.
    pub(crate) fn new(tokens: usize) -> Result<Self> {
        let cache = RadixCache::new(RadixCacheConfig {
            capacity_tokens: tokens,
            page_size: 1,
            policy: TreePolicy::Lru,
            max_requests: 64,
            max_context_tokens: 4096,
            enabled: true,
        })?;
        Ok(Self { cache, evicted: 0 })
    }
}

impl PrefixCache for TreeCache {
    type Held = RequestKv;

    fn admit(&mut self, tokens: &[u32], chunk: usize) -> Result<Option<(RequestKv, usize)>> {
        let mut held = self.cache.lookup(Namespace::DEFAULT, tokens, 0)?; // locks what it found
        let cached = held.prefix_len();
        if tokens.len() - cached > self.cache.obtainable_tokens() {
            self.cache.retract(held)?;
            return Ok(None);
        }
        self.cache.start(&mut held)?;
        let end = tokens.len().min(cached + chunk);
        let evicted = &mut self.evicted;
        self.cache
            .extend(&mut held, end, |slots| *evicted += slots.len() as u64)?;
        Ok(Some((held, cached)))
    }

    fn append(&mut self, held: &mut RequestKv, _: &[u32], computed: usize, count: usize) -> Result<bool> {
        let end = computed + count;
        if end.saturating_sub(held.owned_len()) > self.cache.obtainable_tokens() {
            return Ok(false);
        }
        let evicted = &mut self.evicted;
        self.cache
            .extend(held, end, |slots| *evicted += slots.len() as u64)?;
        Ok(true)
    }

    fn computed(
        &mut self,
        held: &mut RequestKv,
        tokens: &[u32],
        computed: usize,
        prompt: usize,
    ) -> Result<()> {
        // publish prompts as soon as they are computed; outputs when the request ends
        if computed <= prompt {
            self.cache.checkpoint(held, &tokens[..computed], prompt)?;
        }
        Ok(())
    }

    fn finish(&mut self, held: RequestKv, tokens: &[u32], computed: usize, prompt: usize) -> Result<()> {
        self.cache.finish(held, &tokens[..computed], prompt)
    }

    fn preempt(&mut self, held: RequestKv) -> Result<()> {
        self.cache.retract(held)
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

/// A request of the example.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Its tokens: the prompt, then what was generated.
    pub(crate) tokens: Vec<u32>,
    /// Prompt tokens.
    pub(crate) prompt: usize,
    /// Tokens to generate.
    pub(crate) output: usize,
}

struct Running<H> {
    number: usize,
    held: H,
    computed: usize,
}

/// What the loop counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Served {
    /// Tokens of all prompts.
    pub(crate) prompt_tokens: u64,
    /// Prompt tokens that were in the cache at first admission.
    pub(crate) cached_tokens: u64,
    /// Times a request had to give its memory to an older one.
    pub(crate) preemptions: u64,
    /// Blocks or tokens evicted.
    pub(crate) evicted: u64,
}

/// Tokens computed in one step, over all requests.
const BUDGET: usize = 256;
/// Requests that run at once.
const MAX_RUNNING: usize = 16;

/// Serves all requests and leaves their generated tokens in them.
///
/// # Errors
/// If the cache breaks its own rules, or a request alone does not fit the pool.
pub(crate) fn serve<C: PrefixCache>(cache: &mut C, requests: &mut [Request]) -> Result<Served> {
    let mut waiting: VecDeque<usize> = (0..requests.len()).collect();
    let mut seen = vec![false; requests.len()];
    let mut running: Vec<Running<C::Held>> = Vec::new();
    let mut served = Served::default();
    while !(waiting.is_empty() && running.is_empty()) {
        let mut budget = BUDGET;
        let mut steps: Vec<usize> = Vec::new(); // tokens computed by each running request
        // 1. those that run already, oldest first; who finds no room takes it from the youngest
        let mut i = 0;
        let mut preempted = false;
        while i < running.len() {
            let tokens = &requests[running[i].number].tokens;
            let count = (tokens.len() - running[i].computed).min(budget);
            let (computed, request) = (running[i].computed, &mut running[i]);
            if count == 0 || cache.append(&mut request.held, tokens, computed, count)? {
                steps.push(count);
                budget -= count;
                i += 1;
                continue;
            }
            let victim = running.pop().expect("someone runs");
            waiting.push_front(victim.number);
            cache.preempt(victim.held)?;
            served.preemptions += 1;
            preempted = true;
        }
        // 2. new ones, as long as they fit
        while !preempted && budget > 0 && running.len() < MAX_RUNNING {
            let Some(&number) = waiting.front() else { break };
            let request = &requests[number];
            let Some((held, cached)) = cache.admit(&request.tokens, budget)? else {
                if running.is_empty() {
                    return Err(kvwise_cache::Error::exhausted(
                        "a request alone does not fit the pool",
                    ));
                }
                break;
            };
            waiting.pop_front();
            if !std::mem::replace(&mut seen[number], true) {
                served.prompt_tokens += request.prompt as u64;
                served.cached_tokens += cached as u64;
            }
            let count = (request.tokens.len() - cached).min(budget);
            budget -= count;
            steps.push(count);
            running.push(Running {
                number,
                held,
                computed: cached,
            });
        }
        // 3. the model computes; a request whose known tokens are all computed gets one more
        let mut still = Vec::with_capacity(running.len());
        for (mut run, count) in running.drain(..).zip(steps) {
            let request = &mut requests[run.number];
            run.computed += count;
            cache.computed(&mut run.held, &request.tokens, run.computed, request.prompt)?;
            if run.computed == request.tokens.len() {
                let last = request.tokens[run.computed - 1];
                let position = small(run.computed);
                request.tokens.push((last.wrapping_mul(31) ^ position) % 50_000);
            }
            if request.tokens.len() == request.prompt + request.output {
                cache.finish(run.held, &request.tokens, run.computed, request.prompt)?;
            } else {
                still.push(run);
            }
        }
        running = still;
    }
    served.evicted = cache.evicted();
    Ok(served)
}

/// Questions under four system prompts.
pub(crate) fn traffic(count: u32) -> Vec<Request> {
    (0..count)
        .map(|n| {
            let system = n * 7 % 4;
            let mut tokens: Vec<u32> = (0..120 + 16 * system).map(|i| system * 1000 + i).collect();
            tokens.extend((0..20 + n * 13 % 50).map(|i| 10_000 + n * 100 + i));
            let prompt = tokens.len();
            Request {
                tokens,
                prompt,
                output: 5 + (n * 11 % 60) as usize,
            }
        })
        .collect()
}

fn main() -> Result<()> {
    println!(
        "{:<28} {:>8} {:>8} {:>12} {:>8}",
        "cache", "prompts", "cached", "preemptions", "evicted"
    );
    for blocks in [40, 200] {
        let (mut by_block, mut by_token) = (traffic(60), traffic(60));
        let tokens = (blocks as usize - 1) * BLOCK; // the null block holds nothing
        let a = serve(&mut BlockCache::new(blocks)?, &mut by_block)?;
        let b = serve(&mut TreeCache::new(tokens)?, &mut by_token)?;
        for (name, s) in [
            (format!("{} blocks of {BLOCK}", blocks - 1), a),
            (format!("tree of {tokens} tokens"), b),
        ] {
            println!(
                "{name:<28} {:>8} {:>8} {:>12} {:>8}",
                s.prompt_tokens, s.cached_tokens, s.preemptions, s.evicted
            );
        }
        let same = by_block.iter().zip(&by_token).all(|(x, y)| x.tokens == y.tokens);
        assert!(same, "the cache must never change what is generated");
    }
    Ok(())
}
