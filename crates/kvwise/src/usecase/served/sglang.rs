//! SGLang's own pool, its deployment in the words that the kernels are listed from, and its scheduler.

use kvwise_core::engine::sglang::card_chunk_tokens;
use kvwise_core::plan::{self, Engine, Hardware, Plan};
use kvwise_core::units::parse_count;
use kvwise_core::{Error, ErrorKind, Result};
use kvwise_sim::sched::sglang::step::StepConfig;
use kvwise_sim::sched::vllm::SchedulerConfig;

use super::super::deployment::{Deployment, Resolved};
use super::drafting::Drafting;
use super::{Serving, adapt};

/// What SGLang's own rules say of a deployment.
pub(super) enum Own {
    /// Its settings and its plan.
    Planned(Box<(Resolved, Plan)>),
    /// It would not start.
    Refused(Box<Plan>, String),
    /// Its rules for this model are not planned.
    Unknown,
}

impl Own {
    /// Asks SGLang's rules.
    ///
    /// # Errors
    /// If a name or value cannot be used.
    pub(super) fn of(deployment: &Deployment) -> Result<Self> {
        let planned = adapt::resolve(deployment, &mut Vec::new()).and_then(|resolved| {
            let plan = plan::plan(&resolved.request(false))?;
            Ok((resolved, plan))
        });
        let (resolved, plan) = match planned {
            Ok(planned) => planned,
            // Without its rules nothing is known of a drafter either.
            Err(e) if e.kind() == ErrorKind::Unsupported && deployment.speculative_algorithm.is_none() => {
                return Ok(Self::Unknown);
            }
            Err(e) => return Err(e),
        };
        if let Some(reason) = plan.feasibility.refused.clone() {
            return Ok(Self::Refused(Box::new(plan), reason));
        }
        let has_pool = plan.kv_cache.as_ref().is_some_and(|kv| kv.available_bytes > 0);
        Ok(if has_pool {
            Self::Planned(Box::new((resolved, plan)))
        } else {
            Self::Unknown
        })
    }

    /// The plan by SGLang's rules, if there is one.
    pub(super) fn plan(&self) -> Option<&Plan> {
        match self {
            Self::Planned(planned) => Some(&planned.1),
            _ => None,
        }
    }

    /// What drafts, if anything does.
    pub(super) fn drafting(&self) -> Option<Drafting<'_>> {
        let Self::Planned(planned) = self else { return None };
        let resolved = &planned.0;
        let (Engine::Sglang(settings), Some(model)) = (resolved.engine(), resolved.model()) else {
            return None;
        };
        let planned = settings.speculative.as_ref()?;
        Some(Drafting::of_sglang(planned, &model.architecture))
    }
}

/// Attention groups of SGLang's `--attn-dp-size`.
pub(super) fn attention_groups(deployment: &Deployment) -> u64 {
    deployment.data_parallel_size.unwrap_or(1).max(1)
}

/// The deployment without what only SGLang's memory rules read. Under DP attention the tensor-parallel ranks are divided among
/// the groups, which vLLM calls data-parallel ranks of smaller groups.
pub(super) fn as_vllm(deployment: &Deployment, pool_bytes: Option<u64>) -> Deployment {
    let groups = attention_groups(deployment);
    Deployment {
        tensor_parallel_size: deployment
            .tensor_parallel_size
            .map(|ranks| (ranks / groups).max(1)),
        engine: None,
        engine_version: None,
        mem_fraction_static: None,
        page_size: None,
        chunked_prefill_size: None,
        max_running_requests: None,
        max_total_tokens: None,
        swa_full_tokens_ratio: None,
        mamba_full_memory_ratio: None,
        max_num_seqs: deployment.max_running_requests,
        // SGLang cuts requests to what the pool holds, where vLLM would not start.
        max_model_len: Some("auto".to_owned()),
        speculative_algorithm: None,
        speculative_draft_model_path: None,
        speculative_num_steps: None,
        speculative_eagle_topk: None,
        speculative_num_draft_tokens: None,
        kv_cache_memory_bytes: pool_bytes
            .map(|bytes| bytes.to_string())
            .or_else(|| deployment.kv_cache_memory_bytes.clone()),
        ..deployment.clone()
    }
}

/// SGLang's scheduler over the planned pool: `own` as SGLang's rules have it, else `plan` as vLLM's.
///
/// Under DP attention (0.5.23, `arg_groups/parallel_hook.py`, `_handle_data_parallelism`) each group gets its share of the
/// chunk and of the running requests, and keeps less room for what running requests may still generate.
///
/// # Errors
/// If the model keeps no KV cache, or a number cannot be read.
pub(super) fn scheduler(
    scheduler: &SchedulerConfig,
    plan: &Plan,
    own: Option<&Plan>,
    deployment: &Deployment,
    hardware: &Hardware,
    serving: &Serving,
) -> Result<StepConfig> {
    let own = own.and_then(|own| own.kv_cache.as_ref());
    let Some(kv) = own.or(plan.kv_cache.as_ref()) else {
        return Err(Error::unsupported(
            "the model keeps no KV cache: there is nothing to simulate",
        ));
    };
    let capacity = usize::try_from(kv.capacity_tokens)
        .map_err(|_| Error::overflow("the pool's tokens"))?
        .min(1 << 31);
    let asked = match deployment.max_model_len.as_deref() {
        None | Some("auto") => u64::MAX,
        Some(text) => parse_count(text).map_err(|e| e.at("--max-model-len"))?,
    };
    let longest = own.map_or(scheduler.max_model_len.into(), |kv| kv.max_model_len);
    let context = usize::try_from(asked.min(longest)).unwrap_or(usize::MAX);
    let groups = usize::try_from(attention_groups(deployment)).unwrap_or(usize::MAX);
    let chunk = match deployment.chunked_prefill_size {
        Some(n) => u64::try_from(n).ok().filter(|&n| n > 0),
        None => Some(card_chunk_tokens(
            hardware.driver_bytes as f64 / (1_u64 << 20) as f64,
        )),
    };
    // SGLang 0.5.23, `arg_groups/memory_hook.py`: `max_running_requests` from tokens and context.
    let running = match (
        own.and_then(|kv| kv.max_running_requests),
        deployment.max_running_requests,
    ) {
        (Some(n), _) => usize::try_from(n).unwrap_or(usize::MAX),
        (None, Some(n)) => usize::try_from(n).unwrap_or(usize::MAX) / groups,
        (None, None) => StepConfig::default_max_running(capacity, context),
    };
    let prefill = match serving.max_prefill_tokens {
        Some(n) => usize::try_from(n).map_err(|_| Error::overflow("--max-prefill-tokens"))?,
        None => StepConfig::new(capacity).max_prefill_tokens,
    };
    // Where SGLang's rules are not known its pages are taken for single tokens, as most of its attention backends have them.
    let page = own.map_or(1, |kv| kv.block_size.max(1));
    Ok(StepConfig {
        page_size: usize::try_from(page).map_err(|_| Error::overflow("--page-size"))?,
        max_prefill_tokens: prefill,
        recv_interval: serving.recv_interval.unwrap_or(1),
        max_running: running.min(capacity / 2).clamp(1, 1 << 20),
        max_context_tokens: context,
        chunked_prefill_tokens: chunk
            .map(|tokens| usize::try_from(tokens).map_or(usize::MAX, |tokens| (tokens / groups).max(1))),
        schedule: serving.schedule_policy,
        conservativeness: serving.conservativeness * if groups > 1 { 0.3 } else { 1.0 },
        radix_cache: scheduler.prefix_caching,
        ..StepConfig::new(capacity)
    })
}
