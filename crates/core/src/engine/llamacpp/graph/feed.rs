//! The feed-forward part of a layer: dense, or a router and its experts
//! (llama.cpp b11434, `src/llama-graph.cpp`, `build_ffn` and `build_moe_ffn`).

use super::builder::{Builder, F32};
use super::tensor::{Id, Op};
use crate::engine::llamacpp::GgmlType;
use crate::engine::llamacpp::keys::Gating;

/// What lies between the products of a feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// A gate beside the input, in one operation with its activation.
    Gated,
    /// One product holds input and gate.
    Double,
    /// An activation alone.
    Plain,
    /// A rectifier and its square.
    Squared,
}

/// What one mixture of experts is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Router {
    pub(super) gating: Gating,
    /// Whether the shares of the chosen experts are normalised.
    pub(super) normalised: bool,
    /// Whether they are scaled.
    pub(super) scaled: bool,
    /// Whether experts are chosen by what the router says and not by the shares made of it, and the shares are applied to the
    /// experts' inputs (Llama 4).
    pub(super) before: bool,
    /// Outputs of the router, where they were computed before.
    pub(super) logits: Option<Id>,
    pub(super) act: Act,
}

impl Builder<'_> {
    /// The dense part of a layer; `suffix` names another set of its weights.
    pub(super) fn feed_forward(&mut self, x: Id, layer: usize, suffix: &str, act: Act) -> Id {
        let d = self.decoder;
        let width = d.feed_forward;
        let up_name = format!("ffn_up{suffix}");
        let outputs = if act == Act::Double {
            width.saturating_mul(2)
        } else {
            width
        };
        let mut up = self.linear(x, layer, &format!("{up_name}.weight"), outputs);
        up = self.biased_if(up, layer, &format!("{up_name}.bias"));
        up = self.scaled_by(up, layer, &format!("{up_name}.scale"));
        let hidden = match act {
            Act::Gated => {
                let name = format!("ffn_gate{suffix}");
                let mut gate = self.linear(x, layer, &format!("{name}.weight"), width);
                gate = self.biased_if(gate, layer, &format!("{name}.bias"));
                gate = self.scaled_by(gate, layer, &format!("{name}.scale"));
                self.graph.map(Op::Other, &[gate, up])
            }
            Act::Double => {
                let n = self.graph.ne(up);
                self.copy_as(up, [n[0] / 2, n[1], n[2], n[3]])
            }
            Act::Plain => self.each(up),
            Act::Squared => {
                let rectified = self.each(up);
                self.each(rectified)
            }
        };
        let name = format!("ffn_down{suffix}");
        let mut out = self.linear(hidden, layer, &format!("{name}.weight"), d.embedding);
        out = self.biased_if(out, layer, &format!("{name}.bias"));
        self.scaled_by(out, layer, &format!("{name}.scale"))
    }

    /// One product of the chosen experts, with its scale and bias.
    fn chosen(&mut self, x: Id, chosen: Id, layer: usize, name: &str, outputs: u64) -> Id {
        let d = self.decoder;
        let (inputs, n) = (self.graph.ne(x), self.graph.ne(chosen));
        let weight = self.weight(
            Some(layer),
            &format!("{name}.weight"),
            [inputs[0], outputs, d.experts.0, 1],
        );
        let outputs = self.graph.ne(weight)[1];
        let mut out = self.graph.compute(
            Op::MulMatId,
            F32,
            [outputs, n[0], inputs[2], 1],
            &[weight, x, chosen],
        );
        let scale = format!("{name}.scale");
        if self.has(layer, &scale) {
            let scale = self.given(layer, &scale);
            let count = self.graph.ne(scale)[0];
            let flat = self.shaped(scale, [1, count, 1, 1]);
            let repeated = self
                .graph
                .compute(Op::Other, F32, [1, count, inputs[2], 1], &[flat]);
            let picked = self.rows(repeated, chosen);
            out = self.both(out, picked);
        }
        let name = format!("{name}.bias");
        if !d.sinks && !self.has(layer, &name) {
            return out;
        }
        let bias = self.weight(Some(layer), &name, [outputs, d.experts.0, 1, 1]);
        self.graph.map(Op::InPlace, &[out, bias, chosen])
    }

    /// The largest `used` of each row, as numbers of columns.
    fn largest(&mut self, x: Id, used: u64) -> Id {
        let n = self.graph.ne(x);
        let i32 = GgmlType::by_name("i32").unwrap_or(F32);
        let sorted = self.graph.compute(Op::Other, i32, n, &[x]);
        let strides = self.graph.tensors[sorted].nb;
        self.graph.view(sorted, [used, n[1], n[2], n[3]], Some(strides))
    }

    /// Leaves the groups of experts with the best two alone.
    fn best_groups(&mut self, shares: Id, groups: u64, used: u64) -> Id {
        let n = self.graph.ne(shares);
        let each = n[0] / groups.max(1);
        let by_group = self.shaped(shares, [each, groups, n[1], 1]);
        let best = self.largest(by_group, 2);
        let single = self.shaped(by_group, [1, each, groups, n[1]]);
        let scores = self.rows(single, best);
        let s = self.graph.ne(scores);
        let scores = self.shaped(scores, [s[1], s[2], s[3], 1]);
        let sums = self.sum_rows(scores);
        let s = self.graph.ne(sums);
        let sums = self.shaped(sums, [s[1], s[2], 1, 1]);
        let chosen = self.largest(sums, used);
        let kept = self.rows(by_group, chosen);
        let emptied = self.each(by_group);
        let masked = {
            let t = &self.graph.tensors[emptied];
            let tensor = super::tensor::Tensor {
                op: Op::SetRows,
                sources: vec![kept, chosen, emptied],
                root: Some(emptied),
                ..super::tensor::Tensor::new(t.kind, t.ne)
            };
            self.graph.add(tensor)
        };
        self.shaped(masked, [n[0], n[1], 1, 1])
    }

    /// The shares of the chosen experts and their numbers.
    fn routed(&mut self, x: Id, layer: usize, router: Router) -> (Id, Id) {
        let d = self.decoder;
        let rows = self.graph.ne(x)[1];
        let mut logits = router
            .logits
            .unwrap_or_else(|| self.linear(x, layer, "ffn_gate_inp.weight", d.experts.0));
        if d.sinks || self.has(layer, "ffn_gate_inp.bias") {
            logits = self.biased(logits, layer, "ffn_gate_inp.bias");
        }
        let count = self.graph.ne(logits)[0];
        let used = d.experts.1.max(1);
        let shares = match router.gating {
            Gating::SoftmaxOfChosen => logits,
            _ => self.each(logits),
        };
        let mut by = shares;
        if self.has(layer, "exp_probs_b.bias") {
            by = self.biased(by, layer, "exp_probs_b.bias");
        }
        if router.before {
            by = logits;
        }
        let (groups, best) = self.model.keys.expert_groups;
        if groups > 1 {
            by = self.best_groups(by, groups, best);
        }
        let chosen = self.largest(by, used);
        let each = self.shaped(shares, [1, count, rows, 1]);
        let mut picked = self.rows(each, chosen);
        if router.gating == Gating::SoftmaxOfChosen {
            picked = self.shaped(picked, [used, rows, 1, 1]);
            picked = self.each(picked);
            picked = self.shaped(picked, [1, used, rows, 1]);
        }
        if router.normalised {
            picked = self.shaped(picked, [used, rows, 1, 1]);
            let sum = self.sum_rows(picked);
            let sum = self.each(sum);
            picked = self.both(picked, sum);
            picked = self.shaped(picked, [1, used, rows, 1]);
        }
        if router.scaled {
            picked = self.each(picked);
        }
        self.graph.expand(picked);
        (picked, chosen)
    }

    /// A router and its experts.
    pub(super) fn experts(&mut self, x: Id, layer: usize, router: Router) -> Id {
        let d = self.decoder;
        // A router without experts that are used is a mistake of the file.
        self.missing |= d.experts.1 == 0;
        let used = d.experts.1.max(1);
        let n = self.graph.ne(x);
        let (width, rows) = (n[0], n[1]);
        let (shares, chosen) = self.routed(x, layer, router);
        let mut x = self.shaped(x, [width, 1, rows, 1]);
        if router.before {
            let repeated = self.copy_as(x, [width, used, rows, 1]);
            x = self.both(repeated, shares);
        }
        let hidden = if self.has(layer, "ffn_gate_up_exps.weight") {
            let all = self.chosen(x, chosen, layer, "ffn_gate_up_exps", 0);
            let n = self.graph.ne(all);
            let half = [n[0] / 2, n[1], n[2], 1];
            let (gate, up) = (self.part(all, half), self.part(all, half));
            self.graph.compute(Op::Other, F32, half, &[gate, up])
        } else {
            let up = self.chosen(x, chosen, layer, "ffn_up_exps", d.expert);
            if router.act == Act::Squared {
                let rectified = self.each(up);
                self.each(rectified)
            } else {
                let gate = self.chosen(x, chosen, layer, "ffn_gate_exps", d.expert);
                self.graph.map(Op::Other, &[gate, up])
            }
        };
        let mut out = self.chosen(hidden, chosen, layer, "ffn_down_exps", width);
        if !router.before {
            out = self.both(out, shares);
        }
        self.graph.expand(out);
        let step = self.graph.tensors[out].nb[2];
        let all = step.saturating_mul(rows);
        let parts: Vec<Id> = (0..used)
            .map(|_| {
                self.graph
                    .view(out, [width, rows, 1, 1], Some([4, step, all, all]))
            })
            .collect();
        for &part in &parts {
            self.graph.expand(part);
        }
        let mut sum = parts[0];
        for &part in &parts[1..] {
            sum = self
                .graph
                .compute(Op::InPlace, F32, [width, rows, 1, 1], &[sum, part]);
            self.graph.expand(sum);
        }
        if used == 1 {
            sum = self.copy(sum);
        }
        sum
    }
}
