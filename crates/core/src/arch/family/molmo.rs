//! Molmo and Molmo-2: OLMo-like language models behind vision towers of their own.

use super::dense::{Decoder, Dense, Norm, QkNorm};
use super::text::Text;
use crate::Result;
use crate::arch::{Role, Weight};

/// Rows that Molmo's embedding has beyond the vocabulary, for images (vLLM 0.32.0,
/// `ADDITIONAL_VOCAB_SIZE` in `molmo.py`).
const IMAGE_ROWS: u64 = 128;

/// Molmo (vLLM 0.32.0, `molmo.py`): the file's `intermediate_size` is of gate and up together, and the embedding
/// has `embedding_size` rows and those for images.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn molmo(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let mut d = Dense::llama(t)?;
    d.mlp.width /= 2;
    d.attention.qkv_bias = c.flag("qkv_bias", false)?;
    if c.flag("attention_layer_norm", false)? {
        d.attention.qk_norm = QkNorm::Whole(Norm::Scale);
    }
    let head = c.dim_or("embedding_size", t.vocab()?)?;
    let tied = c.flag("weight_tying", t.tied()?)?;
    with_image_rows(&mut d, head, IMAGE_ROWS, tied)
}

/// Molmo-2 (vLLM 0.32.0, `molmo2.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn molmo2(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let mut d = Dense::llama(t)?;
    d.attention.qkv_bias = c.flag("qkv_bias", false)?;
    if c.flag("use_qk_norm", false)? {
        d.attention.qk_norm = match c.str("qk_norm_type")? {
            Some("qwen3") => QkNorm::Head(Norm::Scale),
            _ => QkNorm::Whole(Norm::Scale),
        };
    }
    let head = t.vocab()?;
    let tied = t.tied()?;
    with_image_rows(&mut d, head, c.dim_or("additional_vocab_size", 0)?, tied)
}

/// The decoder with `head` rows in the output head and `extra` more in the embedding.
fn with_image_rows(d: &mut Dense, head: u64, extra: u64, tied: bool) -> Result<Decoder> {
    d.ends.vocab = head;
    d.ends.tied = tied;
    let mut decoder = d.build()?;
    for part in &mut decoder.outside {
        for w in part.weights.iter_mut().filter(|w| w.role == Role::Embedding) {
            *w = Weight::vocab(w.name.clone(), Role::Embedding, head + extra, d.hidden);
        }
    }
    Ok(decoder)
}
