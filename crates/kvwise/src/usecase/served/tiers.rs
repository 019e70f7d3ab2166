//! KV tiers behind the pool, as the user names them: rooms, speeds, policy.

use kvwise_core::hardware;
use kvwise_core::plan::{KvCache, Plan};
use kvwise_core::units::parse_bytes;
use kvwise_core::{Error, Result};
use kvwise_sim::simulate::{LinkSpeed, TierConfig, TierPolicy};
use serde::Serialize;

use super::super::curve::Room;

/// Tiers and their links.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct TiersAsked {
    /// Name and room of each tier, nearest first; bytes are those of all GPUs of an engine together.
    pub rooms: Vec<(String, Room)>,
    /// Bytes a second of tiers whose links were named.
    pub speeds: Vec<(String, f64)>,
    /// What every tier evicts.
    pub policy: TierPolicy,
}

/// Most tiers.
const MAX_TIERS: usize = 8;

/// A rate: `50GB/s`, `12.5 GB/s`, `8GiB/s`.
///
/// # Errors
/// If it is not a positive size with `/s` behind it.
pub fn parse_rate(text: &str) -> Result<f64> {
    let size = text.trim().strip_suffix("/s").ok_or_else(|| {
        Error::input(format!("\"{text}\" is not a rate: \"/s\" is missing")).hint("write 50GB/s")
    })?;
    let bytes = parse_bytes(size)?;
    if bytes == 0 {
        return Err(Error::input(format!(
            "\"{text}\" is not a rate: expected more than 0"
        )));
    }
    Ok(bytes as f64)
}

/// `host=50GB/s`.
///
/// # Errors
/// If there is no name, or no rate.
pub fn parse_speed(text: &str) -> Result<(String, f64)> {
    let (name, rate) = text.split_once('=').ok_or_else(|| {
        Error::input(format!("\"{text}\" is not the speed of a tier")).hint("write host=50GB/s")
    })?;
    Ok((name.trim().to_owned(), parse_rate(rate)?))
}

impl TiersAsked {
    /// The simulator's tiers behind the pool of `plan`, whose engine has `ranks` GPUs.
    ///
    /// # Errors
    /// If a tier has no known speed, no room for a block, or a name that means something else.
    pub fn configs(&self, plan: &Plan, ranks: u64) -> Result<Vec<TierConfig>> {
        if self.rooms.len() > MAX_TIERS {
            return Err(Error::input(format!(
                "--tiers names {} tiers, at most {MAX_TIERS} are simulated",
                self.rooms.len()
            )));
        }
        for (name, _) in &self.speeds {
            if !self.rooms.iter().any(|(tier, _)| tier == name) {
                return Err(Error::input(format!(
                    "--tier-bandwidth names {name}, which is not one of --tiers"
                )));
            }
        }
        let Some(kv) = plan.kv_cache.as_ref().filter(|_| !self.rooms.is_empty()) else {
            return Ok(Vec::new());
        };
        self.rooms
            .iter()
            .enumerate()
            .map(|(i, (name, room))| self.config(i, name, *room, kv, plan, ranks))
            .collect()
    }

    fn config(
        &self,
        i: usize,
        name: &str,
        room: Room,
        kv: &KvCache,
        plan: &Plan,
        ranks: u64,
    ) -> Result<TierConfig> {
        if name.eq_ignore_ascii_case("gpu") {
            return Err(Error::input(
                "--tiers names the tier gpu, but the pool on the GPUs is what the plan gives",
            )
            .hint(
                "name the tiers behind it, host=200GiB,disk=4TiB; set the pool with --kv-cache-memory-bytes",
            ));
        }
        if self.rooms[..i].iter().any(|(other, _)| other == name) {
            return Err(Error::input(format!("--tiers names {name} twice")));
        }
        let overflow = || Error::overflow(format!("the room of the tier {name}"));
        // A GPU moves its own part; what lies behind the host is one store for all of them.
        let of_gpu = kv.bytes_per_block.iter().copied().max().unwrap_or(0).max(1);
        let of_all = kv
            .bytes_per_block
            .iter()
            .try_fold(0_u64, |sum, &b| sum.checked_add(b))
            .and_then(|b| b.checked_mul(ranks / (kv.bytes_per_block.len() as u64).max(1)))
            .ok_or_else(overflow)?
            .max(1);
        let blocks = match room {
            Room::Blocks(n) => n,
            Room::Tokens(n) => (n / kv.block_size.max(1))
                .checked_mul(kv.groups.len().max(1) as u64)
                .ok_or_else(overflow)?,
            Room::Bytes(n) => n / of_all,
        };
        if blocks == 0 {
            return Err(Error::input(format!(
                "--tiers gives {name} less room than one block of {of_all} bytes"
            )));
        }
        let capacity_blocks = u32::try_from(blocks.min((1 << 31) - 1)).unwrap_or(u32::MAX >> 1);
        let given = self.speeds.iter().find(|(tier, _)| tier == name).map(|(_, x)| *x);
        let (bytes_per_s, latency_s) = match (given, name, i) {
            (Some(x), _, 0) => (x, 2e-5),
            (Some(x), ..) => (x, 1e-4),
            // Of the catalogue's row: one direction of the GPU's own link to the host.
            (None, "host" | "cpu", 0) => (
                hardware::find(&plan.gpu.name).map_or(25e9, |gpu| gpu.pcie_bytes_per_s),
                2e-5,
            ),
            (None, "disk" | "ssd" | "nvme", _) if i > 0 => (7e9, 1e-4),
            (None, "remote", _) if i > 0 => (12.5e9, 1e-3),
            _ => {
                return Err(Error::input(format!("the speed of the tier {name} is not known"))
                    .hint(format!("add --tier-bandwidth {name}=10GB/s")));
            }
        };
        let speed = LinkSpeed {
            bytes_per_s,
            latency_s,
        };
        Ok(TierConfig {
            name: name.to_owned(),
            capacity_blocks,
            bytes_per_block: if i == 0 { of_gpu } else { of_all },
            read: speed,
            write: speed,
            policy: self.policy,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_a_size_and_a_time() {
        assert!((parse_rate("50GB/s").unwrap() - 5e10).abs() < 1.0);
        assert_eq!(parse_speed("disk=7GB/s").unwrap().0, "disk");
        for wrong in ["50GB", "0GB/s", "fast", "-1GB/s", "50G/s", "/s"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
        assert!(parse_speed("50GB/s").is_err());
    }
}
