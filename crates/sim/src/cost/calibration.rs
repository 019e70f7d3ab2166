//! Fitted kernel coefficients per GPU.

use std::collections::BTreeMap;

use kvwise_core::plan::Hardware;
use kvwise_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// Datasheet figures of one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct GpuSpec {
    /// Memory bandwidth, bytes/s.
    pub bw: f64,
    /// Dense 16-bit matrix rate, FLOP/s.
    pub f16: f64,
    /// Dense 8-bit float matrix rate, FLOP/s; `None` where the GPU has none.
    pub f8: Option<f64>,
    /// Dense 4-bit float matrix rate, FLOP/s; `None` where the GPU has none.
    pub f4: Option<f64>,
    /// Link bandwidth, one direction, bytes/s.
    pub link: f64,
    /// Streaming multiprocessors.
    pub sms: f64,
}

/// Coefficients of a matrix product; see [`super::kernel::gemm`].
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Gemm {
    /// Launch floor, s.
    pub t0_s: f64,
    /// Share of the peak rate that is reached.
    pub ec: f64,
    /// Share of the bandwidth that is reached.
    pub em: f64,
    /// Inner width at which half of the rate is reached.
    pub k0: f64,
    /// Bytes of fixed traffic.
    pub b0: f64,
    /// Exponent of the soft maximum.
    pub p: f64,
    /// Exponent of the wave occupancy.
    pub occ_pow: f64,
}

/// Coefficients of decode attention; see [`super::kernel::attention_decode`].
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Decode {
    /// Launch floor, s.
    pub t0_s: f64,
    /// Seconds a sequence.
    pub tb_s: f64,
    /// Share of the bandwidth.
    pub em: f64,
    /// Share of the 16-bit rate.
    pub ec: f64,
    /// Bytes of fixed traffic.
    pub b0: f64,
    /// Exponent of the soft maximum.
    pub p: f64,
}

/// Coefficients of prefill attention; see [`super::kernel::attention_prefill`].
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Context {
    /// Launch floor, s.
    pub t0_s: f64,
    /// Share of the 16-bit rate.
    pub ec: f64,
    /// Query tokens at which half of the rate is reached.
    pub s0: f64,
    /// Share of the bandwidth.
    pub em: f64,
    /// Exponent of the soft maximum.
    pub p: f64,
}

/// Coefficients of routed experts; see [`super::kernel::experts`].
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Moe {
    /// Launch floor, s.
    pub t0_s: f64,
    /// Seconds an active expert.
    pub te_s: f64,
    /// Share of the peak rate.
    pub ec: f64,
    /// Share of the bandwidth.
    pub em: f64,
    /// Tokens an expert at which half of the rate is reached.
    pub m0: f64,
    /// Exponent of the soft maximum.
    pub p: f64,
    /// Exponent of the load in the expected number of active experts.
    pub act_pow: f64,
}

/// Coefficients of an all-reduce; see [`super::kernel::all_reduce`].
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct AllReduce {
    /// Latency, s.
    pub a_s: f64,
    /// Bandwidth, bytes/s.
    #[serde(rename = "bw_Bps")]
    pub bandwidth_bytes_per_s: f64,
    /// Seconds per square root of a byte.
    pub c_sqrt: f64,
}

/// Floors that hold for every kernel.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Defaults {
    /// Shortest time of one small kernel, s.
    pub kernel_floor_s: f64,
    /// Share of the bandwidth that elementwise kernels reach.
    pub elementwise_bw_eff: f64,
}

/// The engine whose kernels are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Engine {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
}

impl Engine {
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
        }
    }
}

/// All coefficients of one GPU.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Calibration {
    /// Catalogue name of the GPU the fit was made on.
    pub gpu: String,
    /// Where the measured kernels come from.
    pub derived_from: String,
    /// Datasheet figures.
    pub spec: GpuSpec,
    gemm: BTreeMap<String, Gemm>,
    attn_decode: BTreeMap<String, Decode>,
    attn_ctx: BTreeMap<String, Context>,
    mla_decode: BTreeMap<String, Decode>,
    moe: BTreeMap<String, Moe>,
    allreduce: BTreeMap<String, AllReduce>,
    /// Floors.
    pub defaults: Defaults,
    /// Whether the coefficients were fitted on this very GPU, or on a relative (then intervals are wider).
    #[serde(skip)]
    pub borrowed: bool,
    /// How many times as long everything takes as these coefficients say, where the relative is of another maker.
    #[serde(skip)]
    pub slowdown: Option<f64>,
}

/// Coefficients without what only people read (errors, tables): every plan reads one of these.
const EMBEDDED: [(&str, &str); 5] = [
    (
        "a100_sxm",
        include_str!("../../../../data/calibration/compact/a100_sxm.json"),
    ),
    (
        "l40s",
        include_str!("../../../../data/calibration/compact/l40s.json"),
    ),
    (
        "h100_sxm",
        include_str!("../../../../data/calibration/compact/h100_sxm.json"),
    ),
    (
        "h200_sxm",
        include_str!("../../../../data/calibration/compact/h200_sxm.json"),
    ),
    (
        "b200_sxm",
        include_str!("../../../../data/calibration/compact/b200_sxm.json"),
    ),
];

/// How many times as long steps take on AMD's GPUs as NVIDIA's efficiencies say on their datasheets: the median of nine points
/// of DeepSeek-V3.1 on 8 MI300X under SGLang 0.5.7 (`data/measurements/borrowed_points.csv`); the accuracy page has what it
/// leaves on three points of another model.
const AMD_SLOWDOWN: f64 = 2.4;

/// Streaming multiprocessors (compute units) of a GPU by its catalogue name, as its maker's documents have them; those of an
/// H100 where they are not listed.
fn multiprocessors(name: &str) -> f64 {
    match name {
        "t4" => 40.0,
        "gb10" => 48.0,
        "a30" => 56.0,
        "l4" => 58.0,
        "a5000" => 64.0,
        "rtx-2080-ti" | "rtx-3080" => 68.0,
        "a10" | "a10g" | "titan-rtx" | "quadro-rtx-6000" | "quadro-rtx-8000" => 72.0,
        "rtx-4080" => 76.0,
        "h20" | "h20-141gb" => 78.0,
        "v100-16gb" | "v100-32gb" | "rtx-3080-ti" | "rtx-4080-super" => 80.0,
        "rtx-3090" => 82.0,
        "a40" | "a6000" | "rtx-3090-ti" | "rtx-5080" => 84.0,
        "l20" => 92.0,
        "a100-40gb" | "a100-40gb-pcie" | "a100-80gb-pcie" | "a800-80gb" => 108.0,
        "h100-pcie" => 114.0,
        "rtx-4090" => 128.0,
        "l40" | "rtx-6000-ada" => 142.0,
        "b300" | "gb200" | "gb300" => 148.0,
        "rtx-5090" => 170.0,
        "rtx-pro-6000" => 188.0,
        "mi355x" => 256.0,
        "mi300x" | "mi325x" => 304.0,
        _ => 132.0,
    }
}

impl Calibration {
    /// The calibration fitted on a GPU: `a100_sxm`, `l40s`, `h100_sxm`, `h200_sxm` or `b200_sxm`.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn embedded(name: &str) -> Result<Self> {
        let (_, text) = EMBEDDED
            .iter()
            .find(|(known, _)| *known == name)
            .ok_or_else(|| Error::not_found(format!("no kernel calibration is known for '{name}'")))?;
        serde_json::from_str(text).map_err(|e| {
            Error::unsupported(format!("the embedded calibration of {name} cannot be read: {e}"))
        })
    }

    /// The calibration for a planned GPU; sums over GPUs without NVLink as measured over `PCIe`.
    ///
    /// # Errors
    /// If the GPU's bandwidth or compute rate is not known.
    pub fn of(hardware: &Hardware) -> Result<Self> {
        let (Some(bw), Some(f16)) = (hardware.bandwidth_bytes_per_s, hardware.flops) else {
            return Err(Error::unsupported(format!(
                "bandwidth and compute rate of {} are not known, so its steps cannot be timed",
                hardware.name
            ))
            .hint("give --gpu a catalogue name (see `kvwise gpus`)"));
        };
        let capability = hardware
            .compute_capability
            .map_or(90, |(major, minor)| major * 10 + minor);
        let spec = GpuSpec {
            bw,
            f16,
            f8: (capability >= 89).then_some(2.0 * f16),
            f4: (capability >= 100).then_some(4.0 * f16),
            link: if hardware.pcie_only { 3.2e10 } else { 4.5e11 },
            sms: multiprocessors(&hardware.name),
        };
        let mut found = Self::for_gpu(&hardware.name, capability, Some(spec))?;
        if ["mi", "r9"].iter().any(|line| hardware.name.starts_with(line)) {
            found.slowdown = Some(AMD_SLOWDOWN);
        }
        if hardware.pcie_only && found.gpu != "l40s" {
            found.over_pcie()
        } else {
            Ok(found)
        }
    }

    /// The calibration for a GPU by its catalogue name, else that of its nearest relative by compute capability
    /// (times ten: 80, 89, 90, 100, 120) applied to the GPU's own datasheet figures.
    ///
    /// # Errors
    /// If an embedded calibration cannot be read.
    pub fn for_gpu(catalogue_name: &str, capability: u32, spec: Option<GpuSpec>) -> Result<Self> {
        let name = catalogue_name.to_ascii_lowercase();
        let own = match name.as_str() {
            "h100" | "h100-80gb" | "h100-sxm" | "h100-sxm-80gb" => Some("h100_sxm"),
            "h200" | "h200-sxm" => Some("h200_sxm"),
            "b200" | "b200-sxm" => Some("b200_sxm"),
            "a100" | "a100-80gb" | "a100-sxm" | "a100-sxm-80gb" => Some("a100_sxm"),
            "l40s" => Some("l40s"),
            _ => None,
        };
        if let Some(own) = own {
            return Self::embedded(own);
        }
        let donor = match capability {
            0..=88 => "a100_sxm",
            89 | 120..=129 => "l40s",
            90..=99 => "h100_sxm",
            _ => "b200_sxm",
        };
        let mut borrowed = Self::embedded(donor)?;
        borrowed.borrowed = true;
        if let Some(spec) = spec {
            borrowed.spec = spec;
        }
        Ok(borrowed)
    }

    /// The same GPU with its links over `PCIe` instead of NVLink: collectives as measured on the L40S, which has no other
    /// links.
    ///
    /// # Errors
    /// If the embedded calibration of the L40S cannot be read.
    pub fn over_pcie(mut self) -> Result<Self> {
        let without_nvlink = Self::embedded("l40s")?;
        self.allreduce = without_nvlink.allreduce;
        self.spec.link = self.spec.link.min(without_nvlink.spec.link);
        Ok(self)
    }

    pub(crate) fn gemm(&self, dtype: &str) -> Result<Gemm> {
        self.gemm
            .get(dtype)
            .or_else(|| self.gemm.get("bfloat16"))
            .copied()
            .ok_or_else(|| self.missing("matrix products"))
    }

    pub(crate) fn decode(&self, kv_fp8: bool, head_dim: u64) -> Result<Decode> {
        let size = if head_dim <= 96 { "hd64" } else { "hd128" };
        let dtype = if kv_fp8 { "fp8" } else { "bfloat16" };
        self.attn_decode
            .get(&format!("{dtype}_{size}"))
            .or_else(|| self.attn_decode.get(&format!("bfloat16_{size}")))
            .or_else(|| self.attn_decode.get("bfloat16_hd128"))
            .copied()
            .ok_or_else(|| self.missing("decode attention"))
    }

    pub(crate) fn context(&self, head_dim: u64) -> Result<Context> {
        let size = if head_dim <= 96 { "hd64" } else { "hd128" };
        self.attn_ctx
            .get(size)
            .or_else(|| self.attn_ctx.get("hd128"))
            .copied()
            .ok_or_else(|| self.missing("prefill attention"))
    }

    pub(crate) fn latent_decode(&self, kv_fp8: bool) -> Result<Decode> {
        self.mla_decode
            .get(if kv_fp8 { "fp8" } else { "bfloat16" })
            .or_else(|| self.mla_decode.get("bfloat16"))
            .copied()
            .ok_or_else(|| self.missing("latent attention"))
    }

    /// Coefficients of routed experts that a server may run: the engine's own, and vLLM's where SGLang takes the same
    /// library at large batches (its own table was measured with one kernel for all sizes).
    pub(crate) fn moe(&self, engine: Engine, dtype: &str) -> Result<Vec<Moe>> {
        let of = |engine: Engine, dtype: &str| self.moe.get(&format!("{}_{dtype}", engine.prefix())).copied();
        let mut fits: Vec<Moe> = of(engine, dtype).into_iter().collect();
        if engine != Engine::Vllm || fits.is_empty() {
            fits.extend(of(Engine::Vllm, dtype));
        }
        if dtype == "fp8" {
            // Servers run the same grouped products with one scale a tensor as with one a block: the tables of the
            // former were measured without tuned configurations on Hopper.
            fits.extend(of(engine, "fp8_block").or_else(|| of(Engine::Vllm, "fp8_block")));
        }
        if fits.is_empty() {
            fits.extend(of(engine, "bfloat16"));
        }
        if fits.is_empty() {
            return Err(self.missing("routed experts"));
        }
        Ok(fits)
    }

    pub(crate) fn all_reduce(&self, engine: Engine, ranks: u64) -> Result<AllReduce> {
        let size = match ranks {
            0..=2 => 2,
            3..=4 => 4,
            _ => 8,
        };
        self.allreduce
            .get(&format!("{}_tp{size}", engine.prefix()))
            .or_else(|| self.allreduce.get(&format!("nccl_tp{size}")))
            .copied()
            .ok_or_else(|| self.missing("all-reduce"))
    }

    fn missing(&self, what: &str) -> Error {
        Error::unsupported(format!(
            "the calibration of {} has no coefficients for {what}",
            self.gpu
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_calibration_reads_and_covers_every_kernel() {
        for (name, _) in EMBEDDED {
            let c = Calibration::embedded(name).unwrap();
            for head_dim in [64, 128, 256] {
                c.decode(true, head_dim).unwrap();
                c.context(head_dim).unwrap();
            }
            for dtype in ["bfloat16", "fp8", "nvfp4"] {
                c.gemm(dtype).unwrap();
                c.moe(Engine::Sglang, dtype).unwrap();
            }
            for ranks in [2, 4, 8, 16] {
                c.all_reduce(Engine::Vllm, ranks).unwrap();
            }
            c.latent_decode(true).unwrap();
        }
    }

    /// `KVWISE_WRITE_CALIBRATION=1` writes the compact files anew.
    #[test]
    fn the_embedded_coefficients_are_those_of_the_published_fits() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/calibration");
        for (name, embedded) in EMBEDDED {
            let file = format!("{name}.json");
            let whole = std::fs::read_to_string(folder.join(&file)).unwrap();
            let read: Calibration = serde_json::from_str(&whole).unwrap();
            let compact = serde_json::to_string(&read).unwrap() + "\n";
            if std::env::var_os("KVWISE_WRITE_CALIBRATION").is_some() {
                std::fs::write(folder.join("compact").join(&file), compact).unwrap();
            } else {
                assert_eq!(
                    embedded, compact,
                    "run with KVWISE_WRITE_CALIBRATION=1 to write {file} anew"
                );
            }
        }
    }

    #[test]
    fn sums_over_pcie_take_longer_than_over_nvlink() {
        let nvlink = Calibration::embedded("h100_sxm").unwrap();
        let pcie = nvlink.clone().over_pcie().unwrap();
        for (ranks, bytes) in [(2, 1e5), (2, 1e8), (4, 1e7), (8, 1e7)] {
            let time = |c: &Calibration| {
                super::super::kernel::all_reduce(&c.all_reduce(Engine::Vllm, ranks).unwrap(), bytes)
            };
            assert!(time(&pcie) > time(&nvlink), "{ranks} ranks, {bytes} bytes");
        }
    }

    #[test]
    fn an_unknown_gpu_borrows_the_efficiencies_of_its_generation() {
        let spec = GpuSpec {
            bw: 1.0e12,
            f16: 1.0e14,
            f8: None,
            f4: None,
            link: 3.2e10,
            sms: 128.0,
        };
        let c = Calibration::for_gpu("rtx-4090", 89, Some(spec)).unwrap();
        assert!(c.borrowed);
        assert_eq!(c.gpu, "l40s");
        assert!((c.spec.bw - 1.0e12).abs() < 1.0);
    }
}
