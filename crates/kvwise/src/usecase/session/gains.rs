//! Gains computed by replaying the recorded requests through vLLM's scheduler rules with the changed setting.
//!
//! A gain is given only where the replay earns trust: replaying the recording with its own settings must give the
//! recorded hits and preemptions (asynchronous scheduling and several engines can make it differ). Otherwise nothing is
//! said.

use kvwise_cache::manager::{GroupSpec, Retention};
use kvwise_core::{Error, Result};
use kvwise_io::session::series::{self, Process};
use kvwise_io::session::{Session, trace};
use kvwise_sim::replay::vllm::{Clock, Isolation, ReplayConfig, Summary, run};
use kvwise_sim::sched::vllm::{Policy, SchedulerConfig};
use kvwise_sim::trace::{IdMeaning, NewRequest, PromptIds, Trace, TraceBuilder, TraceFormat};

use super::rules::GainCalculator;
use crate::report::session::{Gain, SessionReport, Suggestion};

/// Largest difference between the recorded and the replayed share of hit tokens that is trusted.
const TRUSTED_HIT_DIFFERENCE: f64 = 0.01;

/// Replays one recording.
#[derive(Debug)]
pub struct ReplayedGains {
    trace: Trace,
    config: SchedulerConfig,
    base: Summary,
}

impl ReplayedGains {
    /// Prepares a recording; `None` if it has no usable requests, or its replay does not match it.
    pub fn new(session: &Session) -> Option<Self> {
        let processes = series::processes(&session.db).ok()?;
        let [process] = processes.as_slice() else {
            return None;
        };
        let config = config(process)?;
        let trace = recorded_trace(session).ok()?;
        let base = replay(&trace, &config).ok()?;
        let recorded = process.totals;
        if recorded.query_tokens == 0 || base.requests == 0 {
            return None;
        }
        let recorded_rate = recorded.hit_tokens as f64 / recorded.query_tokens as f64;
        let trusted = (base.hit_rate - recorded_rate).abs() <= TRUSTED_HIT_DIFFERENCE
            && base
                .preemptions
                .abs_diff(u64::try_from(recorded.preemptions).ok()?)
                <= base.preemptions / 20 + 1;
        trusted.then_some(Self { trace, config, base })
    }

    fn changed(&self, suggestion: &Suggestion) -> Option<(SchedulerConfig, &'static str)> {
        let mut config = self.config.clone();
        match suggestion.flag.as_str() {
            "--kv-cache-dtype" if suggestion.value == "fp8" => {
                // a 16-bit cache becomes an 8-bit one: the same bytes hold twice the blocks (beside the null block)
                config.num_blocks = config.num_blocks.checked_sub(1)?.checked_mul(2)?.checked_add(1)?;
                Some((config, "twice the blocks in the same memory"))
            }
            "--enable-prefix-caching" => {
                config.prefix_caching = true;
                Some((config, "prefix caching on"))
            }
            "--max-num-seqs" => {
                config.max_num_seqs = suggestion.value.parse().ok()?;
                Some((config, "a larger batch"))
            }
            _ => None,
        }
    }
}

impl GainCalculator for ReplayedGains {
    fn gain(&self, _: &SessionReport, suggestion: &Suggestion) -> Option<Gain> {
        let (config, what) = self.changed(suggestion)?;
        let after = replay(&self.trace, &config).ok()?;
        let before = &self.base;
        let tokens = |c: &SchedulerConfig| {
            let block = c.groups.first().map_or(0, |g| u64::from(g.block_size));
            u64::from(c.num_blocks.saturating_sub(1)) * block
        };
        Some(Gain {
            text: format!(
                "pool {} -> {} tokens, hit rate {:.1} -> {:.1} %, preemptions {} -> {}, scheduler steps {} -> {}",
                tokens(&self.config),
                tokens(&config),
                before.hit_rate * 100.0,
                after.hit_rate * 100.0,
                before.preemptions,
                after.preemptions,
                before.steps,
                after.steps
            ),
            basis: format!(
                "the recorded {} requests replayed with {what}; arrivals by scheduler step, so a faster server would \
                 have got them later",
                before.requests
            ),
        })
    }
}

fn replay(trace: &Trace, config: &SchedulerConfig) -> Result<Summary> {
    let config = ReplayConfig {
        scheduler: config.clone(),
        clock: Clock::Steps,
        isolation: Isolation { lora: false },
    };
    run(trace, &config, &mut (), |()| Ok(()))
}

/// The scheduler settings of a recorded process; `None` where the replay has no rules for its layers.
fn config(process: &Process) -> Option<SchedulerConfig> {
    let s = &process.settings;
    let int = |key: &str| s[key].as_u64().and_then(|v| u32::try_from(v).ok());
    let groups = s["groups"].as_array()?;
    // several groups need the page arithmetic of the plan: not computed here
    let [group] = groups.as_slice() else { return None };
    if group["kind"].as_str() != Some("FullAttentionSpec") {
        return None;
    }
    let block_size = u32::try_from(group["block_size"].as_u64()?).ok()?;
    Some(SchedulerConfig {
        groups: vec![GroupSpec::full(block_size)],
        max_model_len: int("max_model_len")?,
        max_num_seqs: int("max_num_seqs")?,
        max_num_batched_tokens: int("max_num_batched_tokens")?,
        watermark: s["watermark"].as_f64().unwrap_or(0.0),
        policy: if s["policy"].as_str() == Some("priority") {
            Policy::Priority
        } else {
            Policy::Fcfs
        },
        prefix_caching: process.caching,
        retention: Retention::default(),
        ..SchedulerConfig::new(u32::try_from(process.num_blocks).ok()?, block_size)
    })
}

/// The recorded requests in the simulator's form.
///
/// # Errors
/// If none was recorded with its block hashes.
fn recorded_trace(session: &Session) -> Result<Trace> {
    let recorded = trace::read(&session.db)?;
    let block =
        u32::try_from(recorded.hash_block_tokens).map_err(|_| Error::overflow("the hash block size"))?;
    let mut builder =
        TraceBuilder::new(&session.metadata.session_id, block, IdMeaning::Prefix).format(TraceFormat::Tokens);
    for request in &recorded.requests {
        builder.push(&NewRequest {
            arrival: Some(request.arrival as f64),
            input_len: u64::try_from(request.input_len).ok(),
            output_len: u64::try_from(request.output_len).ok(),
            prompt: PromptIds::Blocks(&request.hash_ids),
            priority: request.priority,
            ..NewRequest::default()
        })?;
    }
    Ok(builder.finish())
}
