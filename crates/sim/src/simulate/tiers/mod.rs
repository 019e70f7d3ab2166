//! KV tiers behind the pool: host memory, and what lies behind that.
//!
//! Semantics of vLLM 0.32.0's offloading connector (`vllm/distributed/kv_transfer/kv_connector/v1/offloading/scheduler.py`,
//! `vllm/v1/kv_offload/cpu/manager.py`, `vllm/v1/kv_offload/tiering/manager.py`), block by block:
//!
//! - every full block is copied to the host once its step is over, unless it is there already; from the host to every
//!   tier behind it;
//! - a waiting request takes what the pool has, then what the host has after that, loaded while others compute; what
//!   only a tier behind the host has is brought to the host first, and the request asks again;
//! - blocks on their way are not evicted, nor (unlike in vLLM, which may then bring the same blocks again and again) what a
//!   request has found while more is brought for it; a request whose blocks another one is loading waits for that one;
//! - blocks of a step are stored all or not at all, and offered again with the next step if there was no room;
//! - each tier evicts by its own order (`store.rs`).
//!
//! Copies take time on links of their own, one direction each, and slow no kernel down. Not modelled: chunks of several
//! blocks, stores that another request's prefill preempts, Mamba states, loads that fail.

#[cfg(test)]
#[path = "../../../tests/asking/mod.rs"]
mod asking;
#[cfg(test)]
mod connector_tests;
#[cfg(test)]
#[path = "../../../tests/golden/mod.rs"]
mod golden;
mod store;
#[cfg(test)]
mod store_tests;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use kvwise_cache::manager::{GroupKind, GroupSpec};
use kvwise_core::{Error, Result};
use rustc_hash::FxHashMap;

use super::link::{Link, LinkSpeed};
use super::source::Time;
use crate::sched::vllm::{KvConnector, Load, Matched, Query};
pub use store::TierPolicy;
use store::{Found, Store, Used};

/// One tier.
#[derive(Debug, Clone, PartialEq)]
pub struct TierConfig {
    /// Its name in reports.
    pub name: String,
    /// Blocks that it holds.
    pub capacity_blocks: u32,
    /// Bytes of a block as its link counts them.
    pub bytes_per_block: u64,
    /// Towards the pool (the first tier) or the tier before it.
    pub read: LinkSpeed,
    /// The other way.
    pub write: LinkSpeed,
    /// What it evicts.
    pub policy: TierPolicy,
}

/// What a tier did.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize)]
pub struct TierTotals {
    /// Its name.
    pub name: String,
    /// Blocks that it can hold.
    pub capacity_blocks: u64,
    /// Prompt tokens that were found here and nowhere nearer.
    pub hit_tokens: u64,
    /// Bytes read from it.
    pub read_bytes: u64,
    /// Bytes written to it.
    pub written_bytes: u64,
    /// Blocks evicted from it.
    pub evicted_blocks: u64,
    /// Blocks that found no room because everything in it was on its way.
    pub refused_blocks: u64,
    /// Time in which its link read, seconds.
    pub reading_s: f64,
    /// Time in which its link wrote, seconds.
    pub writing_s: f64,
}

impl TierTotals {
    /// Adds another engine's.
    pub fn add(&mut self, other: &Self) {
        self.name.clone_from(&other.name);
        self.capacity_blocks += other.capacity_blocks;
        self.hit_tokens += other.hit_tokens;
        self.read_bytes += other.read_bytes;
        self.written_bytes += other.written_bytes;
        self.evicted_blocks += other.evicted_blocks;
        self.refused_blocks += other.refused_blocks;
        self.reading_s += other.reading_s;
        self.writing_s += other.writing_s;
    }
}

/// Something on its way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Job {
    /// From the pool to the host.
    Store(Vec<u64>),
    /// From the host to a tier behind it.
    Cascade(usize, Vec<u64>),
    /// From a tier to the host.
    Promote(usize, Vec<u64>),
    /// From the host to the pool.
    Load(u32, Vec<u64>),
}

/// A group of layers as the tiers see it.
#[derive(Debug, Clone, Copy)]
struct Group {
    block_size: u32,
    keys_per_block: u32,
    /// Tokens that a hit needs at its end; `None` if all.
    window_tokens: Option<u32>,
    /// Whether they are counted from the end of the hit on (a sliding window), or in whole chunks.
    slides: bool,
}

impl Group {
    /// Blocks that have names.
    fn named(&self, keys: &[u32]) -> u32 {
        u32::try_from(keys.len()).unwrap_or(u32::MAX) / self.keys_per_block
    }

    /// Blocks at the end of a hit of `tokens` tokens that must be there.
    fn window_blocks(&self, tokens: u32) -> Option<u32> {
        let window = self.window_tokens?;
        let blocks = window.div_ceil(self.block_size).max(1);
        if !self.slides {
            return Some(blocks);
        }
        // A hit that ends inside of a block reaches one block further back.
        let beyond = tokens.next_multiple_of(self.block_size) - tokens;
        Some(blocks.max((window - 1 + beyond).div_ceil(self.block_size)))
    }
}

/// What is remembered of a request under way.
#[derive(Debug, Default)]
struct Under {
    /// Blocks stored so far, by group.
    stored: Vec<u32>,
    /// Blocks brought from a tier behind the host for this request.
    brought: FxHashMap<u64, usize>,
}

/// The tiers behind one engine's pool.
#[derive(Debug)]
pub(super) struct Tiers {
    stores: Vec<Store>,
    read: Vec<Link>,
    write: Vec<Link>,
    configs: Vec<TierConfig>,
    groups: Vec<Group>,
    now_s: f64,
    jobs: BinaryHeap<Reverse<(Time, u64, Job)>>,
    job_number: u64,
    requests: FxHashMap<u32, Under>,
    arrived: rustc_hash::FxHashSet<u32>,
    totals: Vec<TierTotals>,
    /// Blocks of the step under way that go to the host when it is over, a list a request.
    computed: Vec<Vec<u64>>,
    /// Blocks of the host that a lookup under way has found.
    scanned: Vec<u64>,
    /// Loads that began since the caller last looked: request and tokens.
    pub(super) begun: Vec<(u32, u32)>,
}

impl Tiers {
    /// Tiers behind a pool with these groups, whose names stand for `hash_block_size` tokens.
    pub(super) fn new(configs: &[TierConfig], groups: &[GroupSpec], hash_block_size: u32) -> Result<Self> {
        let mut seen = Vec::new();
        for group in groups {
            let (window_tokens, slides) = match group.kind {
                GroupKind::Full => (None, false),
                GroupKind::SlidingWindow { window_tokens } => (Some(window_tokens.max(1)), true),
                GroupKind::ChunkedLocal { chunk_tokens } => (Some(chunk_tokens), false),
                GroupKind::MambaAlign { .. } => {
                    return Err(Error::unsupported(
                        "tiers behind a pool that keeps recurrent states are not simulated",
                    )
                    .hint("leave --tiers out, or choose a model without Mamba or linear-attention layers"));
                }
            };
            seen.push(Group {
                block_size: group.block_size,
                keys_per_block: (group.block_size / hash_block_size).max(1),
                window_tokens,
                slides,
            });
        }
        Ok(Self {
            stores: configs
                .iter()
                .map(|c| Store::new(c.capacity_blocks, c.policy))
                .collect::<Result<_>>()?,
            read: configs.iter().map(|c| Link::new(c.read)).collect(),
            write: configs.iter().map(|c| Link::new(c.write)).collect(),
            totals: configs
                .iter()
                .map(|c| TierTotals {
                    name: c.name.clone(),
                    capacity_blocks: u64::from(c.capacity_blocks),
                    ..TierTotals::default()
                })
                .collect(),
            configs: configs.to_vec(),
            groups: seen,
            now_s: 0.0,
            jobs: BinaryHeap::new(),
            job_number: 0,
            requests: FxHashMap::default(),
            arrived: rustc_hash::FxHashSet::default(),
            computed: Vec::new(),
            scanned: Vec::new(),
            begun: Vec::new(),
        })
    }

    /// Time passes, to the end of a step if one was under way; returns whether something arrived that requests may wait
    /// for.
    pub(super) fn advance(&mut self, now_s: f64) -> bool {
        let mut news = false;
        while let Some(Reverse((time, ..))) = self.jobs.peek()
            && time.0 <= now_s
        {
            let Some(Reverse((time, _, job))) = self.jobs.pop() else {
                break;
            };
            self.done(time.0, job);
            news = true;
        }
        for blocks in std::mem::take(&mut self.computed) {
            let bytes = self.bytes(0, blocks.len());
            let end = self.write[0].send(now_s, bytes);
            self.begin(end, Job::Store(blocks));
        }
        self.now_s = now_s;
        news
    }

    /// When the next thing on its way arrives.
    pub(super) fn next_event_s(&self) -> Option<f64> {
        self.jobs.peek().map(|Reverse((time, ..))| time.0)
    }

    /// What each tier did so far.
    pub(super) fn totals(&self) -> Vec<TierTotals> {
        let mut totals = self.totals.clone();
        for (i, total) in totals.iter_mut().enumerate() {
            total.read_bytes = self.read[i].bytes();
            total.written_bytes = self.write[i].bytes();
            total.reading_s = self.read[i].busy_s();
            total.writing_s = self.write[i].busy_s();
            total.evicted_blocks = self.stores[i].evicted();
        }
        totals
    }

    fn begin(&mut self, at_s: f64, job: Job) {
        self.job_number += 1;
        self.jobs.push(Reverse((Time(at_s), self.job_number, job)));
    }

    fn bytes(&self, tier: usize, blocks: usize) -> u64 {
        self.configs[tier].bytes_per_block.saturating_mul(blocks as u64)
    }

    fn done(&mut self, at_s: f64, job: Job) {
        match job {
            Job::Store(blocks) => {
                self.stores[0].written(&blocks);
                for tier in 1..self.stores.len() {
                    let offer: Vec<Used> = blocks.iter().map(|&block| anonymous(block)).collect();
                    let Some(fresh) = self.stores[tier].store(None, &offer) else {
                        self.totals[tier].refused_blocks += blocks.len() as u64;
                        continue;
                    };
                    if fresh.is_empty() {
                        continue;
                    }
                    // The host's copy stays until it was read.
                    for &block in &fresh {
                        self.stores[0].pin(block);
                    }
                    let bytes = self.bytes(tier, fresh.len());
                    let end = self.write[tier].send(at_s, bytes);
                    self.begin(end, Job::Cascade(tier, fresh));
                }
            }
            Job::Cascade(tier, blocks) => {
                self.stores[tier].written(&blocks);
                for &block in &blocks {
                    self.stores[0].unpin(block);
                }
            }
            Job::Promote(tier, blocks) => {
                for &block in &blocks {
                    self.stores[tier].unpin(block);
                }
                self.stores[0].written(&blocks);
            }
            Job::Load(tag, blocks) => {
                for &block in &blocks {
                    self.stores[0].unpin(block);
                    self.stores[0].loading(block, false);
                }
                self.arrived.insert(tag);
            }
        }
    }

    /// Name of a block in one group.
    fn block(&self, keys: &[u32], group: usize, index: u32) -> u64 {
        let per = self.groups[group].keys_per_block;
        let key = keys[((index + 1) * per - 1) as usize];
        u64::from(key) * self.groups.len() as u64 + group as u64
    }

    /// A block as a request uses it.
    fn used(&self, keys: &[u32], group: usize, index: u32) -> Used {
        Used {
            block: self.block(keys, group, index),
            group: u32::try_from(group).unwrap_or(u32::MAX),
            end_token: (index + 1).saturating_mul(self.groups[group].block_size),
        }
    }

    /// Looks one block up, nearest tier first; what only a tier behind the host has is asked for.
    fn find(&mut self, tag: u32, block: u64, wanted: &mut [Vec<u64>]) -> Found {
        match self.stores[0].find(block) {
            Found::Missing => {}
            Found::Ready => {
                // What this request brings must not push out what it found: with a host smaller than its prefix it
                // would bring the same blocks for ever.
                self.stores[0].pin(block);
                self.scanned.push(block);
                return Found::Ready;
            }
            Found::OnItsWay => return Found::OnItsWay,
        }
        for (tier, wanted) in wanted.iter_mut().enumerate().skip(1) {
            if self.stores[tier].find(block) != Found::Ready {
                continue;
            }
            if self.stores[0].store(None, &[anonymous(block)]).is_none() {
                self.totals[0].refused_blocks += 1;
                return Found::Missing;
            }
            self.stores[tier].pin(block);
            wanted.push(block);
            self.requests.entry(tag).or_default().brought.insert(block, tier);
            return Found::OnItsWay;
        }
        Found::Missing
    }

    /// Tokens after `local` that the tiers have; `None` if something is on its way.
    fn look_up(&mut self, q: &Query<'_>, wanted: &mut [Vec<u64>]) -> Option<u32> {
        let windowed = self.groups.iter().any(|g| g.window_tokens.is_some());
        // A window must reach the last token that is not computed again.
        let mut end = if windowed {
            q.num_tokens.saturating_sub(1)
        } else {
            q.num_tokens
        };
        let mut later = false;
        // Windows are looked up after the groups that need everything, the widest first.
        let mut order: Vec<usize> = (0..self.groups.len()).collect();
        order.sort_by_key(|&g| Reverse(self.groups[g].window_tokens.unwrap_or(u32::MAX)));
        // A group that shortens the hit makes the windows before it look again.
        loop {
            let before = end;
            for &g in &order {
                let group = self.groups[g];
                let named = group.named(q.keys);
                end = end.min(named * group.block_size);
                if end < q.local_tokens + group.block_size {
                    return Some(0);
                }
                let start = q.local_tokens / group.block_size;
                let last = end.div_ceil(group.block_size).min(named);
                let mut hits = 0;
                match group.window_blocks(end) {
                    None => {
                        for index in start..last {
                            match self.find(q.tag, self.block(q.keys, g, index), wanted) {
                                Found::Ready => hits += 1,
                                Found::OnItsWay => {
                                    hits += 1;
                                    later = true;
                                }
                                Found::Missing => break,
                            }
                        }
                        end = end.min((start + hits) * group.block_size);
                    }
                    Some(first_window) => {
                        let (mut pending, mut found, mut window) = (false, 0, first_window);
                        for index in (start..last).rev() {
                            match self.find(q.tag, self.block(q.keys, g, index), wanted) {
                                Found::Ready => hits += 1,
                                Found::OnItsWay => {
                                    hits += 1;
                                    pending = true;
                                }
                                Found::Missing => {
                                    hits = 0;
                                    pending = false;
                                    window = group.window_blocks(0).unwrap_or(1);
                                }
                            }
                            if hits == window {
                                found = index + window;
                                break;
                            }
                        }
                        if found == 0 && hits > 0 {
                            // All blocks from the pool's hit on.
                            found = start + hits;
                        }
                        later |= pending;
                        end = end.min(found * group.block_size);
                    }
                }
                if end < q.local_tokens + group.block_size {
                    return if later { None } else { Some(0) };
                }
            }
            if end == before || !windowed {
                break;
            }
        }
        if later {
            return None;
        }
        let tokens = end - q.local_tokens;
        let blocks = self.needed(q.keys, q.local_tokens, tokens);
        if blocks.iter().any(|u| self.stores[0].is_loading(u.block)) {
            return None;
        }
        Some(tokens)
    }

    /// Blocks of all groups that bring `external` tokens after `local`.
    fn needed(&self, keys: &[u32], local: u32, external: u32) -> Vec<Used> {
        let mut blocks = Vec::new();
        for (g, group) in self.groups.iter().enumerate() {
            let last = (local + external).div_ceil(group.block_size);
            let mut first = local / group.block_size;
            if let Some(window) = group.window_blocks(local + external) {
                first = first.max(last.saturating_sub(window));
            }
            let named = group.named(keys);
            blocks.extend((first..last.min(named)).map(|i| self.used(keys, g, i)));
        }
        blocks
    }
}

impl KvConnector for Tiers {
    const ENABLED: bool = true;

    fn matched(&mut self, query: &Query<'_>) -> Matched {
        let mut wanted = vec![Vec::new(); self.stores.len()];
        let answer = self.look_up(query, &mut wanted);
        for block in std::mem::take(&mut self.scanned).into_iter().rev() {
            self.stores[0].unpin(block);
        }
        for (tier, blocks) in wanted.into_iter().enumerate() {
            if !blocks.is_empty() {
                let bytes = self.bytes(tier, blocks.len());
                let end = self.read[tier].send(self.now_s, bytes);
                self.begin(end, Job::Promote(tier, blocks));
            }
        }
        answer.map_or(Matched::Later, Matched::Tokens)
    }

    fn load(&mut self, load: &Load<'_>) {
        let needed = self.needed(load.keys, load.local_tokens, load.external_tokens);
        self.stores[0].used(load.tag, &needed);
        let blocks: Vec<u64> = needed.iter().map(|u| u.block).collect();
        let under = self.requests.entry(load.tag).or_default();
        // Tokens count where their first group's block was found.
        let tokens_per_block = u64::from(self.groups[0].block_size);
        let counted = load.external_tokens.div_ceil(self.groups[0].block_size) as usize;
        let full = self.groups[0].window_tokens.is_none();
        for &block in blocks.iter().take(if full { counted } else { 0 }) {
            let tier = under.brought.get(&block).copied().unwrap_or(0);
            self.totals[tier].hit_tokens += tokens_per_block;
        }
        if !full {
            self.totals[0].hit_tokens += u64::from(load.external_tokens);
        }
        under.brought.clear();
        // What was loaded is stored already.
        let total = load.local_tokens + load.external_tokens;
        under.stored = self.groups.iter().map(|g| total / g.block_size).collect();
        for &block in &blocks {
            self.stores[0].pin(block);
            self.stores[0].loading(block, true);
        }
        let bytes = self.bytes(0, blocks.len());
        let end = self.read[0].send(self.now_s, bytes);
        self.begun.push((load.tag, load.external_tokens));
        self.begin(end, Job::Load(load.tag, blocks));
    }

    fn arrived(&mut self, tag: u32) -> bool {
        self.arrived.remove(&tag)
    }

    fn computed(&mut self, tag: u32, keys: &[u32], tokens: u32) {
        let mut offered = Vec::new();
        let mut stored = Vec::with_capacity(self.groups.len());
        for g in 0..self.groups.len() {
            let group = self.groups[g];
            let full = (tokens / group.block_size).min(group.named(keys));
            let under = self.requests.entry(tag).or_default();
            under.stored.resize(self.groups.len(), 0);
            let first = under.stored[g];
            stored.push(first.max(full));
            offered.extend((first..full).map(|i| self.used(keys, g, i)));
        }
        if offered.is_empty() {
            return;
        }
        let Some(fresh) = self.stores[0].store(Some(tag), &offered) else {
            // Offered again with the next step.
            self.totals[0].refused_blocks += offered.len() as u64;
            return;
        };
        if let Some(under) = self.requests.get_mut(&tag) {
            under.stored = stored;
        }
        // The copy begins when the step that computes the blocks is over.
        if !fresh.is_empty() {
            self.computed.push(fresh);
        }
    }

    fn finished(&mut self, tag: u32, _: &[u32], _: u32) -> bool {
        self.requests.remove(&tag);
        self.stores[0].ended(tag);
        false
    }
}

/// A block that is copied for no request.
fn anonymous(block: u64) -> Used {
    Used {
        block,
        group: 0,
        end_token: 0,
    }
}
