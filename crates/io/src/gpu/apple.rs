//! Apple's processors, whose GPU shares the host's memory.

use kvwise_core::{Error, Result};

use super::{Detected, Device, Maker, Tools};

/// Adds the processor's GPU to what was found, if this is one.
pub(super) fn detect(tools: &Tools, found: &mut Detected) -> Result<()> {
    // Linux has a sysctl too, which knows none of these names and fails
    let ask = |name: &str| tools.run("sysctl", &["-n", name]).ok().flatten();
    let Some(brand) = ask("machdep.cpu.brand_string").filter(|b| b.trim().starts_with("Apple ")) else {
        return Ok(());
    };
    let total_bytes = ask("hw.memsize")
        .and_then(|text| text.trim().parse().ok())
        .filter(|&bytes: &u64| bytes > 0)
        .ok_or_else(|| Error::input("sysctl: hw.memsize is no number of bytes"))?;
    found.sources.push("sysctl");
    found.notes.push(format!(
        "{} shares the host's memory, and macOS lets the GPU hold only a part of it (sysctl iogpu.wired_limit_mb): \
         plan with --gpu-memory for that part",
        brand.trim()
    ));
    found.devices.push(Device {
        maker: Maker::Apple,
        index: 0,
        name: brand.trim().to_owned(),
        uuid: None,
        mig_profile: None,
        total_bytes,
        total_is_measured: true,
        free_bytes: None,
        compute: None,
        unified: true,
    });
    Ok(())
}
