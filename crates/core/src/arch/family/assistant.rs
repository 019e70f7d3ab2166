//! Gemma-4's assistants: small models for multi-token prediction that keep no cache, since they attend to the target's keys
//! and values (vLLM 0.32.0, `gemma4_mtp.py`, `v1/worker/gpu/spec_decode/gemma4/speculator.py`).

use super::dense::{Decoder, Dense, FOUR_NORMS, Mlp, part};
use super::eagle::model;
use super::gemma::{gemma4_windows, per_layer_attention};
use super::text::Text;
use crate::Result;
use crate::arch::{Config, Layer, Model, Place, Role, Weight};

/// `model_type`s of these files.
const TYPES: [&str; 2] = ["gemma4_assistant", "gemma4_unified_assistant"];

/// Reads an assistant; `None` for any other file.
///
/// # Errors
/// If a size is missing or out of range.
pub fn read_assistant(name: &str, config: &Config) -> Result<Option<Model>> {
    if !TYPES.contains(&config.str("model_type")?.unwrap_or_default()) {
        return Ok(None);
    }
    let text = Text::find("Gemma4MTPModel", config)?;
    model(name, "Gemma4MTPModel", &text, decoder(&text)?).map(Some)
}

fn decoder(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let mut d = Dense::llama(t)?;
    d.attends = gemma4_windows(t)?;
    let hidden = d.hidden;
    let bias = c.flag("attention_bias", false)?;
    let mlp = Mlp::gated(t.intermediate()?).weights(hidden);
    let layers = per_layer_attention(t, &d)?
        .iter()
        .map(|attention| {
            let queries = attention.heads * attention.head_dim;
            let role = Role::Attention;
            let mut weights = vec![
                Weight::column("self_attn.q_proj", role, hidden, &[queries]).bias(bias),
                Weight::row("self_attn.o_proj", role, queries, hidden).bias(bias),
                Weight::norm("self_attn.q_norm", attention.head_dim),
            ];
            weights.extend(mlp.iter().cloned());
            weights.extend(FOUR_NORMS.iter().map(|name| Weight::norm(*name, hidden)));
            Layer {
                caches: Vec::new(),
                weights: weights.into(),
            }
        })
        .collect();
    let width = t.top.dim_or("backbone_hidden_size", hidden)?;
    let vocab = t.vocab()?;
    let mut weights = vec![
        Weight::column("model.pre_projection", Role::Mlp, 2 * width, &[hidden]),
        Weight::row("model.post_projection", Role::Mlp, hidden, width),
        Weight::norm("model.norm", hidden),
        // Tied or not, the head stays when the target's embedding takes the place of the assistant's.
        Weight::vocab("lm_head", Role::Head, vocab, hidden),
    ];
    if t.top.flag("use_ordered_embeddings", false)? {
        let centroids = t.top.dim_or("num_centroids", 2048)?;
        let name = "masked_embedding.centroids";
        weights.push(Weight::replicated(name, Role::Mlp, hidden, &[centroids]).unquantized());
    }
    let mut outside = vec![part(Place::Last, weights)];
    if !t.top.flag("tie_word_embeddings", true)? {
        let embed = Weight::vocab("model.embed_tokens", Role::Embedding, vocab, hidden);
        outside.push(part(Place::Last, vec![embed]));
    }
    Ok(Decoder {
        layers_path: "model.layers".to_owned(),
        layers,
        outside,
        ..Decoder::default()
    })
}
