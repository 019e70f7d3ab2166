//! Medusa's heads: residual blocks over the target's last hidden state, each with an output head of its own (vLLM 0.32.0,
//! `models/medusa.py`, `transformers_utils/configs/medusa.py`).

use super::dense::part;
use crate::arch::{AttentionScales, Config, Layer, Model, Place, Role, Weight};
use crate::{Error, Result};

/// Heads of Medusa's published checkpoints, where a file does not say how many.
const HEADS: u64 = 5;
/// More heads or layers than any checkpoint has: a number from a file is not trusted with a list's length.
const MOST: u64 = 1 << 10;

/// Reads Medusa's heads as a drafter without caches.
///
/// # Errors
/// If a size is missing or out of range.
pub fn read_medusa(name: &str, config: &Config) -> Result<Model> {
    let hidden = config.dim_or("hidden_size", 4096)?;
    let vocab = config.dim_or("vocab_size", 32001)?;
    let heads = counted(config, "heads", HEADS)?;
    let layers = counted(config, "layers", 1)?;
    let bias = config.flag("medusa_fc_bias", false)?;
    let block = Weight::replicated("layers", Role::Mlp, hidden, &[hidden])
        .bias(bias)
        .times(layers)
        .unquantized();
    let (rows, count) = if config.flag("original_lm_head", false)? {
        (config.dim_or("truncated_vocab_size", vocab)?, 1)
    } else {
        (vocab, heads)
    };
    let head = Weight::vocab("lm_heads", Role::Head, rows, hidden)
        .times(count)
        .unquantized();
    let layer = Layer {
        caches: Vec::new(),
        weights: vec![block].into(),
    };
    Ok(Model {
        name: name.to_owned(),
        architecture: "MedusaModel".to_owned(),
        model_type: "medusa".to_owned(),
        dtype: None,
        max_position: None,
        num_attention_heads: 0,
        num_kv_heads: 0,
        hidden_size: hidden,
        vocab_size: vocab,
        layers_path: "blocks".to_owned(),
        layers: vec![layer; usize::try_from(heads).unwrap_or(0)],
        outside: vec![part(Place::Last, vec![head])],
        mtp_layers: 0,
        modules: None,
        pooling: None,
        attention_scales: AttentionScales::None,
        sized_for: None,
        encoder_heads: None,
        sees_whole_images: false,
        encoder_decoder: false,
    })
}

/// A number of heads or layers: the engine takes any key with `num` and this word in it.
fn counted(config: &Config, what: &str, default: u64) -> Result<u64> {
    let key = config
        .map()
        .keys()
        .rfind(|key| key.contains("num") && key.contains(what))
        .cloned();
    let count = match &key {
        Some(key) => config.dim(key)?,
        None => default,
    };
    if count > MOST {
        return Err(Error::input(format!(
            "{} is {count}, expected at most {MOST}",
            config.name(key.as_deref().unwrap_or(what))
        )));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Parallel;
    use crate::dtype::Dtype;

    fn bytes(text: &str, tp: u64) -> u64 {
        let model = read_medusa("heads", &Config::parse(text.as_bytes()).unwrap()).unwrap();
        model
            .weight_bytes(0, &Parallel::tensor(tp), Dtype::Bf16, true)
            .unwrap()
    }

    #[test]
    fn heads_weigh_what_the_engine_registers() {
        // Made by the engine's own class on the meta device.
        let three = r#"{"model_type": "medusa", "hidden_size": 4096, "vocab_size": 32768, "medusa_num_heads": 3,
            "medusa_num_layers": 1}"#;
        let truncated = r#"{"model_type": "medusa", "hidden_size": 4096, "vocab_size": 32768, "num_heads": 5,
            "num_hidden_layers": 2, "original_lm_head": true, "truncated_vocab_size": 8000, "medusa_fc_bias": true}"#;
        assert_eq!(bytes(three, 1), 905_969_664);
        assert_eq!(bytes(three, 2), 503_316_480);
        assert_eq!(bytes(truncated, 1), 401_162_240);
        assert_eq!(bytes(truncated, 2), 368_394_240);
    }

    #[test]
    fn a_number_of_heads_that_no_checkpoint_has_is_an_error() {
        let config = Config::parse(br#"{"medusa_num_heads": 100000}"#).unwrap();
        let error = read_medusa("heads", &config).unwrap_err().to_string();
        assert!(error.contains("medusa_num_heads"), "{error}");
    }
}
