//! Settings of quantisation that lie: any value of any `quantization_config` may be anything, and the answer is bytes, the
//! engine's refusal, or one sentence that says what is wrong.

use std::sync::OnceLock;

use kvwise_core::arch::family::{Reading, read};
use kvwise_core::arch::{Config, Parallel};
use kvwise_core::dtype::Dtype;
use kvwise_core::quant::Quantization;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const SETTINGS: &str = include_str!("golden/quantized_settings.jsonl");

/// A configuration and what `--quantization` says.
type Row = (Map<String, Value>, Option<String>);

/// Rows with their own configuration.
fn rows() -> &'static [Row] {
    static READ: OnceLock<Vec<Row>> = OnceLock::new();
    READ.get_or_init(|| {
        SETTINGS
            .lines()
            .filter_map(|line| {
                let row: Value = serde_json::from_str(line).ok()?;
                let named = row["quantization"].as_str().map(str::to_owned);
                Some((row["config"].as_object()?.clone(), named))
            })
            .collect()
    })
}

/// What stands where it should not.
fn hostile() -> Vec<Value> {
    vec![
        Value::Null,
        json!(0),
        json!(-1),
        json!(1),
        json!(7),
        json!(1.5),
        json!(u64::MAX),
        json!(1 << 26),
        json!(true),
        json!(""),
        json!("*"),
        json!("re:(.*)*$"),
        json!("re:["),
        json!("é".repeat(300)),
        json!("int8"),
        json!([]),
        json!([0, -1, "x", null]),
        json!(["re:.*", "lm_head", "*.gate_proj"]),
        json!({}),
        json!({"*": {}, "": null, "re:.*q_proj": {"bits": 3, "group_size": 64}}),
    ]
}

/// Every value below, the object itself first.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_owned());
    match value {
        Value::Object(map) => {
            for (key, below) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                places(below, &format!("{at}/{key}"), out);
            }
        }
        Value::Array(list) => {
            for (i, below) in list.iter().enumerate().take(4) {
                places(below, &format!("{at}/{i}"), out);
            }
        }
        _ => {}
    }
}

/// Reads, decides and counts; nothing may panic, and what is said is one line.
fn exercise(map: Map<String, Value>, named: Option<&str>) {
    let one_line = |text: String, map: &Value| {
        assert!(
            !text.is_empty() && !text.contains('\n') && text.len() < 2000,
            "{text:?} of {map}"
        );
    };
    let block = map["quantization_config"].clone();
    let config = Config::from_map(map);
    let Ok(Reading::Model(model)) = read("m", &config) else {
        return;
    };
    let quantization = match Quantization::resolve(&config, named) {
        Ok(Some(quantization)) => quantization,
        Ok(None) => return,
        Err(error) => return one_line(error.to_string(), &block),
    };
    for (tp, pp) in [(1, 1), (2, 1), (4, 2)] {
        let parallel = Parallel {
            pp,
            expert_parallel: tp == 4,
            ..Parallel::tensor(tp)
        };
        for capability in [(7, 0), (8, 0), (9, 0), (12, 1)] {
            if let Some(reason) =
                model.quantization_refusal(&quantization, &parallel, capability, Dtype::Bf16)
            {
                one_line(reason, &block);
            }
        }
        if let Err(error) = model.quantized_weight_bytes(pp - 1, &parallel, Dtype::Bf16, true, &quantization)
        {
            one_line(error.to_string(), &block);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_value_anywhere_is_answered(
        row in any::<prop::sample::Index>(),
        // Settings of one model may come with another.
        other in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..4),
        drop in any::<Option<prop::sample::Index>>(),
    ) {
        let rows = rows();
        let (model, _) = row.get(rows);
        let (from, named) = other.get(rows);
        let hostile = hostile();
        let mut block = from.get("quantization_config").cloned().unwrap_or_else(|| json!({"quant_method": "fp8"}));
        for (place, value) in changes {
            let mut all = Vec::new();
            places(&block, "", &mut all);
            let place: &String = place.get(&all);
            if let Some(at) = block.pointer_mut(place) {
                *at = value.get(&hostile).clone();
            }
        }
        if let (Some(index), Some(map)) = (drop, block.as_object_mut()) {
            let keys: Vec<String> = map.keys().cloned().collect();
            if !keys.is_empty() {
                map.remove(index.get(&keys));
            }
        }
        let mut map = model.clone();
        map.insert("quantization_config".to_owned(), block);
        exercise(map, named.as_deref());
    }
}
