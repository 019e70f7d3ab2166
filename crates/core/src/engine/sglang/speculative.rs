//! Speculative decoding: its steps by default, and what the drafter's cache adds to a token
//! (0.5.23, `srt/arg_groups/speculative_hook.py`, `srt/model_executor/model_runner_components/spec_aux_hidden_state.py`).
//!
//! The drafter keeps a cache of its own for the same token slots. SGLang does not measure it: it charges the target's bytes
//! of one layer for each of the drafter's layers, whatever the drafter's heads are.

use crate::arch::{CacheKind, Model};
use crate::engine::vllm::Draft;
use crate::names::nearest;
use crate::{Error, Result};

/// `--speculative-algorithm`, for the algorithms whose memory is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// `EAGLE`: a head of one layer, or the target's own multi-token-prediction modules.
    Eagle,
    /// `NEXTN`: another name of `EAGLE`, which DeepSeek-V4's class does not take.
    NextN,
    /// `EAGLE3`.
    Eagle3,
    /// `STANDALONE`: a smaller model.
    Standalone,
    /// `NGRAM`: drafts are looked up, nothing is loaded.
    Ngram,
}

impl Algorithm {
    const NAMES: [(&'static str, Self); 5] = [
        ("EAGLE", Self::Eagle),
        ("NEXTN", Self::NextN),
        ("EAGLE3", Self::Eagle3),
        ("STANDALONE", Self::Standalone),
        ("NGRAM", Self::Ngram),
    ];

    /// Parses the engine's name in any case.
    ///
    /// # Errors
    /// If there is no such algorithm, or its memory is not planned.
    pub fn parse(text: &str) -> Result<Self> {
        let name = text.to_ascii_uppercase();
        let known = Self::NAMES.iter().find(|(known, _)| *known == name);
        if let Some(&(_, algorithm)) = known {
            return Ok(algorithm);
        }
        let hint = "write EAGLE, NEXTN, EAGLE3, STANDALONE or NGRAM";
        if ["DFLASH", "DSPARK", "UNO", "FROZEN_KV_MTP"].contains(&name.as_str()) {
            return Err(Error::unsupported(format!(
                "--speculative-algorithm {text}: the memory of this drafter is not planned for SGLang"
            ))
            .hint(hint));
        }
        let error = Error::input(format!(
            "--speculative-algorithm is \"{text}\", which SGLang does not take"
        ))
        .hint(hint);
        Err(
            match nearest(&name, Self::NAMES.map(|(known, _)| known), 1).first() {
                Some(near) => error.hint(format!("did you mean {near}?")),
                None => error,
            },
        )
    }

    /// The engine's name, after its aliases are resolved.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eagle | Self::NextN => "EAGLE",
            Self::Eagle3 => "EAGLE3",
            Self::Standalone => "STANDALONE",
            Self::Ngram => "NGRAM",
        }
    }
}

/// Which drafter is named.
#[derive(Debug, Clone, PartialEq)]
pub enum Drafter {
    /// None: for `EAGLE` the target's own modules.
    Unnamed,
    /// The target's own checkpoint.
    Target,
    /// Another model.
    Model(Box<Draft>),
}

/// Speculative decoding as the flags describe it; `None` is the engine's default.
#[derive(Debug, Clone, PartialEq)]
pub struct Speculative {
    /// `--speculative-algorithm`.
    pub algorithm: Algorithm,
    /// `--speculative-num-steps`.
    pub num_steps: Option<u64>,
    /// `--speculative-eagle-topk`.
    pub eagle_topk: Option<u64>,
    /// `--speculative-num-draft-tokens`.
    pub num_draft_tokens: Option<u64>,
    /// `--speculative-draft-model-path`.
    pub drafter: Drafter,
}

/// The numbers as the engine resolves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steps {
    /// Steps of the drafter.
    pub num_steps: u64,
    /// Branches of each step.
    pub eagle_topk: u64,
    /// Tokens that one verification checks.
    pub num_draft_tokens: u64,
}

/// Largest number of draft tokens, steps or branches that is read.
const MAX: u64 = 1 << 16;
/// Breadth of an n-gram tree (`--speculative-ngram-max-bfs-breadth`).
const NGRAM_BREADTH: u64 = 10;
/// Tokens that an n-gram verification checks by default.
const NGRAM_TOKENS: u64 = 12;

/// Classes whose own checkpoint becomes the drafter where none is named.
const OWN_DRAFTER: [&str; 14] = [
    "DeepseekV32ForCausalLM",
    "DeepseekV3ForCausalLM",
    "DeepseekV4ForCausalLM",
    "Glm4MoeForCausalLM",
    "Glm4MoeLiteForCausalLM",
    "GlmMoeDsaForCausalLM",
    "BailingMoeForCausalLM",
    "BailingMoeV2ForCausalLM",
    "BailingMoeV2_5ForCausalLM",
    "MistralLarge3ForCausalLM",
    "PixtralForConditionalGeneration",
    "HYV3ForCausalLM",
    "HYV4ForCausalLM",
    "Qwen4ExpForConditionalGeneration",
];

/// Further classes whose own checkpoint has a prediction module of one layer, used where it is named.
const ONE_MODULE: [&str; 8] = [
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForCausalLM",
    "Qwen3NextForCausalLM",
    "MiMoForCausalLM",
    "MiMoV2ForCausalLM",
    "MiMoV2FlashForCausalLM",
];

/// How a server is told to draft with the prediction modules of the target's own checkpoint (`EAGLE`), if this version can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnModules {
    /// By the algorithm alone.
    Unnamed,
    /// By naming the target again as `--speculative-draft-model-path`.
    Named,
}

/// The way for a target's class; `None` for classes whose modules are not drafted with here.
pub fn own_modules(class: &str) -> Option<OwnModules> {
    if OWN_DRAFTER.contains(&class) {
        Some(OwnModules::Unnamed)
    } else {
        ONE_MODULE.contains(&class).then_some(OwnModules::Named)
    }
}

/// Attention backends whose kernels verify a tree of drafts on pages of several tokens.
const TREES_ON_PAGES: [&str; 3] = ["flashinfer", "fa3", "triton"];

impl Speculative {
    /// Why the engine would not start with this drafter (`_handle_eagle_family`, `_handle_ngram`): attention backend, page
    /// size in tokens and number of attention groups are those of the server.
    pub fn refused(&self, class: &str, backend: &str, page_size: u64, attention_dp: u64) -> Option<String> {
        let name = self.algorithm.name();
        if class == "DeepseekV4ForCausalLM" && self.algorithm != Algorithm::Eagle {
            return Some(
                "SGLang drafts for DeepSeek-V4 with --speculative-algorithm EAGLE or DSPARK, by these names"
                    .to_owned(),
            );
        }
        if matches!(self.algorithm, Algorithm::Ngram | Algorithm::Standalone) && attention_dp > 1 {
            return Some(format!(
                "SGLang's drafts by {name} do not go together with DP attention"
            ));
        }
        let branches = self.steps(class).eagle_topk;
        if branches > 1 && backend == "trtllm_mha" && self.algorithm != Algorithm::Ngram {
            return Some("trtllm_mha verifies chains of drafts only: --speculative-eagle-topk 1".to_owned());
        }
        let takes_trees = match self.algorithm {
            Algorithm::Ngram => backend == "flashinfer",
            _ => TREES_ON_PAGES.contains(&backend),
        };
        (branches > 1 && page_size > 1 && !takes_trees).then(|| {
            format!(
                "SGLang's {backend} does not verify trees of drafts ({branches} branches of {name}) on pages of {page_size} tokens"
            )
        })
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// If one is out of range, or the drafter and the algorithm do not go together.
    pub fn validate(&self) -> Result<()> {
        for (flag, value) in [
            ("--speculative-num-steps", self.num_steps),
            ("--speculative-eagle-topk", self.eagle_topk),
            ("--speculative-num-draft-tokens", self.num_draft_tokens),
        ] {
            if value.is_some_and(|n| n == 0 || n > MAX) {
                return Err(Error::input(format!(
                    "{flag} is {}, expected 1 to {MAX}",
                    value.unwrap_or(0)
                )));
            }
        }
        let name = self.algorithm.name();
        match (self.algorithm, &self.drafter) {
            (Algorithm::Ngram, Drafter::Unnamed) => Ok(()),
            (Algorithm::Ngram, _) => Err(Error::input(
                "--speculative-draft-model-path means nothing to --speculative-algorithm NGRAM, which loads no model",
            )),
            (Algorithm::Eagle3 | Algorithm::Standalone, Drafter::Unnamed) => Err(Error::input(format!(
                "--speculative-algorithm {name} needs --speculative-draft-model-path"
            ))),
            _ if self.num_steps.is_none()
                && (self.eagle_topk.is_some() || self.num_draft_tokens.is_some()) =>
            {
                Err(Error::input(
                    "--speculative-eagle-topk and --speculative-num-draft-tokens need --speculative-num-steps",
                ))
            }
            _ if self.num_steps.is_some()
                && (self.eagle_topk.is_none() || self.num_draft_tokens.is_none()) =>
            {
                Err(Error::input(
                    "--speculative-num-steps needs --speculative-eagle-topk and --speculative-num-draft-tokens",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Steps, branches and tokens of one verification for a target's class.
    pub fn steps(&self, class: &str) -> Steps {
        if self.algorithm == Algorithm::Ngram {
            let num_draft_tokens = self.num_draft_tokens.unwrap_or(NGRAM_TOKENS);
            return Steps {
                num_steps: self.num_steps.unwrap_or(num_draft_tokens / NGRAM_BREADTH),
                eagle_topk: NGRAM_BREADTH,
                num_draft_tokens,
            };
        }
        let tree = ["LlamaForCausalLM", "Grok1ForCausalLM", "Grok1VForCausalLM"].contains(&class);
        let defaults = if tree && self.algorithm != Algorithm::Standalone {
            (5, 4, 8)
        } else {
            (3, 1, 4)
        };
        let num_steps = self.num_steps.unwrap_or(defaults.0);
        let eagle_topk = self.eagle_topk.unwrap_or(defaults.1);
        Steps {
            num_steps,
            eagle_topk,
            // A chain has one token a step, and the one it hangs on.
            num_draft_tokens: if eagle_topk == 1 {
                num_steps + 1
            } else {
                self.num_draft_tokens.unwrap_or(defaults.2)
            },
        }
    }

    /// Layers of the drafter that are charged for, and how many of them are in the sliding-window pool; `None` where the
    /// engine charges for none.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if it is not known what a checkpoint brings along.
    pub fn layers(&self, target: &Model) -> Result<Option<DraftLayers>> {
        let class = target.architecture.as_str();
        match (self.algorithm, &self.drafter) {
            (Algorithm::Ngram, _) => Ok(None),
            (_, Drafter::Model(draft)) => Ok(Some(DraftLayers {
                layers: draft.model.layers.len() as u64,
                window_layers: 0,
            })),
            (_, named) if OWN_DRAFTER.contains(&class) => {
                let _ = named;
                Ok(Some(DraftLayers {
                    layers: target.mtp_layers.max(1),
                    window_layers: 0,
                }))
            }
            // Without a path the target's own configuration is asked, which does not count its modules.
            (_, Drafter::Unnamed) => Ok(None),
            (_, Drafter::Target) if ONE_MODULE.contains(&class) => Ok(Some(DraftLayers {
                layers: 1,
                window_layers: u64::from(class.starts_with("MiMoV2") && has_window(target)),
            })),
            (_, Drafter::Target) => Err(Error::unsupported(format!(
                "what SGLang charges for {class} as its own drafter is not planned"
            ))),
        }
    }
}

fn has_window(model: &Model) -> bool {
    model
        .layers
        .iter()
        .flat_map(|layer| &layer.caches)
        .any(|cache| matches!(cache.kind, CacheKind::Sliding { .. }))
}

/// Layers of a drafter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftLayers {
    /// All of them.
    pub layers: u64,
    /// Those in the sliding-window pool, where the target has one.
    pub window_layers: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eagle() -> Speculative {
        Speculative {
            algorithm: Algorithm::Eagle,
            num_steps: None,
            eagle_topk: None,
            num_draft_tokens: None,
            drafter: Drafter::Unnamed,
        }
    }

    #[test]
    fn a_chain_checks_one_token_more_than_it_has_steps() {
        let given = Speculative {
            num_steps: Some(1),
            eagle_topk: Some(1),
            num_draft_tokens: Some(9),
            ..eagle()
        };
        assert_eq!(given.steps("DeepseekV3ForCausalLM").num_draft_tokens, 2);
        let llama = eagle().steps("LlamaForCausalLM");
        assert_eq!(
            (llama.num_steps, llama.eagle_topk, llama.num_draft_tokens),
            (5, 4, 8)
        );
    }

    #[test]
    fn drafters_that_the_engine_refuses_are_refused() {
        let ngram = Speculative {
            algorithm: Algorithm::Ngram,
            ..eagle()
        };
        let llama = |s: &Speculative, backend: &str, page: u64, dp: u64| {
            s.refused("LlamaForCausalLM", backend, page, dp)
        };
        assert!(llama(&ngram, "fa3", 1, 2).unwrap().contains("DP attention"));
        assert!(
            llama(&ngram, "trtllm_mla", 64, 1)
                .unwrap()
                .contains("pages of 64")
        );
        assert_eq!(llama(&ngram, "flashinfer", 64, 1), None);
        assert_eq!(llama(&eagle(), "fa3", 64, 4), None);
        assert!(llama(&eagle(), "flashmla", 64, 1).is_some());
        assert!(llama(&eagle(), "trtllm_mha", 1, 1).unwrap().contains("topk 1"));
        let chain = Speculative {
            num_steps: Some(2),
            eagle_topk: Some(1),
            num_draft_tokens: Some(3),
            ..eagle()
        };
        assert_eq!(llama(&chain, "trtllm_mha", 64, 8), None);
    }

    #[test]
    fn own_modules_are_named_where_the_class_does_not_say_so_itself() {
        assert_eq!(own_modules("DeepseekV3ForCausalLM"), Some(OwnModules::Unnamed));
        assert_eq!(own_modules("Qwen3NextForCausalLM"), Some(OwnModules::Named));
        assert_eq!(own_modules("LlamaForCausalLM"), None);
    }

    #[test]
    fn flags_that_contradict_each_other_are_named() {
        let says = |s: Speculative, text: &str| {
            let e = s.validate().unwrap_err().to_string();
            assert!(e.contains(text), "{e}");
        };
        says(
            Speculative {
                algorithm: Algorithm::Eagle3,
                ..eagle()
            },
            "needs --speculative-draft-model-path",
        );
        says(
            Speculative {
                eagle_topk: Some(2),
                ..eagle()
            },
            "need --speculative-num-steps",
        );
        says(
            Speculative {
                num_steps: Some(0),
                ..eagle()
            },
            "--speculative-num-steps is 0",
        );
        assert!(eagle().validate().is_ok());
        assert!(Algorithm::parse("nextn").is_ok());
        assert!(format!("{:?}", Algorithm::parse("egle").unwrap_err()).contains("EAGLE"));
        assert!(Algorithm::parse("DFLASH").is_err());
    }
}
