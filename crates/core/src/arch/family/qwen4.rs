//! Qwen4-Exp: Qwen3-Next's layers between hyper-connections, which widen the residual stream.

use super::delta;
use super::dense::{Decoder, part};
use super::text::Text;
use crate::arch::{Cache, CacheKind, Place, Role, State, Weight};
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
            return Err(Error::unsupported("Qwen4-Exp QSA requires indexer_kv_heads=1.")
                .hint("set indexer_kv_heads to 1"));
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

/// Embeddings of n-grams, added to the residual stream in front of some layers
/// (`models/qwen4_exp/nvidia/ple_layer.py`). Their tables lie in the host's memory (`EngramConfig.cpu_offload` in
/// `vllm/config/engram.py` is on), and are no weights of the GPU.
struct NGrams {
    /// Layers that have them, counted from 1.
    layers: Vec<u64>,
    /// Width of one token's embedding, all heads together.
    width: u64,
    heads: u64,
    /// Taps of the convolution behind the embedding.
    kernel: u64,
    /// How far its taps are apart.
    dilation: u64,
}

impl NGrams {
    fn read(t: &Text) -> Result<Self> {
        let c = &t.config;
        let mut layers = c.u64s("ple_layer_ids")?.unwrap_or_default();
        layers.sort_unstable();
        layers.dedup();
        let size = c.dim_or("ngram_size", 3)?;
        let read = Self {
            width: c.dim_or("ple_embed_dim", t.hidden()?)?,
            heads: size.saturating_sub(1) * c.dim_or("heads_per_ngram", 8)?,
            kernel: c.dim_or("ple_conv_kernel_size", 4)?,
            dilation: size,
            layers,
        };
        if !read.layers.is_empty() && (read.heads == 0 || !read.width.is_multiple_of(read.heads)) {
            return Err(Error::unsupported(format!(
                "ple_embed_dim must be divisible by total ngram heads: {} % {} != 0",
                read.width, read.heads
            )));
        }
        Ok(read)
    }

    /// The state of the convolution, which every rank keeps whole.
    fn state(&self, wide: u64) -> Result<State> {
        let taps = self.kernel.saturating_sub(1).checked_mul(self.dilation);
        Ok(State::ShortConv {
            hidden: wide,
            kernel: taps
                .and_then(|taps| taps.checked_add(1))
                .ok_or_else(|| Error::overflow("the taps of ple_conv_kernel_size"))?,
            whole: true,
        })
    }

    /// Adds them to their layers.
    fn add(&self, decoder: &mut Decoder, hidden: u64, wide: u64) -> Result<()> {
        let layers = decoder.layers.len();
        for &id in &self.layers {
            let at = usize::try_from(id).ok().and_then(|id| id.checked_sub(1));
            let Some(layer) = at.and_then(|at| decoder.layers.get_mut(at)) else {
                return Err(Error::unsupported(format!(
                    "ple_layer_ids must contain one-indexed ids in [1, {layers}], got {id}."
                )));
            };
            if layer.caches.iter().any(|c| matches!(c.kind, CacheKind::Full(_))) {
                return Err(Error::unsupported(format!(
                    "PLE is only supported on linear_attention layers, got PLE on layer {id}."
                )));
            }
            // It is built, and registers its state, before the layer's own.
            let cache = Cache {
                name: "ple".to_owned(),
                kind: CacheKind::State(self.state(wide)?),
            };
            layer.caches.insert(0, cache);
            let name = |part: &str| format!("ple.{part}");
            layer.weights.extend([
                Weight::replicated(name("kv_proj"), Role::Attention, self.width, &[wide, hidden]),
                Weight::norm(name("norm"), wide).times(3),
                Weight::tensor(name("conv1d"), Role::State, &[wide, self.kernel], None),
            ]);
        }
        Ok(())
    }
}

/// Qwen4-Exp (vLLM 0.32.0, `models/qwen4_exp/nvidia/model.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn qwen4(t: &Text) -> Result<Decoder> {
    let c = &t.config;
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
    let ngrams = NGrams::read(t)?;
    decoder.sized_for = Some(ngrams.state(wide)?);
    ngrams.add(&mut decoder, hidden, wide)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_convolution_behind_n_grams_keeps_every_tap_whole() {
        let ngrams = NGrams {
            layers: vec![1],
            width: 8,
            heads: 2,
            kernel: 4,
            dilation: 3,
        };
        let state = State::ShortConv {
            hidden: 16,
            kernel: 10,
            whole: true,
        };
        assert_eq!(ngrams.state(16).unwrap(), state);
    }
}
