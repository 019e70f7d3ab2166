//! `--speculative-config`, as the engine takes it: JSON with `method`, `model` and `num_speculative_tokens`.

use kvwise_core::arch::family::{self, Block, Eagle};
use kvwise_core::arch::{Config, Model};
use kvwise_core::engine::sglang::Algorithm;
use kvwise_core::engine::vllm::{Draft, Method, Speculative};
use kvwise_core::{Error, Result, catalogue, drafters};
use kvwise_io::model::{Checkpoint, Found, Place};
use serde::Deserialize;

use crate::usecase::lookup::Lookup;

/// Keys of the engine's object that decide no memory.
const IGNORED: [&str; 21] = [
    "prompt_lookup_min",
    "prompt_lookup_max",
    "disable_padded_drafter_batch",
    "disable_by_batch_size",
    "rejection_sample_method",
    "acceptance_method",
    "posterior_threshold",
    "posterior_alpha",
    "revision",
    "code_revision",
    "max_model_len",
    "enforce_eager",
    "suffix_decoding_max_tree_depth",
    "suffix_decoding_max_cached_requests",
    "suffix_decoding_max_spec_factor",
    "suffix_decoding_min_token_prob",
    "use_local_argmax_reduction",
    "enable_adaptive_verification",
    "attention_backend",
    "parallel_drafting",
    "index_share_for_mtp_iteration",
];

#[derive(Deserialize)]
struct Given {
    method: Option<String>,
    model: Option<String>,
    num_speculative_tokens: Option<u64>,
    draft_tensor_parallel_size: Option<u64>,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

/// Reads the flag for a target model.
///
/// # Errors
/// If it is not such an object, the drafter cannot be found or read, or a number is missing.
pub(super) fn read(text: &str, target: Option<&Model>, lookup: &Lookup) -> Result<Speculative> {
    let example = r#"example: '{"method":"eagle3","model":"ORG/NAME","num_speculative_tokens":3}'"#;
    let given: Given = serde_json::from_str(text).map_err(|e| {
        Error::input(format!(
            "--speculative-config is not the JSON object the engine takes: {e}"
        ))
        .hint(example)
    })?;
    if let Some(key) = given.rest.keys().find(|key| !IGNORED.contains(&key.as_str())) {
        return Err(Error::input(format!(
            "--speculative-config has the key {key}, which is not planned"
        ))
        .hint("method, model, num_speculative_tokens and draft_tensor_parallel_size decide the memory"));
    }
    let found = match &given.model {
        Some(name) if !matches!(name.as_str(), "ngram" | "[ngram]") => {
            Some(drafter(name, lookup).map_err(|e| e.at("--speculative-config model"))?)
        }
        _ => None,
    };
    let method = method(&given, found.as_ref().map(|found| &found.config))?;
    let modules = target.map_or(0, |target| {
        target.mtp_modules().map_or(0, |modules| modules.len() as u64)
    });
    let num_tokens = match (given.num_speculative_tokens, method) {
        (Some(n), _) => n,
        // The engine takes what the checkpoint was trained for.
        (None, Method::Mtp) if modules > 0 => modules,
        (None, Method::DSpark) if block_size(found.as_ref())?.is_some() => {
            block_size(found.as_ref())?.unwrap_or(1)
        }
        (None, _) => {
            return Err(Error::input("--speculative-config has no num_speculative_tokens").hint(example));
        }
    };
    if given.draft_tensor_parallel_size.is_some_and(|n| n == 0) {
        return Err(Error::input(
            "--speculative-config draft_tensor_parallel_size is 0, expected at least 1",
        ));
    }
    let draft = match found {
        Some(found) if !matches!(method, Method::Ngram | Method::NgramGpu | Method::Suffix) => {
            // Modules or stages in the target's own checkpoint may be named, too.
            let own = matches!(method, Method::Mtp | Method::DSpark)
                && target.is_some_and(|target| target.name == found.name);
            if own {
                None
            } else {
                Some(Box::new(draft(
                    "--speculative-config model",
                    found,
                    method,
                    target,
                )?))
            }
        }
        _ => None,
    };
    Ok(Speculative {
        method,
        num_tokens,
        draft,
    })
}

/// The block that a `DSpark` drafter was trained for, which the engine drafts where no number is given.
fn block_size(found: Option<&Found>) -> Result<Option<u64>> {
    let Some(found) = found else { return Ok(None) };
    let size = match found.config.u64("block_size")? {
        Some(size) => Some(size),
        None => found.config.u64("dspark_block_size")?,
    };
    Ok(size.filter(|&size| size > 0))
}

/// A head that the program knows, else a model as any other.
fn drafter(name: &str, lookup: &Lookup) -> Result<Found> {
    if let Some(head) = drafters::find(name)?.filter(|_| !std::path::Path::new(name).exists()) {
        return Ok(Found {
            name: head.id.clone(),
            place: Place::Catalogue(catalogue::Provenance {
                source: &head.source,
                date: &head.date,
                note: None,
            }),
            config: head.config()?,
            checkpoint: None,
            notes: Vec::new(),
            gguf: None,
        });
    }
    lookup.find(name, None)
}

/// The method as given, or as the engine tells it from the drafter's name and type (vLLM 0.32.0, `config/speculative.py`).
fn method(given: &Given, config: Option<&Config>) -> Result<Method> {
    if let Some(name) = &given.method {
        return Method::parse(if name == "[ngram]" { "ngram" } else { name });
    }
    let Some(model) = &given.model else {
        return Err(Error::input("--speculative-config has neither method nor model"));
    };
    let name = model.to_ascii_lowercase();
    if name == "ngram" || name == "[ngram]" {
        return Ok(Method::Ngram);
    }
    for (part, method) in [
        ("eagle-", Method::Eagle),
        ("eagle3", Method::Eagle3),
        ("dflash", Method::DFlash),
        ("dspark", Method::DSpark),
    ] {
        if name.contains(part) {
            return Ok(method);
        }
    }
    let model_type = match config {
        Some(config) => config.str("model_type")?.unwrap_or_default(),
        None => "",
    };
    let listed = match config {
        Some(config) => config.strs("architectures")?.unwrap_or_default(),
        None => Vec::new(),
    };
    let is = |class: &str| listed.contains(&class);
    if is("MuseGlimmerAssistantModel") {
        return Ok(Method::DFlash);
    }
    if is("Qwen3DSparkModel")
        || is("Qwen3OmniDSparkModel")
        || is("Gemma4DSparkModel")
        || (is("DSparkDraftModel") && model_type == "qwen3")
    {
        return Ok(Method::DSpark);
    }
    Ok(match model_type {
        "gemma4_assistant" | "gemma4_unified_assistant" => Method::Mtp,
        "medusa" => Method::Medusa,
        "mlp_speculator" => Method::MlpSpeculator,
        kind if kind.ends_with("_mtp") => Method::Mtp,
        _ => Method::DraftModel,
    })
}

/// The drafter that `--speculative-draft-model-path` of SGLang names.
///
/// # Errors
/// If it cannot be found or read as a drafter of this algorithm.
pub(super) fn of_sglang(
    path: &str,
    algorithm: Algorithm,
    target: Option<&Model>,
    lookup: &Lookup,
) -> Result<Draft> {
    let place = "--speculative-draft-model-path";
    let found = drafter(path, lookup).map_err(|e| e.at(place))?;
    let method = match algorithm {
        Algorithm::Eagle | Algorithm::NextN => Method::Eagle,
        Algorithm::Eagle3 => Method::Eagle3,
        Algorithm::Standalone | Algorithm::Ngram => Method::DraftModel,
    };
    draft(place, found, method, target)
}

fn draft(place: &str, found: Found, method: Method, target: Option<&Model>) -> Result<Draft> {
    let tensors = match &found.checkpoint {
        Some(Checkpoint::Tensors(headers)) => Some(headers),
        _ => None,
    };
    let names = |part: &str| tensors.map(|headers| headers.iter().any(|tensor| tensor.name.contains(part)));
    let (has_embedding, has_head) = (names("embed_tokens"), names("lm_head"));
    let generation = match method {
        Method::Eagle => Some(Eagle::One),
        Method::Eagle3 => Some(Eagle::Three),
        _ => None,
    };
    let assistant = match method {
        Method::Mtp => family::read_assistant(&found.name, &found.config).map_err(|e| e.at(place))?,
        _ => None,
    };
    let model = match generation {
        Some(generation) => {
            let vocab = target.map_or(0, |target| target.vocab_size);
            family::read_eagle(&found.name, &found.config, generation, vocab).map_err(|e| e.at(place))?
        }
        None if method == Method::Medusa => {
            family::read_medusa(&found.name, &found.config).map_err(|e| e.at(place))?
        }
        None if matches!(method, Method::DFlash | Method::DSpark) => {
            let block = if method == Method::DFlash {
                Block::Flash
            } else {
                Block::Spark
            };
            family::read_block_drafter(&found.name, &found.config, block, target).map_err(|e| e.at(place))?
        }

        None => match assistant {
            Some(assistant) => assistant,
            None => match family::read(&found.name, &found.config).map_err(|e| e.at(place))? {
                family::Reading::Model(model) => *model,
                family::Reading::Refused(refusal) => {
                    let error = Error::unsupported(format!("{place} {}: {}", found.name, refusal.reason));
                    return Err(refusal.fix.into_iter().fold(error, Error::hint));
                }
            },
        },
    };
    Ok(Draft {
        model,
        config: found.config,
        has_embedding,
        has_head,
    })
}
