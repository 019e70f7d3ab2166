//! `LiLiCorr`: a drafter of whole blocks with a small network that compares candidates of neighbouring places (vLLM 0.32.0,
//! `lilicorr.py`).

use super::dense::{Decoder, part};
use super::dflash::{block_config, convolve};
use super::text::Text;
use crate::arch::{Config, Model, Place, Role, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Numbers that describe a candidate to the network (`num_candidate_features`).
const FEATURES: u64 = 5;

/// Adds convolutions, where the file asks for them, and the network.
///
/// # Errors
/// If a value is missing or the engine would refuse it.
pub(super) fn add(t: &Text, decoder: &mut Decoder) -> Result<()> {
    let own = block_config(t)?;
    if !own.flag("lilicorr_enabled", true)? {
        return Err(Error::unsupported("LiLiCorr requires lilicorr_enabled=True."));
    }
    let (taps, group) = (
        own.dim_or("conv_kernel_size", 0)?,
        own.dim_or("conv_group_size", 0)?,
    );
    if (taps > 0) != (group > 0) {
        return Err(Error::unsupported(
            "LiLiCorr convolution geometry must enable both taps and group size.",
        ));
    }
    if taps > 0 {
        convolve(t, decoder)?;
    }
    decoder.outside.push(part(Place::Last, network(t, &own)?));
    Ok(())
}

/// Width of the network's inner layers: a multiple of its width that the file gives as a decimal number, rounded down.
fn inner_width(own: &Config, width: u64) -> Result<u64> {
    let ratio = own.f64("lilicorr_mlp_ratio")?.unwrap_or(0.0);
    let product = ratio * width as f64;
    if !(1.0..1e9).contains(&product) {
        return Err(Error::input(format!(
            "{} is {ratio}, which makes layers {product} wide",
            own.name("lilicorr_mlp_ratio")
        )));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: between 1 and 10^9"
    )]
    Ok(product as u64)
}

fn network(t: &Text, own: &Config) -> Result<Vec<Weight>> {
    let model_width = t.hidden()?;
    let width = match own.dim_or("lilicorr_hidden_size", 0)? {
        0 => model_width,
        n => n,
    };
    let heads = own.dim("lilicorr_num_heads")?;
    if !width.is_multiple_of(heads) {
        return Err(Error::unsupported(format!(
            "LiLiCorr hidden_size={width} must be divisible by num_heads={heads}."
        )));
    }
    let top_k = own.dim("lilicorr_candidate_topk")?;
    if top_k > 16 || !top_k.is_power_of_two() {
        return Err(Error::unsupported(
            "LiLiCorr candidate_topk must be a power of two <= 16.",
        ));
    }
    let block = own.dim_or("block_size", t.config.dim_or("block_size", 0)?)?;
    if block < 2 {
        return Err(Error::unsupported(
            "LiLiCorr requires 1 <= num_speculative_tokens < trained block_size.",
        ));
    }
    let inner = inner_width(own, width)?;
    let factor = own.dim("lilicorr_factor_dim")?;
    let layers = own.dim("lilicorr_num_layers")?;
    let name = |part: &str| format!("model.lilicorr.{part}");
    let role = Role::Mlp;
    let whole = |part: &str, inputs: u64, outputs: u64| {
        Weight::replicated(name(part), role, inputs, &[outputs]).bias(true)
    };
    let divided = |part: &str, inputs: u64, middle: u64| {
        [
            Weight::column(name(&format!("{part}.up_proj")), role, inputs, &[middle]).bias(true),
            Weight::row(name(&format!("{part}.down_proj")), role, middle, width).bias(true),
        ]
    };
    let tensor = |part: &str, shape: &[u64]| Weight::tensor(name(part), role, shape, None);
    let mut all = vec![
        tensor("slot_embedding", &[block - 1, width]),
        tensor("rank_embedding", &[top_k, width]),
        tensor("relative_slot_bias", &[heads, 2 * block - 1]),
        tensor("same_slot_bias", &[heads]),
        whole("pass_hidden_proj", model_width, width),
        Weight::norm(name("feature_norm"), FEATURES).times(2),
        whole("context_proj", model_width, width),
        Weight::norm(name("output_norm"), width),
        Weight::norm(name("anchor_norm"), width),
        whole("factor_input_proj", 3 * width, width).unquantized(),
        whole("out_head", width, factor).unquantized(),
        whole("in_head", width, factor).unquantized(),
        whole("anchor_out_head", width, factor),
    ];
    if width != model_width {
        all.push(whole("token_proj", model_width, width));
    }
    all.extend(divided("feature_mlp", FEATURES, width));
    let mut layer = vec![
        Weight::norm(name("layers.norms"), width).times(2),
        whole("layers.attn.in_proj", width, 3 * width).unquantized(),
        whole("layers.attn.out_proj", width, width),
    ];
    layer.extend(divided("layers.mlp", width, inner));
    all.extend(layer.into_iter().map(|w| {
        let count = w.count;
        w.times(count * layers)
    }));
    Ok(all)
}

/// What the network keeps beside its parameters (`materialize_inference_buffers`): joined and cut projections, the bias of
/// its attention for every pair of candidates, and two columns of features.
pub(super) fn copies(model: &Model) -> Vec<Weight> {
    let mut copies = Vec::new();
    let (mut heads, mut slots, mut ranks) = (0, 0, 0);
    for weight in model.outside.iter().flat_map(|part| &part.weights) {
        let Some(name) = weight.name.strip_prefix("model.lilicorr.") else {
            continue;
        };
        match (name, &weight.op) {
            ("out_head" | "in_head", _) => copies.push(weight.clone()),
            ("factor_input_proj", _) => copies.push(weight.clone().bias(false)),
            ("same_slot_bias", crate::arch::Op::Tensor { shape, .. }) => heads = shape[0],
            ("slot_embedding", crate::arch::Op::Tensor { shape, .. }) => slots = shape[0],
            ("rank_embedding", crate::arch::Op::Tensor { shape, .. }) => ranks = shape[0],
            _ => {}
        }
    }
    if heads > 0 {
        let places = slots * ranks;
        let bias = Weight::tensor("attention_bias", Role::Mlp, &[heads, places, places], None);
        copies.push(bias);
        copies.push(Weight::norm("candidate_columns", ranks).of(Dtype::F32).times(2));
    }
    copies
}
