//! Prefill and decode on different engines: who hands over what, and the connectors of both sides.
//!
//! Semantics of vLLM 0.32.0's NIXL connector in pull mode (`vllm/distributed/kv_transfer/kv_connector/v1/nixl/`,
//! `pull_scheduler.py`): a router sends each request to a prefill engine with one token to generate; when it has ended
//! there, its blocks stay until they have been read, and the router sends it to a decode engine. That engine takes
//! what its own prefix cache has, reserves blocks for the rest of the prompt, reads them, computes the last prompt
//! token again and goes on from there: the client's first token is the decode engine's. A request that the decode
//! engine preempts is computed again where it is.
//!
//! Tiers behind the prefill engines' pools are the same engine's `MultiConnector` (`multi_connector.py`) of NIXL and
//! offloading: NIXL has nothing for a prompt that is computed here, so the tiers are asked, and what they have is loaded;
//! computed blocks go to the tiers as ever, and all of them stay until they were read.

use rustc_hash::FxHashSet;

use super::engine::{StepReport, TimedConnector};
use super::link::LinkSpeed;
use super::record::HostTimes;
use super::run::{EngineConfig, StepClock};
use super::tiers::TierTotals;
use crate::sched::vllm::{KvConnector, Load, Matched, Query};

/// The prefill side of a disaggregated deployment; the deployment itself is the decode side.
#[derive(Debug, Clone)]
pub struct Disaggregation<'a> {
    /// Scheduler and pool of each prefill engine.
    pub engine: EngineConfig,
    /// Step times of the prefill engines.
    pub clock: StepClock<'a>,
    /// Their host times.
    pub host: HostTimes,
    /// Prefill replicas.
    pub replicas: u32,
    /// Data-parallel ranks of a prefill replica that step together.
    pub ranks: u32,
    /// How blocks get from one side to the other.
    pub transfer: Transfer,
}

/// What moving a request's cache costs.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Transfer {
    /// Bytes of a block that the busiest GPU of the two sides sends or receives.
    pub bytes_per_block: u64,
    /// Each GPU's port, one direction.
    pub speed: LinkSpeed,
    /// Router time between the end of a prefill and the arrival at the decode engine, seconds.
    pub handoff_s: f64,
}

/// What moved between the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct Transfers {
    /// Requests whose blocks moved.
    pub requests: u64,
    /// Blocks moved.
    pub blocks: u64,
    /// Bytes that moved, of the busiest GPU of each engine.
    pub bytes: u64,
    /// Time in which ports of the decode side received, seconds, all engines together.
    pub receiving_s: f64,
}

/// The prefill side: blocks of finished requests stay until they have been read. What is behind the pool besides is
/// another connector's.
#[derive(Debug, Default)]
pub(super) struct KeepForReaders<K>(pub(super) K);

impl<K: KvConnector> KvConnector for KeepForReaders<K> {
    const ENABLED: bool = true;

    fn matched(&mut self, query: &Query<'_>) -> Matched {
        self.0.matched(query)
    }

    fn load(&mut self, load: &Load<'_>) {
        self.0.load(load);
    }

    fn arrived(&mut self, tag: u32) -> bool {
        self.0.arrived(tag)
    }

    fn computed(&mut self, tag: u32, keys: &[u32], tokens: u32) {
        self.0.computed(tag, keys, tokens);
    }

    fn finished(&mut self, tag: u32, keys: &[u32], tokens: u32) -> bool {
        self.0.finished(tag, keys, tokens);
        true
    }
}

impl<K: TimedConnector> TimedConnector for KeepForReaders<K> {
    fn advance(&mut self, now_s: f64) -> bool {
        self.0.advance(now_s)
    }

    fn next_event_s(&self) -> Option<f64> {
        self.0.next_event_s()
    }

    fn drain(&mut self, report: &mut StepReport) {
        self.0.drain(report);
    }

    fn tiers(&self) -> Vec<TierTotals> {
        self.0.tiers()
    }
}

/// The decode side: whole prompts are read from where they were computed, once.
#[derive(Debug, Default)]
pub(super) struct ReadFromPrefill {
    /// Requests whose blocks were read, or are on their way.
    asked: FxHashSet<u32>,
    arrived: FxHashSet<u32>,
    /// Reads that began since the caller last looked: request and blocks.
    pub(super) begun: Vec<(u32, u32)>,
}

impl ReadFromPrefill {
    /// The blocks of a request are there.
    pub(super) fn arrive(&mut self, tag: u32) {
        self.arrived.insert(tag);
    }
}

impl KvConnector for ReadFromPrefill {
    const ENABLED: bool = true;

    fn matched(&mut self, query: &Query<'_>) -> Matched {
        Matched::Tokens(if self.asked.contains(&query.tag) {
            0
        } else {
            query.num_tokens.saturating_sub(query.local_tokens)
        })
    }

    fn load(&mut self, load: &Load<'_>) {
        self.asked.insert(load.tag);
        self.begun.push((load.tag, load.blocks));
    }

    fn arrived(&mut self, tag: u32) -> bool {
        self.arrived.remove(&tag)
    }

    fn finished(&mut self, tag: u32, _: &[u32], _: u32) -> bool {
        self.asked.remove(&tag);
        false
    }
}
