//! Synthetic traces with the kinds of sharing that real traffic has; the same seed gives the same trace.
//!
//! Four shapes ([`Shape`]) times three arrival processes ([`Arrivals`]). Tokens are explicit, so a generated trace
//! can be cut into blocks of any size. Random numbers come from `Pcg64`, whose values are stable across versions.
//!
//! ```
//! use kvwise_sim::generate::{Workload, generate};
//! let workload = Workload { requests: 50, ..Workload::default() };
//! assert_eq!(generate(&workload, 7)?, generate(&workload, 7)?);
//! # Ok::<(), kvwise_core::Error>(())
//! ```

mod arrivals;
mod shapes;

pub use arrivals::Arrivals;
pub use shapes::Shape;

use kvwise_core::{Error, Result};
use rand::SeedableRng;
use rand_pcg::Pcg64;

use crate::trace::{IdMeaning, NewRequest, PromptIds, Trace, TraceBuilder, TraceFormat};

/// What to generate. Lengths are means of log-normal distributions with a coefficient of variation of `length_cv`.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// How prompts share their starts.
    pub shape: Shape,
    /// How conversations (or single requests) arrive.
    pub arrivals: Arrivals,
    /// Requests in total.
    pub requests: u32,
    /// Requests per second, on average over a long trace.
    pub rate_per_s: f64,
    /// Different system prompts (or few-shot headers, or agents), used with Zipf popularity.
    pub system_prompts: u32,
    /// Mean tokens of a system prompt.
    pub system_tokens: u32,
    /// Mean tokens that a user adds to a turn.
    pub user_tokens: u32,
    /// Mean generated tokens.
    pub output_tokens: u32,
    /// Standard deviation over mean of all lengths.
    pub length_cv: f64,
    /// Mean turns of a conversation.
    pub turns: f64,
    /// Mean seconds between the turns of a conversation.
    pub think_time_s: f64,
    /// Documents of the retrieval shape, used with Zipf popularity.
    pub documents: u32,
    /// Mean tokens of a document (retrieval) or of a tool's answer (agents).
    pub document_tokens: u32,
    /// Longest prompt; conversations end before it.
    pub max_tokens: u32,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            shape: Shape::Chat,
            arrivals: Arrivals::Poisson,
            requests: 1000,
            rate_per_s: 1.0,
            system_prompts: 10,
            system_tokens: 500,
            user_tokens: 100,
            output_tokens: 200,
            length_cv: 0.8,
            turns: 4.0,
            think_time_s: 30.0,
            documents: 1000,
            document_tokens: 800,
            max_tokens: 32_768,
        }
    }
}

impl Workload {
    fn check(&self) -> Result<()> {
        let positive = |value: f64, name: &str| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                Err(Error::input(format!(
                    "{name} is {value}, expected a number above 0"
                )))
            }
        };
        positive(f64::from(self.requests), "the number of requests")?;
        positive(self.rate_per_s, "the rate")?;
        positive(self.turns, "the number of turns")?;
        positive(f64::from(self.system_prompts), "the number of system prompts")?;
        positive(f64::from(self.system_tokens), "the length of system prompts")?;
        positive(f64::from(self.user_tokens), "the length of user messages")?;
        positive(f64::from(self.output_tokens), "the length of outputs")?;
        positive(f64::from(self.documents), "the number of documents")?;
        positive(f64::from(self.document_tokens), "the length of documents")?;
        positive(f64::from(self.max_tokens), "the longest prompt")?;
        for (value, name) in [
            (self.length_cv, "the variation of lengths"),
            (self.think_time_s, "the think time"),
        ] {
            if !value.is_finite() || value < 0.0 {
                return Err(Error::input(format!("{name} is {value}, expected 0 or more")));
            }
        }
        let tokens = u64::from(self.requests) * u64::from(self.max_tokens);
        let typical =
            u64::from(self.system_tokens) + u64::from(self.user_tokens) + u64::from(self.document_tokens);
        if tokens.min(u64::from(self.requests) * typical) > 4_000_000_000 {
            return Err(
                Error::input("the trace would have more than 4,000,000,000 prompt tokens")
                    .hint("ask for fewer or shorter requests"),
            );
        }
        self.arrivals.check()
    }
}

/// Generates a trace.
///
/// # Errors
/// If a number in `workload` makes no sense, or the trace would be too large.
pub fn generate(workload: &Workload, seed: u64) -> Result<Trace> {
    workload.check()?;
    let mut rng = Pcg64::seed_from_u64(seed);
    let mut requests = shapes::requests(workload, &mut rng)?;
    // conversations overlap: by time, ties in the order of making
    requests.sort_by(|a, b| a.arrival_s.total_cmp(&b.arrival_s));
    requests.truncate(workload.requests as usize);
    let name = format!("{} seed {seed}", workload.shape.name());
    let mut builder = TraceBuilder::new(name, 16, IdMeaning::Content).format(TraceFormat::Generated);
    for (number, request) in requests.iter().enumerate() {
        let id = number.to_string();
        builder.push(&NewRequest {
            arrival: Some(request.arrival_s),
            prompt: PromptIds::Tokens(&request.prompt),
            output_len: Some(request.output.len() as u64),
            output_tokens: Some(&request.output),
            session: Some(request.session),
            id_json: Some(&id),
            ..NewRequest::default()
        })?;
    }
    Ok(builder.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curve::{Semantics, curve};

    fn small(shape: Shape) -> Workload {
        Workload {
            shape,
            requests: 200,
            ..Workload::default()
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
        for shape in Shape::ALL {
            let a = generate(&small(shape), 1).unwrap();
            assert_eq!(a, generate(&small(shape), 1).unwrap());
            assert_ne!(a.input_lens(), generate(&small(shape), 2).unwrap().input_lens());
            assert_eq!(a.len(), 200);
            assert!((1..a.len()).all(|i| a.arrival(i) >= a.arrival(i - 1)));
            assert!(a.input_lens().iter().all(|&l| l <= 32_768));
        }
    }

    #[test]
    fn conversations_share_more_than_single_questions() {
        let share = |shape| {
            let trace = generate(&small(shape), 3).unwrap();
            let curve = curve(&trace, Some(16), Semantics::PrefixLru).unwrap();
            curve.ideal_hit_tokens() as f64 / curve.input_tokens as f64
        };
        let (single, agents) = (share(Shape::SystemPrompts), share(Shape::Agents));
        assert!(single > 0.3, "every request shares its system prompt: {single}");
        assert!(
            agents > single + 0.1,
            "agents send their history again: {agents} against {single}"
        );
    }

    #[test]
    fn arrivals_have_the_rate_and_the_variation_asked_for() {
        for (arrivals, low, high) in [
            (Arrivals::Poisson, 0.85, 1.15),
            (Arrivals::Gamma { cv: 3.0 }, 2.3, 3.7),
            (Arrivals::Gamma { cv: 0.2 }, 0.1, 0.3),
        ] {
            let workload = Workload {
                shape: Shape::SystemPrompts,
                requests: 4000,
                rate_per_s: 5.0,
                arrivals,
                system_tokens: 4,
                user_tokens: 4,
                output_tokens: 2,
                ..Workload::default()
            };
            let trace = generate(&workload, 11).unwrap();
            let times: Vec<f64> = (0..trace.len()).filter_map(|i| trace.arrival(i)).collect();
            let gaps: Vec<f64> = times.windows(2).map(|w| w[1] - w[0]).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            let cv = variance.sqrt() / mean;
            assert!((mean * 5.0 - 1.0).abs() < 0.2, "{arrivals:?}: mean gap {mean}");
            assert!(cv > low && cv < high, "{arrivals:?}: variation {cv}");
        }
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        let base = Workload::default();
        for bad in [
            Workload {
                requests: 0,
                ..base.clone()
            },
            Workload {
                rate_per_s: f64::NAN,
                ..base.clone()
            },
            Workload {
                rate_per_s: -1.0,
                ..base.clone()
            },
            Workload {
                length_cv: -0.5,
                ..base.clone()
            },
            Workload {
                arrivals: Arrivals::Gamma { cv: 0.0 },
                ..base.clone()
            },
            Workload {
                arrivals: Arrivals::Diurnal {
                    period_s: 0.0,
                    amplitude: 0.5,
                },
                ..base.clone()
            },
            Workload {
                requests: u32::MAX,
                ..base
            },
        ] {
            assert!(generate(&bad, 1).is_err(), "{bad:?}");
        }
    }
}
