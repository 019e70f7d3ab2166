//! The answers of `kvwise trace info` and `kvwise tree`.

use std::fmt::Write as _;

use kvwise_sim::trace::Distribution;
use serde::Serialize;

use crate::plot::{histogram, short};

/// What a trace is like.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TraceInfo {
    /// `kvwise.trace_info/1`.
    pub schema: &'static str,
    /// Name of the trace.
    pub trace: String,
    /// Its format.
    pub trace_format: &'static str,
    /// Requests.
    pub requests: u64,
    /// Unreadable entries left out.
    pub skipped: u64,
    /// `tokens`, `blocks` or `none`.
    pub content: &'static str,
    /// Prompt tokens of all requests.
    pub input_tokens: u64,
    /// Generated tokens of all requests.
    pub output_tokens: u64,
    /// Prompt lengths in tokens.
    pub input_len_tokens: Spread,
    /// Output lengths in tokens.
    pub output_len_tokens: Spread,
    /// Prompts by length: `[k]` of 2^k to 2^(k+1) - 1 tokens.
    pub input_len_log2_counts: Vec<u64>,
    /// Outputs by length.
    pub output_len_log2_counts: Vec<u64>,
    /// Times, if the trace has them.
    pub arrivals: Option<ArrivalInfo>,
    /// Conversations, if known.
    pub sessions: Option<SessionInfo>,
    /// Shared prefixes, if the content is known.
    pub sharing: Option<SharingInfo>,
}

/// When requests come.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ArrivalInfo {
    /// From the first to the last.
    pub span_s: f64,
    /// Requests per second over the span.
    pub requests_per_s: f64,
    /// Time between arrivals.
    pub gap_s: Option<Spread>,
    /// Standard deviation over mean of the gaps: 1 for Poisson, more for bursts.
    pub gap_cv: Option<f64>,
    /// Requests in each of the equal parts of the span.
    pub requests_by_part: Vec<u64>,
    /// Requests in service at once under the times below, without waiting.
    pub concurrency_mean: f64,
    /// The most at once.
    pub concurrency_peak: u64,
    /// Assumed time to the first token.
    pub assumed_ttft_s: f64,
    /// Assumed time of a token.
    pub assumed_tpot_s: f64,
}

/// Conversations.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SessionInfo {
    /// How many.
    pub count: u64,
    /// Requests of each.
    pub requests: Spread,
}

/// What could be reused with unlimited room.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SharingInfo {
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Blocks of all prompts.
    pub block_accesses: u64,
    /// Distinct blocks.
    pub unique_blocks: u64,
    /// Tokens hit over all prompt tokens.
    pub ideal_hit_rate_tokens: f64,
    /// Mean over requests of the share of the prompt hit.
    pub ideal_hit_rate_mean_of_requests: f64,
    /// Requests that share at least one block with an earlier one.
    pub requests_with_hit: u64,
    /// Share of the distinct blocks that is never used again.
    pub never_reused_share: f64,
    /// Share of all reuses that go to the tenth of the blocks used most.
    pub top_tenth_reuse_share: f64,
}

/// Quantiles of a distribution.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// Nine tenths are at most this.
    pub p90: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl From<Distribution> for Spread {
    fn from(d: Distribution) -> Self {
        Self {
            min: d.min,
            mean: d.mean,
            p50: d.p50,
            p90: d.p90,
            p99: d.p99,
            max: d.max,
        }
    }
}

impl Spread {
    fn text(&self) -> String {
        format!(
            "mean {:.1}, median {}, p90 {}, p99 {}, max {}",
            self.mean,
            short(self.p50),
            short(self.p90),
            short(self.p99),
            short(self.max)
        )
    }
}

impl TraceInfo {
    /// For people.
    pub fn text(&self, width: usize) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{} ({}): {} requests, content: {}",
            self.trace, self.trace_format, self.requests, self.content
        );
        let _ = writeln!(
            out,
            "Prompts: {} tokens; {}",
            self.input_tokens,
            self.input_len_tokens.text()
        );
        let _ = writeln!(
            out,
            "Outputs: {} tokens; {}",
            self.output_tokens,
            self.output_len_tokens.text()
        );
        if let Some(a) = &self.arrivals {
            let _ = writeln!(
                out,
                "Arrivals: {:.1} s, {:.3} requests/s",
                a.span_s, a.requests_per_s
            );
            if let Some(cv) = a.gap_cv {
                let _ = writeln!(out, "  variation of gaps {cv:.2} (1 is Poisson)");
            }
            let _ = writeln!(
                out,
                "  in service at once: {:.1} on average, {} at most (assumed {} s to the first token, {} s a token)",
                a.concurrency_mean, a.concurrency_peak, a.assumed_ttft_s, a.assumed_tpot_s
            );
        }
        if let Some(s) = &self.sessions {
            let _ = writeln!(
                out,
                "Conversations: {}; requests each: {}",
                s.count,
                s.requests.text()
            );
        }
        if let Some(s) = &self.sharing {
            let _ = writeln!(
                out,
                "Sharing: {} accesses to {} distinct blocks of {} tokens\n  with unlimited room {:.2} % of tokens hit, \
                 {:.2} % of a request on average; {} requests hit\n  {:.1} % of blocks are never used again; the most used \
                 tenth takes {:.1} % of reuses",
                s.block_accesses,
                s.unique_blocks,
                s.block_tokens,
                100.0 * s.ideal_hit_rate_tokens,
                100.0 * s.ideal_hit_rate_mean_of_requests,
                s.requests_with_hit,
                100.0 * s.never_reused_share,
                100.0 * s.top_tenth_reuse_share
            );
        }
        let bins = |counts: &[u64]| -> Vec<(String, u64)> {
            let first = counts.iter().position(|&c| c > 0).unwrap_or(0);
            counts
                .iter()
                .enumerate()
                .skip(first)
                .map(|(k, &c)| (format!("{} tokens", short((1u64 << k) as f64)), c))
                .collect()
        };
        let _ = write!(
            out,
            "\nPrompt lengths, from\n{}",
            histogram(&bins(&self.input_len_log2_counts), width)
        );
        let _ = write!(
            out,
            "\nOutput lengths, from\n{}",
            histogram(&bins(&self.output_len_log2_counts), width)
        );
        if let Some(a) = &self.arrivals {
            let part = a.span_s / a.requests_by_part.len().max(1) as f64;
            let rows: Vec<(String, u64)> = a
                .requests_by_part
                .iter()
                .enumerate()
                .map(|(k, &n)| (format!("{} s", short(part * k as f64)), n))
                .collect();
            let _ = write!(out, "\nRequests by time, from\n{}", histogram(&rows, width));
        }
        out
    }
}

/// The shared prefixes that save most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TreeReport {
    /// `kvwise.tree/1`.
    pub schema: &'static str,
    /// Name of the trace.
    pub trace: String,
    /// Requests.
    pub requests: u64,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Prompt tokens of all requests.
    pub input_tokens: u64,
    /// Stretches that at least two requests share.
    pub shared_prefixes: u64,
    /// Tokens that all of them save with unlimited room (whole blocks).
    pub saved_tokens: u64,
    /// KV-cache bytes of a token, if given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_bytes_per_token: Option<u64>,
    /// Those that save most, the best first.
    pub prefixes: Vec<PrefixRow>,
}

/// One stretch of blocks that the same requests share.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PrefixRow {
    /// Its number; `parent` refers to it.
    pub prefix: u32,
    /// The stretch that it continues.
    pub parent: Option<u32>,
    /// Requests that use it.
    pub requests: u32,
    /// Id of the first of them.
    pub first_request: String,
    /// Tokens from the start of the prompt to its end (whole blocks).
    pub prefix_tokens: u64,
    /// Tokens of the stretch itself.
    pub own_tokens: u64,
    /// Prefill tokens saved with unlimited room.
    pub saved_tokens: u64,
    /// Saved tokens over all prompt tokens.
    pub saved_share: f64,
    /// Bytes that keep the stretch cached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_bytes: Option<u64>,
    /// The file's id of its last block, where it has ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_hash_id: Option<u64>,
}

impl TreeReport {
    /// For people.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{}: {} shared prefixes save {} of {} prompt tokens ({:.1} %) with unlimited room\n\n",
            self.trace,
            self.shared_prefixes,
            self.saved_tokens,
            self.input_tokens,
            100.0 * self.saved_tokens as f64 / self.input_tokens.max(1) as f64
        );
        let bytes = self.kv_bytes_per_token.is_some();
        let _ = writeln!(
            out,
            "{:>7} {:>7} {:>9} {:>10} {:>10} {:>12} {:>7}{}  first request",
            "prefix",
            "below",
            "requests",
            "to token",
            "own",
            "saved",
            "share",
            if bytes {
                format!(" {:>9}", "GiB")
            } else {
                String::new()
            }
        );
        for p in &self.prefixes {
            let below = p.parent.map_or_else(|| "-".to_owned(), |n| n.to_string());
            let gib = p.cached_bytes.map_or_else(String::new, |b| {
                format!(" {:>9.4}", b as f64 / (1u64 << 30) as f64)
            });
            let _ = writeln!(
                out,
                "{:>7} {below:>7} {:>9} {:>10} {:>10} {:>12} {:>6.2}%{gib}  {}",
                p.prefix,
                p.requests,
                p.prefix_tokens,
                p.own_tokens,
                p.saved_tokens,
                100.0 * p.saved_share,
                p.first_request
            );
        }
        out.push_str(
            "\nown: tokens of the stretch itself; saved: prefill not computed again (whole blocks)\n",
        );
        out
    }

    /// For spreadsheets.
    pub fn csv(&self) -> String {
        let mut out = String::from(
            "prefix,parent,requests,first_request,prefix_tokens,own_tokens,saved_tokens,saved_share,cached_bytes,last_hash_id\n",
        );
        let optional = |n: Option<u64>| n.map_or_else(String::new, |n| n.to_string());
        for p in &self.prefixes {
            let _ = writeln!(
                out,
                "{},{},{},\"{}\",{},{},{},{},{},{}",
                p.prefix,
                optional(p.parent.map(u64::from)),
                p.requests,
                p.first_request.replace('"', "\"\""),
                p.prefix_tokens,
                p.own_tokens,
                p.saved_tokens,
                p.saved_share,
                optional(p.cached_bytes),
                optional(p.last_hash_id)
            );
        }
        out
    }
}
