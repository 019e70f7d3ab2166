//! Tensors of a graph and the order in which their operations run (llama.cpp b11434, `ggml/src/ggml.c`).

use crate::engine::llamacpp::GgmlType;

/// A tensor of a [`Graph`].
pub(super) type Id = usize;

/// What computes a tensor, as far as memory cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// Nothing: a weight, an input or a cache.
    Leaf,
    /// Another shape of the same bytes.
    View,
    /// Rows written into another tensor, which the result is a view of.
    SetRows,
    /// Rows picked from a table.
    GetRows,
    /// A product of matrices.
    MulMat,
    /// A product with the matrices of the chosen experts.
    MulMatId,
    /// Rotary embedding.
    Rope,
    /// Element by element; may take the place of a source.
    InPlace,
    /// Attention in one kernel.
    FlashAttention,
    /// Anything else.
    Other,
}

impl Op {
    /// Whether the result may lie where a source was (`ggml_op_can_inplace`).
    pub(super) fn in_place(self) -> bool {
        matches!(self, Self::InPlace | Self::Rope)
    }
}

/// One tensor.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) kind: GgmlType,
    /// Elements of each dimension, innermost first.
    pub(super) ne: [u64; 4],
    /// Bytes from one element of a dimension to the next.
    pub(super) nb: [u64; 4],
    pub(super) op: Op,
    pub(super) sources: Vec<Id>,
    /// The tensor whose bytes these are, for a view.
    pub(super) root: Option<Id>,
    /// Set from outside before the graph runs.
    pub(super) input: bool,
    /// Never given back.
    pub(super) output: bool,
    /// Device of the buffer that it lies in already: weights and caches.
    pub(super) home: Option<usize>,
    pub(super) weight: bool,
    /// Bytes of a weight, where they are known from a file.
    pub(super) stored: Option<u64>,
    /// Bytes that a GPU adds behind a weight.
    pub(super) padding: u64,
    /// Whether no GPU has a kernel for it.
    pub(super) host_only: bool,
    /// Device that it is computed on.
    pub(super) device: Option<usize>,
}

impl Tensor {
    /// A tensor without gaps.
    pub(super) fn new(kind: GgmlType, ne: [u64; 4]) -> Self {
        let row = (ne[0] / kind.block).saturating_mul(kind.block_bytes);
        let plane = row.saturating_mul(ne[1]);
        Self {
            kind,
            ne,
            nb: [kind.block_bytes, row, plane, plane.saturating_mul(ne[2])],
            op: Op::Leaf,
            sources: Vec::new(),
            root: None,
            input: false,
            output: false,
            home: None,
            weight: false,
            stored: None,
            padding: 0,
            host_only: false,
            device: None,
        }
    }

    /// Elements.
    pub(super) fn elements(&self) -> u64 {
        self.ne
            .iter()
            .fold(1, |product: u64, &n| product.saturating_mul(n))
    }

    /// Bytes from the first element to the last (`ggml_nbytes`).
    pub(super) fn bytes(&self) -> u64 {
        if let Some(stored) = self.stored {
            return stored;
        }
        if self.ne.contains(&0) {
            return 0;
        }
        let reach = |from: usize| {
            (from..4).fold(0_u64, |sum, i| {
                sum.saturating_add(self.ne[i].saturating_sub(1).saturating_mul(self.nb[i]))
            })
        };
        if self.kind.block == 1 {
            self.kind.block_bytes.saturating_add(reach(0))
        } else {
            (self.ne[0] / self.kind.block)
                .saturating_mul(self.nb[0])
                .saturating_add(reach(1))
        }
    }

    /// Whether another tensor can lie in its place.
    pub(super) fn same_layout(&self, other: &Self) -> bool {
        self.kind == other.kind && self.ne == other.ne && self.nb == other.nb
    }
}

/// Tensors, and the order of a forward pass.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) tensors: Vec<Tensor>,
    /// What is computed, in order.
    pub(super) nodes: Vec<Id>,
    /// What is there before, in the order it is met.
    pub(super) leafs: Vec<Id>,
    seen: Vec<bool>,
}

impl Graph {
    pub(super) fn add(&mut self, tensor: Tensor) -> Id {
        self.tensors.push(tensor);
        self.tensors.len() - 1
    }

    pub(super) fn ne(&self, id: Id) -> [u64; 4] {
        self.tensors[id].ne
    }

    /// The result of an operation, without gaps.
    pub(super) fn compute(&mut self, op: Op, kind: GgmlType, ne: [u64; 4], sources: &[Id]) -> Id {
        self.add(Tensor {
            op,
            sources: sources.to_vec(),
            ..Tensor::new(kind, ne)
        })
    }

    /// An operation element by element on the first source.
    pub(super) fn map(&mut self, op: Op, sources: &[Id]) -> Id {
        let (kind, ne) = (self.tensors[sources[0]].kind, self.ne(sources[0]));
        self.compute(op, kind, ne, sources)
    }

    /// The bytes of `of` in another shape; without strides there are no gaps.
    pub(super) fn view(&mut self, of: Id, ne: [u64; 4], nb: Option<[u64; 4]>) -> Id {
        let source = &self.tensors[of];
        let plain = Tensor::new(source.kind, ne);
        let tensor = Tensor {
            nb: nb.unwrap_or(plain.nb),
            op: Op::View,
            sources: vec![of],
            root: Some(source.root.unwrap_or(of)),
            ..plain
        };
        self.add(tensor)
    }

    /// Dimensions 1 and 2 exchanged.
    pub(super) fn exchange(&mut self, of: Id) -> Id {
        let t = &self.tensors[of];
        let (n, b) = (t.ne, t.nb);
        self.view(of, [n[0], n[2], n[1], n[3]], Some([b[0], b[2], b[1], b[3]]))
    }

    /// `weight` times `x`.
    pub(super) fn product(&mut self, weight: Id, x: Id) -> Id {
        let (w, x_ne) = (self.ne(weight), self.ne(x));
        self.compute(
            Op::MulMat,
            GgmlType::F32,
            [w[1], x_ne[1], x_ne[2], x_ne[3]],
            &[weight, x],
        )
    }

    /// Appends what `id` needs and then `id`, each once, sources from left to right.
    pub(super) fn expand(&mut self, id: Id) {
        self.seen.resize(self.tensors.len(), false);
        if std::mem::replace(&mut self.seen[id], true) {
            return;
        }
        let mut path = vec![(id, 0)];
        while let Some((at, next)) = path.pop() {
            let tensor = &self.tensors[at];
            if let Some(&source) = tensor.sources.get(next) {
                path.push((at, next + 1));
                if !std::mem::replace(&mut self.seen[source], true) {
                    path.push((source, 0));
                }
            } else if tensor.op == Op::Leaf {
                self.leafs.push(at);
            } else {
                self.nodes.push(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_come_before_what_needs_them_and_once() {
        let mut g = Graph::default();
        let a = g.add(Tensor::new(GgmlType::F32, [4, 2, 1, 1]));
        let b = g.map(Op::InPlace, &[a]);
        let c = g.map(Op::Other, &[b, a]);
        let d = g.map(Op::InPlace, &[c, b]);
        g.expand(d);
        g.expand(c);
        assert_eq!((g.leafs, g.nodes), (vec![a], vec![b, c, d]));
    }

    #[test]
    fn bytes_reach_from_the_first_element_to_the_last() {
        let mut g = Graph::default();
        let a = g.add(Tensor::new(GgmlType::F32, [4, 3, 2, 1]));
        assert_eq!(g.tensors[a].bytes(), 96);
        let every_other = g.view(a, [2, 3, 1, 1], Some([4, 16, 48, 48]));
        assert_eq!(g.tensors[every_other].bytes(), 40);
        let turned = g.exchange(a);
        assert_eq!(g.tensors[turned].bytes(), 96);
        let q8 = GgmlType::by_name("q8_0").unwrap();
        assert_eq!(Tensor::new(q8, [64, 10, 1, 1]).bytes(), 680);
    }
}
