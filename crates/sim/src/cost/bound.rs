//! What no implementation can beat: each resource busy all the time at its datasheet rate.

use super::kernel::{AttentionShape, Format};
use super::stack::{Attention, EXPANDED_HEAD_DIM, SPARSE_TOKENS};
use super::step::{Batch, StepModel};

/// Least time of one step by resource, seconds; the step takes at least as long as the largest.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct Bound {
    /// Operations at the peak rate of their format.
    pub compute_s: f64,
    /// Weights, caches and states read once at the memory's bandwidth.
    pub memory_s: f64,
    /// Partial sums over the links between GPUs.
    pub link_s: f64,
}

impl Bound {
    /// The lower bound, seconds.
    pub fn seconds(&self) -> f64 {
        self.compute_s.max(self.memory_s).max(self.link_s)
    }

    /// Adds `n` times `other`.
    pub fn add(&mut self, other: &Self, n: f64) {
        self.compute_s += other.compute_s * n;
        self.memory_s += other.memory_s * n;
        self.link_s += other.link_s * n;
    }
}

impl StepModel {
    /// First-principles lower bound of a step without pipeline parallelism or speculation (zero for an empty batch).
    ///
    /// Counted: matrix products, attention, experts that a uniform router would activate, one pass over the weights
    /// and the cache, `(ranks - 1) / ranks` of each partial sum over a rank's link. Left out: everything else.
    pub fn bound(&self, batch: &Batch<'_>) -> Bound {
        let tokens = batch.tokens();
        let mut total = Bound::default();
        if tokens <= 0.0 {
            return total;
        }
        let gpu = &self.gpu;
        let product = |format: Format, m: f64, n: f64, k: f64| Bound {
            compute_s: 2.0 * m * n * k / format.rate,
            memory_s: format.weight_bytes * n * k / gpu.bw,
            link_s: 0.0,
        };
        for stack in &self.stacks {
            let mut layer = Bound::default();
            for p in &stack.products {
                layer.add(&product(self.linear, tokens, p.n, p.k), p.count);
            }
            for p in &stack.router {
                layer.add(&product(self.linear16, tokens, p.n, p.k), p.count);
            }
            if let Some(experts) = &stack.experts {
                let s = experts.shape;
                let all = tokens + batch.peer_tokens;
                let idle = (1.0 - s.top_k / s.experts).powf(all);
                let active = s.experts / s.ep * (1.0 - idle);
                let matrix = s.matrices * s.hidden * s.intermediate / s.tp;
                layer.add(
                    &Bound {
                        compute_s: 2.0 * all * s.top_k / s.ep * matrix / self.experts.rate,
                        memory_s: active * matrix * self.experts.weight_bytes / gpu.bw,
                        link_s: 0.0,
                    },
                    1.0,
                );
            }
            for attention in &stack.attention {
                layer.add(&self.attention_bound(attention, batch), 1.0);
            }
            let ranks = self.options.tp as f64;
            layer.link_s += stack.reductions * tokens * self.hidden * 2.0 * (ranks - 1.0) / ranks / gpu.link;
            total.add(&layer, stack.layers);
        }
        let sampled = (batch.decode_sequences as f64 + batch.prefills.len() as f64).max(1.0);
        total.add(&product(self.linear16, sampled, self.head.n, self.head.k), 1.0);
        total
    }

    fn attention_bound(&self, attention: &Attention, batch: &Batch<'_>) -> Bound {
        let gpu = &self.gpu;
        let sequences = batch.decode_sequences as f64;
        let mut b = Bound::default();
        let pairs_of = |new: f64, past: f64, window: Option<f64>| {
            let pairs = new * past + new * (new + 1.0) / 2.0;
            window.map_or(pairs, |w| pairs.min(new * w))
        };
        match attention {
            Attention::Heads { shape, window, .. } => {
                let AttentionShape {
                    heads,
                    kv_heads,
                    head_dim,
                    kv_bytes,
                } = *shape;
                let seen = window.map_or(batch.mean_context(), |w| batch.mean_context().min(w));
                b.memory_s += 2.0 * sequences * seen * kv_heads * head_dim * kv_bytes / gpu.bw;
                b.compute_s += 4.0 * sequences * seen * heads * head_dim / gpu.f16;
                for p in batch.prefills {
                    let pairs = pairs_of(p.new_tokens as f64, p.past_tokens as f64, *window);
                    b.compute_s += 4.0 * heads * head_dim * pairs / gpu.f16;
                }
            }
            Attention::Latent {
                heads,
                width,
                kv_bytes,
                sparse,
                ..
            } => {
                let limit = sparse.then_some(SPARSE_TOKENS);
                let seen = limit.map_or(batch.mean_context(), |w| batch.mean_context().min(w));
                b.memory_s += width * sequences * seen * kv_bytes / gpu.bw;
                b.compute_s += 2176.0 / 576.0 * width * sequences * seen * heads / gpu.f16;
                for p in batch.prefills {
                    let pairs = pairs_of(p.new_tokens as f64, p.past_tokens as f64, limit);
                    b.compute_s += 4.0 * heads * EXPANDED_HEAD_DIM * pairs / gpu.f16;
                }
            }
            Attention::Indexer { bytes_per_token } => {
                b.memory_s += batch.decode_context_tokens * bytes_per_token / gpu.bw;
            }
            Attention::State {
                bytes_per_sequence,
                flops_per_token,
            } => {
                let active = sequences + batch.prefills.len() as f64;
                b.memory_s += 2.0 * active * bytes_per_sequence / gpu.bw;
                b.compute_s += batch.tokens() * flops_per_token / gpu.f16;
            }
        }
        b
    }
}
