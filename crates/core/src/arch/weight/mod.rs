//! Parameters as an engine allocates them: enough structure to shard, quantise and multiply.

mod shard;
#[cfg(test)]
mod tests;

pub use shard::{Shard, VOCAB_PADDING_ROWS};

use crate::dtype::Dtype;

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
    /// (`false`: built with `quant_config=None`, so it stays in `dtype` whatever the checkpoint says). Of an embedding that
    /// is the head too: whether the engine builds that head with one.
    pub quantizable: bool,
    /// A count (of heads) that the ranks must divide for this to be split at all; otherwise every rank holds it
    /// whole (vision towers that fall back to data parallelism).
    pub whole_unless_divides: Option<u64>,
    /// Whether fused parts are one piece in checkpoints and in the engine, with one scale where parts have one each.
    pub in_one: bool,
    /// Whether every rank holds it whole where tokens are spread over the ranks around experts, in a model of one pipeline
    /// stage; `None` says that shared experts are, on any number of stages, and nothing else is.
    pub whole_where_tokens_spread: Option<bool>,
    /// Whether the ranks of a decode context-parallel group all hold the share of their group.
    pub shared_in_context_group: bool,
    /// What the outputs of a rank are filled up to a multiple of, with zeros behind them; 1 where they are not.
    pub outputs_multiple: u64,
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
        /// Least width of a sliced expert on a rank: narrower slices are filled up (1 in most classes).
        least_width: u64,
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
            in_one: false,
            whole_where_tokens_spread: None,
            shared_in_context_group: false,
            outputs_multiple: 1,
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
            least_width: 1,
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

    /// The same with slices of an expert filled up to a width; changes only experts.
    #[must_use]
    pub fn least_width(mut self, width: u64) -> Self {
        if let Op::Experts { least_width, .. } = &mut self.op {
            *least_width = width;
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

    /// The same, with the outputs of each rank filled up to a multiple.
    #[must_use]
    pub fn outputs_multiple(mut self, multiple: u64) -> Self {
        self.outputs_multiple = multiple;
        self
    }

    /// The same, whole on every rank; experts, embeddings and heads stay as they are.
    #[must_use]
    pub fn undivided(mut self) -> Self {
        self.op = match self.op {
            Op::Linear {
                inputs,
                outputs,
                bias,
                ..
            } => Op::Linear {
                inputs,
                outputs,
                split: Split::Replicated,
                bias,
            },
            Op::Qkv {
                inputs,
                heads,
                kv_heads,
                head_dim,
                head_dim_v,
                bias,
            } => Op::Linear {
                inputs,
                outputs: [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim_v]
                    .map(Part::Even)
                    .to_vec(),
                split: Split::Replicated,
                bias,
            },
            Op::Tensor { shape, .. } => Op::Tensor { shape, split: None },
            other => other,
        };
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
}
