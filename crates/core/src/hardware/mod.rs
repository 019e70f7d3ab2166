//! The catalogue of graphics processors: what each really offers to an engine.
//!
//! The rows are data (`data/gpus.toml`), each with its source and date. Memory comes in two columns, because they
//! differ by about 1 %: what the driver reports, and what PyTorch reports, which is what engines budget with.

use std::sync::OnceLock;

use serde::Deserialize;

use crate::names::{nearest, normalise};
use crate::units::{GIB, MIB};
use crate::{Error, Result};

/// One graphics processor model.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpu {
    /// Name for `--gpu`, e.g. `h100`.
    pub name: String,
    /// Full name for people.
    pub title: String,
    /// Other names that are understood, drivers' spellings among them.
    pub aliases: Vec<String>,
    /// Total bytes as the driver reports them.
    pub memory_bytes: u64,
    /// Total bytes as PyTorch reports them (known to 0.01 GiB), where a log was found.
    pub torch_bytes: Option<u64>,
    /// Whether host and device share this memory.
    pub unified: bool,
    /// CUDA compute capability, major and minor; `None` for other makers.
    pub compute_capability: Option<(u32, u32)>,
    /// Compute capability or target name as text (`9.0`, `gfx942`).
    pub compute: String,
    /// Device memory bandwidth in bytes per second.
    pub bandwidth_bytes_per_s: f64,
    /// Dense peak rates.
    pub tflops: Tflops,
    /// `NVLink` or Infinity Fabric, one direction, all links of one GPU, in bytes per second.
    pub nvlink_bytes_per_s: Option<f64>,
    /// `PCIe`, one direction, in bytes per second.
    pub pcie_bytes_per_s: f64,
    /// Where the figures come from.
    pub source: String,
    /// When they were collected, `YYYY-MM-DD`.
    pub date: String,
}

/// Dense peak rates in 10^12 operations per second; `None` where the hardware has no such mode.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tflops {
    /// 16-bit floats (float16 and bfloat16) with 32-bit accumulation.
    pub fp16: f64,
    /// 8-bit floats.
    pub fp8: Option<f64>,
    /// 8-bit integers.
    pub int8: Option<f64>,
    /// 4-bit floats.
    pub fp4: Option<f64>,
}

/// Share of the driver's total that PyTorch does not see where no log says it: 3.6 % on the median of the rows that
/// have both columns (0.1 % to 5.5 %).
const TORCH_SHARE_NUMERATOR: u64 = 968;
const TORCH_SHARE_DENOMINATOR: u64 = 1000;

impl Gpu {
    /// What PyTorch reports as the total, and whether that is known from a log (else it is estimated from the
    /// driver's figure).
    pub fn torch_total(&self) -> (u64, bool) {
        match self.torch_bytes {
            Some(bytes) => (bytes, true),
            None => (
                self.memory_bytes / TORCH_SHARE_DENOMINATOR * TORCH_SHARE_NUMERATOR,
                false,
            ),
        }
    }
}

/// Every GPU in the catalogue, in its order (by maker and generation, newest first).
///
/// # Panics
/// Never for the shipped rows, which a test reads.
pub fn all() -> &'static [Gpu] {
    static GPUS: OnceLock<Vec<Gpu>> = OnceLock::new();
    GPUS.get_or_init(|| {
        read(include_str!("../../data/gpus.toml")).expect("the built-in catalogue is checked by tests")
    })
}

/// The GPU with this name; case, punctuation and makers' prefixes do not matter, but the name must be whole.
///
/// ```
/// use kvwise_core::hardware;
/// assert_eq!(hardware::find("NVIDIA H100 80GB HBM3")?.name, "h100");
/// assert!(hardware::find("a").is_err());
/// # Ok::<(), kvwise_core::Error>(())
/// ```
///
/// # Errors
/// If no GPU has this name; the nearest names are hints.
pub fn find(name: &str) -> Result<&'static Gpu> {
    let wanted = key(name);
    let names =
        |gpu: &'static Gpu| std::iter::once(gpu.name.as_str()).chain(gpu.aliases.iter().map(String::as_str));
    if !wanted.is_empty()
        && let Some(gpu) = all().iter().find(|gpu| names(gpu).any(|n| key(n) == wanted))
    {
        return Ok(gpu);
    }
    let several: Vec<&str> = all()
        .iter()
        .map(|gpu| gpu.name.as_str())
        .filter(|n| wanted.len() >= 3 && key(n).starts_with(&wanted))
        .collect();
    if !several.is_empty() {
        return Err(
            Error::not_found(format!("the GPU \"{name}\" is not one model but a family"))
                .hint(format!("write one of: {}", several.join(", "))),
        );
    }
    let error = Error::not_found(format!("the GPU \"{name}\" is not in the catalogue"));
    let near = nearest(&wanted, all().iter().map(|gpu| gpu.name.as_str()), 4);
    let error = if near.is_empty() {
        error
    } else {
        error.hint(format!("did you mean {}?", near.join(", ")))
    };
    Err(error.hint("`kvwise gpus` lists all; for any other card give --gpu-memory, e.g. --gpu-memory 48GiB"))
}

/// The name without makers' words, which some drivers print and others do not.
fn key(name: &str) -> String {
    let words = name
        .split(|c: char| c.is_whitespace() || c == '-' || c == '_')
        .filter(|word| {
            !["nvidia", "amd", "geforce", "tesla", "instinct", "radeon", "gpu"]
                .iter()
                .any(|maker| word.eq_ignore_ascii_case(maker))
        });
    normalise(&words.collect::<String>())
}

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

fn read(text: &str) -> Result<Vec<Gpu>> {
    let file: File = toml::from_str(text).map_err(|e| Error::input(format!("gpus.toml: {e}")))?;
    file.gpu.into_iter().map(Gpu::try_from).collect()
}

impl TryFrom<Row> for Gpu {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self> {
        let compute_capability = row
            .compute
            .split_once('.')
            .map(|(major, minor)| match (major.parse(), minor.parse()) {
                (Ok(major), Ok(minor)) => Ok((major, minor)),
                _ => Err(Error::input(format!(
                    "gpus.toml: {}: compute is \"{}\"",
                    row.name, row.compute
                ))),
            })
            .transpose()?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a two-decimal figure of the catalogue, far below 2^53"
        )]
        let torch_bytes = row.torch_gib.map(|gib| (gib * GIB as f64) as u64);
        Ok(Self {
            memory_bytes: row.memory_mib * MIB,
            torch_bytes,
            unified: row.unified,
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn every_row_has_source_date_and_plausible_figures() {
        assert!(all().len() >= 45);
        for gpu in all() {
            assert!(gpu.source.len() > 10, "{}", gpu.name);
            assert!(gpu.date.len() == 10 && gpu.date.starts_with("20"), "{}", gpu.name);
            assert!(
                gpu.memory_bytes > 8 * GIB && gpu.memory_bytes < 512 * GIB,
                "{}",
                gpu.name
            );
            assert!(
                gpu.bandwidth_bytes_per_s > 1e11 && gpu.bandwidth_bytes_per_s < 2e13,
                "{}",
                gpu.name
            );
            if let Some(torch) = gpu.torch_bytes {
                assert!(
                    torch <= gpu.memory_bytes,
                    "{}: torch sees more than the driver",
                    gpu.name
                );
                assert!(
                    torch > gpu.memory_bytes / 100 * 94,
                    "{}: torch sees too little",
                    gpu.name
                );
            }
        }
    }

    #[test]
    fn no_two_rows_answer_to_one_name() {
        let mut owners: HashMap<String, &str> = HashMap::new();
        for gpu in all() {
            for name in gpu.aliases.iter().chain([&gpu.name, &gpu.title]) {
                if let Some(other) = owners.insert(key(name), &gpu.name) {
                    assert_eq!(other, gpu.name, "{name}");
                }
            }
        }
    }

    #[test]
    fn drivers_spellings_are_found() {
        for (spelling, name) in [
            ("NVIDIA H100 80GB HBM3", "h100"),
            ("NVIDIA GeForce RTX 4090", "rtx-4090"),
            ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
            ("RTX_PRO_6000", "rtx-pro-6000"),
            ("H200", "h200"),
            ("4090", "rtx-4090"),
        ] {
            assert_eq!(find(spelling).unwrap().name, name, "{spelling}");
        }
    }

    #[test]
    fn a_part_of_a_name_is_never_taken_for_a_gpu() {
        for part in ["a", "", "rtx", "100", "a10000", "nvidia"] {
            assert!(find(part).is_err(), "{part}");
        }
        let e = find("a100").unwrap_err();
        assert!(e.hints()[0].contains("a100-80gb") && e.hints()[0].contains("a100-40gb"));
    }

    #[test]
    fn a_typing_error_gets_the_nearest_name() {
        let e = find("h10").unwrap_err();
        assert!(e.hints()[0].contains("h100"), "{e:?}");
        let e = find("rtx-4099").unwrap_err();
        assert!(e.hints()[0].contains("rtx-4090"), "{e:?}");
    }
}
