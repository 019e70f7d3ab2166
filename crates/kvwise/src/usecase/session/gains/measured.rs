//! Gains by arithmetic on measured figures, for recordings that do not hold the requests themselves.
//!
//! What these figures determine is said: tokens of the pool, and how many requests of the observed mean length it holds at
//! once. What needs the order of requests (hit rate, preemptions) is not.

use crate::report::session::{Gain, Suggestion};
use crate::usecase::session::rules::facts::Facts;

/// The gain of a change, where the figures of `facts` determine it.
pub(super) fn gain(facts: &Facts, suggestion: &Suggestion) -> Option<Gain> {
    let capacity = facts.capacity_tokens.filter(|c| *c > 0.0);
    match suggestion.flag.as_str() {
        "--kv-cache-dtype" if suggestion.value == "fp8" && facts.one_kind_of_cache != Some(false) => {
            let if_one_kind = if facts.one_kind_of_cache.is_none() {
                ", if all layers keep keys and values"
            } else {
                ""
            };
            let how = format!("one byte in place of two for each element{if_one_kind}");
            Some(larger_pool(facts, capacity?, capacity? * 2.0, &how))
        }
        "--gpu-memory-utilization" => {
            let factor = room_factor(facts, suggestion.value.parse().ok()?)?;
            let how = format!(
                "weights, activations and others as measured at start, the cache {factor:.3} times as large"
            );
            Some(larger_pool(facts, capacity?, capacity? * factor, &how))
        }
        "--max-num-seqs" => {
            let after: f64 = suggestion.value.parse().ok()?;
            let before = facts.max_num_seqs.or(facts.running_max)?;
            let length = mean_length(facts)?;
            let fit = (capacity? / length).floor();
            Some(Gain {
                text: format!(
                    "at most {before:.0} -> {:.0} requests at once; the pool holds {fit:.0} of the mean length",
                    after.min(fit.max(1.0))
                ),
                basis: lengths_basis(facts),
            })
        }
        "--block-size" => {
            let after: f64 = suggestion.value.parse().ok()?;
            let before = facts.block_size?;
            let length = mean_length(facts)?;
            // a length is as likely to end at one place of a block as at another
            let held = |block: f64| length + block / 2.0;
            let at_once = |block: f64| (capacity.unwrap_or(0.0) / held(block)).floor();
            let room = capacity.map_or_else(String::new, |_| {
                format!(
                    ", requests of the mean length at once {:.0} -> {:.0}",
                    at_once(before),
                    at_once(after)
                )
            });
            Some(Gain {
                text: format!(
                    "a request holds {:.0} -> {:.0} tokens of blocks{room}",
                    held(before),
                    held(after)
                ),
                basis: format!("{}, half a block unfilled", lengths_basis(facts)),
            })
        }
        _ => None,
    }
}

/// How many times as large the cache is with another utilisation: the same weights and activations, a larger budget.
pub(super) fn room_factor(facts: &Facts, utilization: f64) -> Option<f64> {
    let memory = facts.memory?;
    let gpu_bytes = (memory.available_bytes + memory.other_bytes) / memory.utilization;
    let after = gpu_bytes * utilization - memory.other_bytes;
    (after > memory.available_bytes).then_some(after / memory.available_bytes)
}

fn mean_length(facts: &Facts) -> Option<f64> {
    Some(facts.prompt_mean? + facts.output_mean?).filter(|l| *l > 0.0)
}

fn lengths_basis(facts: &Facts) -> String {
    format!(
        "arithmetic on the recorded mean of {:.0} prompt and {:.0} generated tokens; requests that share prefixes need less",
        facts.prompt_mean.unwrap_or(0.0),
        facts.output_mean.unwrap_or(0.0)
    )
}

fn larger_pool(facts: &Facts, before: f64, after: f64, how: &str) -> Gain {
    let at_once = mean_length(facts).map_or_else(String::new, |length| {
        format!(
            ", requests of the mean length at once {:.0} -> {:.0}",
            (before / length).floor(),
            (after / length).floor()
        )
    });
    let lengths = if at_once.is_empty() {
        String::new()
    } else {
        format!("; {}", lengths_basis(facts))
    };
    Gain {
        text: format!("pool {before:.0} -> {after:.0} tokens{at_once}"),
        basis: format!(
            "{how}{lengths}. Hit rate and preemptions need the requests: record them with `kvwise run`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usecase::session::rules::facts::Memory;

    fn facts() -> Facts {
        Facts {
            is_vllm: true,
            capacity_tokens: Some(41_000.0),
            prompt_mean: Some(700.0),
            output_mean: Some(100.0),
            running_max: Some(8.0),
            block_size: Some(128.0),
            ..Facts::default()
        }
    }

    fn text(facts: &Facts, flag: &str, value: &str) -> Option<String> {
        let suggestion = Suggestion {
            flag: flag.to_owned(),
            value: value.to_owned(),
            caveat: String::new(),
        };
        gain(facts, &suggestion).map(|g| {
            assert!(!g.basis.is_empty());
            g.text
        })
    }

    #[test]
    fn gains_are_sums_of_the_measured_figures() {
        let f = facts();
        assert_eq!(
            text(&f, "--kv-cache-dtype", "fp8").as_deref(),
            Some("pool 41000 -> 82000 tokens, requests of the mean length at once 51 -> 102")
        );
        // 41000 / (800 + 64) and / (800 + 8)
        assert_eq!(
            text(&f, "--block-size", "16").as_deref(),
            Some("a request holds 864 -> 808 tokens of blocks, requests of the mean length at once 47 -> 50")
        );
        assert_eq!(
            text(&f, "--max-num-seqs", "16").as_deref(),
            Some("at most 8 -> 16 requests at once; the pool holds 51 of the mean length")
        );
    }

    #[test]
    fn a_larger_share_of_the_gpu_goes_to_the_cache_whole() {
        let f = Facts {
            memory: Some(Memory {
                utilization: 0.9,
                available_bytes: 20e9,
                other_bytes: 16e9,
            }),
            ..facts()
        };
        // the GPU has 40 GB; 0.95 of it less 16 GB are 22 GB
        assert_eq!(
            room_factor(&f, 0.95).map(|x| (x * 1e6).round()),
            Some(1_100_000.0)
        );
        assert_eq!(
            text(&f, "--gpu-memory-utilization", "0.95").as_deref(),
            Some("pool 41000 -> 45100 tokens, requests of the mean length at once 51 -> 56")
        );
        assert_eq!(
            text(&f, "--gpu-memory-utilization", "0.9"),
            None,
            "no more than it has"
        );
    }

    #[test]
    fn what_the_figures_do_not_determine_is_not_said() {
        let f = facts();
        assert_eq!(text(&f, "--gpu-memory-utilization", "0.95"), None);
        assert_eq!(text(&f, "--enable-prefix-caching", ""), None);
        assert_eq!(text(&f, "--mem-fraction-static", "0.9"), None);
        let hybrid = Facts {
            one_kind_of_cache: Some(false),
            ..facts()
        };
        assert_eq!(text(&hybrid, "--kv-cache-dtype", "fp8"), None);
        let bare = Facts::default();
        for (flag, value) in [
            ("--kv-cache-dtype", "fp8"),
            ("--block-size", "16"),
            ("--max-num-seqs", "9"),
        ] {
            assert_eq!(text(&bare, flag, value), None, "{flag}");
        }
    }
}
