//! Classes that turn text, images or sound into vectors and whose parts are no other class's: CLIP and `SigLIP`, which
//! keep a text model beside their image model, EmbeddingGemma-2, `ColModernVBERT` and Nemotron's retrievers.

use serde_json::{Map, Value};

use super::dense::{Attention, Decoder, Mlp, Norm, QkNorm, part};
use super::encoder;
use super::text::{Attend, Text};
use super::tower::text_blocks;
use crate::arch::{Config, Layer, Place, Role, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// CLIP's text model (vLLM 0.32.0, `clip.py`): a decoder with a cache, and a projection into the shared space.
pub(crate) fn clip(t: &Text) -> Result<Decoder> {
    let shared = t.top.dim_or("projection_dim", 512)?;
    let mut decoder = text_model(t, true)?;
    decoder.outside.push(part(
        Place::Every,
        vec![Weight::replicated("text_projection", Role::Head, t.hidden()?, &[shared]).unquantized()],
    ));
    Ok(decoder)
}

/// `SigLIP`'s text model (vLLM 0.32.0, `siglip.py`): an encoder, so nothing is kept between steps.
pub(crate) fn siglip(t: &Text) -> Result<Decoder> {
    let shared = t.config.dim_or("projection_size", t.hidden()?)?;
    let mut decoder = text_model(t, false)?;
    let head = Weight::replicated("text_model.head", Role::Head, t.hidden()?, &[shared]);
    decoder
        .outside
        .push(part(Place::Every, vec![head.bias(true).unquantized()]));
    Ok(decoder)
}

/// Embeddings of tokens and of positions, blocks, and a last norm.
fn text_model(t: &Text, caches: bool) -> Result<Decoder> {
    let (hidden, heads) = (t.hidden()?, t.heads()?);
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(Error::unsupported(format!(
            "embed_dim must be divisible by num_heads (got `embed_dim`: {hidden} and `num_heads`: {heads})."
        )));
    }
    let mut attention = Attention::read(t)?;
    attention.head_dim = hidden / heads;
    attention.head_dim_v = attention.head_dim;
    attention.kv_heads = heads;
    let weights = text_blocks(hidden, heads, t.intermediate()?);
    let layer = Layer {
        caches: if caches {
            vec![attention.cache(Attend::Full)]
        } else {
            Vec::new()
        },
        weights: weights.into(),
    };
    let layers = usize::try_from(t.layers()?).unwrap_or_default();
    let rows = t.config.dim("max_position_embeddings")?;
    let outside = vec![
        Weight::vocab(
            "text_model.embeddings.token_embedding",
            Role::Embedding,
            t.vocab()?,
            hidden,
        ),
        Weight::vocab(
            "text_model.embeddings.position_embedding",
            Role::Embedding,
            rows,
            hidden,
        ),
        Weight::norm("text_model.final_layer_norm", hidden).times(2),
    ];
    Ok(Decoder {
        layers_path: "text_model.encoder.layers".to_owned(),
        layers: vec![layer; layers],
        outside: vec![part(Place::Every, outside)],
        ..Decoder::default()
    })
}

/// EmbeddingGemma-2 (vLLM 0.32.0, `embedding_gemma2.py`): Gemma-4's layers as an encoder, whose inputs of each layer are
/// projected from the embeddings alone.
pub(crate) fn embedding_gemma2(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let layers = t.layers()?;
    let mut attention = Attention::read(t)?;
    attention.qk_norm = QkNorm::Head(Norm::Scale);
    attention.qkv_bias = c.flag("attention_bias", false)?;
    attention.o_bias = attention.qkv_bias;
    let mut attends = match t.layer_types()? {
        Some(_) => t.attends(None)?,
        None => t.attends(Some(c.dim_or("sliding_window_pattern", 6)?.max(1)))?,
    };
    if let Some(last) = attends.last_mut() {
        *last = Attend::Full;
    }
    let full = Attention {
        head_dim: c.dim_or("global_head_dim", 512)?,
        head_dim_v: c.dim_or("global_head_dim", 512)?,
        kv_heads: c.dim_or("num_global_key_value_heads", 1)?,
        ..attention.clone()
    };
    let each = c.dim_or("hidden_size_per_layer_input", 512)?;
    let mlp = Mlp::gated(t.intermediate()?);
    let mut all: Vec<Layer> = Vec::new();
    for attend in &attends {
        let heads = if *attend == Attend::Full {
            &full
        } else {
            &attention
        };
        let mut weights = heads.weights(hidden);
        weights.extend(mlp.weights(hidden));
        weights.extend([
            Weight::norm("norms", hidden).times(5),
            Weight::replicated("ple_block.per_layer_input_gate", Role::Mlp, hidden, &[each]),
            Weight::replicated("ple_block.per_layer_projection", Role::Mlp, each, &[hidden]),
        ]);
        let mut layer = Layer {
            caches: Vec::new(),
            weights: weights.into(),
        };
        layer.share(&all);
        all.push(layer);
    }
    let wide = layers
        .checked_mul(each)
        .ok_or_else(|| Error::overflow("the inputs of all layers"))?;
    let outside = vec![
        Weight::vocab("language_model.embed_tokens", Role::Embedding, t.vocab()?, hidden),
        Weight::norm("language_model.norm", hidden),
        Weight::column(
            "language_model.ple.per_layer_model_projection",
            Role::Embedding,
            hidden,
            &[wide],
        ),
        Weight::norm("language_model.ple.per_layer_projection_norm", each),
        Weight::replicated(
            "language_model.embedding_projection",
            Role::Head,
            hidden,
            &[c.dim_or("embedding_dim", 768)?],
        ),
    ];
    Ok(Decoder {
        layers_path: "language_model.layers".to_owned(),
        layers: all,
        outside: vec![part(Place::Every, outside)],
        ..Decoder::default()
    })
}

/// Keys of the text model that `ColModernVBertConfig` passes on, with the values it has otherwise; every other key is
/// left at ModernBERT's default (vLLM 0.32.0, `transformers_utils/configs/colmodernvbert.py`).
const MODERN_BERT: [(&str, u64); 6] = [
    ("vocab_size", 50_408),
    ("hidden_size", 768),
    ("intermediate_size", 1152),
    ("num_hidden_layers", 22),
    ("num_attention_heads", 12),
    ("max_position_embeddings", 8192),
];

/// The text model's configuration as the class passes it on.
pub(super) fn modern_bert(top: &Config) -> Result<Config> {
    let given = top
        .sub("text_config")?
        .unwrap_or_else(|| top.child("text_config", Map::new()));
    let mut map = Map::new();
    for (key, otherwise) in MODERN_BERT {
        map.insert(key.to_owned(), Value::from(given.dim_or(key, otherwise)?));
    }
    map.insert("mlp_bias".to_owned(), Value::from(given.flag("mlp_bias", false)?));
    Ok(top.child("text_config", map))
}

/// `ColModernVBERT` (vLLM 0.32.0, `colmodernvbert.py`): ModernBERT behind a `SigLIP`, and a projection of each token.
pub(crate) fn col_modern_vbert(t: &Text) -> Result<Decoder> {
    let mut decoder = encoder::modern_bert(t)?;
    let width = t.top.dim_or("embedding_dim", 128)?;
    let head = Weight::replicated("custom_text_proj", Role::Head, t.hidden()?, &[width]);
    decoder.outside.push(part(
        Place::Every,
        vec![head.bias(true).of(Dtype::F32).unquantized()],
    ));
    Ok(decoder)
}

/// Llama-Nemotron-VL's retrievers (vLLM 0.32.0, `nemotron_vl.py`): a language model that sees both ways, and where it
/// ranks, a head beside the one that its own class brings and nothing reads.
pub(crate) fn llama_nemotron_vl(t: &Text) -> Result<Decoder> {
    let class = t
        .config
        .strs("architectures")?
        .and_then(|list| list.first().copied())
        .unwrap_or("LlamaBidirectionalModel")
        .to_owned();
    let mut decoder = super::pooled_decoder(&t.inner(&class)?)?;
    if t.class.ends_with("ForSequenceClassification") {
        let score = Weight::replicated("score", Role::Head, t.hidden()?, &[super::pooling::labels(t)?]);
        decoder
            .outside
            .push(part(Place::Every, vec![score.of(Dtype::F32)]));
    }
    Ok(decoder)
}

/// Clef-Omni's head (vLLM 0.32.0, `clef_omni.py`), which answers a list of questions at once: layers that route options
/// over the prompt, decoder layers over the fields, and scorers. Whole on every rank and in the model's own element type.
pub(crate) fn joint_schema_head(file: &Config) -> Result<Vec<Weight>> {
    /// Kinds of questions that it embeds.
    const KINDS: u64 = 3;
    let Some(c) = file.sub("joint_head_config")? else {
        return Err(Error::input(format!(
            "{} is missing from the configuration",
            file.name("joint_head_config")
        ))
        .hint("the engine reads it from joint_head_config.json beside config.json: put its content under this key"));
    };
    let (hidden, width, inner) = (c.dim("hidden_size")?, c.dim("width")?, c.dim("feedforward")?);
    let routing = c.dim_or("routing_layers", 0)?;
    let layers = c.dim_or("layers", 0)?;
    let matrix = |name: &str, inputs: u64, outputs: u64, bias: bool| {
        Weight::replicated(format!("pooler.head.{name}"), Role::Head, inputs, &[outputs])
            .bias(bias)
            .unquantized()
    };
    let norms = |name: &str, width: u64, count: u64| {
        Weight::norm(format!("pooler.head.{name}"), width).times(2 * count)
    };
    let mut all = vec![
        norms("hidden_norm", hidden, 1),
        matrix("projections", hidden, width, false).times(6),
        Weight::tensor("pooler.head.type_embedding", Role::Head, &[KINDS, width], None),
        norms("norms", width, 3),
        matrix("residual_scorer.0", 4 * width, width, true),
        matrix("residual_scorer.3", width, 1, true),
        Weight::tensor("pooler.head.scales", Role::Head, &[3], None),
    ];
    for (name, count, attentions) in [("evidence_layers", routing, 1), ("layers", layers, 2)] {
        if count == 0 {
            continue;
        }
        all.extend([
            matrix(&format!("{name}.attention"), width, width, true).times(4 * attentions * count),
            matrix(&format!("{name}.linear1"), width, inner, true).times(count),
            matrix(&format!("{name}.linear2"), inner, width, true).times(count),
            norms(&format!("{name}.norms"), width, 3 * count),
        ]);
    }
    Ok(all)
}
