//! Layers with a state: both generations of Mamba, short convolutions, and the loading and storing of what they keep
//! (llama.cpp b11434, `src/models/mamba-base.cpp`, `src/models/lfm2.cpp`; `build_rs` of `src/llama-graph.cpp`).

use super::builder::{Builder, F32, times};
use super::tensor::{Id, Op, Tensor};
use crate::engine::llamacpp::keys::Ssm;

/// The inputs of recurrent layers: which state each sequence begins with.
#[derive(Debug, Clone, Copy)]
pub(super) struct States {
    all: Id,
    /// The states of the batch's sequences.
    main: Id,
    /// All but the first.
    rest: Id,
}

/// An operation that reads states from the rows of a cache itself.
type Reader<'r, G> = &'r mut dyn FnMut(&mut G, Id, Id) -> Id;

impl Builder<'_> {
    /// Sequences of the batch, and tokens of each.
    pub(super) fn sequences(&self) -> (u64, u64) {
        let n = self.settings.parallel.max(1);
        (n, self.batch.tokens / n)
    }

    pub(super) fn states(&mut self) -> States {
        let (n, _) = self.sequences();
        let all = self.integers("i32", n);
        let main = self.shaped(all, [n, 1, 1, 1]);
        let rest = self.shaped(all, [n - 1, 1, 1, 1]);
        States { all, main, rest }
    }

    /// The states of a layer in its cache: those of convolutions, or the others.
    pub(super) fn state_cache(&mut self, layer: usize, convolution: bool) -> Id {
        let of = self.model.layers.get(layer).and_then(|l| l.recurrent);
        let width = of.map_or(1, |r| if convolution { r.conv } else { r.state });
        let (n, _) = self.sequences();
        self.graph.add(Tensor {
            home: Some(self.devices[layer]),
            ..Tensor::new(F32, [width, n, 1, 1])
        })
    }

    /// Loads the states of the batch, by `reader` where an operation reads them from the cache itself.
    pub(super) fn loaded(&mut self, cache: Id, states: &States, reader: Option<Reader<'_, Self>>) -> Id {
        let (n, _) = self.sequences();
        let width = self.graph.ne(cache)[0];
        let rows = self.shaped(cache, [width, n, 1, 1]);
        let first = self.shaped(rows, [width, 1, 1, 1]);
        let cleared = self.graph.add(Tensor {
            op: Op::InPlace,
            sources: vec![first],
            root: Some(cache),
            ..Tensor::new(F32, [width, 1, 1, 1])
        });
        self.graph.expand(cleared);
        let ids = if reader.is_some() { states.rest } else { states.all };
        let copied = self.rows(rows, ids);
        let out = match reader {
            Some(read) => read(self, rows, states.main),
            None => self.part(copied, [width, n, 1, 1]),
        };
        self.graph.expand(out);
        let extra = self.part(copied, [width, 0, 1, 1]);
        let to = self.part(cache, [width, 0, 1, 1]);
        let kept = self.write_to(extra, to);
        self.graph.expand(kept);
        out
    }

    /// The convolution's input: what it keeps, and the batch behind it; the end of it is kept.
    pub(super) fn convolution_input(&mut self, x: Id, layer: usize, taps: u64, states: &States) -> Id {
        let (n, _) = self.sequences();
        let channels = self.graph.ne(x)[0];
        let cache = self.state_cache(layer, true);
        let kept = self.loaded(cache, states, None);
        let kept = self.shaped(kept, [taps, channels, n, 1]);
        let x = self.permuted(x, [1, 0, 2, 3]);
        let input = self.joined(kept, x, 0);
        let end = self.part(input, [taps, channels, n, 1]);
        let to = self.part(cache, [times(&[taps, channels]), n, 1, 1]);
        let written = self.write_to(end, to);
        self.graph.expand(written);
        input
    }

    /// The convolution of an input made by [`convolution_input`](Self::convolution_input).
    pub(super) fn convolved(&mut self, input: Id, layer: usize, name: &str) -> Id {
        let kernel = self.given(layer, name);
        let (n, each) = self.sequences();
        let channels = self.graph.ne(input)[1];
        self.graph
            .compute(Op::Other, F32, [channels, each, n, 1], &[input, kernel])
    }

    /// A layer of the first generation.
    pub(super) fn mamba(&mut self, x: Id, layer: usize, states: &States) -> Id {
        let Ssm {
            kernel,
            inner,
            state,
            rank,
            ..
        } = self.model.keys.ssm;
        let (n, each) = self.sequences();
        let taps = kernel.saturating_sub(1);
        // The kept columns are loaded before the projection, which is in three dimensions.
        let cache = self.state_cache(layer, true);
        let kept = self.loaded(cache, states, None);
        let kept = self.shaped(kept, [taps, inner, n, 1]);
        let width = self.graph.ne(x)[0];
        let x3 = self.shaped(x, [width, each, n, 1]);
        let both = self.product(x3, layer, "ssm_in.weight");
        let both = self.scaled_by(both, layer, "ssm_in.scale");
        let (x, z) = (
            self.part(both, [inner, each, n, 1]),
            self.part(both, [inner, each, n, 1]),
        );
        let turned = self.permuted(x, [1, 0, 2, 3]);
        let input = self.joined(kept, turned, 0);
        let end = self.part(input, [taps, inner, n, 1]);
        let to = self.shaped(cache, [times(&[taps, inner, n]), 1, 1, 1]);
        let written = self.write_to(end, to);
        self.graph.expand(written);
        let x = self.convolved(input, layer, "ssm_conv1d.weight");
        let x = self.biased(x, layer, "ssm_conv1d.bias");
        let x = self.each(x);
        let projected = self.product(x, layer, "ssm_x.weight");
        let nb = self.graph.tensors[projected].nb;
        let mut dt = self.part(projected, [rank, each, n, 1]);
        let grouped = [4, state.saturating_mul(4), nb[1], nb[2]];
        let mut b = self.graph.view(projected, [state, 1, each, n], Some(grouped));
        let mut c = self.graph.view(projected, [state, 1, each, n], Some(grouped));
        let names = ["ssm_dt_norm.weight", "ssm_b_norm.weight", "ssm_c_norm.weight"];
        if names.iter().all(|name| self.has(layer, name)) {
            dt = self.norm(dt, layer, names[0], true);
            b = self.norm(b, layer, names[1], true);
            c = self.norm(c, layer, names[2], true);
        } else if self.model.keys.mamba_norms {
            [dt, b, c] = [dt, b, c].map(|x| self.each(x));
        } else {
            dt = self.copy(dt);
        }
        let dt = self.product(dt, layer, "ssm_dt.weight");
        let dt = self.biased(dt, layer, "ssm_dt.bias");
        let heads = self.shaped(x, [1, inner, each, n]);
        let a = self.given(layer, "ssm_a");
        let cache = self.state_cache(layer, false);
        let results = times(&[inner, each, n]).saturating_add(times(&[state, inner, n]));
        let scanned = self.loaded(
            cache,
            states,
            Some(&mut |g: &mut Self, rows, ids| {
                let s = g.shaped(rows, [state, 1, inner, n]);
                g.graph
                    .compute(Op::Other, F32, [results, 1, 1, 1], &[s, heads, dt, a, b, c, ids])
            }),
        );
        let end = self.shaped(scanned, [times(&[state, inner, n]), 1, 1, 1]);
        let to = self.shaped(cache, [times(&[state, inner, n]), 1, 1, 1]);
        let written = self.write_to(end, to);
        self.graph.expand(written);
        let y = self.shaped(scanned, [inner, each, n, 1]);
        let d = self.given(layer, "ssm_d");
        let skipped = self.both(x, d);
        let y = self.both(y, skipped);
        let z = self.copy(z);
        let y = self.graph.map(Op::Other, &[z, y]);
        let out = self.product(y, layer, "ssm_out.weight");
        let out = self.scaled_by(out, layer, "ssm_out.scale");
        let width = self.graph.ne(out)[0];
        self.shaped(out, [width, self.batch.tokens, 1, 1])
    }

    /// A layer of the second generation.
    pub(super) fn mamba2(&mut self, x: Id, layer: usize, states: &States) -> Id {
        let Ssm {
            kernel,
            inner,
            state,
            rank: heads,
            groups,
        } = self.model.keys.ssm;
        let (n, each) = self.sequences();
        let (taps, head) = (kernel.saturating_sub(1), inner / heads.max(1));
        let channels = inner.saturating_add(times(&[2, groups, state]));
        let cache = self.state_cache(layer, true);
        let kept = self.loaded(cache, states, None);
        let kept = self.shaped(kept, [taps, channels, n, 1]);
        let all = self.product(x, layer, "ssm_in.weight");
        let all = self.scaled_by(all, layer, "ssm_in.scale");
        let width = self.graph.ne(all)[0];
        let all = self.shaped(all, [width, each, n, 1]);
        let nb = self.graph.tensors[all].nb;
        let by_head = [4, head.saturating_mul(4), nb[1], nb[2]];
        let z = self.graph.view(all, [head, heads, each, n], Some(by_head));
        let xbc = self.part(all, [channels, each, n, 1]);
        let dt = self.part(all, [heads, each, n, 1]);
        let turned = self.permuted(xbc, [1, 0, 2, 3]);
        let input = self.joined(kept, turned, 0);
        let end = self.part(input, [taps, channels, n, 1]);
        let to = self.part(cache, [times(&[taps, channels]), n, 1, 1]);
        let written = self.write_to(end, to);
        self.graph.expand(written);
        let xbc = self.convolved(input, layer, "ssm_conv1d.weight");
        let xbc = self.biased_if(xbc, layer, "ssm_conv1d.bias");
        let xbc = self.each(xbc);
        let nb = self.graph.tensors[xbc].nb;
        let steps = |size: u64| Some([4, size.saturating_mul(4), nb[1], nb[2]]);
        let x = self.graph.view(xbc, [head, heads, each, n], steps(head));
        let b = self.graph.view(xbc, [state, groups, each, n], steps(state));
        let c = self.graph.view(xbc, [state, groups, each, n], steps(state));
        let dt = self.copy(dt);
        let dt = self.biased(dt, layer, "ssm_dt.bias");
        let a = self.given(layer, "ssm_a");
        let cache = self.state_cache(layer, false);
        let size = times(&[state, inner]);
        let results = times(&[inner, each, n]).saturating_add(times(&[size, n]));
        let scanned = self.loaded(
            cache,
            states,
            Some(&mut |g: &mut Self, rows, ids| {
                let s = g.shaped(rows, [state, head, heads, n]);
                g.graph
                    .compute(Op::Other, F32, [results, 1, 1, 1], &[s, x, dt, a, b, c, ids])
            }),
        );
        let end = self.shaped(scanned, [size, n, 1, 1]);
        let to = self.part(cache, [size, n, 1, 1]);
        let written = self.write_to(end, to);
        self.graph.expand(written);
        let y = self.shaped(scanned, [head, heads, each, n]);
        let d = self.given(layer, "ssm_d");
        let skipped = self
            .graph
            .compute(Op::InPlace, F32, [head, heads, each, n], &[x, d]);
        let y = self.both(y, skipped);
        let z = self.copy(z);
        let mut y = self.graph.map(Op::Other, &[z, y]);
        if self.has(layer, "ssm_norm.weight") {
            y = self.shaped(y, [inner / groups.max(1), groups, each, n]);
            y = self.norm(y, layer, "ssm_norm.weight", true);
        }
        let y = self.shaped(y, [inner, self.batch.tokens, 1, 1]);
        let out = self.product(y, layer, "ssm_out.weight");
        self.scaled_by(out, layer, "ssm_out.scale")
    }

    /// A short convolution between two gates.
    pub(super) fn short_convolution(&mut self, x: Id, layer: usize, states: &States) -> Id {
        let (n, each) = self.sequences();
        let width = self.graph.ne(x)[0];
        let taps = self.size_of(layer, "shortconv.conv.weight", 0).saturating_sub(1);
        let x = self.shaped(x, [width, each, n, 1]);
        let all = self.product(x, layer, "shortconv.in_proj.weight");
        let part = [self.graph.ne(all)[0] / 3, each, n, 1];
        let [b, c, x] = [0; 3].map(|_| self.part(all, part));
        let gated = self.graph.compute(Op::InPlace, F32, part, &[b, x]);
        let input = self.convolution_input(gated, layer, taps, states);
        let out = self.convolved(input, layer, "shortconv.conv.weight");
        let gated = self.graph.compute(Op::InPlace, F32, part, &[c, out]);
        let out = self.product(gated, layer, "shortconv.out_proj.weight");
        let width = self.graph.ne(out)[0];
        self.shaped(out, [width, self.batch.tokens, 1, 1])
    }
}
