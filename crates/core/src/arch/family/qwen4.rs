//! Qwen4-Exp: Qwen3-Next's layers between hyper-connections, which widen the residual stream.

use super::delta;
use super::dense::{Decoder, part};
use super::text::Text;
use crate::arch::{Cache, CacheKind, Place, Role, Weight};
use crate::{Error, Result};

/// The sparse attention of the full layers: an indexer over averaged keys of `pool` tokens.
struct Indexer {
    heads: u64,
    dim: u64,
    pool: u64,
    /// Elements that the ring keeps of a token: its key, in multimodal models its three positions behind it.
    ring_width: u64,
}

impl Indexer {
    /// `None` without `indexer_n_heads`.
    fn read(t: &Text) -> Result<Option<Self>> {
        let c = &t.config;
        if c.get("indexer_n_heads").is_none() {
            return Ok(None);
        }
        let keys = c.dim("indexer_kv_heads")?;
        if keys != 1 {
            return Err(Error::unsupported("Qwen4-Exp QSA requires indexer_kv_heads=1."));
        }
        let dim = c.dim("indexer_head_dim")?;
        let positions = t.class == "Qwen4ExpForConditionalGeneration"
            && match c.sub("rope_parameters")? {
                Some(rope) => rope.get("mrope_section").is_some(),
                None => false,
            };
        let ring_width = if positions {
            // Three 64-bit numbers in 16-bit elements.
            dim.next_multiple_of(4) + 12
        } else {
            dim
        };
        Ok(Some(Self {
            heads: c.dim("indexer_n_heads")?,
            dim,
            pool: c.dim("indexer_compress_ratio")?,
            ring_width,
        }))
    }

    fn caches(&self) -> [Cache; 2] {
        let name = |part: &str| format!("self_attn.indexer.{part}");
        [
            Cache {
                name: name("raw_key_cache"),
                kind: CacheKind::Ring {
                    vectors: 1,
                    width: self.ring_width,
                    pool: self.pool,
                    doubling: false,
                },
            },
            Cache {
                name: name("compressed_key_cache"),
                kind: CacheKind::PooledIndexer {
                    bytes_per_entry: 2 * self.dim,
                    pool: self.pool,
                    paged: false,
                },
            },
        ]
    }

    fn weights(&self, hidden: u64) -> [Weight; 3] {
        let name = |part: &str| format!("self_attn.indexer.{part}");
        let outputs = (self.heads + 1) * self.dim;
        [
            Weight::replicated(name("index_qk_proj"), Role::Attention, hidden, &[outputs]),
            Weight::norm(name("q_layernorm"), self.dim),
            Weight::norm(name("k_layernorm"), self.dim),
        ]
    }
}

/// Qwen4-Exp (vLLM 0.32.0, `models/qwen4_exp/nvidia/model.py`), without its per-layer n-gram embeddings, which
/// published class defaults leave out.
///
/// # Errors
/// If a size is missing or out of range, or the file has such embeddings.
pub(crate) fn qwen4(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    if c.array("ple_layer_ids")?.is_some_and(|ids| !ids.is_empty()) {
        return Err(Error::not_found(format!(
            "{} is set: this part of {} is not described here yet",
            c.name("ple_layer_ids"),
            t.class
        ))
        .hint("--engine generic with --params-b plans without knowing the layers"));
    }
    let mut decoder = delta::qwen(t)?;
    let hidden = t.hidden()?;
    let count = c.dim("hc_count")?;
    let rank = c.dim("hc_lowrank")?;
    let wide = count * hidden;
    // Mixing into the layer's input and the injection into each branch share a projection, filled up to 16 rows.
    let inject = (rank + count).next_multiple_of(16) - rank;
    let connection = |path: &str| {
        [
            Weight::norm(format!("{path}.hc_norm"), wide),
            Weight::replicated(
                format!("{path}.input_mix_weight_down_block_inject"),
                Role::Norm,
                wide,
                &[rank, inject],
            )
            .unquantized(),
            Weight::replicated(format!("{path}.input_mix_weight_up"), Role::Norm, rank, &[wide])
                .unquantized(),
        ]
    };
    let indexer = Indexer::read(t)?;
    for layer in &mut decoder.layers {
        let attends = layer.caches.iter().any(|c| matches!(c.kind, CacheKind::Full(_)));
        if let Some(indexer) = indexer.as_ref().filter(|_| attends) {
            // The engine registers them before the attention's own.
            layer.caches.splice(0..0, indexer.caches());
            layer.weights.extend(indexer.weights(hidden));
        }
        layer.weights.extend(connection("attn_hyper_connection"));
        layer.weights.extend(connection("mlp_hyper_connection"));
        // The hyper-connections' norms stand for the usual two.
        layer
            .weights
            .retain(|w| w.name != "input_layernorm" && w.name != "post_attention_layernorm");
    }
    for outside in &mut decoder.outside {
        outside.weights.retain(|w| w.name != "model.norm");
    }
    decoder.outside.push(part(
        Place::Last,
        vec![
            Weight::norm("model.hyper_connection_mixer.hc_norm", wide),
            Weight::replicated(
                "model.hyper_connection_mixer.input_mix_weight_down",
                Role::Norm,
                wide,
                &[rank],
            ),
            Weight::replicated(
                "model.hyper_connection_mixer.input_mix_weight_up",
                Role::Norm,
                rank,
                &[wide],
            ),
        ],
    ));
    Ok(decoder)
}
