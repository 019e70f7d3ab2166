//! The answer of `kvwise simulate --find-rate`.

use std::fmt::Write as _;

use kvwise_sim::simulate::Slo;
use serde::Serialize;

use super::table::{Align, Grid};
use crate::usecase::deployment::Deployment;
use crate::usecase::fingerprint::Fingerprint;
use crate::usecase::rate::{HighestRate, Probe};
use crate::usecase::served::{Served, Serving};
use crate::usecase::traffic::Traffic;

/// The answer of `--find-rate`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RateAnswer {
    /// Schema and its version.
    pub schema: &'static str,
    /// Program version.
    pub version: &'static str,
    /// Seed of all random choices.
    pub seed: u64,
    /// Fingerprint of everything that decides the answer.
    pub inputs_hash: String,
    /// Model.
    pub model: String,
    /// GPU.
    pub gpu: String,
    /// GPUs of all replicas.
    pub gpus: u64,
    /// Objective for the time to first token.
    pub slo_ttft_ms: Option<f64>,
    /// Objective for the time per output token.
    pub slo_tpot_ms: Option<f64>,
    /// The highest rate that meets the objectives; `null` if one request at a time misses them.
    pub rate_per_s: Option<f64>,
    /// What one request at a time reaches.
    pub alone: Probe,
    /// Every probe, in the order of the search.
    pub probes: Vec<Probe>,
    /// What the times rest on.
    pub basis: String,
}

impl RateAnswer {
    /// The answer of one search; `asked` are the deployment and how it is served, `traffic` what was sent.
    pub fn new(
        served: &Served,
        asked: (&Deployment, &Serving),
        traffic: &Traffic,
        slo: Slo,
        found: HighestRate,
    ) -> Self {
        let mut inputs = Fingerprint::default();
        inputs.bytes(&serde_json::to_vec(&asked).unwrap_or_default());
        inputs.traffic(traffic);
        inputs.bytes(format!("{slo:?}").as_bytes());
        Self {
            schema: "kvwise.rate/1",
            version: env!("CARGO_PKG_VERSION"),
            seed: traffic.seed,
            inputs_hash: inputs.name(),
            model: served.plan.model.name.clone(),
            gpu: served.plan.gpu.name.clone(),
            gpus: served.gpus(),
            slo_ttft_ms: slo.ttft_ms,
            slo_tpot_ms: slo.tpot_ms,
            rate_per_s: found.rate_per_s,
            alone: found.alone,
            probes: found.probes,
            basis: served.confidence.basis.clone(),
        }
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = match self.rate_per_s {
            Some(rate) => format!(
                "{} on {} x {}: meets the objectives up to {rate:.2} requests/s\n\n",
                self.model, self.gpus, self.gpu
            ),
            None => format!(
                "{} on {} x {}: misses the objectives even with one request at a time, which reaches \
                 {:.0} ms to the first token and {:.1} ms per token\n\n",
                self.model, self.gpus, self.gpu, self.alone.ttft_p99_ms, self.alone.tpot_p99_ms
            ),
        };
        out.push_str(&self.grid().text());
        let _ = writeln!(out, "\nbasis  {}", self.basis.replace("; ", ";\n       "));
        out
    }

    /// One row a probe, by rate.
    pub fn grid(&self) -> Grid {
        let mut grid = Grid::new(&[
            ("req/s", Align::Right),
            ("ttft99 ms", Align::Right),
            ("tpot99 ms", Align::Right),
            ("finished/s", Align::Right),
            ("holds", Align::Left),
        ]);
        let mut probes = self.probes.clone();
        probes.sort_by(|a, b| a.rate_per_s.total_cmp(&b.rate_per_s));
        for p in probes {
            grid.row([
                format!("{:.3}", p.rate_per_s),
                format!("{:.0}", p.ttft_p99_ms),
                format!("{:.1}", p.tpot_p99_ms),
                format!("{:.3}", p.finished_per_s),
                if p.holds { "yes" } else { "no" }.to_owned(),
            ]);
        }
        grid
    }
}
