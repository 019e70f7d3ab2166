//! AMD's GPUs, as `amd-smi` or the older `rocm-smi` list them.

use kvwise_core::units::{GIB, KIB, MIB};
use kvwise_core::{Error, Result};
use serde_json::Value;

use super::visible::visible;
use super::{Detected, Device, Maker, Tools};

/// Adds AMD's devices to what was found.
pub(super) fn detect(tools: &Tools, found: &mut Detected) -> Result<()> {
    let (source, devices) = if let Some(devices) = by_amd_smi(tools)? {
        ("amd-smi", devices)
    } else if let Some(devices) = by_rocm_smi(tools)? {
        ("rocm-smi", devices)
    } else {
        return Ok(());
    };
    found.sources.push(source);
    let mut devices = devices;
    for variable in ["ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"] {
        if let Some(value) = tools.variable(variable) {
            devices = visible(&devices, variable, &value, &mut found.notes);
        }
    }
    found.devices.extend(devices);
    Ok(())
}

fn by_amd_smi(tools: &Tools) -> Result<Option<Vec<Device>>> {
    let tool = "amd-smi";
    let Some(fixed) = tools.run(tool, &["static", "--asic", "--vram", "--json"])? else {
        return Ok(None);
    };
    let used = tools
        .run(tool, &["metric", "--mem-usage", "--json"])?
        .unwrap_or_default();
    amd_smi(&fixed, &used).map(Some)
}

/// Reads the answers of `amd-smi static` and `amd-smi metric`.
pub(super) fn amd_smi(fixed: &str, metric: &str) -> Result<Vec<Device>> {
    let wrong = |what: &str| Error::input(format!("amd-smi: {what}"));
    // ROCm 6 prints a list, ROCm 7 an object around it
    let list = |text: &str| -> Result<Vec<Value>> {
        let value: Value = serde_json::from_str(text).map_err(|e| wrong(&format!("no valid JSON: {e}")))?;
        match value {
            Value::Array(list) => Ok(list),
            Value::Object(mut map) => match map.remove("gpu_data") {
                Some(Value::Array(list)) => Ok(list),
                _ => Err(wrong("no gpu_data in the answer")),
            },
            _ => Err(wrong("the answer is no list")),
        }
    };
    let metrics = if metric.trim().is_empty() {
        Vec::new()
    } else {
        list(metric)?
    };
    let number = |gpu: &Value| gpu.get("gpu").and_then(Value::as_u64);
    let mut devices = Vec::new();
    for gpu in list(fixed)? {
        let index = number(&gpu)
            .and_then(|n| u32::try_from(n).ok())
            .ok_or_else(|| wrong("a GPU without its number"))?;
        let name = gpu
            .pointer("/asic/market_name")
            .and_then(Value::as_str)
            .ok_or_else(|| wrong(&format!("GPU {index} has no asic.market_name")))?;
        let total_bytes = size(gpu.pointer("/vram/size"))
            .filter(|&bytes| bytes > 0)
            .ok_or_else(|| wrong(&format!("GPU {index} has no vram.size")))?;
        let memory = metrics
            .iter()
            .find(|m| number(m) == Some(u64::from(index)))
            .and_then(|m| m.get("mem_usage"));
        let free_bytes = memory.and_then(|m| {
            size(m.get("free_vram"))
                .or_else(|| size(m.get("total_vram"))?.checked_sub(size(m.get("used_vram"))?))
        });
        devices.push(Device {
            maker: Maker::Amd,
            index,
            name: name.to_owned(),
            uuid: None,
            mig_profile: None,
            total_bytes,
            total_is_measured: true,
            free_bytes,
            compute: gpu
                .pointer("/asic/target_graphics_version")
                .and_then(Value::as_str)
                .filter(|v| v.starts_with("gfx"))
                .map(str::to_owned),
            unified: false,
        });
    }
    Ok(devices)
}

/// A size as amd-smi writes it: `{"value": 196592, "unit": "MB"}`, where MB are MiB, or a bare number of them.
fn size(value: Option<&Value>) -> Option<u64> {
    let value = value?;
    let (number, unit) = match value {
        Value::Object(map) => (
            map.get("value")?.as_u64()?,
            map.get("unit").and_then(Value::as_str),
        ),
        other => (other.as_u64()?, None),
    };
    let factor = match unit.unwrap_or("MB") {
        "B" => 1,
        "KB" | "KiB" => KIB,
        "MB" | "MiB" => MIB,
        "GB" | "GiB" => GIB,
        _ => return None,
    };
    number.checked_mul(factor)
}

fn by_rocm_smi(tools: &Tools) -> Result<Option<Vec<Device>>> {
    tools
        .run(
            "rocm-smi",
            &["--showproductname", "--showmeminfo", "vram", "--json"],
        )?
        .map(|text| rocm_smi(&text))
        .transpose()
}

/// Reads the answer of `rocm-smi`.
pub(super) fn rocm_smi(text: &str) -> Result<Vec<Device>> {
    let wrong = |what: String| Error::input(format!("rocm-smi: {what}"));
    // warnings come before the object, on the same stream
    let start = text
        .find('{')
        .ok_or_else(|| wrong("no object in the answer".to_owned()))?;
    let cards: serde_json::Map<String, Value> =
        serde_json::from_str(&text[start..]).map_err(|e| wrong(format!("no valid JSON: {e}")))?;
    let mut devices = Vec::new();
    for (card, value) in &cards {
        let Some(number) = card.strip_prefix("card") else {
            continue;
        };
        let index = number
            .parse()
            .map_err(|_| wrong(format!("\"{card}\" is no card")))?;
        // the spelling of the keys changed between releases
        let field = |wanted: &str| {
            let fields = value.as_object()?;
            let (_, value) = fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(wanted))?;
            value.as_str().filter(|v| *v != "N/A")
        };
        let bytes = |name: &str| -> Result<u64> {
            field(name)
                .and_then(|v| v.parse().ok())
                .ok_or_else(|| wrong(format!("{card} has no \"{name}\"")))
        };
        let total_bytes = bytes("VRAM Total Memory (B)")?;
        let used = bytes("VRAM Total Used Memory (B)")?;
        // the series is the marketing name; older releases have it under the model
        let name = field("Card Series")
            .filter(|name| !name.starts_with("0x"))
            .or_else(|| field("Card Model").filter(|name| !name.starts_with("0x")))
            .unwrap_or("AMD GPU");
        devices.push(Device {
            maker: Maker::Amd,
            index,
            name: name.to_owned(),
            uuid: None,
            mig_profile: None,
            total_bytes,
            total_is_measured: true,
            free_bytes: total_bytes.checked_sub(used),
            compute: field("GFX Version").map(str::to_owned),
            unified: false,
        });
    }
    devices.sort_by_key(|d| d.index);
    Ok(devices)
}
