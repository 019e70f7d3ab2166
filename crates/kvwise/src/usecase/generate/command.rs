//! Which flags a server needs, and why: what differs from the engine's defaults, and nothing else. Here vLLM's, and what all
//! engines share.

use kvwise_core::engine::flags::{self, meaning::meaning, parse::parse};
use kvwise_core::engine::vllm::{Gpu, KvDtype, Rules};
use kvwise_core::names::normalise;
use kvwise_core::plan::{Engine, Plan};
use kvwise_core::quant::Quantization;
use kvwise_core::units::{grouped, human_bytes};
use kvwise_core::{Error, Result};
use serde_json::Value;

use super::super::deployment::{Deployment, Resolved};
use super::super::effect::effect;
use super::Order;
use crate::report::generate::Argument;

/// Formats that vLLM 0.32.0 makes on load from a 16-bit checkpoint (`vllm/config/quantization.py`), with the planner's plain
/// names for them.
const MADE_ON_LOAD: [(&str, &str); 9] = [
    ("fp8", "fp8"),
    ("fp8_per_tensor", "fp8_per_tensor"),
    ("fp8_per_block", "fp8_per_block"),
    ("fp8_per_channel", "fp8_per_channel"),
    ("mxfp8", "mxfp8"),
    ("int8", "int8_per_channel_weight_only"),
    ("int8_per_channel_weight_only", "int8_per_channel_weight_only"),
    ("nvfp4", "nvfp4_per_token"),
    ("nvfp4_per_token", "nvfp4_per_token"),
];

/// The first of them, for people.
const MADE_ON_LOAD_NAMES: &str = "fp8, fp8_per_block, fp8_per_channel, mxfp8, int8, nvfp4";

/// Fields of a deployment that are flags of vLLM under the same name, in the order of the command.
const VLLM_FLAGS: [&str; 29] = [
    "revision",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "enable_expert_parallel",
    "decode_context_parallel_size",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "kv_cache_dtype_skip_layers",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "block_size",
    "num_gpu_blocks_override",
    "enforce_eager",
    "no_enable_prefix_caching",
    "enable_prefix_caching",
    "no_async_scheduling",
    "disable_hybrid_kv_cache_manager",
    "attention_backend",
    "language_model_only",
    "limit_mm_per_prompt",
    "mm_processor_kwargs",
    "skip_mm_profiling",
    "speculative_config",
    "enable_lora",
];

/// The deployment as it will be started: more requests at once than the engine runs by default need its bound raised, and that
/// changes the plan; llama.cpp's context and slots are said in full.
pub fn prepared(deployment: &Deployment) -> Result<Deployment> {
    let mut out = super::llamacpp::prepared(deployment)?;
    let asked = deployment.concurrency.iter().copied().max().unwrap_or(1);
    let vllm = deployment
        .engine
        .as_deref()
        .is_none_or(|e| e.eq_ignore_ascii_case("vllm"));
    if vllm && out.max_num_seqs.is_none() {
        let resolved = deployment.resolve()?;
        let hardware = resolved.hardware();
        let (major, minor) = hardware.compute_capability.unwrap_or((9, 0));
        let gpu = Gpu::new(&hardware.name, major, minor, hardware.torch_bytes);
        let longest = resolved.model().and_then(|m| m.max_position).unwrap_or(u64::MAX);
        let Engine::Vllm(settings) = resolved.engine() else {
            return Ok(out);
        };
        let defaults = Rules::on(settings.version, &gpu).batch_defaults(&gpu, longest);
        if asked > defaults.max_num_seqs {
            out.max_num_seqs = Some(asked);
        }
    }
    Ok(out)
}

/// The arguments of `vllm serve` after the model.
pub fn vllm(deployment: &Deployment, resolved: &Resolved, plan: &Plan) -> Result<Vec<Argument>> {
    let table = flags::vllm();
    let said = serde_json::to_value(deployment).unwrap_or_default();
    let mut out = Vec::new();
    for field in VLLM_FLAGS {
        let Some(given) = said
            .get(field)
            .filter(|v| !v.is_null() && **v != Value::Bool(false))
        else {
            continue;
        };
        let name = format!("--{}", field.replace('_', "-"));
        let positive = name.strip_prefix("--no-").map(|rest| format!("--{rest}"));
        let flag = table.get(positive.as_deref().unwrap_or(&name));
        let Some(flag) = flag else {
            return Err(Error::unsupported(format!(
                "{name} is no flag of vLLM {}",
                table.version
            )));
        };
        let values = match (field, given) {
            (_, Value::Bool(_)) => Vec::new(),
            ("quantization", _) => {
                match quantization(resolved, &super::plain(given), &MADE_ON_LOAD, MADE_ON_LOAD_NAMES)? {
                    Some(method) => vec![method],
                    None => continue,
                }
            }
            ("kv_cache_dtype", _) => vec![KvDtype::parse(&super::plain(given))?.name().to_owned()],
            ("max_model_len", _) => match &plan.kv_cache {
                Some(kv) => vec![kv.max_model_len.to_string()],
                None => continue,
            },
            ("kv_cache_dtype_skip_layers", _) => super::plain(given)
                .split(',')
                .map(|layer| layer.trim().to_owned())
                .collect(),
            // The planner's own reading of counts and types, in the engine's spelling.
            ("dtype" | "max_num_batched_tokens" | "kv_cache_memory_bytes" | "limit_mm_per_prompt", _) => {
                vec![super::plain(plan.inputs.get(field).unwrap_or(given))]
            }
            ("attention_backend", _) => vec![super::plain(given).to_ascii_uppercase()],
            _ => vec![super::plain(given)],
        };
        if flag.is_default(&values, name.starts_with("--no-")) {
            continue;
        }
        out.push(Argument {
            why: why(deployment, plan, field, flag.name(), "vllm"),
            flag: name,
            values,
        });
        if field == "enable_lora" {
            for (field, value) in [
                ("max_loras", deployment.max_loras),
                ("max_lora_rank", deployment.max_lora_rank),
            ] {
                if let Some(value) = value {
                    let name = format!("--{}", field.replace('_', "-"));
                    out.push(Argument {
                        why: why(deployment, plan, field, &name, "vllm"),
                        flag: name,
                        values: vec![value.to_string()],
                    });
                }
            }
        }
    }
    Ok(out)
}

/// The method to name for an engine; `None` where the checkpoint says it already. `made_on_load` has what the engine makes
/// of a 16-bit checkpoint, with its own names, and `examples` those for people.
pub(super) fn quantization(
    resolved: &Resolved,
    given: &str,
    made_on_load: &[(&str, &str)],
    examples: &str,
) -> Result<Option<String>> {
    let own = match resolved.described() {
        Some((_, config)) => Quantization::read(config)?,
        None => None,
    };
    let given = given.to_ascii_lowercase();
    match (given.as_str(), own) {
        ("auto", _) | ("none", None) => Ok(None),
        ("none", Some(own)) => Err(Error::input(format!(
            "--quantization none is a question for a plan: the checkpoint is quantised by {}, and no flag undoes that",
            own.name()
        ))
        .hint("give the 16-bit checkpoint of the model")),
        (name, Some(own)) if normalise(name) == normalise(own.name()) => Ok(None),
        // Another name for the same format chooses a kernel.
        (name, Some(_)) => Ok(Some(name.to_owned())),
        (name, None) => match made_on_load.iter().find(|(plain, _)| *plain == name) {
            Some((_, method)) => Ok(Some((*method).to_owned())),
            None => Err(Error::input(format!(
                "--quantization {name} needs a checkpoint that is quantised so, and this one is not"
            ))
            .hint("give the quantised checkpoint of the model (see `kvwise models`)")
            .hint(format!("made on load from 16 bits: {examples}"))),
        },
    }
}

/// Why a flag is there: what it means, and what the plan would be without it.
pub(super) fn why(deployment: &Deployment, plan: &Plan, field: &str, flag: &str, engine: &str) -> String {
    let mut parts: Vec<String> = meaning(engine, flag).map(str::to_owned).into_iter().collect();
    match field {
        "no_enable_prefix_caching" => parts = vec!["prefix caching was switched off".to_owned()],
        "no_async_scheduling" => parts = vec!["asynchronous scheduling was switched off".to_owned()],
        "revision" => parts = vec!["the revision that was asked for".to_owned()],
        "tensor_parallel_size" => {
            let most = plan.weights.bytes_per_rank.iter().max().copied().unwrap_or(0);
            parts.push(format!(
                "each holds {} of {} of weights",
                human_bytes(most),
                human_bytes(plan.weights.total_bytes)
            ));
        }
        "max_num_seqs" if deployment.concurrency.iter().copied().max() == deployment.max_num_seqs => {
            parts.push(format!(
                "{} were asked for",
                grouped(deployment.max_num_seqs.unwrap_or_default())
            ));
        }
        _ => {}
    }
    parts.extend(effect(deployment, plan, field));
    parts.join("; ")
}

/// Names, ports and code: what a server needs besides its memory.
pub fn frontend(engine: &str, order: &Order, served_name: Option<&str>, out: &mut Vec<Argument>) {
    let mut push = |flag: &str, values: Vec<String>, why: &str| {
        out.push(Argument {
            flag: flag.to_owned(),
            values,
            why: why.to_owned(),
        });
    };
    if let Some(name) = served_name {
        push(
            if engine == "llamacpp" {
                "--alias"
            } else {
                "--served-model-name"
            },
            vec![name.to_owned()],
            "the name that clients ask for, wherever the folder lies",
        );
    }
    if order.trust_remote_code {
        push(
            "--trust-remote-code",
            Vec::new(),
            "the model brings its own code, which was allowed to run",
        );
    }
    if engine != "vllm" {
        push(
            "--host",
            vec!["0.0.0.0".to_owned()],
            "the server listens to this machine alone unless told otherwise",
        );
    }
    if let Some(port) = order.port {
        push("--port", vec![port.to_string()], "the port that was asked for");
    }
}

/// Flags besides [`VLLM_FLAGS`] that the plan knows, partly under their opposite's name.
fn planned(field: &str) -> bool {
    [
        "enable_prefix_caching",
        "async_scheduling",
        "max_loras",
        "max_lora_rank",
    ]
    .contains(&field)
}

/// The user's own words, read by the engine's rules; a flag that is there already is an error.
pub fn extra(engine: &str, words: &[String], chosen: &[Argument]) -> Result<Vec<Argument>> {
    let table = super::table(engine);
    let parsed = parse(table, words);
    if let Some(problem) = parsed.problems.first() {
        return Err(Error::input(format!("after --: {problem}")));
    }
    if let Some(word) = parsed.positionals.first() {
        return Err(Error::input(format!("after --: \"{word}\" belongs to no flag")));
    }
    parsed
        .given
        .into_iter()
        .map(|given| {
            let same = |a: &&Argument| {
                table
                    .get(&a.flag)
                    .is_some_and(|flag| std::ptr::eq(flag, given.flag) && given.field.is_none())
            };
            let field = given.flag.name().trim_start_matches("--").replace('-', "_");
            if engine == "vllm"
                && given.field.is_none()
                && (VLLM_FLAGS.contains(&field.as_str()) || planned(&field))
            {
                return Err(
                    Error::input(format!("after --: {} changes the plan", given.flag.name()))
                        .hint("give it before the --, as the flag of the same name"),
                );
            }
            if let Some(there) = chosen.iter().find(same) {
                return Err(Error::input(format!(
                    "after --: {} is in the command already, as {} {}",
                    given.written,
                    there.flag,
                    there.values.join(" ")
                )));
            }
            Ok(Argument {
                flag: given.written,
                why: match meaning(engine, given.flag.name()) {
                    Some(means) => format!("given after --; {means}"),
                    None => "given after --".to_owned(),
                },
                values: given.values,
            })
        })
        .collect()
}
