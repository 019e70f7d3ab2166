//! vLLM's scheduler over a planned pool, and how its engines are spread.

use kvwise_cache::manager::GroupSpec;
use kvwise_core::engine::vllm;
use kvwise_core::engine::vllm::spec::SpecKind;
use kvwise_core::plan::Plan;
use kvwise_core::{Error, Result};
use kvwise_sim::sched::vllm::SchedulerConfig;

use super::Serving;

/// How the engines are spread.
pub(super) struct Spread {
    /// Tensor-parallel ranks.
    pub(super) tp: u64,
    /// Pipeline stages.
    pub(super) pp: u64,
    /// Engines that know nothing of each other.
    pub(super) replicas: u32,
    /// Ranks of each that step together.
    pub(super) ranks: u32,
}

/// How they are spread: ranks of a mixture of `experts` step together.
///
/// # Errors
/// If they are spread in a way that is not simulated, or over too many.
pub(super) fn parallel(settings: &vllm::Settings, experts: bool, serving: &Serving) -> Result<Spread> {
    if settings.decode_context_parallel_size > 1 {
        return Err(Error::unsupported(format!(
            "--decode-context-parallel-size {} is planned but not simulated",
            settings.decode_context_parallel_size
        )));
    }
    if !(1..=1024).contains(&serving.replicas) {
        return Err(Error::input(format!(
            "--replicas is {}, expected 1 to 1024",
            serving.replicas
        )));
    }
    let dp = small("--data-parallel-size", settings.data_parallel_size.max(1))?;
    // Ranks that share experts step together; dense replicas know nothing of each other.
    let together = dp > 1 && experts;
    if together && !settings.enable_expert_parallel {
        return Err(Error::unsupported(
            "data-parallel ranks of a mixture of experts are simulated with --enable-expert-parallel only",
        )
        .hint("add --enable-expert-parallel, or use --replicas for independent engines"));
    }
    let (ranks, dp) = if together { (dp, 1) } else { (1, dp) };
    Ok(Spread {
        tp: settings.tensor_parallel_size.max(1),
        pp: settings.pipeline_parallel_size.max(1),
        replicas: serving.replicas.saturating_mul(dp),
        ranks,
    })
}

/// A number that has to fit in 32 bits.
pub(super) fn small(what: &str, n: u64) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::input(format!("{what} is {n}, more than is simulated (2^32)")))
}

/// The scheduler of one engine.
///
/// # Errors
/// If the model keeps no KV cache or a size is more than is simulated.
pub(super) fn scheduler(plan: &Plan, settings: &vllm::Settings) -> Result<SchedulerConfig> {
    let Some(kv) = &plan.kv_cache else {
        return Err(Error::unsupported(
            "the model keeps no KV cache: there is nothing to simulate",
        ));
    };
    let Some(layout) = &plan.layout else {
        return Err(Error::unsupported(
            "the engine would not lay out this cache, so there is nothing to simulate",
        ));
    };
    // Without prefix caching a state takes one block from its first to its last token (vLLM 0.32.0,
    // `vllm/v1/core/single_type_kv_cache_manager.py`, mamba cache mode "none"): a block as long as any sequence, rounded
    // up to what the other groups' blocks divide.
    let attention_block = layout
        .groups
        .iter()
        .filter(|g| !matches!(g.spec.kind, SpecKind::State { .. }))
        .map(|g| g.block_size)
        .max()
        .unwrap_or(1)
        .max(1);
    let groups = layout
        .groups
        .iter()
        .map(|group| {
            let block = small("the block size", group.block_size)?;
            Ok(match &group.spec.kind {
                SpecKind::Sliding { window, .. } | SpecKind::SlidingLatent { window, .. } => {
                    GroupSpec::sliding_window(block, small("the window", *window)?)
                }
                SpecKind::Chunked { chunk } => GroupSpec::chunked_local(block, small("the chunk", *chunk)?),
                SpecKind::State { .. } if layout.prefix_caching => GroupSpec::mamba_align(block),
                SpecKind::State { .. } => GroupSpec::full(small(
                    "the longest sequence",
                    layout.max_model_len.next_multiple_of(attention_block),
                )?),
                _ => GroupSpec::full(block),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let concurrent_batches = if settings.async_scheduling == Some(false) {
        1
    } else {
        2
    };
    Ok(SchedulerConfig {
        num_blocks: small("the number of blocks", kv.num_blocks)?,
        groups,
        max_model_len: small("--max-model-len", layout.max_model_len)?,
        max_num_seqs: small(
            "--max-num-seqs",
            layout.max_num_seqs.min(layout.max_num_batched_tokens),
        )?,
        max_num_batched_tokens: small("--max-num-batched-tokens", layout.max_num_batched_tokens)?,
        concurrent_batches,
        prefix_caching: layout.prefix_caching,
        max_loras: settings
            .enable_lora
            .then(|| small("--max-loras", settings.max_loras.unwrap_or(1)))
            .transpose()?,
        ..SchedulerConfig::new(2, 16)
    })
}
