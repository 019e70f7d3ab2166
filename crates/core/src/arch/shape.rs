//! Models that exist nowhere yet: a decoder described by its sizes, `layers=80,heads=64,kv-heads=8,head-dim=128`.

use serde_json::{Map, Value, json};

use super::Config;
use crate::names::nearest;
use crate::units::parse_count;
use crate::{Error, Result};

/// What may be said, and the field of a configuration that it stands for.
const KEYS: [(&str, &str); 11] = [
    ("layers", "num_hidden_layers"),
    ("heads", "num_attention_heads"),
    ("kv-heads", "num_key_value_heads"),
    ("head-dim", "head_dim"),
    ("hidden", "hidden_size"),
    ("intermediate", "intermediate_size"),
    ("vocab", "vocab_size"),
    ("context", "max_position_embeddings"),
    ("window", "sliding_window"),
    ("experts", "num_local_experts"),
    ("experts-per-token", "num_experts_per_tok"),
];

/// Words of earlier calculators for the same.
const OTHER_WORDS: [(&str, &str); 5] = [
    ("num-layers", "layers"),
    ("num-heads", "heads"),
    ("num-kv-heads", "kv-heads"),
    ("dim", "head-dim"),
    ("max-model-len", "context"),
];

/// Tokens that are accepted where nothing is said.
const CONTEXT: u64 = 131_072;
/// Vocabulary where nothing is said: Llama 2's.
const VOCAB: u64 = 32_000;
/// Largest size that is read; configurations have the same bound.
const MOST: u64 = 1 << 26;

/// Whether a model's name is the description of a shape.
pub fn is_shape(name: &str) -> bool {
    name.split_once('=').is_some_and(|(key, _)| known(key).is_some()) && !name.contains(['/', '\\'])
}

fn known(key: &str) -> Option<&'static str> {
    let key = key.trim().to_ascii_lowercase().replace('_', "-");
    let plain = OTHER_WORDS
        .iter()
        .find(|(word, _)| *word == key)
        .map_or(key.as_str(), |(_, plain)| plain);
    KEYS.iter()
        .find(|(name, _)| *name == plain)
        .map(|(name, _)| *name)
}

/// The configuration of a shape, as a decoder like Llama's (Mixtral's with experts).
///
/// What is not said: as many KV heads as heads (and the reverse), heads of 128, `hidden` = heads x head-dim, `intermediate`
/// = 8/3 of it in steps of 256 as in Llama 1, a vocabulary of 32,000 and 131,072 positions. The KV cache depends on layers, KV
/// heads and head-dim alone; the weights on all of it.
///
/// # Errors
/// If a key is not known, is given twice, or its value is no number from 1 to 2^26; or if neither layers nor heads are given.
pub fn config(text: &str) -> Result<Config> {
    let mut given: Vec<(&'static str, u64)> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let Some((key, value)) = part.split_once('=') else {
            return Err(Error::input(format!(
                "the shape has \"{part}\", expected key=number, like layers=80"
            )));
        };
        let Some(name) = known(key) else {
            let names = KEYS.iter().map(|(name, _)| *name);
            let error = Error::input(format!(
                "the shape has the key \"{key}\", expected {}",
                names.clone().collect::<Vec<_>>().join(", ")
            ));
            return Err(match nearest(key, names, 1).first() {
                Some(near) => error.hint(format!("did you mean {near}?")),
                None => error,
            });
        };
        let number = parse_count(value.trim())
            .ok()
            .filter(|n| (1..=MOST).contains(n))
            .ok_or_else(|| {
                Error::input(format!(
                    "the shape's {name} is \"{value}\", expected a number from 1 to {MOST}"
                ))
            })?;
        if given.iter().any(|(there, _)| *there == name) {
            return Err(Error::input(format!("the shape has {name} twice")));
        }
        given.push((name, number));
    }
    let said = |name: &str| given.iter().find(|(there, _)| *there == name).map(|&(_, n)| n);
    let missing = |what: &str| {
        Error::input(format!("the shape does not say {what}"))
            .hint("example: layers=80,heads=64,kv-heads=8,head-dim=128")
    };
    let layers = said("layers").ok_or_else(|| missing("its layers"))?;
    let heads = said("heads")
        .or(said("kv-heads"))
        .ok_or_else(|| missing("its heads"))?;
    let kv_heads = said("kv-heads").unwrap_or(heads);
    let head_dim = said("head-dim").unwrap_or(128);
    let hidden = match said("hidden") {
        Some(hidden) => hidden,
        None => heads
            .checked_mul(head_dim)
            .filter(|&n| n <= MOST)
            .ok_or_else(|| Error::input("the shape's heads times head-dim are too large"))?,
    };
    if heads % kv_heads != 0 {
        return Err(Error::input(format!(
            "the shape has {heads} heads for {kv_heads} KV heads, which must divide them"
        )));
    }
    let intermediate = said("intermediate").unwrap_or_else(|| (hidden * 8).div_ceil(3).next_multiple_of(256));
    let mut map: Map<String, Value> = [
        ("num_hidden_layers", layers),
        ("num_attention_heads", heads),
        ("num_key_value_heads", kv_heads),
        ("head_dim", head_dim),
        ("hidden_size", hidden),
        ("intermediate_size", intermediate),
        ("vocab_size", said("vocab").unwrap_or(VOCAB)),
        ("max_position_embeddings", said("context").unwrap_or(CONTEXT)),
    ]
    .into_iter()
    .map(|(key, n)| (key.to_owned(), json!(n)))
    .collect();
    map.insert("dtype".to_owned(), json!("bfloat16"));
    let (class, kind) = match (said("experts"), said("experts-per-token"), said("window")) {
        (Some(experts), per_token, window) => {
            let per_token = per_token.unwrap_or(2);
            if per_token > experts {
                return Err(Error::input(format!(
                    "the shape has {per_token} experts per token of {experts}"
                )));
            }
            map.insert("num_local_experts".to_owned(), json!(experts));
            map.insert("num_experts_per_tok".to_owned(), json!(per_token));
            if let Some(window) = window {
                map.insert("sliding_window".to_owned(), json!(window));
            }
            ("MixtralForCausalLM", "mixtral")
        }
        (None, Some(_), _) => return Err(missing("its experts, only those per token")),
        (None, None, Some(window)) => {
            map.insert("sliding_window".to_owned(), json!(window));
            ("MistralForCausalLM", "mistral")
        }
        (None, None, None) => ("LlamaForCausalLM", "llama"),
    };
    map.insert("architectures".to_owned(), json!([class]));
    map.insert("model_type".to_owned(), json!(kind));
    Ok(Config::from_map(map))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::family;

    fn params(text: &str) -> u64 {
        match family::read(text, &config(text).unwrap()).unwrap() {
            family::Reading::Model(model) => model.params().unwrap().0,
            family::Reading::Refused(refusal) => panic!("{}", refusal.reason),
        }
    }

    #[test]
    fn a_shape_with_the_sizes_of_llama_2_has_its_parameters() {
        // meta-llama/Llama-2-7b-hf: 6,738,415,616 parameters by its safetensors' index.
        assert_eq!(params("layers=32,heads=32,intermediate=11008"), 6_738_415_616);
        assert_eq!(
            params("layers=32,heads=32,head_dim=128"),
            6_738_415_616,
            "11008 is the rule's own size"
        );
    }

    #[test]
    fn the_words_of_the_book_are_understood() {
        let map = config("layers=80,heads=8,dim=128").unwrap();
        let same = config("num_layers=80,kv-heads=8,head-dim=128").unwrap();
        assert_eq!(format!("{map:?}"), format!("{same:?}"));
        assert!(is_shape("layers=80,heads=8") && !is_shape("org/layers=1") && !is_shape("qwen3-8b"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, says) in [
            ("layers=0,heads=8", "layers is \"0\""),
            ("layers=80", "does not say its heads"),
            ("heads=8", "does not say its layers"),
            ("layers=80,heads=8,layers=4", "layers twice"),
            ("layers=80,heds=8", "the key \"heds\""),
            ("layers=80,heads=8,kv-heads=3", "must divide"),
            ("layers=80,heads", "expected key=number"),
            ("layers=1e99,heads=8", "layers is \"1e99\""),
            (
                "layers=8,heads=8,experts=4,experts-per-token=5",
                "5 experts per token of 4",
            ),
            ("layers=8,heads=60000000,head-dim=60000000", "too large"),
        ] {
            let e = config(text).unwrap_err().to_string();
            assert!(e.contains(says), "{text}: {e}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(
            keys in proptest::collection::vec((0_usize..14, "[0-9kKmM.=, -]{0,12}"), 0..8)
        ) {
            let names = KEYS.map(|(name, _)| name);
            let parts: Vec<String> = keys
                .iter()
                .map(|(i, value)| format!("{}={value}", names.get(*i).unwrap_or(&"other")))
                .collect();
            if let Ok(config) = config(&parts.join(",")) {
                let _ = family::read("shape", &config);
            }
        }
    }

    #[test]
    fn experts_and_windows_choose_the_class() {
        let of = |text: &str| format!("{:?}", config(text).unwrap());
        assert!(of("layers=2,heads=2,experts=8").contains("MixtralForCausalLM"));
        assert!(of("layers=2,heads=2,window=4096").contains("MistralForCausalLM"));
    }
}
