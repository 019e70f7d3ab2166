//! The network between the machines of one engine: named rows or the user's own rate.

use std::sync::OnceLock;

use kvwise_core::names::nearest;
use kvwise_core::{Error, Result};
use kvwise_sim::cost::Network;
use serde::{Deserialize, Serialize};

use super::tiers::parse_rate;

/// GPUs of the usual machine.
pub const GPUS_PER_MACHINE: u64 = 8;
/// What is assumed where nobody says.
const ASSUMED: &str = "infiniband-ndr";
/// Latency of a hop for a rate without a name, microseconds: as the named networks without sockets.
const LATENCY_US: f64 = 5.0;

/// What the user says of the network.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct NetworkAsked {
    /// A row's name, or what one GPU sends a second (`50GB/s`).
    pub name: Option<String>,
    /// GPUs of one machine.
    pub gpus_per_machine: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rows {
    #[cfg_attr(not(test), expect(dead_code, reason = "for the reader of the file"))]
    date: String,
    network: Vec<Row>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    bits_per_s: f64,
    per: Per,
    latency_us: f64,
    #[cfg_attr(not(test), expect(dead_code, reason = "for the reader of the file"))]
    source: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Per {
    Gpu,
    Machine,
}

fn rows() -> &'static [Row] {
    static ROWS: OnceLock<Rows> = OnceLock::new();
    &ROWS
        .get_or_init(|| {
            toml::from_str(include_str!("../../../../core/data/networks.toml"))
                .expect("shipped rows are checked by a test")
        })
        .network
}

impl NetworkAsked {
    /// The network under an engine of `gpus` GPUs, with a note where it was assumed; `None` where one machine holds them.
    ///
    /// # Errors
    /// If the name is neither a row's nor a rate.
    pub fn between(&self, gpus: u64) -> Result<Option<(Network, Option<String>)>> {
        let gpus_per_machine = self.gpus_per_machine.unwrap_or(GPUS_PER_MACHINE).max(1);
        // A wrong word is wrong on one machine, too.
        let network = self.named(gpus_per_machine)?;
        if gpus <= gpus_per_machine {
            return Ok(None);
        }
        let note = self.name.is_none().then(|| {
            format!(
                "{gpus} GPUs are {} machines of {gpus_per_machine}, and the network between them is assumed to be {ASSUMED} ({:.0} Gb/s a GPU): --network names yours",
                gpus.div_ceil(gpus_per_machine),
                network.bandwidth_bytes_per_s * 8.0 / 1e9,
            )
        });
        Ok(Some((network, note)))
    }

    fn named(&self, gpus_per_machine: u64) -> Result<Network> {
        let name = self.name.as_deref().unwrap_or(ASSUMED).trim();
        if let Some(row) = rows().iter().find(|row| row.name.eq_ignore_ascii_case(name)) {
            let shared = match row.per {
                Per::Gpu => 1.0,
                Per::Machine => gpus_per_machine as f64,
            };
            return Ok(Network {
                gpus_per_machine,
                bandwidth_bytes_per_s: row.bits_per_s / 8.0 / shared,
                latency_s: row.latency_us * 1e-6,
            });
        }
        if name.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(Network {
                gpus_per_machine,
                bandwidth_bytes_per_s: parse_rate(name).map_err(|e| e.at("--network"))?,
                latency_s: LATENCY_US * 1e-6,
            });
        }
        let names: Vec<&str> = rows().iter().map(|row| row.name.as_str()).collect();
        let error = Error::input(format!(
            "--network is \"{name}\", expected one of {} or what a GPU sends a second, like 50GB/s",
            names.join(", ")
        ));
        Err(match nearest(name, names.iter().copied(), 1).first() {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str) -> NetworkAsked {
        NetworkAsked {
            name: Some(name.to_owned()),
            gpus_per_machine: None,
        }
    }

    #[test]
    fn shipped_rows_read_and_have_sources() {
        let read: Rows = toml::from_str(include_str!("../../../../core/data/networks.toml")).unwrap();
        assert!(!read.date.is_empty());
        for row in &read.network {
            assert!(
                row.bits_per_s > 1e9 && row.latency_us > 0.0 && !row.source.is_empty(),
                "{row:?}"
            );
        }
        assert!(rows().iter().any(|row| row.name == ASSUMED));
    }

    #[test]
    fn a_machine_needs_none_and_several_share_what_is_a_machines() {
        assert_eq!(asked("infiniband-ndr").between(8).unwrap(), None);
        let rate = |name: &str| asked(name).between(16).unwrap().unwrap().0.bandwidth_bytes_per_s;
        assert!((rate("infiniband-ndr") - 50e9).abs() < 1.0);
        assert!((rate("ethernet-100") - 100e9 / 8.0 / 8.0).abs() < 1.0);
        assert!((rate("25GB/s") - 25e9).abs() < 1.0);
        let (_, note) = NetworkAsked::default().between(16).unwrap().unwrap();
        assert!(note.unwrap().contains("2 machines of 8"));
        let e = asked("infiniband-ndx").between(1).unwrap_err();
        assert!(e.hints()[0].contains("did you mean infiniband-"), "{e:?}");
        assert!(asked("0GB/s").between(16).is_err());
    }
}
