//! The GPUs of this machine: what they are to a planner, and what their free memory means for an engine's start.

use kvwise_core::plan::{Engine, Hardware, Plan};
use kvwise_core::units::{GIB, human_bytes};
use kvwise_core::{Error, Result};
use kvwise_io::gpu::{self, Detected, Device, Tools, user};

/// Share of the driver's figure by which a catalogue row may differ from the driver here: 1 %.
const SAME_PERCENT: u64 = 1;
/// Memory used by others that is worth a word, in bytes.
const WORTH_SAYING: u64 = GIB;

/// Hardware that was found here.
#[derive(Debug, Clone)]
pub struct Here {
    /// As the planner takes it: as many GPUs as there are, each like the tightest one that is used.
    pub hardware: Hardware,
    /// Least free memory of the GPUs that are used, in bytes, where it is known.
    pub free_bytes: Option<u64>,
}

/// Asks this machine's tools.
///
/// # Errors
/// If a tool fails or answers nonsense.
pub fn detect() -> Result<Detected> {
    gpu::detect(&Tools::from_env())
}

/// What `--gpu auto` means for so many ranks.
///
/// # Errors
/// If there is no GPU, fewer than the ranks need, or a tool fails.
pub fn auto(ranks: u64, wanted: Option<u64>, warnings: &mut Vec<String>) -> Result<Here> {
    of(detect()?, ranks, wanted, warnings).map_err(|e| e.at("--gpu auto"))
}

fn of(found: Detected, ranks: u64, wanted: Option<u64>, warnings: &mut Vec<String>) -> Result<Here> {
    warnings.extend(found.notes);
    let mut devices = found.devices;
    let Some(first) = devices.first() else {
        return Err(Error::not_found("no GPU is visible on this machine")
            .hint("asked for were nvidia-smi, amd-smi, rocm-smi and xpu-smi")
            .hint("--gpu NAME plans for any machine; `kvwise gpus` lists the names"));
    };
    let maker = first.maker;
    if devices.iter().any(|d| d.maker != maker) {
        devices.retain(|d| d.maker == maker);
        warnings.push(format!(
            "GPUs of several makers are here; an engine uses those of one: the {} of {} are planned with",
            devices.len(),
            devices[0].title()
        ));
    }
    let there = devices.len() as u64;
    let needed = wanted.unwrap_or(ranks).max(ranks);
    if needed > there {
        return Err(Error::input(format!(
            "{needed} GPUs are asked for, but {there} are visible on this machine"
        ))
        .hint("lower the parallel sizes, or plan for another machine with --gpu NAME"));
    }
    // an engine takes the first ones, in the order that the driver tells
    let used = &devices[..usize::try_from(ranks).unwrap_or(devices.len()).min(devices.len())];
    let Some(tightest) = used.iter().min_by_key(|d| d.total_bytes) else {
        return Err(Error::input("the parallel sizes use no GPU"));
    };
    if used.iter().any(|d| d.title() != tightest.title()) {
        let mut titles: Vec<String> = used.iter().map(Device::title).collect();
        titles.dedup();
        warnings.push(format!(
            "different GPUs are used together ({}): planned by the tightest, {}",
            titles.join(", "),
            tightest.title()
        ));
    }
    Ok(Here {
        hardware: hardware(tightest, wanted.unwrap_or(there), warnings),
        free_bytes: used.iter().map(|d| d.free_bytes).min().flatten(),
    })
}

/// A device as the planner takes it: the catalogue's row where it agrees with the driver.
fn hardware(device: &Device, gpus: u64, warnings: &mut Vec<String>) -> Hardware {
    let total = device.total_bytes;
    let Some(row) = device.row() else {
        let path = user::path().map_or_else(|| "gpus.toml".to_owned(), |p| p.display().to_string());
        warnings.push(format!(
            "{} is not in the catalogue: its memory is the driver's figure, speeds are unknown (add it to {path})",
            device.title()
        ));
        let mut hardware = Hardware::custom(total, gpus);
        hardware.name = device.title();
        hardware.unified = device.unified;
        hardware.compute_capability = device
            .compute
            .as_deref()
            .and_then(|c| c.split_once('.'))
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        return hardware;
    };
    let mut hardware = Hardware::of(row, gpus);
    let known = row.memory_bytes;
    // on shared memory the system's total is what PyTorch sees, and differs between machines
    if device.unified {
        hardware.driver_bytes = total;
        hardware.torch_bytes = total;
        hardware.torch_known = true;
    } else if device.total_is_measured && total.abs_diff(known) > known / 100 * SAME_PERCENT {
        warnings.push(format!(
            "{} has {} here and {} in the catalogue: the driver's figure is taken",
            device.title(),
            human_bytes(total),
            human_bytes(known)
        ));
        let share = u128::from(hardware.torch_bytes) * u128::from(total) / u128::from(known.max(1));
        hardware.torch_bytes = u64::try_from(share).unwrap_or(total).min(total);
        hardware.driver_bytes = total;
        hardware.torch_known = false;
    }
    hardware
}

/// Highest `--gpu-memory-utilization`, in hundredths, whose budget is free now.
pub fn highest_utilization(free_bytes: u64, torch_bytes: u64) -> f64 {
    let hundredths = u128::from(free_bytes) * 100 / u128::from(torch_bytes.max(1));
    u32::try_from(hundredths.min(100)).map_or(1.0, f64::from) / 100.0
}

/// vLLM's first check at its start (0.32.0, `v1/worker/utils.py`, `request_memory`): the budget, its utilisation times
/// the GPU's total, must be free. What others use is outside of the budget but counts here.
pub fn check_start(plan: &mut Plan, engine: &Engine, hardware: &Hardware, free_bytes: u64) {
    if !matches!(engine, Engine::Vllm(_)) {
        return;
    }
    let budget = plan.memory.budget_bytes;
    if free_bytes < budget {
        let reason = format!(
            "{} of {} are free on the GPU now, and vLLM starts only if its whole budget of {} is",
            human_bytes(free_bytes),
            human_bytes(hardware.torch_bytes),
            human_bytes(budget)
        );
        plan.feasibility.warnings.push(format!(
            "--gpu-memory-utilization {:.2} is the highest that starts now; else end what uses the GPU",
            highest_utilization(free_bytes, hardware.torch_bytes)
        ));
        if plan.feasibility.refused.is_none() {
            plan.verdict = format!("does not start: {reason}");
            plan.feasibility.refused = Some(reason);
        }
        plan.feasibility.fits = false;
        return;
    }
    let used = hardware.driver_bytes.saturating_sub(free_bytes);
    // part of the driver's total is never free: only what PyTorch would see is somebody's
    let used = used.saturating_sub(hardware.driver_bytes.saturating_sub(hardware.torch_bytes));
    if used > WORTH_SAYING {
        plan.feasibility.warnings.push(format!(
            "others use {} of the GPU now: the budget is still free, but nothing is left for them to grow beyond {}",
            human_bytes(used),
            human_bytes(hardware.torch_bytes.saturating_sub(budget))
        ));
    }
}

#[cfg(test)]
mod tests {
    use kvwise_io::gpu::Maker;

    use super::*;

    fn device(name: &str, total_gib: u64, free_gib: u64) -> Device {
        Device {
            maker: if name.starts_with("AMD") {
                Maker::Amd
            } else {
                Maker::Nvidia
            },
            index: 0,
            name: name.to_owned(),
            uuid: None,
            mig_profile: None,
            total_bytes: total_gib * GIB,
            total_is_measured: true,
            free_bytes: Some(free_gib * GIB),
            compute: Some("9.0".to_owned()),
            unified: false,
        }
    }

    fn here(devices: Vec<Device>, ranks: u64, wanted: Option<u64>) -> (Result<Here>, Vec<String>) {
        let mut warnings = Vec::new();
        let found = Detected {
            devices,
            ..Detected::default()
        };
        (of(found, ranks, wanted, &mut warnings), warnings)
    }

    #[test]
    fn several_different_gpus_are_planned_by_the_tightest_that_is_used() {
        let devices = || {
            vec![
                device("NVIDIA A40", 45, 40),
                device("NVIDIA L4", 22, 20),
                device("NVIDIA A2", 15, 15),
            ]
        };
        let (two, warnings) = here(devices(), 2, None);
        let two = two.unwrap();
        assert_eq!((two.hardware.name.as_str(), two.hardware.gpus), ("l4", 3));
        assert_eq!(two.free_bytes, Some(20 * GIB));
        assert!(
            warnings[0].contains("planned by the tightest, NVIDIA L4"),
            "{warnings:?}"
        );
        let (one, warnings) = here(devices(), 1, None);
        assert_eq!(one.unwrap().hardware.name, "a40");
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn makers_are_not_mixed_and_missing_gpus_are_an_error() {
        let (mixed, warnings) = here(
            vec![
                device("NVIDIA L4", 22, 20),
                device("AMD Instinct MI300X", 191, 190),
            ],
            1,
            None,
        );
        assert_eq!(mixed.unwrap().hardware.gpus, 1);
        assert!(warnings[0].contains("several makers"), "{warnings:?}");
        let (few, _) = here(vec![device("NVIDIA L4", 22, 20)], 4, None);
        assert!(
            few.unwrap_err()
                .to_string()
                .contains("4 GPUs are asked for, but 1")
        );
        assert!(
            here(Vec::new(), 1, None)
                .0
                .unwrap_err()
                .to_string()
                .contains("no GPU is visible")
        );
    }

    #[test]
    fn the_drivers_figure_wins_over_a_catalogue_that_differs() {
        let (other, warnings) = here(vec![device("NVIDIA L4", 40, 40)], 1, None);
        let other = other.unwrap().hardware;
        assert_eq!(other.driver_bytes, 40 * GIB);
        assert!(other.torch_bytes < other.driver_bytes && !other.torch_known);
        assert!(warnings[0].contains("the driver's figure is taken"));
        let (unknown, warnings) = here(vec![device("NVIDIA X9000", 40, 40)], 1, None);
        let unknown = unknown.unwrap().hardware;
        assert_eq!(
            (unknown.name.as_str(), unknown.compute_capability),
            ("NVIDIA X9000", Some((9, 0)))
        );
        assert!(warnings[0].contains("not in the catalogue"));
    }

    #[test]
    fn the_highest_utilisation_is_rounded_down() {
        assert!((highest_utilization(79, 80) - 0.98).abs() < 1e-9);
        assert!((highest_utilization(90, 80) - 1.0).abs() < 1e-9);
        assert!(highest_utilization(0, 80) < 1e-9);
        assert!(highest_utilization(5, 0) >= 1.0);
    }
}
