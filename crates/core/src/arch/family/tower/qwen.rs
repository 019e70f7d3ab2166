//! Towers of Qwen's vision models.

use super::super::text::Text;
use super::blocks::{
    Blocks, CHANNELS, column, factor, factor_or, layer_norm, merged, plain, repeated, row, whole,
};
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

/// HyperCLOVA-X Vision V2 (vLLM 0.32.0, `hyperclovax_vision_v2.py`): Qwen2.5-VL's tower and a projection.
pub(super) fn hyperclovax(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let mut all = qwen2_5_vl(t, vision)?;
    all.push(whole("mm_projector", vision.dim("out_hidden_size")?, t.hidden()?));
    Ok(all)
}

/// openPangu-VL (vLLM 0.32.0, `openpangu_vl.py`): Qwen2.5-VL's layers, a merger for each layer that is looked at, a
/// projection.
pub(super) fn openpangu(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let out = vision.dim("out_hidden_size")?;
    let seen = vision
        .array("mm_unit_vision_select_layer")?
        .map_or(2, |list| list.len() as u64);
    let gated = vision.str("hidden_act")?.unwrap_or("silu") == "silu";
    let width = vision.dim("intermediate_size")?;
    let layers = vision.dim("depth")?;
    let mut all: Vec<Weight> = qwen2_5_vl(t, vision)?
        .into_iter()
        .map(|w| {
            if w.name.contains(".merger.") {
                w.times(seen)
            } else if !gated && w.name.ends_with("gate_up_proj") {
                column("visual.blocks.0.mlp.up_proj", hidden, width).times(layers)
            } else {
                w
            }
        })
        .collect();
    all.push(plain("visual.final_layernorm", &[hidden]));
    all.push(whole("visual.vision_projection.fc1", out, t.hidden()?));
    Ok(all)
}

/// Bailing-V3 VL (vLLM 0.32.0, `bailing_moe_v3_vl.py`): Qwen3-VL's layers, a merger that only norms, a divided
/// projector over joined patches.
pub(super) fn bailing(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let joined = vision.dim("hidden_size")? * merged(vision)?;
    let text = t.hidden()?;
    let mut map = vision.map().clone();
    map.insert("out_hidden_size".to_owned(), serde_json::Value::from(joined));
    map.remove("deepstack_visual_indexes");
    let mut all = qwen3_vl(t, &vision.with_map(map))?;
    all.retain(|w| !w.name.contains(".merger.linear"));
    all.push(column("linear_proj.linear_fc1", joined, text));
    all.push(row("linear_proj.linear_fc2", text, text));
    Ok(all)
}

/// The images of MiMo-V2-Omni (vLLM 0.32.0, `mimo_v2_omni.py`): Qwen2.5-VL's layers with fewer key and value heads
/// and, in layers with a window, a sink a head.
pub(super) fn mimo(_: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim_or("hidden_size", 1280)?;
    let heads = vision.dim_or("num_heads", 32)?;
    let kv_heads = vision.dim_or("num_key_value_heads", 8)?;
    let (keys, values) = (
        vision.dim_or("qk_channels", 64)?,
        vision.dim_or("kv_channels", 64)?,
    );
    let width = vision.dim_or("intermediate_size", 4608)?;
    let layers = vision.dim_or("depth", 28)?;
    let patch = factor_or(vision, "patch_size", 16)?;
    let time = factor_or(vision, "temporal_patch_size", 2)?;
    let channels = factor_or(vision, "in_channels", CHANNELS)?;
    let joined = hidden * merged(vision)?;
    let name = |part: &str| format!("visual.blocks.0.{part}");
    let mut all = vec![
        plain("visual.patch_embed.proj", &[hidden, channels, time, patch, patch]),
        plain("visual.merger.ln_q", &[hidden]),
        column("visual.merger.mlp.0", joined, joined).bias(false),
        row(
            "visual.merger.mlp.2",
            joined,
            vision.dim_or("out_hidden_size", 2048)?,
        )
        .bias(false),
    ];
    all.extend(repeated(
        layers,
        [
            Weight::qkv(name("attn.qkv"), hidden, heads, kv_heads, keys)
                .value_head_dim(values)
                .bias(true),
            row(name("attn.proj"), heads * values, hidden),
            Weight::column(name("mlp.gate_up_proj"), Role::Tower, hidden, &[width, width]).bias(true),
            row(name("mlp.down_proj"), width, hidden),
            plain(&name("norm"), &[hidden]).times(2),
        ],
    ));
    if vision.flag("use_sink", false)? {
        let full = match vision.u64s("fullatt_block_indexes")? {
            Some(list) => list,
            None => vec![7, 15, 23, 31],
        };
        let windowed = (0..layers).filter(|i| !full.contains(i)).count() as u64;
        all.push(plain(&name("attn.sinks"), &[heads]).times(windowed));
    }
    Ok(all)
}

/// LLaVA-OneVision 2 (vLLM 0.32.0, `llava_onevision2.py`): a vision transformer without positions in its parameters
/// and Qwen2-VL's merger.
pub(super) fn llava_onevision2(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = factor(vision, "patch_size")?;
    let joined = hidden * merged(vision)?;
    let blocks = Blocks {
        path: "visual.encoder.layers",
        layers: vision.dim("num_hidden_layers")?,
        hidden,
        attention: hidden,
        heads: vision.dim("num_attention_heads")?,
        width: vision.dim("intermediate_size")?,
        names: ["self_attn.qkv", "self_attn.proj", "mlp.fc1", "mlp.fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let mut all = vec![
        plain(
            "visual.embeddings.patch_embedding",
            &[hidden, factor_or(vision, "num_channels", CHANNELS)?, patch, patch],
        ),
        layer_norm("visual.norm", hidden).times(4),
        column("visual.merger.mlp.0", joined, joined),
        row("visual.merger.mlp.2", joined, t.hidden()?),
    ];
    all.extend(blocks.weights());
    Ok(all)
}
