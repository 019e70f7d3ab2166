//! The columns of `data/gpus.toml`, and of a user's file like it.

use std::collections::HashSet;

use serde::Deserialize;

use super::{Gpu, Tflops, all, key};
use crate::names::normalise;
use crate::units::{GIB, MIB};
use crate::{Error, Result};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    gpu: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    title: String,
    #[serde(default)]
    aliases: Vec<String>,
    memory_mib: u64,
    torch_gib: Option<f64>,
    #[serde(default)]
    unified: bool,
    compute: String,
    bandwidth_gbps: f64,
    tflops: Tflops,
    nvlink_gbps: Option<f64>,
    pcie_gbps: f64,
    source: String,
    date: String,
}

/// Reads a user's file with the columns of `data/gpus.toml`; `file` is its name for messages.
///
/// # Errors
/// If a column is missing or unknown, a value cannot be used, a name comes twice or is a built-in GPU's.
pub fn read(text: &str, file: &str) -> Result<Vec<Gpu>> {
    let own = parse(text, file)?;
    let mut seen: HashSet<String> = all().iter().flat_map(|gpu| gpu.names().map(key)).collect();
    let built_in = seen.clone();
    for gpu in &own {
        // a name and an alias of the same row may differ in punctuation alone
        let keys: HashSet<String> = gpu.names().map(key).collect();
        for key in keys {
            if seen.insert(key.clone()) {
                continue;
            }
            let why = if built_in.contains(&key) {
                "is a built-in GPU's"
            } else {
                "is there twice"
            };
            return Err(Error::input(format!(
                "{file}: {}: its name or alias {why}: \"{key}\"",
                gpu.name
            ))
            .hint("give it another name"));
        }
    }
    Ok(own)
}

pub(super) fn parse(text: &str, file: &str) -> Result<Vec<Gpu>> {
    let parsed: File = toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |span| {
            let before = text.bytes().take(span.start).filter(|&b| b == b'\n').count();
            before + 1
        });
        let content = text.lines().nth(line - 1).unwrap_or_default().trim();
        Error::input(format!("{file}: line {line} (\"{content}\"): {}", e.message()))
    })?;
    parsed
        .gpu
        .into_iter()
        .map(|row| {
            let name = row.name.clone();
            Gpu::try_from(row).map_err(|e| e.at(name).at(file))
        })
        .collect()
}

/// Largest memory of one GPU that is taken, in MiB: 16 TiB.
const MAX_MEMORY_MIB: u64 = 16 << 20;

impl TryFrom<Row> for Gpu {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self> {
        if row.name.trim().is_empty() || row.name.len() > 100 || normalise(&row.name).is_empty() {
            return Err(Error::input("name is not a name of letters and digits"));
        }
        if !(256..=MAX_MEMORY_MIB).contains(&row.memory_mib) {
            return Err(Error::input(format!(
                "memory_mib is {}, expected 256 to {MAX_MEMORY_MIB}",
                row.memory_mib
            )));
        }
        for (field, value) in [
            ("bandwidth_gbps", Some(row.bandwidth_gbps)),
            ("pcie_gbps", Some(row.pcie_gbps)),
            ("nvlink_gbps", row.nvlink_gbps),
            ("tflops.fp16", Some(row.tflops.fp16)),
            ("tflops.fp8", row.tflops.fp8),
            ("tflops.int8", row.tflops.int8),
            ("tflops.fp4", row.tflops.fp4),
        ] {
            if let Some(value) = value
                && !(value > 0.0 && value <= 1e7)
            {
                return Err(Error::input(format!(
                    "{field} is {value}, expected a positive number"
                )));
            }
        }
        let compute_capability = row
            .compute
            .split_once('.')
            .map(|(major, minor)| match (major.parse(), minor.parse()) {
                (Ok(major), Ok(minor)) => Ok((major, minor)),
                _ => Err(Error::input(format!(
                    "compute is \"{}\", expected one like 9.0 or gfx942",
                    row.compute
                ))),
            })
            .transpose()?;
        let memory_bytes = row.memory_mib * MIB;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked below: positive and not above the driver's figure"
        )]
        let torch_bytes = row.torch_gib.map(|gib| (gib * GIB as f64) as u64);
        if torch_bytes.is_some_and(|bytes| bytes == 0 || bytes > memory_bytes) {
            return Err(Error::input(format!(
                "torch_gib is {}, expected at most the driver's {:.2}",
                row.torch_gib.unwrap_or_default(),
                memory_bytes as f64 / GIB as f64
            )));
        }
        Ok(Self {
            memory_bytes,
            torch_bytes,
            unified: row.unified,
            mig_profile: None,
            compute_capability,
            compute: row.compute,
            bandwidth_bytes_per_s: row.bandwidth_gbps * 1e9,
            tflops: row.tflops,
            nvlink_bytes_per_s: row.nvlink_gbps.map(|g| g * 1e9),
            pcie_bytes_per_s: row.pcie_gbps * 1e9,
            source: row.source,
            date: row.date,
            name: row.name,
            title: row.title,
            aliases: row.aliases,
        })
    }
}
