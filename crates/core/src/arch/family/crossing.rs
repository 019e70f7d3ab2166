//! Decoders that attend to an encoder's output too, other than Whisper's: Nemotron-Parse and Cohere-ASR.

use serde_json::Value;

use super::dense::{Decoder, Norm, part};
use super::text::Text;
use super::whisper::crossing_layer;
use crate::arch::{Config, Place, Role, Weight};
use crate::{Error, Result};

/// The decoder's part of a file of `class`, under the names that text models use; `None` for other classes.
///
/// # Errors
/// If the part is missing or not an object.
pub(crate) fn text(class: &str, top: &Config) -> Result<Option<Config>> {
    match class {
        "NemotronParseForConditionalGeneration" => required(top, "decoder").map(Some),
        "CohereAsrForConditionalGeneration" => {
            let decoder = required(&required(top, "transf_decoder")?, "config_dict")?;
            let head = required(top, "head")?;
            let mut map = decoder.map().clone();
            for (key, from, value) in [
                ("num_hidden_layers", "num_layers", decoder.get("num_layers")),
                ("intermediate_size", "inner_size", decoder.get("inner_size")),
                ("vocab_size", "num_classes", head.get("num_classes")),
            ] {
                let value = value.ok_or_else(|| {
                    Error::input(format!(
                        "{} is missing from the configuration",
                        decoder.name(from)
                    ))
                })?;
                map.insert(key.to_owned(), value.clone());
            }
            // Only the decoder's own length counts, the encoder's is in frames.
            if let Some(Value::Number(n)) = top.get("max_position_embeddings") {
                map.insert("max_position_embeddings".to_owned(), Value::Number(n.clone()));
            }
            Ok(Some(decoder.with_map(map)))
        }
        _ => Ok(None),
    }
}

fn required(file: &Config, key: &str) -> Result<Config> {
    file.sub(key)?
        .ok_or_else(|| Error::input(format!("{} is missing from the configuration", file.name(key))))
}

/// Heads of a width, which must divide it.
fn heads(t: &Text, key: &str, width: u64) -> Result<u64> {
    let heads = t.config.dim(key)?;
    if !width.is_multiple_of(heads) {
        return Err(Error::unsupported(format!(
            "embed_dim must be divisible by num_heads (got `embed_dim`: {width} and `num_heads`: {heads})."
        ))
        .hint("correct the width of the decoder or its number of heads, which has to divide it"));
    }
    Ok(heads)
}

/// Nemotron-Parse (vLLM 0.32.0, `nemotron_parse.py`): mBART's decoder without positions; its feed-forward parts have
/// the encoder's width.
pub(crate) fn nemotron_parse(t: &Text) -> Result<Decoder> {
    let width = t.config.dim("d_model")?;
    let heads = heads(t, "decoder_attention_heads", width)?;
    let layer = crossing_layer(width, heads, t.config.dim("encoder_ffn_dim")?);
    let vocab = t.vocab()?;
    let tied = t.tied()? || t.top.flag("tie_word_embeddings", false)?;
    let mut outside = vec![part(
        Place::Every,
        vec![
            Weight::vocab("decoder.embed_tokens", Role::Embedding, vocab, width),
            Weight::norm("decoder.layernorm_embedding", width).times(2),
            Weight::norm("decoder.layer_norm", width).times(2),
        ],
    )];
    if !tied {
        let head = Weight::vocab("lm_head", Role::Head, vocab, width);
        outside.push(part(Place::Every, vec![head]));
    }
    Ok(Decoder {
        layers_path: "decoder.layers".to_owned(),
        layers: (0..t.count_of_layers(&["decoder_layers"])?)
            .map(|_| layer.clone())
            .collect(),
        outside,
        kv_heads: Some(heads),
        ..Decoder::default()
    })
}

/// Cohere-ASR (vLLM 0.32.0, `cohere_asr.py`): a decoder with fixed positions, its embedding whole on every rank and
/// a head with a bias of its own.
pub(crate) fn cohere_asr(t: &Text) -> Result<Decoder> {
    let width = t.hidden()?;
    let heads = heads(t, "num_attention_heads", width)?;
    let layer = crossing_layer(width, heads, t.intermediate()?);
    let vocab = t.vocab()?;
    let norm = |name: &str| Norm::ScaleAndShift.weights(name, width);
    let mut weights = vec![Weight::tensor(
        "model.decoder.embedding.token_embedding",
        Role::Embedding,
        &[vocab, width],
        None,
    )];
    weights.extend(norm("model.decoder.embedding.layer_norm"));
    weights.extend(norm("model.decoder.final_layer_norm"));
    let head = Weight::vocab("proj_out", Role::Head, vocab, width).bias(true);
    Ok(Decoder {
        layers_path: "model.decoder.layers".to_owned(),
        layers: (0..t.layers()?).map(|_| layer.clone()).collect(),
        outside: vec![part(Place::Every, weights), part(Place::Every, vec![head])],
        kv_heads: Some(heads),
        ..Decoder::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_decoder_is_named_with_its_place_in_the_file() {
        for (class, missing) in [
            ("NemotronParseForConditionalGeneration", "decoder"),
            ("CohereAsrForConditionalGeneration", "transf_decoder"),
        ] {
            let error = text(class, &Config::parse(b"{}").unwrap()).unwrap_err();
            assert!(error.to_string().starts_with(missing), "{error}");
        }
        assert!(
            text("LlamaForCausalLM", &Config::parse(b"{}").unwrap())
                .unwrap()
                .is_none()
        );
    }
}
