//! What a module is to the engine.

use crate::arch::{Op, Role, Weight};

/// What a module is to the engine, by the class of its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A linear layer.
    Linear,
    /// The output head.
    Head,
    /// The table of token embeddings.
    Embedding,
    /// Routed experts.
    Experts,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Linear, Self::Head, Self::Embedding, Self::Experts];

    /// Whether the name of the layer's class holds a target's, in lower case. What is for linear layers is for experts,
    /// which the engine fuses out of them.
    pub(super) fn is(self, target: &str) -> bool {
        match self {
            Self::Linear => ["linear", "columnparallellinear", "rowparallellinear"].contains(&target),
            Self::Head => ["parallellmhead", "lmhead"].contains(&target),
            Self::Embedding => ["embedding", "vocabparallelembedding"].contains(&target),
            Self::Experts => ["linear", "routedexperts"].contains(&target),
        }
    }

    /// What a parameter is; `None` for one without a scheme.
    pub(super) fn of(weight: &Weight) -> Option<Self> {
        if !weight.quantizable {
            return None;
        }
        match weight.op {
            Op::Tensor { .. } => None,
            Op::Experts { .. } => Some(Self::Experts),
            Op::Vocab { .. } if weight.role == Role::Head => Some(Self::Head),
            Op::Vocab { .. } => Some(Self::Embedding),
            Op::Linear { .. } | Op::Qkv { .. } => Some(Self::Linear),
        }
    }
}
