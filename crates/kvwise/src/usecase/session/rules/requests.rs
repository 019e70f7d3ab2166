//! Rules about the lengths of requests, and the CUDA graphs that their steps find.

use super::facts::Facts;
use super::{CODE, Draft, GUIDE, percent, suggest};
use crate::report::session::finding::{Confidence, Severity};

/// The smallest block that vLLM's attention backends for GPUs all take.
const SMALLEST_BLOCK: f64 = 16.0;

pub(super) fn lengths(f: &Facts, out: &mut Vec<Draft>) {
    if let (Some(limit), Some(prompt), Some(output)) = (f.max_model_len, f.prompt_p99, f.output_p99)
        && prompt + output < limit * 0.25
    {
        out.push(Draft {
                rule: "max_model_len",
                severity: Severity::Info,
                title: "requests are far shorter than max_model_len".to_owned(),
                evidence: format!(
                    "99th percentiles: prompt {prompt:.0} and output {output:.0} of {limit:.0} tokens"
                ),
                threshold: "below a quarter. Blocks are given out as a request grows: a smaller max_model_len frees no \
                            KV memory (the guide says otherwise); it matters only where the engine refuses to start",
                source: CODE,
                confidence: Confidence::High,
                suggestion: None,
            });
    }
    if let (Some(block), Some(prompt), Some(output)) = (f.block_size, f.prompt_mean, f.output_mean) {
        let length = prompt + output;
        let waste = block / 2.0 / length;
        if length > 0.0 && waste > 0.05 {
            out.push(Draft {
                rule: "block_size",
                severity: Severity::Improve,
                title: "the unfilled last block of each request is a large part of what it holds".to_owned(),
                evidence: format!(
                    "half a block of {block:.0} tokens is {} of a mean request of {length:.0} tokens",
                    percent(waste)
                ),
                threshold: "above 5 %",
                source: GUIDE,
                confidence: Confidence::Medium,
                suggestion: (f.is_vllm && block > SMALLEST_BLOCK).then(|| {
                    suggest(
                        "--block-size",
                        "16",
                        "if the attention backend supports it; smaller blocks also match shorter prefixes",
                    )
                }),
            });
        }
    }
}

pub(super) fn graphs(f: &Facts, out: &mut Vec<Draft>) {
    if let Some(share) = f.graph_share.filter(|s| *s < 0.9) {
        out.push(Draft {
            rule: "graph_coverage",
            severity: Severity::Improve,
            title: "many steps run without a CUDA graph".to_owned(),
            evidence: format!("{} of the steps replayed a graph", percent(share)),
            threshold: "below 90 %; steps with long prefills run without a full graph by design",
            source: GUIDE,
            confidence: Confidence::Low,
            suggestion: None,
        });
    }
}
