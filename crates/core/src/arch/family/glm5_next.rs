//! GLM-5-Next (GLM-5.3-Flash): Kimi delta attention beside latent attention without positions, whose indexer keeps
//! one key a pool of tokens, between hyper-connections.

use super::deepseek::experts_of;
use super::dense::{Decoder, Ends, Mlp};
use super::kimi::kda_cache;
use super::mla::{Indexer, Mla};
use super::text::Text;
use crate::arch::weight::Part;
use crate::arch::{Cache, CacheKind, Config, Layer, Role, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Pools of tokens whose pages the indexer's kernel is known to read.
const POOLS: [u64; 7] = [2, 4, 8, 16, 32, 64, 128];

/// A Kimi delta attention with a convolution each for queries, keys and values.
struct Delta {
    heads: u64,
    dim: u64,
    kernel: u64,
    /// Whether the decay is bounded, which the kernel that exports checkpoints needs.
    bounded: bool,
}

impl Delta {
    fn read(c: &Config) -> Result<Self> {
        let nested = c.sub("linear_attn_config")?;
        let size = |old: &str, key: &str| match &nested {
            Some(n) if n.get(old).is_some() => n.dim(old),
            _ => c.dim(key),
        };
        // The class bounds the decay at -5 unless the file says null.
        let unbounded = c.has("linear_lower_bound") && c.get("linear_lower_bound").is_none();
        Ok(Self {
            heads: size("num_heads", "linear_num_heads")?,
            dim: size("head_dim", "linear_head_dim")?,
            kernel: size("short_conv_kernel_size", "linear_conv_kernel_dim")?,
            bounded: !unbounded,
        })
    }

    /// Its state, with a checkpoint inside a prefill where `FlashKDA` runs (`_resolve_kda_prefill_backend`).
    fn cache(&self) -> Cache {
        kda_cache(self.heads, self.dim, self.kernel, self.bounded && self.dim == 128)
    }

    fn weights(&self, hidden: u64) -> Vec<Weight> {
        let (heads, dim) = (self.heads, self.dim);
        let width = heads * dim;
        let name = |part: &str| format!("self_attn.{part}");
        let mut inputs = vec![Part::Even(width); 3];
        inputs.extend([Part::Even(heads), Part::Whole(dim), Part::Whole(dim)]);
        let mut all = vec![
            Weight::parts(name("in_proj_qkvbfg_a"), Role::Attention, hidden, inputs),
            Weight::column(name("f_b_proj"), Role::Attention, dim, &[width]),
            Weight::column(name("g_b_proj"), Role::Attention, dim, &[width]),
            Weight::row(name("o_proj"), Role::Attention, width, hidden),
            Weight::norm(name("o_norm"), dim),
            Weight::tensor(name("dt_bias"), Role::State, &[width], Some(0)).of(Dtype::F32),
            Weight::tensor(name("A_log"), Role::State, &[heads], Some(0)).of(Dtype::F32),
        ];
        for part in ["q_conv1d", "k_conv1d", "v_conv1d"] {
            all.push(Weight::column(name(part), Role::State, self.kernel, &[width]).of(Dtype::F32));
        }
        all
    }
}

/// The latent attention, its indexer over pools of tokens and the ring of the pool that is being filled.
struct Latent {
    mla: Mla,
    /// Tokens of a pool, where there is an indexer.
    pool: u64,
}

impl Latent {
    fn read(t: &Text) -> Result<Self> {
        let c = &t.config;
        let indexer = Indexer::read(t)?;
        let pool = c.dim_or("index_kpool", 16)?;
        if indexer.is_some() && !POOLS.contains(&pool) {
            return Err(Error::input(format!(
                "{} is {pool}, expected a power of two from 2 to 128",
                c.name("index_kpool")
            )));
        }
        let mla = Mla {
            path: "self_attn",
            heads: t.heads()?,
            q_lora: Some(c.dim_or("q_lora_rank", 0)?).filter(|&n| n > 0),
            kv_lora: c.dim("kv_lora_rank")?,
            nope: c.dim("qk_nope_head_dim")?,
            rope: c.dim_or("qk_rope_head_dim", 0)?,
            value: c.dim("v_head_dim")?,
            fused_a: true,
            output: "o_proj",
            indexer,
        };
        Ok(Self { mla, pool })
    }

    fn caches(&self) -> Vec<Cache> {
        let mut caches = self.mla.caches(false);
        if let Some(indexer) = self.mla.indexer {
            caches.push(Cache {
                name: "self_attn.indexer.k_cache".to_owned(),
                kind: CacheKind::PooledIndexer {
                    bytes_per_entry: indexer.bytes_per_token(),
                    pool: self.pool,
                    paged: true,
                },
            });
            // A key and its gate's score of every token.
            caches.push(Cache {
                name: "self_attn.indexer.tail_cache".to_owned(),
                kind: CacheKind::Ring {
                    vectors: 2,
                    width: indexer.head_dim,
                    pool: self.pool,
                    doubling: true,
                },
            });
        }
        caches
    }

    fn weights(&self, hidden: u64) -> Vec<Weight> {
        let mut all = self.mla.weights(hidden, true);
        if let Some(indexer) = self.mla.indexer {
            let name = |part: &str| format!("self_attn.indexer.index_kpool_compress_{part}");
            all.push(
                Weight::tensor(name("ape"), Role::Attention, &[self.pool, indexer.head_dim], None)
                    .of(Dtype::F32),
            );
            all.push(
                Weight::tensor(name("gate"), Role::Attention, &[indexer.head_dim, hidden], None)
                    .of(Dtype::Bf16),
            );
        }
        all
    }
}

/// Hyper-connections around attention and around the feed-forward part: mixing into `streams` residual streams.
fn connections(hidden: u64, streams: u64) -> Vec<Weight> {
    let mix = (2 + streams) * streams;
    ["hc_attn", "hc_ffn"]
        .iter()
        .flat_map(|name| {
            let tensor = |part: &str, shape: &[u64]| {
                Weight::tensor(format!("{name}_{part}"), Role::Norm, shape, None).of(Dtype::F32)
            };
            [
                tensor("fn", &[mix, streams * hidden]),
                tensor("base", &[mix]),
                tensor("scale", &[3]),
            ]
        })
        .collect()
}

/// GLM-5-Next's language model (vLLM 0.32.0, `models/glm5next/common/model.py`). Both kinds of attention stay in 16
/// bits whatever the checkpoint's quantisation says.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn glm5_next(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let (delta, latent) = (Delta::read(c)?, Latent::read(t)?);
    let unquantized =
        |weights: Vec<Weight>| -> Vec<Weight> { weights.into_iter().map(Weight::unquantized).collect() };
    // Layers of a kind are alike: made once and copied.
    let attention = [
        unquantized(latent.weights(hidden)),
        unquantized(delta.weights(hidden)),
    ];
    let mut moe = experts_of(t)?;
    if c.str("moe_router_dtype")? == Some("float32") {
        moe = moe.f32_router();
    }
    let feed = [moe.weights(hidden), Mlp::gated(t.intermediate()?).weights(hidden)];
    let streams = c.dim_or("hc_mult", 4)?;
    let mut shared: Vec<Weight> = ["input_layernorm", "post_attention_layernorm"]
        .map(|norm| Weight::norm(norm, hidden))
        .to_vec();
    if c.flag("mhc", true)? {
        shared.extend(connections(hidden, streams));
    }
    let recurrent: Vec<bool> = match t.layer_types()? {
        Some(kinds) => kinds.iter().map(|kind| *kind == "linear_attention").collect(),
        None => (0..t.layers()?).map(|i| i % 4 != 3).collect(),
    };
    let dense: Vec<bool> = match c.strs("mlp_layer_types")? {
        Some(kinds) => kinds.iter().map(|kind| *kind == "dense").collect(),
        None => vec![true; 3],
    };
    let layers = (0..t.layers()?)
        .map(|i| {
            let at = |list: &[bool]| {
                usize::try_from(i)
                    .ok()
                    .and_then(|i| list.get(i).copied())
                    .unwrap_or(false)
            };
            let (recurrent, dense) = (at(&recurrent), at(&dense));
            let mut weights = attention[usize::from(recurrent)].clone();
            weights.extend(feed[usize::from(dense)].iter().cloned());
            weights.extend(shared.iter().cloned());
            Layer {
                caches: if recurrent {
                    vec![delta.cache()]
                } else {
                    latent.caches()
                },
                weights: weights.into(),
            }
        })
        .collect();
    let mut ends = Ends::read(t)?;
    ends.tied = false;
    Ok(Decoder {
        layers_path: "model.layers".to_owned(),
        layers,
        outside: ends.outside(hidden),
        mtp_layers: c.dim_or("num_nextn_predict_layers", 0)?,
        kv_heads: Some(1),
        ..Decoder::default()
    })
}
