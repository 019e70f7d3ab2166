//! The multi-token-prediction modules of a model: one of its own decoder layers and what joins it to the target.

use super::{CacheKind, Layer, Model, Parallel, Role, Weight};
use crate::dtype::Dtype;
use crate::quant::Quantization;
use crate::{Error, Result};

/// Classes whose modules join embedding and hidden state by a projection that ranks divide
/// (vLLM 0.32.0, `qwen3_next_mtp.py`, `qwen3_5_mtp.py`, `exaone_moe_mtp.py`).
const DIVIDED: &[&str] = &["ExaoneMo", "Exaone4_5", "Qwen3Next", "Qwen3_5"];

/// Classes whose modules hold it whole (`deepseek_mtp.py`, `glm4_moe_mtp.py`, `glm4_moe_lite_mtp.py`,
/// `openpangu_mtp.py`, `mimo_mtp.py`, `hy_v3_mtp.py`, `vllm/models/hy_v4`, `vllm/models/minimax_m3`).
const WHOLE: &[&str] = &[
    "Deepseek",
    "Glm4Moe",
    "GlmMoeDsa",
    "HYV3",
    "HYV4",
    "MiMoForCausalLM",
    "MiniMaxM3",
    "PanguUltra",
];

impl Model {
    /// The decoder layer that a multi-token-prediction module repeats: the last one with attention over all tokens,
    /// and among these one that holds an indexer (modules always hold theirs). `None` without attention.
    pub fn mtp_layer(&self) -> Option<&Layer> {
        let attends = |layer: &&Layer| {
            layer.caches.iter().any(|c| {
                matches!(
                    c.kind,
                    CacheKind::Full(_) | CacheKind::Latent { .. } | CacheKind::Compressed { .. }
                )
            })
        };
        let indexed = |layer: &&Layer| {
            layer
                .caches
                .iter()
                .any(|c| matches!(c.kind, CacheKind::Indexer { .. }))
        };
        let last = self.layers.iter().rev();
        last.clone()
            .filter(attends)
            .find(indexed)
            .or_else(|| last.clone().find(attends))
    }

    /// Bytes of all multi-token-prediction modules on one tensor-parallel rank of the last pipeline stage. Embedding
    /// and head are the target's own (vLLM 0.32.0, `llm_base_proposer.py`); with several stages the embedding is
    /// loaded again there.
    ///
    /// # Errors
    /// If the model has no such modules or this class's are not known, a dimension does not divide over the ranks, or
    /// a size leaves 64 bits.
    pub fn mtp_weight_bytes(
        &self,
        parallel: &Parallel,
        dtype: Dtype,
        quantization: Option<&Quantization>,
    ) -> Result<u64> {
        let starts = |list: &[&str]| list.iter().any(|name| self.architecture.starts_with(name));
        let (Some(layer), true) = (self.mtp_layer(), self.mtp_layers > 0) else {
            return Err(Error::unsupported(format!(
                "{} has no multi-token-prediction modules",
                self.architecture
            )));
        };
        let (inputs, width) = (2 * self.hidden_size, self.hidden_size);
        let (mut once, mut each) = (Vec::new(), Vec::new());
        if starts(DIVIDED) {
            once.push(Weight::column("mtp.fc", Role::Mlp, inputs, &[width]));
            once.push(Weight::norm("mtp.norms", width).times(3));
        } else if starts(WHOLE) {
            each.push(Weight::replicated("eh_proj", Role::Mlp, inputs, &[width]).unquantized());
            each.push(Weight::norm("norms", width).times(3));
        } else {
            return Err(Error::unsupported(format!(
                "the multi-token-prediction modules of {} are not known",
                self.architecture
            )));
        }
        if parallel.pp > 1 {
            let embedding = self.outside.iter().flat_map(|part| &part.weights);
            once.extend(embedding.filter(|w| w.role == Role::Embedding).cloned());
        }
        let overflow = || Error::overflow("the size of the multi-token-prediction modules");
        let bytes = |weight: &Weight, path: &str| match quantization {
            None => weight.bytes(parallel, dtype),
            Some(q) => q.bytes(path, weight, parallel, dtype),
        };
        let mut total = 0u64;
        for weight in &once {
            total = total
                .checked_add(bytes(weight, &weight.name)?)
                .ok_or_else(overflow)?;
        }
        let mut module = 0u64;
        for weight in layer.weights.iter().chain(&each) {
            // Modules are numbered on from the last layer.
            let path = format!("{}.{}.{}", self.layers_path, self.layers.len(), weight.name);
            module = module.checked_add(bytes(weight, &path)?).ok_or_else(overflow)?;
        }
        module
            .checked_mul(self.mtp_layers)
            .and_then(|all| all.checked_add(total))
            .ok_or_else(overflow)
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
        let got = model.mtp_weight_bytes(&parallel, Dtype::Bf16, None).unwrap();
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
            .mtp_weight_bytes(&Parallel::default(), Dtype::Bf16, None)
            .unwrap_err();
        assert!(error.to_string().contains("no multi-token-prediction modules"));
    }
}
