//! What may draft tokens for the model, and how often its drafts are taken for accepted.

use kvwise_core::drafters::{self, Head};
use kvwise_core::engine::sglang::{OwnModules, own_modules, served};
use kvwise_core::{Error, Result};

use super::super::deployment::Deployment;

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
    /// Class that a head's configuration names, where the head is known.
    pub class: Option<String>,
}

/// The model that is drafted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As the user names it.
    pub name: String,
    /// Its class.
    pub class: String,
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
            class: None,
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
            class: class(head),
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
        let (method, model, class) = match name.split_once(':') {
            Some((method, model)) if METHODS.contains(&method) => (method, model, None),
            _ if ["ngram", "suffix"].contains(&name) => (name, "", None),
            _ => match drafters::find(name)? {
                Some(head) => (head.method.as_str(), head.id.as_str(), class(head)),
                None => ("", name, None),
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
            class,
        })
    }

    /// Has a deployment draft so many tokens in a row, in its engine's own words; false, and nothing changed, where the engine
    /// has none for this drafter and target.
    ///
    /// SGLang 0.5.23 gets a chain (`--speculative-eagle-topk 1`), so that both engines check one token more than is drafted,
    /// and lookups as many tokens. It loads heads of its own classes only (`srt/models/llama_eagle3.py` and the like).
    pub fn apply(&self, tokens: u64, target: &Target, to: &mut Deployment) -> bool {
        if to.engine.as_deref() != Some("sglang") {
            to.speculative_config = Some(self.config(tokens));
            return true;
        }
        let Some((algorithm, path)) = self.of_sglang(target) else {
            return false;
        };
        to.speculative_algorithm = Some(algorithm.to_owned());
        to.speculative_draft_model_path = path.map(str::to_owned);
        to.speculative_num_draft_tokens = Some(tokens + 1);
        if algorithm != "NGRAM" {
            to.speculative_num_steps = Some(tokens);
            to.speculative_eagle_topk = Some(1);
        }
        true
    }

    /// `--speculative-algorithm` and `--speculative-draft-model-path`.
    fn of_sglang<'a>(&'a self, target: &'a Target) -> Option<(&'static str, Option<&'a str>)> {
        let loads = |class: &String| class.contains("Eagle") && served::has_class(class);
        if !self.class.as_ref().is_none_or(loads) {
            return None;
        }
        // Where the method is not said, the name tells it, as to vLLM.
        let name = self.model.to_ascii_lowercase();
        let method = match self.method.as_str() {
            "" if name.contains("eagle3") => "eagle3",
            "" if name.contains("eagle-") => "eagle",
            "" if name.contains("dflash") || name.contains("dspark") => return None,
            "" => "draft_model",
            said => said,
        };
        match method {
            "mtp" if self.model.is_empty() => match own_modules(&target.class)? {
                OwnModules::Unnamed => Some(("EAGLE", None)),
                OwnModules::Named => Some(("EAGLE", Some(&target.name))),
            },
            "eagle" | "mtp" => Some(("EAGLE", Some(&self.model))),
            "eagle3" => Some(("EAGLE3", Some(&self.model))),
            "draft_model" => Some(("STANDALONE", Some(&self.model))),
            "ngram" => Some(("NGRAM", None)),
            _ => None,
        }
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

/// The class that a head's configuration names.
fn class(head: &Head) -> Option<String> {
    let config = head.config().ok()?;
    let classes = config.get("architectures")?.as_array()?;
    classes.first()?.as_str().map(str::to_owned)
}

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
    fn sglang_gets_chains_in_its_own_words_and_no_heads_of_other_makes() {
        let target = Target {
            name: "a/model".to_owned(),
            class: "Qwen3NextForCausalLM".to_owned(),
        };
        let applied = |drafter: &Drafter, target: &Target| {
            let mut to = Deployment {
                engine: Some("sglang".to_owned()),
                ..Deployment::default()
            };
            let taken = drafter.apply(2, target, &mut to);
            assert!(to.speculative_config.is_none());
            assert_eq!(taken, to.speculative_algorithm.is_some());
            taken.then_some((
                to.speculative_algorithm.unwrap_or_default(),
                to.speculative_draft_model_path,
                [
                    to.speculative_num_steps,
                    to.speculative_eagle_topk,
                    to.speculative_num_draft_tokens,
                ],
            ))
        };
        let chain = [Some(2), Some(1), Some(3)];
        let own = applied(&Drafter::own(None), &target).unwrap();
        assert_eq!(own, ("EAGLE".to_owned(), Some("a/model".to_owned()), chain));
        let of = |class: &str| Target {
            class: class.to_owned(),
            ..target.clone()
        };
        let unnamed = applied(&Drafter::own(None), &of("DeepseekV3ForCausalLM")).unwrap();
        assert_eq!(unnamed.1, None);
        assert_eq!(applied(&Drafter::own(None), &of("LlamaForCausalLM")), None);
        let given = |text: &str| applied(&Drafter::given(text, Some(0.5)).unwrap(), &target);
        let ngram = given("ngram").unwrap();
        assert_eq!(ngram, ("NGRAM".to_owned(), None, [None, None, Some(3)]));
        assert_eq!(given("Qwen/Qwen3-0.6B").unwrap().0, "STANDALONE");
        assert_eq!(given("AQ-MedAI/Kimi-K25-eagle3").unwrap().0, "EAGLE3");
        assert_eq!(given("someone/my-eagle3").unwrap().0, "EAGLE3");
        for other in [
            "RedHatAI/Qwen3-32B-speculator.eagle3",
            "suffix",
            "someone/a-dflash",
        ] {
            assert_eq!(given(other), None, "{other}");
        }
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
