//! Configurations as llama.cpp's converter would write them: for planning before there is a GGUF file.

use super::gguf::Header;
use super::hparams::{Attention, Hparams, Layer, Recurrent, Sliding, mixer_width};
use super::keys::Keys;
use super::place::Weights;
use crate::arch::weight::Shard;
use crate::arch::{
    self, AttentionScales, Cache, CacheKind, Heads, Model, Op, Outside, Parallel, Place, Role, State, Weight,
};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// A mix of types by the converter's name: how many bits a weight takes on average.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    /// Name, like `q4_k_m`.
    pub name: &'static str,
    /// Thousandths of a bit of one weight, all tensors of a Llama-3.1-8B together.
    pub millibits: u64,
}

/// Mixes. Bits of one weight as measured on Llama-3.1-8B (llama.cpp 0c1e570, `tools/quantize/README.md`); for `q4_0` to
/// `q5_1`, which the table leaves out, computed from their blocks with the output head in `q6_k`.
pub const MIXES: [Mix; 24] = [
    mix("f32", 32_000),
    mix("bf16", 16_001),
    mix("f16", 16_001),
    mix("q8_0", 8_501),
    mix("q6_k", 6_563),
    mix("q5_k_m", 5_704),
    mix("q5_k_s", 5_570),
    mix("q5_1", 6_037),
    mix("q5_0", 5_569),
    mix("q4_k_m", 4_894),
    mix("q4_k_s", 4_667),
    mix("q4_1", 5_102),
    mix("q4_0", 4_635),
    mix("iq4_nl", 4_682),
    mix("iq4_xs", 4_460),
    mix("q3_k_l", 4_298),
    mix("q3_k_m", 3_996),
    mix("q3_k_s", 3_643),
    mix("q2_k", 3_159),
    mix("q2_k_s", 2_970),
    mix("iq3_m", 3_763),
    mix("iq3_s", 3_661),
    mix("iq3_xs", 3_498),
    mix("iq3_xxs", 3_255),
];

const fn mix(name: &'static str, millibits: u64) -> Mix {
    Mix { name, millibits }
}

impl Mix {
    /// The mix with this name.
    pub fn by_name(name: &str) -> Option<Self> {
        MIXES.into_iter().find(|m| m.name.eq_ignore_ascii_case(name))
    }
}

/// Classes whose window llama.cpp has a cache for; elsewhere sliding layers keep every token.
const WINDOWED: [&str; 14] = [
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Gemma3nForCausalLM",
    "Gemma3nForConditionalGeneration",
    "Gemma4ForCausalLM",
    "Gemma4ForConditionalGeneration",
    "GptOssForCausalLM",
    "Cohere2ForCausalLM",
    "Llama4ForConditionalGeneration",
    "Exaone4ForCausalLM",
    "Olmo3ForCausalLM",
    "MiMoV2FlashForCausalLM",
    "Step3p5ForCausalLM",
];

/// A configuration as llama.cpp would see it.
///
/// # Errors
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for kinds of caches that llama.cpp keeps in ways that are
/// not modelled here, else if a size leaves 64 bits.
pub fn hparams(model: &Model) -> Result<Hparams> {
    let windowed = WINDOWED.contains(&model.architecture.as_str());
    let mut sliding = None;
    let mut mla = false;
    let mut widths = (0, 0);
    let mut layers = Vec::new();
    for layer in &model.layers {
        let mut out = Layer::default();
        for cache in &layer.caches {
            let unsupported = |what: &str| {
                Error::unsupported(format!(
                    "{}: llama.cpp's cache for {what} is not planned",
                    model.architecture
                ))
            };
            let product = |a: u64, b: u64| {
                a.checked_mul(b)
                    .ok_or_else(|| Error::overflow("the width of keys and values"))
            };
            match &cache.kind {
                CacheKind::Full(h)
                | CacheKind::Sliding { heads: h, .. }
                | CacheKind::Chunked { heads: h, .. } => {
                    let window = match cache.kind {
                        CacheKind::Sliding { window, .. } => Some(window),
                        CacheKind::Chunked { chunk, .. } => Some(chunk),
                        _ => None,
                    };
                    if let (true, Some(tokens)) = (windowed, window) {
                        sliding = Some(Sliding { tokens });
                    }
                    widths = (h.head_dim, h.head_dim_v);
                    out.attention = Some(Attention {
                        keys: product(h.kv_heads, h.head_dim)?,
                        values: product(h.kv_heads, h.head_dim_v)?,
                        heads: h.kv_heads,
                        sliding: windowed && window.is_some(),
                    });
                }
                CacheKind::Latent { sparse: true, .. }
                | CacheKind::SlidingLatent { .. }
                | CacheKind::Indexer { .. }
                | CacheKind::PooledIndexer { .. }
                | CacheKind::Ring { .. } => {
                    return Err(unsupported("sparse attention"));
                }
                CacheKind::Latent { width, .. } => {
                    mla = true;
                    widths = (*width, 0);
                    out.attention = Some(Attention {
                        keys: *width,
                        values: 0,
                        heads: 1,
                        sliding: false,
                    });
                }
                CacheKind::State(state) => out.recurrent = Some(recurrent(state)?),
                CacheKind::Compressed { .. } | CacheKind::SharedCompressed { .. } => {
                    return Err(unsupported("compressed attention"));
                }
                CacheKind::ConvWindow { .. } => return Err(unsupported("windows of convolutions")),
                CacheKind::Cross(_) => return Err(unsupported("cross attention")),
            }
        }
        layers.push(out);
    }
    let widths_of = FeedForward::of(model);
    Ok(Hparams {
        architecture: model.architecture.clone(),
        context_length: model.max_position.unwrap_or(0),
        embedding: model.hidden_size,
        feed_forward: widths_of.dense,
        dense_feed_forward: widths_of.dense,
        expert_feed_forward: widths_of.expert,
        gated: widths_of.gated,
        mixer_width: model
            .layers
            .iter()
            .flat_map(|layer| &layer.caches)
            .map(|cache| match &cache.kind {
                CacheKind::State(state) => mixer(state),
                _ => 0,
            })
            .max()
            .unwrap_or(0),
        heads: model.num_attention_heads,
        vocabulary: model.vocab_size,
        layers,
        sliding,
        mla,
        head_widths: widths,
        experts: widths_of.experts,
        keys: keys(&model.architecture),
    })
}

/// What the converter writes for a class whatever the configuration: Granite and Cohere scale logits, Granite also what is
/// added to the residual stream.
fn keys(architecture: &str) -> Keys {
    let granite = architecture.starts_with("Granite");
    Keys {
        logit_scale: granite || architecture.starts_with("Cohere2"),
        residual_scale: granite,
        embedding_scale: granite,
        ..Keys::default()
    }
}

/// Widths of the feed-forward parts.
struct FeedForward {
    dense: u64,
    expert: u64,
    experts: (u64, u64),
    gated: bool,
}

impl FeedForward {
    fn of(model: &Model) -> Self {
        let mut out = Self {
            dense: 0,
            expert: 0,
            experts: (0, 0),
            gated: false,
        };
        let mut widest_outputs = 0;
        for weight in model.layers.iter().flat_map(|layer| &layer.weights) {
            match &weight.op {
                Op::Experts {
                    experts,
                    top_k,
                    intermediate,
                    gated,
                    ..
                } => {
                    out.expert = out.expert.max(*intermediate);
                    out.experts = (*experts, *top_k);
                    out.gated |= gated;
                }
                Op::Linear { .. } if matches!(weight.role, Role::Mlp | Role::SharedExpert) => {
                    // What cannot be divided by one is nothing that a layer could run.
                    let Ok(Shard::Linear { inputs, outputs, .. }) = weight.shard(&Parallel::default()) else {
                        continue;
                    };
                    let sum = outputs.iter().fold(0_u64, |sum, n| sum.saturating_add(*n));
                    if sum == model.hidden_size {
                        out.dense = out.dense.max(inputs);
                    } else {
                        widest_outputs = widest_outputs.max(sum);
                    }
                }
                _ => {}
            }
        }
        out.gated |= out.dense > 0 && widest_outputs >= out.dense.saturating_mul(2);
        if out.dense == 0 && out.expert == 0 {
            out.dense = model.hidden_size.saturating_mul(4);
        }
        out
    }
}

/// Elements alive in a recurrent layer, as for a file.
fn mixer(state: &State) -> u64 {
    match state {
        State::Mamba1 { inner, .. } => mixer_width(*inner, 0, 0),
        State::Mamba2 {
            inner, groups, state, ..
        } => mixer_width(*inner, *groups, *state),
        State::GatedDelta {
            k_heads,
            v_heads,
            k_dim,
            v_dim,
            ..
        } => mixer_width(v_heads.saturating_mul(*v_dim), *k_heads, *k_dim),
        State::Kda { heads, dim, .. } => mixer_width(heads.saturating_mul(*dim), *heads, *dim),
        State::ShortConv { hidden, .. } => mixer_width(*hidden, 0, 0),
        State::Linear { .. } => 0,
    }
}

fn recurrent(state: &State) -> Result<Recurrent> {
    let mul = |factors: &[u64]| {
        factors
            .iter()
            .try_fold(1_u64, |product, &f| product.checked_mul(f))
            .ok_or_else(|| Error::overflow("the recurrent state of one layer"))
    };
    let taps = |kernel: u64| kernel.saturating_sub(1);
    Ok(match state {
        // Jamba's and Mamba's files give no groups.
        State::Mamba1 {
            inner, state, kernel, ..
        } => Recurrent {
            conv: mul(&[taps(*kernel), *inner])?,
            state: mul(&[*inner, *state])?,
        },
        State::Mamba2 {
            inner,
            groups,
            state,
            kernel,
            ..
        } => Recurrent {
            conv: mul(&[taps(*kernel), inner.saturating_add(mul(&[2, *groups, *state])?)])?,
            state: mul(&[*inner, *state])?,
        },
        State::GatedDelta {
            k_heads,
            v_heads,
            k_dim,
            v_dim,
            kernel,
            ..
        } => Recurrent {
            conv: mul(&[
                taps(*kernel),
                mul(&[*v_heads, *v_dim])?.saturating_add(mul(&[2, *k_heads, *k_dim])?),
            ])?,
            state: mul(&[*v_heads, *v_dim, *k_dim])?,
        },
        State::Kda {
            heads, dim, kernel, ..
        } => Recurrent {
            conv: mul(&[3, taps(*kernel), *heads, *dim])?,
            state: mul(&[*dim, *dim, *heads])?,
        },
        State::ShortConv { hidden, kernel, .. } => Recurrent {
            conv: mul(&[*hidden, taps(*kernel)])?,
            state: 0,
        },
        State::Linear { .. } => {
            return Err(Error::unsupported(
                "llama.cpp's state of lightning attention is not planned",
            ));
        }
    })
}

/// Weights of a configuration, quantised by a mix. Everything but towers, which llama.cpp keeps in a file of their own.
///
/// # Errors
/// If a size leaves 64 bits.
pub fn weights(model: &Model, mix: Mix) -> Result<Weights> {
    let too_large = || Error::overflow("the size of the weights");
    let bytes = |elements: u64| {
        u64::try_from(u128::from(elements) * u128::from(mix.millibits) / 8000).map_err(|_| too_large())
    };
    let mut out = Weights::default();
    for layer in &model.layers {
        let (mut elements, mut experts) = (0_u64, 0_u64);
        for weight in &layer.weights {
            let own = weight.elements()?;
            elements = elements.checked_add(own).ok_or_else(too_large)?;
            if matches!(weight.op, Op::Experts { .. }) {
                experts = experts.saturating_add(own);
            }
        }
        out.layers.push(bytes(elements)?);
        out.experts.push(bytes(experts)?);
    }
    let mut head = false;
    let mut embedding = 0;
    for weight in model
        .outside
        .iter()
        .filter(|part| !part.tower)
        .flat_map(|part| &part.weights)
    {
        let size = bytes(weight.elements()?)?;
        match weight.role {
            Role::Embedding => {
                embedding = size.max(embedding);
                out.input = out.input.checked_add(size).ok_or_else(too_large)?;
            }
            Role::Tower => {}
            role => {
                head |= role == Role::Head;
                out.output = out.output.checked_add(size).ok_or_else(too_large)?;
            }
        }
    }
    out.file = out
        .layers
        .iter()
        .try_fold(out.input, |sum, &b| sum.checked_add(b))
        .and_then(|sum| sum.checked_add(out.output))
        .ok_or_else(too_large)?;
    if !head {
        out.output = out.output.checked_add(embedding).ok_or_else(too_large)?;
    }
    out.params = model.params()?;
    Ok(out)
}

/// A file's layers as a model, for questions that any engine answers: caches as the file has them, and each layer's
/// parameters as one tensor.
///
/// # Errors
/// If a size leaves 64 bits.
pub fn model(name: &str, file: &Hparams, header: &Header) -> Result<Model> {
    let mut elements = vec![0_u64; file.layers.len()];
    let mut outside = 0_u64;
    let too_large = || Error::overflow("the number of parameters");
    for tensor in &header.tensors {
        let layer = tensor
            .name
            .strip_prefix("blk.")
            .and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        let slot = match layer {
            Some(layer) => elements.get_mut(layer).ok_or_else(|| {
                Error::input(format!(
                    "tensor {} belongs to a layer that the metadata does not count",
                    tensor.name
                ))
            })?,
            None => &mut outside,
        };
        *slot = slot.checked_add(tensor.elements()?).ok_or_else(too_large)?;
    }
    let (width, _) = file.head_widths;
    let heads = |keys: u64, values: u64| {
        let kv_heads = keys.checked_div(width).unwrap_or(1).max(1);
        Heads {
            kv_heads,
            head_dim: keys / kv_heads,
            head_dim_v: values / kv_heads,
            follows_kv_dtype: true,
        }
    };
    let mut layers = Vec::new();
    for (layer, &count) in file.layers.iter().zip(&elements) {
        let mut caches = Vec::new();
        if let Some(a) = layer.attention {
            let kind = match (file.mla, a.sliding, file.sliding) {
                (true, _, _) => CacheKind::Latent {
                    width: a.keys,
                    nope: 0,
                    rope: 0,
                    sparse: false,
                },
                (false, true, Some(window)) => CacheKind::Sliding {
                    heads: heads(a.keys, a.values),
                    window: window.tokens,
                },
                _ => CacheKind::Full(heads(a.keys, a.values)),
            };
            caches.push(Cache {
                name: "attn".to_owned(),
                kind,
            });
        }
        if let Some(r) = layer.recurrent {
            caches.push(Cache {
                name: "ssm".to_owned(),
                kind: CacheKind::State(State::Mamba1 {
                    inner: r.conv.checked_add(r.state).ok_or_else(too_large)?,
                    state: 1,
                    kernel: 1,
                    conv: Some(Dtype::F32),
                    ssm: Some(Dtype::F32),
                }),
            });
        }
        layers.push(arch::Layer {
            caches,
            weights: vec![Weight::tensor("all", Role::Mlp, &[count], None)].into(),
        });
    }
    Ok(Model {
        name: name.to_owned(),
        architecture: file.architecture.clone(),
        model_type: file.architecture.clone(),
        dtype: Some(Dtype::F16),
        max_position: (file.context_length > 0).then_some(file.context_length),
        num_attention_heads: file.heads,
        num_kv_heads: file
            .layers
            .iter()
            .filter_map(|l| l.attention)
            .map(|a| a.keys.checked_div(width).unwrap_or(1))
            .max()
            .unwrap_or(0),
        hidden_size: file.embedding,
        vocab_size: file.vocabulary,
        layers_path: "blk".to_owned(),
        layers,
        outside: vec![Outside {
            place: Place::FirstAndLast,
            tower: false,
            weights: vec![Weight::tensor("outside", Role::Embedding, &[outside], None)],
        }],
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

/// Names of the mixes.
pub fn mix_names() -> Vec<&'static str> {
    MIXES.iter().map(|m| m.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::family;
    use crate::catalogue;

    fn read(name: &str) -> Box<Model> {
        let config = catalogue::find(name).unwrap().config().unwrap();
        match family::read(name, &config).unwrap() {
            family::Reading::Model(model) => model,
            family::Reading::Refused(r) => panic!("{}", r.reason),
        }
    }

    #[test]
    fn llama_3_1_8b_in_q4_k_m_is_as_large_as_its_published_file() {
        // Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf: 4.92 GB on the hub.
        let model = read("meta-llama/Llama-3.1-8B");
        let weights = weights(&model, Mix::by_name("Q4_K_M").unwrap()).unwrap();
        assert!(
            weights.file.abs_diff(4_920_000_000) < 20_000_000,
            "{}",
            weights.file
        );
    }

    #[test]
    fn mistral_keeps_every_token_and_gpt_oss_slides_every_other_layer() {
        let mistral = hparams(&read("mistralai/Mistral-7B-v0.1")).unwrap();
        assert_eq!(mistral.sliding, None);
        let oss = hparams(&read("openai/gpt-oss-20b")).unwrap();
        assert_eq!(oss.sliding, Some(Sliding { tokens: 128 }));
        assert_eq!(
            oss.layers.iter().filter(|l| l.attention.unwrap().sliding).count(),
            12
        );
        assert!(hparams(&read("deepseek-ai/DeepSeek-V3")).unwrap().mla);
    }
}
