//! Quantised weight bytes against those of vLLM 0.32.0's own quantisation methods (see `golden/README.md`).

use std::collections::HashMap;

use kvwise_core::arch::family::{Reading, read};
use kvwise_core::arch::{Config, Parallel};
use kvwise_core::dtype::Dtype;
use kvwise_core::quant::Quantization;
use serde_json::{Map, Value};

const ROWS: &str = include_str!("golden/quantized_rows.jsonl");
const CONFIGS: &str = include_str!("golden/vllm_configs.jsonl");

/// How the weight bytes of a configuration in the scheme of a row differ from what the row has, if they do.
fn difference(name: &str, mut config: Map<String, Value>, row: &Value) -> Option<String> {
    config.insert(
        "quantization_config".to_owned(),
        row["quantization_config"].clone(),
    );
    let config = Config::from_map(config);
    let quantization = Quantization::read(&config).unwrap().unwrap();
    let Reading::Model(model) = read(name, &config).unwrap() else {
        panic!("{name} was not read as a model");
    };
    let parallel = Parallel::tensor(row["tp"].as_u64().unwrap());
    let got = model
        .quantized_weight_bytes(0, &parallel, Dtype::Bf16, false, &quantization)
        .map_err(|error| error.to_string());
    let want = row["bytes"].as_u64().unwrap();
    (got != Ok(want)).then(|| {
        format!(
            "{name} {} tp {}: {got:?}, the engine has {want}",
            quantization.name(),
            parallel.tp
        )
    })
}

#[test]
fn every_quantised_row_is_equal_to_what_the_engine_allocates() {
    let configs: HashMap<String, String> = CONFIGS
        .lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            (text("name"), text("config"))
        })
        .collect();
    let mut different = Vec::new();
    let mut rows = 0;
    for line in ROWS.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let name = row["config"].as_str().unwrap();
        different.extend(difference(
            name,
            serde_json::from_str(&configs[name]).unwrap(),
            &row,
        ));
        rows += 1;
    }
    assert!(rows > 40, "only {rows} rows were compared");
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// Rows with their own configuration: published geometries with fewer layers and a scheme that was put into them.
const VARIANTS: &str = include_str!("golden/quantized_variants.jsonl");

#[test]
fn schemes_on_many_classes_are_equal_to_what_the_engine_allocates() {
    let mut different = Vec::new();
    let mut rows = 0;
    for line in VARIANTS.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let name = row["name"].as_str().unwrap();
        different.extend(difference(name, row["config"].as_object().unwrap().clone(), &row));
        rows += 1;
    }
    assert!(rows > 150, "only {rows} rows were compared");
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// Whole settings: published checkpoints with their own `quantization_config`, and random geometries with random ones.
const SETTINGS: &str = include_str!("golden/quantized_settings.jsonl");

/// The bytes of every stage, or why the engine does not build it.
fn settled(row: &Value) -> Result<Vec<u64>, String> {
    let text = |error: kvwise_core::Error| error.to_string();
    let config = match row["model"].as_str() {
        Some(id) => kvwise_core::catalogue::find(id)
            .and_then(|entry| entry.config())
            .map_err(text)?,
        None => Config::from_map(row["config"].as_object().unwrap().clone()),
    };
    let name = row["model"].as_str().or(row["name"].as_str()).unwrap();
    let Reading::Model(model) = read(name, &config).map_err(text)? else {
        panic!("{name} was not read as a model");
    };
    let quantization = Quantization::resolve(&config, row["quantization"].as_str()).map_err(text)?;
    let pp = row["pp"].as_u64().unwrap_or(1);
    let parallel = Parallel {
        pp,
        expert_parallel: row["ep"] == true,
        ..Parallel::tensor(row["tp"].as_u64().unwrap())
    };
    let capability = u32::try_from(row["capability"].as_u64().unwrap_or(90)).unwrap();
    let dtype = match model.dtype {
        Some(Dtype::F16) => Dtype::F16,
        _ => Dtype::Bf16,
    };
    let device = (capability / 10, capability % 10);
    let towers = row["towers"] == true;
    let Some(quantization) = quantization else {
        // A file that names no method is read as one without quantisation.
        return (0..pp)
            .map(|stage| {
                model
                    .weight_bytes(stage, &parallel, Dtype::Bf16, towers)
                    .map_err(text)
            })
            .collect();
    };
    if let Some(reason) = model.quantization_refusal(&quantization, &parallel, device, dtype) {
        return Err(reason);
    }
    (0..pp)
        .map(|stage| {
            model
                .quantized_weight_bytes(stage, &parallel, Dtype::Bf16, towers, &quantization)
                .map_err(text)
        })
        .collect()
}

#[test]
fn settings_of_all_kinds_are_equal_on_every_stage_or_refused_as_the_engine_refuses_them() {
    let mut different = Vec::new();
    let mut rows = 0;
    for line in SETTINGS.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let name = row["model"].as_str().or(row["name"].as_str()).unwrap();
        let got = settled(&row);
        match (&got, row["bytes"].as_array()) {
            (Ok(bytes), Some(want)) if want.iter().filter_map(Value::as_u64).eq(bytes.iter().copied()) => {}
            (Err(_), None) => {}
            _ => different.push(format!(
                "{name}: {got:?}, the engine has {}",
                row.get("bytes").unwrap_or(&row["refused"])
            )),
        }
        rows += 1;
    }
    assert!(rows > 150, "only {rows} rows were compared");
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn values_that_cannot_be_used_are_named() {
    let read = |q: &str| {
        let text = format!("{{\"quantization_config\": {q}}}");
        Quantization::read(&Config::parse(text.as_bytes()).unwrap())
    };
    for (q, part) in [
        (r#"{"quant_method": "squeezellm"}"#, "squeezellm"),
        (r#"{"quant_method": "torchao"}"#, "torchao"),
        (r#"{"quant_method": "moe_wna16"}"#, "gptq and awq"),
        (r#"{"quant_method": "quark"}"#, "export"),
        (r#"{"quant_method": "auto-round", "bits": 1}"#, "bits"),
        (
            r#"{"quant_method": "fp8", "activation_scheme": "sometimes"}"#,
            "activation_scheme",
        ),
        (
            r#"{"quant_method": "fp8", "weight_block_size": [0, 128]}"#,
            "weight_block_size",
        ),
        (
            r#"{"quant_method": "fp8", "weight_block_size": "128"}"#,
            "weight_block_size",
        ),
        (r#"{"quant_method": "awq", "bits": 0}"#, "bits"),
        (r#"{"quant_method": "gptq", "group_size": 0}"#, "group_size"),
        (r#"{"quant_method": "compressed-tensors"}"#, "config_groups"),
        (
            r#"{"quant_method": "modelopt", "quant_algo": "FP3"}"#,
            "quant_algo",
        ),
        (r#"{"quant_method": 8}"#, "quant_method"),
    ] {
        let error = read(q).expect_err(q).to_string();
        assert!(error.contains(part), "{error} does not name {part}");
    }
    for (q, part) in [
        (r#"{"quant_method": "gptq", "sym": false}"#, "sym"),
        (r#"{"quant_method": "gptq", "desc_act": true}"#, "desc_act"),
        (r#"{"quant_method": "bitsandbytes"}"#, "bitsandbytes"),
        (r#"{"quant_method": "fbgemm_fp8"}"#, "deprecated"),
    ] {
        let quantization = read(q).unwrap().unwrap();
        let reason = quantization.refusal().expect(q);
        assert!(reason.contains(part), "{reason} does not name {part}");
    }
    let plain = read(r#"{"quant_method": "gptq", "desc_act": true, "group_size": -1}"#).unwrap();
    assert_eq!(plain.unwrap().refusal(), None);
    assert!(read("null").unwrap().is_none());
    assert!(Quantization::named("fp9").is_err());
}
