//! The whole answer: what vLLM allocates for a model with these settings, and what that holds.

mod limits;

use std::ops::Range;

use super::backend::Backend;
use super::gpu::Gpu;
use super::group::{Group, Grouping, MemoryOrder, group, retain_behind_windows};
use super::kv_dtype::KvDtype;
use super::publish::{Published, publish};
use super::refusal::{Refusal, RefusalKind};
use super::request::{RequestContext, blocks_formula};
use super::settings::{MaxModelLen, Settings};
use super::spec::Spec;
use super::stages::stages;
use super::startup;
use super::version::{Rules, TokensRule};
use crate::arch::{CacheKind, Layer, Model};
use crate::{Error, Result};
use limits::{Kinds, Limits};

pub use limits::{keeps_states_only, step_limits};

/// What the engine does with these settings: it starts with `layout`, or refuses for a reason. Both are there where
/// numbers can be computed although it refuses.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The memory layout, unless the refusal leaves nothing to compute.
    pub layout: Option<Layout>,
    /// Why the engine would not start; the first reason it meets.
    pub refused: Option<Refusal>,
    /// What the user should know: assumptions made for this version or model.
    pub warnings: Vec<String>,
}

/// The KV cache of one engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// `cache_config.block_size` in tokens.
    pub block_size: u64,
    /// Granularity at which the scheduler aligns, in tokens.
    pub scheduler_block_size: u64,
    /// Tokens a block hash covers.
    pub hash_block_size: u64,
    /// Block size of recurrent states in tokens, if the model has any.
    pub mamba_block_size: Option<u64>,
    /// Page that recurrent states are padded to, in bytes.
    pub mamba_page_bytes_padded: Option<u64>,
    /// What `--kv-cache-dtype` became.
    pub kv_cache_dtype: KvDtype,
    /// Attention backends, without repetition.
    pub backends: Vec<Backend>,
    /// Longest request in tokens, after `auto` was settled.
    pub max_model_len: u64,
    /// Tokens a step.
    pub max_num_batched_tokens: u64,
    /// Sequences at once.
    pub max_num_seqs: u64,
    /// Tokens scheduled and not settled.
    pub max_in_flight_tokens: u64,
    /// Whether prefix caching is on.
    pub prefix_caching: bool,
    /// Pipeline stages.
    pub stages: Vec<Stage>,
    /// Groups of the first stage, in the engine's order.
    pub groups: Vec<GroupShare>,
    /// Blocks of every rank, the null block among them.
    pub num_blocks: u64,
    /// Blocks that one request of `max_model_len` takes from all groups.
    pub blocks_per_request: u64,
    /// `num_blocks / blocks_per_request`, as the engine logs it; `None` for models without a cache.
    pub max_concurrency: Option<f64>,
    /// Tokens as the engine logs them (`GPU KV cache size`).
    pub capacity_tokens: Option<u64>,
    /// Caches over all stages.
    pub kv_layers: u64,
    /// Caches that shorter groups are padded with.
    pub padding_layers: u64,
    /// Everything needed to ask for other lengths.
    sizing: Sizing,
}

/// One pipeline stage, on one tensor-parallel rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Decoder layers of the stage.
    pub layers: Range<u64>,
    /// Caches of the stage.
    pub kv_layers: u64,
    /// Bytes of one block.
    pub bytes_per_block: u64,
    /// Bytes available for the cache.
    pub available_bytes: u64,
    /// Bytes of all blocks that are allocated.
    pub allocated_bytes: u64,
    /// Bytes that one request of `max_model_len` needs by the start-up check.
    pub needed_bytes: u64,
}

/// A group as the first stage has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupShare {
    /// Kind of its caches (`full_attention`, `sliding_window`, `mamba`, ...); `uniform_type` where pages differ.
    pub kind: &'static str,
    /// Caches of the group on the first stage.
    pub layers: u64,
    /// Tokens in a block.
    pub block_size: u64,
    /// Bytes of one cache's part of a block; of all caches together where pages differ.
    pub page_bytes: u64,
    /// Blocks that one request of `max_model_len` takes.
    pub blocks_per_request: u64,
    /// The shared spec, or the first cache's.
    pub spec: Spec,
}

#[derive(Debug, Clone, PartialEq)]
struct Sizing {
    grouping: Grouping,
    context: RequestContext,
}

/// Lays out the KV cache of `model` on one tensor-parallel rank of each pipeline stage.
///
/// `available_bytes` is the memory for the cache on each rank: one number for all stages, or one a stage.
///
/// # Errors
/// If a setting can mean nothing, or a size leaves 64 bits. What the engine would refuse is an [`Outcome`].
pub fn layout(model: &Model, settings: &Settings, gpu: Gpu, available_bytes: &[u64]) -> Result<Outcome> {
    settings.validate()?;
    let on_cpu;
    let settings = if gpu.is_cpu() {
        // The CPU platform schedules synchronously and takes its own backend (vLLM 0.32.0, platforms/cpu.py).
        on_cpu = Settings {
            async_scheduling: Some(false),
            attention_backend: None,
            ..settings.clone()
        };
        &on_cpu
    } else {
        settings
    };
    let count = settings.pipeline_parallel_size;
    if available_bytes.len() != 1 && available_bytes.len() as u64 != count {
        return Err(Error::input(format!(
            "memory is given for {} pipeline stages, expected 1 or {count}",
            available_bytes.len()
        )));
    }
    let mut planner = Planner::new(model, settings, gpu);
    let layout = match planner.run(available_bytes)? {
        Ok(layout) => Some(layout),
        Err(refusal) => {
            planner.refused.get_or_insert(refusal);
            None
        }
    };
    Ok(Outcome {
        layout,
        refused: planner.refused,
        warnings: planner.warnings,
    })
}

struct Planner<'a> {
    model: &'a Model,
    settings: &'a Settings,
    gpu: Gpu,
    rules: Rules,
    refused: Option<Refusal>,
    warnings: Vec<String>,
}

impl<'a> Planner<'a> {
    fn new(model: &'a Model, settings: &'a Settings, gpu: Gpu) -> Self {
        let mut warnings = Vec::new();
        if settings.version.is_newer_than_known() {
            warnings.push(format!(
                "vLLM {} is newer than the newest release known here; planned with the rules of {}",
                settings.version,
                super::version::Version::NEWEST
            ));
        }
        Self {
            model,
            settings,
            gpu,
            rules: Rules::on(settings.version, &gpu),
            refused: None,
            warnings,
        }
    }

    fn refuse(&mut self, kind: RefusalKind, reason: String) {
        self.refused.get_or_insert(Refusal::new(kind, reason));
    }

    fn run(&mut self, available_bytes: &[u64]) -> Result<Result<Layout, Refusal>> {
        let kinds = Kinds::of(self.model);
        if let Some(refusal) = super::parallel::check(self.model, self.settings, kinds.latent) {
            self.refused.get_or_insert(refusal);
        }
        if let Some(refusal) = super::adapters::refusal(self.model, self.settings) {
            self.refused.get_or_insert(refusal);
        }
        let limits = self.limits(&kinds)?;
        let (extra, retained) = match &self.settings.speculative {
            None => (Vec::new(), 0),
            Some(speculative) => match speculative.layers(self.model) {
                Ok(extra) => (extra, speculative.extra_retained_tokens(self.model)),
                Err(refusal) => return Ok(Err(refusal)),
            },
        };
        let align_states = kinds.state && limits.prefix_caching;
        let published = match publish(
            self.model,
            &extra,
            self.settings,
            self.gpu,
            align_states,
            limits.max_model_len,
        )? {
            Ok(published) => published,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if let Some(refusal) = &published.refusal {
            self.refused.get_or_insert_with(|| refusal.clone());
        }
        let stages = match self.stages(&extra) {
            Ok(stages) => stages,
            Err(refusal) => return Ok(Err(refusal)),
        };
        self.place(
            available_bytes,
            &kinds,
            &limits,
            published,
            stages,
            retained,
            align_states,
        )
    }

    /// Layers of each stage; a drafter's layers are on the last.
    fn stages(&self, extra: &[Layer]) -> Result<Vec<Range<u64>>, Refusal> {
        let layers = self.model.layers.len() as u64;
        let mut stages = stages(
            layers,
            self.settings.pipeline_parallel_size,
            self.settings.pipeline_partition.as_deref(),
        )?;
        if let Some(last) = stages.last_mut() {
            last.end += extra.len() as u64;
        }
        if self.settings.pipeline_parallel_size > 1 {
            shared_within(&stages, self.model)?;
        }
        Ok(stages)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one step of one computation, split for length"
    )]
    fn place(
        &mut self,
        available_bytes: &[u64],
        kinds: &Kinds,
        limits: &Limits,
        published: Published,
        stages: Vec<Range<u64>>,
        retained: u64,
        align_states: bool,
    ) -> Result<Result<Layout, Refusal>> {
        let settings = self.settings;
        let Published {
            mut specs,
            layers,
            backends,
            sizes,
            kv_dtype,
            ..
        } = published;
        retain_behind_windows(&mut specs, retained);
        let order = if kinds.compressed || kinds.packed {
            MemoryOrder::BlockOutermost
        } else {
            MemoryOrder::LayerOutermost
        };
        let hidden_states = settings
            .speculative
            .as_ref()
            .is_some_and(|spec| spec.method.uses_hidden_states());
        let disable_hybrid = settings.disable_hybrid_kv_cache_manager
            || !self.rules.groups_windows
            || (kinds.chunked && (hidden_states || !settings.allow_chunked_local_with_hybrid));
        let kv_layers = specs.len() as u64;
        let grouping = match group(specs, order, disable_hybrid)? {
            Ok(grouping) => grouping,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut context = RequestContext {
            max_model_len: limits.max_model_len,
            max_in_flight_tokens: limits.in_flight_tokens,
            max_encoder_tokens: limits.batched_tokens,
            dcp: settings.decode_context_parallel_size,
            align_states,
        };
        let pools = startup::pools(
            &grouping,
            &layers,
            &stages,
            available_bytes,
            settings.num_gpu_blocks_override,
        )?;
        if !grouping.groups.is_empty() {
            let reserve = self.rules.reserves_null_block;
            if settings.max_model_len == MaxModelLen::Auto {
                match startup::auto_length(&grouping, &context, &pools, reserve)? {
                    Ok(length) => context.max_model_len = length,
                    Err(refusal) => {
                        self.refused.get_or_insert(refusal);
                    }
                }
            }
            if let Err(refusal) = startup::check(&grouping, &context, &pools, reserve)? {
                self.refused.get_or_insert(refusal);
            }
        }
        if let Some(pool) = pools.iter().find(|pool| pool.kv_layers == 0)
            && kv_layers > 0
        {
            // The engine divides by the bytes of one block, which are 0.
            let reason = format!("pipeline stage {} has no layer with a KV cache", pool.stage);
            return Ok(Err(Refusal::new(RefusalKind::PipelineParallel, reason)));
        }
        let num_blocks = if grouping.groups.is_empty() {
            1
        } else {
            pools.iter().map(|pool| pool.num_blocks).min().unwrap_or(0)
        };
        let blocks_per_request = grouping.request_blocks(&context)?;
        let (max_concurrency, capacity_tokens) = self.capacity(
            &grouping,
            num_blocks,
            blocks_per_request,
            context.max_model_len,
            sizes.block_size,
        )?;
        let (scheduler_block_size, hash_block_size) = grouping.block_sizes(
            sizes.block_size,
            settings.decode_context_parallel_size,
            limits.prefix_caching,
            align_states,
        )?;
        let first_stage = stages.first().cloned().unwrap_or(0..0);
        let groups = grouping
            .groups
            .iter()
            .map(|group| share(&grouping, group, &layers, &first_stage, &context))
            .collect::<Result<_>>()?;
        let mut result_stages = Vec::with_capacity(stages.len());
        for (range, pool) in stages.into_iter().zip(&pools) {
            result_stages.push(Stage {
                layers: range,
                kv_layers: pool.kv_layers,
                bytes_per_block: pool.bytes_per_block,
                available_bytes: pool.available_bytes,
                allocated_bytes: pool
                    .bytes_per_block
                    .checked_mul(num_blocks)
                    .ok_or_else(|| Error::overflow("the bytes of all blocks"))?,
                needed_bytes: pool
                    .bytes_per_block
                    .checked_mul(blocks_per_request)
                    .ok_or_else(|| Error::overflow("the bytes of one request's blocks"))?,
            });
        }
        Ok(Ok(Layout {
            block_size: sizes.block_size,
            scheduler_block_size,
            hash_block_size,
            mamba_block_size: kinds.state.then_some(sizes.state_block_size),
            mamba_page_bytes_padded: sizes.state_page_bytes,
            kv_cache_dtype: kv_dtype,
            backends,
            max_model_len: context.max_model_len,
            max_num_batched_tokens: limits.batched_tokens,
            max_num_seqs: limits.seqs,
            max_in_flight_tokens: limits.in_flight_tokens,
            prefix_caching: limits.prefix_caching,
            stages: result_stages,
            groups,
            num_blocks,
            blocks_per_request,
            max_concurrency,
            capacity_tokens,
            kv_layers,
            padding_layers: grouping.padding_layers() as u64,
            sizing: Sizing { grouping, context },
        }))
    }

    /// Logged concurrency and tokens by the version's rule.
    fn capacity(
        &self,
        grouping: &Grouping,
        num_blocks: u64,
        blocks_per_request: u64,
        max_model_len: u64,
        block_size: u64,
    ) -> Result<(Option<f64>, Option<u64>)> {
        if blocks_per_request == 0 {
            return Ok((None, None));
        }
        let (tokens, concurrency) = logged_capacity(num_blocks, blocks_per_request, max_model_len)?;
        let tokens = match self.rules.tokens {
            TokensRule::ConcurrencyTimesLength => tokens,
            TokensRule::BlocksOverGroups => {
                let groups = grouping.groups.len().max(1) as u64;
                (num_blocks / groups)
                    .checked_mul(block_size)
                    .ok_or_else(|| Error::overflow("the capacity in tokens"))?
            }
        };
        Ok((Some(concurrency), Some(tokens)))
    }
}

/// Tokens and concurrency as the engine logs them: 64-bit float division and product, truncated
/// (`get_kv_cache_capacity`).
pub(crate) fn logged_capacity(
    num_blocks: u64,
    blocks_per_request: u64,
    max_model_len: u64,
) -> Result<(u64, f64)> {
    const EXACT: u64 = 1 << 53;
    let concurrency = num_blocks as f64 / blocks_per_request as f64;
    let tokens = concurrency * max_model_len as f64;
    if num_blocks > EXACT || blocks_per_request > EXACT || max_model_len > EXACT || tokens >= EXACT as f64 {
        return Err(Error::overflow("the capacity in tokens"));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "non-negative and below 2^53; the engine truncates too"
    )]
    Ok((tokens as u64, concurrency))
}

fn share(
    grouping: &Grouping,
    group: &Group,
    layers: &[u64],
    first_stage: &Range<u64>,
    context: &RequestContext,
) -> Result<GroupShare> {
    let on_stage = |cache: &&usize| first_stage.contains(&layers[**cache]);
    let members = group.layers.iter().filter(on_stage);
    let page_bytes = if group.uniform_type {
        members.clone().try_fold(0_u64, |sum, &cache| {
            sum.checked_add(grouping.specs[cache].page_bytes()?)
                .ok_or_else(|| Error::overflow("the bytes of one block"))
        })?
    } else {
        group.spec.page_bytes()?
    };
    Ok(GroupShare {
        kind: if group.uniform_type {
            "uniform_type"
        } else {
            group.spec.kind_name()
        },
        layers: members.count() as u64,
        block_size: group.spec.block_size,
        page_bytes,
        blocks_per_request: grouping.group_blocks(group, context),
        spec: group.spec,
    })
}

impl Layout {
    /// Blocks that one request of `tokens` takes from all groups.
    ///
    /// # Errors
    /// If their sum overflows.
    pub fn request_blocks_at(&self, tokens: u64) -> Result<u64> {
        self.sizing.grouping.request_blocks(&RequestContext {
            max_model_len: tokens,
            ..self.sizing.context
        })
    }

    /// Requests of `tokens` that fit at once with whole blocks, the null block taken off.
    ///
    /// # Errors
    /// If the blocks of one request overflow.
    pub fn whole_requests_at(&self, tokens: u64) -> Result<u64> {
        let blocks = self.request_blocks_at(tokens)?;
        Ok(self.num_blocks.saturating_sub(1).checked_div(blocks).unwrap_or(0))
    }

    /// Longest request of which `requests` fit at once, at most the model's length; 0 if none does.
    ///
    /// # Errors
    /// If the blocks of one request overflow.
    pub fn max_tokens_for(&self, requests: u64) -> Result<u64> {
        let fits = |tokens: u64| -> Result<bool> { Ok(self.whole_requests_at(tokens)? >= requests) };
        startup::longest(self.max_model_len, fits)
    }

    /// Bytes of the pool that one more token of a long request takes on the first stage, rounded up: groups that
    /// keep all tokens, each a block of `bytes_per_block` every block size.
    pub fn bytes_per_token(&self) -> u64 {
        let Some(stage) = self.stages.first() else {
            return 0;
        };
        self.groups
            .iter()
            .filter(|group| group.spec.is_full_type())
            .map(|group| stage.bytes_per_block.div_ceil(group.block_size.max(1)))
            .fold(0, u64::saturating_add)
    }

    /// How the blocks that one request of `max_model_len` takes of a cache come about, with their numbers.
    pub(crate) fn blocks_formula(&self, spec: &Spec) -> String {
        blocks_formula(spec, &self.sizing.context)
    }

    /// The caches' specs after grouping, in registration order, and the groups over them.
    pub fn grouping(&self) -> &Grouping {
        &self.sizing.grouping
    }
}
/// Refuses stages that part a layer from the one whose states it reads (vLLM 0.32.0, `models/deepseek_v41/attention.py`).
fn shared_within(stages: &[Range<u64>], model: &Model) -> Result<(), Refusal> {
    for (index, layer) in (0_u64..).zip(&model.layers) {
        let Some(stage) = stages.iter().find(|stage| stage.contains(&index)) else {
            continue;
        };
        for cache in &layer.caches {
            if let CacheKind::SharedCompressed { behind, .. } = cache.kind
                && index.saturating_sub(behind) < stage.start
            {
                return Err(Refusal::new(
                    RefusalKind::PipelineParallel,
                    format!(
                        "Compressed-KV source of layer {index} not found on this rank; PP splits inside a v4.1 kv-sharing \
                         group are not supported."
                    ),
                ));
            }
        }
    }
    Ok(())
}
