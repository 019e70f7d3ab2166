//! `DSpark` drafters in files of their own: a head of low rank corrects each token of a block by the one before it, and
//! another says how sure the drafter is (vLLM 0.32.0, `qwen3_dspark.py`, `gemma4_dspark.py`,
//! `vllm/models/kimi_k3/nvidia/dspark_mla.py`).

use super::dense::{Decoder, Dense, FOUR_NORMS, Mlp, Norm, QkNorm, TWO_NORMS, part};
use super::dflash::{Own, backbone, id_table};
use super::eagle::{embedding, model};
use super::gemma::{gemma4_windows, per_layer_attention};
use super::mla::Mla;
use super::text::{Attend, Text};
use crate::arch::weight::VOCAB_PADDING_ROWS;
use crate::arch::{Config, Layer, Model, Place, Role, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Reads a drafter of method `dspark`.
///
/// # Errors
/// As [`super::read_block_drafter`].
pub(super) fn read(name: &str, class: &str, flat: &Config, target: Option<&Model>) -> Result<Model> {
    let qwen3 = flat.str("model_type")? == Some("qwen3");
    let class = match class {
        "DSparkDraftModel" if qwen3 => "Qwen3DSparkModel",
        other => other,
    };
    let text = Text::find(class, flat)?;
    let decoder = match class {
        "Qwen3DSparkModel" | "Qwen3OmniDSparkModel" => {
            qwen3_layers(&text, target.map(|target| target.vocab_size))?
        }
        "Gemma4DSparkModel" => gemma4_layers(&text)?,
        "K3DSparkModel" => k3_layers(&text)?,
        _ => {
            return Err(Error::unsupported(format!(
                "the drafter class {class} is not one of method dspark"
            ))
            .hint("DSpark drafters say \"architectures\": [\"Qwen3DSparkModel\"]; those of DeepSeek-V4 are in the target's \
                   checkpoint and take no \"model\""));
        }
    };
    model(name, class, &text, decoder)
}

/// The two heads. They run once a token, so that every rank holds them whole.
fn heads(t: &Text, quantized: bool) -> Result<Vec<Weight>> {
    let c = &t.config;
    let (vocab, rank) = (t.vocab()?, c.dim("markov_rank")?);
    let rows = c.dim_or("draft_vocab_size", vocab)?;
    let out = Weight::replicated(
        "model.markov_head.markov_w2",
        Role::Mlp,
        rank,
        &[rows.next_multiple_of(VOCAB_PADDING_ROWS)],
    );
    let mut weights = vec![
        Weight::tensor("model.markov_head.markov_w1", Role::Mlp, &[vocab, rank], None),
        if quantized { out } else { out.unquantized() },
    ];
    if c.flag("enable_confidence_head", false)? {
        let more = if c.flag("confidence_head_with_markov", false)? {
            rank
        } else {
            0
        };
        // One row and its bias.
        let width = t.hidden()? + more + 1;
        weights.push(Weight::norm("model.confidence_head.proj", width).of(Dtype::F32));
    }
    Ok(weights)
}

/// `Qwen3DSparkForCausalLM`: the layers of `DFlash`.
fn qwen3_layers(t: &Text, target_vocab: Option<u64>) -> Result<Decoder> {
    let mut decoder = backbone(t, None)?;
    let vocab = t.config.dim_or("draft_vocab_size", t.vocab()?)?;
    for weight in decoder.outside.iter_mut().flat_map(|part| &mut part.weights) {
        weight.quantizable &= weight.role != Role::Head;
    }
    let mut weights = heads(t, true)?;
    // A vocabulary filled up beyond the target's needs no table.
    if target_vocab.is_some_and(|target| vocab < target) {
        weights.push(id_table(vocab));
    }
    decoder.outside.push(part(Place::Last, weights));
    Ok(decoder)
}

/// `Gemma4DSparkForCausalLM`: full layers whose keys are their values, in a file of their own.
fn gemma4_layers(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let mut d = Dense::llama(t)?;
    d.attends = gemma4_windows(t)?;
    if let (Some(last), Some(kinds)) = (d.attends.last_mut(), t.layer_types()?)
        && kinds.last() == Some(&"sliding_attention")
    {
        // This class looks at the list alone.
        *last = t.window()?.map_or(Attend::Full, Attend::Sliding);
    }
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    if !c.flag("attention_k_eq_v", false)? || d.attends.iter().any(|attend| *attend != Attend::Full) {
        return Err(Error::unsupported(
            "Gemma4 DSpark fused precompute assumes uniform attention_k_eq_v layers",
        ));
    }
    let bias = c.flag("attention_bias", false)?;
    let hidden = d.hidden;
    let mlp = Mlp::gated(t.intermediate()?).weights(hidden);
    let layers = per_layer_attention(t, &d)?
        .iter()
        .zip(&d.attends)
        .map(|(attention, attend)| {
            let role = Role::Attention;
            let column = |name: &str, heads: u64| {
                Weight::column(name, role, hidden, &[heads * attention.head_dim]).bias(bias)
            };
            let mut weights = vec![
                column("self_attn.q_proj", attention.heads),
                column("self_attn.k_proj", attention.kv_heads),
                Weight::row(
                    "self_attn.o_proj",
                    role,
                    attention.heads * attention.head_dim,
                    hidden,
                )
                .bias(bias),
                Weight::norm("self_attn.q_norm", attention.head_dim),
                Weight::norm("self_attn.k_norm", attention.head_dim),
            ];
            weights.extend(mlp.iter().cloned());
            weights.extend(FOUR_NORMS.iter().map(|name| Weight::norm(*name, hidden)));
            Layer {
                caches: vec![attention.cache(*attend)],
                weights: weights.into(),
            }
        })
        .collect();
    let states = Own::read(c)?.states(t.layers()?)?;
    let mut weights = vec![
        Weight::replicated("model.fc", Role::Mlp, hidden * states, &[hidden]),
        Weight::norm("model.hidden_norm", hidden),
        Weight::norm("model.norm", hidden),
    ];
    weights.extend(heads(t, false)?);
    weights.push(Weight::vocab("lm_head", Role::Head, t.vocab()?, hidden).unquantized());
    Ok(Decoder {
        layers_path: "model.layers".to_owned(),
        layers,
        outside: vec![embedding(t)?, part(Place::Last, weights)],
        ..Decoder::default()
    })
}

/// `K3DSparkForCausalLM`: latent attention; embedding and head are always the target's.
fn k3_layers(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let mla = Mla {
        indexer: None,
        ..Mla::read(t)?
    };
    let states = c.dim("num_target_layers")?;
    let listed = c
        .u64s("target_layer_ids")?
        .or(c.u64s("dspark_target_layer_ids")?)
        .unwrap_or_default();
    if mla.q_lora.is_none() || listed.len() as u64 != states {
        return Err(Error::unsupported(if mla.q_lora.is_none() {
            "MLA DSpark requires a low rank of the queries (q_lora_rank)."
        } else {
            "MLA DSpark requires non-empty target_layer_ids and a matching num_target_layers."
        }));
    }
    let mut weights = mla.weights(hidden, false);
    weights.extend(Mlp::gated(t.intermediate()?).weights(hidden));
    weights.extend(TWO_NORMS.iter().map(|name| Weight::norm(*name, hidden)));
    let layer = Layer {
        caches: mla.caches(false),
        weights: weights.into(),
    };
    let layers = t.layers()?;
    let from = c.dim("target_hidden_size")? * states;
    let mut beside = vec![
        Weight::replicated("model.context_proj", Role::Mlp, from, &[hidden]),
        Weight::norm("model.context_norm", hidden),
        Weight::replicated(
            "model.context_kv_proj",
            Role::Attention,
            hidden,
            &[mla.kv_lora + mla.rope],
        )
        .times(layers),
        Weight::norm("model.final_norm", hidden),
    ];
    beside.extend(heads(t, false)?);
    Ok(Decoder {
        layers_path: "model.layers".to_owned(),
        layers: vec![layer; usize::try_from(layers).unwrap_or(0)],
        outside: vec![part(Place::Last, beside)],
        kv_heads: Some(1),
        ..Decoder::default()
    })
}
