//! Kanana-V: Qwen2-VL's layers and an abstractor of convolutions.

use super::super::text::Text;
use super::blocks::{factor_or, layer_norm, plain, whole};
use super::qwen::qwen2_vl;
use crate::arch::{Config, Weight};
use crate::{Error, Result};

/// One bottleneck from `inputs` to `outputs` channels (timm 1.0.31, `Bottleneck` in `regnet.py`): a convolution a
/// channel between two over channels, weighted by a small network; a shortcut of its own where the width changes.
fn bottleneck(inputs: u64, outputs: u64) -> Vec<Weight> {
    // A quarter of the inputs; Python rounds a half to the even number.
    let (quarter, rest) = (inputs / 4, inputs % 4);
    let squeezed = match rest {
        3 => quarter + 1,
        2 => quarter + quarter % 2,
        _ => quarter,
    };
    let name = |part: &str| format!("abstractor.net.0.b1.{part}");
    let mut all = vec![
        plain(&name("conv1.conv"), &[outputs, inputs, 1, 1]),
        plain(&name("conv2.conv"), &[outputs, 1, 3, 3]),
        whole(name("se.fc1"), outputs, squeezed),
        whole(name("se.fc2"), squeezed, outputs),
        plain(&name("conv3.conv"), &[outputs, outputs, 1, 1]),
        layer_norm(&name("bn"), outputs).times(6),
    ];
    if inputs != outputs {
        all.push(plain(&name("downsample.conv"), &[outputs, inputs, 1, 1]));
        all.push(layer_norm(&name("downsample.bn"), outputs));
    }
    all
}

/// Kanana-V (vLLM 0.32.0, `kanana_v.py`).
pub(super) fn kanana(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    // The merger of Qwen2-VL is left out, so its output may be anything.
    let mut map = vision.map().clone();
    map.insert("hidden_size".to_owned(), serde_json::Value::from(1));
    let mut all = qwen2_vl(t, &vision.with_map(map))?;
    all.retain(|w| !w.name.contains(".merger."));
    let c = t
        .top
        .sub("projector_config")?
        .ok_or_else(|| Error::input("projector_config is missing from the configuration"))?;
    let seen = c.dim("encoder_hidden_size")?;
    let inner = c.dim("hidden_size")?;
    let out = c.dim("output_hidden_size")?;
    let side = factor_or(&c, "merge_size", 2)?;
    let depth = c.u64("depth")?.unwrap_or(2).min(1 << 12);
    if c.flag("pos_emb", true)? {
        all.push(plain("abstractor.pos_emb", &[c.dim("pos_emb_size")?, seen]));
    }
    let mut read = seen;
    if depth > 0 {
        for inputs in [seen, side * side * inner] {
            all.extend(bottleneck(inputs, inner));
            for w in bottleneck(inner, inner) {
                let count = w.count * (depth - 1);
                all.push(w.times(count));
            }
        }
        read = inner;
    }
    all.push(whole("abstractor.readout.0", read, out));
    let more = c.dim_or("mlp_depth", 2)?.min(1 << 12).saturating_sub(1);
    all.push(whole("abstractor.readout.2", out, out).times(more));
    Ok(all)
}
