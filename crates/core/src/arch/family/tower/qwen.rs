//! Towers of Qwen's vision models.

use super::super::text::Text;
use super::blocks::{Blocks, CHANNELS, factor, factor_or, layer_norm, merged, plain};
use crate::Result;
use crate::arch::{Config, Role, Weight};

/// Qwen3-VL and Qwen3.5 (vLLM 0.32.0, `qwen3_vl.py`): mergers also after the layers of `deepstack_visual_indexes`.
pub(super) fn qwen3_vl(_: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let out = vision.dim("out_hidden_size")?;
    let patch = factor(vision, "patch_size")?;
    let blocks = Blocks {
        path: "visual.blocks",
        layers: vision.dim("depth")?,
        hidden,
        attention: hidden,
        heads: vision.dim("num_heads")?,
        width: vision.dim("intermediate_size")?,
        names: ["attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let merge = hidden * merged(vision)?;
    let time = factor_or(vision, "temporal_patch_size", 2)?;
    let mut all = vec![
        plain(
            "visual.patch_embed.proj",
            &[
                hidden,
                factor_or(vision, "in_channels", CHANNELS)?,
                time,
                patch,
                patch,
            ],
        ),
        plain("visual.patch_embed.proj.bias", &[hidden]),
        plain(
            "visual.pos_embed",
            &[vision.dim("num_position_embeddings")?, hidden],
        ),
        layer_norm("visual.merger.norm", hidden),
        Weight::column("visual.merger.linear_fc1", Role::Tower, merge, &[merge]).bias(true),
        Weight::row("visual.merger.linear_fc2", Role::Tower, merge, out).bias(true),
    ];
    let deep = vision.u64s("deepstack_visual_indexes")?.unwrap_or_default().len() as u64;
    if deep > 0 {
        let name = |part: &str| format!("visual.deepstack_merger_list.0.{part}");
        all.push(plain(&name("norm"), &[merge]).times(2 * deep));
        all.push(
            Weight::column(name("linear_fc1"), Role::Tower, merge, &[merge])
                .bias(true)
                .times(deep),
        );
        all.push(
            Weight::row(name("linear_fc2"), Role::Tower, merge, out)
                .bias(true)
                .times(deep),
        );
    }
    all.extend(blocks.weights());
    Ok(all)
}

/// Qwen2-VL (vLLM 0.32.0, `qwen2_vl.py`); `hidden_size` of its tower is the language model's.
pub(super) fn qwen2_vl(_: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("embed_dim")?;
    let patch = factor(vision, "patch_size")?;
    let blocks = Blocks {
        path: "visual.blocks",
        layers: vision.dim("depth")?,
        hidden,
        attention: hidden,
        heads: vision.dim("num_heads")?,
        width: hidden * factor_or(vision, "mlp_ratio", 4)?,
        names: ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let merge = hidden * merged(vision)?;
    let time = factor_or(vision, "temporal_patch_size", 2)?;
    let channels = factor_or(vision, "in_channels", factor_or(vision, "in_chans", CHANNELS)?)?;
    let mut all = vec![
        plain("visual.patch_embed.proj", &[hidden, channels, time, patch, patch]),
        layer_norm("visual.merger.ln_q", hidden),
        Weight::column("visual.merger.mlp.0", Role::Tower, merge, &[merge]).bias(true),
        Weight::row(
            "visual.merger.mlp.2",
            Role::Tower,
            merge,
            vision.dim("hidden_size")?,
        )
        .bias(true),
    ];
    all.extend(blocks.weights());
    Ok(all)
}

/// Qwen2.5-VL (vLLM 0.32.0, `qwen2_5_vl.py`): a gated feed-forward part and norms without shifts.
pub(super) fn qwen2_5_vl(_: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = factor(vision, "patch_size")?;
    let layers = vision.dim("depth")?;
    let heads = vision.dim("num_heads")?;
    let width = vision.dim("intermediate_size")?;
    let merge = hidden * merged(vision)?;
    let time = factor_or(vision, "temporal_patch_size", 2)?;
    let channels = factor_or(vision, "in_channels", factor_or(vision, "in_chans", CHANNELS)?)?;
    let head_dim = hidden.checked_div(heads).unwrap_or(0);
    let role = Role::Tower;
    let name = |part: &str| format!("visual.blocks.0.{part}");
    Ok(vec![
        plain("visual.patch_embed.proj", &[hidden, channels, time, patch, patch]),
        plain("visual.merger.ln_q", &[hidden]),
        Weight::column("visual.merger.mlp.0", role, merge, &[merge]).bias(true),
        Weight::row("visual.merger.mlp.2", role, merge, vision.dim("out_hidden_size")?).bias(true),
        Weight::qkv(name("attn.qkv"), hidden, heads, heads, head_dim)
            .role(role)
            .bias(true)
            .times(layers),
        Weight::row(name("attn.proj"), role, hidden, hidden)
            .bias(true)
            .times(layers),
        Weight::column(name("mlp.gate_up_proj"), role, hidden, &[width, width])
            .bias(true)
            .times(layers),
        Weight::row(name("mlp.down_proj"), role, width, hidden)
            .bias(true)
            .times(layers),
        plain(&name("norms"), &[hidden]).times(2 * layers),
    ])
}
