//! Profiles: a deployment in a YAML file, version 1.
//!
//! The sections and names are those of an earlier planner (vllm-wizard 0.2.0), so that its files are read; unlike there a
//! key that is not known is an error, and `outputs.vllm_args` are used.

use std::collections::BTreeMap;
use std::path::Path;

use kvwise_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::{atomic, model};

/// Largest profile that is read, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// A whole file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Always 1.
    pub profile_version: u64,
    /// What is served.
    #[serde(default)]
    pub model: Model,
    /// What it runs on.
    #[serde(default)]
    pub hardware: Hardware,
    /// What has to be served at once.
    #[serde(default)]
    pub workload: Workload,
    /// Margins.
    #[serde(default)]
    pub policy: Policy,
    /// Files to generate and further engine flags.
    #[serde(default)]
    pub outputs: Outputs,
}

/// What is served.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the keys of the file; docs/src/reference/profile.md")]
pub struct Model {
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_cache_dtype: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub params_b: Option<f64>,
}

/// What it runs on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the keys of the file; docs/src/reference/profile.md")]
pub struct Hardware {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u64>,
    /// In GiB, as in the earlier planner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vram_gb: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interconnect: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tp_size: Option<u64>,
}

/// What has to be served at once.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the keys of the file; docs/src/reference/profile.md")]
pub struct Workload {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gen_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streaming: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// Margins.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the keys of the file; docs/src/reference/profile.md")]
pub struct Policy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory_utilization: Option<f64>,
    /// In GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overhead_gb: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragmentation_factor: Option<f64>,
    /// In GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headroom_gb: Option<f64>,
}

/// Files to generate and further engine flags.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the keys of the file; docs/src/reference/profile.md")]
pub struct Outputs {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub emit: Vec<String>,
    /// Engine flags by name (`max_num_seqs`, `--max-num-seqs`), without a place elsewhere in the file.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub vllm_args: BTreeMap<String, serde_json::Value>,
}

/// Reads a profile.
///
/// # Errors
/// If the file cannot be read, is not YAML, has a key or value that is not known, or another version.
pub fn read(path: &Path) -> Result<Profile> {
    let bytes = model::read_capped(path, MAX_BYTES)?;
    let text =
        String::from_utf8(bytes).map_err(|e| Error::input(format!("{}: not UTF-8: {e}", path.display())))?;
    parse(&text).map_err(|e| e.at(path.display()))
}

/// Parses a profile.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str) -> Result<Profile> {
    let profile: Profile = serde_saphyr::from_str(text).map_err(|e| {
        let first = e.to_string();
        let first = first.lines().next().unwrap_or_default();
        let first = first.strip_prefix("error: ").unwrap_or(first);
        Error::input(format!("not a profile: {first}{}", line_of(first, text)))
    })?;
    if profile.profile_version != 1 {
        return Err(Error::input(format!(
            "profile_version is {}, this program reads version 1",
            profile.profile_version
        )));
    }
    for (field, value) in profile.numbers() {
        if value.is_some_and(|n| !n.is_finite()) {
            return Err(Error::input(format!("{field} is no finite number"))
                .hint("write a number, or leave the line out"));
        }
    }
    Ok(profile)
}

/// The line that a reader's message names, which shows the field and its value; nothing where it names none.
fn line_of(message: &str, text: &str) -> String {
    let number = message
        .split_once("line ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse::<usize>().ok());
    match number.and_then(|n| text.lines().nth(n.checked_sub(1)?)) {
        Some(line) if !line.trim().is_empty() => {
            let shown: String = line.trim().chars().filter(|c| !c.is_control()).take(80).collect();
            format!(" in \"{shown}\"")
        }
        _ => String::new(),
    }
}

impl Profile {
    /// Fields that are numbers with fractions, by their names in the file.
    fn numbers(&self) -> [(&'static str, Option<f64>); 6] {
        [
            ("model.params_b", self.model.params_b),
            ("hardware.vram_gb", self.hardware.vram_gb),
            (
                "policy.gpu_memory_utilization",
                self.policy.gpu_memory_utilization,
            ),
            ("policy.overhead_gb", self.policy.overhead_gb),
            ("policy.fragmentation_factor", self.policy.fragmentation_factor),
            ("policy.headroom_gb", self.policy.headroom_gb),
        ]
    }
}

/// Writes a profile, whole or not at all.
///
/// # Errors
/// If it cannot be written.
pub fn write(path: &Path, profile: &Profile) -> Result<()> {
    atomic::write(path, to_text(profile)?.as_bytes())
}

/// A profile as YAML.
///
/// # Errors
/// If it cannot be expressed (never for fields of plain values).
pub fn to_text(profile: &Profile) -> Result<String> {
    serde_saphyr::to_string(profile).map_err(|e| Error::input(format!("the profile cannot be written: {e}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAMPLE: &str = "profile_version: 1
model:
  id: meta-llama/Llama-3.1-8B
  dtype: auto
hardware:
  gpu_name: RTX 4090
  gpus: 1
  vram_gb: 24.0
  tp_size: 1
workload:
  prompt_tokens: 512
  gen_tokens: 256
  concurrency: 4
  streaming: true
  mode: balanced
policy:
  gpu_memory_utilization: 0.9
  fragmentation_factor: 1.15
outputs:
  emit: [command, profile]
  vllm_args: {max-num-seqs: 64}
";

    #[test]
    fn a_sample_survives_reading_and_writing() {
        let profile = parse(SAMPLE).unwrap();
        assert_eq!(profile.hardware.vram_gb, Some(24.0));
        assert_eq!(profile.outputs.vllm_args["max-num-seqs"], 64);
        assert_eq!(parse(&to_text(&profile).unwrap()).unwrap(), profile);
    }

    #[test]
    fn what_is_not_known_is_an_error_with_its_name() {
        for (text, says) in [
            ("profile_version: 2\n", "profile_version is 2"),
            ("profile_version: 1\nmodle: {}\n", "modle"),
            ("profile_version: 1\nmodel: {id: x, layers: 3}\n", "layers"),
            (
                "profile_version: 1\nhardware: {gpus: -1}\n",
                "in \"hardware: {gpus: -1}\"",
            ),
            (
                "profile_version: 1\npolicy:\n  headroom_gb: .nan\n",
                "policy.headroom_gb is no finite number",
            ),
            (
                "profile_version: 1\npolicy: {gpu_memory_utilization: -.inf}\n",
                "policy.gpu_memory_utilization is no finite",
            ),
            ("model: {}\n", "profile_version"),
            ("[1, 2]\n", "not a profile"),
            ("a: [\n", "not a profile"),
        ] {
            let e = parse(text).unwrap_err().to_string();
            assert!(e.contains(says), "expected \"{says}\" in: {e}");
        }
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut bomb = "profile_version: 1\nx0: &x0 [a,a,a,a,a,a,a,a,a]\n".to_owned();
        for i in 1..12 {
            let inner = vec![format!("*x{}", i - 1); 9].join(",");
            bomb = format!("{bomb}x{i}: &x{i} [{inner}]\n");
        }
        assert!(parse(&bomb).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
