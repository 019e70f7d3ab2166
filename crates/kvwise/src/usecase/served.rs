//! From a planned deployment to what a simulation runs: scheduler, pool and kernels.

mod adapt;
pub mod apart;
mod drafting;
mod kernels;
pub mod network;
pub mod tiers;

use kvwise_cache::manager::GroupSpec;
use kvwise_core::arch::Op;
use kvwise_core::engine::vllm;
use kvwise_core::engine::vllm::spec::SpecKind;
use kvwise_core::plan::{self, Engine, Hardware, Plan};
use kvwise_core::units::parse_count;
use kvwise_core::{Error, ErrorKind, Result};
use kvwise_sim::cost::{self, StepModel, StepOptions};
use kvwise_sim::replay::vllm::Isolation;
use kvwise_sim::sched::sglang::step::{SchedulePolicy, StepConfig};
use kvwise_sim::sched::vllm::SchedulerConfig;
use kvwise_sim::simulate::{
    Deployment as Simulated, Disaggregation, EngineConfig, HostTimes, Routing, StepClock, TierConfig,
    Transfer,
};
use serde::Serialize;
use serde_json::Value;

use super::deployment::Deployment;
use super::simulate::changed;
use apart::Split;
use drafting::speculation;
use kernels::{calibration, confidence, precisions};
use network::NetworkAsked;
use tiers::TiersAsked;

/// What a simulation needs to know besides the deployment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Serving {
    /// Independent replicas of the whole deployment.
    pub replicas: u32,
    /// How requests are spread over engines, by its name.
    pub routing: Routing,
    /// Probability that a drafted token is accepted, given that all before it were.
    pub acceptance_rate: Option<f64>,
    /// Order of SGLang's waiting queue.
    pub schedule_policy: SchedulePolicy,
    /// SGLang's `--schedule-conservativeness`.
    pub conservativeness: f64,
    /// Whether the first-principles lower bound is computed too.
    pub roofline: bool,
    /// What joins the machines of one engine.
    pub network: NetworkAsked,
    /// Prefill and decode on different engines.
    pub split: Option<Split>,
    /// Tiers behind the pool.
    pub tiers: TiersAsked,
}

impl Default for Serving {
    fn default() -> Self {
        Self {
            replicas: 1,
            routing: Routing::LeastLoaded,
            acceptance_rate: None,
            schedule_policy: SchedulePolicy::Fcfs,
            conservativeness: 1.0,
            roofline: false,
            network: NetworkAsked::default(),
            split: None,
            tiers: TiersAsked::default(),
        }
    }
}

/// How far the answer can be trusted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Confidence {
    /// Factor f: the measured time per output token lay between the simulated one divided and multiplied by f in 90 %
    /// of the cases that this basis stands for.
    pub factor: f64,
    /// The cases.
    pub basis: String,
}

/// A deployment ready to be simulated.
#[derive(Debug)]
pub struct Served {
    /// The plan that it rests on.
    pub plan: Plan,
    /// Engine name as asked for.
    pub engine: &'static str,
    /// Scheduler, pool, replicas; the clock is made from `step`.
    pub config: EngineConfig,
    /// Kernels.
    pub step: StepModel,
    /// Replicas behind the router.
    pub replicas: u32,
    /// Ranks of a replica that step together.
    pub ranks: u32,
    /// Which engine a request is sent to.
    pub routing: Routing,
    /// Whether the lower bound is wanted.
    pub roofline: bool,
    /// How far the times can be trusted.
    pub confidence: Confidence,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// The engines that compute prompts for these, and what joins the two sides.
    pub prefill: Option<(Box<Served>, Transfer)>,
    /// Tiers behind each engine's pool.
    pub tiers: Vec<TierConfig>,
}

impl Served {
    /// What the simulator takes.
    pub fn simulated(&self) -> Simulated<'_> {
        let clock = StepClock::Model(&self.step);
        Simulated {
            replicas: self.replicas,
            ranks: self.ranks,
            routing: self.routing,
            bounds: self.roofline,
            // vLLM's block names hold the adapter's.
            isolation: Isolation { lora: true },
            disaggregation: self.prefill.as_ref().map(|(prefill, transfer)| Disaggregation {
                engine: prefill.config.clone(),
                clock: StepClock::Model(&prefill.step),
                host: HostTimes::VLLM,
                replicas: prefill.replicas,
                ranks: prefill.ranks,
                transfer: *transfer,
            }),
            tiers: self.tiers.clone(),
            ..Simulated::new(self.config.clone(), clock)
        }
    }

    /// GPUs of all replicas.
    pub fn gpus(&self) -> u64 {
        let prefill = self.prefill.as_ref().map_or(0, |(p, _)| p.gpus());
        prefill.saturating_add(self.own_gpus())
    }

    /// GPUs of all replicas but those that only compute prompts.
    pub fn own_gpus(&self) -> u64 {
        self.plan
            .gpu
            .count
            .saturating_mul(u64::from(self.replicas / self.plan_replicas()))
    }

    /// Replicas that the plan counts already (independent data-parallel engines).
    fn plan_replicas(&self) -> u32 {
        let dp = self
            .plan
            .inputs
            .get("data_parallel_size")
            .and_then(Value::as_u64)
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(1)
            .max(1);
        if self.ranks > 1 { 1 } else { dp }
    }
}

/// A deployment that can be simulated, or why the engine would not start.
#[derive(Debug)]
pub enum Prepared {
    /// Ready.
    Ready(Box<Served>),
    /// The plan and the reason.
    Refused(Box<Plan>, String),
}

/// The pool that SGLang would make.
enum Pool {
    /// Its bytes on each GPU.
    Bytes(u64),
    /// It would not start.
    Refused(Box<Plan>, String),
    /// Its rules for this model are not planned.
    Unknown,
}

fn pool_of_sglang(deployment: &Deployment) -> Result<Pool> {
    // Replicas of the attention layers are counted differently by the two engines.
    if deployment.data_parallel_size.is_some_and(|n| n > 1) || deployment.kv_cache_memory_bytes.is_some() {
        return Ok(Pool::Unknown);
    }
    let planned =
        adapt::resolve(deployment, &mut Vec::new()).and_then(|resolved| plan::plan(&resolved.request(false)));
    let plan = match planned {
        Ok(plan) => plan,
        Err(e) if e.kind() == ErrorKind::Unsupported => return Ok(Pool::Unknown),
        Err(e) => return Err(e),
    };
    if let Some(reason) = plan.feasibility.refused.clone() {
        return Ok(Pool::Refused(Box::new(plan), reason));
    }
    Ok(plan
        .kv_cache
        .as_ref()
        .map(|kv| kv.available_bytes)
        .filter(|&bytes| bytes > 0)
        .map_or(Pool::Unknown, Pool::Bytes))
}

/// The deployment without what only SGLang's memory rules read.
fn as_vllm(deployment: &Deployment, pool_bytes: Option<u64>) -> Deployment {
    Deployment {
        engine: None,
        engine_version: None,
        mem_fraction_static: None,
        page_size: None,
        chunked_prefill_size: None,
        max_running_requests: None,
        max_total_tokens: None,
        swa_full_tokens_ratio: None,
        mamba_full_memory_ratio: None,
        max_num_seqs: deployment.max_running_requests,
        // SGLang cuts requests to what the pool holds, where vLLM would not start.
        max_model_len: Some("auto".to_owned()),
        speculative_algorithm: None,
        speculative_draft_model_path: None,
        speculative_num_steps: None,
        speculative_eagle_topk: None,
        speculative_num_draft_tokens: None,
        kv_cache_memory_bytes: pool_bytes
            .map(|bytes| bytes.to_string())
            .or_else(|| deployment.kv_cache_memory_bytes.clone()),
        ..deployment.clone()
    }
}

/// Plans the deployment and makes the simulator's parts of the plan.
///
/// # Errors
/// If a name or value cannot be used, or the deployment has a part that is not simulated.
pub fn prepare(deployment: &Deployment, serving: &Serving) -> Result<Prepared> {
    let Some(split) = &serving.split else {
        return prepare_whole(deployment, serving);
    };
    if serving.replicas != 1 {
        return Err(Error::input(
            "--replicas and --disaggregate both say how many engines there are: leave --replicas out",
        ));
    }
    if !serving.tiers.rooms.is_empty() {
        return Err(Error::unsupported(
            "tiers behind the pools of a disaggregated deployment are not simulated",
        )
        .hint("leave --tiers or --disaggregate out"));
    }
    if serving.acceptance_rate.is_some() {
        return Err(
            Error::unsupported("speculative decoding on disaggregated engines is not simulated")
                .hint("leave --acceptance-rate or --disaggregate out"),
        );
    }
    let side = |flags: &str, flag: &str, replicas: u32| {
        let changed = changed(deployment, flags).map_err(|e| e.at(flag))?;
        let serving = Serving {
            replicas,
            split: None,
            ..serving.clone()
        };
        prepare_whole(&changed, &serving).map_err(|e| e.at(flag))
    };
    let prefill = match side(&split.prefill_flags, "--prefill-flags", split.prefill)? {
        Prepared::Ready(served) => served,
        Prepared::Refused(plan, reason) => {
            return Ok(Prepared::Refused(plan, format!("prefill engines: {reason}")));
        }
    };
    let mut decode = match side(&split.decode_flags, "--decode-flags", split.decode)? {
        Prepared::Ready(served) => served,
        Prepared::Refused(plan, reason) => {
            return Ok(Prepared::Refused(plan, format!("decode engines: {reason}")));
        }
    };
    if decode.engine != "vllm" || prefill.engine != "vllm" {
        return Err(Error::unsupported(
            "prefill and decode on different engines are simulated for vLLM only",
        )
        .hint("leave --disaggregate or --engine sglang out"));
    }
    // The decode side's server tokenises and answers once more.
    let transfer = apart::transfer(
        &prefill.plan,
        &decode.plan,
        split.speed,
        HostTimes::VLLM.request_s,
    )?;
    for warning in &prefill.warnings {
        if !decode.warnings.contains(warning) {
            decode.warnings.push(warning.clone());
        }
    }
    decode.prefill = Some((prefill, transfer));
    Ok(Prepared::Ready(decode))
}

fn prepare_whole(deployment: &Deployment, serving: &Serving) -> Result<Prepared> {
    let sglang = deployment
        .engine
        .as_deref()
        .is_some_and(|e| e.eq_ignore_ascii_case("sglang"));
    let translated = if sglang {
        Some(adapt::in_words_of_sglang(deployment)?)
    } else {
        None
    };
    let deployment = translated.as_ref().unwrap_or(deployment);
    let mut notes = Vec::new();
    if sglang && deployment.speculative_algorithm.is_some() {
        notes.push("SGLang's drafter is planned for memory but not simulated in time".to_owned());
    }
    let resolved = if sglang {
        match pool_of_sglang(deployment)? {
            Pool::Bytes(bytes) => {
                notes.push(
                    "the pool has as many bytes as SGLang's own rules give it, in vLLM's blocks".to_owned(),
                );
                adapt::resolve(&as_vllm(deployment, Some(bytes)), &mut notes)?
            }
            Pool::Refused(plan, reason) => return Ok(Prepared::Refused(plan, reason)),
            Pool::Unknown => {
                notes.push(
                    "SGLang's own memory rules are not planned here: its pool is taken as large as vLLM's would be"
                        .to_owned(),
                );
                adapt::resolve(&as_vllm(deployment, None), &mut notes)?
            }
        }
    } else {
        adapt::resolve(deployment, &mut notes)?
    };
    let plan = plan::plan(&resolved.request(false))?;
    let refusal = plan.feasibility.refused.clone().or_else(|| {
        (plan.memory.headroom_bytes.0 < 0)
            .then(|| "the weights and overhead leave no memory for the KV cache".to_owned())
    });
    if let Some(reason) = refusal {
        return Ok(Prepared::Refused(Box::new(plan), reason));
    }
    let mut warnings = resolved.warnings.clone();
    warnings.extend(notes);
    let (Engine::Vllm(settings), Some((model, config))) = (resolved.engine(), resolved.described()) else {
        return Err(Error::unsupported(
            "only vLLM and SGLang are simulated, and only models whose layers are known",
        )
        .hint("leave out --engine, and give --model a catalogue name or a config.json"));
    };
    let parallel = parallel(
        settings,
        model
            .layers
            .iter()
            .any(|l| l.weights.iter().any(|w| matches!(w.op, Op::Experts { .. }))),
        serving,
    )?;
    let scheduler = scheduler(&plan, settings)?;
    let hardware = resolved.hardware();
    let calibration = calibration(hardware)?;
    let (linear, experts) = precisions(config, settings, hardware)?;
    let engine_gpus = parallel
        .tp
        .saturating_mul(parallel.pp)
        .saturating_mul(parallel.ranks.into());
    let network = serving.network.between(engine_gpus)?;
    if let Some((_, Some(note))) = &network {
        warnings.push(note.clone());
    }
    let options = StepOptions {
        ep: if settings.enable_expert_parallel {
            parallel.tp
        } else {
            1
        },
        expert_dp: u64::from(parallel.ranks),
        pp: parallel.pp,
        max_batched_tokens: scheduler.max_num_batched_tokens.into(),
        linear,
        experts,
        kv_fp8: plan.kv_cache.as_ref().is_some_and(|kv| kv.dtype.contains("fp8")),
        network: network.as_ref().map(|(network, _)| *network),
        ..StepOptions::new(
            if sglang {
                cost::Engine::Sglang
            } else {
                cost::Engine::Vllm
            },
            parallel.tp,
        )
    };
    if calibration.borrowed {
        warnings.push(format!(
            "no kernel measurements of this GPU: efficiencies of {} on its datasheet; expect a wider error",
            calibration.gpu
        ));
    }
    let confidence = match network {
        Some(_) => Confidence {
            factor: 1.6,
            basis: "assumed: the time between machines is computed from the network's rate, and no served point on several machines was compared"
                .to_owned(),
        },
        None => confidence(&calibration, &plan.model.name, sglang),
    };
    let planned = settings.speculative.as_ref();
    let speculation = speculation(planned, serving, &mut warnings, &|planned| {
        drafting::share(planned, model, &calibration, options, hardware)
    })?;
    let step = StepModel::new(
        model,
        &calibration,
        StepOptions {
            speculation,
            ..options
        },
    )?;
    let stages = u32::try_from(parallel.pp).unwrap_or(u32::MAX);
    let engine = if sglang {
        EngineConfig::Sglang(sglang_config(&scheduler, &plan, deployment, hardware, serving)?)
    } else {
        EngineConfig::Vllm(SchedulerConfig {
            max_num_batched_tokens: scheduler.max_num_batched_tokens.saturating_mul(stages),
            ..scheduler
        })
    };
    if sglang && !serving.tiers.rooms.is_empty() {
        return Err(Error::unsupported("KV tiers are simulated for vLLM only")
            .hint("leave --tiers or --engine sglang out"));
    }
    let tiers = serving
        .tiers
        .configs(&plan, parallel.tp.saturating_mul(parallel.pp))?;
    Ok(Prepared::Ready(Box::new(Served {
        prefill: None,
        tiers,
        plan,
        engine: if sglang { "sglang" } else { "vllm" },
        config: engine,
        step,
        replicas: parallel.replicas,
        ranks: parallel.ranks,
        routing: serving.routing,
        roofline: serving.roofline,
        confidence,
        warnings,
    })))
}

/// How the engines are spread.
struct Spread {
    tp: u64,
    pp: u64,
    replicas: u32,
    ranks: u32,
}

fn parallel(settings: &vllm::Settings, experts: bool, serving: &Serving) -> Result<Spread> {
    if settings.decode_context_parallel_size > 1 {
        return Err(Error::unsupported(format!(
            "--decode-context-parallel-size {} is planned but not simulated",
            settings.decode_context_parallel_size
        )));
    }
    if !(1..=1024).contains(&serving.replicas) {
        return Err(Error::input(format!(
            "--replicas is {}, expected 1 to 1024",
            serving.replicas
        )));
    }
    let dp = small("--data-parallel-size", settings.data_parallel_size.max(1))?;
    // Ranks that share experts step together; dense replicas know nothing of each other.
    let together = dp > 1 && experts;
    if together && !settings.enable_expert_parallel {
        return Err(Error::unsupported(
            "data-parallel ranks of a mixture of experts are simulated with --enable-expert-parallel only",
        )
        .hint("add --enable-expert-parallel, or use --replicas for independent engines"));
    }
    let (ranks, dp) = if together { (dp, 1) } else { (1, dp) };
    Ok(Spread {
        tp: settings.tensor_parallel_size.max(1),
        pp: settings.pipeline_parallel_size.max(1),
        replicas: serving.replicas.saturating_mul(dp),
        ranks,
    })
}

/// SGLang's scheduler over the planned pool.
fn sglang_config(
    scheduler: &SchedulerConfig,
    plan: &Plan,
    deployment: &Deployment,
    hardware: &Hardware,
    serving: &Serving,
) -> Result<StepConfig> {
    let Some(kv) = &plan.kv_cache else {
        return Err(Error::unsupported(
            "the model keeps no KV cache: there is nothing to simulate",
        ));
    };
    let capacity = usize::try_from(kv.capacity_tokens)
        .map_err(|_| Error::overflow("the pool's tokens"))?
        .min(1 << 31);
    let asked = match deployment.max_model_len.as_deref() {
        None | Some("auto") => u64::MAX,
        Some(text) => parse_count(text).map_err(|e| e.at("--max-model-len"))?,
    };
    let context = usize::try_from(asked.min(scheduler.max_model_len.into())).unwrap_or(usize::MAX);
    // SGLang 0.5.23, `arg_groups/memory_hook.py`: chunks by GPU memory; `max_running_requests` from tokens and context.
    let chunk = match deployment.chunked_prefill_size {
        Some(n) => usize::try_from(n).ok().filter(|&n| n > 0),
        None if hardware.driver_bytes < 35 << 30 => Some(2048),
        None if hardware.driver_bytes < 60 << 30 => Some(4096),
        None if hardware.driver_bytes < 160 << 30 => Some(8192),
        None => Some(16_384),
    };
    let running = match deployment.max_running_requests {
        Some(n) => usize::try_from(n).unwrap_or(usize::MAX),
        None => (capacity / context.max(1) * 512).clamp(2048, 4096),
    };
    Ok(StepConfig {
        max_running: running.min((capacity / 2).max(1)).min(1 << 20),
        max_context_tokens: context,
        chunked_prefill_tokens: chunk,
        schedule: serving.schedule_policy,
        conservativeness: serving.conservativeness,
        radix_cache: scheduler.prefix_caching,
        ..StepConfig::new(capacity)
    })
}

fn small(what: &str, n: u64) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::input(format!("{what} is {n}, more than is simulated (2^32)")))
}

fn scheduler(plan: &Plan, settings: &vllm::Settings) -> Result<SchedulerConfig> {
    let Some(kv) = &plan.kv_cache else {
        return Err(Error::unsupported(
            "the model keeps no KV cache: there is nothing to simulate",
        ));
    };
    let Some(layout) = &plan.layout else {
        return Err(Error::unsupported(
            "the engine would not lay out this cache, so there is nothing to simulate",
        ));
    };
    // Without prefix caching a state takes one block from its first to its last token (vLLM 0.32.0,
    // `vllm/v1/core/single_type_kv_cache_manager.py`, mamba cache mode "none"): a block as long as any sequence, rounded
    // up to what the other groups' blocks divide.
    let attention_block = layout
        .groups
        .iter()
        .filter(|g| !matches!(g.spec.kind, SpecKind::State { .. }))
        .map(|g| g.block_size)
        .max()
        .unwrap_or(1)
        .max(1);
    let groups = layout
        .groups
        .iter()
        .map(|group| {
            let block = small("the block size", group.block_size)?;
            Ok(match &group.spec.kind {
                SpecKind::Sliding { window, .. } | SpecKind::SlidingLatent { window, .. } => {
                    GroupSpec::sliding_window(block, small("the window", *window)?)
                }
                SpecKind::Chunked { chunk } => GroupSpec::chunked_local(block, small("the chunk", *chunk)?),
                SpecKind::State { .. } if layout.prefix_caching => GroupSpec::mamba_align(block),
                SpecKind::State { .. } => GroupSpec::full(small(
                    "the longest sequence",
                    layout.max_model_len.next_multiple_of(attention_block),
                )?),
                _ => GroupSpec::full(block),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let concurrent_batches = if settings.async_scheduling == Some(false) {
        1
    } else {
        2
    };
    Ok(SchedulerConfig {
        num_blocks: small("the number of blocks", kv.num_blocks)?,
        groups,
        max_model_len: small("--max-model-len", layout.max_model_len)?,
        max_num_seqs: small(
            "--max-num-seqs",
            layout.max_num_seqs.min(layout.max_num_batched_tokens),
        )?,
        max_num_batched_tokens: small("--max-num-batched-tokens", layout.max_num_batched_tokens)?,
        concurrent_batches,
        prefix_caching: layout.prefix_caching,
        max_loras: settings
            .enable_lora
            .then(|| small("--max-loras", settings.max_loras.unwrap_or(1)))
            .transpose()?,
        ..SchedulerConfig::new(2, 16)
    })
}
