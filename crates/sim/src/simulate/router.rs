//! Which engine a request is sent to.

use rustc_hash::FxHashMap;

use crate::trace::{Prompt, Trace};

/// How requests are spread over engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routing {
    /// One after the other.
    RoundRobin,
    /// Where `4 * waiting + running` is least (vLLM 0.32.0, `vllm/v1/engine/core_client.py`, the balancer of
    /// data-parallel engines), ties in order.
    #[default]
    LeastLoaded,
    /// Where most of the prompt was sent before, unless the loads are far apart (as SGLang's router does by
    /// default: share of the prompt above 0.3; least loaded if the longest queue is 64 requests and 1.5 times
    /// longer than the shortest).
    PrefixAware,
    /// All requests of a session where its first one went.
    SessionAffinity,
}

/// Share of a prompt that must be known somewhere for it to be sent there.
const PREFIX_SHARE: f64 = 0.3;
/// Queues this much longer than the shortest are not made longer for a prefix's sake.
const IMBALANCE_REQUESTS: u64 = 64;
const IMBALANCE_FACTOR: f64 = 1.5;

/// Load of one engine as the router sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) waiting: u64,
    pub(super) running: u64,
}

impl Load {
    fn score(self) -> u64 {
        4 * self.waiting + self.running
    }
}

/// Routing with its memory.
#[derive(Debug)]
pub(super) struct Router {
    routing: Routing,
    next: usize,
    /// Engine of each session.
    sessions: FxHashMap<u32, usize>,
    /// Engines that saw a block (by its place in the tree of prefixes), as bits.
    seen: FxHashMap<u32, u64>,
}

impl Router {
    pub(super) fn new(routing: Routing) -> Self {
        Self {
            routing,
            next: 0,
            sessions: FxHashMap::default(),
            seen: FxHashMap::default(),
        }
    }

    /// The engine for request `tag`.
    pub(super) fn choose(&mut self, trace: &Trace, tag: u32, loads: &[Load]) -> usize {
        if loads.len() == 1 {
            return 0;
        }
        match self.routing {
            Routing::RoundRobin => {
                let chosen = self.next % loads.len();
                self.next += 1;
                chosen
            }
            Routing::LeastLoaded => least(loads),
            Routing::SessionAffinity => match trace.session(tag as usize) {
                Some(session) => *self.sessions.entry(session).or_insert_with(|| least(loads)),
                None => least(loads),
            },
            Routing::PrefixAware => self.by_prefix(trace, tag, loads),
        }
    }

    fn by_prefix(&mut self, trace: &Trace, tag: u32, loads: &[Load]) -> usize {
        let Prompt::Blocks(path) = trace.prompt(tag as usize) else {
            return least(loads);
        };
        let blocks: Vec<u32> = path.iter().collect();
        let everyone = u64::MAX >> (64 - loads.len().min(64));
        let mut holders = everyone;
        let mut known = 0_usize;
        for block in &blocks {
            let here = holders & self.seen.get(block).copied().unwrap_or(0);
            if here == 0 {
                break;
            }
            holders = here;
            known += 1;
        }
        let queue = |l: &Load| l.waiting + l.running;
        let longest = loads.iter().map(queue).max().unwrap_or(0);
        let shortest = loads.iter().map(queue).min().unwrap_or(0);
        let uneven =
            longest - shortest > IMBALANCE_REQUESTS && longest as f64 > IMBALANCE_FACTOR * shortest as f64;
        let enough = known as f64 > PREFIX_SHARE * blocks.len() as f64;
        let chosen = if !uneven && known > 0 && enough {
            (0..loads.len().min(64))
                .filter(|e| holders >> e & 1 == 1)
                .min_by_key(|&e| (loads[e].score(), e))
                .unwrap_or_else(|| least(loads))
        } else {
            least(loads)
        };
        if chosen < 64 {
            for block in blocks {
                *self.seen.entry(block).or_insert(0) |= 1 << chosen;
            }
        }
        chosen
    }
}

fn least(loads: &[Load]) -> usize {
    (0..loads.len())
        .min_by_key(|&e| (loads[e].score(), e))
        .unwrap_or(0)
}
