//! Gated delta networks in one kernel (llama.cpp b11434, `src/models/delta-net-base.cpp`, `src/models/qwen3next.cpp`,
//! `src/models/qwen35.cpp`).

use super::builder::{Builder, F32, times};
use super::recurrent::States;
use super::tensor::{Id, Op};
use crate::engine::llamacpp::keys::Ssm;

impl Builder<'_> {
    /// How strongly each head forgets and writes: (gate, beta).
    fn gates(&mut self, x: Id, layer: usize) -> (Id, Id) {
        let Ssm {
            rank: heads, groups, ..
        } = self.model.keys.ssm;
        let (n, each) = self.sequences();
        let (alpha, beta) = if self.has(layer, "ssm_ba.weight") {
            let both = self.product(x, layer, "ssm_ba.weight");
            let share = heads / groups.max(1);
            let both = self.shaped(both, [share.saturating_mul(2), groups, each, n]);
            let [b, a] = [0; 2].map(|_| self.part(both, [share, groups, each, n]));
            let b = self.copy(b);
            let beta = self.each(b);
            (self.copy_as(a, [heads, each, n, 1]), beta)
        } else {
            let beta = self.product(x, layer, "ssm_beta.weight");
            let beta = self.scaled_by(beta, layer, "ssm_beta.scale");
            let beta = self.shaped(beta, [1, heads, each, n]);
            let beta = self.each(beta);
            let alpha = self.product(x, layer, "ssm_alpha.weight");
            let alpha = self.scaled_by(alpha, layer, "ssm_alpha.scale");
            (self.shaped(alpha, [heads, each, n, 1]), beta)
        };
        let alpha = self.biased(alpha, layer, "ssm_dt.bias");
        let alpha = self.each(alpha);
        let a = self.given(layer, "ssm_a");
        let gate = self.both(alpha, a);
        let beta = self.shaped(beta, [1, heads, each, n]);
        (self.shaped(gate, [1, heads, each, n]), beta)
    }

    /// Queries, keys and values in one, and the gate of the result.
    fn mixed(&mut self, x: Id, layer: usize) -> (Id, Id) {
        let Ssm {
            state, groups, inner, ..
        } = self.model.keys.ssm;
        let (n, each) = self.sequences();
        if self.has(layer, "attn_qkv.weight") {
            let mixed = self.product(x, layer, "attn_qkv.weight");
            let mixed = self.scaled_by(mixed, layer, "attn_qkv.scale");
            let width = self.graph.ne(mixed)[0];
            let mixed = self.shaped(mixed, [width, each, n, 1]);
            let z = self.product(x, layer, "attn_gate.weight");
            return (mixed, self.scaled_by(z, layer, "attn_gate.scale"));
        }
        // Files of the first converters: everything in one product, by key head.
        let all = self.product(x, layer, "ssm_in.weight");
        let share = inner / groups.max(1);
        let width = times(&[2, state]).saturating_add(times(&[2, share]));
        let all = self.shaped(all, [width, groups, each, n]);
        let [q, k, v, z] = [state, state, share, share].map(|w| self.part(all, [w, groups, each, n]));
        let z = self.copy(z);
        let [q, k, v] = [(q, state), (k, state), (v, share)]
            .map(|(id, w)| self.copy_as(id, [w.saturating_mul(groups), each, n, 1]));
        let mixed = self.joined(q, k, 0);
        (self.joined(mixed, v, 0), z)
    }

    /// A layer of a gated delta network; `repeats` where queries and keys are copied for every head of values.
    pub(super) fn delta_layer(&mut self, x: Id, layer: usize, states: &States, repeats: bool) -> Id {
        let Ssm {
            kernel,
            inner,
            state,
            rank: heads,
            groups,
        } = self.model.keys.ssm;
        let (n, each) = self.sequences();
        let values = inner / heads.max(1);
        let (mixed, z) = self.mixed(x, layer);
        let (gate, beta) = self.gates(x, layer);
        let input = self.convolution_input(mixed, layer, kernel.saturating_sub(1), states);
        let cache = self.state_cache(layer, false);
        let before = self.loaded(cache, states, None);
        let before = self.shaped(before, [values, values, heads, n]);
        let mixed = self.convolved(input, layer, "ssm_conv1d.weight");
        let mixed = self.each(mixed);
        let nb = self.graph.tensors[mixed].nb;
        let view = |g: &mut Self, size: u64, count: u64| {
            g.graph.view(
                mixed,
                [size, count, each, n],
                Some([4, size.saturating_mul(4), nb[1], nb[2]]),
            )
        };
        let (q, k, v) = (
            view(self, state, groups),
            view(self, state, groups),
            view(self, values, heads),
        );
        let mut both = [q, k].map(|x| {
            let normed = self
                .graph
                .compute(Op::InPlace, F32, [state, groups, each, n], &[x]);
            self.each(normed)
        });
        if repeats && groups != heads && groups > 0 {
            both = both.map(|x| self.shaped(x, [state, 1, groups, each.saturating_mul(n)]));
            both = both.map(|x| self.copy_as(x, [state, heads / groups, groups, each.saturating_mul(n)]));
            both = both.map(|x| self.shaped(x, [state, heads, each, n]));
        }
        let [q, k] = both;
        let width = times(&[values, heads]);
        let rows = times(&[each, n]).saturating_add(times(&[values, n]));
        let out = self.graph.compute(
            Op::Other,
            F32,
            [width, rows, 1, 1],
            &[q, k, v, gate, beta, before],
        );
        let y = self.shaped(out, [values, heads, each, n]);
        let after = self.shaped(out, [values, values, heads, n]);
        let to = self.part(cache, [times(&[values, values, heads]), n, 1, 1]);
        let written = self.write_to(after, to);
        self.graph.expand(written);
        let z = self.shaped(z, [values, heads, each, n]);
        let normed = self.norm(y, layer, "ssm_norm.weight", true);
        let z = self.each(z);
        let gated = self.both(normed, z);
        let gated = self.shaped(gated, [width, each, n, 1]);
        let out = self.product(gated, layer, "ssm_out.weight");
        let out = self.scaled_by(out, layer, "ssm_out.scale");
        let width = self.graph.ne(out)[0];
        self.shaped(out, [width, self.batch.tokens, 1, 1])
    }
}
