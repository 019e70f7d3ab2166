//! From a planned deployment to what a simulation runs: scheduler, pool and kernels.

mod adapt;
pub mod apart;
mod drafting;
pub(super) mod kernels;
pub mod network;
mod scheduler;
mod sglang;
pub mod tiers;

use kvwise_core::plan::{self, Engine, Plan};
use kvwise_core::{Error, Result};
use kvwise_sim::cost::{self, StepModel, StepOptions};
use kvwise_sim::replay::vllm::Isolation;
use kvwise_sim::sched::sglang::step::SchedulePolicy;
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
use drafting::{Drafting, NOT_TIMED, speculation};
use kernels::{Kernels, confidence, graphs, has_experts};
use network::NetworkAsked;
use scheduler::{parallel, scheduler};
use sglang::Own;
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
    /// SGLang's `--scheduler-recv-interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recv_interval: Option<u32>,
    /// SGLang's `--max-prefill-tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_prefill_tokens: Option<u64>,
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
            recv_interval: None,
            max_prefill_tokens: None,
            roofline: false,
            network: NetworkAsked::default(),
            split: None,
            tiers: TiersAsked::default(),
        }
    }
}

/// Times to the first token are this much less certain than times per token: their median errors are two to three times as
/// large, since what a request passes through before its prompt is computed differs between hosts.
pub const TTFT_FACTOR: f64 = 1.5;

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
                host: match prefill.config {
                    EngineConfig::Vllm(_) => HostTimes::VLLM,
                    EngineConfig::Sglang(_) => HostTimes::SGLANG,
                },
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
    let side = |flags: &str, flag: &str, serving: Serving| {
        let changed = changed(deployment, flag, flags)?;
        prepare_whole(&changed, &serving).map_err(|e| e.at(flag))
    };
    // Prompts are computed once and whole: drafts gain nothing there. Prefixes are found there, so tiers are there.
    let of_prefill = Serving {
        replicas: split.prefill,
        split: None,
        acceptance_rate: None,
        ..serving.clone()
    };
    let of_decode = Serving {
        replicas: split.decode,
        split: None,
        tiers: TiersAsked::default(),
        ..serving.clone()
    };
    let prefill = match side(&split.prefill_flags, "--prefill-flags", of_prefill)? {
        Prepared::Ready(served) => served,
        Prepared::Refused(plan, reason) => {
            return Ok(Prepared::Refused(plan, format!("prefill engines: {reason}")));
        }
    };
    let mut decode = match side(&split.decode_flags, "--decode-flags", of_decode)? {
        Prepared::Ready(served) => served,
        Prepared::Refused(plan, reason) => {
            return Ok(Prepared::Refused(plan, format!("decode engines: {reason}")));
        }
    };
    let mut prefill = prefill;
    let transfer = apart::join(&mut prefill, &mut decode, split)?;
    decode.tiers.clone_from(&prefill.tiers);
    for warning in &prefill.warnings {
        if warning != NOT_TIMED && !decode.warnings.contains(warning) {
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
    for (flag, given) in [
        ("--scheduler-recv-interval", serving.recv_interval.is_some()),
        ("--max-prefill-tokens", serving.max_prefill_tokens.is_some()),
    ] {
        if given && !sglang {
            return Err(Error::input(format!("{flag} is a flag of SGLang"))
                .hint(format!("add --engine sglang or leave {flag} out")));
        }
    }
    let translated = if sglang {
        Some(adapt::in_words_of_sglang(deployment)?)
    } else {
        None
    };
    let deployment = translated.as_ref().unwrap_or(deployment);
    let mut notes = Vec::new();
    let own = if sglang {
        Own::of(deployment)?
    } else {
        Own::Unknown
    };
    if let Own::Refused(plan, reason) = own {
        return Ok(Prepared::Refused(plan, reason));
    }
    let resolved = if sglang {
        let pool_bytes = own
            .plan()
            .and_then(|own| own.kv_cache.as_ref())
            .map(|kv| kv.available_bytes);
        notes.push(if pool_bytes.is_some() {
            "the pool has as many tokens as SGLang's own rules give it".to_owned()
        } else {
            "SGLang's own memory rules are not planned here: its pool is taken as large as vLLM's would be"
                .to_owned()
        });
        adapt::resolve(&sglang::as_vllm(deployment, pool_bytes), &mut notes)?
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
    let experts = has_experts(model);
    if sglang && !experts && sglang::attention_groups(deployment) > 1 {
        return Err(
            Error::unsupported("SGLang's DP attention is simulated for mixtures of experts only")
                .hint("leave --data-parallel-size out, or use --replicas for independent engines"),
        );
    }
    let parallel = parallel(settings, experts, serving)?;
    let scheduler = scheduler(&plan, settings)?;
    let hardware = resolved.hardware();
    let (calibration, one_machine) = Kernels {
        described: (model, config),
        quantization: settings.quantization.as_deref(),
        hardware,
        engine: if sglang {
            cost::Engine::Sglang
        } else {
            cost::Engine::Vllm
        },
        tp: parallel.tp,
        pp: parallel.pp,
        ranks: parallel.ranks,
        whole_experts: settings.enable_expert_parallel,
        kv_dtype: plan.kv_cache.as_ref().map_or("", |kv| kv.dtype.as_str()),
        max_batched_tokens: scheduler.max_num_batched_tokens.into(),
        graphs: graphs(settings.enforce_eager),
    }
    .options()?;
    let engine_gpus = parallel
        .tp
        .saturating_mul(parallel.pp)
        .saturating_mul(parallel.ranks.into());
    let network = serving.network.between(engine_gpus)?;
    if let Some((_, Some(note))) = &network {
        warnings.push(note.clone());
    }
    let options = StepOptions {
        network: network.as_ref().map(|(network, _)| *network),
        ..one_machine
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
    let drafting = if sglang {
        own.drafting()
    } else {
        settings.speculative.as_ref().map(Drafting::of_vllm)
    };
    let speculation = speculation(
        drafting.as_ref(),
        serving,
        &mut warnings,
        model,
        (&calibration, options, hardware),
    )?;
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
        EngineConfig::Sglang(sglang::scheduler(
            &scheduler,
            &plan,
            own.plan(),
            deployment,
            hardware,
            serving,
        )?)
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
