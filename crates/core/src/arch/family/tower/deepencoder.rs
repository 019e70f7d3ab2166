//! DeepSeek-OCR's eyes: a segmentation encoder that shrinks pages, and an encoder behind it; all sizes are fixed in
//! the class.

use super::super::text::Text;
use super::blocks::{CHANNELS, convolution, factor_or, layer_norm, plain, repeated, whole};
use super::library::{Qwen2, qwen2};
use super::siglip::clip_layers;
use crate::Result;
use crate::arch::{Config, Weight};

/// `SAM` ViT-B at 1024 pixels with a neck that halves its output twice more, whole on every rank
/// (vLLM 0.32.0, `ImageEncoderViT` in `deepencoder.py`). `out` channels leave it.
fn sam(out: u64) -> Vec<Weight> {
    const WIDTH: u64 = 768;
    const HEAD_DIM: u64 = 64;
    const LAYERS: u64 = 12;
    const GLOBAL: u64 = 4;
    const PATCH: u64 = 16;
    /// Patches along a side of the image, and of a window.
    const SIDES: [u64; 2] = [64, 14];
    const NECK: u64 = 256;
    let name = |part: &str| format!("sam_model.blocks.0.{part}");
    let distances =
        |side: u64, layers: u64| plain(&name("attn.rel_pos_h"), &[2 * side - 1, HEAD_DIM]).times(2 * layers);
    let mut all = convolution("sam_model.patch_embed.proj", &[WIDTH, CHANNELS, PATCH, PATCH]).to_vec();
    all.extend([
        plain("sam_model.pos_embed", &[SIDES[0], SIDES[0], WIDTH]),
        distances(SIDES[0], GLOBAL),
        distances(SIDES[1], LAYERS - GLOBAL),
        plain("sam_model.neck.0", &[NECK, WIDTH, 1, 1]),
        plain("sam_model.neck.2", &[NECK, NECK, 3, 3]),
        layer_norm("sam_model.neck.1", NECK).times(4),
        plain("sam_model.net_2", &[2 * NECK, NECK, 3, 3]),
        plain("sam_model.net_3", &[out, 2 * NECK, 3, 3]),
    ]);
    all.extend(repeated(
        LAYERS,
        [
            whole(name("attn.qkv"), WIDTH, 3 * WIDTH),
            whole(name("attn.proj"), WIDTH, WIDTH),
            whole(name("mlp.lin1"), WIDTH, 4 * WIDTH),
            whole(name("mlp.lin2"), 4 * WIDTH, WIDTH),
            layer_norm(&name("norm"), WIDTH).times(4),
        ],
    ));
    all
}

/// The projector that `projector_config` describes (vLLM 0.32.0, `MlpProjector` in `deepseek_vl2.py`).
fn projector(t: &Text) -> Result<Vec<Weight>> {
    let c = t
        .top
        .sub("projector_config")?
        .unwrap_or_else(|| t.top.child("projector_config", serde_json::Map::new()));
    let (seen, out) = (c.dim_or("input_dim", 1152)?, c.dim_or("n_embed", 2048)?);
    Ok(match c.str("projector_type")?.unwrap_or("downsample_mlp_gelu") {
        "linear" => vec![whole("projector.layers", seen, out)],
        "downsample_mlp_gelu" => {
            let side = factor_or(&c, "downsample_ratio", 2)?;
            let inner = out * factor_or(&c, "mlp_ratio", 1)?;
            let depth = c.dim_or("depth", 2)?;
            vec![
                whole("projector.layers.0", seen * side * side, inner),
                whole("projector.layers.2", inner, inner).times(depth.saturating_sub(2)),
                whole("projector.layers.4", inner, out),
            ]
        }
        other => {
            return Err(crate::Error::unsupported(format!(
                "Unsupported projector type: {other}"
            )));
        }
    })
}

/// DeepSeek-OCR and Unlimited-OCR (vLLM 0.32.0, `deepseek_ocr.py`): CLIP ViT-L behind the segmentation encoder.
pub(super) fn ocr(t: &Text, _: &Config) -> Result<Vec<Weight>> {
    const WIDTH: u64 = 1024;
    let path = "vision_model.transformer.layers";
    let mut all = sam(WIDTH);
    all.extend(clip_layers(path, 24, WIDTH, 16, 4096));
    all.extend([
        plain("vision_model.embeddings.class_embedding", &[WIDTH]),
        plain(
            "vision_model.embeddings.patch_embedding",
            &[WIDTH, CHANNELS, 14, 14],
        ),
        plain("vision_model.embeddings.position_embedding", &[257, WIDTH]),
        layer_norm("vision_model.pre_layrnorm", WIDTH),
    ]);
    all.extend(projector(t)?);
    Ok(all)
}

/// DeepSeek-OCR 2 (vLLM 0.32.0, `deepseek_ocr2.py`, `deepencoder2.py`): a small Qwen2 of the Transformers library
/// reads the segmentation encoder's output with learned queries.
pub(super) fn ocr2(t: &Text, _: &Config) -> Result<Vec<Weight>> {
    const WIDTH: u64 = 896;
    /// Queries of a page in small and in large.
    const QUERIES: [u64; 2] = [144, 256];
    let mut all = sam(WIDTH);
    all.extend(qwen2(&Qwen2 {
        path: "qwen2_model.model.model",
        hidden: WIDTH,
        layers: 24,
        heads: 14,
        kv_heads: 2,
        width: 4864,
        final_norm: true,
    }));
    all.extend(QUERIES.map(|n| plain("qwen2_model.query", &[n, WIDTH])));
    all.extend(projector(t)?);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(weights: &[Weight]) -> u64 {
        weights.iter().map(|w| w.elements().unwrap()).sum()
    }

    #[test]
    fn the_segmentation_encoder_has_the_size_that_its_paper_states() {
        // "Segment Anything": ViT-B with 91 M parameters in all, of which the image encoder has 89.67 M; the two
        // convolutions behind its neck are DeepSeek's own.
        let own = 512 * 256 * 9 + 1024 * 512 * 9;
        assert_eq!(elements(&sam(1024)) - own, 89_670_912);
    }

    #[test]
    fn a_projector_of_another_kind_is_refused() {
        let file = Config::parse(
            br#"{"language_config": {"hidden_size": 8}, "projector_config": {"projector_type": "x"}}"#,
        )
        .unwrap();
        let text = Text::find("DeepseekOCRForCausalLM", &file).unwrap();
        let error = ocr(&text, &file).unwrap_err();
        assert!(error.to_string().contains("projector type: x"), "{error}");
    }
}
