//! The GPUs of a deployment: from the catalogue, the user's file, this machine or a size.

use kvwise_core::plan::Hardware;
use kvwise_core::units::{GIB, human_bytes, parse_bytes};
use kvwise_core::{Error, Result};
use kvwise_io::gpu::user;

use super::super::gpus;
use super::Deployment;

impl Deployment {
    /// GPUs for this many ranks, and the free memory of the tightest one where this machine was asked.
    pub(super) fn hardware(&self, ranks: u64, warnings: &mut Vec<String>) -> Result<(Hardware, Option<u64>)> {
        let gpus = self.gpus.unwrap_or(ranks);
        if gpus == 0 {
            return Err(Error::input("--gpus is 0, expected at least 1"));
        }
        let memory = self
            .gpu_memory
            .as_deref()
            .map(|text| parse_bytes(text).map_err(|e| e.at("--gpu-memory")))
            .transpose()?;
        if let Some(bytes) = memory
            && !(GIB / 4..=1 << 50).contains(&bytes)
        {
            return Err(Error::input(format!(
                "--gpu-memory is {}, expected at least 256 MiB and at most 1 PiB",
                human_bytes(bytes)
            )));
        }
        let mut free_bytes = None;
        let mut hardware = match (&self.gpu, memory) {
            (Some(name), _) if name.eq_ignore_ascii_case("auto") => {
                let here = gpus::auto(ranks, self.gpus, warnings)?;
                free_bytes = here.free_bytes;
                here.hardware
            }
            (Some(name), Some(bytes)) if name.eq_ignore_ascii_case("cpu") => Hardware::cpu(bytes, gpus),
            (Some(name), None) if name.eq_ignore_ascii_case("cpu") => {
                return Err(Error::input("--gpu cpu: how much memory has the node?")
                    .hint("--gpu cpu --gpu-memory 64GiB"));
            }
            (Some(name), _) => Hardware::of(user::find(name)?, gpus),
            (None, Some(bytes)) => Hardware::custom(bytes, gpus),
            (None, None) => {
                return Err(
                    Error::input("which GPU? give --gpu, or --gpu-memory for any other card").hint(
                        "examples: --gpu h100, --gpu auto, --gpu-memory 48GiB; `kvwise gpus` lists all",
                    ),
                );
            }
        };
        if let Some(bytes) = memory {
            hardware.driver_bytes = bytes;
            hardware.torch_bytes = bytes;
            hardware.torch_known = true;
        }
        if let Some(link) = &self.interconnect {
            hardware.pcie_only = match link.to_ascii_lowercase().as_str() {
                "pcie" => true,
                "nvlink" => false,
                other => {
                    return Err(
                        Error::input(format!("--interconnect is \"{other}\"")).hint("write pcie or nvlink")
                    );
                }
            };
            hardware.link_given = true;
        }
        let gpus = hardware.gpus;
        if gpus > ranks {
            warnings.push(format!(
                "{gpus} GPUs are there, but the parallel sizes use {ranks}; --tensor-parallel-size {gpus} would use all"
            ));
        }
        Ok((hardware, free_bytes))
    }
}
