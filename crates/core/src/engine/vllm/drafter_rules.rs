//! What the engine demands of a drafter and its target beyond their sizes (vLLM 0.32.0, `config/speculative.py`,
//! `models/lilicorr.py`).

use super::speculative::{Draft, Method};
use crate::Result;
use crate::arch::{Config, Model};

/// Why the engine would refuse this drafter for this target, in its words.
pub(super) fn refusal(target: &Model, draft: &Draft, method: Method, num_tokens: u64) -> Option<String> {
    let refused = match method {
        Method::DFlash if draft.model.architecture == "LiLiCorrDraftModel" => {
            lilicorr(&draft.config, num_tokens)
        }
        Method::DSpark if target.model_type == "qwen3_omni_moe" => omni(target, draft, num_tokens),
        _ => return None,
    };
    // A value that cannot be read has been an error before this.
    refused.unwrap_or_default()
}

/// A number that a file gives at its top or in `dflash_config`, which counts first.
fn own(config: &Config, key: &str) -> Result<Option<u64>> {
    if let Some(inner) = config.sub("dflash_config")?
        && inner.has(key)
    {
        return inner.u64(key);
    }
    config.u64(key)
}

fn lilicorr(config: &Config, num_tokens: u64) -> Result<Option<String>> {
    let block = own(config, "block_size")?.unwrap_or(0);
    Ok((num_tokens >= block)
        .then(|| "LiLiCorr requires 1 <= num_speculative_tokens < trained block_size.".to_owned()))
}

/// The contract of drafters for Qwen3-Omni (`_validate_qwen3_omni_dspark`).
fn omni(target: &Model, draft: &Draft, num_tokens: u64) -> Result<Option<String>> {
    let config = &draft.config;
    if draft.model.architecture != "Qwen3OmniDSparkModel" {
        return Ok(Some(
            "Qwen3-Omni DSpark requires a standalone draft checkpoint with architectures=['Qwen3OmniDSparkModel']; generic \
             Qwen3DSparkModel checkpoints must be converted first."
                .to_owned(),
        ));
    }
    let block = match own(config, "block_size")? {
        Some(n) => Some(n),
        None => own(config, "dspark_block_size")?,
    };
    let Some(block) = block.filter(|&n| n > 0) else {
        return Ok(Some(
            "Qwen3-Omni DSpark requires a positive integer block_size in the draft config.".to_owned(),
        ));
    };
    if num_tokens != block {
        return Ok(Some(format!(
            "Qwen3-Omni DSpark requires num_speculative_tokens to match the trained block_size ({block}); got {num_tokens}."
        )));
    }
    if config.u64("target_hidden_size")? != Some(target.hidden_size) {
        return Ok(Some(format!(
            "Qwen3-Omni DSpark draft target_hidden_size must match the target text hidden size ({}); got {}.",
            target.hidden_size,
            config
                .u64("target_hidden_size")?
                .map_or("None".to_owned(), |n| n.to_string())
        )));
    }
    for (name, wanted, got) in [
        ("hidden_size", target.hidden_size, draft.model.hidden_size),
        (
            "num_attention_heads",
            target.num_attention_heads,
            draft.model.num_attention_heads,
        ),
        (
            "num_key_value_heads",
            target.num_kv_heads,
            draft.model.num_kv_heads,
        ),
    ] {
        if wanted != got {
            return Ok(Some(format!(
                "Qwen3-Omni DSpark draft {name} must match the target thinker value ({wanted}); got {got}."
            )));
        }
    }
    if config.str("markov_head_type")? != Some("vanilla") {
        return Ok(Some(
            "Qwen3-Omni DSpark currently requires markov_head_type='vanilla'.".to_owned(),
        ));
    }
    Ok(None)
}
