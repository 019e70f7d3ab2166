//! Parameters as an engine allocates them: enough structure to shard, quantise and multiply.

use super::Parallel;
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Rows of embeddings and output heads are padded to a multiple of this before they are divided
/// (vLLM 0.32.0, `vllm/model_executor/layers/vocab_parallel_embedding.py`).
pub const VOCAB_PADDING_ROWS: u64 = 64;

/// One parameter or fused module.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    /// Module path below its layer (`self_attn.qkv_proj`): quantisation ignore lists and reports use it.
    pub name: String,
    /// What it is for; step-time and reports group by it.
    pub role: Role,
    /// Shape and sharding.
    pub op: Op,
    /// Element type where the engine fixes one (float32 routers); `None` follows the model.
    pub dtype: Option<Dtype>,
    /// Identical copies with this shape.
    pub count: u64,
    /// Whether the engine gives this module a quantisation method where the checkpoint has one
    /// (`false`: built with `quant_config=None`, so it stays in `dtype` whatever the checkpoint says).
    pub quantizable: bool,
    /// A count (of heads) that the ranks must divide for this to be split at all; otherwise every rank holds it
    /// whole (vision towers that fall back to data parallelism).
    pub whole_unless_divides: Option<u64>,
}

/// What a parameter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Token or position embedding.
    Embedding,
    /// Output head.
    Head,
    /// Norms, biases and other vectors.
    Norm,
    /// Projections of attention, convolution and state layers.
    Attention,
    /// Dense feed-forward.
    Mlp,
    /// Router of a mixture of experts.
    Router,
    /// Routed experts.
    Experts,
    /// Shared expert.
    SharedExpert,
    /// Recurrent state parameters.
    State,
    /// Vision or audio tower and its projector.
    Tower,
}

/// How a matrix is cut over tensor-parallel ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// Every rank holds all of it.
    Replicated,
    /// Outputs are divided.
    Column,
    /// Inputs are divided; a bias stays whole.
    Row,
}

/// One of the matrices that a projection fuses along its outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// This many outputs, divided evenly; a remainder is refused.
    Even(u64),
    /// `units` groups of `width` outputs: divided by whole groups, and where there are fewer groups than ranks
    /// (or the ranks do not divide them) every rank holds one.
    Groups {
        /// Number of groups (key/value heads, state groups).
        units: u64,
        /// Outputs of one group.
        width: u64,
    },
    /// This many outputs on every rank.
    Whole(u64),
}

impl From<u64> for Part {
    fn from(outputs: u64) -> Self {
        Self::Even(outputs)
    }
}

/// Shape and sharding rule, in full (unsharded) dimensions.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// One or several matrices fused along their outputs.
    Linear {
        /// Input width.
        inputs: u64,
        /// The fused parts (gate and up are two).
        outputs: Vec<Part>,
        /// How it is cut.
        split: Split,
        /// Whether it has a bias.
        bias: bool,
    },
    /// Fused query, key and value projection: key/value heads are divided or replicated.
    Qkv {
        /// Input width.
        inputs: u64,
        /// Query heads (twice the number where queries carry an output gate).
        heads: u64,
        /// Key/value heads.
        kv_heads: u64,
        /// Elements of a query or key head.
        head_dim: u64,
        /// Elements of a value head.
        head_dim_v: u64,
        /// Whether it has a bias.
        bias: bool,
    },
    /// Routed experts, `w13 [experts, 2*intermediate, hidden]` and `w2 [experts, hidden, intermediate]`.
    Experts {
        /// Routed experts in the layer.
        experts: u64,
        /// Experts that one token uses.
        top_k: u64,
        /// Model width.
        hidden: u64,
        /// Width of one expert.
        intermediate: u64,
        /// Whether gate and up are both there.
        gated: bool,
        /// Whether experts have biases.
        bias: bool,
    },
    /// Rows padded to a multiple of 64 and divided (token embedding, output head).
    Vocab {
        /// Unpadded rows.
        rows: u64,
        /// Row width.
        width: u64,
        /// Whether a bias of one element a row is there.
        bias: bool,
    },
    /// Any other parameter; `split` is the dimension that ranks divide.
    Tensor {
        /// Full shape.
        shape: Vec<u64>,
        /// Divided dimension, if any.
        split: Option<usize>,
    },
}

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
    /// A parameter with this name, role and shape.
    pub fn new(name: impl Into<String>, role: Role, op: Op) -> Self {
        Self {
            name: name.into(),
            role,
            op,
            dtype: None,
            count: 1,
            quantizable: true,
            whole_unless_divides: None,
        }
    }

    /// A projection whose outputs are divided over the ranks; several outputs are fused.
    pub fn column(name: impl Into<String>, role: Role, inputs: u64, outputs: &[u64]) -> Self {
        Self::linear(name, role, inputs, outputs, Split::Column)
    }

    /// A projection whose inputs are divided over the ranks.
    pub fn row(name: impl Into<String>, role: Role, inputs: u64, outputs: u64) -> Self {
        Self::linear(name, role, inputs, &[outputs], Split::Row)
    }

    /// A projection that every rank holds whole.
    pub fn replicated(name: impl Into<String>, role: Role, inputs: u64, outputs: &[u64]) -> Self {
        Self::linear(name, role, inputs, outputs, Split::Replicated)
    }

    fn linear(name: impl Into<String>, role: Role, inputs: u64, outputs: &[u64], split: Split) -> Self {
        let outputs = outputs.iter().map(|&n| Part::Even(n)).collect();
        Self::new(
            name,
            role,
            Op::Linear {
                inputs,
                outputs,
                split,
                bias: false,
            },
        )
    }

    /// A column-parallel projection whose parts divide by different rules.
    pub fn parts(name: impl Into<String>, role: Role, inputs: u64, outputs: Vec<Part>) -> Self {
        Self::new(
            name,
            role,
            Op::Linear {
                inputs,
                outputs,
                split: Split::Column,
                bias: false,
            },
        )
    }

    /// The fused query, key and value projection of an attention layer.
    pub fn qkv(name: impl Into<String>, inputs: u64, heads: u64, kv_heads: u64, head_dim: u64) -> Self {
        let op = Op::Qkv {
            inputs,
            heads,
            kv_heads,
            head_dim,
            head_dim_v: head_dim,
            bias: false,
        };
        Self::new(name, Role::Attention, op)
    }

    /// Routed experts with a gate and without biases.
    pub fn experts(
        name: impl Into<String>,
        experts: u64,
        top_k: u64,
        hidden: u64,
        intermediate: u64,
    ) -> Self {
        let op = Op::Experts {
            experts,
            top_k,
            hidden,
            intermediate,
            gated: true,
            bias: false,
        };
        Self::new(name, Role::Experts, op)
    }

    /// A token embedding or output head.
    pub fn vocab(name: impl Into<String>, role: Role, rows: u64, width: u64) -> Self {
        Self::new(
            name,
            role,
            Op::Vocab {
                rows,
                width,
                bias: false,
            },
        )
    }

    /// A vector that every rank holds whole (a norm's scale).
    pub fn norm(name: impl Into<String>, width: u64) -> Self {
        Self::tensor(name, Role::Norm, &[width], None)
    }

    /// Any other parameter; `split` is the dimension that ranks divide.
    pub fn tensor(name: impl Into<String>, role: Role, shape: &[u64], split: Option<usize>) -> Self {
        Self::new(
            name,
            role,
            Op::Tensor {
                shape: shape.to_vec(),
                split,
            },
        )
    }

    /// The same with or without a bias; a plain tensor is returned as it is.
    #[must_use]
    pub fn bias(mut self, has: bool) -> Self {
        match &mut self.op {
            Op::Linear { bias, .. }
            | Op::Qkv { bias, .. }
            | Op::Experts { bias, .. }
            | Op::Vocab { bias, .. } => {
                *bias = has;
            }
            Op::Tensor { .. } => {}
        }
        self
    }

    /// The same with another width of value heads; changes only a query/key/value projection.
    #[must_use]
    pub fn value_head_dim(mut self, width: u64) -> Self {
        if let Op::Qkv { head_dim_v, .. } = &mut self.op {
            *head_dim_v = width;
        }
        self
    }

    /// The same without a gate; changes only experts.
    #[must_use]
    pub fn ungated(mut self) -> Self {
        if let Op::Experts { gated, .. } = &mut self.op {
            *gated = false;
        }
        self
    }

    /// The same in an element type that the engine fixes.
    #[must_use]
    pub fn of(mut self, dtype: Dtype) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// The same, `count` times.
    #[must_use]
    pub fn times(mut self, count: u64) -> Self {
        self.count = count;
        self
    }

    /// The same, built by the engine without a quantisation method.
    #[must_use]
    pub fn unquantized(mut self) -> Self {
        self.quantizable = false;
        self
    }

    /// The same, whole on every rank where the ranks do not divide `count`.
    #[must_use]
    pub fn whole_unless_divides(mut self, count: u64) -> Self {
        self.whole_unless_divides = Some(count);
        self
    }

    /// The same with another role.
    #[must_use]
    pub fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

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
        let whole = self.role == Role::SharedExpert && parallel.sequence_parallel_experts()
            || self
                .whole_unless_divides
                .is_some_and(|n| parallel.tp > 0 && !n.is_multiple_of(parallel.tp));
        let tp = if whole { 1 } else { parallel.tp };
        Ok(match &self.op {
            Op::Linear {
                inputs,
                outputs,
                split,
                bias,
            } => {
                let outputs_on_rank = outputs
                    .iter()
                    .map(|p| {
                        if *split == Split::Column {
                            p.on_rank(what, tp)
                        } else {
                            p.full(what)
                        }
                    })
                    .collect::<Result<Vec<_>>>()?;
                let bias = if *bias { sum(what, &outputs_on_rank)? } else { 0 };
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
                }
            }
            Op::Experts {
                experts,
                hidden,
                intermediate,
                gated,
                bias,
                ..
            } => {
                let ranks = parallel.expert_ranks()?;
                let (experts, intermediate) = if parallel.expert_parallel {
                    // The first ranks take one more expert where the division leaves a remainder.
                    (experts.div_ceil(ranks), *intermediate)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(w: &Weight, tp: u64) -> u64 {
        w.bytes(&Parallel::tensor(tp), Dtype::Bf16).unwrap()
    }

    #[test]
    fn a_vocabulary_is_padded_to_64_rows_before_it_is_divided() {
        // GPT-2: 50257 rows become 50304.
        let w = Weight::vocab("wte", Role::Embedding, 50257, 768);
        assert_eq!(bytes(&w, 1), 50304 * 768 * 2);
        assert_eq!(bytes(&w, 8), 50304 / 8 * 768 * 2);
        assert_eq!(w.elements().unwrap(), 50257 * 768);
    }

    #[test]
    fn key_value_heads_are_replicated_when_there_are_more_ranks_than_heads() {
        let w = Weight::qkv("qkv", 4096, 32, 8, 128);
        assert_eq!(bytes(&w, 8), 4096 * (4 + 1 + 1) * 128 * 2);
        assert_eq!(bytes(&w, 16), 4096 * (2 + 1 + 1) * 128 * 2);
        assert!(
            Weight::qkv("qkv", 4096, 20, 5, 128)
                .bytes(&Parallel::tensor(2), Dtype::Bf16)
                .is_err()
        );
        assert!(
            Weight::qkv("qkv", 4096, 36, 8, 128)
                .bytes(&Parallel::tensor(12), Dtype::Bf16)
                .is_err()
        );
    }

    #[test]
    fn the_bias_of_a_row_parallel_projection_stays_whole() {
        let w = Weight::row("o_proj", Role::Attention, 1024, 512).bias(true);
        assert_eq!(bytes(&w, 4), (256 * 512 + 512) * 2);
        let w = Weight::column("up", Role::Mlp, 512, &[1024, 1024]).bias(true);
        assert_eq!(bytes(&w, 4), (512 * 512 + 512) * 2);
    }

    #[test]
    fn experts_are_sliced_without_and_dealt_out_with_expert_parallelism() {
        let w = Weight::experts("experts", 10, 2, 64, 32);
        assert_eq!(bytes(&w, 4), 10 * 3 * 64 * 8 * 2);
        let ep = Parallel {
            tp: 4,
            expert_parallel: true,
            ..Parallel::default()
        };
        assert_eq!(w.bytes(&ep, Dtype::Bf16).unwrap(), 3 * 3 * 64 * 32 * 2);
        let dp = Parallel {
            tp: 2,
            dp: 2,
            ..Parallel::default()
        };
        assert_eq!(w.bytes(&dp, Dtype::Bf16).unwrap(), bytes(&w, 4));
        assert_eq!(w.active_elements().unwrap(), 2 * 3 * 64 * 32);
        assert!(
            Weight::experts("experts", 8, 2, 64, 1407)
                .shard(&Parallel::tensor(2))
                .is_err()
        );
    }

    #[test]
    fn groups_fewer_than_the_ranks_are_replicated() {
        let parts = vec![
            Part::Even(64),
            Part::Groups { units: 1, width: 16 },
            Part::Whole(3),
        ];
        let w = Weight::parts("in_proj", Role::State, 8, parts);
        assert_eq!(bytes(&w, 4), 8 * (16 + 16 + 3) * 2);
    }

    #[test]
    fn sizes_that_leave_64_bits_and_zero_ranks_are_errors() {
        let w = Weight::column("x", Role::Mlp, u64::MAX, &[u64::MAX]);
        assert!(w.bytes(&Parallel::tensor(1), Dtype::Bf16).is_err());
        assert!(w.elements().is_err());
        assert!(
            Weight::vocab("x", Role::Head, u64::MAX, 1)
                .shard(&Parallel::tensor(1))
                .is_err()
        );
        assert!(
            Weight::column("x", Role::Mlp, 8, &[8])
                .shard(&Parallel::tensor(0))
                .is_err()
        );
        assert!(
            Weight::experts("x", 8, 1, 8, 8)
                .shard(&Parallel::tensor(0))
                .is_err()
        );
    }
}
