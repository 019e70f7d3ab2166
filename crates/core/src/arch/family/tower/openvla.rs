//! `OpenVLA`: two vision transformers of timm side by side, fixed in the class.

use super::super::text::Text;
use super::blocks::{CHANNELS, column, convolution, layer_norm, plain, repeated, row, whole};
use super::single::attention_pool;
use crate::Result;
use crate::arch::{Config, Weight};

/// A vision transformer of timm 1.0.31 at 224 pixels with patches of 14, whole on every rank.
struct Featurizer {
    path: &'static str,
    hidden: u64,
    width: u64,
    layers: u64,
    /// Whether both parts of a layer are scaled (`DINOv2`).
    scaled: bool,
}

const DINO: Featurizer = Featurizer {
    path: "vision_backbone.dinov2_featurizer",
    hidden: 1024,
    width: 4096,
    layers: 24,
    scaled: true,
};

const SIGLIP: Featurizer = Featurizer {
    path: "vision_backbone.siglip_featurizer",
    hidden: 1152,
    width: 4304,
    layers: 27,
    scaled: false,
};

impl Featurizer {
    fn weights(&self) -> Vec<Weight> {
        /// Patches of an image.
        const PATCHES: u64 = 16 * 16;
        let (hidden, width) = (self.hidden, self.width);
        let part = |part: &str| format!("{}.{part}", self.path);
        let name = |part: &str| format!("{}.blocks.0.{part}", self.path);
        let mut layer = vec![
            whole(name("attn.qkv"), hidden, 3 * hidden),
            whole(name("attn.proj"), hidden, hidden),
            whole(name("mlp.fc1"), hidden, width),
            whole(name("mlp.fc2"), width, hidden),
            layer_norm(&name("norm"), hidden).times(4),
        ];
        if self.scaled {
            layer.push(plain(&name("ls"), &[hidden]).times(2));
        }
        let mut all = convolution(&part("patch_embed.proj"), &[hidden, CHANNELS, 14, 14]).to_vec();
        all.push(plain(&part("pos_embed"), &[PATCHES, hidden]));
        all.push(layer_norm(&part("norm"), hidden));
        all.extend(repeated(self.layers, layer));
        all
    }
}

/// `OpenVLA` (vLLM 0.32.0, `openvla.py`): `vit_large_patch14_reg4_dinov2.lvd142m` and `vit_so400m_patch14_siglip_224`,
/// which the class insists on, and a projector over both.
pub(super) fn openvla(t: &Text, _: &Config) -> Result<Vec<Weight>> {
    /// `DINOv2`'s class token and four registers.
    const TOKENS: u64 = 5;
    let seen = DINO.hidden + SIGLIP.hidden;
    let text = t.hidden()?;
    let mut all = DINO.weights();
    all.push(plain(
        "vision_backbone.dinov2_featurizer.reg_token",
        &[TOKENS, DINO.hidden],
    ));
    all.extend(SIGLIP.weights());
    all.extend(attention_pool(SIGLIP.path, SIGLIP.hidden, SIGLIP.width).map(Weight::undivided));
    all.push(column("projector.fc1", seen, 4 * seen));
    all.push(row("projector.fc2", 4 * seen, text));
    all.push(whole("projector.fc3", text, text));
    Ok(all)
}
