//! The catalogues as reports.

use kvwise_core::arch::Config;
use kvwise_core::catalogue::Entry;
use kvwise_core::hardware::Gpu;
use kvwise_core::{Result, units};
use serde::Serialize;

use super::table::{Align, Grid};

/// GPUs (schema `kvwise.gpus/1`).
#[derive(Debug, Serialize)]
pub struct Gpus {
    schema: &'static str,
    gpus: Vec<GpuRow>,
}

/// One GPU.
#[derive(Debug, Serialize)]
struct GpuRow {
    name: &'static str,
    title: &'static str,
    aliases: &'static [String],
    memory_bytes: u64,
    torch_memory_bytes: Option<u64>,
    unified_memory: bool,
    compute: &'static str,
    bandwidth_bytes_per_s: f64,
    fp16_tflops: f64,
    fp8_tflops: Option<f64>,
    int8_tops: Option<f64>,
    fp4_tflops: Option<f64>,
    nvlink_bytes_per_s: Option<f64>,
    pcie_bytes_per_s: f64,
    source: &'static str,
    date: &'static str,
}

impl Gpus {
    /// These rows of the catalogue.
    pub fn of(gpus: &[&'static Gpu]) -> Self {
        Self {
            schema: "kvwise.gpus/1",
            gpus: gpus
                .iter()
                .map(|gpu| GpuRow {
                    name: &gpu.name,
                    title: &gpu.title,
                    aliases: &gpu.aliases,
                    memory_bytes: gpu.memory_bytes,
                    torch_memory_bytes: gpu.torch_bytes,
                    unified_memory: gpu.unified,
                    compute: &gpu.compute,
                    bandwidth_bytes_per_s: gpu.bandwidth_bytes_per_s,
                    fp16_tflops: gpu.tflops.fp16,
                    fp8_tflops: gpu.tflops.fp8,
                    int8_tops: gpu.tflops.int8,
                    fp4_tflops: gpu.tflops.fp4,
                    nvlink_bytes_per_s: gpu.nvlink_bytes_per_s,
                    pcie_bytes_per_s: gpu.pcie_bytes_per_s,
                    source: &gpu.source,
                    date: &gpu.date,
                })
                .collect(),
        }
    }

    /// As rows and columns.
    pub fn grid(&self) -> Grid {
        let mut grid = Grid::new(&[
            ("gpu", Align::Left),
            ("driver GiB", Align::Right),
            ("torch GiB", Align::Right),
            ("GB/s", Align::Right),
            ("16-bit", Align::Right),
            ("fp8", Align::Right),
            ("fp4", Align::Right),
            ("NVLink", Align::Right),
            ("compute", Align::Right),
        ]);
        let number = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.0}"));
        for gpu in &self.gpus {
            grid.row([
                gpu.name.to_owned(),
                format!("{:.2}", units::gib(gpu.memory_bytes)),
                gpu.torch_memory_bytes
                    .map_or("-".to_owned(), |bytes| format!("{:.2}", units::gib(bytes))),
                number(Some(gpu.bandwidth_bytes_per_s / 1e9)),
                number(Some(gpu.fp16_tflops)),
                number(gpu.fp8_tflops),
                number(gpu.fp4_tflops),
                number(gpu.nvlink_bytes_per_s.map(|b| b / 1e9)),
                gpu.compute.to_owned(),
            ]);
        }
        grid
    }
}

/// Models (schema `kvwise.models/1`).
#[derive(Debug, Serialize)]
pub struct Models {
    schema: &'static str,
    models: Vec<ModelRow>,
}

/// One model.
#[derive(Debug, Serialize)]
struct ModelRow {
    id: &'static str,
    aliases: Vec<&'static str>,
    architecture: Option<String>,
    model_type: Option<String>,
    source: &'static str,
    date: &'static str,
    note: Option<&'static str>,
}

impl Models {
    /// These rows of the catalogue.
    ///
    /// # Errors
    /// Never for the shipped rows.
    pub fn of(entries: &[Entry]) -> Result<Self> {
        let models = entries
            .iter()
            .map(|entry| {
                let config: Config = entry.config()?;
                let provenance = entry.provenance()?;
                Ok(ModelRow {
                    id: entry.id,
                    aliases: entry.aliases.clone(),
                    architecture: config
                        .strs("architectures")?
                        .and_then(|list| list.first().map(|&s| s.to_owned())),
                    model_type: config.str("model_type")?.map(str::to_owned),
                    source: provenance.source,
                    date: provenance.date,
                    note: provenance.note,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            schema: "kvwise.models/1",
            models,
        })
    }

    /// As rows and columns.
    pub fn grid(&self) -> Grid {
        let mut grid = Grid::new(&[("model", Align::Left), ("architecture", Align::Left)]);
        for model in &self.models {
            grid.row([
                model.id.to_owned(),
                model.architecture.clone().unwrap_or_default(),
            ]);
        }
        grid
    }
}
