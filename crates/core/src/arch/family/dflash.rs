//! Drafters that propose a whole block of tokens in one step, from hidden states of the target that they keep as keys and
//! values of their own: `DFlash` on layers of Qwen3 or Laguna, its second generation, and what stands on them (vLLM 0.32.0,
//! `qwen3_dflash.py`, `qwen3_dflash2.py`, `laguna_dflash.py`).

use serde_json::Value;

use super::dense::{Decoder, Dense, Norm, QkNorm, part};
use super::eagle::{embedding, model};
use super::text::{Attend, Text};
use super::{dspark, lilicorr, speculators};
use crate::arch::{Config, Model, Op, Outside, Part, Place, Role, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Which method runs the drafter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// `dflash`.
    Flash,
    /// `dspark`: the same with a head that corrects each token by the one before it.
    Spark,
}

/// Reads a drafter of whole blocks for a target; without one its own sizes stand for the target's.
///
/// # Errors
/// If a value cannot be used; as [`Error::unsupported`] if the engine has no such drafter, or would refuse this one.
pub fn read_block_drafter(
    name: &str,
    config: &Config,
    block: Block,
    target: Option<&Model>,
) -> Result<Model> {
    let kinds: &[&str] = match block {
        Block::Flash => &["dflash", "dflash2"],
        Block::Spark => &["dspark"],
    };
    let flat = speculators::flatten(config, kinds)?;
    let class = flat
        .strs("architectures")?
        .and_then(|list| list.first().copied())
        .ok_or_else(|| {
            Error::input(format!(
                "{} is missing from the drafter's configuration",
                flat.name("architectures")
            ))
        })?
        .to_owned();
    if block == Block::Spark {
        return dspark::read(name, &class, &flat, target);
    }
    // The engine puts its own prefix before a class that lacks it (`transformers_utils/configs/eagle.py`).
    let named = class.starts_with("DFlash") || class.ends_with("DFlash") || class == "LiLiCorrDraftModel";
    let class = if named { class } else { format!("DFlash{class}") };
    let vocab = target.map(|target| target.vocab_size);
    match class.as_str() {
        "DFlashLagunaForCausalLM" => {
            let text = Text::find("LagunaForCausalLM", &flat)?;
            model(name, &class, &text, laguna(&text, target)?)
        }
        "DFlashDraftModel" | "DFlashMuseGlimmerAssistantModel" => {
            let text = Text::find(&class, &flat)?;
            model(name, &class, &text, backbone(&text, vocab)?)
        }
        "DFlash2DraftModel" => {
            let text = Text::find(&class, &flat)?;
            let mut decoder = backbone(&text, vocab)?;
            convolve(&text, &mut decoder)?;
            decoder.outside.push(selector(&text)?);
            model(name, &class, &text, decoder)
        }
        "LiLiCorrDraftModel" => {
            let text = Text::find(&class, &flat)?;
            let mut decoder = backbone(&text, vocab)?;
            lilicorr::add(&text, &mut decoder)?;
            let head = text.config.dim_or("draft_vocab_size", text.vocab()?)?;
            if vocab.is_some_and(|vocab| vocab != head) {
                return Err(Error::unsupported(
                    "LiLiCorr candidates require the full target vocabulary.",
                ));
            }
            model(name, &class, &text, decoder)
        }
        _ => Err(Error::unsupported(format!(
            "Model architectures ['{class}'] are not supported for now."
        ))
        .hint("DFlash drafters say \"architectures\": [\"DFlashDraftModel\"]")),
    }
}

/// What a drafter's file says of itself beside its layers: `dflash_config` before `eagle_config`.
pub(super) struct Own<'a> {
    parts: Vec<Config>,
    top: &'a Config,
}

impl<'a> Own<'a> {
    pub(super) fn read(top: &'a Config) -> Result<Self> {
        let mut parts = Vec::new();
        for key in ["dflash_config", "eagle_config"] {
            parts.extend(top.sub(key)?);
        }
        Ok(Self { parts, top })
    }

    /// The part that has a key.
    fn with(&self, key: &str) -> Option<&Config> {
        self.parts.iter().find(|part| part.has(key))
    }

    /// `dflash_config`, or an empty object.
    fn block(&self) -> Option<&Config> {
        self.parts.first()
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        self.with(key).unwrap_or(self.top).flag(key, default)
    }

    /// Hidden states of the target that it reads; `layers` where the file does not say (`get_eagle3_aux_layers_from_config`
    /// in `v1/worker/gpu/spec_decode/eagle/eagle3_utils.py`, and `_get_dflash_fc_input_size`).
    pub(super) fn states(&self, layers: u64) -> Result<u64> {
        let lists = [
            self.top.u64s("eagle_aux_hidden_state_layer_ids")?,
            self.block()
                .map_or(Ok(None), |own| own.u64s("target_layer_ids"))?,
            self.top.u64s("dspark_target_layer_ids")?,
            self.top.u64s("target_layer_ids")?,
            self.with("layer_ids")
                .map_or(Ok(None), |own| own.u64s("layer_ids"))?,
        ];
        let count = lists
            .into_iter()
            .flatten()
            .find(|ids| !ids.is_empty())
            .map_or(layers, |ids| ids.len() as u64);
        if !(1..=1 << 10).contains(&count) {
            return Err(Error::input(format!(
                "the drafter reads {count} hidden states, expected 1 to 1024"
            )));
        }
        Ok(count)
    }
}

/// The window of each layer (`_resolve_layer_attention`): listed windows, or one for all with `use_swa`.
fn windows(t: &Text, own: &Own<'_>) -> Result<Vec<Attend>> {
    let layers = t.layers()?;
    // Qwen3's class of configuration forgets a window that is not switched on, and lists the kinds of layers by itself.
    let qwen3 = t.model_type()? == "qwen3";
    let top = if qwen3 && !t.config.flag("use_sliding_window", false)? {
        None
    } else {
        t.window()?
    };
    let listed: Option<Vec<bool>> = match t.layer_types()? {
        Some(types) => Some(types.iter().map(|kind| *kind == "sliding_attention").collect()),
        None if qwen3 => {
            let first = t.config.dim_or("max_window_layers", 28)?;
            Some((0..layers).map(|i| top.is_some() && i >= first).collect())
        }
        None => None,
    };
    let for_all = match own.block() {
        Some(own) => own.flag("use_swa", false)?,
        None => false,
    };
    let window = match own.block().filter(|own| own.has("swa_window_size")) {
        Some(own) => Some(own.dim("swa_window_size")?),
        None => top,
    };
    let any = listed.as_ref().is_some_and(|listed| listed.contains(&true));
    (0..layers)
        .map(|i| {
            let slides = match &listed {
                Some(listed) if any || !for_all => {
                    usize::try_from(i).ok().and_then(|i| listed.get(i)) == Some(&true)
                }
                _ => for_all,
            };
            match (slides, window) {
                (false, _) => Ok(Attend::Full),
                (true, Some(window)) => Ok(Attend::Sliding(window)),
                (true, None) => Err(Error::unsupported(
                    "DFlash sliding attention requires a window size configured in dflash_config.swa_window_size or the \
                     top-level sliding_window.",
                )
                .hint("a file of model_type qwen3 has a window only with \"use_sliding_window\": true")),
            }
        })
        .collect()
}

/// The layers of Qwen3 that `DFlash` stands on, and everything beside them (`DFlashQwen3Model`).
pub(super) fn backbone(t: &Text, target_vocab: Option<u64>) -> Result<Decoder> {
    let own = Own::read(&t.config)?;
    let attends = windows(t, &own)?;
    let mut map = t.config.map().clone();
    map.remove("layer_types");
    map.remove("sliding_window");
    let plain = Text {
        config: t.config.with_map(map),
        ..t.clone()
    };
    let mut dense = Dense::llama(&plain)?;
    dense.attends = attends;
    let bias = t.config.flag("attention_bias", false)?;
    dense.attention.qkv_bias = bias;
    dense.attention.o_bias = bias;
    dense.attention.qk_norm = QkNorm::Head(Norm::Scale);
    let sinks = match own.block().filter(|own| own.has("attention_sink_bias")) {
        Some(own) => own.flag("attention_sink_bias", false)?,
        None => t.config.flag("add_swa_attention_sink_bias", false)?,
    };
    let mut decoder = dense.build()?;
    if sinks {
        let heads = dense.attention.heads;
        for layer in &mut decoder.layers {
            layer.weights.push(Weight::tensor(
                "self_attn.attention_sink_bias",
                Role::Attention,
                &[heads],
                Some(0),
            ));
        }
    }
    let hidden = dense.hidden;
    let mut joins = vec![Weight::norm("model.mask_embedding", hidden)];
    if own.flag("use_aux_hidden_state", true)? {
        let states = own.states(t.layers()?)?;
        let width = t.config.dim_or("target_hidden_size", hidden)?;
        joins.push(Weight::replicated(
            "model.fc",
            Role::Mlp,
            width * states,
            &[hidden],
        ));
    }
    joins.push(Weight::norm("model.hidden_norm", hidden));
    joins.push(Weight::norm("model.norm", hidden));
    decoder.outside = vec![embedding(t)?, part(Place::Last, joins), head(t, target_vocab)?];
    Ok(decoder)
}

/// The output head over the drafter's own vocabulary, and the table from its tokens to the target's where they differ.
fn head(t: &Text, target_vocab: Option<u64>) -> Result<Outside> {
    let vocab = t.config.dim_or("draft_vocab_size", t.vocab()?)?;
    let head = Weight::vocab("lm_head", Role::Head, vocab, t.hidden()?);
    let mut weights = vec![if t.config.flag("has_own_lm_head", false)? {
        head
    } else {
        head.unquantized()
    }];
    if target_vocab.is_some_and(|target| target != vocab) {
        weights.push(id_table(vocab));
    }
    Ok(part(Place::Last, weights))
}

/// Distances from the drafter's tokens to the target's.
pub(super) fn id_table(vocab: u64) -> Weight {
    Weight::tensor("draft_id_to_target_id", Role::Norm, &[vocab], None).of(Dtype::I64)
}

/// The grouped convolutions around attention and feed-forward part (`DFlashGroupedConv`).
pub(super) fn convolve(t: &Text, decoder: &mut Decoder) -> Result<()> {
    let own = block_config(t)?;
    let (taps, group) = (own.dim("conv_kernel_size")?, own.dim("conv_group_size")?);
    let hidden = t.hidden()?;
    if !hidden.is_multiple_of(group) {
        return Err(Error::unsupported(format!(
            "conv_group_size={group} must divide hidden_size={hidden}."
        )));
    }
    for layer in &mut decoder.layers {
        for place in ["attention_conv", "mlp_conv"] {
            layer.weights.push(Weight::tensor(
                format!("{place}.base_kernel"),
                Role::Mlp,
                &[2, taps, hidden],
                None,
            ));
            layer.weights.push(Weight::replicated(
                format!("{place}.kernel_projection"),
                Role::Mlp,
                hidden,
                &[2 * taps * (hidden / group)],
            ));
        }
    }
    Ok(())
}

/// `dflash_config`, which these drafters need.
pub(super) fn block_config(t: &Text) -> Result<Config> {
    t.config.sub("dflash_config")?.ok_or_else(|| {
        Error::input(format!(
            "{} is missing from the drafter's configuration",
            t.config.name("dflash_config")
        ))
    })
}

/// What chooses among candidates (`CandidateSelector`).
fn selector(t: &Text) -> Result<Outside> {
    let own = block_config(t)?;
    let (rank, vocab) = (own.dim("selector_rank")?, t.vocab()?);
    own.dim("selector_top_k")?;
    let projection = Weight::replicated(
        "model.candidate_selector.hidden_projection",
        Role::Mlp,
        t.hidden()?,
        &[rank],
    );
    Ok(part(
        Place::Last,
        vec![
            Weight::tensor(
                "model.candidate_selector.codebooks",
                Role::Mlp,
                &[vocab, rank],
                None,
            )
            .times(2),
            projection.unquantized(),
        ],
    ))
}

/// `DFlash` on Laguna's layers, whose windows do not shorten its caches (`DFlashLagunaModel`).
fn laguna(t: &Text, target: Option<&Model>) -> Result<Decoder> {
    let kinds = t
        .layer_types()?
        .ok_or_else(|| Error::unsupported("Laguna DFlash config requires `layer_types`."))?;
    if kinds.iter().any(|kind| *kind != kinds[0]) {
        return Err(Error::unsupported(
            "Laguna DFlash drafter requires a uniform `layer_types`",
        ));
    }
    let vocab = t
        .config
        .first_u64(&["draft_vocab_size"])?
        .ok_or_else(|| Error::unsupported("Laguna DFlash config requires `draft_vocab_size`."))?;
    if let Some(target) = target
        && target.vocab_size != vocab
    {
        return Err(Error::unsupported(format!(
            "Laguna DFlash shares the target lm_head and requires `draft_vocab_size` to match the target vocabulary size \
             ({vocab} != {}).",
            target.vocab_size
        )));
    }
    let mut plain = t.clone();
    let mut map = t.config.map().clone();
    map.insert("layer_types".to_owned(), Value::Null);
    plain.config = t.config.with_map(map);
    let mut decoder = super::decoder(&plain)?;
    if let Some(target) = target {
        let sparse = |layer: &crate::arch::Layer| layer.weights.iter().any(|w| w.role == Role::Experts);
        let both = decoder.layers.iter().zip(&target.layers);
        if let Some(i) = both
            .into_iter()
            .position(|(own, other)| sparse(own) && sparse(other))
        {
            return Err(Error::unsupported(format!(
                "Duplicate layer name: model.layers.{i}.mlp.experts"
            )));
        }
    }
    let own = block_config(t)?;
    let states = own.u64s("target_layer_ids")?.unwrap_or_default().len() as u64;
    if !(1..=1 << 10).contains(&states) {
        return Err(Error::unsupported(
            "Laguna DFlash config requires non-empty `dflash_config.target_layer_ids`.",
        ));
    }
    let hidden = t.hidden()?;
    let width = target.map_or(hidden, |target| target.hidden_size);
    decoder.outside = vec![
        embedding(t)?,
        part(
            Place::Last,
            vec![
                Weight::norm("model.aux_hidden_norms", width).times(states),
                Weight::replicated("model.fc", Role::Mlp, width * states, &[hidden]),
                Weight::norm("model.hidden_norm", hidden),
                Weight::norm("model.norm", hidden),
                Weight::vocab("lm_head", Role::Head, vocab, hidden).unquantized(),
            ],
        ),
    ];
    Ok(decoder)
}

/// What the engine copies out of a drafter's parameters once they are loaded, so that one multiplication makes keys and
/// values of all its layers from the target's hidden states (`_build_fused_kv_buffers`); empty for drafters of other kinds.
/// `quantized` says whether the drafter's projections are, which keeps them from being joined.
pub fn context_copies(model: &Model, quantized: bool) -> Vec<Weight> {
    let gemma4 = model.architecture == "Gemma4DSparkModel";
    let laguna = model.architecture == "DFlashLagunaForCausalLM";
    let of_qwen3 = [
        "DFlashDraftModel",
        "DFlash2DraftModel",
        "DFlashMuseGlimmerAssistantModel",
        "LiLiCorrDraftModel",
        "Qwen3DSparkModel",
        "Qwen3OmniDSparkModel",
    ];
    let mut copies = Vec::new();
    if !(gemma4 || laguna || of_qwen3.contains(&model.architecture.as_str())) {
        if model.architecture == "K3DSparkModel" {
            let norms = model.layers.iter().flat_map(|layer| &layer.weights);
            copies.extend(norms.filter(|w| w.name == "self_attn.kv_a_layernorm").cloned());
        }
        return copies;
    }
    for weight in model.layers.iter().flat_map(|layer| &layer.weights) {
        match (&weight.op, weight.name.as_str()) {
            (
                &Op::Qkv {
                    inputs,
                    kv_heads,
                    head_dim,
                    head_dim_v,
                    bias,
                    ..
                },
                _,
            ) if !quantized || laguna => {
                let parts = [head_dim, head_dim_v].map(|width| Part::Groups {
                    units: kv_heads,
                    width,
                });
                let copy = Weight::parts("context_kv", Role::Attention, inputs, parts.to_vec());
                copies.push(copy.bias(bias).unquantized());
            }
            (_, "self_attn.k_proj") => copies.push(weight.clone().unquantized()),
            // Gemma-4's values are normalised too, by ones.
            (_, "self_attn.k_norm") => copies.push(weight.clone().times(1 + u64::from(gemma4))),
            (_, "input_layernorm") if laguna => copies.push(weight.clone()),
            _ => {}
        }
    }
    copies.extend(lilicorr::copies(model));
    copies
}
