//! The drafters that a checkpoint brings along: multi-token-prediction modules, and the `DSpark` stages of DeepSeek-V4.
//!
//! A multi-token-prediction module is one of the model's own decoder layers and what joins it to the target; which layer,
//! and how it is joined, differs by class.

use super::{CacheKind, Config, Layer, Model, Parallel, Role, Weight};
use crate::dtype::Dtype;
use crate::quant::Quantization;
use crate::{Error, Result};

/// How a module joins embedding and hidden state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Join {
    /// One projection for all modules that ranks divide, and three norms.
    Divided,
    /// A projection in each module that ranks divide, and three norms.
    DividedEach,
    /// A projection in each module that every rank holds whole, and three norms.
    Whole,
    /// The same with two norms.
    WholeWithoutLastNorm,
    /// Two projections in each module, the mixing of residual streams, and three norms.
    Streams,
    /// Two projections for all modules that ranks divide, a norm over all residual streams, and their mixing.
    MixedStreams,
}

/// Which decoder layer a module repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeats {
    /// The last with attention over all tokens; among these one with an indexer, which modules always hold.
    LastFull,
    /// The attention of the last such layer and the experts of the last layer that has some, which are two layers.
    FullAndExperts,
    /// The attention of the last layer with a window and the feed-forward part of a layer without experts.
    WindowAndDense,
    /// The attention of the last full layer and the feed-forward part of a layer without experts.
    FullAndDense,
    /// The second half of a layer of two attentions, without its experts.
    SecondHalf,
    /// The last whose attention is not compressed.
    Uncompressed,
}

/// Classes by the beginning of their name (vLLM 0.32.0, `config/speculative.py`, `hf_config_override`, and the files
/// named), and the modules of those whose configuration does not count them.
const CLASSES: &[(&str, Join, Repeats, Option<u64>)] = &[
    // qwen3_next_mtp.py, qwen3_5_mtp.py, exaone_moe_mtp.py, exaone4_5_mtp.py.
    ("Qwen3Next", Join::Divided, Repeats::LastFull, Some(1)),
    ("Qwen3_5", Join::Divided, Repeats::LastFull, None),
    ("ExaoneMo", Join::Divided, Repeats::LastFull, None),
    ("Exaone4_5", Join::Divided, Repeats::LastFull, None),
    // vllm/models/deepseek_v4/nvidia/mtp.py.
    ("DeepseekV4", Join::Streams, Repeats::Uncompressed, None),
    // deepseek_mtp.py, glm4_moe_mtp.py, glm4_moe_lite_mtp.py, openpangu_mtp.py, mimo_mtp.py, hy_v3_mtp.py,
    // vllm/models/{deepseek_v32,hy_v4,minimax_m3}.
    ("Deepseek", Join::Whole, Repeats::LastFull, None),
    ("Glm4Moe", Join::Whole, Repeats::LastFull, None),
    ("GlmMoeDsa", Join::Whole, Repeats::LastFull, None),
    ("HYV3", Join::Whole, Repeats::LastFull, None),
    ("HYV4", Join::Whole, Repeats::LastFull, None),
    ("MiMoForCausalLM", Join::Whole, Repeats::LastFull, None),
    (
        "MiniMaxM3SparseForConditionalGeneration",
        Join::Whole,
        Repeats::LastFull,
        None,
    ),
    ("PanguUltra", Join::Whole, Repeats::LastFull, None),
    // mimo_v2_mtp.py reads the first module only; step3p5_mtp.py.
    ("MiMoV2", Join::Whole, Repeats::WindowAndDense, Some(1)),
    ("Step3p", Join::Whole, Repeats::WindowAndDense, None),
    // bailing_moe_mtp.py, bailing_moe_v3_mtp.py, glm_ocr_mtp.py, vllm/models/glm5next/common/mtp.py.
    ("BailingMoeV2_5", Join::Whole, Repeats::LastFull, None),
    ("BailingMoeV3", Join::Whole, Repeats::LastFull, None),
    ("GlmOcr", Join::Whole, Repeats::LastFull, None),
    (
        "Glm5NextForConditionalGeneration",
        Join::Whole,
        Repeats::LastFull,
        None,
    ),
    // vllm/models/kimi_k3/nvidia/mtp.py.
    ("KimiK3", Join::Whole, Repeats::LastFull, None),
    // ernie_mtp.py, longcat_flash_mtp.py, vllm/models/qwen4_exp/nvidia/mtp.py.
    (
        "Ernie4_5_Moe",
        Join::WholeWithoutLastNorm,
        Repeats::FullAndDense,
        None,
    ),
    (
        "LongcatFlashForCausalLM",
        Join::Whole,
        Repeats::SecondHalf,
        Some(1),
    ),
    ("Qwen4Exp", Join::MixedStreams, Repeats::LastFull, None),
    // nemotron_h_mtp.py.
    ("NemotronH", Join::DividedEach, Repeats::FullAndExperts, None),
];

/// `DSpark` stages of DeepSeek-V4 where the configuration does not count them (vLLM 0.32.0,
/// `vllm/models/deepseek_v4/nvidia/dspark.py`).
const DSPARK_STAGES: u64 = 3;
/// Hidden states of the target that the stages read, and rank of the head that biases the next token:
/// `dspark_target_layer_ids` and `dspark_markov_rank` of DeepSeek-V4-Flash-0731.
const DSPARK_STATES: u64 = 3;
const DSPARK_RANK: u64 = 256;

/// The class whose checkpoints bring `DSpark` stages that its configuration describes, and no other modules.
const SHARES_STATES: &str = "DeepseekV41ForCausalLM";

fn attends(layer: &Layer) -> bool {
    layer.caches.iter().any(|c| {
        matches!(
            c.kind,
            CacheKind::Full(_)
                | CacheKind::Latent { .. }
                | CacheKind::Compressed { .. }
                | CacheKind::SharedCompressed { .. }
        )
    })
}

fn feed_forward(weight: &Weight) -> bool {
    matches!(
        weight.role,
        Role::Mlp | Role::Experts | Role::Router | Role::SharedExpert
    ) || weight.name.starts_with("mlp.")
        || weight.name.starts_with("moe.")
}

/// Modules that a configuration counts, for classes whose modules are known; 0 where it says nothing.
///
/// # Errors
/// If the count is not a number in range.
pub(super) fn modules(class: &str, config: &Config) -> Result<u64> {
    if !CLASSES.iter().any(|(name, ..)| class.starts_with(name)) {
        return Ok(0);
    }
    match config.get("mtp_num_hidden_layers") {
        Some(_) => config.dim_or("mtp_num_hidden_layers", 0),
        None => config.dim_or("num_nextn_predict_layers", 0),
    }
}

fn has_experts(layer: &Layer) -> bool {
    layer.weights.iter().any(|w| w.role == Role::Experts)
}

impl Model {
    fn mtp_class(&self) -> Result<(Join, Repeats, u64)> {
        let unknown = || {
            Error::unsupported(format!(
                "the multi-token-prediction modules of {} are not known",
                self.architecture
            ))
        };
        let row = CLASSES
            .iter()
            .find(|(name, ..)| self.architecture.starts_with(name));
        let (join, repeats, count) = match row {
            Some(&(_, join, repeats, count)) => (join, repeats, count.unwrap_or(self.mtp_layers)),
            None if self.mtp_layers > 0 => return Err(unknown()),
            None => (Join::Whole, Repeats::LastFull, 0),
        };
        // No file has more; a number from one is not trusted with a list's length.
        if count == 0 || count > 1 << 10 {
            return Err(Error::unsupported(format!(
                "{} has no multi-token-prediction modules (num_nextn_predict_layers is {count})",
                self.architecture
            )));
        }
        Ok((join, repeats, count))
    }

    /// The decoder layer that a multi-token-prediction module repeats: the last one with attention over all tokens,
    /// and among these one that holds an indexer (modules always hold theirs). `None` without attention.
    pub fn mtp_layer(&self) -> Option<&Layer> {
        let indexed = |layer: &&Layer| {
            layer
                .caches
                .iter()
                .any(|c| matches!(c.kind, CacheKind::Indexer { .. }))
        };
        let last = self.layers.iter().rev().filter(|layer| attends(layer));
        last.clone().find(indexed).or_else(|| last.clone().next())
    }

    /// The layers of all multi-token-prediction modules, in the order the engine registers them, without what joins
    /// them to the target.
    ///
    /// # Errors
    /// As [`Error::unsupported`] if the model has none, or this class's are not known.
    pub fn mtp_modules(&self) -> Result<Vec<Layer>> {
        if self.architecture == SHARES_STATES {
            return Err(Error::unsupported(
                "DeepSeek V4.1 has no classic-MTP draft: its checkpoints ship DSpark stages under mtp.*. Use \
                 speculative method 'dspark' instead of 'mtp'.",
            ));
        }
        if let Some(modules) = &self.modules {
            return Ok(modules.layers.clone());
        }
        let (_, repeats, count) = self.mtp_class()?;
        let module = self.mtp_module(repeats).ok_or_else(|| {
            Error::unsupported(format!(
                "{} has no layer that a multi-token-prediction module could repeat",
                self.architecture
            ))
        })?;
        Ok(vec![module; usize::try_from(count).unwrap_or(1)])
    }

    /// Of these, those that the engine builds to draft so many tokens.
    ///
    /// # Errors
    /// As [`Model::mtp_modules`].
    pub fn mtp_modules_for(&self, tokens: u64) -> Result<Vec<Layer>> {
        let mut layers = self.mtp_modules()?;
        if self.modules.as_ref().is_some_and(|m| m.as_many_as_tokens) {
            layers.truncate(usize::try_from(tokens).unwrap_or(usize::MAX));
        }
        Ok(layers)
    }

    fn mtp_module(&self, repeats: Repeats) -> Option<Layer> {
        let last = || self.layers.iter().rev();
        let uncompressed = |layer: &&Layer| {
            layer
                .caches
                .iter()
                .any(|c| matches!(c.kind, CacheKind::Compressed { ratio, .. } if ratio <= 1))
        };
        let mut module = match repeats {
            Repeats::LastFull => {
                let mut module = self.mtp_layer()?.clone();
                // Modules have one residual stream, whatever the model has, and none of earlier blocks (Kimi-K3).
                let of_streams = |w: &Weight| {
                    ["hc_", "self_attention_res_", "mlp_res_"]
                        .iter()
                        .any(|prefix| w.name.starts_with(prefix))
                };
                if module.weights.iter().any(of_streams) {
                    module.weights.retain(|w| !of_streams(w));
                }
                module
            }
            Repeats::Uncompressed => last().find(uncompressed)?.clone(),
            Repeats::FullAndExperts => {
                let mut module = self.mtp_layer()?.clone();
                let experts = last().find(|layer| has_experts(layer) && !attends(layer))?;
                module.weights.extend(experts.weights.iter().cloned());
                module
            }
            Repeats::SecondHalf => {
                let mut module = self.mtp_layer()?.clone();
                module.caches.drain(..module.caches.len() / 2);
                module.weights.retain(|w| {
                    !["self_attn.0.", "mlps.0.", "mlp."]
                        .iter()
                        .any(|other| w.name.starts_with(other))
                });
                for weight in &mut *module.weights {
                    weight.count = 1;
                }
                module
            }
            Repeats::WindowAndDense | Repeats::FullAndDense => {
                let windowed = |layer: &&Layer| {
                    layer
                        .caches
                        .iter()
                        .any(|c| matches!(c.kind, CacheKind::Sliding { .. }))
                };
                let mut module = match repeats {
                    Repeats::FullAndDense => self.mtp_layer()?.clone(),
                    _ => last().find(windowed)?.clone(),
                };
                module.weights.retain(|w| !feed_forward(w));
                let dense = self.layers.iter().find(|layer| !has_experts(layer))?;
                module
                    .weights
                    .extend(dense.weights.iter().filter(|w| feed_forward(w)).cloned());
                module
            }
        };
        module
            .caches
            .retain(|cache| !matches!(cache.kind, CacheKind::State(_)));
        Some(module)
    }

    /// Bytes of the multi-token-prediction modules for so many drafted tokens on one tensor-parallel rank of the last
    /// pipeline stage. Embedding and head are the target's own (vLLM 0.32.0, `llm_base_proposer.py`); with several stages the embedding is
    /// loaded again there.
    ///
    /// # Errors
    /// If the model has no such modules or this class's are not known, a dimension does not divide over the ranks, or
    /// a size leaves 64 bits.
    pub fn mtp_weight_bytes(
        &self,
        tokens: u64,
        parallel: &Parallel,
        dtype: Dtype,
        quantization: Option<&Quantization>,
    ) -> Result<u64> {
        let layers = self.mtp_modules_for(tokens)?;
        if let Some(modules) = &self.modules {
            return self.drafter_bytes(&layers, &modules.once, &[], parallel, dtype, quantization);
        }
        let (join, ..) = self.mtp_class()?;
        let (inputs, width) = (2 * self.hidden_size, self.hidden_size);
        let norms = Weight::norm("norms", width).times(3);
        let (once, each) = match join {
            Join::Divided => (
                vec![Weight::column("mtp.fc", Role::Mlp, inputs, &[width]), norms],
                Vec::new(),
            ),
            Join::DividedEach => (
                Vec::new(),
                vec![Weight::column("eh_proj", Role::Mlp, inputs, &[width]), norms],
            ),
            Join::Whole | Join::WholeWithoutLastNorm => (
                Vec::new(),
                vec![
                    Weight::replicated("eh_proj", Role::Mlp, inputs, &[width]).unquantized(),
                    Weight::norm("norms", width).times(if join == Join::Whole { 3 } else { 2 }),
                ],
            ),
            Join::MixedStreams => {
                let mixer = || {
                    self.outside
                        .iter()
                        .flat_map(|part| &part.weights)
                        .filter(|w| w.name.contains("hyper_connection_mixer"))
                        .cloned()
                };
                // The norm over all streams is as wide as the mixer's.
                let wide = mixer().find(|w| w.name.ends_with("hc_norm"));
                let mut once = vec![
                    Weight::column("mtp.fc_embedding", Role::Mlp, width, &[width]),
                    Weight::column("mtp.fc_hidden", Role::Mlp, width, &[width]),
                    Weight::norm("mtp.pre_fc_norm_embedding", width),
                ];
                once.extend(wide);
                once.extend(mixer());
                (once, Vec::new())
            }
            Join::Streams => {
                let mut each = vec![
                    Weight::replicated("e_proj", Role::Mlp, width, &[width]),
                    Weight::replicated("h_proj", Role::Mlp, width, &[width]),
                    norms,
                ];
                each.extend(self.stream_head());
                (Vec::new(), each)
            }
        };
        self.drafter_bytes(&layers, &once, &each, parallel, dtype, quantization)
    }

    /// The layers of the `DSpark` drafter that the checkpoint of a DeepSeek-V4 brings (vLLM 0.32.0,
    /// `vllm/models/deepseek_v4/nvidia/dspark.py`): like the model's own, with a window alone.
    ///
    /// # Errors
    /// As [`Error::unsupported`] for every other model.
    pub fn dspark_stages(&self) -> Result<Vec<Layer>> {
        if self.architecture == SHARES_STATES
            && let Some(modules) = &self.modules
        {
            return Ok(modules.layers.clone());
        }
        let stage = if self.architecture.starts_with("DeepseekV4") {
            self.mtp_module(Repeats::Uncompressed)
        } else {
            None
        };
        match stage {
            Some(stage) => Ok(vec![stage; usize::try_from(DSPARK_STAGES).unwrap_or(1)]),
            None => Err(Error::unsupported(format!(
                "{} brings no DSpark drafter; give one as \"model\"",
                self.architecture
            ))),
        }
    }

    /// Bytes of that drafter on one tensor-parallel rank of the last pipeline stage. How many hidden states it reads and
    /// the rank of its head are DeepSeek-V4-Flash-0731's.
    ///
    /// # Errors
    /// As [`Model::dspark_stages`], if a dimension does not divide over the ranks, or a size leaves 64 bits.
    pub fn dspark_weight_bytes(
        &self,
        parallel: &Parallel,
        dtype: Dtype,
        quantization: Option<&Quantization>,
    ) -> Result<u64> {
        let (width, vocab) = (self.hidden_size, self.vocab_size);
        if self.architecture == SHARES_STATES
            && let Some(modules) = &self.modules
        {
            return self.drafter_bytes(&modules.layers, &modules.once, &[], parallel, dtype, quantization);
        }
        let mut once = vec![
            Weight::replicated("mtp.main_proj", Role::Mlp, width * DSPARK_STATES, &[width]),
            Weight::norm("mtp.norms", width).times(2),
            Weight::tensor("mtp.markov_w1", Role::Head, &[vocab, DSPARK_RANK], None),
            Weight::tensor("mtp.markov_w2", Role::Head, &[vocab, DSPARK_RANK], None),
            Weight::tensor("mtp.confidence", Role::Head, &[width + DSPARK_RANK], None).of(Dtype::F32),
        ];
        once.extend(self.stream_head());
        self.drafter_bytes(&self.dspark_stages()?, &once, &[], parallel, dtype, quantization)
    }

    /// What joins the residual streams of DeepSeek-V4 before the head.
    fn stream_head(&self) -> impl Iterator<Item = Weight> {
        self.outside
            .iter()
            .flat_map(|part| &part.weights)
            .filter(|w| w.name.contains("hc_head"))
            .cloned()
    }

    /// Bytes of drafter layers, of weights that are there once and of weights that each layer has besides.
    fn drafter_bytes(
        &self,
        layers: &[Layer],
        once: &[Weight],
        each: &[Weight],
        parallel: &Parallel,
        dtype: Dtype,
        quantization: Option<&Quantization>,
    ) -> Result<u64> {
        let overflow = || Error::overflow("the size of the drafter");
        let bytes = |weight: &Weight, path: &str| match quantization {
            None => weight.bytes(parallel, dtype),
            Some(q) => q.bytes(path, weight, parallel, dtype),
        };
        let mut total = 0_u64;
        let mut add = |more: u64| -> Result<()> {
            total = total.checked_add(more).ok_or_else(overflow)?;
            Ok(())
        };
        for weight in once {
            add(bytes(weight, &weight.name)?)?;
        }
        let brings_embedding = once.iter().any(|weight| weight.role == Role::Embedding);
        if parallel.pp > 1 && !brings_embedding {
            for part in &self.outside {
                for weight in part.weights.iter().filter(|w| w.role == Role::Embedding) {
                    add(bytes(weight, &weight.name)?)?;
                }
            }
        }
        for (i, layer) in layers.iter().enumerate() {
            for weight in layer.weights.iter().chain(each) {
                // Drafter layers are numbered on from the last of the model.
                let path = format!("{}.{}.{}", self.layers_path, self.layers.len() + i, weight.name);
                add(bytes(weight, &path)?)?;
            }
        }
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::{Config, Model, Parallel, family};
    use crate::dtype::Dtype;

    fn small(topk: &str) -> Model {
        let text = format!(
            r#"{{"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 64,
            "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 64,
            "q_lora_rank": 16, "kv_lora_rank": 32, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
            "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1,
            "first_k_dense_replace": 1, "num_nextn_predict_layers": 1 {topk}}}"#
        );
        match family::read("small", &Config::parse(text.as_bytes()).unwrap()).unwrap() {
            family::Reading::Model(model) => *model,
            family::Reading::Refused(refusal) => panic!("{}", refusal.reason),
        }
    }

    #[test]
    fn a_module_is_a_layer_with_three_norms_and_a_projection() {
        let model = small("");
        let parallel = Parallel::tensor(2);
        let layer: u64 = model.layers[2]
            .weights
            .iter()
            .map(|w| w.bytes(&parallel, Dtype::Bf16).unwrap())
            .sum();
        let got = model.mtp_weight_bytes(1, &parallel, Dtype::Bf16, None).unwrap();
        assert_eq!(got, layer + (2 * 64 * 64 + 3 * 64) * 2);
    }

    #[test]
    fn a_module_holds_an_indexer_where_the_last_layer_shares_one() {
        let topk = r#", "index_topk": 8, "index_n_heads": 2, "index_head_dim": 128, "index_topk_freq": 2,
            "index_skip_topk_offset": 2"#;
        let model = small(topk);
        assert_eq!(model.layers[2].caches.len(), 1, "layer 2 shares");
        assert_eq!(model.mtp_layer().unwrap().caches.len(), 2);
    }

    #[test]
    fn a_model_without_modules_says_so() {
        let mut model = small("");
        model.mtp_layers = 0;
        let error = model
            .mtp_weight_bytes(1, &Parallel::default(), Dtype::Bf16, None)
            .unwrap_err();
        assert!(error.to_string().contains("no multi-token-prediction modules"));
    }
}
