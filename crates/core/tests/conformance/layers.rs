//! Configurations cut to a few layers, as the reference scripts cut them for rows of combined settings.

use serde_json::{Map, Value};

/// Where a wrapper keeps its language model's part, and names of the number of layers there.
const TEXT: [&str; 5] = [
    "thinker_config",
    "text_config",
    "llm_config",
    "language_config",
    "vlm_config",
];
const COUNTS: [&str; 4] = ["num_hidden_layers", "n_layer", "num_layers", "n_layers"];

/// The same configuration with `layers` layers; lists of one entry a layer are cut with it.
pub fn cut(mut config: Map<String, Value>, layers: u64) -> Map<String, Value> {
    let mut text = &mut config;
    for _ in 0..3 {
        let Some(key) = TEXT
            .iter()
            .find(|key| text.get(**key).is_some_and(Value::is_object))
        else {
            break;
        };
        text = text.get_mut(*key).and_then(Value::as_object_mut).unwrap();
    }
    let old = COUNTS.iter().find_map(|key| text.get(*key)?.as_u64()).unwrap();
    let (old, new) = (usize::try_from(old).unwrap(), usize::try_from(layers).unwrap());
    for (key, value) in text.iter_mut() {
        match value {
            Value::Array(list) if list.len() == old => list.truncate(new),
            Value::String(pattern) if key == "hybrid_override_pattern" && pattern.len() == old => {
                pattern.truncate(new);
            }
            Value::Number(_) if COUNTS.contains(&key.as_str()) => *value = Value::from(layers),
            _ => {}
        }
    }
    config
}
