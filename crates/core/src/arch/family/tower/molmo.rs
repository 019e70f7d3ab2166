//! Towers of Molmo, Molmo-2 and Moondream-3.

use super::super::text::Text;
use super::blocks::{Blocks, CHANNELS, column, factor, factor_or, layer_norm, plain, repeated, row, whole};
use crate::Result;
use crate::arch::{Config, Role, Weight};

/// Molmo (vLLM 0.32.0, `molmo.py`): CLIP ViT-L/14 at 336 pixels, fixed in the class, and a pooling over two layers'
/// outputs. The last of its 24 layers is not built.
pub(super) fn molmo(t: &Text, _: &Config) -> Result<Vec<Weight>> {
    const LAYERS: u64 = 23;
    const HIDDEN: u64 = 1024;
    const WIDTH: u64 = 4096;
    const POSITIONS: u64 = 577;
    const PIXELS: u64 = 14 * 14 * CHANNELS;
    let text = t.hidden()?;
    let width = t.intermediate()? / 2;
    let path = "vision_backbone.image_vit";
    let name = |part: &str| format!("{path}.transformer.resblocks.0.{part}");
    let mut all = vec![
        plain("vision_backbone.pad_embed", &[2, 2 * HIDDEN]),
        plain(&format!("{path}.class_embedding"), &[HIDDEN]),
        plain(&format!("{path}.positional_embedding"), &[POSITIONS, HIDDEN]),
        whole(format!("{path}.patch_embedding"), PIXELS, HIDDEN).bias(false),
        layer_norm(&format!("{path}.pre_ln"), HIDDEN),
        column("vision_backbone.image_pooling_2d.wqkv", 2 * HIDDEN, HIDDEN).times(3),
        row("vision_backbone.image_pooling_2d.wo", HIDDEN, HIDDEN),
    ];
    all.extend(repeated(
        LAYERS,
        [
            column(name("attention.wqkv"), HIDDEN, HIDDEN).times(3),
            row(name("attention.wo"), HIDDEN, HIDDEN),
            column(name("feed_forward.w1"), HIDDEN, WIDTH),
            row(name("feed_forward.w2"), WIDTH, HIDDEN),
            layer_norm(&name("norms"), HIDDEN).times(4),
        ],
    ));
    all.extend(projector(HIDDEN, width, text));
    Ok(all)
}

/// The gated projector of both Molmos.
fn projector(seen: u64, width: u64, text: u64) -> [Weight; 2] {
    let name = |part: &str| format!("vision_backbone.image_projector.{part}");
    [
        Weight::column(name("merged_linear"), Role::Tower, seen, &[width, width]),
        Weight::row(name("down_proj"), Role::Tower, width, text),
    ]
}

/// Molmo-2 (vLLM 0.32.0, `molmo2.py`): the layers up to the last that the adapter looks at, and a pooling.
pub(super) fn molmo2(t: &Text, vit: &Config) -> Result<Vec<Weight>> {
    let Some(adapter) = t.top.sub("adapter_config")? else {
        return Err(crate::Error::input(format!(
            "{} is missing from the configuration",
            t.top.name("adapter_config")
        )));
    };
    let hidden = vit.dim("hidden_size")?;
    let heads = vit.dim("num_attention_heads")?;
    let depth = vit.dim("num_hidden_layers")?;
    let patch = factor(vit, "image_patch_size")?;
    let list = adapter.array("vit_layers")?.unwrap_or_default();
    // Negative numbers count from the end.
    let seen = list
        .iter()
        .filter_map(serde_json::Value::as_i64)
        .map(|n| match n {
            n if n < 0 => depth.saturating_sub(n.unsigned_abs()) + 1,
            n => (n.unsigned_abs() + 1).min(depth),
        });
    let layers = seen.max().unwrap_or(depth).min(depth);
    let path = "vision_backbone.image_vit";
    let blocks = Blocks {
        path: "vision_backbone.image_vit.transformer.resblocks",
        layers,
        hidden,
        attention: heads * vit.dim_or("head_dim", hidden.checked_div(heads).unwrap_or(0))?,
        heads,
        width: vit.dim("intermediate_size")?,
        names: [
            "attention.merged_qkv",
            "attention.wo",
            "feed_forward.w1",
            "feed_forward.w2",
        ],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let pooled = hidden * list.len() as u64;
    let own = adapter.dim("hidden_size")?;
    let inner = adapter.dim("num_attention_heads")? * adapter.dim("head_dim")?;
    let name = |part: &str| format!("vision_backbone.image_pooling_2d.{part}");
    let mut all = vec![
        plain(
            &format!("{path}.positional_embedding"),
            &[vit.dim("image_num_pos")?, hidden],
        ),
        whole(
            format!("{path}.patch_embedding"),
            patch * patch * CHANNELS,
            hidden,
        ),
        column(name("q_proj"), pooled, inner),
        column(name("merged_kv"), pooled, inner).times(2),
        row(name("o_proj"), inner, own),
    ];
    all.extend(blocks.weights());
    let width = adapter.dim("intermediate_size")?;
    all.extend(projector(
        own,
        width,
        adapter.dim_or("text_hidden_size", t.hidden()?)?,
    ));
    Ok(all)
}

/// Moondream-3 (vLLM 0.32.0, `moondream3.py`): global and local features side by side in the projector.
pub(super) fn moondream3(t: &Text, config: &Config) -> Result<Vec<Weight>> {
    let c = config
        .sub("vision")?
        .unwrap_or_else(|| config.child("vision", serde_json::Map::new()));
    let hidden = c.dim_or("enc_dim", 1152)?;
    let patch = factor_or(&c, "enc_patch_size", 14)?;
    let side = c.dim_or("crop_size", 378)?.checked_div(patch).unwrap_or(0);
    let inner = c.dim_or("proj_inner_dim", 8192)?;
    let blocks = Blocks {
        path: "vision.blocks",
        layers: c.dim_or("enc_n_layers", 27)?,
        hidden,
        attention: hidden,
        heads: c.dim_or("enc_n_heads", 16)?,
        width: c.dim_or("enc_ff_dim", 4304)?,
        names: ["attn.qkv_proj", "attn.out_proj", "mlp.fc1", "mlp.fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let mut all = vec![
        plain("vision.pos_emb", &[side * side, hidden]),
        whole("vision.patch_emb", patch * patch * CHANNELS, hidden),
        layer_norm("vision.post_ln", hidden),
        column("vision_proj.fc1", 2 * hidden, inner),
        row("vision_proj.fc2", inner, t.hidden()?),
    ];
    all.extend(blocks.weights());
    Ok(all)
}
