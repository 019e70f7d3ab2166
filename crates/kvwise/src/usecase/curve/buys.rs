//! What more room would buy a deployment: the hit rate at its own capacity, at twice that, and with further tiers.

use kvwise_core::Result;
use kvwise_sim::curve::{Curve, Semantics, belady_hit_blocks};
use kvwise_sim::trace::BlockPaths;

use super::{Room, is_gpu, rate};
use crate::report::curve::{BuyRow, DeploymentRow};
use crate::usecase::kv_room::KvRoom;

/// The cache that there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Whose it is, for people.
    pub name: String,
    /// How much it holds.
    pub room: Room,
    /// GPUs that share it.
    pub gpus: u64,
    /// Tokens of a block and blocks of a pool whose blocks are blocks of the prompt: vLLM's, with its null block.
    pub pool: Option<(u64, u64)>,
}

impl Held {
    /// The cache of a planned deployment; `None` if it has none because it would not start.
    pub fn of(room: &KvRoom) -> Option<Self> {
        room.refused.is_none().then(|| Self {
            name: room.name.clone(),
            room: Room::Tokens(room.capacity_tokens),
            gpus: room.gpus,
            pool: room.one_group.then_some((room.block_size, room.num_blocks)),
        })
    }

    /// An amount that the user states.
    pub fn stated(room: Room) -> Self {
        Self {
            name: "the cache stated by --have".to_owned(),
            room,
            gpus: 1,
            pool: None,
        }
    }

    /// Usable blocks of the curve.
    pub(super) fn blocks(&self, curve: &Curve, kv_bytes_per_token: Option<u64>) -> Result<u64> {
        if let (Some((block_size, num_blocks)), Semantics::Vllm) = (self.pool, curve.semantics)
            && block_size == u64::from(curve.block_tokens)
        {
            return Ok(num_blocks.saturating_sub(1));
        }
        self.room.blocks(curve.block_tokens, kv_bytes_per_token)
    }
}

/// What the answer is computed from.
pub(super) struct Scene<'a> {
    pub(super) curve: &'a Curve,
    pub(super) paths: &'a BlockPaths,
    pub(super) input_lens: &'a [u32],
    pub(super) kv_bytes_per_token: Option<u64>,
    pub(super) belady: bool,
}

impl Scene<'_> {
    /// The deployment's own point, and what twice its memory, the tiers behind it and unlimited room add.
    pub(super) fn deployment(
        &self,
        held: &Held,
        capacity_blocks: u64,
        tiers: &[(String, u64)],
    ) -> Result<DeploymentRow> {
        let curve = self.curve;
        let own_tokens = self.hit_tokens(capacity_blocks)?;
        let mut wishes = vec![("2x the KV memory".to_owned(), capacity_blocks.saturating_mul(2))];
        let mut behind = capacity_blocks;
        for (name, blocks) in tiers.iter().filter(|(name, _)| !is_gpu(name)) {
            behind = behind.saturating_add(*blocks);
            let added = match wishes.len() {
                1 => format!("a {name} tier of {blocks} blocks"),
                _ => format!("and a {name} tier of {blocks} blocks"),
            };
            wishes.push((added, behind));
        }
        wishes.push((
            "unlimited room".to_owned(),
            curve.capacity_needed().max(capacity_blocks),
        ));
        let prompt_left = curve.input_tokens.saturating_sub(own_tokens);
        let buys = wishes
            .into_iter()
            .map(|(what, blocks)| {
                let hit_tokens = self.hit_tokens(blocks)?;
                let more = i128::from(hit_tokens) - i128::from(own_tokens);
                Ok(BuyRow {
                    what,
                    capacity_blocks: blocks,
                    hit_tokens,
                    hit_rate_tokens: rate(hit_tokens, curve.input_tokens),
                    // a larger vLLM pool may hit less where it stops refusing long requests
                    more_hit_tokens: i64::try_from(more).unwrap_or(i64::MAX),
                    less_prefill_share: if prompt_left == 0 {
                        0.0
                    } else {
                        more as f64 / prompt_left as f64
                    },
                })
            })
            .collect::<Result<_>>()?;
        let capacity_tokens = capacity_blocks.saturating_mul(u64::from(curve.block_tokens));
        Ok(DeploymentRow {
            name: held.name.clone(),
            gpus: held.gpus,
            capacity_blocks,
            capacity_tokens,
            capacity_bytes_per_gpu: self.kv_bytes_per_token.map(|b| capacity_tokens.saturating_mul(b)),
            hit_tokens: own_tokens,
            hit_rate_tokens: rate(own_tokens, curve.input_tokens),
            share_of_ideal_tokens: rate(own_tokens, curve.ideal_hit_tokens()),
            belady_hit_blocks: self
                .belady
                .then(|| belady_hit_blocks(self.paths, capacity_blocks)),
            buys,
        })
    }

    fn hit_tokens(&self, capacity_blocks: u64) -> Result<u64> {
        if capacity_blocks == 0 {
            return Ok(0);
        }
        let point = self.curve.point(self.paths, self.input_lens, capacity_blocks)?;
        Ok(point.hit_tokens)
    }
}
