//! Variables that hide devices from the programs started under them.

use super::Device;

/// The devices that `CUDA_VISIBLE_DEVICES` (or its like) leaves, in its order: numbers, or beginnings of identifiers.
/// As the drivers do it, the list ends at the first entry that is no device.
pub(super) fn visible(
    devices: &[Device],
    variable: &str,
    value: &str,
    notes: &mut Vec<String>,
) -> Vec<Device> {
    let mut chosen: Vec<Device> = Vec::new();
    let all = devices.len();
    for entry in value.split(',').map(str::trim) {
        let found = match entry.parse::<usize>() {
            // numbers count whole GPUs and slices alike, in their order
            Ok(number) => devices.get(number),
            Err(_) if entry.is_empty() => None,
            Err(_) => devices
                .iter()
                .find(|d| d.uuid.as_deref().is_some_and(|uuid| uuid.starts_with(entry))),
        };
        let Some(device) = found else { break };
        if !chosen.contains(device) {
            chosen.push(device.clone());
        }
    }
    if chosen.len() < all {
        notes.push(format!(
            "{variable}={value} leaves {} of {all} GPUs",
            chosen.len()
        ));
    }
    chosen
}
