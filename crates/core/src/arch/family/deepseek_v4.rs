//! DeepSeek-V4: windows of latents beside compressed ones, hyper-connections, experts chosen by hash in the first layers.

use super::dense::{Attention, Decoder, Dense, Ends, Mlp, Norm, QkNorm, part};
use super::moe::Moe;
use super::text::{Attend, Text};
use crate::arch::{Cache, CacheKind, Layer, Part, Place, Role, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Sizes of one attention layer.
pub(super) struct Sizes {
    pub(super) hidden: u64,
    heads: u64,
    pub(super) head_dim: u64,
    pub(super) q_lora: u64,
    o_lora: u64,
    pub(super) o_groups: u64,
    pub(super) window: u64,
    pub(super) index_heads: u64,
    pub(super) index_dim: u64,
    pub(super) ratios: Vec<u64>,
}

impl Sizes {
    /// Reads them.
    ///
    /// # Errors
    /// If one is missing or out of range, or not every layer has a ratio.
    pub(super) fn read(t: &Text) -> Result<Self> {
        let c = &t.config;
        let layers = usize::try_from(t.layers()?).map_err(|_| Error::overflow("the number of layers"))?;
        let ratios = match c.u64s("compress_ratios")? {
            Some(list) if list.len() >= layers => list,
            Some(list) => {
                return Err(Error::input(format!(
                    "{} has {} entries for {layers} layers",
                    c.name("compress_ratios"),
                    list.len()
                )));
            }
            None => {
                return Err(Error::input(format!(
                    "{} is missing from the configuration",
                    c.name("compress_ratios")
                )));
            }
        };
        Ok(Self {
            hidden: t.hidden()?,
            heads: t.heads()?,
            head_dim: c.dim("head_dim")?,
            q_lora: c.dim("q_lora_rank")?,
            o_lora: c.dim("o_lora_rank")?,
            o_groups: c.dim("o_groups")?,
            window: c.dim("sliding_window")?,
            index_heads: c.dim("index_n_heads")?,
            index_dim: c.dim("index_head_dim")?,
            ratios,
        })
    }

    /// Key/score compressor of `dim` elements a head (`models/deepseek_v4/compressor.py`).
    fn compressor(&self, path: &str, ratio: u64, dim: u64) -> [Weight; 3] {
        let width = if ratio == 4 { 2 * dim } else { dim };
        [
            Weight::tensor(format!("{path}.ape"), Role::Attention, &[ratio, width], None).of(Dtype::F32),
            Weight::replicated(
                format!("{path}.fused_wkv_wgate"),
                Role::Attention,
                self.hidden,
                &[width, width],
            )
            .unquantized(),
            Weight::norm(format!("{path}.norm"), dim),
        ]
    }

    /// What attention has in every layer, whatever it compresses (`models/deepseek_v4/attention.py`).
    pub(super) fn projections(&self) -> Vec<Weight> {
        let role = Role::Attention;
        let queries = self.heads * self.head_dim;
        // A rank's sinks are padded to the kernel's 64 or 128 heads.
        let sinks = Part::Groups {
            units: self.heads.div_ceil(64),
            width: 64,
        };
        vec![
            Weight::parts("attn.attn_sink", role, 1, vec![sinks])
                .of(Dtype::F32)
                .unquantized(),
            Weight::replicated(
                "attn.fused_wqa_wkv",
                role,
                self.hidden,
                &[self.q_lora, self.head_dim],
            ),
            Weight::norm("attn.q_norm", self.q_lora),
            Weight::column("attn.wq_b", role, self.q_lora, &[queries]),
            Weight::norm("attn.kv_norm", self.head_dim),
            Weight::column(
                "attn.wo_a",
                role,
                queries / self.o_groups,
                &[self.o_groups * self.o_lora],
            ),
            Weight::row("attn.wo_b", role, self.o_groups * self.o_lora, self.hidden),
        ]
    }

    /// The projections of an indexer's queries.
    pub(super) fn index_queries(&self) -> [Weight; 2] {
        let outputs = self.index_heads * self.index_dim;
        [
            Weight::replicated("attn.indexer.wq_b", Role::Attention, self.q_lora, &[outputs]),
            Weight::replicated(
                "attn.indexer.weights_proj",
                Role::Attention,
                self.hidden,
                &[self.index_heads],
            )
            .unquantized(),
        ]
    }

    /// Parameters of the attention of one layer (`models/deepseek_v4/attention.py`).
    fn attention(&self, ratio: u64) -> Vec<Weight> {
        let mut all = self.projections();
        if ratio == 4 {
            all.extend(self.index_queries());
            all.extend(self.compressor("attn.indexer.compressor", ratio, self.index_dim));
        }
        if ratio > 1 {
            all.extend(self.compressor("attn.compressor", ratio, self.head_dim));
        }
        all
    }
}

/// A decoder of this family with norms and ends, whose layers are filled in later.
///
/// # Errors
/// If a size is missing or out of range.
pub(super) fn frame(t: &Text, hidden: u64) -> Result<Dense> {
    Ok(Dense {
        hidden,
        attends: vec![Attend::Full; usize::try_from(t.layers()?).unwrap_or(0)],
        attention: Attention {
            path: "attn",
            heads: 1,
            kv_heads: 1,
            head_dim: 1,
            head_dim_v: 1,
            qkv_bias: false,
            o_bias: false,
            qk_norm: QkNorm::None,
            follows_kv_dtype: true,
        },
        mlp: Mlp::gated(1),
        norms: &["attn_norm", "ffn_norm"],
        norm: Norm::Scale,
        ends: Ends::read(t)?,
        layers_path: "model.layers",
    })
}

/// What mixes a layer's residual streams before and behind its two parts.
pub(super) fn connections(streams: u64, hidden: u64) -> Vec<Weight> {
    let mix = (2 + streams) * streams;
    ["hc_attn", "hc_ffn"]
        .iter()
        .flat_map(|name| {
            let tensor = |part: &str, shape: &[u64]| {
                Weight::tensor(format!("{name}_{part}"), Role::Norm, shape, None).of(Dtype::F32)
            };
            [
                tensor("fn", &[mix, streams * hidden]),
                tensor("base", &[mix]),
                tensor("scale", &[3]),
            ]
        })
        .collect()
}

/// DeepSeek-V4 (vLLM 0.32.0, `models/deepseek_v4/nvidia/model.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn v4(t: &Text) -> Result<Decoder> {
    let sizes = Sizes::read(t)?;
    let hidden = sizes.hidden;
    let moe = Moe::read(t, "ffn")?;
    let shared = moe.width * t.config.dim_or("n_shared_experts", 0)?;
    let moe = moe.shared("ffn.shared_experts", shared);
    let hashed = t.config.dim_or("num_hash_layers", 0)?;
    let corrected = t.config.str("topk_method")? == Some("noaux_tc");
    // With images every router has a second vector of scores, and hashed layers route too.
    let sees = t.config.u64("vision_n_layers")?.unwrap_or(0) > 0;
    let streams = t.config.dim("hc_mult")?;
    let vocab = t.vocab()?;
    let plain = frame(t, hidden)?;
    let mut decoder = plain.build_with(|i, layer| {
        let ratio = sizes.ratios.get(i).copied().unwrap_or(0);
        let mut weights: Vec<Weight> = layer.weights.drain(..).filter(|w| w.role == Role::Norm).collect();
        weights.extend(sizes.attention(ratio));
        let hash = (i as u64) < hashed;
        let moe = if corrected && (!hash || sees) {
            moe.clone().corrected("gate.e_score_correction_bias")
        } else {
            moe.clone()
        };
        weights.extend(moe.weights(hidden));
        if sees {
            let bias = Weight::tensor("ffn.gate.bias_vl", Role::Router, &[moe.experts], None);
            weights.push(bias.of(Dtype::F32));
        }
        if hash {
            // The experts of every token, by its id.
            weights.push(
                Weight::tensor("ffn.gate.tid2eid", Role::Router, &[vocab, moe.top_k], None).of(Dtype::I32),
            );
        }
        weights.extend(connections(streams, hidden));
        *layer = Layer {
            caches: vec![Cache {
                name: "attn".to_owned(),
                kind: CacheKind::Compressed {
                    ratio,
                    head_dim: sizes.head_dim,
                    window: sizes.window,
                    index_head_dim: sizes.index_dim,
                },
            }],
            weights: weights.into(),
        };
        Ok(())
    })?;
    let head = |part: &str, shape: &[u64]| {
        Weight::tensor(format!("model.hc_head_{part}"), Role::Norm, shape, None).of(Dtype::F32)
    };
    decoder.outside.push(part(
        Place::Every,
        vec![
            head("fn", &[streams, streams * hidden]),
            head("base", &[streams]),
            head("scale", &[1]),
        ],
    ));
    decoder.mtp_layers = t.config.dim_or("num_nextn_predict_layers", 0)?;
    decoder.kv_heads = Some(1);
    Ok(decoder)
}

#[cfg(test)]
mod tests {
    use crate::arch::Config;
    use crate::arch::family::{Reading, read};

    /// DeepSeek-V4-Flash's published configuration (aiconfigurator-core 0.12.0 mirrors it), without what does not matter.
    const FLASH: &str = r#"{
        "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "vocab_size": 129280,
        "hidden_size": 4096, "num_hidden_layers": 43, "num_attention_heads": 64, "num_key_value_heads": 1,
        "head_dim": 512, "qk_rope_head_dim": 64, "q_lora_rank": 1024, "o_lora_rank": 1024, "o_groups": 8,
        "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 6, "moe_intermediate_size": 2048,
        "num_hash_layers": 3, "topk_method": "noaux_tc", "hc_mult": 4, "index_head_dim": 128, "index_n_heads": 64,
        "index_topk": 512, "sliding_window": 128, "max_position_embeddings": 1048576, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "compress_ratios": RATIOS
    }"#;

    fn flash(ratios: &str) -> crate::Result<Reading> {
        read(
            "flash",
            &Config::parse(FLASH.replace("RATIOS", ratios).as_bytes())?,
        )
    }

    #[test]
    fn flash_has_the_published_number_of_parameters() {
        let ratios: Vec<String> = (0..44)
            .map(|i| {
                if i < 2 {
                    0
                } else if i % 2 == 0 {
                    4
                } else {
                    128
                }
                .to_string()
            })
            .collect();
        let Reading::Model(model) = flash(&format!("[{}]", ratios.join(","))).unwrap() else {
            panic!("DeepSeek-V4 is read");
        };
        // "284B parameters, 13B activated" by the model card.
        let (total, active) = model.params().unwrap();
        assert_eq!((total + 500_000_000) / 1_000_000_000, 284);
        // The card leaves the embedding out.
        let embedding = 129_280 * 4096;
        assert_eq!((active - embedding) / 1_000_000_000, 13);
    }

    #[test]
    fn too_few_ratios_are_an_error_that_names_the_field() {
        assert!(
            flash("[4, 128]")
                .unwrap_err()
                .to_string()
                .contains("compress_ratios has 2 entries for 43 layers")
        );
        assert!(flash("null").unwrap_err().to_string().contains("compress_ratios"));
    }
}
