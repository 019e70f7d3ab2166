//! Encoders that embed, classify or score: every token sees every other, and nothing is kept between steps, so that the
//! engine gives them no KV cache (vLLM 0.32.0, `EncoderOnlyAttention`).

use super::dense::{Decoder, Norm, part};
use super::pooling::{LATE_WIDTHS, given, labels};
use super::text::Text;
use crate::arch::{Layer, Place, Role, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Classes that build encoder layers where the file says `is_causal: false` (vLLM 0.32.0: model files that read it).
const EITHER_WAY: &[&str] = &[
    "ApertusForCausalLM",
    "DeepseekForCausalLM",
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "Gemma3ForCausalLM",
    "IQuestCoderForCausalLM",
    "InternLM3ForCausalLM",
    "LLaMAForCausalLM",
    "LlamaForCausalLM",
    "MiMoForCausalLM",
    "Ministral3ForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "TeleChat2ForCausalLM",
    "TeleChat3ForCausalLM",
    "TeleFLMForCausalLM",
];

/// Classes that build Jina's rotary encoder where the file asks for it (vLLM 0.32.0, `roberta.py`, `colbert.py`).
const TAKES_ROTARY: &[&str] = &[
    "BgeM3EmbeddingModel",
    "ColBERTJinaRobertaModel",
    "RobertaForMaskedLM",
    "RobertaModel",
    "XLMRobertaModel",
];

/// Takes the caches off a decoder whose file turns it into an encoder.
pub(crate) fn turn(t: &Text, decoder: &mut Decoder) -> Result<()> {
    if EITHER_WAY.contains(&t.class.as_str()) && !t.config.flag("is_causal", true)? {
        for layer in &mut decoder.layers {
            layer.caches.clear();
        }
    }
    Ok(())
}

/// A norm with a shift as well.
fn norm(name: impl Into<String>, width: u64) -> Weight {
    Weight::norm(name, width).times(2)
}

/// A linear layer that every rank holds, in float32 as heads of pooling models are.
fn head(name: &str, inputs: u64, outputs: u64, bias: bool) -> Weight {
    Weight::replicated(name, Role::Head, inputs, &[outputs])
        .bias(bias)
        .of(Dtype::F32)
        .unquantized()
}

/// A table of rows that ranks share like a vocabulary.
fn table(name: &str, rows: u64, width: u64) -> Weight {
    Weight::vocab(format!("embeddings.{name}"), Role::Embedding, rows, width)
}

fn queries(name: &str, t: &Text) -> Result<Weight> {
    let (hidden, heads) = (t.hidden()?, t.heads()?);
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(Error::unsupported(format!(
            "{hidden} is not divisible by {heads} (width over attention heads)"
        )));
    }
    Ok(Weight::qkv(name, hidden, heads, heads, hidden / heads))
}

fn decoder(path: &str, layers: Vec<Layer>, outside: Vec<Weight>) -> Decoder {
    Decoder {
        layers_path: path.to_owned(),
        layers,
        outside: vec![part(Place::Every, outside)],
        ..Decoder::default()
    }
}

fn layers(t: &Text, mut weights: impl FnMut(u64) -> Vec<Weight>) -> Result<Vec<Layer>> {
    let layer = |i| Layer {
        caches: Vec::new(),
        weights: weights(i).into(),
    };
    Ok((0..t.layers()?).map(layer).collect())
}

/// BERT and `RoBERTa` (vLLM 0.32.0, `bert.py`, `roberta.py`) with the head of the class.
pub(crate) fn bert(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let inner = t.intermediate()?;
    let late = t.class.starts_with("ColBERT") || t.class == "HF_ColBERT";
    let kind = c.str("position_embedding_type")?.unwrap_or("absolute");
    if kind != "absolute" || t.class == "ColBERTJinaRobertaModel" {
        if !TAKES_ROTARY.contains(&t.class.as_str()) {
            return Err(Error::unsupported(
                "Only 'absolute' position_embedding_type is supported",
            ));
        }
        if !["rope", "rotary"].contains(&kind) {
            return Err(Error::unsupported(
                "Only 'rotary'('rope') position_embedding_type is supported",
            ));
        }
        let mut decoder = bert_with_rope(t)?;
        if late {
            decoder
                .outside
                .push(part(Place::Every, projection(t)?.into_iter().collect()));
        }
        return Ok(decoder);
    }
    if late && projection(t)?.is_some() {
        // The class makes its projection before the module that should hold it.
        return Err(Error::unsupported(
            "cannot assign module before Module.__init__() call",
        ));
    }
    let attention = queries("attention.self.qkv_proj", t)?.bias(true);
    let layers = layers(t, |_| {
        vec![
            attention.clone(),
            Weight::row("attention.output.dense", Role::Attention, hidden, hidden).bias(true),
            norm("attention.output.LayerNorm", hidden),
            Weight::column("intermediate.dense", Role::Mlp, hidden, &[inner]).bias(true),
            Weight::row("output.dense", Role::Mlp, inner, hidden).bias(true),
            norm("output.LayerNorm", hidden),
        ]
    })?;
    let mut outside = vec![
        table("word_embeddings", t.vocab()?, hidden),
        table("position_embeddings", c.dim("max_position_embeddings")?, hidden),
        table("token_type_embeddings", c.dim_or("type_vocab_size", 2)?, hidden),
        norm("embeddings.LayerNorm", hidden),
    ];
    let roberta = t.class.contains("Roberta") || t.class.contains("RoBERTa");
    outside.extend(match t.class.as_str() {
        "BertForMaskedLM" | "BertSpladeSparseEmbeddingModel" => {
            let plain = |name: &str, outputs: u64| {
                Weight::replicated(name, Role::Head, hidden, &[outputs])
                    .bias(true)
                    .unquantized()
            };
            vec![
                plain("mlm_head.dense", hidden),
                norm("mlm_head.layer_norm", hidden),
                plain("mlm_head.decoder", t.vocab()?),
            ]
        }
        class if class.ends_with("ForSequenceClassification") => {
            let first = if roberta {
                "classifier.dense"
            } else {
                "bert.pooler.dense"
            };
            vec![
                head(first, hidden, hidden, true),
                head("classifier.out_proj", hidden, labels(t)?, true),
            ]
        }
        class if class.ends_with("ForTokenClassification") => {
            vec![head("classifier", hidden, labels(t)?, true)]
        }
        "BgeM3EmbeddingModel" => vec![
            head("sparse_linear", hidden, 1, true),
            head("colbert_linear", hidden, hidden, true),
        ],
        _ => Vec::new(),
    });
    Ok(decoder("encoder.layer", layers, outside))
}

/// `ModernBERT` (vLLM 0.32.0, `modernbert.py`) with the head of the class.
pub(crate) fn modern_bert(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let inner = t.intermediate()?;
    let shift = if c.flag("norm_bias", false)? {
        Norm::ScaleAndShift
    } else {
        Norm::Scale
    };
    let (attention_bias, mlp_bias) = (c.flag("attention_bias", false)?, c.flag("mlp_bias", false)?);
    let attention = queries("attn.Wqkv", t)?.bias(attention_bias);
    let layers = layers(t, |i| {
        let mut all = vec![
            attention.clone(),
            Weight::row("attn.Wo", Role::Attention, hidden, hidden).bias(attention_bias),
            Weight::column("mlp.Wi", Role::Mlp, hidden, &[inner, inner]).bias(mlp_bias),
            Weight::row("mlp.Wo", Role::Mlp, inner, hidden).bias(mlp_bias),
        ];
        all.extend(shift.weights("mlp_norm", hidden));
        if i > 0 {
            // The embeddings' norm stands before the first layer.
            all.extend(shift.weights("attn_norm", hidden));
        }
        all
    })?;
    let mut outside = vec![table("tok_embeddings", t.vocab()?, hidden)];
    outside.extend(shift.weights("embeddings.norm", hidden));
    outside.extend(shift.weights("final_norm", hidden));
    let bias = c.flag("classifier_bias", false)?;
    match t.class.as_str() {
        "ModernBertForSequenceClassification" => {
            outside.push(head("classifier", hidden, labels(t)?, true));
            outside.push(head("pooling.dense", hidden, hidden, bias));
            outside.extend(shift.weights("pooling.norm", hidden).map(|w| w.of(Dtype::F32)));
        }
        "ModernBertForTokenClassification" => {
            let dense = Weight::replicated("head.dense", Role::Head, hidden, &[hidden]);
            outside.push(dense.bias(bias).unquantized());
            outside.extend(shift.weights("head.norm", hidden));
            outside.push(head("classifier", hidden, labels(t)?, true));
        }
        "ColBERTModernBertModel" => outside.extend(projection(t)?),
        _ => {}
    }
    Ok(decoder("encoder_layer.layers", layers, outside))
}

/// The projection of late-interaction models; without a size in the file it comes with the checkpoint.
fn projection(t: &Text) -> Result<Option<Weight>> {
    let outputs = given(&t.config, &LATE_WIDTHS)?;
    let hidden = t.hidden()?;
    Ok(outputs.map(|outputs| head("colbert_linear", hidden, outputs, false)))
}

/// BERT with rotary positions (vLLM 0.32.0, `bert_with_rope.py`): Nomic's, with experts in some layers, and GTE's.
pub(crate) fn bert_with_rope(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let nomic = t.class.starts_with("Nomic");
    let jina = TAKES_ROTARY.contains(&t.class.as_str());
    let (inner, bias, gated) = if nomic {
        let gated = c.str("activation_function")? == Some("swiglu");
        (c.dim("n_inner")?, c.flag("qkv_proj_bias", true)?, gated)
    } else {
        (t.intermediate()?, true, !jina)
    };
    let every = if nomic {
        c.dim_or("moe_every_n_layers", 0)?
    } else {
        0
    };
    let experts = if every > 0 {
        let (count, top_k) = (c.dim("num_experts")?, c.dim_or("moe_top_k", 1)?);
        vec![
            Weight::replicated("mlp.router", Role::Router, hidden, &[count]).unquantized(),
            Weight::experts("mlp.experts", count, top_k, hidden, inner)
                .ungated()
                .unquantized(),
            Weight::norm("mlp.bias", hidden),
        ]
    } else {
        Vec::new()
    };
    let up = if gated {
        // GTE's fused projection alone has no bias.
        Weight::column("mlp.gate_up_proj", Role::Mlp, hidden, &[inner, inner]).bias(bias && nomic)
    } else {
        Weight::column("mlp.up_proj", Role::Mlp, hidden, &[inner]).bias(bias)
    };
    let dense = [
        up,
        Weight::row("mlp.down_proj", Role::Mlp, inner, hidden).bias(bias),
    ];
    let attention = queries("attn.qkv_proj", t)?.bias(bias);
    let layers = layers(t, |i| {
        let mut all = vec![
            attention.clone(),
            Weight::row("attn.out_proj", Role::Attention, hidden, hidden).bias(bias),
            norm("attn_ln", hidden),
            norm("mlp_ln", hidden),
        ];
        let sparse = i.checked_rem(every) == Some(1);
        all.extend(if sparse { experts.iter() } else { dense.iter() }.cloned());
        all
    })?;
    let mut outside = vec![table("word_embeddings", t.vocab()?, hidden)];
    let types = c.dim_or("type_vocab_size", 0)?;
    if types > 0 {
        outside.push(table("token_type_embeddings", types, hidden));
    }
    outside.push(norm("embeddings.LayerNorm", hidden));
    if t.class.ends_with("ForSequenceClassification") {
        outside.push(head("new.pooler.dense", hidden, hidden, true));
        outside.push(head("classifier", hidden, labels(t)?, true));
    }
    Ok(decoder("encoder.layers", layers, outside))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Config;
    use crate::arch::family::{Reading, read, registry};

    fn caches(class: &str, causal: bool) -> usize {
        let file = format!(
            r#"{{"architectures": ["{class}"], "model_type": "qwen2", "is_causal": {causal}, "hidden_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 100}}"#
        );
        match read("x", &Config::parse(file.as_bytes()).unwrap()).unwrap() {
            Reading::Model(model) => model.layers.iter().map(|layer| layer.caches.len()).sum(),
            Reading::Refused(refusal) => panic!("{}", refusal.reason),
        }
    }

    #[test]
    fn a_file_that_is_not_causal_has_no_cache_where_the_class_looks_at_it() {
        assert_eq!(caches("Qwen2ForCausalLM", false), 0);
        assert_eq!(caches("Qwen2ForCausalLM", true), 2);
        // This class never reads the key.
        assert_eq!(caches("Glm4ForCausalLM", false), 2);
    }

    #[test]
    fn every_class_that_goes_either_way_is_one_that_is_read() {
        for class in EITHER_WAY {
            assert!(registry::reader(class).is_some(), "{class}");
        }
    }
}
