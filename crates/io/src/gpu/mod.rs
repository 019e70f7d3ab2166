//! Which GPUs this machine has, and how much of their memory others use.
//!
//! Makers' tools are asked, not guessed: NVIDIA's management library where this program was built with the feature
//! `nvml`, else `nvidia-smi`; `amd-smi`, else `rocm-smi`; `xpu-smi`; `sysctl` on Apple's systems. A tool that is not there is no
//! error, one that fails or answers nonsense is.

mod amd;
mod apple;
mod intel;
mod nvidia;
#[cfg(feature = "nvml")]
mod nvml;
mod tool;
pub mod user;
mod visible;

pub use tool::Tools;

use kvwise_core::{Error, Result, hardware};

/// Most devices that one machine is taken to have.
const MAX_DEVICES: usize = 1024;

/// Who makes a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// NVIDIA.
    Nvidia,
    /// AMD.
    Amd,
    /// Intel.
    Intel,
    /// Apple.
    Apple,
}

/// A GPU, or a slice of one that engines see as a GPU of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Who makes it.
    pub maker: Maker,
    /// Number of the whole GPU, as the maker's tool counts.
    pub index: u32,
    /// Name as the driver says it.
    pub name: String,
    /// Identifier as the driver says it.
    pub uuid: Option<String>,
    /// Profile of a multi-instance slice, e.g. `1g.10gb`.
    pub mig_profile: Option<String>,
    /// All memory, in bytes.
    pub total_bytes: u64,
    /// Whether `total_bytes` was told by a tool (else it is the catalogue's, for a slice).
    pub total_is_measured: bool,
    /// Memory that nobody uses now, in bytes, where it is known.
    pub free_bytes: Option<u64>,
    /// CUDA compute capability or target name, where it is known.
    pub compute: Option<String>,
    /// Whether it shares the host's memory.
    pub unified: bool,
}

impl Device {
    /// Its row of the catalogue (the user's own rows included), if the driver's name is one.
    pub fn row(&self) -> Option<&'static hardware::Gpu> {
        let name = match &self.mig_profile {
            None => self.name.clone(),
            // media engines (+me, -me, +gfx) change nothing about the memory
            Some(profile) => {
                let plain = profile.split(['+', '-']).next().unwrap_or(profile);
                format!("{} MIG {plain}", self.name)
            }
        };
        user::find(&name).ok()
    }

    /// What it is called: the driver's name, and the slice's profile.
    pub fn title(&self) -> String {
        match &self.mig_profile {
            None => self.name.clone(),
            Some(profile) => format!("{} MIG {profile}", self.name),
        }
    }
}

/// What was found on a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detected {
    /// Devices that a program started here would see, in the tools' order.
    pub devices: Vec<Device>,
    /// Tools that answered.
    pub sources: Vec<&'static str>,
    /// What the user should know, one sentence each.
    pub notes: Vec<String>,
}

/// Asks the tools.
///
/// # Errors
/// If a tool that is there fails or answers what cannot be read, or a variable that hides devices cannot be read.
pub fn detect(tools: &Tools) -> Result<Detected> {
    let mut found = Detected::default();
    nvidia::detect(tools, &mut found)?;
    amd::detect(tools, &mut found)?;
    intel::detect(tools, &mut found)?;
    if found.devices.is_empty() {
        apple::detect(tools, &mut found)?;
    }
    if found.devices.len() > MAX_DEVICES {
        return Err(Error::input(format!(
            "{} GPUs were reported, more than {MAX_DEVICES}",
            found.devices.len()
        )));
    }
    Ok(found)
}

// the stand-ins are shell scripts
#[cfg(all(test, unix))]
mod tests;
