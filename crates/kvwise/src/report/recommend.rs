//! The deployment worth running, and those that lost.

use serde::Serialize;

use super::table::{Align, Grid};
use super::text::{command, wrap};

/// Version of [`Recommendation`].
pub const SCHEMA: &str = "kvwise.recommendation/1";

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recommendation {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The model.
    pub model: String,
    /// `cost`, `gpus` or `throughput`.
    pub objective: &'static str,
    /// What, why, and how far it reaches.
    pub explanation: Vec<String>,
    /// The traffic.
    pub workload: WorkloadPart,
    /// Limit on the time to first token.
    pub slo_ttft_ms: Option<f64>,
    /// Limit on the time per output token.
    pub slo_tpot_ms: Option<f64>,
    /// Percentile at which the limits hold.
    pub slo_percentile: u8,
    /// The best; `null` if nothing holds the objectives.
    pub recommended: Option<Deployed>,
    /// Largest multiple of the traffic that it holds, in steps of 5 %.
    pub holds_factor: Option<f64>,
    /// The best of every other kind, and why it lost.
    pub alternatives: Vec<Deployed>,
    /// Where engines without timed steps start; nothing is known of their latencies.
    pub planned_only: Vec<PlannedOnly>,
    /// Where the prices are from.
    pub prices_source: String,
    /// When they were collected.
    pub prices_date: String,
    /// How much was looked at.
    pub searched: Searched,
}

/// The traffic.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkloadPart {
    /// Its name.
    pub name: String,
    /// Requests that were simulated.
    pub requests: u64,
    /// Requests that it has.
    pub of_requests: u64,
    /// Requests a second, on average.
    pub rate_per_s: Option<f64>,
    /// Requests under way.
    pub concurrency: Option<u32>,
}

/// A machine on which an engine starts whose steps are not timed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedOnly {
    /// `llamacpp`.
    pub engine: &'static str,
    /// Kind of GPU.
    pub gpu: String,
    /// GPUs.
    pub gpus: u64,
    /// Dollars an hour.
    pub usd_per_hour: f64,
    /// Format of the weights.
    pub quantization: String,
    /// What the plan says.
    pub verdict: String,
}

/// One deployment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Deployed {
    /// `vllm` or `sglang`.
    pub engine: &'static str,
    /// Kind of GPU.
    pub gpu: String,
    /// GPUs of a replica.
    pub gpus_per_replica: u64,
    /// Replicas.
    pub replicas: u64,
    /// GPUs in all.
    pub gpus: u64,
    /// Dollars an hour in all.
    pub usd_per_hour: f64,
    /// Dollars for a million generated tokens under this traffic.
    pub usd_per_million_output_tokens: Option<f64>,
    /// Time to first token at the percentile; `null` if it was not simulated.
    pub ttft_ms: Option<f64>,
    /// Time per output token at the percentile.
    pub tpot_ms: Option<f64>,
    /// Generated tokens a second in all.
    pub output_tokens_per_s: Option<f64>,
    /// Flags for `kvwise generate` and for the engine.
    pub flags: Vec<String>,
    /// Whether no other row beats it in money, GPUs and both latencies at once.
    pub pareto: bool,
    /// Why it lost; empty for the recommended one.
    pub why_not: String,
}

/// How much was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Searched {
    /// Deployments that start.
    pub candidates: u64,
    /// Simulations.
    pub simulations: u64,
}

impl Recommendation {
    /// Every row, the recommended one first.
    fn rows(&self) -> impl Iterator<Item = &Deployed> {
        self.recommended.iter().chain(&self.alternatives)
    }

    /// For programs that read tables.
    pub fn grid(&self) -> Grid {
        let mut grid = Grid::new(&[
            ("engine", Align::Left),
            ("gpu", Align::Left),
            ("gpus_per_replica", Align::Right),
            ("replicas", Align::Right),
            ("usd_per_hour", Align::Right),
            ("usd_per_million_output_tokens", Align::Right),
            ("ttft_ms", Align::Right),
            ("tpot_ms", Align::Right),
            ("output_tokens_per_s", Align::Right),
            ("pareto", Align::Left),
            ("flags", Align::Left),
            ("why_not", Align::Left),
        ]);
        let number = |x: Option<f64>, digits: usize| x.map_or_else(String::new, |x| format!("{x:.digits$}"));
        for row in self.rows() {
            grid.row([
                row.engine.to_owned(),
                row.gpu.clone(),
                row.gpus_per_replica.to_string(),
                row.replicas.to_string(),
                format!("{:.2}", row.usd_per_hour),
                number(row.usd_per_million_output_tokens, 3),
                number(row.ttft_ms, 1),
                number(row.tpot_ms, 2),
                number(row.output_tokens_per_s, 0),
                row.pareto.to_string(),
                row.flags.join(" "),
                row.why_not.clone(),
            ]);
        }
        grid
    }

    /// Where engines without timed steps start.
    fn planned(&self) -> Grid {
        let mut grid = Grid::new(&[
            ("GPUs", Align::Left),
            ("$/h", Align::Right),
            ("weights", Align::Left),
            ("llama.cpp", Align::Left),
        ]);
        for row in &self.planned_only {
            grid.row([
                format!("{} x {}", row.gpus, row.gpu),
                format!("{:.2}", row.usd_per_hour),
                row.quantization.clone(),
                row.verdict.clone(),
            ]);
        }
        grid
    }

    /// The deployments for people.
    fn table(&self) -> Grid {
        // Which engine matters only where there are several.
        let first = self.rows().next().map_or("", |row| row.engine);
        let several = self.rows().any(|row| row.engine != first) || first == "sglang";
        let mut grid = Grid::new(&[
            ("", Align::Left),
            ("GPUs", Align::Left),
            ("$/h", Align::Right),
            ("$/M out", Align::Right),
            ("TTFT ms", Align::Right),
            ("TPOT ms", Align::Right),
            ("why not", Align::Left),
        ]);
        let number =
            |x: Option<f64>, digits: usize| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.digits$}"));
        for (i, row) in self.rows().enumerate() {
            let sign = match (i == 0 && self.recommended.is_some(), row.pareto) {
                (true, _) => ">",
                (false, true) => "*",
                (false, false) => "",
            };
            // What decides how many GPUs there are is in the second column.
            let usual = [
                "--engine",
                "--tensor",
                "--pipeline",
                "--data",
                "--max-model-len",
                "--gpus-per-node",
            ];
            let mut words = row.flags.iter();
            let mut unusual: Vec<&str> = Vec::new();
            while let Some(word) = words.next() {
                if usual.iter().any(|flag| word.starts_with(flag)) {
                    words.next();
                } else {
                    unusual.push(word);
                }
            }
            let mut why = row.why_not.clone();
            if !unusual.is_empty() {
                let gap = if why.is_empty() { "" } else { " " };
                why = format!("{why}{gap}({})", unusual.join(" "));
            }
            grid.row([
                sign.to_owned(),
                format!(
                    "{} x {} x {}{}",
                    row.replicas,
                    row.gpus_per_replica,
                    row.gpu,
                    if several {
                        format!(", {}", row.engine)
                    } else {
                        String::new()
                    }
                ),
                format!("{:.2}", row.usd_per_hour),
                number(row.usd_per_million_output_tokens, 2),
                number(row.ttft_ms, 0),
                number(row.tpot_ms, 1),
                why,
            ]);
        }
        grid
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for sentence in &self.explanation {
            wrap(&mut out, sentence, "  ");
        }
        if let Some(best) = &self.recommended {
            out.push('\n');
            let flags = best.flags.iter().map(|word| super::quote::shell(word));
            let words: Vec<String> = ["$", "kvwise", "generate"]
                .map(str::to_owned)
                .into_iter()
                .chain([
                    super::quote::shell(&self.model),
                    "--gpu".to_owned(),
                    best.gpu.clone(),
                ])
                .chain(flags)
                .chain(["--output-dir", "deploy"].map(str::to_owned))
                .collect();
            command(&mut out, &words, "    ");
        }
        out.push('\n');
        if self.rows().next().is_some() {
            out.push_str(&self.table().text());
            out.push('\n');
        }
        if !self.planned_only.is_empty() {
            out.push_str(&self.planned().text());
            wrap(
                &mut out,
                "planned only: whether these hold the objectives is not known, since steps of llama.cpp are not timed",
                "  ",
            );
            out.push('\n');
        }
        let used = if self.workload.requests < self.workload.of_requests {
            format!(
                "the first {} of {} requests",
                self.workload.requests, self.workload.of_requests
            )
        } else {
            format!("{} requests", self.workload.requests)
        };
        wrap(
            &mut out,
            &format!(
                "> recommended, * nothing else here is better in everything; replicas x GPUs of each; {} deployments, {} simulations of {used}. Prices: {}, {}; --price gpu=usd sets yours.",
                self.searched.candidates, self.searched.simulations, self.prices_source, self.prices_date
            ),
            "  ",
        );
        out
    }
}
