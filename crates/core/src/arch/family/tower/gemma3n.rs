//! Gemma-3n's towers: a mobile network for images, a conformer for sound, an embedder behind each.

use super::super::text::Text;
use super::blocks::{CHANNELS, plain, row};
use super::library::gemma3n_audio;
use crate::Result;
use crate::arch::{Config, Role, Weight};

/// A block of one-by-one convolutions with convolutions a channel before (`start`) and between (`middle`) them; 0 is
/// none. Each convolution has a norm with a scale alone.
struct Inverted {
    inputs: u64,
    start: u64,
    inner: u64,
    middle: u64,
    outputs: u64,
    /// Blocks of this shape.
    times: u64,
}

/// The inverted bottlenecks of `mobilenetv5_300m_enc` (timm 1.0.31, `mobilenetv5.py`).
const INVERTED: [Inverted; 9] = [
    inverted(128, [3, 5], 768, 256, 1),
    inverted(256, [5, 0], 1024, 256, 2),
    inverted(256, [3, 0], 1024, 256, 2),
    inverted(256, [5, 5], 1536, 640, 1),
    inverted(640, [5, 0], 2560, 640, 7),
    inverted(640, [0, 0], 640, 640, 1),
    inverted(640, [0, 0], 1280, 640, 14),
    inverted(640, [5, 5], 3840, 1280, 1),
    inverted(1280, [0, 0], 2560, 1280, 19),
];

const fn inverted(inputs: u64, kernels: [u64; 2], inner: u64, outputs: u64, times: u64) -> Inverted {
    Inverted {
        inputs,
        start: kernels[0],
        inner,
        middle: kernels[1],
        outputs,
        times,
    }
}

impl Inverted {
    fn weights(&self) -> Vec<Weight> {
        let name = |part: &str| format!("vision_tower.timm_model.blocks.0.0.{part}");
        let mut all = vec![
            plain(&name("pw_exp.conv"), &[self.inner, self.inputs, 1, 1]),
            plain(&name("pw_exp.bn"), &[self.inner]),
            plain(&name("pw_proj.conv"), &[self.outputs, self.inner, 1, 1]),
            plain(&name("pw_proj.bn"), &[self.outputs]),
        ];
        for (part, width, kernel) in [
            ("dw_start", self.inputs, self.start),
            ("dw_mid", self.inner, self.middle),
        ] {
            if kernel > 0 {
                all.push(plain(&name(part), &[width, 1, kernel, kernel]));
                all.push(plain(&name(&format!("{part}.bn")), &[width]));
            }
        }
        all.into_iter().map(|w| w.times(self.times)).collect()
    }
}

/// Attention whose heads share one key and one value, over an input that is halved first where `halved`.
fn attention(width: u64, queries: u64, keys: u64, halved: bool, times: u64) -> Vec<Weight> {
    let name = |part: &str| format!("vision_tower.timm_model.blocks.0.0.{part}");
    let mut all = vec![
        plain(&name("norm"), &[width]).times(times),
        plain(&name("layer_scale"), &[width]).times(times),
        plain(&name("attn.query.proj"), &[queries, width, 1, 1]).times(times),
        plain(&name("attn.key.proj"), &[keys, width, 1, 1]).times(2 * times),
        plain(&name("attn.output.proj"), &[width, queries, 1, 1]).times(times),
    ];
    if halved {
        all.push(plain(&name("attn.key.down_conv"), &[width, 1, 3, 3]).times(2 * times));
        all.push(plain(&name("attn.key.norm"), &[width]).times(2 * times));
    }
    all
}

/// The vision model of `timm` that the file names; the same on every rank.
fn mobile_network() -> Vec<Weight> {
    const STEM: u64 = 64;
    const FIRST: u64 = 128;
    let name = |part: &str| format!("vision_tower.timm_model.{part}");
    let edge = |inputs: u64, inner: u64, times: u64| {
        [
            plain(&name("blocks.0.0.conv_exp"), &[inner, inputs, 3, 3]).times(times),
            plain(&name("blocks.0.0.bn1"), &[inner]).times(times),
            plain(&name("blocks.0.0.conv_pwl"), &[FIRST, inner, 1, 1]).times(times),
            plain(&name("blocks.0.0.bn2"), &[FIRST]).times(times),
        ]
    };
    let mut all = vec![
        plain(&name("conv_stem.conv"), &[STEM, CHANNELS, 3, 3]),
        plain(&name("conv_stem.bn"), &[STEM]).times(2),
    ];
    all.extend(edge(STEM, 256, 1));
    all.extend(edge(FIRST, 512, 2));
    for block in &INVERTED {
        all.extend(block.weights());
        all.push(plain(&name("blocks.0.0.layer_scale"), &[block.outputs]).times(block.times));
    }
    all.extend(attention(640, 768, 64, true, 14));
    all.extend(attention(1280, 1536, 96, false, 19));
    // The last two stages together.
    all.extend(inverted(1920, [0, 0], 3840, 2048, 1).weights());
    all.push(plain(&name("msfa.norm"), &[2048]));
    all
}

/// What turns a tower's output, or a token that stands for it, into the language model's width.
fn embedder(name: &str, tower: &Config, hidden: u64, text: u64) -> Result<Vec<Weight>> {
    Ok(vec![
        Weight::vocab(
            format!("{name}.embedding"),
            Role::Tower,
            tower.dim_or("vocab_size", 128)?,
            hidden,
        ),
        plain(&format!("{name}.norm"), &[hidden]).times(2),
        row(format!("{name}.embedding_projection"), hidden, text).bias(false),
    ])
}

/// Gemma-3n's images (vLLM 0.32.0, `gemma3n_mm.py`).
pub(super) fn vision(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let architecture = vision.str("architecture")?.unwrap_or("mobilenetv5_300m_enc");
    if architecture != "mobilenetv5_300m_enc" {
        return Err(crate::Error::input(format!(
            "{} is {architecture:?}, but only mobilenetv5_300m_enc is described here",
            vision.name("architecture")
        )));
    }
    let mut all = mobile_network();
    all.extend(embedder(
        "embed_vision",
        vision,
        vision.dim_or("hidden_size", 2048)?,
        t.hidden()?,
    )?);
    Ok(all)
}

/// Gemma-3n's sound.
pub(super) fn audio(t: &Text, audio: &Config) -> Result<Vec<Weight>> {
    let mut all = gemma3n_audio(audio)?;
    all.extend(embedder(
        "embed_audio",
        audio,
        audio.dim_or("hidden_size", 1536)?,
        t.hidden()?,
    )?);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mobile_network_has_as_many_parameters_as_timm_builds() {
        let total: u64 = mobile_network().iter().map(|w| w.elements().unwrap()).sum();
        // timm 1.0.31: create_model("mobilenetv5_300m_enc"), all of parameters().
        assert_eq!(total, 294_126_912);
    }
}
