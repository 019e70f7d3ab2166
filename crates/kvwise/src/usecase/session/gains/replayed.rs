//! Gains computed by replaying the recorded requests through vLLM's scheduler rules with the changed setting.
//!
//! A gain is given only where the replay earns trust: replaying the recording with its own settings must give the
//! recorded hits and preemptions (asynchronous scheduling and several engines can make it differ). Otherwise nothing is
//! said.

use kvwise_cache::manager::{GroupSpec, Retention};
use kvwise_core::{Error, Result};
use kvwise_io::session::series::{self, Process};
use kvwise_io::session::{Session, sampling, trace};
use kvwise_sim::replay::vllm::{Clock, Isolation, ReplayConfig, Summary, run};
use kvwise_sim::sched::vllm::{Policy, SchedulerConfig};
use kvwise_sim::trace::{IdMeaning, NewRequest, PromptIds, Trace, TraceBuilder, TraceFormat};

use super::measured::room_factor;
use crate::report::session::{Gain, Suggestion};
use crate::usecase::session::rules::facts::Facts;

/// Largest difference between the recorded and the replayed share of hit tokens that is trusted.
const TRUSTED_HIT_DIFFERENCE: f64 = 0.01;

/// Replays one recording.
#[derive(Debug)]
pub(super) struct ReplayedGains {
    trace: Trace,
    config: SchedulerConfig,
    base: Summary,
    /// Whether the requests' contents are known: an engine without prefix caching need not have told.
    contents: bool,
}

impl ReplayedGains {
    /// Prepares a recording; `None` if it has no usable requests, or its replay does not match it.
    pub(super) fn new(session: &Session) -> Option<Self> {
        let processes = series::processes(&session.db).ok()?;
        let [process] = processes.as_slice() else {
            return None;
        };
        // a part of the requests would not fill the pool as all of them did
        if sampling::any(&session.db).ok()? {
            return None;
        }
        let config = config(process)?;
        let trace = recorded_trace(session).ok()?;
        let base = replay(&trace, &config).ok()?;
        let recorded = process.totals;
        // with caching off nothing is looked up: preemptions alone must agree
        if (recorded.query_tokens == 0 && process.caching) || base.requests == 0 {
            return None;
        }
        let recorded_rate = recorded.hit_tokens as f64 / recorded.query_tokens.max(1) as f64;
        let trusted = recorded.finished_requests > 0
            && (base.hit_rate - recorded_rate).abs() <= TRUSTED_HIT_DIFFERENCE
            && base
                .preemptions
                .abs_diff(u64::try_from(recorded.preemptions).ok()?)
                <= base.preemptions / 20 + 1;
        let contents = "SELECT EXISTS (SELECT 1 FROM request WHERE hash_ids <> '[]')";
        let contents = session.db.query_row(contents, [], |r| r.get(0)).ok()?;
        trusted.then_some(Self {
            trace,
            config,
            base,
            contents,
        })
    }

    /// The changed settings, and what they stand for.
    fn changed(&self, facts: &Facts, suggestion: &Suggestion) -> Option<(SchedulerConfig, String)> {
        let mut config = self.config.clone();
        // what is left beside the null block
        let usable = config.num_blocks.checked_sub(1)?;
        match suggestion.flag.as_str() {
            "--kv-cache-dtype" if suggestion.value == "fp8" => {
                // a 16-bit cache becomes an 8-bit one: the same bytes hold twice the blocks
                config.num_blocks = usable.checked_mul(2)?.checked_add(1)?;
                Some((config, "twice the blocks in the same memory".to_owned()))
            }
            "--gpu-memory-utilization" => {
                let factor = room_factor(facts, suggestion.value.parse().ok()?)?;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "bounded by the check"
                )]
                let blocks = Some(f64::from(usable) * factor)
                    .filter(|b| *b < f64::from(u32::MAX - 1))
                    .map(|b| b as u32)?;
                config.num_blocks = blocks + 1;
                Some((config, format!("{factor:.3} times the blocks")))
            }
            "--block-size" => {
                let block: u32 = suggestion.value.parse().ok().filter(|b| *b > 0)?;
                let old = config.groups.first()?.block_size;
                if old % block != 0 {
                    return None;
                }
                // the same bytes; the recorded prompts are told apart no finer than they were
                config.num_blocks = usable.checked_mul(old / block)?.checked_add(1)?;
                config.groups = vec![GroupSpec::full(block)];
                let how = format!(
                    "blocks of {block} tokens (prompts are told apart by {old} tokens: hits are a lower bound)"
                );
                Some((config, how))
            }
            "--enable-prefix-caching" if self.contents => {
                config.prefix_caching = true;
                Some((config, "prefix caching on".to_owned()))
            }
            "--max-num-seqs" => {
                config.max_num_seqs = suggestion.value.parse().ok()?;
                Some((config, "a larger batch".to_owned()))
            }
            _ => None,
        }
    }

    /// The gain of a change on the recorded requests, or `None` where the replay has no rule for it.
    pub(super) fn gain(&self, facts: &Facts, suggestion: &Suggestion) -> Option<Gain> {
        let (config, what) = self.changed(facts, suggestion)?;
        let after = replay(&self.trace, &config).ok()?;
        let before = &self.base;
        let block_of = |c: &SchedulerConfig| c.groups.first().map_or(1, |g| g.block_size);
        let tokens = |c: &SchedulerConfig| u64::from(c.num_blocks.saturating_sub(1)) * u64::from(block_of(c));
        let mut parts = Vec::new();
        if suggestion.flag == "--block-size" {
            parts.push(format!(
                "a request holds {:.0} -> {:.0} tokens of blocks",
                self.mean_held(block_of(&self.config)),
                self.mean_held(block_of(&config))
            ));
        } else {
            parts.push(format!(
                "pool {} -> {} tokens",
                tokens(&self.config),
                tokens(&config)
            ));
        }
        parts.push(format!(
            "hit rate {:.1} -> {:.1} %, preemptions {} -> {}, scheduler steps {} -> {}",
            before.hit_rate * 100.0,
            after.hit_rate * 100.0,
            before.preemptions,
            after.preemptions,
            before.steps,
            after.steps
        ));
        Some(Gain {
            text: parts.join(", "),
            basis: format!(
                "the recorded {} requests replayed with {what}; arrivals by scheduler step, so a faster server would \
                 have got them later",
                before.requests
            ),
        })
    }

    /// Tokens of the blocks that a recorded request held at its end, on average.
    fn mean_held(&self, block: u32) -> f64 {
        let count = self.trace.len();
        let held: u64 = (0..count)
            .map(|i| {
                let length = u64::from(self.trace.input_len(i)) + u64::from(self.trace.output_len(i));
                length.next_multiple_of(u64::from(block.max(1)))
            })
            .sum();
        held as f64 / count.max(1) as f64
    }
}

fn replay(trace: &Trace, config: &SchedulerConfig) -> Result<Summary> {
    let config = ReplayConfig {
        scheduler: config.clone(),
        clock: Clock::Steps,
        isolation: Isolation { lora: false },
    };
    run(trace, &config, &mut (), |()| Ok(()))
}

/// The scheduler settings of a recorded process; `None` where the replay has no rules for its layers.
fn config(process: &Process) -> Option<SchedulerConfig> {
    let s = &process.settings;
    let int = |key: &str| s[key].as_u64().and_then(|v| u32::try_from(v).ok());
    let groups = s["groups"].as_array()?;
    // several groups need the page arithmetic of the plan: not computed here
    let [group] = groups.as_slice() else { return None };
    if group["kind"].as_str() != Some("FullAttentionSpec") {
        return None;
    }
    let block_size = u32::try_from(group["block_size"].as_u64()?).ok()?;
    Some(SchedulerConfig {
        groups: vec![GroupSpec::full(block_size)],
        max_model_len: int("max_model_len")?,
        max_num_seqs: int("max_num_seqs")?,
        max_num_batched_tokens: int("max_num_batched_tokens")?,
        watermark: s["watermark"].as_f64().unwrap_or(0.0),
        policy: if s["policy"].as_str() == Some("priority") {
            Policy::Priority
        } else {
            Policy::Fcfs
        },
        prefix_caching: process.caching,
        retention: Retention::default(),
        ..SchedulerConfig::new(u32::try_from(process.num_blocks).ok()?, block_size)
    })
}

/// The recorded requests in the simulator's form.
///
/// # Errors
/// If none was recorded with its block hashes.
fn recorded_trace(session: &Session) -> Result<Trace> {
    let recorded = trace::read(&session.db)?;
    let block =
        u32::try_from(recorded.hash_block_tokens).map_err(|_| Error::overflow("the hash block size"))?;
    let mut builder =
        TraceBuilder::new(&session.metadata.session_id, block, IdMeaning::Prefix).format(TraceFormat::Tokens);
    for request in &recorded.requests {
        builder.push(&NewRequest {
            arrival: Some(request.arrival as f64),
            input_len: u64::try_from(request.input_len).ok(),
            output_len: u64::try_from(request.output_len).ok(),
            prompt: PromptIds::Blocks(&request.hash_ids),
            priority: request.priority,
            ..NewRequest::default()
        })?;
    }
    Ok(builder.finish())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kvwise_io::session::store::Metadata;

    use super::*;

    const SETTINGS: &str = r#"{"groups":[{"kind":"FullAttentionSpec","block_size":16}],"max_model_len":4096,"max_num_seqs":32,"max_num_batched_tokens":2048}"#;

    /// A recording of 40 requests: eight conversations, each prompt the last one and a bit more, in a pool too small
    /// to keep them all.
    fn recording(folder: &Path, settings: &str, num_blocks: u32) -> Session {
        let session = Session::create(folder, Metadata::new("run", Vec::new(), 0)).unwrap();
        let db = &session.db;
        db.execute_batch(
            "INSERT INTO process VALUES (1, 'probe-1.jsonl', 1, 0, '{\"vllm\":\"0.32.0\"}', 0, 0, 0, 1)",
        )
        .unwrap();
        db.execute("INSERT INTO pool VALUES (1, 0, 0, ?1, 1, 16)", [num_blocks])
            .unwrap();
        db.execute("INSERT INTO settings VALUES (1, 0, ?1)", [settings])
            .unwrap();
        for i in 0..40_i64 {
            let (turn, talk) = (i / 8, i % 8);
            let blocks = 8 + 4 * turn;
            let hashes: Vec<i64> = (0..blocks).map(|b| talk * 1000 + b).collect();
            db.execute(
                "INSERT INTO request VALUES (1, ?1, ?2, ?3, ?4, ?5, 16, 16, 0, 'stop', 0, 16, ?6)",
                (
                    i,
                    i * 1000,
                    i * 20,
                    i * 1000 + 500,
                    blocks * 16,
                    format!("{hashes:?}"),
                ),
            )
            .unwrap();
        }
        session
    }

    /// Writes totals as the replay of these settings would have counted them, `wrong` tokens in a million too many.
    fn count(session: &Session, wrong: i64) -> Summary {
        let process = &series::processes(&session.db).unwrap()[0];
        let base = replay(&recorded_trace(session).unwrap(), &config(process).unwrap()).unwrap();
        #[expect(clippy::cast_possible_truncation, reason = "a share of a million")]
        let hits = (base.hit_rate * 1e6).round() as i64 + wrong;
        session
            .db
            .execute(
                "INSERT INTO probe_total VALUES (1, 1, 0, 0, 0, 0, 1000000, ?1, 0, 0, ?2, 40, 100, 0, 0, 0, 0, 0)",
                (hits, i64::try_from(base.preemptions).unwrap()),
            )
            .unwrap();
        base
    }

    fn suggestion(flag: &str, value: &str) -> Suggestion {
        Suggestion {
            flag: flag.to_owned(),
            value: value.to_owned(),
            caveat: String::new(),
        }
    }

    #[test]
    fn a_trusted_recording_gives_gains_that_are_the_replays_own_figures() {
        let folder = tempfile::tempdir().unwrap();
        let session = recording(&folder.path().join("s"), SETTINGS, 101);
        let base = count(&session, 0);
        let gains = ReplayedGains::new(&session).unwrap();
        let facts = Facts::default();
        let (config, _) = gains
            .changed(&facts, &suggestion("--kv-cache-dtype", "fp8"))
            .unwrap();
        assert_eq!(config.num_blocks, 201);
        let after = replay(&gains.trace, &config).unwrap();
        assert!(
            after.hit_rate > base.hit_rate + 0.1,
            "{} {}",
            after.hit_rate,
            base.hit_rate
        );
        let gain = gains
            .gain(&facts, &suggestion("--kv-cache-dtype", "fp8"))
            .unwrap();
        let rates = format!(
            "hit rate {:.1} -> {:.1} %",
            base.hit_rate * 100.0,
            after.hit_rate * 100.0
        );
        assert!(
            gain.text.starts_with("pool 1600 -> 3200 tokens") && gain.text.contains(&rates),
            "{}",
            gain.text
        );
        assert!(gain.basis.contains("40 requests"), "{}", gain.basis);
        // a flag that the replay has no rule for gets no figure
        for other in ["--gpu-memory-utilization", "--block-size", "--max-num-seqs"] {
            assert!(
                gains.gain(&facts, &suggestion(other, "many")).is_none(),
                "{other}"
            );
        }
    }

    #[test]
    fn smaller_blocks_are_replayed_in_the_same_memory() {
        let folder = tempfile::tempdir().unwrap();
        let settings = SETTINGS.replace("\"block_size\":16", "\"block_size\":64");
        let session = recording(&folder.path().join("s"), &settings, 26);
        // the recording's hashes are those of blocks of 16 tokens; a server with blocks of 64 records its own
        session
            .db
            .execute_batch(
                "UPDATE request SET hash_block_tokens = 64, hash_ids = (SELECT json_group_array(value) FROM json_each(hash_ids) \
                 WHERE key < prompt_tokens / 64)",
            )
            .unwrap();
        count(&session, 0);
        let gains = ReplayedGains::new(&session).unwrap();
        let facts = Facts::default();
        let (config, _) = gains.changed(&facts, &suggestion("--block-size", "16")).unwrap();
        assert_eq!((config.num_blocks, config.groups[0].block_size), (101, 16));
        let gain = gains.gain(&facts, &suggestion("--block-size", "16")).unwrap();
        // prompts of 128 to 384 tokens by 64, and 16 generated: 80 and 16 tokens above a multiple of 64
        assert!(
            gain.text
                .starts_with("a request holds 320 -> 272 tokens of blocks, hit rate "),
            "{}",
            gain.text
        );
        assert!(gains.gain(&facts, &suggestion("--block-size", "48")).is_none());
    }

    #[test]
    fn a_recording_without_caching_is_replayed_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let session = recording(&folder.path().join("s"), SETTINGS, 2000);
        session.db.execute_batch("UPDATE pool SET caching = 0").unwrap();
        session
            .db
            .execute_batch(
                "INSERT INTO probe_total VALUES (1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 40, 100, 0, 0, 0, 0, 0)",
            )
            .unwrap();
        let gains = ReplayedGains::new(&session).unwrap();
        let gain = gains
            .gain(&Facts::default(), &suggestion("--enable-prefix-caching", ""))
            .unwrap();
        assert!(gain.text.contains("hit rate 0.0 -> "), "{}", gain.text);
        assert!(!gain.text.contains("hit rate 0.0 -> 0.0"), "{}", gain.text);
        // without contents every prompt would look like a new one
        session
            .db
            .execute_batch("UPDATE request SET hash_ids = '[]'")
            .unwrap();
        let gains = ReplayedGains::new(&session).unwrap();
        assert!(
            gains
                .gain(&Facts::default(), &suggestion("--enable-prefix-caching", ""))
                .is_none()
        );
    }

    #[test]
    fn a_recording_that_the_replay_does_not_repeat_gets_no_gains() {
        let folder = tempfile::tempdir().unwrap();
        let wrong = recording(&folder.path().join("a"), SETTINGS, 101);
        count(&wrong, 20_000);
        assert!(ReplayedGains::new(&wrong).is_none(), "2 % off");
        let nearly = recording(&folder.path().join("b"), SETTINGS, 101);
        count(&nearly, 5_000);
        assert!(ReplayedGains::new(&nearly).is_some(), "0.5 % off");
        let uncounted = recording(&folder.path().join("c"), SETTINGS, 101);
        assert!(ReplayedGains::new(&uncounted).is_none());
        for (name, settings) in [
            ("d", SETTINGS.replace("FullAttentionSpec", "MambaSpec")),
            (
                "e",
                SETTINGS.replace("}],", "},{\"kind\":\"FullAttentionSpec\",\"block_size\":16}],"),
            ),
            ("f", "{}".to_owned()),
        ] {
            let other = recording(&folder.path().join(name), &settings, 101);
            assert!(ReplayedGains::new(&other).is_none(), "{settings}");
        }
    }
}
