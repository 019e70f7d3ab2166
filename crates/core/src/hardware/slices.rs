//! Slices of multi-instance GPUs as GPUs of their own.

use serde::Deserialize;

use super::{Gpu, Tflops};
use crate::units::{GIB, MIB};
use crate::{Error, Result};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    mig: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// Names of the whole GPUs.
    gpus: Vec<String>,
    /// Multiprocessors of a whole GPU.
    sms: u32,
    /// Memory slices of a whole GPU; each has its own part of the bandwidth.
    memory_slices: u32,
    profiles: Vec<Profile>,
    source: String,
    date: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    name: String,
    memory_gib: f64,
    sms: u32,
    memory_slices: u32,
}

/// The GPUs, each followed by its slices.
///
/// # Errors
/// If a slice is of a GPU that is not there, or larger than it.
pub(super) fn with_slices(whole: Vec<Gpu>, text: &str) -> Result<Vec<Gpu>> {
    let file: File = toml::from_str(text).map_err(|e| Error::input(format!("mig.toml: {e}")))?;
    if let Some(name) = file
        .mig
        .iter()
        .flat_map(|row| &row.gpus)
        .find(|name| !whole.iter().any(|gpu| gpu.name == **name))
    {
        return Err(Error::input(format!("mig.toml: there is no GPU \"{name}\"")));
    }
    let mut every = Vec::new();
    for gpu in whole {
        let mut slices = Vec::new();
        for row in file.mig.iter().filter(|row| row.gpus.contains(&gpu.name)) {
            for profile in &row.profiles {
                slices.push(slice(&gpu, row, profile)?);
            }
        }
        every.push(gpu);
        every.append(&mut slices);
    }
    Ok(every)
}

fn slice(gpu: &Gpu, row: &Row, profile: &Profile) -> Result<Gpu> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a two-decimal figure of the catalogue, far below 2^53"
    )]
    let memory_bytes = (profile.memory_gib * GIB as f64) as u64 / MIB * MIB;
    let sound = (1..=row.sms).contains(&profile.sms)
        && (1..=row.memory_slices).contains(&profile.memory_slices)
        && memory_bytes > 0
        && memory_bytes <= gpu.memory_bytes;
    if !sound {
        return Err(Error::input(format!(
            "mig.toml: {} of {} is no part of it",
            profile.name, gpu.name
        )));
    }
    let compute = f64::from(profile.sms) / f64::from(row.sms);
    let memory = f64::from(profile.memory_slices) / f64::from(row.memory_slices);
    Ok(Gpu {
        name: format!("{}-{}", gpu.name, profile.name),
        title: format!("{} MIG {}", gpu.title, profile.name),
        aliases: gpu
            .aliases
            .iter()
            .map(|alias| format!("{alias} {}", profile.name))
            .collect(),
        memory_bytes,
        // The driver's own share is already taken off a slice: PyTorch sees all of it.
        torch_bytes: Some(memory_bytes),
        mig_profile: Some(profile.name.clone()),
        bandwidth_bytes_per_s: gpu.bandwidth_bytes_per_s * memory,
        tflops: Tflops {
            fp16: gpu.tflops.fp16 * compute,
            fp8: gpu.tflops.fp8.map(|t| t * compute),
            int8: gpu.tflops.int8.map(|t| t * compute),
            fp4: gpu.tflops.fp4.map(|t| t * compute),
        },
        // Slices reach each other neither by NVLink nor by PCIe (MIG user guide, "Deployment considerations").
        nvlink_bytes_per_s: None,
        source: row.source.clone(),
        date: row.date.clone(),
        ..gpu.clone()
    })
}
