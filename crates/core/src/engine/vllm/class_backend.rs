//! What a model asks of attention backends beside the sizes of its heads.

use super::backend::{Backend, Sight};
use super::block_size::DEFAULT_BLOCK_SIZE;
use super::gpu::Gpu;
use super::kv_dtype::KvDtype;
use super::publish::Served;
use super::settings::Settings;
use super::version::{ImageRule, LatentBlocks, WideHeads};
use crate::arch::{CacheKind, Model};

/// What the decoder layers of a model attend to.
pub(crate) fn sight(model: &Model, settings: &Settings, rule: ImageRule) -> Sight {
    if !model.sees_whole_images || settings.text_only(&model.architecture) || rule == ImageRule::NotAsked {
        return Sight::Earlier;
    }
    Sight::WholeImages(rule)
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

/// The block size that the platform forces on latent attention, as releases did before the backends chose it.
pub(crate) fn platform_block(rule: LatentBlocks, gpu: Gpu, served: &[Served]) -> Option<u64> {
    let latent = |one: &&Served| one.demand.latent && !matches!(one.backend, Backend::Indexer);
    let first = served.iter().find(latent)?;
    let sparse = served.iter().filter(latent).any(|one| one.demand.sparse);
    match (rule, gpu.major) {
        (LatentBlocks::Backends, _) => None,
        (LatentBlocks::Default, _) => Some(DEFAULT_BLOCK_SIZE),
        (_, 9) => Some(64),
        (_, 10) if sparse => Some(64),
        (LatentBlocks::FlashMlaOrCutlass, 10) => Some(128),
        (LatentBlocks::FlashMlaOrFlashInfer, 10) => Some(if first.demand.nope == 128 { 64 } else { 128 }),
        _ => Some(DEFAULT_BLOCK_SIZE),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MaxModelLen, Version, layout};
    use super::*;
    use crate::arch::{Config, family};

    /// A card of this generation.
    fn gpu(major: u32) -> Gpu {
        Gpu {
            major,
            minor: 0,
            memory_bytes: 80 << 30,
            memory_unknown: false,
            a100: false,
            hopper: major == 9,
        }
    }

    fn blocks(version: Version, major: u32, kv_cache_dtype: KvDtype, images: bool) -> (u64, Vec<Backend>) {
        let file = r#"{"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "text_config": {
            "model_type": "gemma4_text", "num_hidden_layers": 6, "use_bidirectional_attention": "vision"}}"#;
        let family::Reading::Model(model) =
            family::read("gemma", &Config::parse(file.as_bytes()).unwrap()).unwrap()
        else {
            panic!("refused")
        };
        let settings = Settings {
            version,
            kv_cache_dtype,
            max_model_len: MaxModelLen::Tokens(8192),
            language_model_only: !images,
            ..Settings::default()
        };
        let outcome = layout(&model, &settings, gpu(major), &[40 << 30]).unwrap();
        let layout = outcome.layout.unwrap();
        (layout.block_size, layout.backends)
    }

    #[test]
    fn releases_before_0_18_force_a_block_size_on_latent_attention() {
        let file = r#"{"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_hidden_layers": 4}"#;
        let family::Reading::Model(model) =
            family::read("deepseek", &Config::parse(file.as_bytes()).unwrap()).unwrap()
        else {
            panic!("refused")
        };
        let block = |minor: u32, major: u32| {
            let settings = Settings {
                version: Version::new(0, minor, 0),
                max_model_len: MaxModelLen::Tokens(8192),
                ..Settings::default()
            };
            layout(&model, &settings, gpu(major), &[40 << 30])
                .unwrap()
                .layout
                .unwrap()
                .block_size
        };
        assert_eq!([9, 10, 8].map(|major| block(12, major)), [64, 128, 16]);
        assert_eq!([9, 10, 8].map(|major| block(17, major)), [64, 64, 16]);
        assert_eq!(block(32, 9), 16);
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
