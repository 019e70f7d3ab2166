//! Intel's GPUs, as `xpu-smi` lists them.

use kvwise_core::units::MIB;
use kvwise_core::{Error, Result};
use serde_json::Value;

use super::{Detected, Device, Maker, Tools};

const TOOL: &str = "xpu-smi";

/// Adds Intel's devices to what was found.
pub(super) fn detect(tools: &Tools, found: &mut Detected) -> Result<()> {
    let Some(list) = tools.run(TOOL, &["discovery", "-j"])? else {
        return Ok(());
    };
    found.sources.push(TOOL);
    for mut device in devices(&list)? {
        let index = device.index.to_string();
        // The list of all devices leaves their memory out in most releases.
        if device.total_bytes == 0 {
            let one = tools
                .run(TOOL, &["discovery", "-d", &index, "-j"])?
                .unwrap_or_default();
            device.total_bytes = memory(&parse(&one)?).ok_or_else(|| {
                wrong(&format!("device {index} has no memory_physical_size_byte"))
                    .hint("give it with --gpu-memory")
            })?;
        }
        // Without the privileges for counters it fails; the memory in use is then not known.
        let stats = tools.run(TOOL, &["stats", "-d", &index, "-j"]).ok().flatten();
        device.free_bytes = stats
            .and_then(|text| used_bytes(&parse(&text).ok()?))
            .and_then(|used| device.total_bytes.checked_sub(used));
        found.devices.push(device);
    }
    Ok(())
}

fn wrong(what: &str) -> Error {
    Error::input(format!("{TOOL}: {what}"))
}

fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|e| wrong(&format!("no valid JSON: {e}")))
}

/// The physical GPUs of `discovery`; the memory is 0 where the list does not have it.
pub(super) fn devices(text: &str) -> Result<Vec<Device>> {
    let list = parse(text)?;
    let Some(all) = list.get("device_list").and_then(Value::as_array) else {
        return Err(wrong("no device_list in the answer"));
    };
    let text = |device: &Value, key: &str| device.get(key).and_then(Value::as_str).map(str::to_owned);
    let mut devices = Vec::new();
    for device in all {
        let is_gpu = text(device, "device_type").is_none_or(|kind| kind == "GPU");
        let is_virtual = text(device, "device_function_type").is_some_and(|kind| kind == "virtual");
        if !is_gpu || is_virtual {
            continue;
        }
        let index = device
            .get("device_id")
            .and_then(Value::as_u64)
            .and_then(|n| u32::try_from(n).ok())
            .ok_or_else(|| wrong("a device without its device_id"))?;
        devices.push(Device {
            maker: Maker::Intel,
            index,
            name: text(device, "device_name")
                .filter(|name| !name.trim().is_empty())
                .ok_or_else(|| wrong(&format!("device {index} has no device_name")))?,
            uuid: text(device, "uuid"),
            mig_profile: None,
            total_bytes: memory(device).unwrap_or(0),
            total_is_measured: true,
            free_bytes: None,
            compute: None,
            unified: false,
        });
    }
    Ok(devices)
}

/// Bytes of a device's memory; a text in some releases, a number in others.
fn memory(device: &Value) -> Option<u64> {
    let size = device.get("memory_physical_size_byte")?;
    size.as_u64()
        .or_else(|| size.as_str()?.trim().parse().ok())
        .filter(|&bytes| bytes > 0)
}

/// Memory in use, told in MiB for the device or for each of its tiles.
fn used_bytes(stats: &Value) -> Option<u64> {
    let used = |list: &Value| {
        list.as_array()?.iter().find_map(|metric| {
            let kind = metric.get("metrics_type")?.as_str()?;
            let value = metric.get("value")?.as_f64().filter(|v| (0.0..1e9).contains(v))?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "checked: not negative and below a billion MiB"
            )]
            let mib = value.ceil() as u64;
            (kind == "XPUM_STATS_MEMORY_USED").then(|| mib.saturating_mul(MIB))
        })
    };
    stats.get("device_level").and_then(used).or_else(|| {
        let tiles = stats.get("tile_level")?.as_array()?;
        tiles
            .iter()
            .map(|tile| used(tile.get("data_list")?))
            .try_fold(0_u64, |sum, tile| sum.checked_add(tile?))
    })
}
