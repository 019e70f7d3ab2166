//! Which parts of a model its bytes belong to, for explanations.

use super::{Held, Inventory, shard_bytes};
use crate::Result;
use crate::arch::{Model, Parallel, Role};
use crate::dtype::Dtype;
use crate::quant::Mxfp4Padding;

/// Parts in the order in which they are told, with their names.
const PARTS: [(Role, &str); 10] = [
    (Role::Experts, "routed experts"),
    (Role::SharedExpert, "shared experts"),
    (Role::Mlp, "feed-forward"),
    (Role::Attention, "attention and mixers"),
    (Role::State, "state parameters"),
    (Role::Router, "routers"),
    (Role::Embedding, "embedding"),
    (Role::Head, "output head"),
    (Role::Tower, "towers"),
    (Role::Norm, "norms"),
];

impl Inventory {
    /// Bytes of each part of the weights on one tensor-parallel rank of a pipeline stage, largest first. Scales of the cache
    /// and of heads that are embeddings are in no part.
    ///
    /// # Errors
    /// As [`Inventory::bytes`].
    pub(crate) fn bytes_by_part(
        &self,
        model: &Model,
        stage: u64,
        parallel: &Parallel,
        (dtype, padding): (Dtype, Mxfp4Padding),
        towers: bool,
    ) -> Result<Vec<(&'static str, u64)>> {
        let mut parts: Vec<(Role, &'static str, u64)> = PARTS.map(|(role, name)| (role, name, 0)).to_vec();
        let mut add = |role: Role, bytes: u64| {
            if let Some((.., sum)) = parts.iter_mut().find(|(known, ..)| *known == role) {
                *sum = sum.saturating_add(bytes);
            }
        };
        for Held { kind, count, .. } in self.held(stage, parallel)? {
            for (weight, scheme) in model.layers[kind.layer].weights.iter().zip(&kind.schemes) {
                let bytes = shard_bytes(weight, *scheme, parallel, dtype, (padding, self.format()))?;
                add(weight.role, bytes.saturating_mul(count));
            }
        }
        for (weight, scheme) in self.outside(model, stage, parallel, towers) {
            add(
                weight.role,
                shard_bytes(weight, scheme, parallel, dtype, (padding, self.format()))?,
            );
        }
        let mut told: Vec<_> = parts
            .into_iter()
            .map(|(_, name, bytes)| (name, bytes))
            .filter(|(_, bytes)| *bytes > 0)
            .collect();
        told.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        Ok(told)
    }
}
