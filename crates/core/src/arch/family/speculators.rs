//! Files of the `speculators` library, which nest the description of a drafter's layers: the engine flattens them before
//! anything else reads them (vLLM 0.32.0, `transformers_utils/configs/speculators/algos.py`).

use serde_json::{Map, Value, json};

use crate::arch::Config;
use crate::{Error, Result};

/// Keys beside the layers' description that the engine carries over, whatever the algorithm.
const CARRIED: [&str; 20] = [
    "draft_vocab_size",
    "target_hidden_size",
    "norm_before_fc",
    "fc_norm",
    "eagle_aux_hidden_state_layer_ids",
    "quantization_config",
    "torch_dtype",
    "dtype",
    "markov_rank",
    "markov_head_type",
    "block_size",
    "enable_confidence_head",
    "confidence_head_with_markov",
    "use_aux_hidden_state",
    "mask_token_id",
    "sample_from_anchor",
    "conv_kernel_size",
    "conv_group_size",
    "selector_rank",
    "selector_top_k",
];

/// The fields of a `speculators` file where the engine looks for them; any other file as it is. `kinds` are the
/// algorithms that the method of `--speculative-config` runs.
///
/// # Errors
/// If the file is of another algorithm, of layers that the engine has no such drafter of, or lacks what the engine needs.
pub(super) fn flatten(config: &Config, kinds: &[&str]) -> Result<Config> {
    let Some(layer) = config.sub("transformer_layer_config")? else {
        return Ok(config.clone());
    };
    let kind = config.str("speculators_model_type")?;
    if let Some(kind) = kind
        && !kinds.contains(&kind)
    {
        return Err(Error::input(format!(
            "{} is {kind:?}, which the method of --speculative-config is not",
            config.name("speculators_model_type")
        ))
        .hint("write the method that the drafter was trained for"));
    }
    let mut map = layer.map().clone();
    for key in CARRIED {
        if let Some(value) = config.get(key).filter(|value| !value.is_null()) {
            map.insert(key.to_owned(), value.clone());
        }
    }
    let class = match kind.unwrap_or(kinds[0]) {
        "dflash" => block(config, &mut map, "DFlashDraftModel")?,
        "dflash2" => block(config, &mut map, "DFlash2DraftModel")?,
        "dspark" => spark(config, &mut map)?,
        _ => match layer.str("model_type")?.unwrap_or("llama") {
            "qwen3" => "Eagle3Qwen3ForCausalLM",
            "llama" => "Eagle3LlamaForCausalLM",
            other => {
                return Err(Error::unsupported(format!(
                    "Unsupported model_type {other} for Eagle3 speculator"
                )));
            }
        },
    };
    map.insert("architectures".to_owned(), json!([class]));
    Ok(config.with_map(map))
}

/// The hidden states that the drafter reads, counted as the target counts its layers.
fn states(config: &Config) -> Result<Vec<u64>> {
    config.u64s("aux_hidden_state_layer_ids")?.ok_or_else(|| {
        Error::input(format!(
            "{} is missing from the drafter's configuration",
            config.name("aux_hidden_state_layer_ids")
        ))
    })
}

fn block(config: &Config, map: &mut Map<String, Value>, class: &'static str) -> Result<&'static str> {
    map.insert(
        "eagle_aux_hidden_state_layer_ids".to_owned(),
        json!(states(config)?),
    );
    let mut own = Map::new();
    for key in [
        "conv_kernel_size",
        "conv_group_size",
        "selector_rank",
        "selector_top_k",
    ] {
        if let Some(value) = config.get(key).filter(|value| !value.is_null()) {
            own.insert(key.to_owned(), value.clone());
        }
    }
    map.insert("dflash_config".to_owned(), Value::Object(own));
    Ok(class)
}

fn spark(config: &Config, map: &mut Map<String, Value>) -> Result<&'static str> {
    map.insert(
        "eagle_aux_hidden_state_layer_ids".to_owned(),
        json!(states(config)?),
    );
    let listed = config.strs("architectures")?.unwrap_or_default();
    Ok(if listed.contains(&"Qwen3OmniDSparkModel") {
        "Qwen3OmniDSparkModel"
    } else {
        "Qwen3DSparkModel"
    })
}
