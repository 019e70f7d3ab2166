//! The GPUs of this machine as a report.

use kvwise_core::engine::vllm::version::{Rules, Version};
use kvwise_core::units;
use kvwise_io::gpu::{Detected, Device};
use serde::Serialize;

use super::table::{Align, Grid};
use crate::usecase::gpus::highest_utilization;

/// GPUs that were found (schema `kvwise.detected_gpus/1`).
#[derive(Debug, Serialize)]
pub struct Report {
    schema: &'static str,
    sources: Vec<&'static str>,
    gpus: Vec<Row>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    index: u32,
    name: String,
    mig_profile: Option<String>,
    uuid: Option<String>,
    /// Name for `--gpu`.
    catalogue_name: Option<&'static str>,
    memory_bytes: u64,
    /// `driver`, or `catalogue` where the driver does not tell it.
    memory_source: &'static str,
    free_bytes: Option<u64>,
    unified_memory: bool,
    compute: Option<String>,
    /// Highest `--gpu-memory-utilization` that vLLM's start-up check allows now.
    highest_gpu_memory_utilization: Option<f64>,
}

impl Report {
    /// Of what was found.
    pub fn of(found: &Detected) -> Self {
        Self {
            schema: "kvwise.detected_gpus/1",
            sources: found.sources.clone(),
            gpus: found.devices.iter().map(row).collect(),
            notes: found.notes.iter().cloned().chain(refusals(found)).collect(),
        }
    }

    /// What the user should know, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// As rows and columns.
    pub fn grid(&self) -> Grid {
        let mut grid = Grid::new(&[
            ("#", Align::Right),
            ("GPU", Align::Left),
            ("--gpu", Align::Left),
            ("GiB", Align::Right),
            ("free", Align::Right),
            ("highest utilisation", Align::Right),
        ]);
        for gpu in &self.gpus {
            let profile = gpu
                .mig_profile
                .as_ref()
                .map(|p| format!(" MIG {p}"))
                .unwrap_or_default();
            grid.row([
                gpu.index.to_string(),
                format!("{}{profile}", gpu.name),
                gpu.catalogue_name.unwrap_or("-").to_owned(),
                format!("{:.2}", units::gib(gpu.memory_bytes)),
                gpu.free_bytes
                    .map_or("-".to_owned(), |b| format!("{:.2}", units::gib(b))),
                gpu.highest_gpu_memory_utilization
                    .map_or("-".to_owned(), |u| format!("{u:.2}")),
            ]);
        }
        grid
    }
}

/// The GPUs that vLLM's start-up check would refuse at its default utilisation, because others use them.
fn refusals(found: &Detected) -> Vec<String> {
    let default = Rules::of(Version::NEWEST).gpu_memory_utilization;
    let lines = found.devices.iter().map(|device| (device, row(device)));
    lines
        .filter_map(|(device, row)| {
            let highest = row.highest_gpu_memory_utilization.filter(|&u| u < default)?;
            Some(format!(
                "GPU {} ({}): {} are free, and vLLM wants its whole budget free when it starts, {default} of the GPU by default: \
                 give at most --gpu-memory-utilization {highest:.2}, or end what uses it",
                device.index,
                device.title(),
                units::human_bytes(device.free_bytes?)
            ))
        })
        .collect()
}

fn row(device: &Device) -> Row {
    let known = device.row();
    let torch_bytes = known
        .filter(|_| !device.unified)
        .map_or(device.total_bytes, |row| row.torch_total().0);
    Row {
        index: device.index,
        name: device.name.clone(),
        mig_profile: device.mig_profile.clone(),
        uuid: device.uuid.clone(),
        catalogue_name: known.map(|row| row.name.as_str()),
        memory_bytes: device.total_bytes,
        memory_source: if device.total_is_measured {
            "driver"
        } else {
            "catalogue"
        },
        free_bytes: device.free_bytes,
        unified_memory: device.unified,
        compute: device.compute.clone(),
        highest_gpu_memory_utilization: device
            .free_bytes
            .map(|free| highest_utilization(free, torch_bytes)),
    }
}
