//! What the profiling step gives the tower of a multimodal model to encode.
//!
//! The V1 engine encodes a batch of the largest inputs of one kind (images, or videos where these have more tokens) and keeps
//! the embeddings while the language model takes its own step. Both follow from the release and the tower: vLLM
//! `v1/worker/gpu_model_runner.py` (`profile_run`), `multimodal/encoder_budget.py` (before 0.12 parts of
//! `v1/core/encoder_cache_manager.py`), and the models' `get_mm_max_tokens_per_item`, read in 0.8.5 to 0.32.0. Pixels are
//! those of the makers' preprocessor files; a server that limits them or the number of inputs takes less.

use crate::arch::{Config, Model};
use crate::engine::vllm::Version;
use crate::{Error, Result};

/// Tokens of the largest image of the Qwen-VL families: 12,845,056 pixels in squares of 28, or 16,777,216 in squares of 32.
const QWEN_IMAGE_TOKENS: u64 = 16_384;
/// Tokens of the largest video of Qwen3-VL: 25,165,824 pixels in squares of 32, two frames each.
const QWEN3_VIDEO_TOKENS: u64 = 12_288;
/// What Qwen3-VL's largest video counts as in releases before 0.13: 12.5 tokens for each (`qwen3_vl.py` of 0.12.0).
const QWEN3_VIDEO_COUNTED: u64 = QWEN3_VIDEO_TOKENS * 25 / 2;
/// Patches of a Qwen-VL token: squares of two by two are merged.
const QWEN_PATCHES: u64 = 4;
/// Frames of Gemma-4's largest video, the tokens of a frame, and those around it (`gemma4_mm.py`).
const GEMMA4_VIDEO: (u64, u64, u64) = (32, 70, 8);
/// Most inputs of one kind in a prompt where the user sets no limit.
const ITEMS_OF_A_PROMPT: u64 = 999;
/// In these releases an input with fewer embeddings than the budget is kept as a tensor of the whole budget.
const EXPANDED: (Version, Version) = (Version::new(0, 11, 0), Version::new(0, 13, 0));
/// Since this release Qwen3-VL's videos count what they have.
const COUNTS_VIDEOS: Version = Version::new(0, 13, 0);
/// Until this release the tokens of an image are taken off the room for a video (`qwen2_vl.py` of 0.10.0 and 0.10.2).
const IMAGE_BESIDE_VIDEO: Version = Version::new(0, 10, 2);

/// Limits of one step, as the engine settled them.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Release of the engine.
    pub version: Version,
    /// Tokens of one step.
    pub max_num_batched_tokens: u64,
    /// Sequences of one step.
    pub max_num_seqs: u64,
    /// Tokens of the longest request.
    pub max_model_len: u64,
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

/// The largest input of a family.
struct Item {
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
        if !model.outside.iter().any(|part| part.tower) {
            return Ok(Self::default());
        }
        let tower = config.sub("vision_config")?;
        let Some(item) = largest(&model.architecture, tower.as_ref(), step)? else {
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
        let of_prompts = ITEMS_OF_A_PROMPT
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

/// The input with the most tokens; `None` for towers that take little or are not known here.
fn largest(class: &str, tower: Option<&Config>, step: &Step) -> Result<Option<Item>> {
    let starts = |names: &[&str]| names.iter().any(|name| class.starts_with(name));
    let qwen = |counted, embeddings| {
        Some(Item {
            counted,
            embeddings,
            patches: embeddings * QWEN_PATCHES,
        })
    };
    if starts(&["Qwen2VL", "Qwen2_5_VL"]) {
        let tokens = qwen2_video_tokens(step).max(QWEN_IMAGE_TOKENS);
        return Ok(qwen(tokens, tokens));
    }
    if starts(&["Qwen3VL"]) && step.version < COUNTS_VIDEOS {
        return Ok(qwen(QWEN3_VIDEO_COUNTED, QWEN3_VIDEO_TOKENS));
    }
    // GLM-V's and Kimi's largest images are taken to be as large as Qwen's.
    if starts(&["Qwen3VL", "Qwen3_5", "Glm4v", "KimiK25", "KimiVL"]) {
        return Ok(qwen(QWEN_IMAGE_TOKENS, QWEN_IMAGE_TOKENS));
    }
    if class == "Gemma3ForConditionalGeneration" {
        let side = match tower {
            Some(tower) => tower.dim_or("image_size", 896)? / tower.dim_or("patch_size", 14)?.max(1),
            None => 64,
        };
        return Ok(Some(Item {
            counted: 256,
            embeddings: 256,
            patches: side.saturating_mul(side),
        }));
    }
    if class == "Gemma4ForConditionalGeneration" {
        let (frames, tokens, around) = GEMMA4_VIDEO;
        let side = match tower {
            Some(tower) => tower.dim_or("pooling_kernel_size", 3)?,
            None => 3,
        };
        return Ok(Some(Item {
            counted: frames * (tokens + around),
            embeddings: frames * tokens,
            patches: (frames * tokens).saturating_mul(side.saturating_mul(side)),
        }));
    }
    Ok(None)
}

/// Tokens of Qwen2-VL's largest video: as many frames of the largest image as a request has room for, two by two.
fn qwen2_video_tokens(step: &Step) -> u64 {
    let (most_frames, room) = if step.version < IMAGE_BESIDE_VIDEO {
        (16, step.max_model_len.saturating_sub(QWEN_IMAGE_TOKENS))
    } else if step.version < EXPANDED.0 {
        (16, step.max_model_len)
    } else {
        (14, step.max_model_len)
    };
    let pairs = (room / QWEN_IMAGE_TOKENS).min(most_frames / 2).max(1);
    pairs * QWEN_IMAGE_TOKENS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::family::{self, Reading};
    use crate::catalogue;

    fn encoder(name: &str, minor: u32, tokens: u64, sequences: u64, length: u64) -> Encoder {
        let row = catalogue::find(name).unwrap();
        let config = row.config().unwrap();
        let Reading::Model(model) = family::read(name, &config).unwrap() else {
            panic!("{name} is refused");
        };
        let step = Step {
            version: Version::new(0, minor, 0),
            max_num_batched_tokens: tokens,
            max_num_seqs: sequences,
            max_model_len: length,
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
}
