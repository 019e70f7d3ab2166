//! DeepSeek and the models that follow its design: latent attention, shared and routed experts.

use super::dense::{Attention, Decoder, Dense, Mlp, TWO_NORMS};
use super::mla::{Mla, indexed_layers};
use super::moe::{Moe, after_dense, experts, top_k};
use super::text::{Attend, Text};
use crate::arch::{Kinds, Layer, Outside, Place, Role, Weight};
use crate::{Error, Result};

/// Routed and shared experts as DeepSeek's configuration names them.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn experts_of(t: &Text) -> Result<Moe> {
    let moe = Moe::read(t, "mlp")?;
    let shared = moe.width * t.config.dim_or("n_shared_experts", 0)?;
    let corrected = t.config.str("topk_method")? == Some("noaux_tc");
    let moe = moe.shared("mlp.shared_experts", shared);
    Ok(if corrected {
        moe.corrected("gate.e_score_correction_bias")
    } else {
        moe
    })
}

/// A decoder of latent attention; `moe` in the layers that `sparse` marks.
pub(crate) fn latent(
    t: &Text,
    mla: &Mla,
    norms: &'static [&'static str],
    moe: Option<&Moe>,
    sparse: &[bool],
) -> Result<Decoder> {
    let indexed = indexed_layers(t)?;
    let mut d = plain(t)?;
    d.norms = norms;
    let hidden = d.hidden;
    // Layers of a kind are alike: made once and copied.
    let attention = [mla.weights(hidden, false), mla.weights(hidden, true)];
    let experts = moe.map(|moe| moe.weights(hidden));
    let dense = d.mlp.weights(hidden);
    let mut kinds = Kinds::default();
    let mut decoder = d.build_with(|i, layer| {
        let indexed = indexed.get(i).copied().unwrap_or(false);
        let experts = experts
            .as_ref()
            .filter(|_| sparse.get(i).copied().unwrap_or(true));
        layer.caches = mla.caches(indexed);
        layer.weights = kinds.of((indexed, experts.is_some()), || {
            let norms = layer.weights.iter().filter(|w| w.role == Role::Norm);
            let attention = attention[usize::from(indexed)].iter();
            let feed = experts.unwrap_or(&dense);
            attention.chain(norms).chain(feed).cloned().collect()
        });
        Ok(())
    })?;
    decoder.mtp_layers = t.config.dim_or("num_nextn_predict_layers", 0)?;
    decoder.kv_heads = Some(1);
    Ok(decoder)
}

/// Embedding, norms and dense part of a latent decoder, whose attention is put in afterwards.
fn plain(t: &Text) -> Result<Dense> {
    let attention = Attention {
        path: "self_attn",
        heads: 1,
        kv_heads: 1,
        head_dim: 1,
        head_dim_v: 1,
        qkv_bias: false,
        o_bias: false,
        qk_norm: super::dense::QkNorm::None,
        follows_kv_dtype: true,
    };
    Ok(Dense {
        hidden: t.hidden()?,
        attends: vec![Attend::Full; usize::try_from(t.layers()?).unwrap_or(0)],
        attention,
        mlp: Mlp::gated(t.intermediate()?),
        norms: TWO_NORMS,
        norm: super::dense::Norm::Scale,
        ends: super::dense::Ends::read(t)?,
        layers_path: "model.layers",
    })
}

/// DeepSeek V1: ordinary attention without biases, whatever `attention_bias` says (vLLM 0.32.0, `DeepseekAttention` in
/// `deepseek_v2.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn v1(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attends.fill(t.attend_of_all()?);
    match t.config.get("n_routed_experts") {
        None => d.build(),
        Some(_) => d.build_moe(&experts_of(t)?, &after_dense(t, 0)?),
    }
}

/// DeepSeek V2, V3 and V3.2 (vLLM 0.32.0, `deepseek_v2.py`); small relatives without a latent use V1's attention.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn v2(t: &Text) -> Result<Decoder> {
    let nope = t.config.dim_or("qk_nope_head_dim", 0)?;
    let rope = t.config.dim_or("qk_rope_head_dim", 0)?;
    if t.model_type()? == "deepseek" || nope + rope == 0 {
        return v1(t);
    }
    let mla = Mla::read(t)?;
    let mut decoder = match t.config.get("n_routed_experts") {
        None => latent(t, &mla, TWO_NORMS, None, &[]),
        Some(_) => latent(t, &mla, TWO_NORMS, Some(&experts_of(t)?), &after_dense(t, 0)?),
    }?;
    if t.class == "GlmMoeDsaForCausalLM" {
        // Its queries are kept by every rank of a context group (vLLM 0.32.0, `models/config.py`, `set_dcp_defaults`).
        for weight in decoder.layers.iter_mut().flat_map(|layer| &mut layer.weights) {
            weight.shared_in_context_group = weight.name == "self_attn.q_b_proj";
        }
    }
    Ok(decoder)
}

/// DeepSeek-VL2 (vLLM 0.32.0, `deepseek_vl2.py`): two vectors between image tiles count to the language model.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn vl2(t: &Text) -> Result<Decoder> {
    let mut decoder = v2(t)?;
    let hidden = t.hidden()?;
    let names = ["image_newline", "view_separator"];
    let vectors = names
        .map(|n| Weight::tensor(n, Role::Embedding, &[hidden], None))
        .to_vec();
    decoder.outside.push(super::dense::part(Place::Every, vectors));
    Ok(decoder)
}

/// DeepSeek-OCR, its second version and Unlimited-OCR (vLLM 0.32.0, `deepseek_ocr.py`, `deepseek_ocr2.py`): vectors
/// between views, and in the first also between lines, count to the language model.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn ocr(t: &Text) -> Result<Decoder> {
    let mut decoder = v2(t)?;
    let width = match t.top.sub("projector_config")? {
        Some(projector) => projector.dim_or("n_embed", 2048)?,
        None => t.hidden()?,
    };
    let vectors = if t.class == "DeepseekOCR2ForCausalLM" {
        1
    } else {
        2
    };
    let view = Weight::tensor("view_seperator", Role::Embedding, &[width], None).times(vectors);
    decoder.outside.push(super::dense::part(Place::Every, vec![view]));
    Ok(decoder)
}

/// A.X-K1: DeepSeek with a norm after the feed-forward part (vLLM 0.32.0, `AXK1.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn axk1(t: &Text) -> Result<Decoder> {
    const NORMS: &[&str] = &[
        "input_layernorm",
        "post_attention_layernorm",
        "post_mlp_layernorm",
    ];
    let moe = experts_of(t)?.corrected("gate.e_score_correction_bias");
    latent(t, &Mla::read(t)?, NORMS, Some(&moe), &after_dense(t, 0)?)
}

/// GLM-4.7-Flash: DeepSeek's attention with GLM-4.5's experts (vLLM 0.32.0, `glm4_moe_lite.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn glm4_lite(t: &Text) -> Result<Decoder> {
    let moe = experts_of(t)?
        .f32_router()
        .corrected("gate.e_score_correction_bias");
    latent(t, &Mla::read(t)?, TWO_NORMS, Some(&moe), &after_dense(t, 0)?)
}

/// Sarvam's latent model: the two first projections stay apart (vLLM 0.32.0, `sarvam.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn sarvam(t: &Text) -> Result<Decoder> {
    let mut mla = Mla::read(t)?;
    mla.fused_a = false;
    let mut moe = Moe::read(t, "mlp")?;
    let width = t
        .config
        .dim_or("moe_shared_expert_intermediate_size", moe.width)?;
    moe = moe.shared(
        "mlp.shared_experts",
        width * t.config.dim_or("num_shared_experts", 1)?,
    );
    if t.config.flag("moe_router_enable_expert_bias", true)? {
        moe = moe.corrected("gate.e_score_correction_bias");
    }
    latent(t, &mla, TWO_NORMS, Some(&moe), &after_dense(t, 1)?)
}

/// Dense latent models of the generic backend (Youtu).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn dense_latent(t: &Text) -> Result<Decoder> {
    biased(t, latent(t, &Mla::read(t)?, TWO_NORMS, None, &[])?)
}

/// The same with biases in the first projections and the last where the file says so (generic backend).
fn biased(t: &Text, mut decoder: Decoder) -> Result<Decoder> {
    if t.config.flag("attention_bias", false)? {
        for weight in decoder.layers.iter_mut().flat_map(|layer| &mut layer.weights) {
            let biased = ["q_a_proj", "qkv_a_proj", "kv_a_proj_with_mqa", "self_attn.o_proj"];
            if biased.iter().any(|name| weight.name.ends_with(name)) {
                *weight = weight.clone().bias(true);
            }
        }
    }
    Ok(decoder)
}

/// Latent models with experts that the generic backend builds (Mistral-4, A.X-K2).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn generic_latent(t: &Text) -> Result<Decoder> {
    let mut mla = Mla::read(t)?;
    // The generic backend does not build an indexer of its own.
    mla.indexer = None;
    let decoder = latent(t, &mla, TWO_NORMS, Some(&experts_of(t)?), &after_dense(t, 0)?)?;
    biased(t, decoder)
}

/// A.X-K2 (generic backend): queries are made from their low rank before and after its norm, with an output gate;
/// an indexer that keeps no cache; norms with a low-rank gate, save before dense feed-forward parts.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn axk2(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let mut mla = Mla::read(t)?;
    mla.indexer = None;
    let layers = t.layers()?;
    let sparse: Vec<bool> = match c.strs("mlp_layer_types")? {
        Some(kinds) => kinds
            .iter()
            .zip(0..layers)
            .map(|(kind, _)| *kind == "sparse")
            .collect(),
        None => (0..layers).map(|i| i > 0).collect(),
    };
    let width = c.dim("moe_intermediate_size")?;
    let moe = Moe::read(t, "mlp")?.shared("mlp.shared_experts", width * c.dim_or("n_shared_experts", 0)?);
    let mut decoder = latent(t, &mla, TWO_NORMS, Some(&moe), &sparse)?;
    let hidden = t.hidden()?;
    let q_rank = c.dim("q_lora_rank")?;
    let (index_heads, index_dim) = (c.dim("index_n_heads")?, c.dim("index_head_dim")?);
    let gate_rank = c.dim("gated_norm_rank")?;
    let queries = mla.heads * (mla.nope + mla.rope + mla.value);
    let whole =
        |name: &str, inputs: u64, outputs: u64| Weight::replicated(name, Role::Attention, inputs, &[outputs]);
    let gate = |norm: &str| {
        [
            Weight::replicated(format!("{norm}.mlp.fc1"), Role::Norm, hidden, &[gate_rank]),
            Weight::replicated(format!("{norm}.mlp.fc2"), Role::Norm, gate_rank, &[hidden]),
        ]
    };
    for (i, layer) in decoder.layers.iter_mut().enumerate() {
        layer.weights.retain(|w| !w.name.ends_with("q_b_proj"));
        layer.weights.extend([
            Weight::column("self_attn.q_gate_proj", Role::Attention, 2 * q_rank, &[queries]),
            whole("self_attn.indexer.wq_b", q_rank, index_heads * index_dim),
            whole("self_attn.indexer.wk", hidden, index_dim),
            Weight::norm("self_attn.indexer.k_norm", index_dim).times(2),
            whole("self_attn.indexer.weights_proj", hidden, index_heads),
        ]);
        layer.weights.extend(gate("input_layernorm"));
        if sparse.get(i).copied().unwrap_or(true) {
            layer.weights.extend(gate("post_attention_layernorm"));
        }
    }
    biased(t, decoder)
}

/// LongCat-Flash: two attentions and two dense parts a layer beside one mixture of experts, whose zero experts
/// have no weights but a place in the router (vLLM 0.32.0, `longcat_flash.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn longcat(t: &Text) -> Result<Decoder> {
    let count = match t.config.get("num_layers") {
        Some(_) => t.count_of_layers(&["num_layers"])?,
        None => t.layers()? / 2,
    };
    let hidden = t.hidden()?;
    let width = t.first_dim(&["ffn_hidden_size", "intermediate_size"])?;
    let expert_width = t.first_dim(&["expert_ffn_hidden_size", "moe_intermediate_size"])?;
    let zero = t.config.dim_or("zero_expert_num", 0)?;
    let moe = Moe::new("mlp", experts(t)?, top_k(t)?, expert_width);
    let mut layer = Layer::default();
    for (attention, mlp) in [("self_attn.0", "mlps.0"), ("self_attn.1", "mlps.1")] {
        let mla = Mla {
            path: attention,
            ..Mla::read(t)?
        };
        layer.caches.extend(mla.caches(false));
        layer.weights.extend(mla.weights(hidden, false));
        layer.weights.extend(
            Mlp {
                path: mlp,
                width,
                gated: true,
                bias: false,
            }
            .weights(hidden),
        );
    }
    layer
        .weights
        .push(Weight::norm("input_layernorm", hidden).times(2));
    layer
        .weights
        .push(Weight::norm("post_attention_layernorm", hidden).times(2));
    let f32 = crate::dtype::Dtype::F32;
    let rows = moe.experts + zero;
    let router = Weight::replicated("mlp.router.classifier", Role::Router, hidden, &[rows]);
    layer.weights.push(router.of(f32).unquantized());
    let correction = Weight::tensor("mlp.router.e_score_correction_bias", Role::Router, &[rows], None);
    layer.weights.push(correction.of(f32));
    layer
        .weights
        .extend(moe.weights(hidden).into_iter().filter(|w| w.role != Role::Router));
    let ends = super::dense::Ends::read(t)?;
    let mut outside = ends.outside(hidden);
    if t.class == "LongcatFlashNgramForCausalLM" {
        outside.extend(ngrams(t, hidden)?);
    }
    Ok(Decoder {
        layers_path: "model.layers".to_owned(),
        layers: vec![layer; usize::try_from(count).unwrap_or(0)],
        outside,
        kv_heads: Some(1),
        ..Decoder::default()
    })
}

/// LongCat-Flash-Lite's embeddings of hashed n-grams: `emb_split_num` tables for each length from 2 on, kept as one,
/// each table two rows longer than the one before, and a projection for each (vLLM 0.32.0,
/// `longcat_flash_ngram.py`). `None` where the file has none.
fn ngrams(t: &Text, hidden: u64) -> Result<Option<Outside>> {
    let c = &t.config;
    if c.get("ngram_vocab_size_ratio").is_none() {
        return Ok(None);
    }
    let tables = c.dim("emb_split_num")? * (c.dim("emb_neighbor_num")? - 1);
    let overflow = || Error::overflow("the rows of the n-gram embeddings");
    let first = t
        .vocab()?
        .checked_mul(c.dim("ngram_vocab_size_ratio")?)
        .ok_or_else(overflow)?;
    let rows = first
        .checked_mul(tables)
        .and_then(|rows| rows.checked_add(tables.checked_mul(tables)?))
        .ok_or_else(overflow)?;
    let width = hidden.checked_div(tables).unwrap_or(0);
    let name = |part: &str| format!("model.ngram_embeddings.{part}");
    Ok(Some(super::dense::part(
        Place::First,
        vec![
            Weight::vocab(name("oe_embedder"), Role::Embedding, rows, width).unquantized(),
            Weight::tensor(
                name("oe_projection"),
                Role::Embedding,
                &[tables, width, hidden],
                None,
            ),
        ],
    )))
}
