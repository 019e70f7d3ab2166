//! Multi-head latent attention: low-rank projections around one latent vector a token.

use super::text::Text;
use crate::Result;
use crate::arch::{Cache, CacheKind, Role, Weight};
use crate::dtype::Dtype;

/// A sparse indexer (DeepSeek-V3.2): its own small heads choose the tokens that a layer attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indexer {
    /// Heads.
    pub heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
}

impl Indexer {
    /// `index_n_heads` and `index_head_dim`; `None` without `index_topk`.
    ///
    /// # Errors
    /// If a size is missing or out of range.
    pub fn read(t: &Text) -> Result<Option<Self>> {
        if t.config.get("index_topk").is_none() {
            return Ok(None);
        }
        Ok(Some(Self {
            heads: t.config.dim("index_n_heads")?,
            head_dim: t.config.dim("index_head_dim")?,
        }))
    }

    /// Bytes of one cached key: the vector in 8 bits and a float32 scale per 128 elements
    /// (vLLM 0.32.0, `DeepseekV32IndexerCache`).
    pub fn bytes_per_token(self) -> u64 {
        self.head_dim + self.head_dim / 128 * 4
    }
}

/// The attention of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mla {
    /// Module path below the layer.
    pub path: &'static str,
    /// Query heads.
    pub heads: u64,
    /// Rank of the query's low-rank projection, if it has one.
    pub q_lora: Option<u64>,
    /// Rank of the latent.
    pub kv_lora: u64,
    /// Elements of a query or key head that rotary embedding leaves alone.
    pub nope: u64,
    /// Elements that it turns.
    pub rope: u64,
    /// Elements of a value head.
    pub value: u64,
    /// Whether the two first projections are one module.
    pub fused_a: bool,
    /// Name of the output projection.
    pub output: &'static str,
    /// Indexer of the model, if it has one; not every layer needs to hold it.
    pub indexer: Option<Indexer>,
}

impl Mla {
    /// As the configuration describes it (`kv_lora_rank` and so on).
    ///
    /// # Errors
    /// If a size is missing or out of range.
    pub fn read(t: &Text) -> Result<Self> {
        Ok(Self {
            path: "self_attn",
            heads: t.heads()?,
            q_lora: Some(t.config.dim_or("q_lora_rank", 0)?).filter(|&n| n > 0),
            kv_lora: t.config.dim("kv_lora_rank")?,
            nope: t.config.dim("qk_nope_head_dim")?,
            rope: t.config.dim("qk_rope_head_dim")?,
            value: t.config.dim("v_head_dim")?,
            fused_a: true,
            output: "o_proj",
            indexer: Indexer::read(t)?,
        })
    }

    /// Caches of a layer; `indexed` says whether it holds the model's indexer.
    pub fn caches(&self, indexed: bool) -> Vec<Cache> {
        let mut caches = vec![Cache {
            name: format!("{}.attn", self.path),
            kind: CacheKind::Latent {
                width: self.kv_lora + self.rope,
                nope: self.nope,
                rope: self.rope,
                sparse: self.indexer.is_some(),
            },
        }];
        if let Some(indexer) = self.indexer.filter(|_| indexed) {
            caches.push(Cache {
                name: format!("{}.indexer.k_cache", self.path),
                kind: CacheKind::Indexer {
                    bytes_per_token: indexer.bytes_per_token(),
                    kernel_block: 64,
                },
            });
        }
        caches
    }

    /// Parameters in a model of width `hidden`; `indexed` says whether the layer holds the model's indexer.
    pub fn weights(&self, hidden: u64, indexed: bool) -> Vec<Weight> {
        let path = self.path;
        let name = |part: &str| format!("{path}.{part}");
        let role = Role::Attention;
        let queries = self.heads * (self.nope + self.rope);
        let latent = self.kv_lora + self.rope;
        let mut all = Vec::with_capacity(12);
        if let Some(rank) = self.q_lora {
            if self.fused_a {
                all.push(Weight::replicated(
                    name("fused_qkv_a_proj"),
                    role,
                    hidden,
                    &[rank, latent],
                ));
            } else {
                all.push(Weight::replicated(name("q_a_proj"), role, hidden, &[rank]));
                all.push(Weight::replicated(
                    name("kv_a_proj_with_mqa"),
                    role,
                    hidden,
                    &[latent],
                ));
            }
            all.push(Weight::norm(name("q_a_layernorm"), rank));
            all.push(Weight::column(name("q_b_proj"), role, rank, &[queries]));
        } else {
            all.push(Weight::replicated(
                name("kv_a_proj_with_mqa"),
                role,
                hidden,
                &[latent],
            ));
            all.push(Weight::column(name("q_proj"), role, hidden, &[queries]));
        }
        all.push(Weight::norm(name("kv_a_layernorm"), self.kv_lora));
        let outputs = self.heads * (self.nope + self.value);
        all.push(Weight::column(name("kv_b_proj"), role, self.kv_lora, &[outputs]));
        all.push(Weight::row(
            name(self.output),
            role,
            self.heads * self.value,
            hidden,
        ));
        if let (Some(indexer), Some(rank)) = (self.indexer.filter(|_| indexed), self.q_lora) {
            let outputs = indexer.heads * indexer.head_dim;
            all.push(Weight::replicated(name("indexer.wq_b"), role, rank, &[outputs]));
            let outputs = [indexer.head_dim, indexer.heads];
            all.push(
                Weight::replicated(name("indexer.wk_weights_proj"), role, hidden, &outputs).unquantized(),
            );
            // A layer norm: scale and shift.
            all.push(
                Weight::norm(name("indexer.k_norm"), indexer.head_dim)
                    .of(Dtype::F32)
                    .times(2),
            );
        }
        all
    }
}

/// Which layers hold the indexer: all, or those that `index_topk_freq`, `index_skip_topk_offset` and
/// `index_topk_pattern` leave it (vLLM 0.32.0, `DeepseekV2MLAAttention`).
///
/// # Errors
/// If a value is out of range.
pub(crate) fn indexed_layers(t: &Text) -> Result<Vec<bool>> {
    let layers = t.layers()?;
    if t.config.get("index_topk").is_none() {
        return Ok(vec![false; usize::try_from(layers).unwrap_or(0)]);
    }
    let every = t.config.dim_or("index_topk_freq", 1)?.max(1);
    let offset = t.config.dim_or("index_skip_topk_offset", 2)?;
    let pattern: Option<Vec<bool>> = match t.config.get("index_topk_pattern") {
        None => None,
        // Letters, S for a layer that uses an earlier one's choice; published as a string or a list.
        Some(serde_json::Value::String(s)) => Some(s.chars().map(|c| c != 'S').collect()),
        Some(_) => t
            .config
            .strs("index_topk_pattern")?
            .map(|l| l.iter().map(|s| *s != "S").collect()),
    };
    Ok((0..layers)
        .map(|i| match &pattern {
            Some(p) => usize::try_from(i)
                .ok()
                .and_then(|i| p.get(i).copied())
                .unwrap_or(true),
            None => (i + 1).saturating_sub(offset).is_multiple_of(every),
        })
        .collect())
}
