//! The deployments that are looked at: kinds and numbers of GPUs, parallelism, formats, and settings of the scheduler.
//!
//! A *shape* is what decides how many GPUs a replica takes and what they hold; every shape is planned. *Settings* cost no
//! hardware; a shape that starts is tried with each of them, and the simulator says which the engine would refuse.

use kvwise_core::hardware::{self, Gpu};
use kvwise_core::plan::{self, Mode};
use kvwise_core::{Error, Result};
use rayon::prelude::*;

use super::super::deployment::Deployment;

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

/// GPUs of one machine. What a network between machines costs is not simulated, so that larger shapes are taken only where no
/// smaller one of the same card starts.
pub const MACHINE_GPUS: u64 = 8;

/// Share of drafted tokens that is taken for accepted, each given the one before, where the user does not say: between the
/// 0.85 to 0.90 that DeepSeek-V3's report gives for its own module (arXiv 2412.19437, section 5.4.3) and what other
/// traffic may bring.
pub const ASSUMED_ACCEPTANCE: f64 = 0.7;

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
}

/// A kind of GPU on which nothing starts, and why.
pub type Unfit = (String, String);

/// Settings of the scheduler that differ from the engine's defaults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Setting {
    /// `--max-num-batched-tokens`.
    pub tokens: Option<u64>,
    /// `--max-num-seqs`.
    pub seqs: Option<u64>,
    /// `--block-size`.
    pub block: Option<u64>,
    /// Tokens that the model's own modules draft in a step.
    pub drafted: Option<u64>,
}

impl Setting {
    /// How many things differ from the defaults.
    fn changes(self) -> usize {
        [self.tokens, self.seqs, self.block, self.drafted]
            .iter()
            .flatten()
            .count()
    }

    fn apply(self, to: &mut Deployment) {
        if let Some(n) = self.tokens {
            to.max_num_batched_tokens = Some(n.to_string());
        }
        to.max_num_seqs = self.seqs.or(to.max_num_seqs);
        to.block_size = self.block.or(to.block_size);
        if let Some(n) = self.drafted {
            to.speculative_config = Some(format!(
                "{{\"method\": \"mtp\", \"num_speculative_tokens\": {n}}}"
            ));
        }
    }
}

/// The settings that are tried with every shape, the defaults first, then by the number of changes.
fn settings(choice: &Choice, drafts: bool) -> Vec<Setting> {
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
    let blocks = if choice.shared_prefixes {
        wide(&[64], &[32, 64, 128])
    } else {
        vec![None]
    };
    let drafted = if drafts { wide(&[1], &[1, 2]) } else { vec![None] };
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
    /// Its GPU.
    pub gpu: String,
    /// GPUs of a replica.
    pub gpus: u64,
    /// What differs from the scheduler's defaults.
    pub setting: Setting,
}

/// A shape before it is planned.
struct Shape {
    gpu: &'static Gpu,
    gpus: u64,
    expert_parallel: bool,
    deployment: Deployment,
}

/// Every shape of the choice.
fn shapes(choice: &Choice) -> Result<Vec<Shape>> {
    let mut all = Vec::new();
    for name in &choice.gpus {
        let gpu = hardware::find(name)?;
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
                        deployment.gpu = Some(gpu.name.clone());
                        deployment.tensor_parallel_size = Some(tp);
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
                            gpu,
                            gpus,
                            expert_parallel,
                            deployment,
                        });
                    }
                }
            }
        }
    }
    Ok(all)
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
    let drafts = resolved
        .model()
        .is_some_and(|m| m.mtp_modules().is_ok_and(|modules| !modules.is_empty()));
    // Whole experts make a difference only where some of the parameters rest.
    let experts =
        plan::assess(&resolved.request(false)).is_ok_and(|p| p.model.params_active < p.model.params);
    let all: Vec<Shape> = all
        .into_iter()
        .filter(|shape| experts || !shape.expert_parallel)
        .collect();
    let settings = settings(choice, drafts);
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
    let on_one_machine = |gpu: &str| {
        planned
            .iter()
            .zip(&all)
            .any(|(outcome, shape)| outcome.is_ok() && shape.gpus <= MACHINE_GPUS && shape.gpu.name == gpu)
    };
    let enough: Vec<&str> = choice
        .gpus
        .iter()
        .map(String::as_str)
        .filter(|gpu| on_one_machine(gpu))
        .collect();
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut reasons: Vec<(String, u64, String)> = Vec::new();
    for (outcome, shape) in planned.iter().zip(&all) {
        let gpu = &shape.gpu.name;
        if shape.gpus > MACHINE_GPUS && enough.contains(&gpu.as_str()) {
            continue;
        }
        if let Err(why) = outcome {
            // The reason of the most GPUs is the one that counts.
            let most = reasons.iter().find(|(name, ..)| name == gpu).map_or(0, |r| r.1);
            if shape.gpus >= most {
                reasons.retain(|(name, ..)| name != gpu);
                reasons.push((gpu.clone(), shape.gpus, why.clone()));
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
        let listed = settings.iter().copied().filter(|s| Some(*s) != own);
        for setting in listed.chain(own) {
            let mut deployment = shape.deployment.clone();
            setting.apply(&mut deployment);
            candidates.push(Candidate {
                deployment,
                gpu: gpu.clone(),
                gpus: shape.gpus,
                setting,
            });
        }
    }
    reasons.retain(|(gpu, ..)| candidates.iter().all(|c| c.gpu != *gpu));
    let unfit = reasons
        .into_iter()
        .map(|(gpu, gpus, why)| (gpu, format!("with {gpus} GPUs: {why}")))
        .collect();
    Ok((candidates, unfit))
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
        assert!(experts.iter().any(|c| c.setting.drafted == Some(1)));
        assert!(dense.iter().all(|c| c.setting.drafted.is_none()));
        assert!(experts.iter().all(|c| c.gpus <= 16));
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
        let quick = settings(&choice, true);
        choice.thorough = true;
        let thorough = settings(&choice, true);
        assert_eq!((quick[0], thorough[0]), (Setting::default(), Setting::default()));
        assert!(quick.iter().all(|s| s.changes() <= 1 && thorough.contains(s)));
        assert!(thorough.len() > 100);
        // 16 requests at once are never bounded by 32.
        choice.concurrency = Some(16);
        assert!(
            settings(&choice, true)
                .iter()
                .all(|s| s.seqs.is_none_or(|n| n < 16))
        );
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
