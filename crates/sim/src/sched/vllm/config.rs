//! The scheduler's settings, by vLLM's names.

use kvwise_cache::manager::{GroupKind, GroupSpec, ManagerConfig, Retention};
use kvwise_cache::pool::ReleaseOrder;
use kvwise_core::{Error, Result};

use super::Speculation;

/// Which waiting request goes first, and which running one is preempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// First come, first served; the last running request is preempted.
    #[default]
    Fcfs,
    /// Smallest priority value first, ties by arrival; the largest (priority, arrival) is preempted.
    Priority,
}

/// What is done at a junction: differs between releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Junctions {
    /// Nothing: releases that do not look for them.
    Ignored,
    /// Chunks of models with Mamba states end there.
    EndChunks,
    /// Blocks that end there are also named under sparse retention; the rule of vLLM 0.32.0.
    #[default]
    Retained,
}

/// Settings of a [`Scheduler`](super::Scheduler); defaults are those of vLLM 0.32.0's library use on a small GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// Blocks in the pool, the null block included.
    pub num_blocks: u32,
    /// Groups of layers.
    pub groups: Vec<GroupSpec>,
    /// Longest sequence, in tokens.
    pub max_model_len: u32,
    /// Requests that may run at once.
    pub max_num_seqs: u32,
    /// Tokens computed in a step.
    pub max_num_batched_tokens: u32,
    /// Batches under way at once; 2 under asynchronous scheduling. Only sizes admission, steps stay synchronous.
    pub concurrent_batches: u32,
    /// Share of the pool kept free when a request is admitted beside running ones.
    pub watermark: f64,
    /// Order of requests.
    pub policy: Policy,
    /// Whether prefixes are shared.
    pub prefix_caching: bool,
    /// Which blocks of sparse groups are named.
    pub retention: Retention,
    /// What is done where a request parts from a prefix that only layers of full attention have cached.
    pub junctions: Junctions,
    /// Admit a request only if its whole known sequence fits, not only its first chunk.
    pub reserve_full_isl: bool,
    /// Where released blocks go: differs between releases.
    pub release_order: ReleaseOrder,
    /// Drafts that decoding requests verify.
    pub speculation: Option<Speculation>,
    /// Different LoRA adapters in one batch (`max_loras`); no limit where adapters are not served.
    pub max_loras: Option<u32>,
}

impl SchedulerConfig {
    /// Defaults for a pool of `num_blocks` blocks of `block_size` tokens, one group of full attention.
    pub fn new(num_blocks: u32, block_size: u32) -> Self {
        Self {
            num_blocks,
            groups: vec![GroupSpec::full(block_size)],
            max_model_len: 32_768,
            max_num_seqs: 256,
            max_num_batched_tokens: 8192,
            concurrent_batches: 1,
            watermark: 0.0,
            policy: Policy::default(),
            prefix_caching: true,
            retention: Retention::default(),
            junctions: Junctions::default(),
            reserve_full_isl: true,
            release_order: ReleaseOrder::default(),
            speculation: None,
            max_loras: None,
        }
    }

    /// Refuses what vLLM refuses at start, and what leaves 32 bits.
    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [
            ("--num-blocks", self.num_blocks),
            ("--max-model-len", self.max_model_len),
            ("--max-num-seqs", self.max_num_seqs),
            ("--max-num-batched-tokens", self.max_num_batched_tokens),
        ] {
            if value == 0 {
                return Err(Error::input(format!("{name} is 0, expected at least 1")));
            }
        }
        if self.max_loras == Some(0) {
            return Err(Error::input("--max-loras is 0, expected at least 1"));
        }
        if self.num_blocks < 2 {
            return Err(Error::input(
                "--num-blocks is 1, but block 0 is the null block that no request can use",
            )
            .hint("pass at least 2"));
        }
        if self.max_num_batched_tokens < self.max_num_seqs {
            return Err(Error::input(format!(
                "--max-num-batched-tokens is {} and --max-num-seqs is {}: vLLM needs at least a token for each running request",
                self.max_num_batched_tokens, self.max_num_seqs
            ))
            .hint("lower --max-num-seqs or raise --max-num-batched-tokens"));
        }
        if self.max_num_batched_tokens > u32::MAX / 4 || self.max_num_seqs > 1 << 20 {
            return Err(Error::input(
                "--max-num-batched-tokens or --max-num-seqs is beyond 2^30 tokens or 2^20 requests",
            ));
        }
        let drops_block = self.drops_block();
        if !drops_block && self.groups.iter().any(|group| group.eagle) {
            return Err(Error::input(
                "a group is a drafter's, but no method of speculation with a KV cache of its own is set",
            )
            .hint("name eagle, eagle3, mtp, dflash or dspark in --speculative-config"));
        }
        if let Some(speculation) = &self.speculation {
            speculation.check(self)?;
        }
        Ok(())
    }

    pub(super) fn manager(&self) -> ManagerConfig {
        ManagerConfig {
            max_model_len: self.max_model_len,
            max_in_flight_tokens: self
                .max_num_batched_tokens
                .saturating_mul(self.concurrent_batches),
            caching: self.prefix_caching,
            retention: self.retention,
            watermark: self.watermark,
            release_order: self.release_order,
            use_eagle: self.drops_block(),
            ..ManagerConfig::new(self.num_blocks, self.groups_with_drafts())
        }
    }

    /// The junction that named blocks are kept for; 0 for none.
    pub(super) fn retained_junction(&self, boundary: u32) -> u32 {
        if self.junctions == Junctions::Retained {
            boundary
        } else {
            0
        }
    }

    /// Whether a drafter computes the last block of a prefix hit again.
    pub(super) fn drops_block(&self) -> bool {
        self.speculation.as_ref().is_some_and(Speculation::drops_block)
    }

    /// The groups; those of Mamba layers with a state for each draft.
    fn groups_with_drafts(&self) -> Vec<GroupSpec> {
        let drafts = self
            .speculation
            .as_ref()
            .map_or(0, |speculation| speculation.draft_tokens);
        let mut groups = self.groups.clone();
        for group in &mut groups {
            if let GroupKind::MambaAlign {
                speculative_blocks, ..
            } = &mut group.kind
            {
                *speculative_blocks = drafts;
            }
        }
        groups
    }

    /// Whether prefill chunks must end where a Mamba state can be kept.
    pub(super) fn mamba_align(&self) -> Option<MambaAlign> {
        let mut align = None;
        for group in &self.groups {
            if let GroupKind::MambaAlign {
                checkpoint_alignment, ..
            } = group.kind
            {
                align.get_or_insert(MambaAlign {
                    block_size: group.block_size,
                    checkpoint_alignment,
                });
            }
        }
        align.filter(|_| self.prefix_caching)
    }
}

/// The rule for chunk ends of models with Mamba layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct MambaAlign {
    pub(super) block_size: u32,
    pub(super) checkpoint_alignment: Option<u32>,
}
