//! EAGLE heads: one or a few decoder layers that draft from the target's hidden states (vLLM 0.32.0,
//! `llama_eagle.py`, `llama_eagle3.py`, `qwen3_eagle3.py`, `transformers_utils/configs/speculators/algos.py`).
//!
//! A head reads embeddings and hidden states side by side, so its projections are wider than those of the layers that
//! its configuration names. Embedding and output head are listed as the engine creates them; whether they are replaced
//! by the target's own is for the planner to say.

use serde_json::Value;

use super::dense::{Attention, Decoder, Dense, Mlp, Norm, QkNorm, part};
use super::speculators;
use super::text::{Attend, Text};
use crate::arch::{AttentionScales, Config, Model, Op, Outside, Place, Role, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Hidden states of the target that an EAGLE-3 head reads where its configuration does not say.
const AUXILIARY_STATES: u64 = 3;

/// The two generations of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eagle {
    /// EAGLE and EAGLE-2: one fully connected layer joins embedding and hidden state; the head is the target's.
    One,
    /// EAGLE-3: several hidden states, a first layer of double width, a (smaller) vocabulary and a head of its own.
    Three,
}

/// Reads an EAGLE head for a target of `target_vocab` tokens. Files of the `speculators` library, which nest the
/// layer's description, are read too.
///
/// # Errors
/// If a value cannot be used; as [`Error::unsupported`] if the engine has no such head or it is not described here.
pub fn read_eagle(name: &str, config: &Config, generation: Eagle, target_vocab: u64) -> Result<Model> {
    let flat = match generation {
        Eagle::One => config.clone(),
        Eagle::Three => speculators::flatten(config, &["eagle3", "peagle"])?,
    };
    let class = match flat.strs("architectures")?.and_then(|list| list.first().copied()) {
        Some(class) => class.to_owned(),
        None => {
            return Err(Error::input(format!(
                "{} is missing from the drafter's configuration",
                flat.name("architectures")
            ))
            .hint("an EAGLE head for Llama says \"architectures\": [\"LlamaForCausalLM\"]"));
        }
    };
    if generation == Eagle::One
        && let Some(joined) = JOINED.iter().find(|row| row.classes.contains(&class.as_str()))
    {
        let text = Text::find(joined.layers_of, &flat)?;
        return model(name, &class, &text, joined.decoder(&text)?);
    }
    if generation == Eagle::One && matches!(class.as_str(), "EagleLlama4ForCausalLM" | "Llama4ForCausalLM") {
        let text = Text::find("Llama4ForCausalLM", &flat)?;
        return model(name, &class, &text, llama4(&text)?);
    }
    if generation == Eagle::Three && LATENT.contains(&class.as_str()) {
        let text = Text::find("DeepseekV3ForCausalLM", &flat)?;
        return model(name, &class, &text, latent(&text, target_vocab)?);
    }
    let qwen3 = match (generation, class.as_str()) {
        (
            Eagle::Three,
            "LlamaForCausalLM"
            | "LlamaForCausalLMEagle3"
            | "Eagle3LlamaForCausalLM"
            | "PEagleDraftModel"
            | "PeagleLlamaForCausalLM"
            | "MiniMaxM2ForCausalLM"
            | "Eagle3MiniMaxM2ForCausalLM"
            | "Qwen2_5vlForCausalLM"
            | "Eagle3Qwen2_5vlForCausalLM"
            | "Qwen3vlForCausalLM"
            | "Eagle3Qwen3vlForCausalLM",
        )
        | (Eagle::One, "LlamaForCausalLM" | "EagleLlamaForCausalLM") => false,
        (Eagle::Three, "Qwen3ForCausalLM" | "Eagle3Qwen3ForCausalLM" | "PeagleQwen3ForCausalLM") => true,
        _ => {
            return Err(
                Error::unsupported(format!("the drafter class {class} is not described here"))
                    .hint(
                        "EAGLE heads of the layers of Llama, Llama-4, Mistral, MiniCPM, Cohere and DeepSeek are, and EAGLE-3 \
                         heads of those of Llama, Qwen3 and DeepSeek",
                    ),
            );
        }
    };
    let text = Text::find(&class, &flat)?;
    let decoder = match generation {
        Eagle::One => one(&text)?,
        Eagle::Three => three(&text, qwen3, target_vocab)?,
    };
    model(name, &class, &text, decoder)
}

/// A drafter as a model.
pub(super) fn model(name: &str, class: &str, text: &Text, decoder: Decoder) -> Result<Model> {
    let heads = text.heads()?;
    Ok(Model {
        name: name.to_owned(),
        architecture: class.to_owned(),
        model_type: text.model_type()?.to_owned(),
        dtype: text.dtype()?,
        max_position: text.max_length()?,
        num_attention_heads: heads,
        num_kv_heads: text.kv_heads()?,
        hidden_size: text.hidden()?,
        vocab_size: text.vocab()?,
        layers_path: decoder.layers_path,
        layers: decoder.layers,
        outside: decoder.outside,
        mtp_layers: 0,
        modules: None,
        pooling: None,
        attention_scales: AttentionScales::default(),
        sized_for: None,
        encoder_heads: None,
        sees_whole_images: false,
        encoder_decoder: false,
    })
}

/// EAGLE heads whose layers are those of another class, as they are.
struct Joined {
    /// Names of the head.
    classes: &'static [&'static str],
    /// The class whose layers it has.
    layers_of: &'static str,
    /// How embedding and hidden state are joined.
    join: Join,
    /// Norms of the model's width beside the layers.
    norms: &'static [&'static str],
    /// Whether layers are numbered on from the target's, which matters where the first ones have no experts.
    numbered_on: bool,
}

/// The layer that joins embedding and hidden state.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Join {
    /// Ranks divide its inputs.
    Divided,
    /// Every rank holds it whole.
    Whole {
        /// Whether it has a bias.
        bias: bool,
        /// Whether it is built in the checkpoint's scheme.
        quantized: bool,
    },
}

const PLAIN: Join = Join::Whole {
    bias: false,
    quantized: false,
};

/// vLLM 0.32.0, the files named.
const JOINED: &[Joined] = &[
    // mistral_eagle.py
    Joined {
        classes: &["EagleMistralForCausalLM", "MistralForCausalLM"],
        layers_of: "MistralForCausalLM",
        join: Join::Divided,
        norms: &["model.norm"],
        numbered_on: false,
    },
    // mistral_large_3_eagle.py
    Joined {
        classes: &["EagleMistralLarge3ForCausalLM", "MistralLarge3ForCausalLM"],
        layers_of: "MistralLarge3ForCausalLM",
        join: Join::Divided,
        norms: &["model.norm"],
        numbered_on: false,
    },
    // minicpm_eagle.py
    Joined {
        classes: &["EagleMiniCPMForCausalLM", "MiniCPMForCausalLM"],
        layers_of: "MiniCPMForCausalLM",
        join: PLAIN,
        norms: &["model.input_norm1", "model.input_norm2", "model.norm"],
        numbered_on: false,
    },
    // cohere_eagle.py
    Joined {
        classes: &[
            "EagleCohereForCausalLM",
            "CohereForCausalLM",
            "Cohere2ForCausalLM",
        ],
        layers_of: "CohereForCausalLM",
        join: Join::Whole {
            bias: true,
            quantized: true,
        },
        norms: &["model.norm"],
        numbered_on: false,
    },
    // deepseek_eagle.py
    Joined {
        classes: &["EagleDeepSeekMTPModel", "DeepSeekMTPModel"],
        layers_of: "DeepseekV3ForCausalLM",
        join: PLAIN,
        norms: &["model.enorm", "model.hnorm", "model.norm"],
        numbered_on: true,
    },
];

impl Joined {
    fn decoder(&self, t: &Text) -> Result<Decoder> {
        let mut decoder = if self.numbered_on {
            super::decoder(&with(t, "first_k_dense_replace", Value::from(0)))?
        } else {
            super::decoder(t)?
        };
        let hidden = t.hidden()?;
        let fc = match self.join {
            Join::Divided => Weight::row("model.fc", Role::Mlp, 2 * hidden, hidden),
            Join::Whole { bias, quantized } => {
                let fc = Weight::replicated("model.fc", Role::Mlp, 2 * hidden, &[hidden]).bias(bias);
                if quantized { fc } else { fc.unquantized() }
            }
        };
        let mut joins = vec![fc];
        joins.extend(self.norms.iter().map(|name| Weight::norm(*name, hidden)));
        let vocab = t.config.dim_or("draft_vocab_size", t.vocab()?)?;
        decoder.outside = vec![
            embedding(t)?,
            part(Place::Last, joins),
            part(
                Place::Last,
                vec![Weight::vocab("lm_head", Role::Head, vocab, hidden)],
            ),
        ];
        Ok(decoder)
    }
}

/// The same text with another value of a key.
pub(super) fn with(t: &Text, key: &str, value: Value) -> Text {
    let mut map = t.config.map().clone();
    map.insert(key.to_owned(), value);
    Text {
        config: t.config.with_map(map),
        ..t.clone()
    }
}

/// EAGLE for Llama-4 (vLLM 0.32.0, `llama4_eagle.py`): its layers without experts, which the class insists on.
fn llama4(t: &Text) -> Result<Decoder> {
    let listed = t.config.u64s("moe_layers")?;
    let step = t.config.dim_or("interleave_moe_layer_step", 1)?;
    let sparse = match &listed {
        Some(layers) => !layers.is_empty(),
        None => step > 0 && step <= t.layers()?,
    };
    if sparse {
        return Err(Error::unsupported(
            "EagleLlama4ForCausalLM takes drafters without experts: moe_layers has to be an empty list",
        )
        .hint("interleave_moe_layer_step has to be 0 for such a drafter"));
    }
    let mut decoder = super::decoder(&with(t, "interleave_moe_layer_step", Value::from(0)))?;
    let hidden = t.hidden()?;
    let fc = Weight::replicated("model.fc", Role::Mlp, 2 * hidden, &[hidden]).unquantized();
    let vocab = t.config.dim("draft_vocab_size")?;
    decoder.outside = vec![
        embedding(t)?,
        part(Place::Last, vec![fc, Weight::norm("model.norm", hidden)]),
        part(
            Place::Last,
            vec![Weight::vocab("lm_head", Role::Head, vocab, hidden).unquantized()],
        ),
    ];
    Ok(decoder)
}

/// EAGLE: the first layer has no norm before attention, and nothing follows the last.
fn one(t: &Text) -> Result<Decoder> {
    let mut dense = Dense::llama(t)?;
    biases(t, &mut dense)?;
    let mut decoder = dense.build()?;
    if let Some(first) = decoder.layers.first_mut() {
        first.weights.retain(|weight| weight.name != "input_layernorm");
    }
    let hidden = t.hidden()?;
    decoder.outside = vec![
        embedding(t)?,
        part(
            Place::Last,
            vec![Weight::replicated("model.fc", Role::Mlp, 2 * hidden, &[hidden])],
        ),
    ];
    Ok(decoder)
}

/// EAGLE-3: the first layer's queries, keys and values are projected from embedding and hidden state together.
fn three(t: &Text, qwen3: bool, target_vocab: u64) -> Result<Decoder> {
    let mut dense = Dense::llama(t)?;
    biases(t, &mut dense)?;
    if qwen3 {
        dense.attention.qk_norm = QkNorm::Head(Norm::Scale);
        // Only a list of layers gives a window; the class's default is not used.
        let kinds = t.config.strs("layer_types")?.unwrap_or_default();
        for (i, attend) in dense.attends.iter_mut().enumerate() {
            if kinds.get(i).copied() != Some("sliding_attention") {
                *attend = Attend::Full;
            }
        }
    }
    let hidden = t.hidden()?;
    let wide = wide_projection(&dense.attention, 2 * hidden);
    let mut decoder = dense.build()?;
    for (i, layer) in decoder.layers.iter_mut().enumerate() {
        if i == 0 {
            for weight in &mut layer.weights {
                if weight.name == wide.name {
                    *weight = wide.clone();
                }
            }
        }
        layer.weights.push(Weight::norm("hidden_norm", hidden));
    }
    decoder.outside = ends(t, qwen3, target_vocab)?;
    Ok(decoder)
}

/// EAGLE-3 heads with DeepSeek's attention.
const LATENT: &[&str] = &[
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "Eagle3DeepseekV2ForCausalLM",
    "Eagle3DeepseekV3ForCausalLM",
];

/// EAGLE-3 with latent attention (vLLM 0.32.0, `deepseek_eagle3.py`): no experts, and a first layer of double width.
fn latent(t: &Text, target_vocab: u64) -> Result<Decoder> {
    let mut decoder = super::decoder(&with(t, "n_routed_experts", Value::Null))?;
    let hidden = t.hidden()?;
    for (i, layer) in decoder.layers.iter_mut().enumerate() {
        for weight in layer.weights.iter_mut().filter(|_| i == 0) {
            if let Op::Linear { inputs, .. } = &mut weight.op
                && ["fused_qkv_a_proj", "q_a_proj", "q_proj", "kv_a_proj_with_mqa"]
                    .iter()
                    .any(|part| weight.name.rsplit('.').next() == Some(part))
            {
                *inputs = 2 * hidden;
            }
        }
        layer.weights.push(Weight::norm("hidden_norm", hidden));
    }
    decoder.outside = ends(t, false, target_vocab)?;
    Ok(decoder)
}

/// What an EAGLE-3 head has beside its layers.
fn ends(t: &Text, qwen3: bool, target_vocab: u64) -> Result<Vec<Outside>> {
    let hidden = t.hidden()?;
    let c = &t.config;
    let own = c.sub("eagle_config")?;
    let from_own = |key: &str, default: bool| match &own {
        Some(own) if own.has(key) => own.flag(key, default),
        _ => c.flag(key, default),
    };
    let auxiliary = if let Some(n) = c.first_u64(&["num_aux_layers", "num_aux_hidden_states"])? {
        n
    } else {
        let nested = match &own {
            Some(own) => own.u64s("eagle_aux_hidden_state_layer_ids")?,
            None => None,
        };
        let plain = c.u64s("eagle_aux_hidden_state_layer_ids")?;
        let ids = if qwen3 { plain.or(nested) } else { nested.or(plain) };
        ids.filter(|ids| !ids.is_empty())
            .map_or(AUXILIARY_STATES, |ids| ids.len() as u64)
    };
    if !(1..=1 << 10).contains(&auxiliary) {
        return Err(Error::input(format!(
            "the drafter reads {auxiliary} hidden states, expected 1 to 1024"
        )));
    }
    let mut outside = vec![embedding(t)?];
    if from_own("use_aux_hidden_state", true)? {
        let target_hidden = c.dim_or("target_hidden_size", hidden)?;
        let inputs = target_hidden * auxiliary;
        let mut joins = vec![Weight::replicated("model.fc", Role::Mlp, inputs, &[hidden])];
        if from_own("norm_before_fc", false)? {
            joins.push(Weight::norm("model.input_norm", inputs));
        }
        if c.flag("fc_norm", false)? {
            joins.push(Weight::norm("model.fc_norm", target_hidden).times(auxiliary));
        }
        outside.push(part(Place::Last, joins));
    }
    let vocab = c.dim_or("draft_vocab_size", t.vocab()?)?;
    let mut ends = vec![
        Weight::norm("model.norm", hidden),
        Weight::vocab("lm_head", Role::Head, vocab, hidden),
    ];
    if vocab != target_vocab {
        ends.push(Weight::tensor("draft_id_to_target_id", Role::Norm, &[vocab], None).of(Dtype::I64));
    }
    outside.push(part(Place::Last, ends));
    Ok(outside)
}

fn biases(t: &Text, dense: &mut Dense) -> Result<()> {
    dense.attention.qkv_bias = t.config.flag("attention_bias", false)?;
    dense.attention.o_bias = dense.attention.qkv_bias;
    dense.mlp = Mlp {
        bias: t.config.flag("mlp_bias", false)?,
        ..dense.mlp
    };
    Ok(())
}

/// The fused projection of queries, keys and values for inputs of this width.
fn wide_projection(attention: &Attention, inputs: u64) -> Weight {
    Weight::qkv(
        format!("{}.qkv_proj", attention.path),
        inputs,
        attention.heads,
        attention.kv_heads,
        attention.head_dim,
    )
    .value_head_dim(attention.head_dim_v)
    .bias(attention.qkv_bias)
}

/// The token embedding, which the target's replaces where it can.
pub(super) fn embedding(t: &Text) -> Result<Outside> {
    Ok(part(
        Place::Last,
        vec![Weight::vocab(
            "model.embed_tokens",
            Role::Embedding,
            t.vocab()?,
            t.hidden()?,
        )],
    ))
}
