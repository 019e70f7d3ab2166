//! Quantisation that is described in a second file beside `config.json`.

use std::path::Path;

use kvwise_core::arch::Config;
use kvwise_core::arch::config::MAX_CONFIG_BYTES;
use kvwise_core::{Error, Result};
use serde_json::{Map, Value};

/// Where ModelOpt up to 0.29 keeps what it did.
pub(crate) const QUANTIZATION_FILE: &str = "hf_quant_config.json";

/// The configuration with the quantisation of the folder's second file, as the engine takes it (vLLM 0.32.0,
/// `transformers_utils/config.py`): only where `config.json` has no `quantization_config` of its own.
///
/// # Errors
/// If the second file cannot be read, is not a JSON object, or names an algorithm that the engine does not load.
pub(super) fn with_second_file(config: Config, folder: &Path) -> Result<Config> {
    let file = folder.join(QUANTIZATION_FILE);
    let has_own = config.get("quantization_config").is_some_and(|v| !v.is_null());
    if has_own || !file.is_file() {
        return Ok(config);
    }
    let bytes = super::read_capped(&file, MAX_CONFIG_BYTES)?;
    let second = Config::parse(&bytes).map_err(|e| e.at(file.display()))?;
    let second = with_method(second.into_map()).map_err(|e| e.at(file.display()))?;
    let mut map = config.into_map();
    map.insert("quantization_config".to_owned(), Value::Object(second));
    Ok(Config::from_map(map))
}

/// Names the method of a ModelOpt file by its algorithm (vLLM 0.32.0,
/// `transformers_utils/model_arch_config_convertor.py`).
fn with_method(mut file: Map<String, Value>) -> Result<Map<String, Value>> {
    let inner = file.get("quantization").and_then(Value::as_object);
    let producer = file
        .get("producer")
        .and_then(|p| p.get("name"))
        .and_then(Value::as_str);
    let is_modelopt =
        producer == Some("modelopt") || inner.is_some_and(|q| q.contains_key("modelopt_quant_config"));
    let algorithm = inner.and_then(|q| q.get("quant_algo")).filter(|a| !a.is_null());
    let Some(algorithm) = algorithm.filter(|_| is_modelopt) else {
        return Ok(file);
    };
    let name = algorithm
        .as_str()
        .map_or_else(|| algorithm.to_string(), str::to_ascii_uppercase);
    let method = match name.as_str() {
        "FP8" | "FP8_PER_CHANNEL_PER_TOKEN" | "FP8_PB_WO" => "modelopt",
        "NVFP4" => "modelopt_fp4",
        _ => {
            return Err(Error::unsupported(format!(
                "quant_algo is {algorithm}, which vLLM 0.32.0 does not load from this file"
            ))
            .hint("use a checkpoint whose config.json has a quantization_config"));
        }
    };
    file.insert("quant_method".to_owned(), Value::from(method));
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(config: &str, second: &str) -> Result<Config> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), config).unwrap();
        fs::write(folder.path().join(QUANTIZATION_FILE), second).unwrap();
        crate::model::read_folder_config(folder.path())
    }

    fn method(config: &Config) -> Option<&str> {
        config.get("quantization_config")?.get("quant_method")?.as_str()
    }

    #[test]
    fn the_second_file_counts_where_the_first_says_nothing() {
        let modelopt = |algorithm: &str| {
            format!(
                r#"{{"producer":{{"name":"modelopt","version":"0.23.0"}},"quantization":{{"quant_algo":"{algorithm}"}}}}"#
            )
        };
        assert_eq!(method(&read("{}", &modelopt("FP8")).unwrap()), Some("modelopt"));
        let null = r#"{"quantization_config":null}"#;
        assert_eq!(
            method(&read(null, &modelopt("NVFP4")).unwrap()),
            Some("modelopt_fp4")
        );
        let own = r#"{"quantization_config":{"quant_method":"awq"}}"#;
        assert_eq!(method(&read(own, &modelopt("FP8")).unwrap()), Some("awq"));
        let unquantised = r#"{"producer":{"name":"modelopt"},"quantization":{"quant_algo":null}}"#;
        assert_eq!(method(&read("{}", unquantised).unwrap()), None);
    }

    #[test]
    fn what_the_engine_refuses_is_refused_by_file_and_field() {
        let mixed = r#"{"producer":{"name":"modelopt"},"quantization":{"quant_algo":"W4A8_AWQ"}}"#;
        let e = read("{}", mixed).unwrap_err().to_string();
        assert!(e.contains(QUANTIZATION_FILE) && e.contains("W4A8_AWQ"), "{e}");
        assert!(
            read("{}", "[]")
                .unwrap_err()
                .to_string()
                .contains(QUANTIZATION_FILE)
        );
    }
}
