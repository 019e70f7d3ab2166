//! LoRA adapters for generated traffic.

use kvwise_core::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::{NameColumn, Trace};

/// Which share of the requests uses which adapter; the rest use the model as it is.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize)]
pub struct Adapters {
    shares: Vec<(String, f64)>,
}

impl Adapters {
    /// Reads `sql=0.3,chat=0.2`.
    ///
    /// # Errors
    /// If a name is empty or twice there, a share is not between 0 and 1, or they are more than 1 together.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |what: String| {
            Error::input(format!("--lora-shares \"{text}\": {what}"))
                .hint("write --lora-shares sql=0.3,chat=0.2")
        };
        let mut shares: Vec<(String, f64)> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (name, share) = part
                .split_once('=')
                .ok_or_else(|| bad(format!("\"{part}\" has no share")))?;
            let (name, share) = (name.trim(), share.trim());
            if name.is_empty() {
                return Err(bad(format!("\"{part}\" has no name")));
            }
            if shares.iter().any(|(known, _)| known == name) {
                return Err(bad(format!("{name} is there twice")));
            }
            let share: f64 = share
                .parse()
                .ok()
                .filter(|s| *s > 0.0 && *s <= 1.0)
                .ok_or_else(|| {
                    bad(format!(
                        "the share of {name} is \"{share}\", expected a number above 0, at most 1"
                    ))
                })?;
            shares.push((name.to_owned(), share));
        }
        let total: f64 = shares.iter().map(|s| s.1).sum();
        if total > 1.0 + 1e-9 {
            return Err(bad(format!(
                "the shares are {total} together, at most 1 is possible"
            )));
        }
        Ok(Self { shares })
    }

    /// Gives the requests of `trace` adapters at random; all turns of a session have the same one.
    #[must_use]
    pub fn assign(&self, mut trace: Trace, seed: u64) -> Trace {
        // Another stream than that of the lengths, so that the same seed draws the same lengths with and without.
        let mut random = Pcg64::seed_from_u64(seed ^ 0x6c6f_7261);
        let mut of_session: rustc_hash::FxHashMap<u32, Option<usize>> = rustc_hash::FxHashMap::default();
        let mut names = NameColumn::default();
        for i in 0..trace.len() {
            let mut draw = || {
                let mut left: f64 = random.random_range(0.0..1.0);
                self.shares.iter().position(|(_, share)| {
                    left -= share;
                    left < 0.0
                })
            };
            let adapter = match trace.session(i) {
                Some(session) => *of_session.entry(session).or_insert_with(draw),
                None => draw(),
            };
            names.push(i, adapter.map(|a| self.shares[a].0.as_str()));
        }
        trace.loras = names;
        trace
    }
}

#[cfg(test)]
mod tests {
    use super::super::{IdMeaning, NewRequest, PromptIds, TraceBuilder};
    use super::*;

    fn trace(requests: u32, turns: Option<u32>) -> Trace {
        let mut builder = TraceBuilder::new("t", 16, IdMeaning::Content);
        for i in 0..requests {
            let tokens = [i, i + 1];
            builder
                .push(&NewRequest {
                    prompt: PromptIds::Tokens(&tokens),
                    output_len: Some(1),
                    session: turns.map(|t| i / t),
                    ..NewRequest::default()
                })
                .unwrap();
        }
        builder.finish()
    }

    #[test]
    fn requests_get_adapters_by_their_shares_and_turns_those_of_their_session() {
        let adapters = Adapters::parse("sql=0.3, chat=0.5").unwrap();
        let of =
            |trace: &Trace, name: Option<&str>| (0..trace.len()).filter(|&i| trace.lora(i) == name).count();
        let t = adapters.assign(trace(10_000, None), 1);
        for (name, share) in [(Some("sql"), 0.3), (Some("chat"), 0.5), (None, 0.2)] {
            let got = of(&t, name) as f64 / 1e4;
            assert!((got - share).abs() < 0.02, "{name:?}: {got}");
        }
        assert_eq!(
            adapters.assign(trace(50, None), 1).lora(7),
            adapters.assign(trace(50, None), 1).lora(7)
        );
        let t = adapters.assign(trace(300, Some(5)), 2);
        assert!((0..300).all(|i| t.lora(i) == t.lora(i / 5 * 5)));
        assert!(of(&t, Some("sql")) > 0 && of(&t, None) > 0);
    }

    #[test]
    fn shares_that_make_no_sense_are_refused() {
        for text in [
            "",
            "sql",
            "=0.1",
            "sql=x",
            "sql=0",
            "sql=1.5",
            "a=0.6,b=0.6",
            "a=0.1,a=0.1",
            "a=nan",
        ] {
            assert!(Adapters::parse(text).is_err(), "{text}");
        }
    }
}
