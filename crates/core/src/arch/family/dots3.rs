//! Dots3 NOTE: sparse latent attention every few layers, windows of wider latents in the others, and a gate on both.

use super::deepseek::experts_of;
use super::dense::{Decoder, Ends, Mlp};
use super::mla::{Mla, indexed_layers};
use super::moe::after_dense;
use super::text::Text;
use crate::arch::{Cache, CacheKind, Layer, Modules, Role, Weight};
use crate::{Error, Result};

/// Most modules that are read; no checkpoint has more.
const MOST_MODULES: u64 = 1 << 10;

/// The latent attention of sliding layers, under keys of their own.
fn sliding(t: &Text) -> Result<Mla> {
    let c = &t.config;
    Ok(Mla {
        path: "self_attn",
        heads: c.dim("swa_num_attention_heads")?,
        q_lora: Some(c.dim("swa_q_lora_rank")?),
        kv_lora: c.dim("swa_kv_lora_rank")?,
        nope: c.dim("swa_qk_nope_head_dim")?,
        rope: c.dim("swa_qk_rope_head_dim")?,
        value: c.dim("swa_v_head_dim")?,
        fused_a: true,
        output: "o_proj",
        indexer: None,
    })
}

/// An attention's parameters with its gate: one number a head, whole on every rank, or one an element.
fn weights(mla: &Mla, hidden: u64, indexed: bool, gate: &str) -> Vec<Weight> {
    let mut all = mla.weights(hidden, indexed);
    let (name, role) = ("self_attn.g_proj", Role::Attention);
    all.push(if gate == "headwise" {
        Weight::replicated(name, role, hidden, &[mla.heads])
    } else {
        Weight::column(name, role, hidden, &[mla.heads * mla.value])
    });
    all.push(Weight::norm("self_attn.k_rope_only_layernorm", mla.rope));
    all
}

/// Dots3 NOTE's language model (vLLM 0.32.0, `models/dots3_note/nvidia/model.py`). Latents of full layers are kept in
/// rows as wide as those of sliding layers, so that their pages are equal.
///
/// # Errors
/// If a size is missing or out of range, or `layer_types` is missing.
pub(crate) fn dots3(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let (full, sliding) = (Mla::read(t)?, sliding(t)?);
    if full.indexer.is_none() {
        return Err(Error::input(format!(
            "{} is missing from the configuration",
            c.name("index_topk")
        )));
    }
    let width = sliding.kv_lora + sliding.rope;
    let window = c.dim("sliding_window_size")?;
    let gate = |key: &str| c.str(key).map(|gate| gate.unwrap_or_default().to_owned());
    let (full_gate, sliding_gate) = (gate("attention_gate_type")?, gate("swa_attention_gate_type")?);
    let indexed = indexed_layers(t)?;
    let kinds = t.layer_types()?.ok_or_else(|| {
        Error::input(format!(
            "{} is missing from the configuration",
            c.name("layer_types")
        ))
    })?;
    // Layers of a kind are alike: made once and copied.
    let sliding_layer = Layer {
        caches: vec![Cache {
            name: "self_attn.attn".to_owned(),
            kind: CacheKind::SlidingLatent { width, window },
        }],
        weights: weights(&sliding, hidden, false, &sliding_gate).into(),
    };
    let full_layer = |indexed: bool| {
        let mut caches = full.caches(indexed);
        for cache in &mut caches {
            if let CacheKind::Latent { width: own, .. } = &mut cache.kind {
                *own = width.max(*own);
            }
        }
        Layer {
            caches,
            weights: weights(&full, hidden, indexed, &full_gate).into(),
        }
    };
    let full_layers = [full_layer(false), full_layer(true)];
    let sparse = after_dense(t, 0)?;
    let feed = [
        Mlp::gated(t.intermediate()?).weights(hidden),
        experts_of(t)?.weights(hidden),
    ];
    let norms = ["input_layernorm", "post_attention_layernorm"].map(|norm| Weight::norm(norm, hidden));
    let count = usize::try_from(t.layers()?).map_err(|_| Error::overflow("the number of layers"))?;
    let layers = (0..count)
        .map(|i| {
            let at = |list: &[bool]| usize::from(list.get(i).copied().unwrap_or(true));
            let mut layer = match kinds.get(i) {
                Some(&"sliding_attention") => sliding_layer.clone(),
                _ => full_layers[at(&indexed)].clone(),
            };
            layer.weights.extend(feed[at(&sparse)].iter().cloned());
            layer.weights.extend(norms.iter().cloned());
            layer
        })
        .collect();
    let mut ends = Ends::read(t)?;
    ends.tied = false;
    // Modules have no experts, and an indexer of their own where they attend to everything.
    let module = |kind: &str| {
        let mut layer = match kind {
            "sliding_attention" => sliding_layer.clone(),
            _ => full_layers[1].clone(),
        };
        layer.weights.extend(feed[0].iter().chain(&norms).cloned());
        layer
    };
    let modules = modules(t, module)?;
    Ok(Decoder {
        layers_path: "model.layers".to_owned(),
        layers,
        outside: ends.outside(hidden),
        mtp_layers: modules.layers.len() as u64,
        modules: Some(Box::new(modules)),
        kv_heads: Some(1),
        ..Decoder::default()
    })
}

/// Modules of multi-token prediction (vLLM 0.32.0, `models/dots3_note/nvidia/mtp.py`, `config/speculative.py`): of the kinds
/// that `mtp_layer_types` lists, sliding without it. The checkpoint brings an embedding for them.
fn modules(t: &Text, module: impl Fn(&str) -> Layer) -> Result<Modules> {
    let hidden = t.hidden()?;
    let count = t.config.u64("num_nextn_predict_layers")?.unwrap_or(1);
    let kinds = match t.config.strs("mtp_layer_types")? {
        Some(kinds) if kinds.len() as u64 != count => {
            return Err(Error::unsupported(format!(
                "mtp_layer_types must have one entry per MTP layer: got {} for {count} layers",
                kinds.len()
            )));
        }
        Some(kinds) => kinds,
        None if count > MOST_MODULES => {
            return Err(Error::input(format!(
                "{} is {count}, expected at most {MOST_MODULES}",
                t.config.name("num_nextn_predict_layers")
            )));
        }
        None => vec!["sliding_attention"; usize::try_from(count).unwrap_or(0)],
    };
    let layers = kinds
        .into_iter()
        .map(|kind| {
            let mut layer = module(kind);
            layer.weights.push(Weight::norm("norms", hidden).times(3));
            layer
                .weights
                .push(Weight::replicated("eh_proj", Role::Mlp, 2 * hidden, &[hidden]));
            layer
        })
        .collect();
    Ok(Modules {
        layers,
        once: vec![Weight::vocab(
            "model.embed_tokens",
            Role::Embedding,
            t.vocab()?,
            hidden,
        )],
        as_many_as_tokens: false,
    })
}
