//! The answer of `kvwise curve`.

use std::fmt::Write as _;

use kvwise_core::Result;
use serde::Serialize;

use super::table::html_text;
use crate::plot::{LineChart, Series, short};

/// Hit rates by capacity. Byte counts are integers; rates run from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CurveReport {
    /// `kvwise.curve/1`.
    pub schema: &'static str,
    /// Name of the trace.
    pub trace: String,
    /// Its format.
    pub trace_format: &'static str,
    /// `prefix-lru` or `vllm`.
    pub semantics: &'static str,
    /// Requests counted.
    pub requests: u64,
    /// Unreadable entries left out.
    pub skipped: u64,
    /// Blocks of all prompts together.
    pub block_accesses: u64,
    /// Distinct blocks.
    pub unique_blocks: u64,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Tokens of all prompts together.
    pub input_tokens: u64,
    /// KV-cache bytes of a token, if given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_bytes_per_token: Option<u64>,
    /// Blocks of the longest request.
    pub longest_request_blocks: u64,
    /// The smallest capacity with all hits that are possible.
    pub capacity_needed_blocks: u64,
    /// From here on points come from the one pass; null if every point needs a run.
    pub one_pass_exact_from_blocks: Option<u64>,
    /// With unlimited room.
    pub ideal: Ideal,
    /// The capacities asked for, in that order.
    pub points: Vec<PointRow>,
    /// Capacities that matter.
    pub knees: Vec<KneeRow>,
    /// Hits by tier.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<TierRow>,
    /// The deployment's own capacity, and what more would buy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deployment: Option<DeploymentRow>,
    /// Distinct blocks between two uses of a block.
    pub reuse_distance_blocks: Option<Quantiles>,
    /// Time between two uses of a block.
    pub reuse_time_s: Option<Quantiles>,
    /// (blocks, hit tokens) for pictures.
    #[serde(skip)]
    pub line: Vec<(u64, u64)>,
}

/// Hits with unlimited room.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ideal {
    /// Blocks hit.
    pub hit_blocks: u64,
    /// Tokens hit.
    pub hit_tokens: u64,
    /// Blocks hit over all block accesses.
    pub hit_rate_blocks: f64,
    /// Tokens hit over all prompt tokens.
    pub hit_rate_tokens: f64,
    /// Mean over requests of the share of the prompt hit (the other definition of a hit rate).
    pub hit_rate_mean_of_requests: f64,
}

/// Hits at one capacity.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PointRow {
    /// Usable blocks.
    pub capacity_blocks: u64,
    /// The same in tokens.
    pub capacity_tokens: u64,
    /// The same in bytes, if the bytes of a token are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// Blocks hit.
    pub hit_blocks: u64,
    /// Tokens hit.
    pub hit_tokens: u64,
    /// Blocks hit over all block accesses.
    pub hit_rate_blocks: f64,
    /// Tokens hit over all prompt tokens.
    pub hit_rate_tokens: f64,
    /// Mean over requests of the share of the prompt hit.
    pub hit_rate_mean_of_requests: f64,
    /// Blocks hit over blocks hit with unlimited room.
    pub share_of_ideal: f64,
    /// Requests longer than the pool (vLLM refuses them).
    pub refused_requests: u64,
    /// `one_pass`, or `run` where the one pass is not exact.
    pub source: &'static str,
    /// The most blocks that any eviction rule could hit, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub belady_hit_blocks: Option<u64>,
}

/// A capacity that matters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KneeRow {
    /// Blocks.
    pub capacity_blocks: u64,
    /// The same in tokens.
    pub capacity_tokens: u64,
    /// The same in bytes, if the bytes of a token are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// Tokens hit over all prompt tokens.
    pub hit_rate_tokens: f64,
    /// Why it matters.
    pub reason: String,
}

/// Hits of one tier.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TierRow {
    /// Its name.
    pub name: String,
    /// Its blocks.
    pub capacity_blocks: u64,
    /// Its blocks and those of faster tiers.
    pub cumulative_blocks: u64,
    /// Blocks hit in it.
    pub hit_blocks: u64,
    /// Tokens hit in it.
    pub hit_tokens: u64,
    /// Tokens hit in it over all prompt tokens.
    pub hit_rate_tokens: f64,
}

/// The cache of a deployment on this traffic.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeploymentRow {
    /// Model, GPUs and engine.
    pub name: String,
    /// GPUs that share the cache.
    pub gpus: u64,
    /// Usable blocks.
    pub capacity_blocks: u64,
    /// The same in tokens.
    pub capacity_tokens: u64,
    /// The same in bytes on each GPU, if the bytes of a token are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_bytes_per_gpu: Option<u64>,
    /// Tokens hit.
    pub hit_tokens: u64,
    /// Tokens hit over all prompt tokens.
    pub hit_rate_tokens: f64,
    /// Tokens hit over tokens hit with unlimited room.
    pub share_of_ideal_tokens: f64,
    /// The most blocks that any eviction rule could hit here, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub belady_hit_blocks: Option<u64>,
    /// What more room would buy.
    pub buys: Vec<BuyRow>,
}

/// What a larger cache would hit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BuyRow {
    /// The change, in words.
    pub what: String,
    /// Blocks of the cache and its tiers together.
    pub capacity_blocks: u64,
    /// Tokens hit.
    pub hit_tokens: u64,
    /// Tokens hit over all prompt tokens.
    pub hit_rate_tokens: f64,
    /// Tokens hit beyond those of the deployment as it is.
    pub more_hit_tokens: i64,
    /// The same over the prompt tokens that the deployment computes as it is: by how much prefill shrinks.
    pub less_prefill_share: f64,
}

/// Quantiles of a distribution.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quantiles {
    /// A tenth is at most this.
    pub p10: f64,
    /// The median.
    pub p50: f64,
    /// Nine tenths are at most this.
    pub p90: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
}

impl Quantiles {
    /// From the 10th, 50th, 90th and 99th percentile.
    pub fn new([p10, p50, p90, p99]: [f64; 4]) -> Self {
        Self { p10, p50, p90, p99 }
    }
}

const GIB: f64 = (1u64 << 30) as f64;

impl DeploymentRow {
    fn write(&self, out: &mut String) {
        let percent = |x: f64| format!("{:.2} %", 100.0 * x);
        let bytes = self.capacity_bytes_per_gpu.map_or_else(String::new, |b| {
            let each = if self.gpus > 1 { " a GPU" } else { "" };
            format!(", {:.1} GiB{each}", b as f64 / GIB)
        });
        let _ = writeln!(
            out,
            "{} (the upright line): {} blocks, {} tokens{bytes}",
            self.name,
            self.capacity_blocks,
            short(self.capacity_tokens as f64)
        );
        let _ = writeln!(
            out,
            "  as it is: {} of prompt tokens hit, {} of what is possible",
            percent(self.hit_rate_tokens),
            percent(self.share_of_ideal_tokens)
        );
        for buy in &self.buys {
            let _ = writeln!(
                out,
                "  {}: {} ({:+.2} points, {:.1} % less prefill)",
                buy.what,
                percent(buy.hit_rate_tokens),
                100.0 * (buy.hit_rate_tokens - self.hit_rate_tokens),
                100.0 * buy.less_prefill_share
            );
        }
    }
}

impl CurveReport {
    /// The picture of the curve: token hit rate over capacity (in GiB if the bytes of a token are known).
    pub fn chart(&self) -> LineChart {
        let (unit, label) = match self.kv_bytes_per_token {
            Some(bytes) => (
                bytes as f64 * f64::from(self.block_tokens) / GIB,
                "GiB of KV cache".to_owned(),
            ),
            None => (1.0, format!("blocks of {} tokens", self.block_tokens)),
        };
        let y = |tokens: u64| tokens as f64 / self.input_tokens.max(1) as f64;
        let best = y(self.ideal.hit_tokens);
        let points: Vec<(f64, f64)> = self.line.iter().map(|&(c, t)| (c as f64 * unit, y(t))).collect();
        let ends = [points.first(), points.last()]
            .into_iter()
            .flatten()
            .map(|p| (p.0, best))
            .collect();
        let mut series = vec![
            Series {
                name: self.semantics.to_owned(),
                points,
            },
            Series {
                name: "unlimited".to_owned(),
                points: ends,
            },
        ];
        let y_max = [0.1, 0.25, 0.5, 0.75]
            .into_iter()
            .find(|&m| best <= m * 0.98)
            .unwrap_or(1.0);
        if let Some(own) = self.deployment.as_ref().filter(|d| d.capacity_blocks > 0) {
            let x = own.capacity_blocks as f64 * unit;
            series.push(Series {
                name: "this deployment".to_owned(),
                points: vec![(x, 0.0), (x, y_max)],
            });
        }
        // full blocks are at least as many tokens as are hit, and nobody hits more than unlimited room does
        let most = |blocks: u64| {
            y(blocks
                .saturating_mul(u64::from(self.block_tokens))
                .min(self.ideal.hit_tokens))
        };
        let bound: Vec<(f64, f64)> = self
            .points
            .iter()
            .filter_map(|p| Some((p.capacity_blocks as f64 * unit, most(p.belady_hit_blocks?))))
            .collect();
        if !bound.is_empty() {
            series.push(Series {
                name: "Belady's bound".to_owned(),
                points: bound,
            });
        }
        LineChart {
            title: format!("Prefix-cache hit rate: {}", self.trace),
            x_label: label,
            y_label: "prompt tokens hit".to_owned(),
            x_log: true,
            y_max,
            series,
        }
    }

    /// For people.
    pub fn text(&self, width: usize) -> String {
        self.facts(Some(width))
    }

    /// The text, with a plot of that width or without.
    fn facts(&self, plot_width: Option<usize>) -> String {
        let mut out = String::new();
        let percent = |x: f64| format!("{:.2} %", 100.0 * x);
        let _ = writeln!(
            out,
            "{}: {} requests, {} prompt tokens, {} accesses to {} distinct blocks of {} tokens",
            self.trace,
            self.requests,
            self.input_tokens,
            self.block_accesses,
            self.unique_blocks,
            self.block_tokens
        );
        let _ = writeln!(
            out,
            "Unlimited room: {} of tokens, {} of blocks, {} of a request on average; {} blocks are enough",
            percent(self.ideal.hit_rate_tokens),
            percent(self.ideal.hit_rate_blocks),
            percent(self.ideal.hit_rate_mean_of_requests),
            self.capacity_needed_blocks
        );
        let quantiles = |q: &Quantiles| {
            format!(
                "{} / {} / {} / {}",
                short(q.p10),
                short(q.p50),
                short(q.p90),
                short(q.p99)
            )
        };
        if let Some(q) = &self.reuse_distance_blocks {
            let _ = writeln!(
                out,
                "Blocks between two uses (p10 / p50 / p90 / p99): {}",
                quantiles(q)
            );
        }
        if let Some(q) = &self.reuse_time_s {
            let _ = writeln!(out, "Seconds between two uses: {}", quantiles(q));
        }
        out.push('\n');
        if let Some(width) = plot_width {
            out.push_str(&self.chart().text(width, 14));
            out.push('\n');
        }
        if let Some(own) = &self.deployment {
            own.write(&mut out);
            out.push('\n');
        }
        let _ = writeln!(out, "{}", self.points_grid().join("\n"));
        if !self.knees.is_empty() {
            out.push_str("\nCapacities that matter:\n");
            for knee in &self.knees {
                let bytes = knee
                    .capacity_bytes
                    .map_or_else(String::new, |b| format!(", {:.1} GiB", b as f64 / GIB));
                let _ = writeln!(
                    out,
                    "  {:>10} blocks ({} tokens{bytes}): {} of tokens, {}",
                    knee.capacity_blocks,
                    short(knee.capacity_tokens as f64),
                    percent(knee.hit_rate_tokens),
                    knee.reason
                );
            }
        }
        if !self.tiers.is_empty() {
            out.push_str("\nHits by tier:\n");
            for tier in &self.tiers {
                let _ = writeln!(
                    out,
                    "  {:<8} {:>10} blocks: {} of tokens",
                    tier.name,
                    tier.capacity_blocks,
                    percent(tier.hit_rate_tokens)
                );
            }
        }
        if self.points.iter().any(|p| p.source == "run") {
            out.push_str("\n* computed by a run at this capacity, because the one pass is not exact there\n");
        }
        out
    }

    fn points_grid(&self) -> Vec<String> {
        let bytes = self.kv_bytes_per_token.is_some();
        let bound = self.points.iter().any(|p| p.belady_hit_blocks.is_some());
        let mut header = format!("{:>12} {:>14}", "blocks", "tokens");
        if bytes {
            let _ = write!(header, " {:>10}", "GiB");
        }
        let _ = write!(
            header,
            " {:>9} {:>9} {:>9} {:>9}",
            "tokens %", "blocks %", "request %", "of ideal"
        );
        if bound {
            let _ = write!(header, " {:>9}", "Belady %");
        }
        let mut lines = vec![header];
        for p in &self.points {
            let mark = if p.source == "run" { "*" } else { "" };
            let mut line = format!(
                "{:>12} {:>14}",
                format!("{mark}{}", p.capacity_blocks),
                p.capacity_tokens
            );
            if let Some(b) = p.capacity_bytes {
                let _ = write!(line, " {:>10.2}", b as f64 / GIB);
            }
            let _ = write!(
                line,
                " {:>9.3} {:>9.3} {:>9.3} {:>9.3}",
                100.0 * p.hit_rate_tokens,
                100.0 * p.hit_rate_blocks,
                100.0 * p.hit_rate_mean_of_requests,
                p.share_of_ideal
            );
            if let Some(b) = p.belady_hit_blocks {
                let _ = write!(
                    line,
                    " {:>9.3}",
                    100.0 * b as f64 / self.block_accesses.max(1) as f64
                );
            }
            lines.push(line);
        }
        lines
    }

    /// The points for spreadsheets.
    pub fn csv(&self) -> String {
        let mut out = String::from(
            "capacity_blocks,capacity_tokens,capacity_bytes,hit_blocks,hit_tokens,hit_rate_blocks,hit_rate_tokens,\
             hit_rate_mean_of_requests,share_of_ideal,refused_requests,source,belady_hit_blocks\n",
        );
        let optional = |n: Option<u64>| n.map_or_else(String::new, |n| n.to_string());
        for p in &self.points {
            let _ = writeln!(
                out,
                "{},{},{},{},{},{},{},{},{},{},{},{}",
                p.capacity_blocks,
                p.capacity_tokens,
                optional(p.capacity_bytes),
                p.hit_blocks,
                p.hit_tokens,
                p.hit_rate_blocks,
                p.hit_rate_tokens,
                p.hit_rate_mean_of_requests,
                p.share_of_ideal,
                p.refused_requests,
                p.source,
                optional(p.belady_hit_blocks)
            );
        }
        out
    }

    /// The points for documents.
    pub fn markdown(&self) -> String {
        let mut out = String::from(
            "| blocks | tokens | hit rate (tokens) | hit rate (blocks) | mean of requests | of ideal |\n\
             | --: | --: | --: | --: | --: | --: |\n",
        );
        for p in &self.points {
            let _ = writeln!(
                out,
                "| {} | {} | {:.4} | {:.4} | {:.4} | {:.4} |",
                p.capacity_blocks,
                p.capacity_tokens,
                p.hit_rate_tokens,
                p.hit_rate_blocks,
                p.hit_rate_mean_of_requests,
                p.share_of_ideal
            );
        }
        out
    }

    /// A self-contained page: the picture and the text.
    ///
    /// # Errors
    /// If the picture cannot be drawn.
    pub fn html(&self) -> Result<String> {
        let text = self.facts(None);
        Ok(format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
             <style>body{{font-family:sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}svg{{max-width:100%;\
             height:auto}}</style></head>\n<body><h1>{title}</h1>\n{svg}\n<pre>{text}</pre>\n</body></html>\n",
            title = html_text(&format!("Prefix-cache hit rate: {}", self.trace)),
            svg = self.chart().svg(900, 480)?,
            text = html_text(&text),
        ))
    }
}
