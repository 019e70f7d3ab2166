//! Nemotron-H: one part a layer, a Mamba-2 mixer, attention, a feed-forward part or experts.

use super::dense::{Attention, Decoder, Mlp};
use super::hybrid::{finish, kinds};
use super::mamba::Mamba2;
use super::moe::Moe;
use super::text::{Attend, Text};
use crate::arch::{Cache, Layer, Role, Weight, Weights};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Nemotron-H (vLLM 0.32.0, `nemotron_h.py`): one mixer a layer, a Mamba-2, attention, feed-forward or experts.
/// Puzzle models give each layer's sizes in `block_configs`, over those of the file; state layers keep to the file's.
pub(crate) fn nemotron_h(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let blocks = blocks(t)?;
    let letters = nemotron_h_pattern(t, blocks.as_deref())?;
    // Files without a state layer need not describe one.
    // Layers of one kind share their parameters, which half of the models' hundred layers have alike.
    let whole = |mut weights: Vec<Weight>| -> Weights {
        weights.push(Weight::norm("norm", hidden));
        weights.into()
    };
    let mixer = if letters.contains(&'M') {
        let mixer = nemotron_h_mixer(t)?;
        let weights = whole(mixer.weights(hidden));
        Some((mixer, weights))
    } else {
        None
    };
    let alike = |kind: char| blocks.is_none() && letters.contains(&kind);
    let attention = alike('*').then(|| attention(t, hidden)).transpose()?;
    let attention = attention.map(|(cache, weights)| (cache, whole(weights)));
    let experts = alike('E').then(|| nemotron_h_experts(t, hidden)).transpose()?;
    let experts = experts.map(&whole);
    let mut dense: Vec<(Mlp, Weights)> = Vec::new();
    let mut dense_layers = 0;
    let mut layers = Vec::with_capacity(letters.len());
    for (i, kind) in letters.into_iter().enumerate() {
        let own = blocks.as_ref().and_then(|blocks| blocks.get(i));
        let layer = match kind {
            'M' => match &mixer {
                Some((mixer, weights)) => Layer {
                    caches: vec![mixer.cache()],
                    weights: weights.clone(),
                },
                None => Layer::default(),
            },
            '*' => {
                let (cache, weights) = if let Some(alike) = &attention {
                    alike.clone()
                } else {
                    let (cache, weights) = self::attention(own.unwrap_or(t), hidden)?;
                    (cache, whole(weights))
                };
                Layer {
                    caches: vec![cache],
                    weights,
                }
            }
            'E' => Layer {
                caches: Vec::new(),
                weights: match &experts {
                    Some(weights) => weights.clone(),
                    None => whole(nemotron_h_experts(own.unwrap_or(t), hidden)?),
                },
            },
            _ => {
                let own = own.unwrap_or(t);
                let mlp = Mlp {
                    path: "mixer",
                    width: width(own, dense_layers)?,
                    gated: false,
                    bias: own.config.flag("mlp_bias", false)?,
                };
                dense_layers += 1;
                let known = dense.iter().rev().take(16).find(|(known, _)| *known == mlp);
                let weights = if let Some((_, weights)) = known {
                    weights.clone()
                } else {
                    let weights = whole(mlp.weights(hidden));
                    dense.push((mlp, weights.clone()));
                    weights
                };
                Layer {
                    caches: Vec::new(),
                    weights,
                }
            }
        };
        layers.push(layer);
    }
    let mut decoder = finish(t, layers, t.tied()?)?;
    decoder.mtp_layers = c.dim_or("num_nextn_predict_layers", 0)?;
    Ok(decoder)
}

/// An attention layer. The class does not look at `attention_bias`.
fn attention(t: &Text, hidden: u64) -> Result<(Cache, Vec<Weight>)> {
    let mut attention = Attention::read(t)?;
    attention.path = "mixer";
    let attend = t.window()?.map_or(Attend::Full, Attend::Sliding);
    Ok((attention.cache(attend), attention.weights(hidden)))
}

/// Width of the `i`th dense layer: one for all, or a list.
fn width(t: &Text, i: usize) -> Result<u64> {
    Ok(match t.config.get("intermediate_size") {
        Some(serde_json::Value::Array(_)) => {
            let list = t.config.u64s("intermediate_size")?.unwrap_or_default();
            list.get(i).or(list.first()).copied().unwrap_or(0)
        }
        _ => t.config.dim_or("intermediate_size", 0)?,
    })
}

/// The file as each layer sees it, where `block_configs` has an entry for each.
fn blocks(t: &Text) -> Result<Option<Vec<Text>>> {
    let c = &t.config;
    let Some(list) = c.array("block_configs")? else {
        return Ok(None);
    };
    if list.is_empty() || list.len() as u64 > super::text::MAX_LAYERS {
        return Err(Error::input(format!(
            "{} has {} entries, expected 1 to {}",
            c.name("block_configs"),
            list.len(),
            super::text::MAX_LAYERS
        )));
    }
    list.iter()
        .map(|block| {
            let serde_json::Value::Object(block) = block else {
                return Err(Error::input(format!(
                    "{} has an entry that is no object",
                    c.name("block_configs")
                )));
            };
            let mut map = c.map().clone();
            map.remove("block_configs");
            for (key, value) in block.iter().filter(|(_, value)| !value.is_null()) {
                map.insert(key.clone(), value.clone());
            }
            Ok(Text {
                config: c.with_map(map),
                ..t.clone()
            })
        })
        .collect::<Result<_>>()
        .map(Some)
}

fn first_dim(t: &Text, keys: &[&str]) -> Result<u64> {
    t.first_dim(keys)
}

/// The state layers of Nemotron-H.
fn nemotron_h_mixer(t: &Text) -> Result<Mamba2> {
    let c = &t.config;
    let (heads, head_dim) = (c.dim("mamba_num_heads")?, c.dim("mamba_head_dim")?);
    let inner = heads
        .checked_mul(head_dim)
        .filter(|&n| n <= crate::arch::config::MAX_DIMENSION)
        .ok_or_else(|| Error::overflow("mamba_num_heads times mamba_head_dim"))?;
    // Other wrappers' states have the model's type, whatever the file says (`MODELS_CONFIG_MAP` in
    // `vllm/model_executor/models/config.py`).
    let told = matches!(
        t.file_class()?.as_str(),
        "NemotronHForCausalLM" | "NemotronHPuzzleForCausalLM" | "NemotronH_Nano_VL_V2"
    );
    let ssm = match c.str("mamba_ssm_cache_dtype")? {
        _ if !told => None,
        None => Some(Dtype::F32),
        Some("auto") => None,
        Some(name) => Some(Dtype::parse(name).ok_or_else(|| {
            Error::input(format!(
                "{} is {name:?}, expected a type such as float32 or bfloat16",
                c.name("mamba_ssm_cache_dtype")
            ))
        })?),
    };
    Ok(Mamba2 {
        path: "mixer",
        inner,
        groups: first_dim(t, &["mamba_n_groups", "n_groups"])?,
        heads,
        head_dim,
        state: c.dim("ssm_state_size")?,
        kernel: first_dim(t, &["mamba_d_conv", "conv_kernel"])?,
        conv_bias: c.flag("mamba_conv_bias", c.flag("use_conv_bias", true)?)?,
        bias: c.flag("use_bias", false)?,
        norm: true,
        ssm,
    })
}

/// One letter a layer: `M` state, `*` attention, `E` experts, `-` feed-forward; of Puzzle models the kinds of `blocks`
/// where the file has no pattern.
fn nemotron_h_pattern(t: &Text, blocks: Option<&[Text]>) -> Result<Vec<char>> {
    let c = &t.config;
    let wrong = |kind: &str| {
        Error::input(format!(
            "{} has a layer {kind:?}, expected M, *, E, - or their names",
            c.name("layers_block_type")
        ))
    };
    let letter = |kind: &str| match kind {
        "mamba" | "linear_attention" => Ok('M'),
        "attention" | "full_attention" => Ok('*'),
        "moe" => Ok('E'),
        "mlp" => Ok('-'),
        other => Err(wrong(other)),
    };
    if let Some(list) = kinds(t, &["layers_block_type", "layer_types"])? {
        return list.iter().map(|kind| letter(kind)).collect();
    }
    if let Some(blocks) = blocks.filter(|_| c.get("hybrid_override_pattern").is_none()) {
        return blocks
            .iter()
            .map(|block| letter(block.config.str("block_type")?.unwrap_or_default()))
            .collect();
    }
    if t.model_type()? == "cosmos3_edge_text" && c.get("hybrid_override_pattern").is_none() {
        // Cosmos-3 Edge counts pairs of attention and feed-forward (vLLM 0.32.0, `configs/cosmos3_edge.py`).
        return Ok((0..t.layers()?).flat_map(|_| ['*', '-']).collect());
    }
    let Some(pattern) = c.str("hybrid_override_pattern")? else {
        return Ok(vec!['M', 'E', '*', '-']);
    };
    let letters: Vec<char> = pattern.chars().filter(|&letter| letter != '|').collect();
    if letters.is_empty() || letters.len() as u64 > super::text::MAX_LAYERS {
        return Err(Error::input(format!(
            "{} names {} layers, expected 1 to {}",
            c.name("hybrid_override_pattern"),
            letters.len(),
            super::text::MAX_LAYERS
        )));
    }
    match letters
        .iter()
        .find(|letter| !matches!(letter, 'M' | '*' | 'E' | '-'))
    {
        Some(other) => Err(wrong(&other.to_string())),
        None => Ok(letters),
    }
}

fn nemotron_h_experts(t: &Text, hidden: u64) -> Result<Vec<Weight>> {
    let c = &t.config;
    let latent = c.dim_or("moe_latent_size", 0)?;
    let shared = c.dim_or("moe_shared_expert_intermediate_size", 0)? * c.dim_or("n_shared_experts", 0)?;
    let mut moe = Moe::new(
        "mixer",
        c.dim("n_routed_experts")?,
        c.dim("num_experts_per_tok")?,
        c.dim("moe_intermediate_size")?,
    )
    .f32_router()
    .corrected("gate.e_score_correction_bias")
    .shared("mixer.shared_experts", shared);
    moe.gated = false;
    let mut weights = moe.weights(hidden);
    if latent > 0 {
        // Routed experts work in a narrower space; the shared expert and the router do not.
        for weight in &mut weights {
            if weight.role == Role::Experts {
                *weight =
                    Weight::experts("mixer.experts", moe.experts, moe.top_k, latent, moe.width).ungated();
            }
        }
        let bias = c.flag("mlp_bias", false)?;
        weights
            .push(Weight::replicated("mixer.fc1_latent_proj", Role::Experts, hidden, &[latent]).bias(bias));
        weights
            .push(Weight::replicated("mixer.fc2_latent_proj", Role::Experts, latent, &[hidden]).bias(bias));
    }
    Ok(weights)
}
