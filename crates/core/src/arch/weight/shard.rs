//! What one rank holds of a parameter: dividing, padding and counting.

use super::{Op, Part, Role, Split, Weight};
use crate::arch::Parallel;
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Rows of embeddings and output heads are padded to a multiple of this before they are divided
/// (vLLM 0.32.0, `vllm/model_executor/layers/vocab_parallel_embedding.py`).
pub const VOCAB_PADDING_ROWS: u64 = 64;

/// What one rank holds of a [`Weight`], one copy of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shard {
    /// A matrix of `inputs` times the sum of `outputs`.
    Linear {
        /// Inputs on this rank.
        inputs: u64,
        /// Outputs of each fused part on this rank.
        outputs: Vec<u64>,
        /// Elements of the bias on this rank.
        bias: u64,
        /// Inputs of the whole module.
        inputs_full: u64,
        /// Outputs of the whole module, all parts together.
        outputs_full: u64,
    },
    /// Routed experts.
    Experts {
        /// Experts on this rank.
        experts: u64,
        /// Model width.
        hidden: u64,
        /// Width of each expert on this rank.
        intermediate: u64,
        /// Matrices fused in the first projection: 2 with a gate, else 1.
        parts: u64,
        /// Whether experts have biases.
        bias: bool,
    },
    /// Rows of an embedding or output head.
    Vocab {
        /// Rows on this rank, padding included.
        rows: u64,
        /// Row width.
        width: u64,
        /// Elements of the bias on this rank.
        bias: u64,
    },
    /// Anything else.
    Plain {
        /// Elements on this rank.
        elements: u64,
    },
}

fn mul(what: &str, factors: &[u64]) -> Result<u64> {
    factors
        .iter()
        .try_fold(1u64, |product, &f| product.checked_mul(f))
        .ok_or_else(|| Error::overflow(format_args!("the size of {what}")))
}

fn sum(what: &str, terms: &[u64]) -> Result<u64> {
    terms
        .iter()
        .try_fold(0u64, |total, &t| total.checked_add(t))
        .ok_or_else(|| Error::overflow(format_args!("the size of {what}")))
}

fn divide(what: &str, dimension: &str, size: u64, ranks: u64) -> Result<u64> {
    if ranks == 0 {
        return Err(Error::input(
            "the number of tensor-parallel ranks is 0, expected at least 1",
        ));
    }
    if size.is_multiple_of(ranks) {
        return Ok(size / ranks);
    }
    Err(Error::unsupported(format!(
        "{what}: {dimension} {size} cannot be divided by {ranks} ranks"
    ))
    .hint("choose a tensor-parallel size that divides it"))
}

impl Part {
    fn full(self, what: &str) -> Result<u64> {
        match self {
            Self::Even(n) | Self::Whole(n) => Ok(n),
            Self::Groups { units, width } => mul(what, &[units, width]),
        }
    }

    fn on_rank(self, what: &str, ranks: u64) -> Result<u64> {
        match self {
            Self::Even(n) => divide(what, "outputs", n, ranks),
            Self::Whole(n) => Ok(n),
            Self::Groups { units, width } if ranks > 0 && units.is_multiple_of(ranks) => {
                mul(what, &[units / ranks, width])
            }
            // Fewer groups than ranks are replicated, but only evenly.
            Self::Groups { units, width } if units > 0 && ranks.is_multiple_of(units) => Ok(width),
            Self::Groups { units, .. } => divide(what, "groups", units, ranks),
        }
    }
}

impl Weight {
    /// Elements of the whole parameter, all copies, without padding.
    ///
    /// # Errors
    /// If the count leaves 64 bits.
    pub fn elements(&self) -> Result<u64> {
        let what = self.name.as_str();
        let one = match &self.op {
            Op::Linear {
                inputs,
                outputs,
                bias,
                ..
            } => {
                let widths = outputs.iter().map(|p| p.full(what)).collect::<Result<Vec<_>>>()?;
                let outputs = sum(what, &widths)?;
                let matrix = mul(what, &[*inputs, outputs])?;
                sum(what, &[matrix, if *bias { outputs } else { 0 }])?
            }
            Op::Qkv {
                inputs,
                heads,
                kv_heads,
                head_dim,
                head_dim_v,
                bias,
            } => {
                let outputs = sum(
                    what,
                    &[
                        mul(what, &[*heads, *head_dim])?,
                        mul(what, &[*kv_heads, *head_dim])?,
                        mul(what, &[*kv_heads, *head_dim_v])?,
                    ],
                )?;
                let matrix = mul(what, &[*inputs, outputs])?;
                sum(what, &[matrix, if *bias { outputs } else { 0 }])?
            }
            Op::Experts { experts, .. } => mul(what, &[*experts, self.expert_elements()?])?,
            Op::Vocab { rows, width, bias } => sum(
                what,
                &[mul(what, &[*rows, *width])?, if *bias { *rows } else { 0 }],
            )?,
            Op::Tensor { shape, .. } => mul(what, shape)?,
        };
        mul(what, &[one, self.count])
    }

    /// Elements that one token uses: all of them, but only `top_k` of the routed experts.
    ///
    /// # Errors
    /// If the count leaves 64 bits.
    pub fn active_elements(&self) -> Result<u64> {
        match &self.op {
            Op::Experts { experts, top_k, .. } => mul(
                &self.name,
                &[(*top_k).min(*experts), self.expert_elements()?, self.count],
            ),
            _ => self.elements(),
        }
    }

    fn expert_elements(&self) -> Result<u64> {
        let Op::Experts {
            hidden,
            intermediate,
            gated,
            bias,
            ..
        } = &self.op
        else {
            return Ok(0);
        };
        let what = self.name.as_str();
        let parts = if *gated { 2 } else { 1 };
        let first = mul(what, &[parts, *intermediate])?;
        let biases = if *bias { sum(what, &[first, *hidden])? } else { 0 };
        sum(
            what,
            &[
                mul(what, &[first, *hidden])?,
                mul(what, &[*intermediate, *hidden])?,
                biases,
            ],
        )
    }

    /// What the first rank of a stage holds of one copy (no rank holds more).
    ///
    /// # Errors
    /// If a dimension does not divide over the ranks, or a size leaves 64 bits.
    pub fn shard(&self, parallel: &Parallel) -> Result<Shard> {
        let what = self.name.as_str();
        let spread = match self.whole_where_tokens_spread {
            Some(whole) => whole && parallel.pp == 1,
            None => self.role == Role::SharedExpert,
        };
        let whole = spread && parallel.sequence_parallel_experts()
            || self
                .whole_unless_divides
                .is_some_and(|n| parallel.tp > 0 && !n.is_multiple_of(parallel.tp));
        let tp = if whole {
            1
        } else if self.shared_in_context_group && parallel.tp.is_multiple_of(parallel.dcp.max(1)) {
            parallel.tp / parallel.dcp.max(1)
        } else {
            parallel.tp
        };
        Ok(match &self.op {
            Op::Linear {
                inputs,
                outputs,
                split,
                bias,
            } => {
                let mut outputs_on_rank = outputs
                    .iter()
                    .map(|p| {
                        if *split == Split::Column {
                            p.on_rank(what, tp)
                        } else {
                            p.full(what)
                        }
                    })
                    .collect::<Result<Vec<_>>>()?;
                if self.outputs_multiple > 1 {
                    let rows = sum(what, &outputs_on_rank)?;
                    let filled = rows
                        .checked_next_multiple_of(self.outputs_multiple)
                        .ok_or_else(|| Error::overflow(format_args!("the rows of {what}")))?;
                    if filled > rows {
                        outputs_on_rank.push(filled - rows);
                    }
                }
                let bias = if *bias { sum(what, &outputs_on_rank)? } else { 0 };
                // State groups that ranks do not divide are loaded as one piece (vLLM 0.32.0, `mamba_mixer2.py`).
                let uneven = |part: &Part| matches!(part, Part::Groups { units, .. } if tp > 0 && !units.is_multiple_of(tp));
                let outputs_on_rank = if self.in_one || outputs.iter().any(uneven) {
                    vec![sum(what, &outputs_on_rank)?]
                } else {
                    outputs_on_rank
                };
                let inputs_on_rank = if *split == Split::Row {
                    divide(what, "inputs", *inputs, tp)?
                } else {
                    *inputs
                };
                Shard::Linear {
                    inputs: inputs_on_rank,
                    outputs: outputs_on_rank,
                    bias,
                    inputs_full: *inputs,
                    outputs_full: sum(
                        what,
                        &outputs.iter().map(|p| p.full(what)).collect::<Result<Vec<_>>>()?,
                    )?,
                }
            }
            Op::Qkv {
                inputs,
                heads,
                kv_heads,
                head_dim,
                head_dim_v,
                bias,
            } => {
                let q = mul(what, &[divide(what, "query heads", *heads, tp)?, *head_dim])?;
                let kv = if *kv_heads >= tp {
                    divide(what, "key/value heads", *kv_heads, tp)?
                } else {
                    // Fewer heads than ranks: each rank holds one, so the ranks must be a multiple of the heads.
                    divide(
                        what,
                        "tensor-parallel size over key/value heads, size",
                        tp,
                        (*kv_heads).max(1),
                    )?;
                    1
                };
                let outputs = vec![q, mul(what, &[kv, *head_dim])?, mul(what, &[kv, *head_dim_v])?];
                let bias = if *bias { sum(what, &outputs)? } else { 0 };
                Shard::Linear {
                    inputs: *inputs,
                    outputs,
                    bias,
                    inputs_full: *inputs,
                    outputs_full: sum(
                        what,
                        &[
                            mul(what, &[*heads, *head_dim])?,
                            mul(what, &[*kv_heads, *head_dim])?,
                            mul(what, &[*kv_heads, *head_dim_v])?,
                        ],
                    )?,
                }
            }
            Op::Experts {
                experts,
                hidden,
                intermediate,
                gated,
                bias,
                least_width,
                ..
            } => {
                let ranks = parallel.expert_ranks()?;
                let (experts, intermediate) = if parallel.expert_parallel {
                    // The first ranks take one more expert where the division leaves a remainder.
                    (experts.div_ceil(ranks), *intermediate)
                } else if ranks > 1 && *intermediate / ranks < *least_width {
                    (*experts, *least_width)
                } else {
                    (*experts, divide(what, "expert width", *intermediate, ranks)?)
                };
                let parts = if *gated { 2 } else { 1 };
                Shard::Experts {
                    experts,
                    hidden: *hidden,
                    intermediate,
                    parts,
                    bias: *bias,
                }
            }
            Op::Vocab { rows, width, bias } => {
                let padded = rows
                    .checked_next_multiple_of(VOCAB_PADDING_ROWS)
                    .ok_or_else(|| Error::overflow(format_args!("the padded rows of {what}")))?;
                let rows = divide(what, "padded vocabulary", padded, tp)?;
                Shard::Vocab {
                    rows,
                    width: *width,
                    bias: if *bias { rows } else { 0 },
                }
            }
            Op::Tensor { shape, split } => {
                let mut local = shape.clone();
                if let Some(size) = split.and_then(|i| local.get_mut(i)) {
                    *size = divide(what, "dimension", *size, tp)?;
                }
                Shard::Plain {
                    elements: mul(what, &local)?,
                }
            }
        })
    }

    /// Bytes of all copies on one rank, unquantised; `model` is the element type where none is fixed.
    ///
    /// # Errors
    /// As [`Weight::shard`].
    pub fn bytes(&self, parallel: &Parallel, model: Dtype) -> Result<u64> {
        let elements = self.shard(parallel)?.elements(&self.name)?;
        mul(
            &self.name,
            &[self.dtype.unwrap_or(model).bytes(elements)?, self.count],
        )
    }
}

impl Shard {
    /// Elements of the shard, biases included; `what` names it in errors.
    ///
    /// # Errors
    /// If the count leaves 64 bits.
    pub fn elements(&self, what: &str) -> Result<u64> {
        match self {
            Self::Linear {
                inputs,
                outputs,
                bias,
                ..
            } => sum(what, &[mul(what, &[*inputs, sum(what, outputs)?])?, *bias]),
            Self::Experts {
                experts,
                hidden,
                intermediate,
                parts,
                bias,
            } => {
                let first = mul(what, &[*parts, *intermediate])?;
                let rows = sum(what, &[first, *intermediate])?;
                let biases = if *bias { sum(what, &[first, *hidden])? } else { 0 };
                mul(
                    what,
                    &[*experts, sum(what, &[mul(what, &[rows, *hidden])?, biases])?],
                )
            }
            Self::Vocab { rows, width, bias } => sum(what, &[mul(what, &[*rows, *width])?, *bias]),
            Self::Plain { elements } => Ok(*elements),
        }
    }
}
