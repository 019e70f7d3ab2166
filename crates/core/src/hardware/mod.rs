//! The catalogue of graphics processors: what each really offers to an engine.
//!
//! The rows are data (`data/gpus.toml`, which people edit, and `data/gpus.jsonl`, which is made of it), each with its
//! source and date. Memory comes in two columns, because they
//! differ by about 1 %: what the driver reports, and what PyTorch reports, which is what engines budget with.
//! Slices of multi-instance GPUs (`h100-1g.10gb`) are rows too, made of their GPU's row and the slice's own figures.
//! A user's own file has the same columns ([`read`]) and is searched first ([`find_among`]).

#[cfg(test)]
mod slices;
mod spelling;
mod table;

pub use table::read;

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::names::{nearest, normalise};
use crate::units::GIB;
use crate::{Error, Result};

/// One graphics processor model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// Name for `--gpu`, e.g. `h100`.
    pub name: String,
    /// Other names that are understood, drivers' spellings among them.
    pub aliases: Vec<String>,
    /// Full name for people.
    pub title: String,
    /// Total bytes as the driver reports them.
    pub memory_bytes: u64,
    /// Total bytes as PyTorch reports them (known to 0.01 GiB), where a log was found.
    pub torch_bytes: Option<u64>,
    /// Whether host and device share this memory.
    pub unified: bool,
    /// Profile of a slice (`1g.10gb`); `None` for a whole GPU.
    pub mig_profile: Option<String>,
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
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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
pub fn all() -> &'static [Gpu] {
    static GPUS: OnceLock<Vec<Gpu>> = OnceLock::new();
    GPUS.get_or_init(|| rows().iter().map(|row| row.gpu().clone()).collect())
}

/// `data/gpus.toml` with the slices of `data/mig.toml`, one GPU a line, which a test keeps true to them: a look-up
/// reads the names of all and the figures of one.
const LINES: &str = include_str!("../../data/gpus.jsonl");

/// A line of the catalogue.
struct Line {
    names: Vec<&'static str>,
    text: &'static str,
    gpu: OnceLock<Gpu>,
}

impl Line {
    /// Reads the names alone: `{"name":"...","aliases":["...",...],` with no quotes inside of names, so that they are
    /// every second piece between quotes.
    fn of(text: &'static str) -> Option<Self> {
        let (head, _) = text.split_once(",\"title\":")?;
        let mut strings = head.split('"').skip(1).step_by(2);
        let name = strings.nth(1)?;
        Some(Self {
            names: std::iter::once(name).chain(strings.skip(1)).collect(),
            text,
            gpu: OnceLock::new(),
        })
    }

    /// # Panics
    /// Never for the shipped lines, which a test reads.
    fn gpu(&self) -> &Gpu {
        self.gpu.get_or_init(|| {
            serde_json::from_str(self.text).expect("the built-in catalogue is checked by tests")
        })
    }
}

fn rows() -> &'static [Line] {
    static ROWS: OnceLock<Vec<Line>> = OnceLock::new();
    ROWS.get_or_init(|| LINES.lines().filter_map(Line::of).collect())
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
    find_among(&[], name)
}

/// As [`find`], with `own` rows before the built-in ones.
///
/// The memory that a card is sold with may stand after its name (`RTX 4090 24GB`).
///
/// # Errors
/// As [`find`]; a number of GPUs before or after the name (`8xH200`) has a flag of its own, and memory that is not this
/// card's means another card.
pub fn find_among(own: &'static [Gpu], name: &str) -> Result<&'static Gpu> {
    if let Some(gpu) = named(own, name) {
        return Ok(gpu);
    }
    if let Some((rest, gigabytes)) = spelling::with_memory(name)
        && let Some(gpu) = named(own, rest)
    {
        if spelling::is_sold_with(gpu, gigabytes) {
            return Ok(gpu);
        }
        let gib = gpu.memory_bytes as f64 / GIB as f64;
        return Err(Error::not_found(format!(
            "the GPU \"{name}\" is not in the catalogue, whose {} has {gib:.1} GiB",
            gpu.name
        ))
        .hint(format!(
            "write {} if that is meant; for another card give --gpu-memory {gigabytes}GiB",
            gpu.name
        )));
    }
    let counted = spelling::counted_before(name)
        .map(|(count, rest)| (count, find_among(own, rest)))
        .or_else(|| {
            let (count, rest) = spelling::counted_after(name)?;
            named(own, rest).map(|gpu| (count, Ok(gpu)))
        });
    match counted {
        Some((count, Ok(gpu))) => {
            return Err(
                Error::not_found(format!("the GPU \"{name}\" is a name and a number of GPUs"))
                    .hint(format!("write them apart: --gpu {} --gpus {count}", gpu.name)),
            );
        }
        Some((count, Err(e))) => return Err(e.hint(format!("the number of them goes to --gpus {count}"))),
        None => {}
    }
    let wanted = key(name);
    let every = || own.iter().chain(all());
    // Slices are suggested only to who asks for one: there are several of each GPU.
    let asks_for_slice = ["1g", "2g", "3g", "4g", "7g"].iter().any(|g| wanted.contains(g));
    let candidates = || {
        every()
            .filter(move |gpu| asks_for_slice || gpu.mig_profile.is_none())
            .map(|gpu| gpu.name.as_str())
    };
    let several: Vec<&str> = candidates()
        .filter(|n| wanted.len() >= 3 && key(n).starts_with(&wanted))
        .collect();
    if !several.is_empty() {
        return Err(
            Error::not_found(format!("the GPU \"{name}\" is not one model but a family"))
                .hint(format!("write one of: {}", several.join(", "))),
        );
    }
    let error = Error::not_found(format!("the GPU \"{name}\" is not in the catalogue"));
    let near = nearest(&wanted, candidates(), 4);
    let error = if near.is_empty() {
        error
    } else {
        error.hint(format!("did you mean {}?", near.join(", ")))
    };
    Err(error.hint("`kvwise gpus` lists all; for any other card give --gpu-memory, e.g. --gpu-memory 48GiB"))
}

/// The row with this whole name.
fn named(own: &'static [Gpu], name: &str) -> Option<&'static Gpu> {
    let wanted = key(name);
    if wanted.is_empty() {
        return None;
    }
    if let Some(gpu) = own.iter().find(|gpu| gpu.names().any(|n| key(n) == wanted)) {
        return Some(gpu);
    }
    let row = |is: &dyn Fn(&str) -> bool| rows().iter().find(|row| row.names.iter().any(|n| is(n)));
    // Most people write a name as the catalogue does, which needs no key of each.
    row(&|n| n.eq_ignore_ascii_case(name))
        .or_else(|| row(&|n| key(n) == wanted))
        .map(Line::gpu)
}

impl Gpu {
    /// Name and aliases.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.aliases.iter().map(String::as_str))
    }
}

/// The name without makers' words, which some drivers print and others do not.
fn key(name: &str) -> String {
    let words = name
        .split(|c: char| c.is_whitespace() || c == '-' || c == '_')
        .filter(|word| {
            ![
                "nvidia", "amd", "geforce", "tesla", "instinct", "radeon", "gpu", "mig",
            ]
            .iter()
            .any(|maker| word.eq_ignore_ascii_case(maker))
        });
    normalise(&words.collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn the_lines_are_what_the_readable_files_say() {
        let whole = table::parse(include_str!("../../data/gpus.toml"), "gpus.toml").unwrap();
        let every = slices::with_slices(whole, include_str!("../../data/mig.toml")).unwrap();
        let lines: String = every
            .iter()
            .map(|gpu| serde_json::to_string(gpu).unwrap() + "\n")
            .collect();
        if std::env::var_os("KVWISE_WRITE_GPUS").is_some() {
            let file = concat!(env!("CARGO_MANIFEST_DIR"), "/data/gpus.jsonl");
            std::fs::write(file, &lines).unwrap();
            return;
        }
        assert!(
            LINES == lines,
            "after a change of gpus.toml or mig.toml: KVWISE_WRITE_GPUS=1 cargo test -p kvwise-core --lib hardware"
        );
        assert_eq!(all().len(), every.len());
        for (row, gpu) in rows().iter().zip(&every) {
            assert_eq!(row.names, gpu.names().collect::<Vec<_>>());
            // Rates may differ in the last bit, since JSON's reader rounds so.
            assert_eq!(
                (row.gpu().memory_bytes, row.gpu().torch_bytes),
                (gpu.memory_bytes, gpu.torch_bytes)
            );
        }
    }

    #[test]
    fn every_row_has_source_date_and_plausible_figures() {
        assert!(all().len() >= 45);
        for gpu in all() {
            assert!(gpu.source.len() > 10, "{}", gpu.name);
            assert!(gpu.date.len() == 10 && gpu.date.starts_with("20"), "{}", gpu.name);
            // Cards of 8 GB show some MiB less.
            let least = if gpu.mig_profile.is_some() { 4 } else { 7 };
            assert!(
                gpu.memory_bytes > least * GIB && gpu.memory_bytes < 512 * GIB,
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
            ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "h100-1g.10gb"),
            ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "a100-40gb-3g.20gb"),
            ("AMD Instinct MI300X OAM", "mi300x"),
            ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
            ("RTX PRO 6000 Blackwell SE", "rtx-pro-6000"),
            ("RTX PRO 6000 Blackwell Max-Q", "rtx-pro-6000"),
            ("GB10 (DGX Spark)", "gb10"),
            ("NVIDIA GB10", "gb10"),
            ("Radeon AI PRO R9700", "r9700"),
            ("NVIDIA RTX A6000", "a6000"),
            ("RTX 6000 Ada", "rtx-6000-ada"),
            ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
            ("Tesla T4", "t4"),
            ("NVIDIA A10", "a10"),
            ("NVIDIA GH200 480GB", "gh200"),
        ] {
            assert_eq!(find(spelling).unwrap().name, name, "{spelling}");
        }
    }

    #[test]
    fn every_title_is_a_name_as_well() {
        for gpu in all().iter().filter(|gpu| gpu.mig_profile.is_none()) {
            assert_eq!(find(&gpu.title).unwrap().name, gpu.name, "{}", gpu.title);
        }
    }

    #[test]
    fn the_memory_a_card_is_sold_with_may_stand_after_its_name() {
        for (spelling, name) in [
            ("RTX 4090 24GB", "rtx-4090"),
            ("NVIDIA GeForce RTX 3090 24 GB", "rtx-3090"),
            ("L40S 48GB", "l40s"),
            ("RTX A6000 48GB", "a6000"),
            ("RTX 2000 Ada 16GB", "rtx-2000-ada"),
            ("H200-141GB", "h200"),
            ("B200 192GB", "b200"),
            ("B300 288GB", "b300"),
            ("GB10 128GB", "gb10"),
            ("T4 16G", "t4"),
            ("A10G 24GB", "a10g"),
        ] {
            assert_eq!(find(spelling).unwrap().name, name, "{spelling}");
        }
        for (spelling, name) in [
            ("RTX 4090 48GB", "rtx-4090"),
            ("RTX 3080 12GB", "rtx-3080"),
            ("H200 80GB", "h200"),
        ] {
            let e = find(spelling).unwrap_err();
            assert!(e.to_string().contains(&format!("whose {name} has")), "{e}");
            assert!(e.hints()[0].contains("--gpu-memory"), "{e:?}");
        }
    }

    #[test]
    fn a_number_of_gpus_is_pointed_to_its_flag() {
        for (spelling, hint) in [
            ("8xH200", "--gpu h200 --gpus 8"),
            ("8 x H100", "--gpu h100 --gpus 8"),
            ("2x RTX 4090 24GB", "--gpu rtx-4090 --gpus 2"),
            ("H200x8", "--gpu h200 --gpus 8"),
        ] {
            let e = find(spelling).unwrap_err();
            assert!(e.hints()[0].contains(hint), "{spelling}: {e:?}");
        }
        let e = find("8xA100").unwrap_err();
        assert!(
            e.hints()[0].contains("a100-80gb") && e.hints()[1].contains("--gpus 8"),
            "{e:?}"
        );
        // The x of `RTX` counts nothing.
        assert!(find("rtx 4099").unwrap_err().hints()[0].contains("rtx-4090"));
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
    fn slices_have_their_share_and_stay_out_of_other_peoples_suggestions() {
        let (whole, slice) = (find("h100").unwrap(), find("h100-3g.40gb").unwrap());
        assert_eq!(slice.memory_bytes, 39 * GIB + GIB / 2);
        assert_eq!(slice.torch_total(), (slice.memory_bytes, true));
        assert!((slice.bandwidth_bytes_per_s * 2.0 - whole.bandwidth_bytes_per_s).abs() < 1.0);
        assert!((slice.tflops.fp16 / whole.tflops.fp16 - 60.0 / 132.0).abs() < 1e-9);
        assert_eq!(slice.nvlink_bytes_per_s, None);
        assert!(!find("a100").unwrap_err().hints()[0].contains("1g"));
        assert!(find("h100-1g.11gb").unwrap_err().hints()[0].contains("h100-1g.10gb"));
    }

    #[test]
    fn a_typing_error_gets_the_nearest_name() {
        let e = find("h10").unwrap_err();
        assert!(e.hints()[0].contains("h100"), "{e:?}");
        let e = find("rtx-4099").unwrap_err();
        assert!(e.hints()[0].contains("rtx-4090"), "{e:?}");
    }
}
