//! The pieces that every forward pass is made of: inputs, weights by name, norms, products, embeddings
//! (llama.cpp b11434, `src/llama-graph.cpp`).

use std::collections::HashMap;

use super::decoder::{Batch, Decoder, EmbeddingScale, Norm};
use super::tensor::{Graph, Id, Op, Tensor};
use crate::engine::llamacpp::place::{Stored, Weights};
use crate::engine::llamacpp::{Caches, GgmlType, Hparams, Settings};

pub(super) const F32: GgmlType = GgmlType::F32;

/// Builds the graph of one batch.
pub(super) struct Builder<'a> {
    pub(super) model: &'a Hparams,
    pub(super) decoder: &'a Decoder,
    pub(super) weights: &'a Weights,
    pub(super) settings: &'a Settings,
    pub(super) caches: &'a Caches,
    pub(super) devices: &'a [usize],
    pub(super) host: usize,
    pub(super) batch: Batch,
    pub(super) graph: Graph,
    /// Weights that have been met, by name and where they lie.
    pub(super) known: HashMap<(String, usize), Id>,
    /// Whether the file lacks a tensor that the graph needs, or has one where it is not known what computes with it.
    pub(super) missing: bool,
}

/// Rows of a matrix, or of the states of a batch, as the sizes that tensors have.
pub(super) fn times(factors: &[u64]) -> u64 {
    factors
        .iter()
        .fold(1, |product: u64, &n| product.saturating_mul(n))
}

impl Builder<'_> {
    /// An input: set from outside before the graph runs.
    pub(super) fn input(&mut self, kind: GgmlType, ne: [u64; 4]) -> Id {
        self.graph.add(Tensor {
            input: true,
            ..Tensor::new(kind, ne)
        })
    }

    pub(super) fn integers(&mut self, name: &str, n: u64) -> Id {
        self.input(GgmlType::by_name(name).unwrap_or(F32), [n, 1, 1, 1])
    }

    /// Number of the output, behind the last layer.
    pub(super) fn output_layer(&self) -> usize {
        self.devices.len() - 1
    }

    fn full_name(&self, layer: Option<usize>, name: &str) -> String {
        match layer {
            Some(layer) if layer < self.output_layer() => format!("blk.{layer}.{name}"),
            _ => name.to_owned(),
        }
    }

    /// A tensor of the file, if it is there.
    pub(super) fn stored(&self, layer: usize, name: &str) -> Option<Stored> {
        self.weights
            .tensors
            .get(&self.full_name(Some(layer), name))
            .copied()
    }

    /// Whether the file has a tensor.
    pub(super) fn has(&self, layer: usize, name: &str) -> bool {
        self.stored(layer, name).is_some()
    }

    /// A dimension of a tensor that must be there.
    pub(super) fn size_of(&mut self, layer: usize, name: &str, dimension: usize) -> u64 {
        let found = self.stored(layer, name);
        self.missing |= found.is_none();
        found.map_or(1, |s| s.shape[dimension])
    }

    /// A weight of `layer` (`None`: read before the first, which is with the host), of this shape where the file has none of
    /// that name.
    pub(super) fn weight(&mut self, layer: Option<usize>, name: &str, ne: [u64; 4]) -> Id {
        let home = layer.map_or(self.host, |layer| self.devices[layer]);
        self.weight_at(home, layer, name, ne)
    }

    /// A weight that lies on a device of its own.
    pub(super) fn weight_at(&mut self, home: usize, layer: Option<usize>, name: &str, ne: [u64; 4]) -> Id {
        let full = self.full_name(layer, name);
        let stored = self.weights.tensor(&full, ne);
        // A head that the file does not have goes by the embedding's name.
        let read = if full == "output.weight" && !self.weights.tensors.contains_key(&full) {
            "token_embd.weight"
        } else {
            &full
        };
        let named = self.settings.placed_by_name(read);
        // Rows of an embedding on a GPU are read by kernels that not every type has.
        self.missing |= layer.is_none() && matches!(named, Some(Some(_)));
        let home = match named {
            Some(Some(gpu)) => usize::try_from(gpu).map_or(self.host, |gpu| gpu.min(self.host)),
            Some(None) => self.host,
            None => home,
        };
        self.missing |= ne.contains(&0) && stored.shape[0] == 0;
        // One that is used twice is copied once.
        if let Some(&known) = self.known.get(&(full.clone(), home)) {
            return known;
        }
        let made = self.graph.add(Tensor {
            home: Some(home),
            weight: true,
            stored: Some(stored.bytes),
            padding: stored.padding,
            ..Tensor::new(F32, if stored.shape[0] > 0 { stored.shape } else { ne })
        });
        self.known.insert((full, home), made);
        made
    }

    /// A weight with the shape that the file gives it.
    pub(super) fn given(&mut self, layer: usize, name: &str) -> Id {
        self.weight(Some(layer), name, [0; 4])
    }

    /// `x` times the weight of that name, if the file has it.
    pub(super) fn scaled_by(&mut self, x: Id, layer: usize, name: &str) -> Id {
        if !self.has(layer, name) {
            return x;
        }
        let scale = self.given(layer, name);
        self.graph.map(Op::InPlace, &[x, scale])
    }

    /// An operation element by element on `x` alone.
    pub(super) fn each(&mut self, x: Id) -> Id {
        self.graph.map(Op::InPlace, &[x])
    }

    /// An operation element by element on both, in the shape of the first.
    pub(super) fn both(&mut self, a: Id, b: Id) -> Id {
        self.graph.map(Op::InPlace, &[a, b])
    }

    /// A copy without gaps in another shape.
    pub(super) fn copy_as(&mut self, x: Id, ne: [u64; 4]) -> Id {
        self.graph.compute(Op::Other, F32, ne, &[x])
    }

    /// A copy without gaps.
    pub(super) fn copy(&mut self, x: Id) -> Id {
        let ne = self.graph.ne(x);
        self.copy_as(x, ne)
    }

    /// Sums over rows.
    pub(super) fn sum_rows(&mut self, x: Id) -> Id {
        let ne = self.graph.ne(x);
        self.copy_as(x, [1, ne[1], ne[2], ne[3]])
    }

    /// Both behind one another along a dimension.
    pub(super) fn joined(&mut self, a: Id, b: Id, dimension: usize) -> Id {
        let mut ne = self.graph.ne(a);
        ne[dimension] = ne[dimension].saturating_add(self.graph.ne(b)[dimension]);
        self.graph.compute(Op::Other, F32, ne, &[a, b])
    }

    /// Dimensions in another order: the one numbered `to[i]` is what `i` was.
    pub(super) fn permuted(&mut self, x: Id, to: [usize; 4]) -> Id {
        let t = &self.graph.tensors[x];
        let (n, b) = (t.ne, t.nb);
        let (mut ne, mut nb) = ([0; 4], [0; 4]);
        for i in 0..4 {
            ne[to[i]] = n[i];
            nb[to[i]] = b[i];
        }
        self.graph.view(x, ne, Some(nb))
    }

    /// The bytes of `x` in another shape.
    pub(super) fn shaped(&mut self, x: Id, ne: [u64; 4]) -> Id {
        self.graph.view(x, ne, None)
    }

    /// A part of `x`, with the steps that `x` has from dimension 1 on.
    pub(super) fn part(&mut self, x: Id, ne: [u64; 4]) -> Id {
        let nb = self.graph.tensors[x].nb;
        self.graph.view(x, ne, Some(nb))
    }

    /// Writes `from` to where `to` lies.
    pub(super) fn write_to(&mut self, from: Id, to: Id) -> Id {
        let of = &self.graph.tensors[to];
        let tensor = Tensor {
            op: Op::SetRows,
            sources: vec![from, to],
            root: Some(of.root.unwrap_or(to)),
            nb: of.nb,
            ..Tensor::new(of.kind, of.ne)
        };
        self.graph.add(tensor)
    }

    /// A norm without weights.
    pub(super) fn bare_norm(&mut self, x: Id) -> Id {
        match self.decoder.norm {
            Norm::Rms => self.each(x),
            Norm::Layer => self.graph.map(Op::Other, &[x]),
        }
    }

    /// A norm with its weights, and its bias where the file has one. One inside of a layer stays on the layer's device.
    pub(super) fn norm(&mut self, x: Id, layer: usize, name: &str, inside: bool) -> Id {
        let normed = self.bare_norm(x);
        if inside && (self.batch.tokens < 32 || self.batch.all_on_gpus) {
            self.graph.tensors[normed].device = Some(self.devices[layer]);
        }
        let width = self.graph.ne(x)[0];
        let weight = self.weight(Some(layer), name, [width, 1, 1, 1]);
        let out = self.both(normed, weight);
        let bias = name.replace(".weight", ".bias");
        if bias != name && self.has(layer, &bias) {
            return self.biased(out, layer, &bias);
        }
        out
    }

    pub(super) fn biased(&mut self, x: Id, layer: usize, name: &str) -> Id {
        let bias = self.weight(Some(layer), name, [self.graph.ne(x)[0], 1, 1, 1]);
        self.both(x, bias)
    }

    /// `x` plus the bias of that name, if the file has it.
    pub(super) fn biased_if(&mut self, x: Id, layer: usize, name: &str) -> Id {
        if self.has(layer, name) {
            self.biased(x, layer, name)
        } else {
            x
        }
    }

    /// A product with a weight that has that many outputs where the file does not say.
    pub(super) fn linear(&mut self, x: Id, layer: usize, name: &str, outputs: u64) -> Id {
        let weight = self.weight(Some(layer), name, [self.graph.ne(x)[0], outputs, 1, 1]);
        self.graph.product(weight, x)
    }

    /// A product with a weight of the file.
    pub(super) fn product(&mut self, x: Id, layer: usize, name: &str) -> Id {
        self.linear(x, layer, name, 0)
    }

    pub(super) fn rows(&mut self, of: Id, at: Id) -> Id {
        let (n, m) = (self.graph.ne(of), self.graph.ne(at));
        self.graph
            .compute(Op::GetRows, F32, [n[0], m[0], m[1], m[2]], &[of, at])
    }

    /// Rows of the outputs alone, behind the last layer's attention.
    pub(super) fn outputs_of(&mut self, layer: usize, wanted: Id, tensors: &mut [&mut Id]) {
        if layer + 1 == self.decoder.layers {
            for x in tensors {
                **x = self.rows(**x, wanted);
            }
        }
    }

    /// The final norm and the logits.
    pub(super) fn logits(&mut self, x: Id, norm: &str) -> Id {
        let last = self.output_layer();
        let normed = self.norm(x, last, norm, false);
        let mut logits = self.linear(normed, last, "output.weight", self.decoder.vocabulary);
        logits = self.biased_if(logits, last, "output.bias");
        if self.decoder.final_cap {
            for _ in 0..3 {
                logits = self.each(logits);
            }
        } else if self.decoder.logit_scale {
            logits = self.each(logits);
        }
        self.graph.expand(logits);
        logits
    }

    /// Embeddings of tokens; vectors and mixtures of both, which the graph has room for too, are never read.
    pub(super) fn embeddings(&mut self) -> Id {
        let d = self.decoder;
        let tokens = self.batch.tokens;
        let shape = [d.embedding, tokens, 1, 1];
        let table = self.weight(None, "token_embd.weight", [d.embedding, d.vocabulary, 1, 1]);
        let ids = self.integers("i32", tokens);
        let vectors = self.input(F32, shape);
        let mixed_ids = self.integers("i32", tokens);
        let slots = self.integers("i64", tokens);
        let mixed_vectors = self.input(F32, shape);
        let embedded = self.rows(table, ids);
        let copy = self.graph.map(Op::Other, &[mixed_vectors]);
        let mixed_rows = self.rows(table, mixed_ids);
        let mixed = self.graph.add(Tensor {
            op: Op::SetRows,
            sources: vec![mixed_rows, slots, copy],
            root: Some(copy),
            ..Tensor::new(F32, shape)
        });
        for id in [embedded, vectors, mixed] {
            self.graph.expand(id);
        }
        match d.embedding_scale {
            EmbeddingScale::None => embedded,
            EmbeddingScale::Number => {
                let scaled = self.each(embedded);
                self.graph.expand(scaled);
                scaled
            }
            EmbeddingScale::Tokens => {
                let scales = self.input(F32, [1, tokens, 1, 1]);
                let scaled = self.both(embedded, scales);
                self.graph.expand(scaled);
                scaled
            }
        }
    }

    /// Positions of the tokens: one number each, or four where there are several dimensions.
    pub(super) fn positions(&mut self) -> Id {
        let each = if self.decoder.position_sections { 4 } else { 1 };
        let n = self.batch.tokens.saturating_mul(each);
        self.integers("i32", n)
    }

    pub(super) fn rotated(&mut self, x: Id, layer: usize, positions: Id, factors: bool) -> Id {
        let mut sources = vec![x, positions];
        if let Some(name) = self.decoder.rope_factors.filter(|_| factors) {
            let (device, last) = (self.devices[layer], self.output_layer());
            let factors = self.weight_at(device, Some(last), name, [self.decoder.head / 2, 1, 1, 1]);
            sources.push(factors);
        }
        self.graph.map(Op::Rope, &sources)
    }
}
