//! What a model asks of attention backends beside the sizes of its heads.

use super::backend::{Backend, Sight};
use super::gpu::Gpu;
use super::kv_dtype::KvDtype;
use super::settings::Settings;
use super::version::{ImageRule, WideHeads};
use crate::arch::{CacheKind, Model};

/// What the decoder layers of a model attend to.
pub(crate) fn sight(model: &Model, settings: &Settings, rule: ImageRule) -> Sight {
    if !model.sees_whole_images || settings.language_model_only || rule == ImageRule::NotAsked {
        return Sight::Earlier;
    }
    Sight::WholeImages {
        pairs: rule == ImageRule::Pair,
    }
}

/// The backend that a class of Gemma-4's insists on: its heads of two sizes need FlashAttention 4, and Triton serves them
/// where there is none (vLLM 0.32.0, `Gemma4Config` in `model_executor/models/config.py`).
pub(crate) fn forced(model: &Model, gpu: Gpu, rule: WideHeads, kv_dtype: KvDtype) -> Option<Backend> {
    let class = model.architecture.as_str();
    let runs = match rule {
        WideHeads::Triton => false,
        WideHeads::FlashAttention4 => kv_dtype.is_16_bit(),
        WideHeads::FlashAttention4AlsoIn8Bits => true,
    };
    if !(class.starts_with("Gemma4") || class.starts_with("DiffusionGemma"))
        || gpu.is_cpu()
        || runs && (9..=11).contains(&gpu.major)
    {
        return None;
    }
    let mut sizes = model
        .layers
        .iter()
        .flat_map(|layer| &layer.caches)
        .filter_map(|cache| match &cache.kind {
            CacheKind::Full(heads) | CacheKind::Sliding { heads, .. } => Some(heads.head_dim),
            _ => None,
        });
    let first = sizes.next()?;
    sizes.any(|size| size != first).then_some(Backend::TritonAttn)
}

#[cfg(test)]
mod tests {
    use super::super::{MaxModelLen, Version, layout};
    use super::*;
    use crate::arch::{Config, family};

    fn blocks(version: Version, major: u32, kv_cache_dtype: KvDtype, images: bool) -> (u64, Vec<Backend>) {
        let file = r#"{"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "text_config": {
            "model_type": "gemma4_text", "num_hidden_layers": 6, "use_bidirectional_attention": "vision"}}"#;
        let family::Reading::Model(model) =
            family::read("gemma", &Config::parse(file.as_bytes()).unwrap()).unwrap()
        else {
            panic!("refused")
        };
        let gpu = Gpu {
            major,
            minor: 0,
            memory_bytes: 80 << 30,
            a100: false,
            hopper: major == 9,
        };
        let settings = Settings {
            version,
            kv_cache_dtype,
            max_model_len: MaxModelLen::Tokens(8192),
            language_model_only: !images,
            ..Settings::default()
        };
        let outcome = layout(&model, &settings, gpu, &[40 << 30]).unwrap();
        let layout = outcome.layout.unwrap();
        (layout.block_size, layout.backends)
    }

    #[test]
    fn gemma_4_takes_other_backends_with_images_and_in_earlier_releases() {
        use Backend::{FlashAttn, TritonAttn, TritonFlashAttn};
        let fp8 = KvDtype::Fp8;
        let newest = Version::NEWEST;
        assert_eq!(blocks(newest, 9, fp8, true), (64, vec![TritonFlashAttn]));
        assert_eq!(blocks(newest, 9, fp8, false), (64, vec![FlashAttn]));
        assert_eq!(blocks(newest, 8, fp8, false), (16, vec![TritonAttn]));
        // Before the kernel that reads 8 bits, and before FlashAttention 4 served the model at all.
        assert_eq!(
            blocks(Version::new(0, 25, 0), 9, fp8, false),
            (16, vec![TritonAttn])
        );
        assert_eq!(
            blocks(Version::new(0, 25, 0), 9, KvDtype::Auto, false),
            (16, vec![FlashAttn])
        );
        assert_eq!(
            blocks(Version::new(0, 20, 0), 9, KvDtype::Auto, true),
            (16, vec![TritonAttn])
        );
    }
}
