//! Weights of each pipeline stage and of the drafter.

use super::super::ledger::Term;
use super::super::request::Subject;
use crate::Result;
use crate::arch::family::rotary_elements;
use crate::arch::weight::Shard;
use crate::arch::{Config, Model, Op, Parallel, Role, Weights};
use crate::dtype::Dtype;
use crate::engine::vllm::{DrafterWeights, Gpu, Settings, Version};
use crate::quant::{Inventory, Mxfp4Padding, Quantization};
use crate::units::human_bytes;

/// Weights of one tensor-parallel rank of each stage.
pub(in crate::plan) struct Stages {
    pub(in crate::plan) bytes: Vec<u64>,
    /// What loading them takes beside them, on each stage.
    pub(in crate::plan) beside: Vec<Beside>,
    /// The same without parallelism: all of the model.
    pub(in crate::plan) total: u64,
    /// Parameters of the model: all, and those that one token uses.
    pub(in crate::plan) params: (u64, u64),
    /// Quantisation, for the formula.
    pub(in crate::plan) how: String,
    /// Why the newest known release would not load this quantisation.
    pub(in crate::plan) refusal: Option<String>,
    /// What the drafter of speculative decoding adds to the last stage.
    pub(in crate::plan) drafter: Option<DrafterWeights>,
}

/// What is allocated with the weights and is no parameter. Start-up logs count it as the model's load.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::plan) struct Beside {
    /// Tables of the rotary embedding.
    pub(in crate::plan) rotary_bytes: u64,
    /// What PyTorch's allocator keeps of its blocks.
    pub(in crate::plan) allocator_bytes: u64,
}

impl Beside {
    pub(in crate::plan) const fn bytes(self) -> u64 {
        self.rotary_bytes.saturating_add(self.allocator_bytes)
    }

    /// As a term of the ledger.
    pub(in crate::plan) fn term(self) -> Term {
        Term::exact(
            "buffers",
            self.bytes(),
            format!(
                "{} for the tables of the rotary embedding + {} that PyTorch's allocator rounds up",
                human_bytes(self.rotary_bytes),
                human_bytes(self.allocator_bytes)
            ),
        )
    }
}

/// Weights of the subject and its drafter.
///
/// # Errors
/// If the ranks do not divide the model (as [`Error::unsupported`]), a quantisation is not known, or a size leaves 64
/// bits.
pub(in crate::plan) fn weights(
    subject: &Subject,
    (model, config): (&Model, &Config),
    settings: &Settings,
    gpu: &Gpu,
    parallel: &Parallel,
    dtype: Dtype,
) -> Result<Stages> {
    let towers = !settings.leaves_out_towers(&model.architecture);
    let inventory = subject.inventories.get(settings.quantization.as_deref(), || {
        Ok(Inventory::new(
            model,
            Quantization::resolve(config, settings.quantization.as_deref())?,
        ))
    })?;
    let method = inventory.quantization().map_or("", Quantization::name);
    let padding = mxfp4_padding(gpu, settings.version, method);
    let bytes =
        |stage: u64, parallel: &Parallel| inventory.bytes(model, stage, parallel, (dtype, padding), towers);
    let drafter = match &settings.speculative {
        None => None,
        // Modules that are not there are the layout's refusal, in the engine's words.
        Some(speculative) if speculative.layers(model).is_err() => None,
        Some(speculative) => {
            let quantization = inventory
                .quantization()
                .map(|q| q.clone().with_mxfp4_padding(padding));
            speculative.weights(model, parallel, dtype, quantization.as_ref())?
        }
    };
    let stages = (0..parallel.pp)
        .map(|stage| bytes(stage, parallel))
        .collect::<Result<Vec<_>>>()?;
    let rotary_bytes = subject
        .inventories
        .rotary_elements(settings.version, || {
            rotary_elements(model, config, settings.version)
        })?
        .saturating_mul(dtype.bits() / 8);
    let beside = (0..parallel.pp)
        .map(|stage| {
            Ok(Beside {
                rotary_bytes,
                allocator_bytes: inventory.allocator_bytes(
                    model,
                    stage,
                    parallel,
                    (dtype, padding),
                    towers,
                )?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Stages {
        beside,
        total: match stages[..] {
            [whole] if *parallel == Parallel::default() => whole,
            _ => bytes(0, &Parallel::default())?,
        },
        bytes: stages,
        params: inventory.params(model)?,
        how: match inventory.quantization() {
            None => format!(" in {dtype}"),
            Some(q) => format!(" in {dtype}, quantised by {}", q.name()),
        },
        refusal: inventory.refusal_on(model, parallel, (gpu.major, gpu.minor), dtype),
        drafter,
    })
}

/// How the weights of one rank of a stage divide into parts, as a sum for `--explain`; what is in no part comes last.
///
/// # Errors
/// As [`weights`].
pub(super) fn parts(
    subject: &Subject,
    (model, config): (&Model, &Config),
    settings: &Settings,
    gpu: &Gpu,
    (parallel, stage): (&Parallel, usize),
    (dtype, bytes): (Dtype, u64),
) -> Result<String> {
    let inventory = subject.inventories.get(settings.quantization.as_deref(), || {
        Ok(Inventory::new(
            model,
            Quantization::resolve(config, settings.quantization.as_deref())?,
        ))
    })?;
    let method = inventory.quantization().map_or("", Quantization::name);
    let padding = mxfp4_padding(gpu, settings.version, method);
    let towers = !settings.language_model_only;
    let parts = inventory.bytes_by_part(model, stage as u64, parallel, (dtype, padding), towers)?;
    let told = parts
        .iter()
        .fold(0_u64, |sum, (_, part)| sum.saturating_add(*part));
    let mut sum: Vec<String> = parts
        .iter()
        .map(|(name, part)| format!("{} {name}", human_bytes(*part)))
        .collect();
    if bytes > told {
        sum.push(format!("{} scales beside them", human_bytes(bytes - told)));
    }
    Ok(sum.join(" + "))
}

/// The kernel that runs 4-bit block-scaled experts on this GPU decides their padding (vLLM 0.32.0,
/// `fused_moe/oracle/mxfp4.py`: the first of the list that supports the GPU, and
/// `mxfp4_round_up_hidden_size_and_intermediate_size`): Triton on 9.x, `TensorRT-LLM` on 10.x, Marlin elsewhere.
fn mxfp4_padding(gpu: &Gpu, version: Version, method: &str) -> Mxfp4Padding {
    match gpu.major {
        // The release after the pull request; other methods had other kernels then.
        9 if version < Version::new(0, 25, 0) && method == "mxfp4" => Mxfp4Padding::TRITON_KEEPS,
        9 => Mxfp4Padding::TRITON,
        10 => Mxfp4Padding::TRTLLM,
        _ => Mxfp4Padding::MARLIN,
    }
}

/// What to say of a method that the engine only loads and never makes, where the checkpoint is not of that method.
pub(super) fn assumed_checkpoint(config: &Config, settings: &Settings) -> Result<Option<String>> {
    let named = settings.quantization.as_deref().map(str::to_ascii_lowercase);
    let Some(name) = named.filter(|name| name.starts_with("awq") || name.starts_with("gptq")) else {
        return Ok(None);
    };
    Ok(Quantization::read(config)?.is_none().then(|| {
        format!(
            "--quantization {name}: the configuration has no quantization_config, so the weights are those of a checkpoint \
             that was made by {name}; vLLM makes none while it loads this one"
        )
    }))
}

/// Kinds of layers that one is compared with before it is looked at on its own.
const COMPARED: usize = 16;

/// Elements that the widest feed-forward output of one token has on one rank; routed experts count once for every
/// expert that the token uses.
pub(super) fn widest_projection(model: &Model, parallel: &Parallel) -> u64 {
    let mut widest = 0;
    let mut kinds: Vec<&Weights> = Vec::new();
    for layer in &model.layers {
        if !kinds
            .iter()
            .rev()
            .take(COMPARED)
            .any(|kind| kind.is(&layer.weights))
        {
            kinds.push(&layer.weights);
        }
    }
    for weight in kinds.into_iter().flatten() {
        if !matches!(weight.role, Role::Mlp | Role::Experts | Role::SharedExpert) {
            continue;
        }
        // What cannot be divided is refused elsewhere, in the engine's terms.
        let Ok(shard) = weight.shard(parallel) else {
            continue;
        };
        let elements = match (&shard, &weight.op) {
            (Shard::Linear { outputs, .. }, _) => {
                outputs.iter().fold(0, |sum: u64, n| sum.saturating_add(*n))
            }
            (
                Shard::Experts {
                    hidden,
                    intermediate,
                    parts,
                    ..
                },
                Op::Experts { top_k, .. },
            ) => parts
                .saturating_mul(*intermediate)
                .saturating_add(*hidden)
                .saturating_mul(*top_k),
            _ => 0,
        };
        widest = widest.max(elements);
    }
    widest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::family;
    use crate::catalogue;

    #[test]
    fn weights_of_gpt_oss_are_those_that_start_up_logs_show() {
        // Sources: llm-d-planner's table of 0.11.0, vLLM issue 33155, a log of 0.10.1 on four A100, one of 0.19.0 on one.
        for (name, gpu, (major, minor), tp, version, gib) in [
            ("openai/gpt-oss-20b", "h100", (9, 0), 1, (0, 11, 0), 13.47),
            ("openai/gpt-oss-120b", "h100", (9, 0), 1, (0, 14, 1), 64.38),
            ("openai/gpt-oss-120b", "a100-80gb", (8, 0), 4, (0, 10, 1), 17.2217),
            ("openai/gpt-oss-20b", "a100-80gb", (8, 0), 1, (0, 19, 0), 13.72),
        ] {
            let config = catalogue::find(name).unwrap().config().unwrap();
            let family::Reading::Model(model) = family::read(name, &config).unwrap() else {
                panic!("{name}");
            };
            let gpu = Gpu::new(gpu, major, minor, 80 << 30);
            let settings = Settings {
                version: Version::new(version.0, version.1, version.2),
                ..Settings::default()
            };
            let parallel = Parallel {
                tp,
                ..Parallel::default()
            };
            let subject = Subject::of_model(name, "catalogue", &model, &config);
            let ours = weights(
                &subject,
                (&model, &config),
                &settings,
                &gpu,
                &parallel,
                Dtype::Bf16,
            )
            .unwrap();
            let ours = ours.bytes[0] as f64 / f64::from(1 << 30);
            assert!(
                (ours / gib - 1.0).abs() < 0.006,
                "{name} {version:?}: {ours:.2} instead of {gib}"
            );
        }
    }
}
