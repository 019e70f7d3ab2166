//! Parameters as an engine allocates them: enough structure to shard, quantise and multiply.

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

/// Shape and sharding rule, in full (unsharded) dimensions.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// One or several matrices fused along their outputs.
    Linear {
        /// Input width.
        inputs: u64,
        /// Output widths of the fused parts (gate and up are two).
        outputs: Vec<u64>,
        /// How it is cut.
        split: Split,
        /// Whether it has a bias.
        bias: bool,
    },
    /// Fused query, key and value projection: key/value heads are divided or replicated.
    Qkv {
        /// Input width.
        inputs: u64,
        /// Query heads.
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
