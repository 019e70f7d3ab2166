//! Encoders of classes that vLLM builds from the Transformers library alone (5.19.0); nothing in them is divided but
//! what the backend knows to be attention, and they are built with `--language-model-only` too.

use super::super::text::Text;
use super::blocks::{
    CHANNELS, channels, convolution, divisor_or, factor_or, layer_norm, plain, repeated, whole,
};
use crate::arch::{Config, Role, Weight};
use crate::{Error, Result};

/// Most levels of a network of convolutions, each of which doubles its width.
const MAX_LEVELS: usize = 16;

/// A list of small numbers, its default where it is missing.
fn levels(c: &Config, key: &str, default: &[u64]) -> Result<Vec<u64>> {
    let list = c.u64s(key)?.unwrap_or_else(|| default.to_vec());
    if list.is_empty() || list.len() > MAX_LEVELS || list.iter().any(|&n| n == 0 || n > 256) {
        return Err(Error::input(format!(
            "{} has {} numbers, expected 1 to {MAX_LEVELS} from 1 to 256",
            c.name(key),
            list.len()
        )));
    }
    Ok(list)
}

/// HunYuan-VL (`modeling_hunyuan_vl.py`): a vision transformer and a merger of convolutions.
pub(super) fn hunyuan_vl(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim_or("hidden_size", 1152)?;
    let width = vision.dim_or("intermediate_size", 4304)?;
    let patch = divisor_or(vision, "patch_size", 16)?;
    let merge = factor_or(vision, "spatial_merge_size", 2)?;
    let seen = factor_or(vision, "num_channels", CHANNELS)?;
    let side = channels(vision, "max_image_size", 2048)? / patch;
    let out = t.hidden()?;
    let name = |part: &str| format!("model.vision_tower.layers.0.{part}");
    let merger = |part: &str| format!("model.vision_tower.patch_merger.{part}");
    let mut all = convolution(
        "model.vision_tower.embeddings.patch_embedding",
        &[hidden, seen, patch, patch],
    )
    .to_vec();
    all.push(plain(
        "model.vision_tower.embeddings.position_embedding",
        &[side * side + 1, hidden],
    ));
    all.extend(repeated(
        vision.dim_or("num_hidden_layers", 27)?,
        [
            whole(name("self_attn.proj"), hidden, hidden).times(4),
            whole(name("mlp.fc1"), hidden, width),
            whole(name("mlp.fc2"), width, hidden),
            layer_norm(&name("layer_norm"), hidden).times(4),
        ],
    ));
    all.extend(convolution(
        &merger("proj_conv"),
        &[2 * hidden, hidden, merge, merge],
    ));
    all.push(whole(merger("proj_out"), 2 * hidden, 4 * hidden));
    all.push(whole(merger("mlp"), 4 * hidden, out));
    all.push(plain(&merger("image_newline"), &[4 * hidden]));
    // Vectors for an image's begin, end and separation, and the norm behind it.
    all.push(plain(&merger("image_begin"), &[out]).times(4));
    all.push(plain(&merger("before_rms"), &[hidden]));
    Ok(all)
}

/// An encoder of `VibeVoice`'s sound under `name` (`modeling_vibevoice_acoustic_tokenizer.py`): stages of blocks that
/// mix over time, a convolution between them that shortens the sound and doubles the width.
fn vibevoice_encoder(c: &Config, name: &str) -> Result<Vec<Weight>> {
    let kernel = factor_or(c, "kernel_size", 7)?;
    let expansion = factor_or(c, "ffn_expansion", 4)?;
    let ratios = levels(c, "downsampling_ratios", &[2, 2, 4, 5, 5, 8])?;
    let depths = levels(c, "depths", &[3, 3, 3, 3, 3, 3, 8])?;
    if depths.len() != ratios.len() + 1 {
        return Err(Error::input(format!(
            "{} has {} stages, expected one more than the {} of downsampling_ratios",
            c.name("depths"),
            depths.len(),
            ratios.len()
        )));
    }
    let mut width = factor_or(c, "num_filters", 32)?;
    let part = |part: &str| format!("{name}.{part}");
    let mut all = convolution(&part("stem.conv"), &[width, factor_or(c, "channels", 1)?, kernel]).to_vec();
    for (i, &depth) in depths.iter().enumerate() {
        if let Some(&ratio) = i.checked_sub(1).and_then(|i| ratios.get(i)) {
            all.extend(convolution(
                &part("conv_layers.0.conv"),
                &[2 * width, width, 2 * ratio],
            ));
            width *= 2;
        }
        let inner = expansion * width;
        let mut block = convolution(&part("stage.0.mixer"), &[width, 1, kernel]).to_vec();
        block.extend([
            whole(part("stage.0.ffn.linear1"), width, inner),
            whole(part("stage.0.ffn.linear2"), inner, width),
            // Two norms and two scales.
            plain(&part("stage.0.norm"), &[width]).times(4),
        ]);
        all.extend(repeated(depth, block));
    }
    all.extend(convolution(
        &part("head"),
        &[c.dim("hidden_size")?, width, kernel],
    ));
    Ok(all)
}

/// `VibeVoice` ASR's encoder of how something sounds, and its projection.
pub(super) fn vibevoice_acoustic(t: &Text, c: &Config) -> Result<Vec<Weight>> {
    vibevoice(t, c, "acoustic")
}

/// `VibeVoice` ASR's encoder of what is said, and its projection.
pub(super) fn vibevoice_semantic(t: &Text, c: &Config) -> Result<Vec<Weight>> {
    vibevoice(t, c, "semantic")
}

fn vibevoice(t: &Text, c: &Config, kind: &str) -> Result<Vec<Weight>> {
    let text = t.hidden()?;
    let mut all = vibevoice_encoder(c, &format!("model.{kind}_tokenizer_encoder"))?;
    let name = |part: &str| format!("model.multi_modal_projector.{kind}_{part}");
    all.push(whole(name("linear_1"), c.dim("hidden_size")?, text));
    all.push(plain(&name("norm"), &[text]));
    all.push(whole(name("linear_2"), text, text));
    Ok(all)
}

/// The network that turns images into Emu3's tokens and back.
struct Quantizer {
    /// Width of each level.
    widths: Vec<u64>,
    /// Levels that attend.
    attending: Vec<u64>,
    heads: u64,
    blocks: u64,
    /// Width of an image's points between the halves, and of a token.
    latent: u64,
    embedded: u64,
}

impl Quantizer {
    /// A norm: where `spatial`, scaled and shifted by what two convolutions make of the tokens.
    fn norm(&self, width: u64, spatial: bool) -> Vec<Weight> {
        let mut all = vec![layer_norm("model.vqmodel.norm", width)];
        if spatial {
            all.push(whole("model.vqmodel.norm.conv", self.embedded, width).times(2));
        }
        all
    }

    fn residual(&self, inputs: u64, outputs: u64, spatial: bool) -> Vec<Weight> {
        let mut all = self.norm(inputs, spatial);
        all.extend(self.norm(outputs, spatial));
        all.extend(convolution("model.vqmodel.conv1", &[outputs, inputs, 3, 3]));
        all.extend(convolution("model.vqmodel.conv2", &[outputs, outputs, 3, 3]));
        if inputs != outputs {
            all.push(whole("model.vqmodel.nin_shortcut", inputs, outputs));
        }
        all
    }

    fn attention(&self, width: u64, spatial: bool) -> Vec<Weight> {
        let head_dim = width.checked_div(self.heads).unwrap_or(0);
        let mut all = self.norm(width, spatial);
        all.push(
            Weight::qkv(
                "model.vqmodel.attn.qkv_proj",
                width,
                self.heads,
                self.heads,
                head_dim,
            )
            .role(Role::Tower)
            .bias(true),
        );
        all.push(whole("model.vqmodel.attn.out_proj", width, width));
        all
    }

    fn middle(&self, width: u64, spatial: bool) -> Vec<Weight> {
        let mut all = self.residual(width, width, spatial);
        all.extend(self.residual(width, width, spatial));
        all.extend(self.attention(width, spatial));
        all
    }

    /// One level of either half: its blocks, the first from `inputs`, and the convolution that changes the size.
    fn level(
        &self,
        i: u64,
        inputs: u64,
        outputs: u64,
        blocks: u64,
        resized: bool,
        spatial: bool,
    ) -> Vec<Weight> {
        let mut all = self.residual(inputs, outputs, spatial);
        all.extend(repeated(
            blocks.saturating_sub(1),
            self.residual(outputs, outputs, spatial),
        ));
        if self.attending.contains(&i) {
            all.extend(repeated(blocks, self.attention(outputs, spatial)));
        }
        if resized {
            all.extend(convolution("model.vqmodel.resample", &[outputs, outputs, 3, 3]));
        }
        all
    }

    /// Residual blocks over time, over a few channels.
    fn over_time(&self, width: u64) -> Vec<Weight> {
        let mut block = convolution("model.vqmodel.time_res_stack.conv1", &[width, width, 3, 3, 3]).to_vec();
        block.extend(convolution(
            "model.vqmodel.time_res_stack.conv2",
            &[width, width, 3, 3, 3],
        ));
        block.push(layer_norm("model.vqmodel.time_res_stack.norm", width).times(4));
        repeated(self.blocks, block).collect()
    }
}

/// Emu3's image tokens (`modeling_emu3.py`).
pub(super) fn emu3(_: &Text, c: &Config) -> Result<Vec<Weight>> {
    let base = channels(c, "base_channels", 256)?;
    let multiples = levels(c, "channel_multiplier", &[1, 2, 2, 4])?;
    let latent = factor_or(c, "latent_channels", 4)?;
    let embedded = factor_or(c, "embed_dim", 4)?;
    let outputs = if c.flag("double_latent", false)? {
        2 * latent
    } else {
        latent
    };
    let (seen, shown) = (
        factor_or(c, "in_channels", CHANNELS)?,
        factor_or(c, "out_channels", CHANNELS)?,
    );
    let halvings = u64::from(divisor_or(c, "temporal_downsample_factor", 4)?.ilog2());
    let q = Quantizer {
        widths: multiples.iter().map(|m| base * m).collect(),
        attending: c.u64s("attn_resolutions")?.unwrap_or_else(|| vec![3]),
        heads: factor_or(c, "num_attention_heads", 1)?,
        blocks: factor_or(c, "num_res_blocks", 2)?,
        latent,
        embedded,
    };
    let widest = q.widths.last().copied().unwrap_or(base);
    let last = q.widths.len().saturating_sub(1);
    let mut all = convolution("model.vqmodel.encoder.conv_in", &[base, seen, 3, 3]).to_vec();
    let mut width = base;
    for (i, &next) in q.widths.iter().enumerate() {
        all.extend(q.level(i as u64, width, next, q.blocks, i != last, false));
        width = next;
    }
    all.extend(q.middle(widest, false));
    all.extend(q.norm(widest, false));
    all.extend(convolution(
        "model.vqmodel.encoder.conv_out",
        &[outputs, widest, 3, 3],
    ));
    all.extend(repeated(
        halvings,
        convolution("model.vqmodel.encoder.time_conv", &[outputs, outputs, 4, 3, 3]),
    ));
    all.extend(q.over_time(outputs));
    // The way back.
    all.extend(q.over_time(q.latent));
    all.extend(repeated(
        halvings,
        convolution("model.vqmodel.decoder.time_conv", &[q.latent, q.latent, 3, 3, 3]),
    ));
    all.extend(convolution(
        "model.vqmodel.decoder.conv_in",
        &[widest, q.latent, 3, 3],
    ));
    all.extend(q.middle(widest, true));
    width = widest;
    for (i, &next) in q.widths.iter().enumerate().rev() {
        all.extend(q.level(i as u64, width, next, q.blocks + 1, i != 0, true));
        width = next;
    }
    all.extend(q.norm(width, true));
    all.extend(convolution(
        "model.vqmodel.decoder.conv_out",
        &[shown, width, 3, 3],
    ));
    all.push(plain(
        "model.vqmodel.quantize.embedding",
        &[c.dim_or("codebook_size", 32_768)?, embedded],
    ));
    all.extend(convolution(
        "model.vqmodel.quant_conv",
        &[embedded, latent, 3, 1, 1],
    ));
    all.extend(convolution(
        "model.vqmodel.post_quant_conv",
        &[latent, embedded, 3, 1, 1],
    ));
    Ok(all)
}
