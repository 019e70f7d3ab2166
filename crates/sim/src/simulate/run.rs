//! What is simulated: a deployment, its clock, and the engines made of them.

use kvwise_cache::manager::GroupKind;
use kvwise_core::{Error, Result};

use super::cluster::Cluster;
use super::engine::{EngineState, SglangEngine, VllmEngine, hash_block_size};
use super::handoff::{Disaggregation, KeepForReaders, ReadFromPrefill};
use super::record::{HostTimes, Run};
use super::replica::{Replica, Role};
use super::router::Routing;
use super::source::Source;
use super::tiers::{TierConfig, Tiers};
use super::workload::Arrivals;
use crate::cost::StepModel;
use crate::replay::vllm::Isolation;
use crate::sched::sglang::step::{RESERVED_DECODE_TOKENS, Side, StepConfig, StepEvent};
use crate::sched::vllm::{NoConnector, SchedulerConfig, SchedulerEvents};
use crate::trace::Trace;

/// How long a step takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StepClock<'a> {
    /// As the model's kernels say.
    Model(&'a StepModel),
    /// Always the same, seconds.
    Fixed(f64),
}

/// Scheduler and pool of one engine.
#[derive(Debug, Clone, PartialEq)]
pub enum EngineConfig {
    /// vLLM's.
    Vllm(SchedulerConfig),
    /// SGLang's.
    Sglang(StepConfig),
}

/// Engines behind a router, with their pools, schedulers and clock.
#[derive(Debug, Clone)]
pub struct Deployment<'a> {
    /// Scheduler and pool of each engine.
    pub engine: EngineConfig,
    /// Step times.
    pub clock: StepClock<'a>,
    /// Host times; zero under [`StepClock::Fixed`].
    pub host: HostTimes,
    /// What separates prefixes besides salts.
    pub isolation: Isolation,
    /// Independent replicas.
    pub replicas: u32,
    /// Data-parallel ranks of a replica that share experts and step together.
    pub ranks: u32,
    /// Which engine a request is sent to.
    pub routing: Routing,
    /// Whether the first-principles lower bound is computed beside each step.
    pub bounds: bool,
    /// Engines that compute prompts for these ones.
    pub disaggregation: Option<Disaggregation<'a>>,
    /// Tiers behind each engine's pool, nearest first; of the prefill engines' where those are apart.
    pub tiers: Vec<TierConfig>,
    /// Steps in which everybody just decodes that pass together at most, timed as their middle one; 0: every step goes
    /// through the scheduler and is timed by itself.
    pub stretch_steps: u32,
}

/// Default of [`Deployment::stretch_steps`]: contexts grow by this much at most, so that timing the middle of the stretch is
/// exact for attention that is linear in the context.
const STRETCH_STEPS: u32 = 256;

impl<'a> Deployment<'a> {
    /// One engine.
    pub fn new(engine: EngineConfig, clock: StepClock<'a>) -> Self {
        let host = match engine {
            EngineConfig::Vllm(_) => HostTimes::VLLM,
            EngineConfig::Sglang(_) => HostTimes::SGLANG,
        };
        Self {
            engine,
            clock,
            host,
            isolation: Isolation::default(),
            replicas: 1,
            ranks: 1,
            routing: Routing::default(),
            bounds: false,
            disaggregation: None,
            tiers: Vec::new(),
            stretch_steps: STRETCH_STEPS,
        }
    }
}

/// Most engines behind one router.
const MAX_ENGINES: u32 = 1024;

/// Whoever hears what the schedulers of a run report: vLLM's through [`SchedulerEvents`], SGLang's here.
pub trait RunEvents: SchedulerEvents {
    /// Whether the events of SGLang's scheduler are wanted.
    const STEPS: bool = false;
    /// What happened in a turn of SGLang's loop.
    fn happened(&mut self, turn: u64, event: &StepEvent) {
        let _ = (turn, event);
    }
}

impl RunEvents for () {}
impl RunEvents for crate::replay::vllm::EventLines<'_> {}

/// Runs `trace` on `deployment`; `events` hears everything that the scheduler reports.
///
/// # Errors
/// If the scheduler's settings are refused, the concurrency or the speed is not positive, the trace lacks the times
/// or sessions that `arrivals` needs, or there are more engines than one while events are asked for by anything but
/// `()`.
pub fn run<E: RunEvents>(
    trace: &Trace,
    deployment: &Deployment<'_>,
    arrivals: Arrivals,
    events: E,
) -> Result<(Run, E)> {
    let mut events = events;
    let run = drive(trace, deployment, arrivals, &mut events)?;
    Ok((run, events))
}

/// Passes events on to an observer that outlives the engine.
struct Relay<'e, E>(&'e mut E);

impl<E: SchedulerEvents> SchedulerEvents for Relay<'_, E> {
    const EVICTIONS: bool = E::EVICTIONS;
    fn evicted(&mut self, step: u64, block: kvwise_cache::pool::BlockId) {
        self.0.evicted(step, block);
    }
    fn admitted(
        &mut self,
        step: u64,
        admission: &crate::sched::vllm::Admission,
        blocks: &crate::sched::vllm::BlockTables<'_>,
    ) {
        self.0.admitted(step, admission, blocks);
    }
    fn preempted(&mut self, step: u64, tag: u32, tokens: u32, blocks: &crate::sched::vllm::BlockTables<'_>) {
        self.0.preempted(step, tag, tokens, blocks);
    }
    fn finished(
        &mut self,
        step: u64,
        tag: u32,
        generated: u32,
        preemptions: u32,
        blocks: &crate::sched::vllm::BlockTables<'_>,
    ) {
        self.0.finished(step, tag, generated, preemptions, blocks);
    }
    fn rejected(&mut self, step: u64, tag: u32, reason: crate::sched::vllm::Rejection) {
        self.0.rejected(step, tag, reason);
    }
}

impl<E: RunEvents> RunEvents for Relay<'_, E> {
    const STEPS: bool = E::STEPS;
    fn happened(&mut self, turn: u64, event: &StepEvent) {
        self.0.happened(turn, event);
    }
}

fn drive<E: RunEvents>(
    trace: &Trace,
    deployment: &Deployment<'_>,
    arrivals: Arrivals,
    events: &mut E,
) -> Result<Run> {
    let apart = deployment.disaggregation.as_ref();
    let decode = deployment.replicas.saturating_mul(deployment.ranks);
    let prefill = apart.map_or(0, |d| d.replicas.saturating_mul(d.ranks));
    let engines = decode.saturating_add(prefill);
    if decode == 0 || (apart.is_some() && prefill == 0) || engines > MAX_ENGINES {
        return Err(Error::input(format!(
            "{} replicas of {} ranks and {prefill} prefill engines are not simulated: expected 1 to {MAX_ENGINES} engines",
            deployment.replicas, deployment.ranks
        )));
    }
    let mut relay = Some(Relay(events));
    let mut replicas = Vec::new();
    if let Some(d) = apart {
        for _ in 0..d.replicas {
            let mut ranks: Vec<Box<dyn EngineState + '_>> = Vec::new();
            for _ in 0..d.ranks {
                if let Some(config) = pushing(deployment, &d.engine)? {
                    ranks.push(Box::new(SglangEngine::new(trace, config, ())?));
                    continue;
                }
                let (config, isolation) = (vllm_of(&d.engine)?, deployment.isolation);
                ranks.push(if deployment.tiers.is_empty() {
                    let connector = KeepForReaders(NoConnector);
                    Box::new(VllmEngine::new(trace, config, isolation, (), connector)?.of_prefill())
                } else {
                    let connector = KeepForReaders(tiers_behind(config, &deployment.tiers)?);
                    Box::new(VllmEngine::new(trace, config, isolation, (), connector)?.of_prefill())
                });
            }
            replicas.push(Replica::new(
                ranks,
                d.clock,
                d.host,
                deployment.bounds,
                Role::Prefill,
                deployment.stretch_steps,
            ));
        }
    }
    let role = if apart.is_some() {
        Role::Decode
    } else {
        Role::Whole
    };
    for _ in 0..deployment.replicas {
        let mut ranks: Vec<Box<dyn EngineState + '_>> = Vec::new();
        for _ in 0..deployment.ranks {
            ranks.push(match relay.take() {
                Some(relay) if engines == 1 => engine(trace, deployment, relay)?,
                _ => engine(trace, deployment, ())?,
            });
        }
        replicas.push(Replica::new(
            ranks,
            deployment.clock,
            deployment.host,
            deployment.bounds,
            role,
            deployment.stretch_steps,
        ));
    }
    Cluster::new(trace, deployment, Source::new(trace, arrivals)?, replicas).run()
}

/// An engine of the deployment itself: all of it, or the decode side.
fn engine<'a, E: RunEvents + 'a>(
    trace: &'a Trace,
    deployment: &Deployment<'_>,
    events: E,
) -> Result<Box<dyn EngineState + 'a>> {
    let isolation = deployment.isolation;
    if deployment.disaggregation.is_some() {
        if let EngineConfig::Sglang(config) = &deployment.engine {
            let side = match config.side {
                Side::Whole => Side::Decode {
                    reserved_tokens: RESERVED_DECODE_TOKENS,
                    extra_rows: 0,
                },
                side => side,
            };
            return Ok(Box::new(SglangEngine::new(
                trace,
                StepConfig { side, ..*config },
                events,
            )?));
        }
        let config = vllm_of(&deployment.engine)?;
        let connector = ReadFromPrefill::default();
        return Ok(Box::new(VllmEngine::new(
            trace, config, isolation, events, connector,
        )?));
    }
    if !deployment.tiers.is_empty() {
        let EngineConfig::Vllm(config) = &deployment.engine else {
            return Err(Error::unsupported("KV tiers are simulated for vLLM only"));
        };
        let connector = tiers_behind(config, &deployment.tiers)?;
        return Ok(Box::new(VllmEngine::new(
            trace, config, isolation, events, connector,
        )?));
    }
    Ok(match &deployment.engine {
        EngineConfig::Vllm(config) => {
            Box::new(VllmEngine::new(trace, config, isolation, events, NoConnector)?)
        }
        EngineConfig::Sglang(config) => Box::new(SglangEngine::new(trace, *config, events)?),
    })
}

/// The prefill side of SGLang's engines; `None` if it is vLLM's.
fn pushing(deployment: &Deployment<'_>, engine: &EngineConfig) -> Result<Option<StepConfig>> {
    let (EngineConfig::Sglang(prefill), EngineConfig::Sglang(decode)) = (engine, &deployment.engine) else {
        if matches!(engine, EngineConfig::Sglang(_)) != matches!(deployment.engine, EngineConfig::Sglang(_)) {
            return Err(Error::input(
                "prefill and decode engines are one vLLM's and one SGLang's: neither reads the other's cache",
            ));
        }
        return Ok(None);
    };
    if prefill.page_size != decode.page_size {
        return Err(Error::input(format!(
            "the prefill engines keep pages of {} tokens and the decode engines pages of {}: SGLang moves pages as they are",
            prefill.page_size, decode.page_size
        ))
        .hint("give both sides the same --page-size"));
    }
    if !deployment.tiers.is_empty() {
        return Err(Error::unsupported("KV tiers are simulated for vLLM only").hint("leave --tiers out"));
    }
    Ok(Some(StepConfig {
        side: Side::Prefill,
        ..*prefill
    }))
}

/// The tiers behind a pool of vLLM's.
fn tiers_behind(config: &SchedulerConfig, tiers: &[TierConfig]) -> Result<Tiers> {
    if !config.prefix_caching {
        return Err(Error::input(
            "--tiers keep blocks for requests with the same prefix, but prefix caching is off",
        )
        .hint("leave --no-enable-prefix-caching out"));
    }
    Tiers::new(tiers, &config.groups, hash_block_size(config)?)
}

fn vllm_of(engine: &EngineConfig) -> Result<&SchedulerConfig> {
    match engine {
        EngineConfig::Vllm(config) => {
            if config
                .groups
                .iter()
                .any(|g| matches!(g.kind, GroupKind::MambaAlign { .. }))
            {
                return Err(Error::unsupported(
                    "handing over recurrent states from prefill to decode engines is not simulated",
                )
                .hint("leave --disaggregate out, or turn prefix caching off"));
            }
            Ok(config)
        }
        EngineConfig::Sglang(_) => Err(Error::input(
            "prefill and decode engines are one vLLM's and one SGLang's: neither reads the other's cache",
        )),
    }
}
