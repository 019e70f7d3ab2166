//! What the overhead of a model depends on: its widths, the limits of one step, and the engine's rules by release and GPU.

use super::{Setting, weights};
use crate::Result;
use crate::arch::{CacheKind, Config, Model};
use crate::dtype::Dtype;
use crate::engine::vllm::runner::{Circumstances, Runner};
use crate::engine::vllm::{self, MaxModelLen, Version};
use crate::plan::budget::encoder::{Encoder, Step};
use crate::plan::budget::{self, Inputs};

/// From this release on AMD GPUs have the V1 engine (start-up logs of 0.8.5 and 0.9 show V0's wording).
const V1_ON_AMD: Version = Version::new(0, 10, 0);
/// From this release on no sampler sorts all logits (vllm-project/vllm pull request 33538); before it, the one of AMD GPUs
/// did in every release (start-up logs of 0.9.2 and 0.11.0 on MI300X).
const SAMPLES_UNSORTED: Version = Version::new(0, 17, 0);

/// From this release on graphs are estimated on AMD GPUs too (`v1/worker/gpu_worker.py` of 0.25.0 and 0.26.0).
const GRAPHS_ON_AMD: Version = Version::new(0, 26, 0);

/// From this release on indexers reserve their workspace while the step is profiled (`layers/sparse_attn_indexer.py` of 0.15.1).
const RESERVES_FOR_INDEXERS: Version = Version::new(0, 15, 0);

/// What the overhead of this model depends on.
pub(super) fn inputs((model, config): (&Model, &Config), setting: &Setting, dtype: Dtype) -> Result<Inputs> {
    let Setting {
        settings,
        parallel,
        gpu,
        rules,
        ..
    } = setting;
    let (tokens, sequences) = vllm::step_limits(model, settings, *gpu)?;
    let v0_engine = rules.v0(gpu) || (setting.amd && settings.version < V1_ON_AMD);
    let element_bytes = dtype.bits() / 8;
    let drafts = settings.speculative.as_ref();
    let runner = Runner::of(
        model,
        &Circumstances {
            version: settings.version,
            quantized: match settings.quantization.as_deref() {
                Some(method) => method != "none",
                None => config.get("quantization_config").is_some_and(|q| !q.is_null()),
            },
            amd: setting.amd,
            drafts: drafts.map(|s| s.method),
        },
    );
    let longest = match settings.max_model_len {
        MaxModelLen::Tokens(tokens) => tokens,
        MaxModelLen::Derived | MaxModelLen::Auto => model.max_position.unwrap_or(2048),
    };
    let encoder = if settings.text_only(&model.architecture) || v0_engine || !runner.encodes() {
        Encoder::default()
    } else {
        let step = Step {
            version: settings.version,
            max_num_batched_tokens: tokens,
            max_num_seqs: sequences,
            max_model_len: longest,
            multimodal: &settings.multimodal,
        };
        Encoder::of(model, config, &step, element_bytes)?
    };
    Ok(Inputs {
        max_num_batched_tokens: tokens,
        max_num_seqs: sequences,
        // Hyper-connections keep several streams beside each other.
        hidden_size: model.hidden_size.saturating_mul(config.dim_or("hc_mult", 1)?),
        widest_projection: weights::widest_projection(model, parallel),
        vocab_size: model.vocab_size,
        element_bytes,
        tensor_parallel_size: parallel.tp,
        pipeline_parallel_size: parallel.pp,
        enforce_eager: settings.enforce_eager,
        graph_sizes: budget::graph_sizes(
            sequences,
            drafts.map_or(1, |s| s.num_tokens.saturating_add(1)),
            tokens,
        ),
        unified_memory: setting.unified,
        encoder,
        v0_engine,
        xformers: rules.v0(gpu) && gpu.major < 8,
        amd: setting.amd,
        other_maker: setting.amd,
        symmetric_memory: !setting.amd && matches!(gpu.major, 9 | 10),
        sampler_decibytes_per_logit: if setting.amd && settings.version < SAMPLES_UNSORTED {
            // FlashInfer, which samples without sorting, is not there on AMD GPUs.
            vllm::SORTING_SAMPLER
        } else if runner.is_second() {
            budget::SECOND_RUNNER_SAMPLER
        } else {
            rules.sampler_decibytes_per_logit
        },
        counts_tokens: runner.counts_tokens(),
        workspace_bytes: indexer_workspace(model, settings.version, longest),
        graphs_in_budget: rules.subtracts_cuda_graph_estimate
            && runner.estimates_graphs()
            && !(setting.amd && settings.version < GRAPHS_ON_AMD),
    })
}

/// Bytes that the sparse indexers of the layers reserve; they share one workspace.
fn indexer_workspace(model: &Model, version: Version, longest: u64) -> u64 {
    if version < RESERVES_FOR_INDEXERS {
        return 0;
    }
    (model.layers.iter().flat_map(|layer| &layer.caches))
        .filter_map(|cache| match cache.kind {
            CacheKind::Indexer {
                bytes_per_token,
                kernel_block: 64,
            } => Some((bytes_per_token, 1)),
            CacheKind::Compressed {
                ratio: 4,
                index_head_dim,
                ..
            } => Some((index_head_dim + index_head_dim / 32, 4)),
            CacheKind::SharedCompressed {
                ratio,
                index_head_dim,
                ..
            } if index_head_dim > 0 => Some((index_head_dim + index_head_dim / 32, ratio.max(1))),
            _ => None,
        })
        .map(|(bytes, tokens)| budget::indexer_workspace_bytes(longest, bytes, tokens))
        .max()
        .unwrap_or(0)
}
