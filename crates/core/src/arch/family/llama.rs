//! Llama and the dense models that differ from it in a bias, a norm or a window.

use super::dense::{Decoder, Dense};
use super::text::Text;
use crate::Result;

/// Llama with the options its class has (vLLM 0.32.0, `llama.py`): `attention_bias` or `bias` for all four
/// projections, `qkv_bias` for the first three alone, `mlp_bias`.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn llama(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    let bias = t.config.flag("attention_bias", false)? || t.config.flag("bias", false)?;
    d.attention.o_bias = bias;
    d.attention.qkv_bias = t.config.flag("qkv_bias", bias)?;
    d.mlp.bias = t.config.flag("mlp_bias", false)?;
    d.build()
}
