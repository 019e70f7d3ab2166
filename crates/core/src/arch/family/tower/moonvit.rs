//! `MoonViT`, the tower of Kimi's vision models.

use super::super::text::Text;
use super::blocks::{Blocks, CHANNELS, area, factor, layer_norm, plain};
use crate::Result;
use crate::arch::{Config, Role, Weight};

/// Kimi-K2.5 and K3 (vLLM 0.32.0, `kimi_k25_vit.py`): `MoonViT` and a projector over merged patches.
pub(super) fn moonvit_3d(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let either = |a: &str, b: &str| {
        if vision.get(a).is_some() {
            vision.dim(a)
        } else {
            vision.dim(b)
        }
    };
    let hidden = either("vt_hidden_size", "hidden_size")?;
    let patch = factor(vision, "patch_size")?;
    let merge = area(vision, "merge_kernel_size")?;
    let blocks = Blocks {
        path: "vision_tower.encoder.blocks",
        layers: either("vt_num_hidden_layers", "num_hidden_layers")?,
        hidden,
        attention: vision.dim_or("qkv_hidden_size", hidden)?,
        heads: either("vt_num_attention_heads", "num_attention_heads")?,
        width: either("vt_intermediate_size", "intermediate_size")?,
        names: ["wqkv", "wo", "mlp.fc0", "mlp.fc1"],
        attention_bias: vision.flag("attn_bias", true)?,
        mlp_bias: vision.flag("linear_bias", true)?,
        norm_shift: vision.str("norm_type")?.unwrap_or("layernorm") == "layernorm",
    };
    let text = t.hidden()?;
    let positions = [
        vision.dim_or("init_pos_emb_height", 64)?,
        vision.dim_or("init_pos_emb_width", 64)?,
        hidden,
    ];
    let mut all = vec![
        plain("vision_tower.patch_embed.proj", &[hidden, CHANNELS, patch, patch]),
        plain("vision_tower.patch_embed.pos_emb", &positions),
    ];
    if vision.flag("patch_embed_proj_bias", true)? {
        all.push(plain("vision_tower.patch_embed.proj.bias", &[hidden]));
    }
    let norms = if blocks.norm_shift { 2 } else { 1 };
    let heads = blocks.heads;
    all.push(plain("vision_tower.encoder.final_layernorm", &[hidden]).times(norms));
    let second = vision.str("mm_projector_type")? == Some("patchmergerv2");
    let joined = hidden * merge;
    let role = Role::Tower;
    all.push(Weight::replicated("mm_projector.linear_1", role, joined, &[joined]).bias(!second));
    all.push(Weight::replicated("mm_projector.linear_2", role, joined, &[text]).bias(!second));
    all.push(if second {
        plain("mm_projector.post_norm", &[text])
    } else {
        layer_norm("mm_projector.pre_norm", hidden)
    });
    all.extend(
        blocks
            .weights()
            .into_iter()
            .map(|w| w.whole_unless_divides(heads)),
    );
    Ok(all)
}
