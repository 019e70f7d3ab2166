//! The longest request that SGLang derives of a configuration (0.5.23, `srt/utils/hf_transformers/common.py`,
//! `get_context_length`, and `srt/configs/model_config.py`, `_derive_context_length`).

use crate::Result;
use crate::arch::{Config, Model};
use crate::units::grouped;

/// Keys of a configuration, the first that is there decides.
const KEYS: [&str; 5] = [
    "max_sequence_length",
    "seq_length",
    "max_seq_len",
    "model_max_length",
    "max_position_embeddings",
];
/// Where the configuration says nothing.
const DEFAULT: u64 = 2048;

/// Tokens of the longest request: the first of the keys, times the factor of a rotary embedding that is stretched without
/// saying from where.
///
/// # Errors
/// If a size is no number.
pub(super) fn derived(model: &Model, config: &Config, text: &Config) -> Result<u64> {
    let mut length = None;
    for key in KEYS {
        if let Some(n) = text.u64(key)? {
            length = Some(n);
            break;
        }
    }
    let Some(length) = length else {
        // Encoder-decoders count their decoder's positions under a name that the engine does not ask for.
        let unasked = config.u64("max_target_positions")?.is_some();
        return Ok(model.max_position.filter(|_| !unasked).unwrap_or(DEFAULT));
    };
    // Split by kinds of layers, with no factor of its own.
    if text
        .str("model_type")?
        .is_some_and(|kind| kind.starts_with("gemma3"))
    {
        return Ok(length);
    }
    let Some(rope) = text.sub("rope_parameters")?.or(text.sub("rope_scaling")?) else {
        return Ok(length);
    };
    let kind = rope.str("rope_type")?.or(rope.str("type")?).unwrap_or("default");
    // Of these types the configuration's class knows from where they are stretched.
    let whole = ["llama3", "yarn", "longrope", "su"].contains(&kind)
        || rope.map().contains_key("original_max_position_embeddings");
    let Some(factor) = rope.f64("factor")?.filter(|_| !whole) else {
        return Ok(length);
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and saturating"
    )]
    let scaled = (length as f64 * factor.max(0.0)) as u64;
    Ok(scaled)
}

/// Why a longer request is not taken.
pub(super) fn refused(given: Option<u64>, derived: u64) -> Option<String> {
    given.filter(|&given| given > derived).map(|given| {
        format!(
            "--context-length {} is more than the {} tokens of the model's configuration; SGLang takes it only with \
             SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1 in its environment",
            grouped(given),
            grouped(derived)
        )
    })
}
