//! NVIDIA's GPUs, as the driver's own library tells them; loaded when asked, never linked.

use kvwise_core::{Error, Result};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use super::{Device, Maker};

/// Every device; `None` if this machine has no such library or no driver.
///
/// # Errors
/// If the library is there but fails.
pub(super) fn devices() -> Result<Option<Vec<Device>>> {
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound | NvmlError::DriverNotLoaded) => {
            return Ok(None);
        }
        Err(e) => return Err(failed(&e)),
    };
    let mut devices = Vec::new();
    for index in 0..nvml.device_count().map_err(|e| failed(&e))? {
        let gpu = nvml.device_by_index(index).map_err(|e| failed(&e))?;
        let whole = read(&gpu, index)?;
        let sliced = gpu.mig_mode().is_ok_and(|mode| mode.current != 0);
        if !sliced {
            devices.push(whole);
            continue;
        }
        for slice in 0..gpu.mig_device_count().map_err(|e| failed(&e))? {
            // the count is of places, not all of which are taken
            let Ok(slice) = gpu.mig_device_by_index(slice) else {
                continue;
            };
            let mut device = read(&slice, index)?;
            if let Some((name, profile)) = device.name.clone().split_once(" MIG ") {
                name.clone_into(&mut device.name);
                device.mig_profile = Some(profile.to_owned());
            }
            device.compute.clone_from(&whole.compute);
            devices.push(device);
        }
    }
    Ok(Some(devices))
}

fn read(device: &nvml_wrapper::Device, index: u32) -> Result<Device> {
    // GPUs that share the host's memory have none of their own to tell
    let memory = device.memory_info().ok();
    Ok(Device {
        maker: Maker::Nvidia,
        index,
        name: device.name().map_err(|e| failed(&e))?,
        uuid: device.uuid().ok(),
        mig_profile: None,
        total_bytes: memory.as_ref().map_or(0, |m| m.total),
        total_is_measured: true,
        free_bytes: memory.as_ref().map(|m| m.free),
        compute: device
            .cuda_compute_capability()
            .ok()
            .map(|c| format!("{}.{}", c.major, c.minor)),
        unified: false,
    })
}

fn failed(e: &NvmlError) -> Error {
    Error::io(format!("NVIDIA's management library: {e}")).hint("does `nvidia-smi` answer?")
}
