//! Rules about the prefix cache: what it saves, and what it loses.

use super::facts::{Facts, scraped};
use super::pool::more_room;
use super::{CODE, Draft, GUIDE, percent, suggest};
use crate::report::session::SessionReport;
use crate::report::session::finding::{Confidence, Severity};

pub(super) fn prefix_cache(f: &Facts, out: &mut Vec<Draft>) {
    if f.prefix_caching == Some(false) {
        out.push(Draft {
            rule: "prefix_caching_off",
            severity: Severity::Improve,
            title: "prefix caching is switched off".to_owned(),
            evidence: "enable_prefix_caching is False".to_owned(),
            threshold: "on is vLLM's default",
            source: CODE,
            confidence: Confidence::Medium,
            suggestion: Some(suggest(
                "--enable-prefix-caching",
                "",
                "of no use where no two prompts begin alike",
            )),
        });
        return;
    }
    let (Some(rate), Some(queries)) = (f.hit_rate, f.query_tokens) else {
        return;
    };
    if queries < 10_000.0 {
        return;
    }
    let evidence = format!("{} of {queries:.0} looked-up tokens were found", percent(rate));
    let evicts = f.evicted_with_content.unwrap_or(0.0) > 0.0 || f.idle_p50_s.is_some();
    if rate < 0.1 {
        out.push(Draft {
            rule: "hit_rate_low",
            severity: Severity::Info,
            title: "few prompts begin like an earlier one that is still cached".to_owned(),
            evidence,
            threshold: "low below 10 %, high above 50 %",
            source: GUIDE,
            confidence: if evicts {
                Confidence::Low
            } else {
                Confidence::Medium
            },
            suggestion: None,
        });
    } else if rate > 0.5 {
        out.push(Draft {
            rule: "hit_rate_high",
            severity: Severity::Info,
            title: "the prefix cache saves most of the prompt work".to_owned(),
            evidence,
            threshold: "high above 50 %",
            source: GUIDE,
            confidence: Confidence::High,
            suggestion: None,
        });
    }
    if let (Some(life), Some(lost)) = (f.lifetime_p50_s, f.evicted_with_content)
        && lost > 0.0
        && life < 5.0
    {
        let never = f.never_hit_share.unwrap_or(0.0);
        out.push(Draft {
                rule: "content_evicted_early",
                severity: Severity::Improve,
                title: "cached content is thrown away within seconds".to_owned(),
                evidence: format!(
                    "{lost:.0} recorded evictions of cached content, median lifetime {life:.2} s, {} never hit",
                    percent(never)
                ),
                threshold: "median below 5 s, counting only blocks with cached content: vLLM's own histogram also \
                            counts the unfilled tails of requests, which are reused at once and cost nothing",
                source: GUIDE,
                confidence: Confidence::Medium,
                suggestion: Some(more_room(f)),
            });
    }
}

pub(super) fn recomputation(report: &SessionReport, out: &mut Vec<Draft>) {
    for c in &report.contents {
        let share = c.recomputed as f64 / (c.stored.max(1)) as f64;
        if c.recomputed > 0 && share > 0.05 {
            out.push(Draft {
                rule: "evicted_then_recomputed",
                severity: Severity::Improve,
                title:
                    "blocks are computed again that had been cached and evicted: a larger pool would have hit"
                        .to_owned(),
                evidence: format!(
                    "{} of {} stored block contents ({}), {} tokens",
                    c.recomputed,
                    c.stored,
                    percent(share),
                    c.recomputed * c.block_tokens
                ),
                threshold: "above 5 % of what is stored",
                source: "KV events: the same content stored again after its removal",
                confidence: Confidence::High,
                suggestion: report.engines.first().map(|e| more_room(&scraped(e))),
            });
        }
    }
}
