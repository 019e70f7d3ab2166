//! NVIDIA's GPUs, as `nvidia-smi` lists them.

use kvwise_core::units::MIB;
use kvwise_core::{Error, Result};

use super::visible::visible;
use super::{Detected, Device, Maker, Tools, user};

const TOOL: &str = "nvidia-smi";
/// Columns asked for; drivers before 470 do not know all of them.
const COLUMNS: &str = "index,name,uuid,memory.total,memory.free,mig.mode.current,compute_cap";
const OLD_COLUMNS: &str = "index,name,uuid,memory.total,memory.free,mig.mode.current";

/// Adds NVIDIA's devices to what was found.
pub(super) fn detect(tools: &Tools, found: &mut Detected) -> Result<()> {
    #[cfg(feature = "nvml")]
    if tools.may_use_libraries()
        && let Some(devices) = super::nvml::devices()?
    {
        found.sources.push("NVML");
        return take(tools, devices, found);
    }
    let Some(devices) = by_tool(tools, &mut found.notes).map_err(explained)? else {
        return Ok(());
    };
    found.sources.push(TOOL);
    take(tools, devices, found)
}

fn take(tools: &Tools, mut devices: Vec<Device>, found: &mut Detected) -> Result<()> {
    for device in &mut devices {
        if device.total_bytes == 0 {
            complete(device, found)?;
        }
    }
    if let Some(value) = tools.variable("CUDA_VISIBLE_DEVICES") {
        let different = devices.iter().any(|d| d.name != devices[0].name);
        if different && tools.variable("CUDA_DEVICE_ORDER").as_deref() != Some("PCI_BUS_ID") {
            found.notes.push(
                "CUDA counts different GPUs from the fastest, nvidia-smi by bus: set CUDA_DEVICE_ORDER=PCI_BUS_ID for one order"
                    .to_owned(),
            );
        }
        devices = visible(&devices, "CUDA_VISIBLE_DEVICES", &value, &mut found.notes);
    }
    found.devices.extend(devices);
    Ok(())
}

/// Fills in the memory where the tool does not tell it: slices, and GPUs that share the host's memory.
fn complete(device: &mut Device, found: &mut Detected) -> Result<()> {
    let row = device.row();
    device.total_is_measured = false;
    if device.mig_profile.is_some() {
        let Some(row) = row else {
            return Err(Error::unsupported(format!(
                "the memory of the slice {} is not told by {TOOL} and not in the catalogue",
                device.title()
            ))
            .hint(format!(
                "give it with --gpu-memory (see `nvidia-smi`), or add it to {}",
                user::describe()
            )));
        };
        device.total_bytes = row.memory_bytes;
        found.notes.push(format!(
            "{}: {TOOL} does not tell the memory of a slice, the catalogue's {} is taken",
            device.title(),
            kvwise_core::units::human_bytes(row.memory_bytes)
        ));
        return Ok(());
    }
    let host = host_memory()?;
    let Some((total, available)) = host else {
        return Err(Error::unsupported(format!(
            "{TOOL} does not tell the memory of {}, and this system has no /proc/meminfo",
            device.name
        ))
        .hint("give it with --gpu-memory"));
    };
    device.unified = true;
    device.total_is_measured = true;
    device.total_bytes = total;
    device.free_bytes = Some(available);
    found.notes.push(format!(
        "{} shares the host's memory: what the system and other programs use counts against the engine",
        device.name
    ));
    Ok(())
}

/// Total and available bytes of the host's memory, as Linux tells them.
fn host_memory() -> Result<Option<(u64, u64)>> {
    let path = std::path::Path::new("/proc/meminfo");
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = crate::model::read_capped(path, 1 << 20)?;
    let text = String::from_utf8_lossy(&bytes);
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Ok(value("MemTotal:").zip(value("MemAvailable:")))
}

/// What the driver prints where its module is loaded and no GPU is bound to it.
const NOTHING: &str = "No devices were found";

/// What the driver's complaints mean, and what ends them.
const COMPLAINTS: [(&str, &str); 6] = [
    (
        "Driver/library version mismatch",
        "the driver was updated while it was loaded: reboot, or unload and load its kernel modules; an engine would fail the same way",
    ),
    (
        "Failed to initialize NVML: Unknown Error",
        "a container lost its devices (after `systemctl daemon-reload` on the host, say): start the container anew",
    ),
    (
        "Failed to initialize NVML: Insufficient Permissions",
        "the device files /dev/nvidia* are not open to this user or container",
    ),
    (
        "communicate with the NVIDIA driver",
        "the driver's kernel module is not loaded: install it for the running kernel, or load it with `modprobe nvidia`",
    ),
    (
        "Unable to determine the device handle",
        "a GPU does not answer any more (look for Xid in dmesg): reset it or reboot",
    ),
    (
        "GPU is lost",
        "a GPU does not answer any more (look for Xid in dmesg): reset it or reboot",
    ),
];

/// Says of a complaint of the driver what it means.
fn explained(error: Error) -> Error {
    let said = error.to_string();
    match COMPLAINTS.iter().find(|(words, _)| said.contains(words)) {
        Some((_, meaning)) => error.hint(*meaning),
        None => error,
    }
}

fn by_tool(tools: &Tools, notes: &mut Vec<String>) -> Result<Option<Vec<Device>>> {
    let query = |columns: &str| {
        let query = format!("--query-gpu={columns}");
        tools.run(TOOL, &[&query, "--format=csv,noheader,nounits"])
    };
    let text = match query(COLUMNS) {
        Err(e) if e.to_string().contains("not a valid field") => query(OLD_COLUMNS)?,
        Err(e) if e.to_string().contains(NOTHING) => Some(NOTHING.to_owned()),
        answer => answer?,
    };
    let Some(text) = text else { return Ok(None) };
    if text.trim_start().starts_with(NOTHING) {
        notes.push(format!("{TOOL}: the driver is loaded, but no GPU is bound to it"));
        return Ok(Some(Vec::new()));
    }
    let mut gpus = table(&text)?;
    if gpus.iter().any(|(_, sliced)| *sliced) {
        let list = tools.run(TOOL, &["-L"])?.unwrap_or_default();
        let devices = slices(&gpus, &list)?;
        for (gpu, _) in gpus.iter().filter(|(_, sliced)| *sliced) {
            if !devices.iter().any(|d| d.index == gpu.index) {
                notes.push(format!(
                    "GPU {} ({}) is in MIG mode without a slice, so no engine can use it: make slices with `{TOOL} mig -cgi`, \
                     or end the mode with `{TOOL} -i {} -mig 0`",
                    gpu.index, gpu.name, gpu.index
                ));
            }
        }
        return Ok(Some(devices));
    }
    Ok(Some(gpus.drain(..).map(|(device, _)| device).collect()))
}

/// Reads the rows of `--query-gpu`: each device, and whether it is cut into slices.
pub(super) fn table(text: &str) -> Result<Vec<(Device, bool)>> {
    let mut rows = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let wrong = |what: &str| {
            let shown: String = line.chars().filter(|c| !c.is_control()).take(200).collect();
            Error::input(format!("{TOOL}: {what} in the line \"{shown}\""))
        };
        let [index, name, uuid, total, free, mig, compute @ ..] = cells.as_slice() else {
            return Err(wrong("fewer columns than were asked for"));
        };
        let mib = |cell: &str| -> Result<Option<u64>> {
            if is_unknown(cell) {
                return Ok(None);
            }
            let number: u64 = cell
                .parse()
                .map_err(|_| wrong("a size that is no number of MiB"))?;
            number
                .checked_mul(MIB)
                .map(Some)
                .ok_or_else(|| wrong("an absurd size"))
        };
        if name.is_empty() {
            return Err(wrong("no name"));
        }
        rows.push((
            Device {
                maker: Maker::Nvidia,
                index: index.parse().map_err(|_| wrong("no number of the GPU"))?,
                name: (*name).to_owned(),
                uuid: (!is_unknown(uuid)).then(|| (*uuid).to_owned()),
                mig_profile: None,
                total_bytes: mib(total)?.unwrap_or(0),
                total_is_measured: true,
                free_bytes: mib(free)?,
                compute: compute.first().filter(|c| !is_unknown(c)).map(|&c| c.to_owned()),
                unified: false,
            },
            *mig == "Enabled",
        ));
    }
    Ok(rows)
}

/// `[N/A]`, `[Not Supported]`, `[Insufficient Permissions]`, `[Unknown Error]`.
fn is_unknown(cell: &str) -> bool {
    cell.is_empty() || cell.starts_with('[') || cell == "N/A"
}

/// Puts the slices that `nvidia-smi -L` lists in the place of the GPUs that are cut.
pub(super) fn slices(gpus: &[(Device, bool)], list: &str) -> Result<Vec<Device>> {
    let mut devices = Vec::new();
    let lines: Vec<&str> = list.lines().collect();
    for (gpu, sliced) in gpus {
        if !sliced {
            devices.push(gpu.clone());
            continue;
        }
        let head = format!("GPU {}:", gpu.index);
        let own = lines
            .iter()
            .skip_while(|line| !line.starts_with(&head))
            .skip(1)
            .take_while(|line| !line.starts_with("GPU "));
        for line in own {
            let Some(rest) = line.trim().strip_prefix("MIG ") else {
                continue;
            };
            let profile = rest.split_whitespace().next().unwrap_or_default();
            let uuid = rest.split_once("UUID: ").and_then(|(_, r)| r.split(')').next());
            if profile.is_empty() {
                return Err(Error::input(format!(
                    "{TOOL} -L: no profile in the line \"{}\"",
                    line.trim()
                )));
            }
            devices.push(Device {
                mig_profile: Some(profile.to_owned()),
                uuid: uuid.map(str::to_owned),
                total_bytes: 0,
                free_bytes: None,
                ..gpu.clone()
            });
        }
    }
    Ok(devices)
}
