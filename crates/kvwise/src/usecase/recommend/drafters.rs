//! What may draft tokens for the model, and how often its drafts are taken for accepted.

use kvwise_core::drafters::{self, Head};
use kvwise_core::{Error, Result};

/// How often drafts are accepted, where the user does not say: probability of each token, given that all before it were.
///
/// Collected 2026-11-22. MTP: between the 0.85 to 0.90 that DeepSeek-V3's report gives for its own module (arXiv 2412.19437,
/// section 5.4.3) and what other traffic may bring. EAGLE heads: between 0.71 and 0.60 for the first two tokens of a head on
/// `ShareGPT` (hub card of Ichigec/a1-agents-eagle3-speculator) and 0.58 and 0.53 of one for gpt-oss-120b in vLLM 0.17.1 (notes of
/// aimosprite/inference-bench-results).
const ASSUMED: [(&str, f64); 3] = [("mtp", 0.7), ("eagle", 0.6), ("eagle3", 0.6)];

/// Something that drafts.
#[derive(Debug, Clone, PartialEq)]
pub struct Drafter {
    /// `method` of `--speculative-config`; empty where the engine tells it from the model.
    pub method: String,
    /// Hub id or folder of the head or model; empty for methods without one.
    pub model: String,
    /// Tokens a step, the one to try first before the others.
    pub tokens: Vec<u64>,
    /// Probability that a drafted token is accepted.
    pub acceptance: f64,
    /// Whether the user gave it.
    pub given: bool,
}

impl Drafter {
    /// The modules of the model itself.
    pub fn own(rate: Option<f64>) -> Self {
        Self {
            method: "mtp".to_owned(),
            model: String::new(),
            tokens: vec![1, 2],
            acceptance: rate.unwrap_or(ASSUMED[0].1),
            given: rate.is_some(),
        }
    }

    /// A head of the catalogue.
    pub fn head(head: &Head, rate: Option<f64>) -> Self {
        Self {
            method: head.method.clone(),
            model: head.id.clone(),
            tokens: with_others(head.tokens),
            acceptance: rate.or_else(|| assumed(&head.method)).unwrap_or(0.0),
            given: rate.is_some(),
        }
    }

    /// What the user names: `ngram=0.4`, `ORG/NAME=0.6`, `eagle3:ORG/NAME`.
    ///
    /// # Errors
    /// If the rate is no probability, or missing where nothing is known of it.
    pub fn given(text: &str, rate: Option<f64>) -> Result<Self> {
        let (name, own) = match text.rsplit_once('=') {
            Some((name, own)) => (name, Some(own)),
            None => (text, None),
        };
        let own = own
            .map(|own| {
                own.trim()
                    .parse::<f64>()
                    .ok()
                    .filter(|p| (0.0..=1.0).contains(p))
                    .ok_or_else(|| {
                        Error::input(format!(
                            "--drafter is \"{text}\", expected a name and a probability from 0 to 1 like ngram=0.4"
                        ))
                    })
            })
            .transpose()?
            .or(rate);
        let name = name.trim();
        if name.is_empty() {
            return Err(Error::input("--drafter is empty")
                .hint("name ngram, a head or a draft model: --drafter ngram=0.4 --drafter ORG/NAME=0.6"));
        }
        let (method, model) = match name.split_once(':') {
            Some((method, model)) if METHODS.contains(&method) => (method, model),
            _ if ["ngram", "suffix"].contains(&name) => (name, ""),
            _ => match drafters::find(name)? {
                Some(head) => (head.method.as_str(), head.id.as_str()),
                None => ("", name),
            },
        };
        let Some(acceptance) = own.or_else(|| assumed(method)) else {
            return Err(Error::input(format!(
                "--drafter {name}: how often its drafts are accepted depends on the traffic, and nothing is known of it"
            ))
            .hint(format!("give the probability: --drafter {name}=0.5, or --acceptance-rate for all")));
        };
        Ok(Self {
            method: method.to_owned(),
            model: model.to_owned(),
            tokens: with_others(3),
            acceptance,
            given: own.is_some(),
        })
    }

    /// `--speculative-config` with so many tokens.
    pub fn config(&self, tokens: u64) -> String {
        let mut config = serde_json::Map::new();
        for (key, value) in [("method", &self.method), ("model", &self.model)] {
            if !value.is_empty() {
                config.insert(key.to_owned(), value.as_str().into());
            }
        }
        config.insert("num_speculative_tokens".to_owned(), tokens.into());
        serde_json::Value::Object(config).to_string()
    }

    /// For people.
    pub fn name(&self) -> &str {
        if self.model.is_empty() {
            &self.method
        } else {
            &self.model
        }
    }
}

/// Methods that a name may begin with.
const METHODS: [&str; 4] = ["eagle", "eagle3", "mtp", "draft_model"];

fn assumed(method: &str) -> Option<f64> {
    ASSUMED
        .iter()
        .find(|(name, _)| *name == method)
        .map(|(_, rate)| *rate)
}

/// Numbers of tokens to be tried, the usual one first.
fn with_others(usual: u64) -> Vec<u64> {
    let mut all = vec![usual];
    all.extend([1, 3, 5].into_iter().filter(|n| *n != usual));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafters_are_heads_models_and_lookups() {
        let ngram = Drafter::given("ngram=0.4", None).unwrap();
        assert_eq!(
            ngram.config(2),
            r#"{"method":"ngram","num_speculative_tokens":2}"#
        );
        assert!((ngram.acceptance - 0.4).abs() < 1e-12 && ngram.given);
        let known = Drafter::given("redhatai/qwen3-32b-speculator.eagle3", None).unwrap();
        assert_eq!(
            (known.method.as_str(), known.name(), known.given),
            ("eagle3", "RedHatAI/Qwen3-32B-speculator.eagle3", false)
        );
        let named = Drafter::given("eagle3:./my=head=0.5", None).unwrap();
        assert_eq!(
            (named.method.as_str(), named.model.as_str()),
            ("eagle3", "./my=head")
        );
        let model = Drafter::given("Qwen/Qwen3-0.6B", Some(0.6)).unwrap();
        assert_eq!(
            model.config(3),
            r#"{"model":"Qwen/Qwen3-0.6B","num_speculative_tokens":3}"#
        );
    }

    #[test]
    fn a_rate_is_asked_for_where_none_is_known() {
        for text in ["ngram", "Qwen/Qwen3-0.6B"] {
            let e = Drafter::given(text, None).unwrap_err();
            assert!(e.hints()[0].contains("=0.5"), "{e:?}");
        }
        for text in ["ngram=2", "ngram=x", "=0.5", ""] {
            assert!(Drafter::given(text, None).is_err(), "{text}");
        }
    }
}
