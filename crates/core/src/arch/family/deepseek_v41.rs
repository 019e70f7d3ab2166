//! DeepSeek-V4.1: compressed states that several layers share, embeddings of n-grams, and a drafter in the checkpoint.

use super::deepseek_v4::{Sizes, connections, frame};
use super::dense::{Decoder, part};
use super::moe::Moe;
use super::text::Text;
use crate::arch::{Cache, CacheKind, Layer, Modules, Place, Role, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Stages of the drafter where the configuration does not count them (`models/deepseek_v41/nvidia/dspark.py`).
const STAGES: u64 = 3;

/// Which layers store states, and which choose among them (`models/deepseek_v41/attention.py`).
struct Sharing {
    /// `kv_source_layer_ids`.
    stores: Vec<u64>,
    /// `index_source_layer_ids`.
    chooses: Vec<u64>,
}

impl Sharing {
    fn read(t: &Text) -> Result<Self> {
        let list = |key: &str| t.config.u64s(key).map(Option::unwrap_or_default);
        let read = Self {
            stores: list("kv_source_layer_ids")?,
            chooses: list("index_source_layer_ids")?,
        };
        if read.stores.is_empty() {
            return Err(Error::unsupported(format!(
                "DeepSeek V4.1 requires {} in the config",
                t.config.name("kv_source_layer_ids")
            )));
        }
        Ok(read)
    }

    /// How far back the layer is whose states layer `index` reads; 0 for a layer that reads none or its own.
    fn behind(&self, index: u64, ratio: u64) -> Result<u64> {
        let latest = |list: &[u64]| list.iter().copied().filter(|&source| source <= index).max();
        if self.stores.contains(&index) && ratio == 0 {
            return Err(Error::unsupported(format!(
                "DeepSeek V4.1 compressor supports compress_ratio 1 and 2; got 0 for layer {index}, which \
                 kv_source_layer_ids names"
            )));
        }
        if ratio == 0 {
            return Ok(0);
        }
        match (latest(&self.stores), latest(&self.chooses)) {
            (Some(source), Some(_)) => Ok(index - source),
            _ => Err(Error::unsupported(format!(
                "DeepSeek V4.1 requires kv_source_layer_ids / index_source_layer_ids in the config for compressed \
                 layers: none is at or before layer {index}, which has compress_ratio={ratio}"
            ))),
        }
    }
}

/// Embeddings of n-grams in front of some layers (`models/deepseek_v41/common/engram.py`). Their tables lie in the host's
/// memory (`EngramConfig.cpu_offload` in `vllm/config/engram.py` is on), and are no weights of the GPU.
struct Engram {
    layers: Vec<u64>,
    /// Elements that a token looks up, all n-grams and heads together.
    inputs: u64,
}

impl Engram {
    fn read(t: &Text) -> Result<Self> {
        let c = &t.config;
        let layers = c.u64s("engram_layer_ids")?.unwrap_or_default();
        if layers.is_empty() {
            return Ok(Self { layers, inputs: 0 });
        }
        let tables = c.u64s("engram_num_embeddings")?.unwrap_or_default().len();
        if tables != layers.len() {
            return Err(Error::unsupported(format!(
                "{} has {tables} entries for {} layers of engram_layer_ids",
                c.name("engram_num_embeddings"),
                layers.len()
            )));
        }
        let orders = c.dim("engram_max_ngram_size")? - 1;
        let columns = orders.checked_mul(c.dim("engram_n_heads")?);
        Ok(Self {
            layers,
            inputs: columns
                .and_then(|n| n.checked_mul(c.dim("engram_head_dim").ok()?))
                .ok_or_else(|| Error::overflow("the width of the n-grams' embeddings"))?,
        })
    }

    fn weights(&self, hidden: u64, streams: u64) -> Result<Vec<Weight>> {
        let outputs = streams.checked_add(1).and_then(|n| n.checked_mul(hidden));
        let outputs = outputs.ok_or_else(|| Error::overflow("the projection of the n-grams' embeddings"))?;
        let scale = |name: &str| Weight::tensor(name, Role::Norm, &[streams, hidden], None).of(Dtype::Bf16);
        let mut projection = Weight::column("engram.wkv", Role::Attention, self.inputs, &[outputs]);
        projection.whole_where_tokens_spread = Some(true);
        Ok(vec![
            projection,
            scale("engram.q_weight"),
            scale("engram.k_weight"),
        ])
    }
}

/// Parts that all layers of the model and of its drafter have in common.
struct Parts {
    sizes: Sizes,
    streams: u64,
    /// Whether routers have a second vector of scores, for images.
    sees: bool,
}

impl Parts {
    fn layer(&self, cache: CacheKind, norms: Vec<Weight>, more: Vec<Weight>, moe: &Moe) -> Layer {
        let hidden = self.sizes.hidden;
        let mut weights = norms;
        weights.extend(self.sizes.projections());
        weights.extend(more);
        weights.extend(moe.weights(hidden));
        if self.sees {
            let bias = Weight::tensor("ffn.gate.bias_vl", Role::Router, &[moe.experts], None);
            weights.push(bias.of(Dtype::F32));
        }
        weights.extend(connections(self.streams, hidden));
        Layer {
            caches: vec![Cache {
                name: "attn".to_owned(),
                kind: cache,
            }],
            weights: weights.into(),
        }
    }

    fn cache(&self, ratio: u64, behind: u64, indexed: bool) -> CacheKind {
        CacheKind::SharedCompressed {
            ratio,
            behind,
            head_dim: self.sizes.head_dim,
            window: self.sizes.window,
            index_head_dim: if indexed { self.sizes.index_dim } else { 0 },
            output_groups: self.sizes.o_groups,
        }
    }

    /// What a layer has that stores states of `ratio` tokens: a compressor, with a gate where there is more than one.
    fn compressor(&self, ratio: u64) -> [Weight; 2] {
        let width = self.sizes.head_dim;
        let outputs: &[u64] = if ratio > 1 { &[width, width] } else { &[width] };
        let role = Role::Attention;
        [
            Weight::replicated(
                "attn.compressor.fused_wkv_wgate",
                role,
                self.sizes.hidden,
                outputs,
            )
            .unquantized(),
            Weight::norm("attn.compressor.norm", width),
        ]
    }

    /// What makes index keys of the stored states.
    fn index_keys(&self) -> [Weight; 2] {
        let (role, keys) = (Role::Attention, self.sizes.index_dim);
        [
            Weight::replicated("attn.indexer.wk", role, self.sizes.head_dim, &[keys]).unquantized(),
            Weight::norm("attn.indexer.k_norm", keys),
        ]
    }
}

/// DeepSeek-V4.1 (vLLM 0.32.0, `models/deepseek_v41/nvidia/model.py`, `models/deepseek_v41/attention.py`).
///
/// # Errors
/// If a size is missing or out of range, or layers read states that none stores.
pub(crate) fn v41(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let sizes = Sizes::read(t)?;
    let hidden = sizes.hidden;
    let sharing = Sharing::read(t)?;
    let engram = Engram::read(t)?;
    let corrected = c.str("topk_method")? == Some("noaux_tc");
    let moe = |experts: Moe, shared: u64| {
        let moe = experts.shared("ffn.shared_experts", shared);
        if corrected {
            moe.corrected("gate.e_score_correction_bias")
        } else {
            moe
        }
    };
    let routed = Moe::read(t, "ffn")?;
    let shared = routed.width * c.dim_or("n_shared_experts", 0)?;
    let (experts, top_k, width) = (routed.experts, routed.top_k, routed.width);
    let of_layers = moe(routed, shared);
    let vision = t.top.sub("vision_config")?;
    let towers = vision.map(|v| v.u64("num_hidden_layers")).transpose()?.flatten();
    let parts = Parts {
        streams: c.dim("hc_mult")?,
        sees: towers.unwrap_or(0) > 0,
        sizes,
    };
    let mut norms_of_one = Vec::new();
    let mut decoder = frame(t, hidden)?.build_with(|i, layer| {
        let index = i as u64;
        let ratio = parts.sizes.ratios.get(i).copied().unwrap_or(0);
        if ratio > 2 {
            return Err(Error::unsupported(format!(
                "DeepSeek V4.1 layer {i} has compress_ratio={ratio}; only 0 (sliding window), 1 and 2 are supported."
            )));
        }
        let behind = sharing.behind(index, ratio)?;
        let (stores, chooses) = (sharing.stores.contains(&index), sharing.chooses.contains(&index));
        let norms: Vec<Weight> = layer.weights.drain(..).filter(|w| w.role == Role::Norm).collect();
        norms_of_one.clone_from(&norms);
        let mut more = Vec::new();
        if engram.layers.contains(&index) {
            more.extend(engram.weights(hidden, parts.streams)?);
        }
        if chooses {
            more.extend(parts.sizes.index_queries());
        }
        if chooses && stores {
            more.extend(parts.index_keys());
        }
        if stores {
            more.extend(parts.compressor(ratio));
        }
        *layer = parts.layer(parts.cache(ratio, behind, stores && chooses), norms, more, &of_layers);
        Ok(())
    })?;
    let stages = c
        .dim_or("n_mtp_layers", 0)?
        .max(c.dim_or("num_nextn_predict_layers", 0)?);
    let stages = if stages == 0 { STAGES } else { stages };
    let drafts = moe(
        Moe::new(
            "ffn",
            Some(c.dim_or("dspark_n_routed_experts", 0)?)
                .filter(|&n| n > 0)
                .unwrap_or(experts),
            Some(c.dim_or("dspark_num_experts_per_tok", 0)?)
                .filter(|&n| n > 0)
                .unwrap_or(top_k),
            width,
        ),
        shared,
    );
    let stage = parts.layer(parts.cache(0, 0, false), norms_of_one, Vec::new(), &drafts);
    // Start, end and end of a line of an image: the engine builds them on every stage, and without images too.
    let marks = Weight::tensor("image_start", Role::Norm, &[hidden], None).of(Dtype::F32);
    decoder.outside.push(part(Place::Every, vec![marks.times(3)]));
    decoder.modules = drafter(t, hidden, stage, stages)?.map(Box::new);
    decoder.mtp_layers = stages;
    decoder.kv_heads = Some(1);
    Ok(decoder)
}

/// The `DSpark` drafter of the checkpoint (`models/deepseek_v41/nvidia/dspark.py`); `None` where the file does not say what
/// it reads.
fn drafter(t: &Text, hidden: u64, stage: Layer, stages: u64) -> Result<Option<Modules>> {
    let c = &t.config;
    let (Some(targets), true) = (
        c.u64s("dspark_target_layer_ids")?,
        c.get("dspark_markov_rank").is_some(),
    ) else {
        return Ok(None);
    };
    // No file has more; a number from one is not trusted with a list's length.
    if stages > 1 << 10 {
        return Err(Error::input(format!(
            "{} is {stages}, expected a few stages of the drafter",
            c.name("num_nextn_predict_layers")
        )));
    }
    let (vocab, rank) = (t.vocab()?, c.dim("dspark_markov_rank")?);
    let states = hidden
        .checked_mul(targets.len() as u64)
        .ok_or_else(|| Error::overflow("the hidden states that the drafter reads"))?;
    let mut once = vec![
        Weight::replicated("model.main_proj", Role::Mlp, states, &[hidden]),
        Weight::norm("model.norms", hidden).times(2),
        Weight::tensor("model.markov_head.markov_w1", Role::Head, &[vocab, rank], None),
        Weight::tensor("model.markov_head.markov_w2", Role::Head, &[vocab, rank], None),
    ];
    if c.flag("enable_confidence_head", true)? {
        let confidence = Weight::tensor("model.confidence_head.proj", Role::Head, &[hidden + rank], None);
        once.push(confidence.of(Dtype::F32));
    }
    Ok(Some(Modules {
        layers: vec![stage; usize::try_from(stages).unwrap_or(1)],
        once,
        as_many_as_tokens: false,
    }))
}

#[cfg(test)]
mod tests {
    use crate::arch::family::{Reading, read};
    use crate::arch::{CacheKind, Config, Model};

    /// The model, or why it is refused.
    fn small(change: impl Fn(String) -> String) -> Result<Model, String> {
        let text = r#"{"architectures": ["DeepseekV41ForCausalLM"], "model_type": "deepseek_v41", "dtype": "bfloat16",
            "text_config": {"model_type": "deepseek_v41_text", "vocab_size": 1024, "hidden_size": 256,
            "moe_intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 64, "num_key_value_heads": 1,
            "head_dim": 512, "qk_rope_head_dim": 64, "q_lora_rank": 128, "o_lora_rank": 64, "o_groups": 8,
            "max_position_embeddings": 4096, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2,
            "topk_method": "noaux_tc", "sliding_window": 128, "compress_ratios": [0, 2, 2, 1, 1, 0, 0],
            "kv_source_layer_ids": [1, 3], "index_source_layer_ids": [1, 3, 4], "index_n_heads": 4,
            "index_head_dim": 128, "hc_mult": 4, "engram_layer_ids": []}}"#;
        let config = Config::parse(change(text.to_owned()).as_bytes()).unwrap();
        match read("small", &config).map_err(|error| error.to_string())? {
            Reading::Model(model) => Ok(*model),
            Reading::Refused(refusal) => Err(refusal.reason),
        }
    }

    #[test]
    fn layers_read_the_states_of_the_latest_layer_that_stores_some() {
        let model = small(|text| text).unwrap();
        let kinds: Vec<(u64, u64, u64)> = model
            .layers
            .iter()
            .map(|layer| match layer.caches[0].kind {
                CacheKind::SharedCompressed {
                    ratio,
                    behind,
                    index_head_dim,
                    ..
                } => (ratio, behind, index_head_dim),
                _ => panic!("another cache"),
            })
            .collect();
        let expected = [
            (0, 0, 0),
            (2, 0, 128),
            (2, 1, 0),
            (1, 0, 128),
            (1, 1, 0),
            (0, 0, 0),
        ];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn states_that_no_layer_stores_and_other_ratios_are_refused_by_name() {
        for (from, to, part) in [
            (
                "\"kv_source_layer_ids\": [1, 3]",
                "\"kv_source_layer_ids\": [3]",
                "layer 1",
            ),
            (
                "\"kv_source_layer_ids\": [1, 3]",
                "\"kv_source_layer_ids\": [0, 1, 3]",
                "layer 0",
            ),
            ("\"kv_source_layer_ids\": [1, 3],", "", "kv_source_layer_ids"),
            ("[0, 2, 2, 1", "[0, 4, 2, 1", "compress_ratio=4"),
            (
                "\"engram_layer_ids\": []",
                "\"engram_layer_ids\": [1]",
                "engram_num_embeddings",
            ),
        ] {
            let error = small(|text| text.replace(from, to)).unwrap_err();
            assert!(error.contains(part), "{error} does not name {part}");
        }
    }
}
