//! `kvwise replay --engine vllm`: a trace through vLLM's scheduler and block manager, with its events as lines of JSON.

use std::path::Path;

use kvwise_cache::manager::{GroupKind, GroupSpec, Retention};
use kvwise_cache::pool::ReleaseOrder;
use kvwise_core::engine::vllm::Method;
use kvwise_core::engine::vllm::version::{FreedBlocks, JunctionRule, RetentionRule, Rules, Version};
use kvwise_core::{Error, Result};
use kvwise_sim::replay::vllm::{Clock, EventLines, ReplayConfig, Summary, run, run_unheard};
use kvwise_sim::sched::vllm::{DraftCounts, Drafter, Junctions, Speculation};
use kvwise_sim::trace::{Trace, TraceFormat};
use serde::Deserialize;

use super::event_file::EventFile;
use crate::report::replay_vllm::VllmReplayReport;

/// Replays `trace` and writes its events, if asked for, in the form of the reference replay of vLLM's own code.
///
/// # Errors
/// If vLLM would refuse the settings, or the events cannot be written.
pub fn replay(trace: &Trace, config: &ReplayConfig, events: Option<&Path>) -> Result<VllmReplayReport> {
    let summary = match events {
        None => run_unheard(trace, config)?,
        Some(path) => with_events(trace, config, path)?,
    };
    Ok(VllmReplayReport::new(&summary))
}

fn with_events(trace: &Trace, config: &ReplayConfig, path: &Path) -> Result<Summary> {
    let mut file = EventFile::create(path)?;
    let mut lines = EventLines::new(trace);
    let summary = run(trace, config, &mut lines, |lines| file.pour(&mut lines.text))?;
    lines.summary(&summary);
    file.finish(&lines.text)?;
    Ok(summary)
}

/// The groups of a model, as `full:1,swa1024:5`: kind and how many groups of it.
///
/// Kinds: `full`, `swaN` (sliding window of N tokens), `chunkN` (chunked local attention), `mamba` (states at block
/// boundaries). A kind may have its own block size: `swa1024@32:5`; `+eagle` behind it marks the group that has the
/// drafter's layers: `full+eagle:1`.
///
/// # Errors
/// If the text is not of that form; the message names the part.
pub fn groups(text: &str, block_size: u32) -> Result<Vec<GroupSpec>> {
    let mut groups = Vec::new();
    for item in text.split(',') {
        let bad = |what: &str| {
            Error::input(format!("--groups: \"{item}\" {what}")).hint(
                "write full:1,swa1024:5 for one group of full attention and five of a 1,024-token window",
            )
        };
        let (kind, count) = item
            .split_once(':')
            .ok_or_else(|| bad("has no count after a colon"))?;
        let count: u32 = count
            .parse()
            .ok()
            .filter(|n| (1..=64).contains(n))
            .ok_or_else(|| bad("has no count from 1 to 64"))?;
        let (kind, eagle) = match kind.strip_suffix("+eagle") {
            Some(kind) => (kind, true),
            None => (kind, false),
        };
        let (kind, size) = match kind.split_once('@') {
            None => (kind, block_size),
            Some((kind, size)) => (
                kind,
                positive(size).ok_or_else(|| bad("has no block size after @"))?,
            ),
        };
        let group = if kind == "full" {
            GroupSpec::full(size)
        } else if kind == "mamba" {
            GroupSpec::mamba_align(size)
        } else if let Some(window) = kind.strip_prefix("swa") {
            let window =
                positive(window).ok_or_else(|| bad("has no window of at least 1 token after swa"))?;
            GroupSpec::sliding_window(size, window)
        } else if let Some(chunk) = kind.strip_prefix("chunk") {
            let chunk = positive(chunk).ok_or_else(|| bad("has no chunk of at least 1 token after chunk"))?;
            GroupSpec::chunked_local(size, chunk)
        } else {
            return Err(bad("is of no known kind: full, swaN, chunkN or mamba"));
        };
        groups.extend((0..count).map(|_| GroupSpec { eagle, ..group }));
    }
    Ok(groups)
}

/// Where a release of vLLM puts the blocks that a request gives back.
pub fn release_order(version: Version) -> ReleaseOrder {
    match Rules::of(version).freed_blocks {
        FreedBlocks::AllLast => ReleaseOrder::AllLast,
        FreedBlocks::WindowsUnnamedFirst => ReleaseOrder::WindowsUnnamedFirst,
        FreedBlocks::UnnamedFirst => ReleaseOrder::UnnamedFirst,
    }
}

/// What a release of vLLM does where prompts part.
pub fn junctions(version: Version) -> Junctions {
    match Rules::of(version).junctions {
        JunctionRule::None => Junctions::Ignored,
        JunctionRule::EndsChunk => Junctions::EndChunks,
        JunctionRule::IsRetained => Junctions::Retained,
    }
}

/// The retention interval of a release: as asked for, else its default.
///
/// # Errors
/// If the release has no such setting, or not for Mamba states, and it is asked for.
pub fn retention_of(asked: Option<&str>, version: Version, groups: &[GroupSpec]) -> Result<Retention> {
    let rule = Rules::of(version).retention;
    let Some(text) = asked else {
        return Ok(if rule == RetentionRule::ZeroByDefault {
            Retention::ReplayOnly
        } else {
            Retention::Dense
        });
    };
    let retention = retention(text)?;
    let refuse = |what: &str| {
        Err(
            Error::unsupported(format!("--retention is {text}, but vLLM {version} {what}"))
                .hint("say --retention none, or a newer --engine-version"),
        )
    };
    let states = groups
        .iter()
        .any(|group| matches!(group.kind, GroupKind::MambaAlign { .. }));
    match rule {
        _ if retention == Retention::Dense => Ok(retention),
        RetentionRule::None => refuse("names every block: it has no retention interval"),
        RetentionRule::Windows if states => {
            refuse("has a retention interval for sliding windows only, not for Mamba states")
        }
        _ => Ok(retention),
    }
}

/// vLLM's `prefix_cache_retention_interval`: `none`, 0, or tokens.
///
/// # Errors
/// If it is none of these.
pub fn retention(text: &str) -> Result<Retention> {
    match text {
        "none" => Ok(Retention::Dense),
        "0" => Ok(Retention::ReplayOnly),
        tokens => positive(tokens).map(Retention::Every).ok_or_else(|| {
            Error::input(format!(
                "--retention is \"{tokens}\", expected none, 0 or a number of tokens"
            ))
        }),
    }
}

/// Speculation as `--speculative-config` gives it to vLLM, with the mean of accepted drafts a step.
///
/// # Errors
/// If the text is not such an object, names a method that is not replayed, or gives batch sizes that vLLM refuses.
pub fn speculation(text: &str, accepted_tokens: f64) -> Result<Speculation> {
    #[derive(Deserialize)]
    struct Given {
        method: String,
        num_speculative_tokens: u32,
        #[serde(default)]
        disable_eagle_block_drop: bool,
        #[serde(default)]
        parallel_drafting: bool,
        #[serde(default)]
        num_speculative_tokens_per_batch_size: Option<Vec<(u32, u32, u32)>>,
    }
    let given: Given = serde_json::from_str(text).map_err(|e| {
        Error::input(format!("--speculative-config cannot be read: {e}"))
            .hint(r#"example: '{"method":"eagle3","num_speculative_tokens":3}'"#)
    })?;
    let method = Method::parse(&given.method)?;
    let drops_block = !given.disable_eagle_block_drop;
    let drafter = match method {
        // DSpark samples from its anchor, as it does unless its own configuration says otherwise.
        Method::Eagle | Method::Eagle3 | Method::Mtp | Method::DSpark => {
            Drafter::HiddenStates { drops_block }
        }
        Method::DFlash => Drafter::Flash { drops_block },
        Method::Ngram | Method::NgramGpu | Method::Medusa | Method::MlpSpeculator => Drafter::Ngram,
        Method::DraftModel => Drafter::Model,
        Method::Suffix => {
            return Err(Error::unsupported(
                "--speculative-config method suffix is not replayed: how many tokens it drafts in a step, and which of them are \
                 right, follows from what was generated before (Arctic Inference's suffix trees), and not from a mean",
            )
            .hint("method ngram drafts a fixed number with the same scheduling and no KV cache of its own"));
        }
    };
    let draft_counts = DraftCounts::new(
        given
            .num_speculative_tokens_per_batch_size
            .as_deref()
            .unwrap_or_default(),
    )
    .map_err(|e| e.at("--speculative-config"))?;
    if !(0.0..=64.0).contains(&accepted_tokens) {
        return Err(Error::input(format!(
            "--accepted-tokens is {accepted_tokens}, expected 0 to num_speculative_tokens"
        )));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 64,000, as just checked"
    )]
    let accepted_per_mille = (accepted_tokens * 1000.0).round() as u32;
    Ok(Speculation {
        draft_tokens: given.num_speculative_tokens,
        drafter,
        parallel: given.parallel_drafting || matches!(method, Method::DFlash | Method::DSpark),
        draft_counts,
        accepted_per_mille,
    })
}

/// The clock that suits the trace, unless one is asked for: steps for the `tokens` format, else seconds.
pub fn clock(asked_for_steps: Option<bool>, step_time: f64, format: TraceFormat) -> Clock {
    if asked_for_steps.unwrap_or(!format.times_are_seconds()) {
        Clock::Steps
    } else {
        Clock::Seconds { step_time }
    }
}

fn positive(text: &str) -> Option<u32> {
    text.parse().ok().filter(|&n: &u32| (1..1 << 28).contains(&n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_as_kind_and_count() {
        let read = groups("full:1,swa1024:2,chunk8192@32:1,mamba:1", 16).unwrap();
        assert_eq!(
            read,
            [
                GroupSpec::full(16),
                GroupSpec::sliding_window(16, 1024),
                GroupSpec::sliding_window(16, 1024),
                GroupSpec::chunked_local(32, 8192),
                GroupSpec::mamba_align(16),
            ]
        );
        for (text, word) in [
            ("", "colon"),
            ("full", "colon"),
            ("full:0", "count"),
            ("full:9999999999", "count"),
            ("swa:1", "window"),
            ("swa0:1", "window"),
            ("chunk-1:1", "chunk"),
            ("full@0:1", "block size"),
            ("rnn:1", "kind"),
        ] {
            let error = groups(text, 16).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn speculation_is_read_as_vllm_takes_it() {
        let eagle = r#"{"method":"eagle3","model":"any","num_speculative_tokens":3}"#;
        let read = speculation(eagle, 1.5).unwrap();
        assert_eq!(
            read,
            Speculation {
                draft_tokens: 3,
                drafter: Drafter::HiddenStates { drops_block: true },
                parallel: false,
                draft_counts: DraftCounts::default(),
                accepted_per_mille: 1500
            }
        );
        for (method, drafter) in [
            ("ngram", Drafter::Ngram),
            ("draft_model", Drafter::Model),
            ("mtp", Drafter::HiddenStates { drops_block: true }),
            ("dspark", Drafter::HiddenStates { drops_block: true }),
            ("dflash", Drafter::Flash { drops_block: true }),
            ("medusa", Drafter::Ngram),
        ] {
            let text = format!(r#"{{"method":"{method}","num_speculative_tokens":3}}"#);
            assert_eq!(speculation(&text, 0.0).unwrap().drafter, drafter);
        }
        let kept = r#"{"method":"eagle","num_speculative_tokens":3,"disable_eagle_block_drop":true}"#;
        let drafter = Drafter::HiddenStates { drops_block: false };
        assert_eq!(speculation(kept, 0.0).unwrap().drafter, drafter);
        let dynamic = r#"{"method":"draft_model","num_speculative_tokens":4,"parallel_drafting":true,
            "num_speculative_tokens_per_batch_size":[[1,4,3],[5,64,1]]}"#;
        let read = speculation(dynamic, 1.0).unwrap();
        assert!(read.parallel);
        assert_eq!(read.draft_counts.after(5, 4), 1);
        for (text, accepted, word) in [
            ("eagle", 0.0, "cannot be read"),
            (r#"{"method":"eagle"}"#, 0.0, "num_speculative_tokens"),
            (
                r#"{"method":"eagle","num_speculative_tokens":-1}"#,
                0.0,
                "cannot be read",
            ),
            (r#"{"method":"magic","num_speculative_tokens":1}"#, 0.0, "magic"),
            (r#"{"method":"suffix","num_speculative_tokens":1}"#, 0.0, "suffix"),
            (
                r#"{"method":"mtp","num_speculative_tokens":1,"num_speculative_tokens_per_batch_size":[[2,4,1]]}"#,
                0.0,
                "begins at 2",
            ),
            (
                r#"{"method":"mtp","num_speculative_tokens":1,"num_speculative_tokens_per_batch_size":[[1,4]]}"#,
                0.0,
                "cannot be read",
            ),
            (eagle, -1.0, "--accepted-tokens"),
            (eagle, f64::NAN, "--accepted-tokens"),
        ] {
            let error = speculation(text, accepted).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let marked = groups("full+eagle:1,swa64@32+eagle:2", 16).unwrap();
        assert!(marked.iter().all(|group| group.eagle) && marked.len() == 3);
    }

    #[test]
    fn retention_and_junctions_are_those_of_the_release() {
        let version = |minor| Version::new(0, minor, 0);
        let (windows, states) = ([GroupSpec::sliding_window(16, 64)], [GroupSpec::mamba_align(16)]);
        let of = |asked, minor, groups| retention_of(asked, version(minor), groups);
        assert_eq!(of(None, 32, &windows).unwrap(), Retention::ReplayOnly);
        assert_eq!(of(None, 28, &windows).unwrap(), Retention::Dense);
        assert_eq!(of(Some("none"), 20, &windows).unwrap(), Retention::Dense);
        assert_eq!(of(Some("64"), 24, &windows).unwrap(), Retention::Every(64));
        assert_eq!(of(Some("0"), 24, &states).unwrap(), Retention::ReplayOnly);
        assert!(
            of(Some("0"), 22, &windows)
                .unwrap_err()
                .to_string()
                .contains("0.22")
        );
        assert!(
            of(Some("0"), 23, &states)
                .unwrap_err()
                .to_string()
                .contains("Mamba")
        );
        assert_eq!(junctions(version(22)), Junctions::Ignored);
        assert_eq!(junctions(version(24)), Junctions::EndChunks);
        assert_eq!(junctions(version(32)), Junctions::Retained);
    }

    #[test]
    fn retention_is_none_zero_or_tokens() {
        assert_eq!(retention("none").unwrap(), Retention::Dense);
        assert_eq!(retention("0").unwrap(), Retention::ReplayOnly);
        assert_eq!(retention("256").unwrap(), Retention::Every(256));
        assert!(retention("-1").is_err());
        assert!(retention("often").is_err());
    }
}
