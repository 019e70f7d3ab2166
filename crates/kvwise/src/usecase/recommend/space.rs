//! The deployments that are looked at: kinds and numbers of GPUs, parallelism, formats, and settings of the scheduler.
//!
//! A *shape* is what decides how many GPUs a replica takes and what they hold; every shape is planned. *Settings* cost no
//! hardware; a shape that starts is tried with each of them, and the simulator says which the engine would refuse.

use kvwise_core::hardware::{self, Gpu};
use kvwise_core::plan::{self, Mode};
use kvwise_core::{Error, Result};
use rayon::prelude::*;

use super::super::deployment::Deployment;
use super::super::served::network::GPUS_PER_MACHINE;
use super::drafters::{Drafter, Target};

/// Tensor-, pipeline- and data-parallel sizes of a shape, and on what it makes sense.
const PARALLEL: [(u64, u64, u64, Sense); 18] = [
    (1, 1, 1, Sense::Always),
    (2, 1, 1, Sense::Always),
    (4, 1, 1, Sense::Always),
    (8, 1, 1, Sense::Always),
    // Stages exchange less than tensor-parallel ranks do, which pays where cards talk over PCIe.
    (1, 2, 1, Sense::Pcie),
    (2, 2, 1, Sense::Pcie),
    (1, 4, 1, Sense::Pcie),
    (4, 2, 1, Sense::Pcie),
    (2, 4, 1, Sense::Pcie),
    // Two and four machines.
    (8, 2, 1, Sense::Always),
    (8, 4, 1, Sense::Always),
    // Replicas of dense layers are replicas of the server; ranks that share experts are not.
    (1, 1, 2, Sense::Experts),
    (1, 1, 4, Sense::Experts),
    (2, 1, 2, Sense::Experts),
    (1, 1, 8, Sense::Experts),
    (2, 1, 4, Sense::Experts),
    (4, 1, 2, Sense::Experts),
    (8, 1, 2, Sense::Experts),
];

/// Where a combination of parallel sizes is worth a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sense {
    Always,
    /// Between cards without NVLink.
    Pcie,
    /// For mixtures of experts, which then go to ranks whole.
    Experts,
}

/// What may differ between candidates.
#[derive(Debug, Clone)]
pub struct Choice {
    /// What every candidate shares.
    pub base: Deployment,
    /// Kinds of GPU.
    pub gpus: Vec<String>,
    /// GPUs in all.
    pub max_gpus: u64,
    /// Whether 8-bit weights and caches may be made from 16-bit ones.
    pub allow_fp8: bool,
    /// Tokens of the longest request.
    pub longest: u64,
    /// Requests under way at once, where the traffic says.
    pub concurrency: Option<u64>,
    /// Whether requests share prefixes, so that the size of a block matters.
    pub shared_prefixes: bool,
    /// What the traffic is served for.
    pub mode: Option<Mode>,
    /// Every combination of settings instead of one change at a time.
    pub thorough: bool,
    /// Engines whose steps can be timed: `vllm`, `sglang`.
    pub engines: Vec<&'static str>,
    /// What may draft tokens, besides the model's own modules.
    pub drafters: Vec<Drafter>,
    /// How often the drafts of the model's own modules are accepted, where the user says.
    pub acceptance: Option<f64>,
    /// GPUs of one machine. Larger shapes are taken only where no smaller one of the same card starts.
    pub gpus_per_machine: Option<u64>,
}

impl Choice {
    fn machine_gpus(&self) -> u64 {
        self.gpus_per_machine.unwrap_or(GPUS_PER_MACHINE)
    }
}

/// An engine and a kind of GPU on which nothing starts, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// The engine.
    pub engine: &'static str,
    /// The GPU.
    pub gpu: String,
    /// Why.
    pub why: String,
}

/// Settings of the scheduler that differ from the engine's defaults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Setting {
    /// `--max-num-batched-tokens`.
    pub tokens: Option<u64>,
    /// `--max-num-seqs`.
    pub seqs: Option<u64>,
    /// `--block-size`.
    pub block: Option<u64>,
    /// Which of the drafters drafts, and how many tokens a step.
    pub drafted: Option<(usize, u64)>,
}

impl Setting {
    /// How many things differ from the defaults.
    fn changes(self) -> usize {
        usize::from(self.drafted.is_some()) + [self.tokens, self.seqs, self.block].iter().flatten().count()
    }

    fn apply(self, drafters: &[Drafter], target: &Target, to: &mut Deployment) {
        let sglang = to.engine.as_deref() == Some("sglang");
        if let Some(n) = self.tokens {
            if sglang {
                to.chunked_prefill_size = i64::try_from(n).ok();
            } else {
                to.max_num_batched_tokens = Some(n.to_string());
            }
        }
        if sglang {
            to.max_running_requests = self.seqs.or(to.max_running_requests);
        } else {
            to.max_num_seqs = self.seqs.or(to.max_num_seqs);
        }
        to.block_size = self.block.or(to.block_size);
        if let Some((drafter, n)) = self.drafted {
            // Settings have only drafters that the engine knows.
            let _ = drafters.get(drafter).is_some_and(|d| d.apply(n, target, to));
        }
    }
}

/// Whether an engine can draft for the target with this drafter.
fn drafts(engine: &str, drafter: &Drafter, target: &Target) -> bool {
    let mut probe = Deployment {
        engine: Some(engine.to_owned()),
        ..Deployment::default()
    };
    drafter.apply(1, target, &mut probe)
}

/// The settings that are tried with every shape, the defaults first, then by the number of changes.
fn settings(choice: &Choice, engine: &str, drafters: &[Drafter], target: &Target) -> Vec<Setting> {
    let wide = |quick: &[u64], thorough: &[u64]| -> Vec<Option<u64>> {
        let list = if choice.thorough { thorough } else { quick };
        std::iter::once(None)
            .chain(list.iter().copied().map(Some))
            .collect()
    };
    // A bound above the requests under way bounds nothing.
    let below = |n: &Option<u64>| n.is_none_or(|n| choice.concurrency.is_none_or(|c| n < c));
    let tokens = wide(&[2048, 16_384], &[512, 2048, 16_384]);
    let mut seqs = wide(&[32], &[8, 32, 128]);
    seqs.retain(below);
    // SGLang finds prefixes token by token, whatever its pages.
    let blocks = if choice.shared_prefixes && engine == "vllm" {
        wide(&[64], &[32, 64, 128])
    } else {
        vec![None]
    };
    let mut drafted = vec![None];
    for (i, drafter) in drafters.iter().enumerate() {
        if !drafts(engine, drafter, target) {
            continue;
        }
        let most = if choice.thorough { drafter.tokens.len() } else { 1 };
        drafted.extend(drafter.tokens.iter().take(most).map(|&n| Some((i, n))));
    }
    let mut all = Vec::new();
    for &tokens in &tokens {
        for &seqs in &seqs {
            for &block in &blocks {
                for &drafted in &drafted {
                    all.push(Setting {
                        tokens,
                        seqs,
                        block,
                        drafted,
                    });
                }
            }
        }
    }
    if !choice.thorough {
        all.retain(|s| s.changes() <= 1);
    }
    all.sort_by_key(|s| s.changes());
    all
}

/// A deployment that may be worth running, one replica.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The deployment.
    pub deployment: Deployment,
    /// Its engine.
    pub engine: &'static str,
    /// What drafts, if anything does.
    pub drafter: Option<Drafter>,
    /// Its GPU.
    pub gpu: String,
    /// GPUs of a replica.
    pub gpus: u64,
    /// What differs from the scheduler's defaults.
    pub setting: Setting,
}

/// A shape before it is planned.
struct Shape {
    engine: &'static str,
    gpu: &'static Gpu,
    gpus: u64,
    expert_parallel: bool,
    deployment: Deployment,
}

/// Every shape of the choice.
fn shapes(choice: &Choice) -> Result<Vec<Shape>> {
    let mut all = Vec::new();
    for &engine in &choice.engines {
        for name in &choice.gpus {
            all.extend(shapes_of(choice, engine, hardware::find(name)?));
        }
    }
    Ok(all)
}

/// Every shape of one engine on one kind of GPU.
fn shapes_of(choice: &Choice, engine: &'static str, gpu: &'static Gpu) -> Vec<Shape> {
    let mut all = Vec::new();
    let fp8 = choice.allow_fp8 && gpu.tflops.fp8.is_some();
    for (tp, pp, dp, sense) in PARALLEL {
        let gpus = tp * pp * dp;
        if gpus > choice.max_gpus || sense == Sense::Pcie && gpu.nvlink_bytes_per_s.is_some() {
            continue;
        }
        for expert_parallel in [false, true] {
            if expert_parallel && gpus == 1 || !expert_parallel && sense == Sense::Experts {
                continue;
            }
            for kv in [None, Some("fp8")] {
                for quantization in [None, Some("fp8")] {
                    if (kv.is_some() || quantization.is_some()) && !fp8 {
                        continue;
                    }
                    let mut deployment = choice.base.clone();
                    deployment.engine = (engine != "vllm").then(|| engine.to_owned());
                    deployment.gpu = Some(gpu.name.clone());
                    // SGLang divides its tensor-parallel ranks among the groups that vLLM puts beside each other.
                    deployment.tensor_parallel_size = Some(if engine == "sglang" { tp * dp } else { tp });
                    deployment.pipeline_parallel_size = (pp > 1).then_some(pp);
                    deployment.data_parallel_size = (dp > 1).then_some(dp);
                    deployment.enable_expert_parallel |= expert_parallel;
                    if kv.is_some() {
                        deployment.kv_cache_dtype = kv.map(str::to_owned);
                    }
                    if quantization.is_some() {
                        deployment.quantization = quantization.map(str::to_owned);
                    }
                    all.push(Shape {
                        engine,
                        gpu,
                        gpus,
                        expert_parallel,
                        deployment,
                    });
                }
            }
        }
    }
    all
}

/// Candidates whose shape starts and holds the longest request, and why the kinds of GPU without any have none.
///
/// # Errors
/// If the model or a GPU is not known, or the model does not accept requests of that length.
pub fn candidates(choice: &Choice) -> Result<(Vec<Candidate>, Vec<Unfit>)> {
    let all = shapes(choice)?;
    let Some(first) = all.first() else {
        return Err(Error::input("--gpus-from names no GPU"));
    };
    // A model that is not known, or too short, is the same mistake for every candidate.
    let resolved = first.deployment.resolve()?;
    let accepted = resolved.model().and_then(|m| m.max_position);
    if let Some(most) = accepted.filter(|&most| choice.longest > most) {
        return Err(Error::input(format!(
            "the traffic has requests of {} tokens, and the model accepts {most}",
            choice.longest
        )));
    }
    let target = Target {
        name: choice.base.model.clone().unwrap_or_default(),
        class: resolved
            .model()
            .map_or_else(String::new, |m| m.architecture.clone()),
    };
    let mut drafters = choice.drafters.clone();
    let own = resolved
        .model()
        .is_some_and(|m| m.mtp_modules().is_ok_and(|modules| !modules.is_empty()));
    if own {
        drafters.insert(0, Drafter::own(choice.acceptance));
    }
    // Whole experts make a difference only where some of the parameters rest.
    let experts =
        plan::assess(&resolved.request(false)).is_ok_and(|p| p.model.params_active < p.model.params);
    let all: Vec<Shape> = all
        .into_iter()
        .filter(|shape| experts || !shape.expert_parallel)
        .collect();
    let settings: Vec<(&str, Vec<Setting>)> = choice
        .engines
        .iter()
        .map(|&engine| (engine, settings(choice, engine, &drafters, &target)))
        .collect();
    let planned: Vec<Result<(), String>> = all
        .par_iter()
        .map(|shape| {
            let plan = shape
                .deployment
                .resolve()
                .and_then(|r| plan::assess(&r.request(false)))
                .map_err(|e| e.to_string())?;
            if plan.feasibility.fits {
                Ok(())
            } else {
                Err(plan.verdict)
            }
        })
        .collect();
    let kind = |shape: &Shape| (shape.engine, shape.gpu.name.clone());
    let enough: Vec<(&str, String)> = planned
        .iter()
        .zip(&all)
        .filter(|(outcome, shape)| outcome.is_ok() && shape.gpus <= choice.machine_gpus())
        .map(|(_, shape)| kind(shape))
        .collect();
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut reasons: Vec<(Unfit, u64)> = Vec::new();
    for (outcome, shape) in planned.iter().zip(&all) {
        let (engine, gpu) = kind(shape);
        if shape.gpus > choice.machine_gpus() && enough.contains(&(engine, gpu.clone())) {
            continue;
        }
        if let Err(why) = outcome {
            // The reason of the most GPUs is the one that counts.
            let same = |u: &Unfit| u.engine == engine && u.gpu == gpu;
            let most = reasons.iter().find(|(u, _)| same(u)).map_or(0, |r| r.1);
            if shape.gpus >= most {
                reasons.retain(|(u, _)| !same(u));
                let why = format!("with {} GPUs: {why}", shape.gpus);
                reasons.push((Unfit { engine, gpu, why }, shape.gpus));
            }
            continue;
        }
        let own = choice.mode.zip(choice.concurrency).map(|(mode, c)| {
            let steps = mode.steps(choice.longest, c, shape.gpu.memory_bytes);
            Setting {
                tokens: Some(steps.tokens),
                seqs: Some(steps.sequences),
                ..Setting::default()
            }
        });
        let listed = settings
            .iter()
            .filter(|(of, _)| *of == engine)
            .flat_map(|(_, list)| list.iter().copied())
            .filter(|s| Some(*s) != own)
            // Drafts that pass through SGLang's stages are not timed.
            .filter(|s| {
                engine != "sglang" || s.drafted.is_none() || shape.deployment.pipeline_parallel_size.is_none()
            });
        for setting in listed.chain(own) {
            let mut deployment = shape.deployment.clone();
            setting.apply(&drafters, &target, &mut deployment);
            candidates.push(Candidate {
                deployment,
                engine,
                drafter: setting.drafted.and_then(|(i, _)| drafters.get(i).cloned()),
                gpu: gpu.clone(),
                gpus: shape.gpus,
                setting,
            });
        }
    }
    reasons.retain(|(u, _)| candidates.iter().all(|c| c.gpu != u.gpu || c.engine != u.engine));
    Ok((candidates, reasons.into_iter().map(|(unfit, _)| unfit).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(model: &str) -> Choice {
        Choice {
            base: Deployment {
                model: Some(model.to_owned()),
                max_model_len: Some("4096".to_owned()),
                ..Deployment::default()
            },
            gpus: vec!["h200".to_owned(), "l40s".to_owned()],
            max_gpus: 16,
            allow_fp8: false,
            longest: 4000,
            concurrency: None,
            shared_prefixes: false,
            mode: None,
            thorough: false,
            engines: vec!["vllm"],
            drafters: Vec::new(),
            acceptance: None,
            gpus_per_machine: None,
        }
    }

    fn llama() -> Target {
        Target {
            name: "Llama-3.1-8B".to_owned(),
            class: "LlamaForCausalLM".to_owned(),
        }
    }

    #[test]
    fn experts_are_spread_over_data_parallel_ranks_and_dense_layers_are_not() {
        let (dense, _) = candidates(&choice("Llama-3.1-8B")).unwrap();
        assert!(dense.iter().all(|c| c.deployment.data_parallel_size.is_none()));
        assert!(dense.iter().all(|c| !c.deployment.enable_expert_parallel));
        let (experts, _) = candidates(&choice("deepseek-ai/DeepSeek-V3")).unwrap();
        let spread = |c: &&Candidate| c.deployment.data_parallel_size == Some(8);
        assert!(
            experts
                .iter()
                .filter(spread)
                .all(|c| c.deployment.enable_expert_parallel)
        );
        assert!(experts.iter().any(|c| c.setting.drafted == Some((0, 1))));
        assert!(dense.iter().all(|c| c.setting.drafted.is_none()));
        assert!(experts.iter().all(|c| c.gpus <= 16));
    }

    #[test]
    fn sglang_divides_its_ranks_among_groups_with_attention_of_their_own() {
        let mut choice = choice("deepseek-ai/DeepSeek-V3");
        choice.engines = vec!["sglang"];
        choice.gpus = vec!["h200".to_owned()];
        let (all, _) = candidates(&choice).unwrap();
        let grouped = |c: &&Candidate| c.deployment.data_parallel_size == Some(8);
        let mut seen = 0;
        for c in all.iter().filter(grouped) {
            let d = &c.deployment;
            assert_eq!((c.gpus, d.tensor_parallel_size), (8, Some(8)));
            assert!(d.enable_expert_parallel);
            seen += u32::from(d.speculative_algorithm.as_deref() == Some("EAGLE"));
        }
        assert!(seen > 0, "no groups with drafts");
    }

    #[test]
    fn several_machines_are_a_replica_only_where_one_is_not_enough() {
        let mut choice = choice("deepseek-ai/DeepSeek-V3");
        choice.gpus.push("h100".to_owned());
        let (all, _) = candidates(&choice).unwrap();
        let most = |gpu: &str| all.iter().filter(|c| c.gpu == gpu).map(|c| c.gpus).max();
        assert_eq!((most("h200"), most("h100")), (Some(8), Some(16)));
    }

    #[test]
    fn stages_are_tried_between_cards_without_nvlink() {
        let (all, _) = candidates(&choice("Llama-3.1-8B")).unwrap();
        let staged = |gpu: &str| {
            all.iter()
                .any(|c| c.gpu == gpu && c.gpus == 2 && c.deployment.pipeline_parallel_size == Some(2))
        };
        assert!(staged("l40s") && !staged("h200"));
    }

    #[test]
    fn quick_settings_are_those_of_the_thorough_ones_with_one_change() {
        let mut choice = choice("Llama-3.1-8B");
        choice.shared_prefixes = true;
        let quick = settings(&choice, "vllm", &[Drafter::own(None)], &llama());
        choice.thorough = true;
        let thorough = settings(&choice, "vllm", &[Drafter::own(None)], &llama());
        assert_eq!((quick[0], thorough[0]), (Setting::default(), Setting::default()));
        assert!(quick.iter().all(|s| s.changes() <= 1 && thorough.contains(s)));
        assert!(thorough.len() > 100);
        // 16 requests at once are never bounded by 32.
        choice.concurrency = Some(16);
        assert!(
            settings(&choice, "vllm", &[Drafter::own(None)], &llama())
                .iter()
                .all(|s| s.seqs.is_none_or(|n| n < 16))
        );
    }

    #[test]
    fn engines_are_side_by_side_each_in_its_own_words() {
        let mut choice = choice("Llama-3.1-8B");
        choice.engines = vec!["vllm", "sglang"];
        choice.drafters = vec![Drafter::given("ngram=0.4", None).unwrap()];
        let (all, _) = candidates(&choice).unwrap();
        let of = |engine: &'static str| all.iter().filter(move |c| c.engine == engine);
        assert!(of("vllm").any(|c| c.drafter.is_some()));
        let lookups = |c: &&Candidate| c.deployment.speculative_algorithm.as_deref() == Some("NGRAM");
        assert!(of("sglang").count() > 10 && of("sglang").filter(lookups).count() > 2);
        assert!(of("sglang").all(|c| c.deployment.speculative_config.is_none()));
        assert!(of("vllm").all(|c| c.deployment.speculative_algorithm.is_none()));
        assert!(of("sglang").any(|c| c.deployment.max_running_requests == Some(32)));
        assert!(of("sglang").all(|c| c.deployment.max_num_seqs.is_none()));
        assert!(of("vllm").all(|c| c.deployment.engine.is_none()));
    }

    #[test]
    fn a_mode_adds_the_steps_that_an_earlier_planner_would_take() {
        let mut choice = choice("Llama-3.1-8B");
        choice.mode = Some(Mode::Throughput);
        choice.concurrency = Some(10);
        let (all, _) = candidates(&choice).unwrap();
        let own = all.iter().find(|c| c.setting.seqs == Some(14)).unwrap();
        // 1.5 times 10 requests of 4000 tokens, within what a card of 48 GB is given.
        assert_eq!(own.deployment.max_num_batched_tokens.as_deref(), Some("60000"));
        assert!(Mode::named("fast").is_none() && Mode::named("latency") == Some(Mode::Latency));
    }
}
