//! What the profiling step gives the tower of a multimodal model to encode.
//!
//! The V1 engine encodes a batch of the largest inputs of one kind (images, or videos where these have more tokens) and keeps
//! the embeddings while the language model takes its own step. Both follow from the release and the tower: vLLM
//! `v1/worker/gpu_model_runner.py` (`profile_run`), `multimodal/encoder_budget.py` (before 0.12 parts of
//! `v1/core/encoder_cache_manager.py`), and the models' `get_mm_max_tokens_per_item`, read in 0.8.5 to 0.32.0. Pixels are
//! those of the makers' preprocessor files, unless the server's flags say otherwise ([`Multimodal`]).

use crate::arch::{Config, Model};
use crate::engine::vllm::{Multimodal, Version};
use crate::{Error, Result};

/// Pixels of the largest image of Qwen2-VL and of Qwen3-VL.
const QWEN_IMAGE_PIXELS: [u64; 2] = [12_845_056, 16_777_216];
/// Side in pixels of the square that is one token: patches of 14 or 16, two by two.
const QWEN_SQUARE: [u64; 2] = [28, 32];
/// Tokens of the largest image of the Qwen-VL families, and what GLM-V's and Kimi's are taken to have.
const IMAGE_TOKENS: u64 = 16_384;
/// Tokens of the largest video of Qwen3-VL: 25,165,824 pixels in squares of 32, two frames each.
const QWEN3_VIDEO_TOKENS: u64 = 12_288;
/// What Qwen3-VL's largest video counts as in releases before 0.13: 12.5 tokens for each (`qwen3_vl.py` of 0.12.0).
const QWEN3_VIDEO_COUNTED: u64 = QWEN3_VIDEO_TOKENS * 25 / 2;
/// Patches of a Qwen-VL token: squares of two by two are merged.
const QWEN_PATCHES: u64 = 4;
/// Frames of Gemma-4's largest video, the tokens of a frame, and those around it (`gemma4_mm.py`).
const GEMMA4_VIDEO: (u64, u64, u64) = (32, 70, 8);
/// Tokens of Gemma-4's largest image.
const GEMMA4_IMAGE: u64 = 280;
/// In these releases an input with fewer embeddings than the budget is kept as a tensor of the whole budget.
const EXPANDED: (Version, Version) = (Version::new(0, 11, 0), Version::new(0, 13, 0));
/// Since this release Qwen3-VL's videos count what they have.
const COUNTS_VIDEOS: Version = Version::new(0, 13, 0);
/// Until this release the tokens of an image are taken off the room for a video (`qwen2_vl.py` of 0.10.0 and 0.10.2).
const IMAGE_BESIDE_VIDEO: Version = Version::new(0, 10, 2);

/// Limits of one step, as the engine settled them, and what it is told of images and videos.
#[derive(Debug, Clone)]
pub struct Step<'a> {
    /// Release of the engine.
    pub version: Version,
    /// Tokens of one step.
    pub max_num_batched_tokens: u64,
    /// Sequences of one step.
    pub max_num_seqs: u64,
    /// Tokens of the longest request.
    pub max_model_len: u64,
    /// Limits of inputs and of their sizes.
    pub multimodal: &'a Multimodal,
}

/// What the tower encodes, and what is kept of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Encoder {
    /// Patches of the batch; 0 where there is no tower, or one that takes little.
    pub patches: u64,
    /// Width of the tower's residual stream.
    pub width: u64,
    /// Bytes of the embeddings that are kept while the language model runs.
    pub held_bytes: u64,
}

/// The largest input of one kind.
#[derive(Debug, Clone, Copy)]
struct Item {
    /// Which kind.
    kind: &'static str,
    /// Tokens it counts in the budget.
    counted: u64,
    /// Embeddings it has.
    embeddings: u64,
    /// Patches of all of it.
    patches: u64,
}

impl Encoder {
    /// The batch that the profiling step encodes for this model.
    ///
    /// # Errors
    /// If the configuration has sizes that are none.
    pub fn of(model: &Model, config: &Config, step: &Step, element_bytes: u64) -> Result<Self> {
        if step.multimodal.skip_profiling || !model.outside.iter().any(|part| part.tower) {
            return Ok(Self::default());
        }
        let tower = config.sub("vision_config")?;
        // The kind with the most tokens; of two with as many the one whose name comes last.
        let Some(item) = items(&model.architecture, tower.as_ref(), step)?
            .into_iter()
            .filter(|item| step.multimodal.takes(item.kind))
            .max_by_key(|item| (item.counted, item.kind))
        else {
            return Ok(Self::default());
        };
        let width = match &tower {
            // Qwen2-VL's `hidden_size` is that of the language model.
            Some(tower) => tower.dim_or("embed_dim", tower.dim_or("hidden_size", 1152)?)?,
            None => 1152,
        };
        let levels = match &tower {
            Some(tower) => tower
                .array("deepstack_visual_indexes")?
                .map_or(0, |list| list.len() as u64),
            None => 0,
        };
        let budget = step.max_num_batched_tokens.max(item.counted);
        let of_prompts = (step.multimodal.limit(item.kind).count)
            .min(step.max_model_len / item.counted)
            .max(1)
            .saturating_mul(step.max_num_seqs);
        let items = (budget / item.counted).min(of_prompts).max(1);
        let expanded = (EXPANDED.0..EXPANDED.1).contains(&step.version) && item.embeddings < budget;
        let kept = if expanded { budget } else { item.embeddings };
        let overflow = || Error::overflow("the embeddings of the profiling step");
        Ok(Self {
            patches: items.checked_mul(item.patches).ok_or_else(overflow)?,
            width,
            held_bytes: [kept, model.hidden_size, levels + 1, element_bytes]
                .into_iter()
                .try_fold(items, u64::checked_mul)
                .ok_or_else(overflow)?,
        })
    }
}

/// The largest input of each kind; none for towers that take little or are not known here.
fn items(class: &str, tower: Option<&Config>, step: &Step) -> Result<Vec<Item>> {
    let starts = |names: &[&str]| names.iter().any(|name| class.starts_with(name));
    if starts(&["Qwen2VL", "Qwen2_5_VL"]) {
        let (largest, profiled) = squares(step, "image", 0);
        let frames = |tokens: u64, profiled: u64| {
            let pairs = qwen2_video_pairs(step, tokens);
            let asked = (step.multimodal.limit("video").num_frames).map_or(pairs, |n| n.div_ceil(2));
            (
                pairs.saturating_mul(tokens),
                asked.min(pairs).saturating_mul(profiled),
            )
        };
        let (counted, embeddings) = frames(largest, squares(step, "video", 0).1);
        return Ok(vec![
            qwen("image", largest, profiled),
            qwen("video", counted, embeddings),
        ]);
    }
    if starts(&["Qwen3VL", "Qwen3_5"]) {
        let (largest, profiled) = squares(step, "image", 1);
        let video = if starts(&["Qwen3VL"]) && step.version < COUNTS_VIDEOS {
            QWEN3_VIDEO_COUNTED
        } else {
            QWEN3_VIDEO_TOKENS
        };
        return Ok(vec![
            qwen("image", largest, profiled),
            qwen("video", video, QWEN3_VIDEO_TOKENS),
        ]);
    }
    if starts(&["KimiK25"]) {
        return Ok(vec![qwen("vision_chunk", IMAGE_TOKENS, IMAGE_TOKENS)]);
    }
    if starts(&["Glm4v", "KimiVL"]) {
        return Ok(vec![qwen("image", IMAGE_TOKENS, IMAGE_TOKENS)]);
    }
    if class == "Gemma3ForConditionalGeneration" {
        let side = match tower {
            Some(tower) => tower.dim_or("image_size", 896)? / tower.dim_or("patch_size", 14)?.max(1),
            None => 64,
        };
        return Ok(vec![Item {
            kind: "image",
            counted: 256,
            embeddings: 256,
            patches: side.saturating_mul(side),
        }]);
    }
    if class == "Gemma4ForConditionalGeneration" {
        let side = match tower {
            Some(tower) => tower.dim_or("pooling_kernel_size", 3)?,
            None => 3,
        };
        let pooled = |tokens: u64| tokens.saturating_mul(side.saturating_mul(side));
        let (most_frames, tokens, around) = GEMMA4_VIDEO;
        let frames = (step.multimodal.limit("video").num_frames).map_or(most_frames, |n| n.min(most_frames));
        return Ok(vec![
            Item {
                kind: "image",
                counted: GEMMA4_IMAGE,
                embeddings: GEMMA4_IMAGE,
                patches: pooled(GEMMA4_IMAGE),
            },
            Item {
                kind: "video",
                counted: most_frames * (tokens + around),
                embeddings: frames * tokens,
                patches: pooled(frames * tokens),
            },
        ]);
    }
    Ok(Vec::new())
}

/// An input of the Qwen-VL families and of towers that are taken to be like theirs.
const fn qwen(kind: &'static str, counted: u64, embeddings: u64) -> Item {
    Item {
        kind,
        counted,
        embeddings,
        patches: embeddings.saturating_mul(QWEN_PATCHES),
    }
}

/// Tokens of the largest image of a generation of Qwen-VL, and of the one that is profiled: options of the limit make it
/// smaller, but not what it counts (vLLM 0.32.0, `_get_dummy_images` in `multimodal/processing/dummy_inputs.py`).
fn squares(step: &Step, kind: &str, generation: usize) -> (u64, u64) {
    let square = QWEN_SQUARE[generation];
    let pixels = (step.multimodal.max_pixels).unwrap_or(QWEN_IMAGE_PIXELS[generation]);
    let largest = (pixels / (square * square)).max(1);
    let limit = step.multimodal.limit(kind);
    let profiled = match (limit.width, limit.height) {
        (None, None) => largest,
        (width, height) => {
            // The largest image is about as wide as high.
            let side = largest.isqrt().max(1);
            let squares =
                |pixels: Option<u64>| pixels.map_or(side, |n| (n + square / 2) / square).clamp(1, side);
            squares(width) * squares(height)
        }
    };
    (largest, profiled)
}

/// Pairs of frames of Qwen2-VL's largest video: as many frames of the largest image as a request has room for.
fn qwen2_video_pairs(step: &Step, image_tokens: u64) -> u64 {
    let (most_frames, room) = if step.version < IMAGE_BESIDE_VIDEO {
        (16, step.max_model_len.saturating_sub(image_tokens))
    } else if step.version < EXPANDED.0 {
        (16, step.max_model_len)
    } else {
        (14, step.max_model_len)
    };
    (room / image_tokens).min(most_frames / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::family::{self, Reading};
    use crate::catalogue;

    fn encoder(name: &str, minor: u32, tokens: u64, sequences: u64, length: u64) -> Encoder {
        told(name, minor, (tokens, sequences, length), &Multimodal::default())
    }

    fn told(name: &str, minor: u32, limits: (u64, u64, u64), multimodal: &Multimodal) -> Encoder {
        let row = catalogue::find(name).unwrap();
        let config = row.config().unwrap();
        let Reading::Model(model) = family::read(name, &config).unwrap() else {
            panic!("{name} is refused");
        };
        let step = Step {
            version: Version::new(0, minor, 0),
            max_num_batched_tokens: limits.0,
            max_num_seqs: limits.1,
            max_model_len: limits.2,
            multimodal,
        };
        Encoder::of(&model, &config, &step, 2).unwrap()
    }

    #[test]
    fn the_batch_is_the_one_that_logs_name() {
        // "budget of 114688 tokens, and profiled with 1 video items": Qwen2.5-VL-7B, vLLM 0.22, 128,000 tokens.
        let video = encoder("Qwen/Qwen2.5-VL-7B-Instruct", 22, 2048, 256, 128_000);
        assert_eq!(video.patches, 114_688 * 4);
        assert_eq!(video.held_bytes, 114_688 * 3584 * 2);
        // "budget of 98304 tokens, and profiled with 1 video items": the same model under vLLM 0.8.1.
        assert_eq!(
            encoder("Qwen/Qwen2.5-VL-7B-Instruct", 8, 2048, 256, 128_000).patches,
            98_304 * 4
        );
        // "budget of 153600 tokens, and profiled with 1 video items": Qwen3-VL-30B-A3B, vLLM 0.11.0, four RTX 3090.
        let expanded = encoder("Qwen/Qwen3-VL-30B-A3B-Instruct", 11, 2048, 256, 65_536);
        assert_eq!(expanded.held_bytes, 153_600 * 2048 * 4 * 2);
        assert_eq!(expanded.patches, 12_288 * 4);
        // "budget of 16384 tokens, and profiled with 6 video items": Gemma-4-26B-A4B, vLLM 0.20.2, 16,384 tokens a step.
        let frames = encoder("google/gemma-4-26B-A4B", 20, 16_384, 2, 256_000);
        assert_eq!(frames.patches, 6 * 32 * 70 * 9);
    }

    #[test]
    fn a_model_without_a_tower_encodes_nothing() {
        assert_eq!(
            encoder("Qwen/Qwen3-8B", 32, 8192, 256, 40_960),
            Encoder::default()
        );
    }

    #[test]
    fn few_sequences_limit_the_batch_and_long_steps_widen_it() {
        let one = encoder("google/gemma-3-27b-it", 19, 2048, 1, 256);
        assert_eq!(one.patches, 4096);
        assert_eq!(
            encoder("google/gemma-3-27b-it", 19, 8192, 256, 8192).patches,
            32 * 4096
        );
        let wide = encoder("Qwen/Qwen3.5-27B", 23, 65_536, 8, 262_144);
        assert_eq!(wide.patches, 4 * 65_536);
    }

    #[test]
    fn limits_and_pixels_make_the_batch_smaller() {
        let read = |limits, kwargs, skip| Multimodal::read(limits, kwargs, skip).unwrap();
        let of = |name, m: &Multimodal| told(name, 30, (2048, 256, 128_000), m).patches;
        let (qwen2, qwen3) = ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3.5-27B");
        assert_eq!(of(qwen3, &read(Some("image=3"), None, false)), 65_536);
        // Without images the largest video is encoded; without both nothing is.
        assert_eq!(of(qwen3, &read(Some("image=0"), None, false)), 12_288 * 4);
        assert_eq!(of(qwen3, &read(Some("image=0,video=0"), None, false)), 0);
        assert_eq!(of(qwen3, &read(None, None, true)), 0);
        assert_eq!(of(qwen2, &read(Some("video=0"), None, false)), 65_536);
        // 1,003,520 pixels are 1280 squares of 28 pixels; seven pairs of such frames are a video.
        let small = read(None, Some(r#"{"max_pixels": 1003520}"#), false);
        assert_eq!(of(qwen2, &small), 7 * 1280 * 4);
        let one = read(Some(r#"{"video": {"num_frames": 4}}"#), None, false);
        assert_eq!(of(qwen2, &one), 2 * 16_384 * 4);
        let narrow = read(
            Some(r#"{"image": {"width": 512, "height": 512}, "video": 0}"#),
            None,
            false,
        );
        assert_eq!(of(qwen3, &narrow), 16 * 16 * 4);
    }

    #[test]
    fn hostile_sizes_do_not_overflow() {
        let huge = Multimodal::read(
            Some(r#"{"image": {"count": 1099511627776, "width": 1099511627776, "height": 1099511627776}}"#),
            Some(r#"{"max_pixels": 1099511627776}"#),
            false,
        )
        .unwrap();
        for name in [
            "Qwen/Qwen2.5-VL-7B-Instruct",
            "Qwen/Qwen3.5-27B",
            "google/gemma-3-27b-it",
        ] {
            let row = catalogue::find(name).unwrap();
            let config = row.config().unwrap();
            let Reading::Model(model) = family::read(name, &config).unwrap() else {
                panic!("{name} is refused");
            };
            let step = Step {
                version: Version::new(0, 32, 0),
                max_num_batched_tokens: u64::MAX,
                max_num_seqs: u64::MAX,
                max_model_len: u64::MAX,
                multimodal: &huge,
            };
            let _ = Encoder::of(&model, &config, &step, 2);
        }
    }
}
