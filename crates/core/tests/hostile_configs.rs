//! Configurations that lie: every field of every architecture takes wrong values, one at a time.

use std::sync::OnceLock;

use kvwise_core::arch::family;
use kvwise_core::arch::{Config, Model, Parallel, Weights};
use kvwise_core::dtype::Dtype;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const ROWS: &str = include_str!("data/architectures.jsonl");
const DRAFTERS: &str = include_str!("data/drafters.jsonl");
const WITH_TOWERS: &str = concat!(
    include_str!("golden/vllm_configs.jsonl"),
    include_str!("golden/towers_configs.jsonl")
);

/// One configuration of each class: the first that the table has.
fn configs() -> &'static [(String, Map<String, Value>)] {
    static READ: OnceLock<Vec<(String, Map<String, Value>)>> = OnceLock::new();
    READ.get_or_init(read_configs)
}

fn read_configs() -> Vec<(String, Map<String, Value>)> {
    let mut seen = std::collections::BTreeSet::new();
    ROWS.lines()
        .chain(WITH_TOWERS.lines())
        .filter_map(|line| {
            let row: Value = serde_json::from_str(line).ok()?;
            let name = row["name"].as_str()?.to_owned();
            let map = match &row["config"] {
                Value::Object(map) => map.clone(),
                text => serde_json::from_str(text.as_str()?).ok()?,
            };
            let class = map["architectures"][0].as_str()?.to_owned();
            seen.insert(class).then_some((name, map))
        })
        .collect()
}

fn hostile() -> Vec<Value> {
    vec![
        json!(0),
        json!(-1),
        json!(3),
        json!(u64::MAX),
        json!(10_000_000),
        json!("NaN"),
        json!([0, -1, "x", null]),
    ]
}

/// Reads and, where that succeeds, computes weights at several sizes: nothing may panic, overflow or take memory
/// in proportion to a number in the file.
fn exercise(name: &str, map: Map<String, Value>) {
    let config = Config::from_map(map);
    match family::read(name, &config) {
        Ok(family::Reading::Model(model)) => {
            assert!(
                model.layers.len() <= 20_000,
                "{name}: {} layers",
                model.layers.len()
            );
            weigh(&model);
        }
        Ok(family::Reading::Refused(refusal)) => assert!(!refusal.reason.is_empty()),
        Err(error) => {
            let text = error.to_string();
            assert!(
                !text.is_empty() && !text.contains('\n'),
                "{name}: {text:?} is not one sentence"
            );
        }
    }
}

/// Every parameter at one and at three ranks, and their sums; layers that share their parameters are weighed once.
fn weigh(model: &Model) {
    let mut kinds: Vec<(&Weights, u64)> = Vec::new();
    for layer in &model.layers {
        match kinds
            .iter_mut()
            .rev()
            .take(4)
            .find(|(kind, _)| *kind == &layer.weights)
        {
            Some((_, count)) => *count += 1,
            None => kinds.push((&layer.weights, 1)),
        }
    }
    for tp in [1, 3] {
        let parallel = Parallel::tensor(tp);
        let inside = kinds
            .iter()
            .flat_map(|(kind, count)| kind.iter().map(move |weight| (weight, *count)));
        let outside = model
            .outside
            .iter()
            .flat_map(|part| part.weights.iter().map(|weight| (weight, 1)));
        let mut total = Some(0_u64);
        for (weight, count) in inside.chain(outside) {
            let bytes = weight.bytes(&parallel, Dtype::Bf16).ok();
            let _ = (weight.elements(), weight.active_elements());
            total = total
                .zip(bytes)
                .and_then(|(total, bytes)| bytes.checked_mul(count)?.checked_add(total));
        }
        // The model's own sum of the first of each kind has to agree where it is small enough to be taken.
        if tp == 1 && model.layers.len() <= 4 {
            assert_eq!(
                model.weight_bytes(0, &parallel, Dtype::Bf16, true).ok(),
                total,
                "{}",
                model.name
            );
        }
    }
}

/// Whether a field can reach a size: identifiers, probabilities and activations cannot.
fn counts(field: &str) -> bool {
    [
        "token",
        "dropout",
        "eps",
        "initializer",
        "hidden_act",
        "activation",
        "scaling_factor",
    ]
    .iter()
    .all(|part| !field.contains(part))
}

/// Where the language model of a wrapper is described.
const TEXT: [&str; 3] = ["text_config", "llm_config", "thinker_config"];

/// The file and the parts of it whose fields take wrong values: the language model's, or the file itself where
/// nothing is nested, and each tower's.
fn parts(map: &Map<String, Value>) -> Vec<Option<String>> {
    let named = |key: &str| {
        key.ends_with("_config") || matches!(key, "audio_encoder_conf" | "decoder" | "encoder" | "head")
    };
    let nested = |key: &&String| named(key) && map[*key].is_object();
    let parts: Vec<Option<String>> = map.keys().filter(nested).cloned().map(Some).collect();
    let has_text = TEXT.iter().any(|key| map.get(*key).is_some_and(Value::is_object));
    let own = (!has_text).then_some(None);
    // A model with a tower has its language model's fields tried with that model's own class.
    let tower_alone = parts.len() > 1;
    let is_text = |part: &Option<String>| part.as_deref().is_some_and(|key| TEXT.contains(&key));
    own.into_iter()
        .chain(parts)
        .filter(|part| !(tower_alone && is_text(part)))
        .collect()
}

#[test]
fn no_single_wrong_value_panics() {
    for (name, map) in configs() {
        for part in parts(map) {
            let fields: Vec<String> = match &part {
                Some(key) => map[key]
                    .as_object()
                    .map_or_else(Vec::new, |m| m.keys().cloned().collect()),
                None => map.keys().cloned().collect(),
            };
            let is_tower = part.as_deref().is_some_and(|key| !TEXT.contains(&key));
            // Towers share their readers' arithmetic: the values that reach it are enough.
            let values = if is_tower {
                vec![json!(0), json!(u64::MAX), json!(10_000_000)]
            } else {
                hostile()
            };
            for field in fields.into_iter().filter(|field| counts(field)) {
                for value in values.clone() {
                    let mut changed = map.clone();
                    match &part {
                        Some(key) => {
                            if let Some(Value::Object(m)) = changed.get_mut(key) {
                                m.insert(field.clone(), value);
                            }
                        }
                        None => {
                            changed.insert(field.clone(), value);
                        }
                    }
                    exercise(name, changed);
                }
            }
        }
    }
}

#[test]
fn a_wrong_size_is_named_with_its_value() {
    let llama = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": -3});
    let Value::Object(map) = llama else { unreachable!() };
    let error = family::read("x", &Config::from_map(map)).unwrap_err().to_string();
    assert_eq!(error, "hidden_size is -3, expected a non-negative integer");
}

#[test]
fn too_many_layers_are_refused_before_any_is_made() {
    let llama = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 60_000_000});
    let Value::Object(map) = llama else { unreachable!() };
    let error = family::read("x", &Config::from_map(map)).unwrap_err().to_string();
    assert_eq!(
        error,
        "num_hidden_layers is 60000000, more than the 10000 layers that are read"
    );
}

#[test]
fn a_class_that_left_the_engine_is_refused_with_its_last_version() {
    let config = json!({"architectures": ["QWenLMHeadModel"], "model_type": "qwen", "hidden_size": 4096});
    let Value::Object(map) = config else {
        unreachable!()
    };
    let family::Reading::Refused(refusal) = family::read("x", &Config::from_map(map)).unwrap() else {
        panic!("vLLM 0.32.0 has no such class");
    };
    assert!(refusal.reason.contains("until v0.23.0"), "{}", refusal.reason);
}

/// Classes of which vLLM 0.32.0 started none: not in its registry, or not usable by its generic backend.
#[test]
fn classes_that_the_engine_cannot_run_are_refused() {
    for class in [
        "BambaForCausalLM",
        "BartForConditionalGeneration",
        "ChameleonForConditionalGeneration",
        "CodeGenForCausalLM",
        "CpmAntForCausalLM",
        "DiffLlamaForCausalLM",
        "Dots1ForCausalLM",
        "GPTNeoForCausalLM",
        "GPTNeoXJapaneseForCausalLM",
        "MiniMaxForCausalLM",
        "OpenAIGPTLMHeadModel",
        "RecurrentGemmaForCausalLM",
        "ReformerModelWithLMHead",
        "RwkvForCausalLM",
        "T5ForConditionalGeneration",
        "XGLMForCausalLM",
        "XLNetLMHeadModel",
        "ZambaForCausalLM",
        "xLSTMForCausalLM",
    ] {
        let Value::Object(map) = json!({"architectures": [class], "model_type": "x"}) else {
            unreachable!()
        };
        let reading = family::read("x", &Config::from_map(map)).unwrap();
        let family::Reading::Refused(refusal) = reading else {
            panic!("{class} is read");
        };
        assert!(refusal.reason.contains(class), "{}", refusal.reason);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn two_wrong_values_at_once_do_not_panic(
        pick in 0usize..10_000,
        first in 0usize..1_000,
        second in 0usize..1_000,
        a in any::<i64>(),
        b in any::<u64>(),
    ) {
        let all = configs();
        let (name, mut map) = all[pick % all.len()].clone();
        let keys: Vec<String> = map.keys().cloned().collect();
        map.insert(keys[first % keys.len()].clone(), json!(a));
        map.insert(keys[second % keys.len()].clone(), json!(b));
        exercise(&name, map);
    }

    #[test]
    fn random_bytes_are_an_error_or_an_object(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(config) = Config::parse(&bytes) {
            let _ = family::read("x", &config);
        }
    }
}

/// Reads a drafter as its method does, and weighs it and what the engine copies out of it.
fn exercise_drafter(method: &str, map: Map<String, Value>) {
    let config = Config::from_map(map);
    let block = |block| family::read_block_drafter("draft", &config, block, None).map(Some);
    let read = match method {
        "eagle" => family::read_eagle("draft", &config, family::Eagle::One, 32_000).map(Some),
        "eagle3" => family::read_eagle("draft", &config, family::Eagle::Three, 32_000).map(Some),
        "dflash" => block(family::Block::Flash),
        "dspark" => block(family::Block::Spark),
        _ => family::read_assistant("draft", &config),
    };
    match read {
        Ok(Some(model)) => {
            assert!(model.layers.len() <= 20_000);
            weigh(&model);
            for weight in family::context_copies(&model, false) {
                let _ = weight.bytes(&Parallel::tensor(2), Dtype::Bf16);
            }
        }
        Ok(None) => {}
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
}

#[test]
fn wrong_values_in_a_drafters_file_are_errors_or_other_models_and_never_a_panic() {
    let mut seen = std::collections::BTreeSet::new();
    for line in DRAFTERS.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let Some(map) = row["draft"].as_object() else {
            continue;
        };
        let method = row["method"].as_str().unwrap();
        if !seen.insert((method.to_owned(), map["architectures"].to_string())) {
            continue;
        }
        exercise_drafter(method, map.clone());
        for key in map.keys() {
            for value in hostile() {
                let mut changed = map.clone();
                changed.insert(key.clone(), value.clone());
                exercise_drafter(method, changed);
                // One level below, where DFlash and speculators keep what is theirs.
                for inner in map[key].as_object().into_iter().flat_map(Map::keys) {
                    let mut changed = map.clone();
                    changed[key][inner] = value.clone();
                    exercise_drafter(method, changed);
                }
            }
        }
    }
    assert!(seen.len() >= 15, "{} kinds of drafters", seen.len());
}

#[test]
fn a_wrapper_that_is_its_own_language_model_is_no_endless_way() {
    for (name, map) in configs() {
        let class = &map["architectures"][0];
        let again = |class: &Value, map: &Map<String, Value>| {
            let mut map = map.clone();
            for value in map.values_mut().filter_map(Value::as_object_mut) {
                value.insert("architectures".to_owned(), json!([class]));
            }
            map
        };
        exercise(name, again(class, map));
        for other in ["LlavaNextForConditionalGeneration", "LlamaNemotronVLModel"] {
            exercise(name, again(&json!(other), map));
            // Without a part for the language model the file is its own.
            let mut flat = map.clone();
            flat.retain(|_, value| !value.is_object());
            flat.insert("architectures".to_owned(), json!([other]));
            exercise(name, flat);
        }
    }
}
