//! The generic engine: tokens times bytes, no blocks, margins from the policy. It answers for engines that have no
//! model of their own here, and reproduces the arithmetic of textbooks and earlier planners, without their slips.

use super::budget::Spread;
use super::evaluation::Evaluation;
use super::ledger::{Basis, Derivation, Step, Term};
use super::policy::generic_overhead;
use super::pool::Pool;
use super::report::{GroupPart, KvCache};
use super::request::{Generic, Request};
use crate::arch::{CacheKind, Heads, Model, Parallel, State};
use crate::dtype::Dtype;
use crate::engine::vllm::state::{StateContext, StateShape};
use crate::quant::{Inventory, Mxfp4Padding};
use crate::units::{grouped, human_bytes};
use crate::{Error, Result};

/// Weight formats made on load, with the bytes of one parameter in thousandths; scales and zero points included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// 4-bit AWQ: 0.55 bytes.
    Awq,
    /// 4-bit GPTQ: 0.55 bytes.
    Gptq,
    /// 8-bit integers: 1 byte.
    Int8,
    /// 8-bit floats: 1 byte.
    Fp8,
    /// 4-bit floats with an 8-bit scale every 16: 0.5625 bytes.
    Nvfp4,
    /// 4-bit floats with an 8-bit scale every 32: 0.53125 bytes, here 0.531.
    Mxfp4,
}

impl Quantization {
    /// Every format.
    pub const ALL: [Self; 6] = [
        Self::Awq,
        Self::Gptq,
        Self::Int8,
        Self::Fp8,
        Self::Nvfp4,
        Self::Mxfp4,
    ];

    /// Lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Awq => "awq",
            Self::Gptq => "gptq",
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp4 => "mxfp4",
        }
    }

    /// Parses a plain name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|q| q.name().eq_ignore_ascii_case(text))
    }

    /// Bytes of a thousand parameters.
    pub const fn bytes_per_thousand(self) -> u64 {
        match self {
            Self::Awq | Self::Gptq => 550,
            Self::Int8 | Self::Fp8 => 1000,
            Self::Nvfp4 => 563,
            Self::Mxfp4 => 531,
        }
    }
}

/// Bytes of one request of `context` tokens on one rank, over all layers, and of one more token.
///
/// # Errors
/// If a size leaves 64 bits.
pub fn request_bytes(model: &Model, context: u64, tp: u64, element_bytes: u64) -> Result<u64> {
    let mut sum = 0_u64;
    for cache in model.layers.iter().flat_map(|layer| &layer.caches) {
        let bytes = cache_bytes(&cache.kind, context, tp, element_bytes)
            .ok_or_else(|| Error::overflow(format_args!("the KV cache of {context} tokens")))?;
        sum = sum
            .checked_add(bytes)
            .ok_or_else(|| Error::overflow(format_args!("the KV cache of {context} tokens")))?;
    }
    Ok(sum)
}

/// One cache; `None` if the size leaves 64 bits.
fn cache_bytes(kind: &CacheKind, context: u64, tp: u64, element_bytes: u64) -> Option<u64> {
    // A head is never split: with more ranks than heads each rank holds one.
    let heads = |h: &Heads, tokens: u64| {
        let kv_heads = if h.kv_heads == 0 {
            0
        } else {
            h.kv_heads.div_ceil(tp.max(1))
        };
        let width = if h.follows_kv_dtype { element_bytes } else { 2 };
        kv_heads
            .checked_mul(h.head_dim.checked_add(h.head_dim_v)?)?
            .checked_mul(width)?
            .checked_mul(tokens)
    };
    match kind {
        // Whisper-like encoders produce a fixed number of states, but the shape does not tell: charge the context.
        CacheKind::Full(h) | CacheKind::Cross(h) => heads(h, context),
        CacheKind::Sliding { heads: h, window } | CacheKind::ConvWindow { heads: h, window } => {
            heads(h, context.min(*window))
        }
        CacheKind::Chunked { heads: h, chunk } => heads(h, context.min(*chunk)),
        CacheKind::Latent { width, .. } => width.checked_mul(element_bytes)?.checked_mul(context),
        CacheKind::SlidingLatent { width, window } => width
            .checked_mul(element_bytes)?
            .checked_mul(context.min(*window)),
        CacheKind::Indexer { bytes_per_token, .. } => bytes_per_token.checked_mul(context),
        CacheKind::PooledIndexer {
            bytes_per_entry,
            pool,
            ..
        } => bytes_per_entry.checked_mul(context.div_ceil((*pool).max(1))),
        CacheKind::Ring {
            vectors, width, pool, ..
        } => vectors.checked_mul(*width)?.checked_mul(2)?.checked_mul(*pool),
        CacheKind::Compressed {
            ratio,
            head_dim,
            window,
            ..
        } => {
            let compressed = if *ratio > 1 { context / ratio } else { 0 };
            head_dim
                .checked_mul(element_bytes)?
                .checked_mul(compressed.checked_add(context.min(*window))?)
        }
        CacheKind::SharedCompressed {
            ratio,
            behind,
            head_dim,
            window,
            ..
        } => {
            let stored = match (ratio, behind) {
                (1.., 0) => context / ratio,
                _ => 0,
            };
            head_dim
                .checked_mul(element_bytes)?
                .checked_mul(stored.checked_add(context.min(*window))?)
        }
        CacheKind::State(state) => state_bytes(state, tp),
    }
}

/// A recurrent state on one rank, in the shapes that vLLM gives it; an even share where the ranks do not divide it.
fn state_bytes(state: &State, tp: u64) -> Option<u64> {
    let over = |tp: u64| {
        let context = StateContext {
            tp,
            speculative_tokens: 0,
            model_dtype: Dtype::Bf16,
            cache_dtype: None,
            ssm_dtype: None,
            gpu_major: 0,
        };
        StateShape::of(state, &context).ok()
    };
    match over(tp.max(1))? {
        Ok(shape) => shape.bytes().ok(),
        Err(_) => Some(over(1)?.ok()?.bytes().ok()?.div_ceil(tp.max(1))),
    }
}

/// Bytes of all weights of a quantised checkpoint, module by module, and the method's name; `None` where nothing says that
/// it is quantised.
fn checkpoint_format(request: &Request, settings: &Generic, dtype: Dtype) -> Result<Option<(u64, String)>> {
    let Some((model, config)) = request.subject.model else {
        return Ok(None);
    };
    if settings.ignores_checkpoint || request.subject.params.is_some() {
        return Ok(None);
    }
    let Some(read) = crate::quant::Quantization::read(config)? else {
        return Ok(None);
    };
    let name = read.name().to_owned();
    let inventory = (request.subject.inventories).get(None, || Ok(Inventory::new(model, Some(read))))?;
    let whole = Parallel::default();
    let bytes = inventory.bytes(model, 0, &whole, (dtype, Mxfp4Padding::NONE), true)?;
    Ok(Some((bytes, name)))
}

/// Evaluates a request by the generic rules.
///
/// # Errors
/// If the settings contradict each other or a size leaves 64 bits.
pub(super) fn evaluate<'a>(request: &'a Request<'a>, settings: &Generic) -> Result<Evaluation<'a>> {
    let hardware = &request.hardware;
    let ranks = settings
        .tensor_parallel_size
        .checked_mul(settings.pipeline_parallel_size)
        .filter(|&n| n > 0 && n <= 1 << 16)
        .ok_or_else(|| Error::input("tensor- and pipeline-parallel size must be 1 to 65536 together"))?;
    let mut steps = Derivation::wanted(request.explain);
    let (params, active) = match (request.subject.params, request.subject.model) {
        (Some(given), _) => (given, given),
        (None, Some((model, _))) => model.params()?,
        (None, None) => {
            return Err(request
                .subject
                .undescribed("neither the layers nor the number of parameters of the model are known")
                .hint("give --params-b, in billions"));
        }
    };
    let dtype = settings
        .dtype
        .or(request.subject.model.and_then(|(model, _)| model.dtype))
        .map_or(Dtype::Bf16, |d| {
            if d == Dtype::F32 && settings.dtype.is_none() {
                Dtype::Bf16
            } else {
                d
            }
        });
    let (total, formula, basis) = match settings.quantization {
        Some(q) => (
            u64::try_from(u128::from(params) * u128::from(q.bytes_per_thousand()) / 1000)
                .map_err(|_| Error::overflow("the size of the weights"))?,
            format!(
                "{} parameters x {} B ({})",
                grouped(params),
                q.bytes_per_thousand() as f64 / 1000.0,
                q.name()
            ),
            Basis::Assumed,
        ),
        None => match checkpoint_format(request, settings, dtype)? {
            Some((bytes, name)) => (
                bytes,
                format!(
                    "{} parameters, quantised by {name} as the checkpoint says",
                    grouped(params)
                ),
                Basis::Exact,
            ),
            None => (
                dtype.bytes(params)?,
                format!(
                    "{} parameters x {} B ({dtype})",
                    grouped(params),
                    dtype.bits() as f64 / 8.0
                ),
                Basis::Exact,
            ),
        },
    };
    let (total, formula, basis, source) = match request.subject.checkpoint {
        Some(c) if request.subject.params.is_none() && settings.quantization.is_none() => (
            c.total_bytes,
            format!("sum of the tensors of the checkpoint ({})", c.source),
            Basis::Exact,
            c.source,
        ),
        _ => (total, formula, basis, "config"),
    };
    let per_rank = total.div_ceil(ranks);
    let weights_formula = if ranks > 1 {
        format!("{formula} / {ranks} ranks")
    } else {
        formula
    };
    steps.add(|| Step::new("weights per GPU", &weights_formula, human_bytes(per_rank)));

    let budget = utilised(hardware.driver_bytes, settings.gpu_memory_utilization)?;
    steps.add(|| {
        Step::new(
            "memory the engine may use",
            format!(
                "{} x {}",
                human_bytes(hardware.driver_bytes),
                settings.gpu_memory_utilization
            ),
            human_bytes(budget),
        )
    });
    let (overhead, overhead_formula, overhead_basis) = match request.policy.overhead_bytes {
        Some(bytes) => (bytes, "--overhead".to_owned(), Basis::Exact),
        None => (
            generic_overhead(hardware.driver_bytes, settings.tensor_parallel_size),
            format!(
                "max(1 GiB, 2 % of {}) + 0.25 GiB x ({} - 1)",
                human_bytes(hardware.driver_bytes),
                settings.tensor_parallel_size
            ),
            Basis::Assumed,
        ),
    };
    steps.add(|| {
        let source = "an assumption for any engine, fitted to nothing: --engine vllm has terms that are";
        Step::new("overhead", &overhead_formula, human_bytes(overhead))
            .of_any((overhead_basis != Basis::Exact).then_some(source))
    });
    let available = budget.saturating_sub(per_rank).saturating_sub(overhead);
    steps.add(|| {
        Step::new(
            "left for the KV cache",
            format!(
                "{} - {} - {}",
                human_bytes(budget),
                human_bytes(per_rank),
                human_bytes(overhead)
            ),
            human_bytes(available),
        )
    });

    let overhead_term = match overhead_basis {
        Basis::Exact => Term::exact("overhead", overhead, overhead_formula),
        _ => Term::estimated(
            "overhead",
            overhead_basis,
            overhead,
            (overhead / 4, overhead * 3),
            overhead_formula,
        ),
    };
    let weights_term = match basis {
        Basis::Assumed => Term::estimated(
            "weights",
            basis,
            per_rank,
            (per_rank / 10 * 9, per_rank / 10 * 12),
            weights_formula,
        ),
        _ => Term::exact("weights", per_rank, weights_formula),
    };
    // Weights that are assumed are as uncertain as the overhead; both take of what the weights' best value leaves.
    let spread = Spread::between(
        overhead,
        (
            overhead_term
                .low_bytes
                .saturating_sub(per_rank - weights_term.low_bytes),
            overhead_term
                .high_bytes
                .saturating_add(weights_term.high_bytes - per_rank),
        ),
    );
    let mut evaluation = Evaluation {
        params,
        params_active: active,
        weights_total: total,
        weights_per_rank: vec![per_rank; usize::try_from(settings.pipeline_parallel_size).unwrap_or(1)],
        weights_source: source,
        weights: weights_term,
        overhead: vec![overhead_term],
        gpu_bytes: hardware.driver_bytes,
        budget_bytes: budget,
        available_bytes: available,
        room_bytes: i128::from(budget) - i128::from(per_rank),
        spread,
        pool_given: false,
        host_computes: false,
        missing_bytes: per_rank.saturating_add(overhead).saturating_sub(budget),
        start_bytes: 0,
        layout: None,
        refused_for_memory: false,
        fix: None,
        max_model_len: None,
        ranks,
        kv_cache: None,
        pool: None,
        refused: None,
        // What one engine refuses is no answer for any engine.
        warnings: (request.subject.refused.iter())
            .map(|reason| format!("vLLM would not start it: {reason}"))
            .collect(),
        steps,
    };
    let Some((model, _)) = request.subject.model else {
        evaluation
            .warnings
            .push("the KV cache is not planned: a parameter count does not tell the layers".to_owned());
        return Ok(evaluation);
    };
    let element = settings.kv_element_bytes.unwrap_or(match dtype {
        Dtype::F32 | Dtype::F64 => 4,
        _ => 2,
    });
    let tp = settings.tensor_parallel_size;
    let pp = settings.pipeline_parallel_size;
    let max_len = settings
        .max_model_len
        .or(model.max_position)
        .or(request.load.contexts.iter().copied().max())
        .unwrap_or(8192);
    // Layers are spread over the stages; the fullest stage has the rounded-up share.
    let units = move |context: u64| request_bytes(model, context, tp, element).map(|b| b.div_ceil(pp.max(1)));
    let at_length = units(max_len)?.max(1);
    let one_more = units(max_len.saturating_add(1))?.saturating_sub(units(max_len)?);
    evaluation.steps.add(|| {
        Step::new(
            "KV cache of one more token",
            format!(
                "sum over {} layers of key and value elements x {element} B",
                model.layers.len()
            ),
            format!("{} B", grouped(one_more)),
        )
    });
    evaluation.kv_cache = Some(KvCache {
        dtype: match element {
            1 => "fp8".to_owned(),
            4 => "float32".to_owned(),
            _ => dtype.name().to_owned(),
        },
        block_size: 1,
        bytes_per_block: vec![one_more; usize::try_from(pp).unwrap_or(1)],
        num_blocks: available.checked_div(one_more).unwrap_or(0),
        capacity_tokens: available.checked_div(one_more).unwrap_or(0),
        max_concurrency: available as f64 / at_length as f64,
        available_bytes: available,
        bytes_per_token: one_more,
        max_model_len: max_len,
        max_running_requests: None,
        groups: generic_groups(model, max_len, tp, element)?,
    });
    evaluation.max_model_len = Some(max_len);
    evaluation.pool = Some(Pool {
        unit_bytes: 1,
        usable_units: available,
        units: Box::new(units),
        max_context: max_len,
        factor: request.policy.fragmentation,
    });
    Ok(evaluation)
}

/// `floor(bytes * share)`, the share taken to six decimals.
pub(super) fn utilised(bytes: u64, share: f64) -> Result<u64> {
    if !(share > 0.0 && share <= 1.0) {
        return Err(Error::input(format!(
            "--gpu-memory-utilization is {share}, expected more than 0 and at most 1"
        )));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: between 0 and 1, so at most a million"
    )]
    let millionths = (share * 1e6).round() as u64;
    u64::try_from(u128::from(bytes) * u128::from(millionths) / 1_000_000)
        .map_err(|_| Error::overflow("the memory the engine may use"))
}

/// Caches of the same kind, counted.
fn generic_groups(model: &Model, max_len: u64, tp: u64, element: u64) -> Result<Vec<GroupPart>> {
    let mut groups: Vec<GroupPart> = Vec::new();
    for cache in model.layers.iter().flat_map(|layer| &layer.caches) {
        let overflow = || Error::overflow("the KV cache of one layer");
        let bytes = cache_bytes(&cache.kind, max_len, tp, element).ok_or_else(overflow)?;
        let (kind, per_token) = match &cache.kind {
            CacheKind::Full(_) => ("full".to_owned(), true),
            CacheKind::Sliding { window, .. } => (format!("sliding {window}"), true),
            CacheKind::Chunked { chunk, .. } => (format!("chunked {chunk}"), true),
            CacheKind::Latent { .. } => ("latent".to_owned(), true),
            CacheKind::SlidingLatent { window, .. } => (format!("sliding latent {window}"), true),
            CacheKind::Indexer { .. } | CacheKind::PooledIndexer { .. } => ("indexer".to_owned(), true),
            CacheKind::Ring { .. } => ("ring".to_owned(), false),
            CacheKind::Compressed { ratio, .. } => (format!("compressed {ratio}"), true),
            CacheKind::SharedCompressed { ratio, .. } => (format!("shared compressed {ratio}"), true),
            CacheKind::ConvWindow { window, .. } => (format!("convolution {window}"), true),
            CacheKind::State(_) => ("state".to_owned(), false),
            CacheKind::Cross(_) => ("cross".to_owned(), true),
        };
        let page_bytes = if per_token {
            cache_bytes(&cache.kind, 1, tp, element).ok_or_else(overflow)?
        } else {
            bytes
        };
        match groups
            .iter_mut()
            .find(|g| g.kind == kind && g.page_bytes == page_bytes)
        {
            Some(group) => group.layers += 1,
            None => groups.push(GroupPart {
                kind,
                layers: 1,
                block_size: 1,
                page_bytes,
                blocks_per_request: bytes.checked_div(page_bytes).unwrap_or(0),
            }),
        }
    }
    Ok(groups)
}
