//! The answer of `kvwise sweep`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kvwise_core::Result;
use kvwise_io::parquet_table::Cells;
use kvwise_sim::simulate::Slo;
use serde::Serialize;

use super::html::{document, escape};
use super::refusal::{Refusal, paragraphs};
use super::simulation_html::table;
use super::table::{Align, Grid};
use crate::plot::{LineChart, Series};
use crate::usecase::fingerprint::Fingerprint;
use crate::usecase::sweep::{LoadLevel, Point, pareto};

/// Every point, and which of them nothing beats.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SweepAnswer {
    /// Schema and its version.
    pub schema: &'static str,
    /// Program version.
    pub version: &'static str,
    /// Seed of all random choices.
    pub seed: u64,
    /// Fingerprint of everything that decides the answer.
    pub inputs_hash: String,
    /// Objective for the time to first token.
    pub slo_ttft_ms: Option<f64>,
    /// Objective for the time per output token.
    pub slo_tpot_ms: Option<f64>,
    /// Every point in the order of the question.
    pub points: Vec<Point>,
    /// Positions of the points that no other beats in time per output token and tokens a second per GPU.
    pub pareto: Vec<usize>,
    /// The point that meets the objectives with most requests a second per GPU; without objectives, or if none does,
    /// `null`.
    pub best: Option<usize>,
    /// If no point meets the objectives, the one that comes nearest (smallest worst excess over an objective).
    pub nearest: Option<usize>,
}

impl SweepAnswer {
    /// The answer for points that were simulated with `seed`.
    pub fn new(points: Vec<Point>, slo: Slo, seed: u64) -> Self {
        let mut inputs = Fingerprint::default();
        for point in &points {
            inputs.bytes(point.key.as_bytes());
        }
        let per_gpu = |p: &Point| p.requests_per_s / p.gpus.max(1) as f64;
        let best = (0..points.len())
            .filter(|&i| points[i].slo_met == Some(true))
            .max_by(|&a, &b| {
                per_gpu(&points[a])
                    .total_cmp(&per_gpu(&points[b]))
                    .then(b.cmp(&a))
            });
        let excess = |p: &Point| {
            let over = |value: f64, limit: Option<f64>| limit.map_or(0.0, |l| value / l);
            over(p.ttft_ms.p99, slo.ttft_ms).max(over(p.tpot_ms.p99, slo.tpot_ms))
        };
        let given = slo.ttft_ms.is_some() || slo.tpot_ms.is_some();
        let nearest = (given && best.is_none())
            .then(|| {
                (0..points.len())
                    .filter(|&i| points[i].refused.is_none() && points[i].rejected == 0)
                    .min_by(|&a, &b| excess(&points[a]).total_cmp(&excess(&points[b])).then(a.cmp(&b)))
            })
            .flatten();
        Self {
            schema: "kvwise.sweep/1",
            version: env!("CARGO_PKG_VERSION"),
            seed,
            inputs_hash: inputs.name(),
            slo_ttft_ms: slo.ttft_ms,
            slo_tpot_ms: slo.tpot_ms,
            pareto: pareto(&points),
            points,
            best,
            nearest,
        }
    }

    /// Whether some point starts and meets the objectives, if any were given.
    pub fn is_yes(&self) -> bool {
        let given = self.slo_ttft_ms.is_some() || self.slo_tpot_ms.is_some();
        if given {
            self.best.is_some()
        } else {
            self.points.iter().any(|p| p.refused.is_none())
        }
    }

    /// For a terminal: the points in a table, the best or nearest in words.
    pub fn text(&self) -> String {
        let mut out = self.grid().text();
        self.refusals(&mut out);
        out.push_str(
            "\n* nothing beats it in both time per output token and output tokens a second per GPU\n",
        );
        if let Some(i) = self.best {
            let _ = writeln!(
                out,
                "best: {} meets the objectives with {:.2} requests/s on {} GPUs",
                name(&self.points[i]),
                self.points[i].requests_per_s,
                self.points[i].gpus
            );
        }
        if let Some(i) = self.nearest {
            let p = &self.points[i];
            let _ = writeln!(
                out,
                "no point meets the objectives; nearest: {} with {:.0} ms to the first token and {:.1} ms per token (99 %)",
                name(p),
                p.ttft_ms.p99,
                p.tpot_ms.p99
            );
        }
        out
    }

    /// Why some deployments do not start, which no load changes.
    fn refusals(&self, out: &mut String) {
        let refused: BTreeMap<String, &Point> = self
            .points
            .iter()
            .filter(|p| p.refused.is_some())
            .map(|p| (flags_of(p), p))
            .collect();
        let refusals: Vec<Refusal<'_>> = refused
            .iter()
            .map(|(flags, p)| Refusal {
                name: if flags.is_empty() { "as asked" } else { flags },
                reason: p.refused.as_deref().unwrap_or_default(),
                fix: p.fix.as_deref(),
            })
            .collect();
        if !refusals.is_empty() {
            out.push('\n');
            paragraphs(out, &refusals);
        }
    }

    /// One row a point, as wide as a terminal.
    fn grid(&self) -> Grid {
        let columns = [
            ("point", Align::Left),
            ("GPUs", Align::Right),
            ("ttft99", Align::Right),
            ("tpot50", Align::Right),
            ("tpot99", Align::Right),
            ("tok/s", Align::Right),
            ("/GPU", Align::Right),
            ("req/s", Align::Right),
            ("", Align::Left),
        ];
        let mut grid = Grid::new(&columns);
        for (i, p) in self.points.iter().enumerate() {
            if p.refused.is_some() {
                let named = [name(p), p.gpus.to_string()];
                // neither a name, GPUs nor a mark
                let none = std::iter::repeat_n("-".to_owned(), columns.len() - 3);
                grid.row(named.into_iter().chain(none));
                continue;
            }
            let mut mark = String::new();
            if self.pareto.contains(&i) {
                mark.push('*');
            }
            match p.slo_met {
                Some(true) => mark.push_str(" meets"),
                Some(false) => mark.push_str(" misses"),
                None => {}
            }
            grid.row([
                name(p),
                p.gpus.to_string(),
                format!("{:.0}", p.ttft_ms.p99),
                format!("{:.1}", p.tpot_ms.p50),
                format!("{:.1}", p.tpot_ms.p99),
                format!("{:.0}", p.output_tokens_per_s),
                format!("{:.0}", p.output_tokens_per_s_per_gpu),
                format!("{:.2}", p.requests_per_s),
                mark,
            ]);
        }
        grid
    }

    /// Every figure, one row a point, for programs and documents.
    pub fn full_grid(&self) -> Grid {
        let flags: Vec<&str> = self
            .points
            .iter()
            .flat_map(|p| p.flags.keys().map(String::as_str))
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        let mut columns: Vec<(&str, Align)> = flags.iter().map(|f| (*f, Align::Left)).collect();
        columns.extend(
            [
                "concurrency",
                "rate_per_s",
                "gpus",
                "ttft_p50_ms",
                "ttft_p99_ms",
                "tpot_p50_ms",
                "tpot_p99_ms",
                "e2e_p99_ms",
                "output_tokens_per_s",
                "output_tokens_per_s_per_gpu",
                "requests_per_s",
                "goodput_requests_per_s",
                "prefix_hit_rate_tokens",
                "preemptions",
                "kv_usage_peak",
                "rejected",
                "slo_met",
                "pareto",
                "refused",
            ]
            .map(|c| (c, Align::Right)),
        );
        let mut grid = Grid::new(&columns);
        for (i, p) in self.points.iter().enumerate() {
            let mut row: Vec<String> = flags
                .iter()
                .map(|f| p.flags.get(*f).cloned().unwrap_or_default())
                .collect();
            let (concurrency, rate) = match p.load {
                LoadLevel::Concurrency(n) => (n.to_string(), String::new()),
                LoadLevel::Rate(r) => (String::new(), r.to_string()),
            };
            row.extend([
                concurrency,
                rate,
                p.gpus.to_string(),
                format!("{:.3}", p.ttft_ms.p50),
                format!("{:.3}", p.ttft_ms.p99),
                format!("{:.4}", p.tpot_ms.p50),
                format!("{:.4}", p.tpot_ms.p99),
                format!("{:.3}", p.e2e_ms.p99),
                format!("{:.3}", p.output_tokens_per_s),
                format!("{:.3}", p.output_tokens_per_s_per_gpu),
                format!("{:.5}", p.requests_per_s),
                format!("{:.5}", p.goodput_requests_per_s),
                format!("{:.5}", p.prefix_hit_rate_tokens),
                p.preemptions.to_string(),
                format!("{:.5}", p.kv_usage_peak),
                p.rejected.to_string(),
                p.slo_met.map(|m| m.to_string()).unwrap_or_default(),
                self.pareto.contains(&i).to_string(),
                p.refused.clone().unwrap_or_default(),
            ]);
            grid.row(row);
        }
        grid
    }

    /// Every figure as columns of numbers, one row a point; nothing where nothing could be simulated.
    pub fn columns(&self) -> Vec<(String, Cells)> {
        let flags: std::collections::BTreeSet<&String> =
            self.points.iter().flat_map(|p| p.flags.keys()).collect();
        let texts =
            |value: &dyn Fn(&Point) -> Option<String>| Cells::Texts(self.points.iter().map(value).collect());
        let reals = |value: &dyn Fn(&Point) -> f64| {
            let ran = |p: &Point| p.refused.is_none().then(|| value(p));
            Cells::Reals(self.points.iter().map(ran).collect())
        };
        let count = |value: &dyn Fn(&Point) -> u64| {
            let ran = |p: &Point| i64::try_from(value(p)).ok();
            Cells::Integers(self.points.iter().map(ran).collect())
        };
        let mut columns: Vec<(String, Cells)> = flags
            .into_iter()
            .map(|flag| (flag.clone(), texts(&|p| p.flags.get(flag).cloned())))
            .collect();
        let concurrency = |p: &Point| match p.load {
            LoadLevel::Concurrency(n) => Some(i64::from(n)),
            LoadLevel::Rate(_) => None,
        };
        let rate = |p: &Point| match p.load {
            LoadLevel::Concurrency(_) => None,
            LoadLevel::Rate(r) => Some(r),
        };
        let on_front = |i: usize| Some(i64::from(self.pareto.contains(&i)));
        let rest = [
            (
                "concurrency",
                Cells::Integers(self.points.iter().map(concurrency).collect()),
            ),
            ("rate_per_s", Cells::Reals(self.points.iter().map(rate).collect())),
            ("gpus", count(&|p| p.gpus)),
            ("ttft_p50_ms", reals(&|p| p.ttft_ms.p50)),
            ("ttft_p99_ms", reals(&|p| p.ttft_ms.p99)),
            ("tpot_p50_ms", reals(&|p| p.tpot_ms.p50)),
            ("tpot_p99_ms", reals(&|p| p.tpot_ms.p99)),
            ("e2e_p99_ms", reals(&|p| p.e2e_ms.p99)),
            ("output_tokens_per_s", reals(&|p| p.output_tokens_per_s)),
            (
                "output_tokens_per_s_per_gpu",
                reals(&|p| p.output_tokens_per_s_per_gpu),
            ),
            ("requests_per_s", reals(&|p| p.requests_per_s)),
            ("goodput_requests_per_s", reals(&|p| p.goodput_requests_per_s)),
            ("prefix_hit_rate_tokens", reals(&|p| p.prefix_hit_rate_tokens)),
            ("preemptions", count(&|p| p.preemptions)),
            ("kv_usage_peak", reals(&|p| p.kv_usage_peak)),
            ("rejected", count(&|p| p.rejected)),
            (
                "slo_met",
                Cells::Integers(self.points.iter().map(|p| p.slo_met.map(i64::from)).collect()),
            ),
            (
                "pareto",
                Cells::Integers((0..self.points.len()).map(on_front).collect()),
            ),
            ("refused", texts(&|p| p.refused.clone())),
        ];
        columns.extend(rest.into_iter().map(|(name, cells)| (name.to_owned(), cells)));
        columns
    }

    /// Output tokens a second per GPU over the median time per output token: a line for each combination of flags,
    /// the points nothing beats, and the objective.
    pub fn chart(&self) -> LineChart {
        let mut lines: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        let mut highest: f64 = 1.0;
        let shown = |p: &Point| (p.tpot_ms.p50, p.output_tokens_per_s_per_gpu);
        for p in self.points.iter().filter(|p| p.refused.is_none()) {
            lines.entry(flags_of(p)).or_default().push(shown(p));
            highest = highest.max(p.output_tokens_per_s_per_gpu);
        }
        let mut series: Vec<Series> = lines
            .into_iter()
            .map(|(name, mut points)| {
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                Series { name, points }
            })
            .collect();
        if series.len() > 1 {
            series.push(Series {
                name: "nothing beats".to_owned(),
                points: self.pareto.iter().map(|&i| shown(&self.points[i])).collect(),
            });
        }
        if let Some(limit) = self.slo_tpot_ms {
            series.push(Series {
                name: format!("objective {limit} ms"),
                points: vec![(limit, 0.0), (limit, highest * 1.05)],
            });
        }
        LineChart {
            title: "throughput and latency".to_owned(),
            x_label: "time per output token, median, ms".to_owned(),
            y_label: "output tokens/s per GPU".to_owned(),
            x_log: false,
            y_max: highest * 1.05,
            series,
        }
    }

    /// Table and picture as one HTML file.
    ///
    /// # Errors
    /// If there is no point to draw.
    pub fn html(&self) -> Result<String> {
        let mut body = String::from("<h1>Sweep</h1>");
        let _ = write!(
            body,
            "<p class=\"soft\">{} points; seed {}; inputs {}; kvwise {}</p>",
            self.points.len(),
            self.seed,
            escape(&self.inputs_hash),
            self.version
        );
        if self.points.iter().all(|p| p.refused.is_some()) {
            body.push_str("<div class=\"finding problem\"><b>No point starts</b>the reasons are below</div>");
        } else {
            let _ = write!(
                body,
                "<div class=\"scroll picture\">{}</div>",
                self.chart().svg(1000, 560)?
            );
        }
        if let Some(i) = self.best.or(self.nearest) {
            let met = self.best.is_some();
            let _ = write!(
                body,
                "<div class=\"finding {}\"><b>{}</b>{}</div>",
                if met { "info" } else { "problem" },
                if met {
                    "Best point that meets the objectives"
                } else {
                    "No point meets the objectives; the nearest"
                },
                escape(&name(&self.points[i]))
            );
        }
        table(
            &mut body,
            &[
                "point",
                "GPUs",
                "ttft 99 % ms",
                "tpot 50 % ms",
                "tpot 99 % ms",
                "tok/s",
                "tok/s/GPU",
                "req/s",
                "objectives",
            ],
            self.points.iter().map(|p| match &p.refused {
                Some(reason) => {
                    let mut row = vec![format!("{}: {reason}", name(p)), p.gpus.to_string()];
                    row.resize(9, String::new());
                    row
                }
                None => vec![
                    name(p),
                    p.gpus.to_string(),
                    format!("{:.0}", p.ttft_ms.p99),
                    format!("{:.1}", p.tpot_ms.p50),
                    format!("{:.1}", p.tpot_ms.p99),
                    format!("{:.0}", p.output_tokens_per_s),
                    format!("{:.0}", p.output_tokens_per_s_per_gpu),
                    format!("{:.2}", p.requests_per_s),
                    p.slo_met
                        .map_or("", |m| if m { "met" } else { "missed" })
                        .to_owned(),
                ],
            }),
        );
        document("sweep", &body, self, "")
    }
}

fn flags_of(p: &Point) -> String {
    if p.flags.is_empty() {
        return "as asked".to_owned();
    }
    p.flags
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn name(p: &Point) -> String {
    let load = match p.load {
        LoadLevel::Concurrency(n) => format!("c={n}"),
        LoadLevel::Rate(r) => format!("{r}/s"),
    };
    if p.flags.is_empty() {
        load
    } else {
        format!("{} {load}", flags_of(p))
    }
}
