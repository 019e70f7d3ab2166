//! Attention over a cache: its inputs, projections, and the kernel or the products that it is made of
//! (llama.cpp b11434, `src/llama-graph.cpp`, `build_attn`; `src/llama-kv-cache.cpp`).

use super::builder::{Builder, F32, times};
use super::tensor::{Id, Op, Tensor};
use crate::engine::llamacpp::GgmlType;
use crate::engine::llamacpp::settings::attends;

/// The inputs of attention in one kind of cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs {
    pub(super) cells: u64,
    pub(super) keys_at: Id,
    pub(super) values_at: Id,
    pub(super) mask: Id,
    /// Rotations of heads whose cache is quantised.
    pub(super) turn_keys: Option<Id>,
    pub(super) turn_values: Option<Id>,
}

/// Both kinds of caches.
#[derive(Debug, Clone, Copy)]
pub(super) struct AllInputs {
    pub(super) full: Inputs,
    pub(super) window: Option<Inputs>,
}

impl AllInputs {
    pub(super) fn of(&self, slides: bool) -> Inputs {
        self.window.filter(|_| slides).unwrap_or(self.full)
    }
}

/// What one attention is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) q: Id,
    /// Keys and values of the batch; `None` where an earlier layer's cache is read.
    pub(super) new: Option<(Id, Id)>,
    pub(super) layer: usize,
    /// The layer whose cache is read.
    pub(super) cache_of: usize,
    /// Whether the caches hold latent vectors, whose first part are the values.
    pub(super) latent: bool,
}

impl Builder<'_> {
    /// Elements of one head's keys and values in the cache of a layer.
    pub(super) fn cache_heads(&self, layer: usize) -> (u64, u64, u64) {
        let of = self.model.layers.get(layer).and_then(|l| l.attention);
        of.map_or((1, 1, 1), |a| {
            let heads = a.heads.max(1);
            (heads, a.keys / heads, a.values / heads)
        })
    }

    pub(super) fn inputs(&mut self, window: bool) -> Inputs {
        let (tokens, streams, flash) = (self.batch.tokens, self.caches.streams, self.settings.flash_attn);
        let by_token = !self.settings.values_transposed();
        let cells = if window {
            self.caches.window_cells
        } else {
            self.caches.cells
        };
        let attention = self.model.layers.iter().filter_map(|l| l.attention);
        let width = attention.clone().map(|a| a.values).max().unwrap_or(0);
        let keys_at = self.integers("i64", tokens);
        let values_at = self.integers(
            "i64",
            if by_token {
                tokens
            } else {
                tokens.saturating_mul(width)
            },
        );
        let mask = self.input(
            if flash { GgmlType::F16 } else { F32 },
            [cells, tokens / streams.max(1), 1, streams],
        );
        // A cache is turned where all of its layers have heads of one width.
        let mut widths = attention
            .filter(|a| a.sliding == window || !self.decoder.windows)
            .map(|a| (a.keys / a.heads.max(1), a.values / a.heads.max(1)));
        let first = widths.next().unwrap_or((0, 0));
        let (mut head, mut values) = first;
        for (k, v) in widths {
            head = if k == head { k } else { 0 };
            values = if v == values { v } else { 0 };
        }
        let (k, v) = self.model.head_widths;
        let turned = |kind: GgmlType, all: u64, own: u64| {
            kind.quantized() && all > 0 && own.is_multiple_of(64) && !self.model.mla
        };
        let (keys, values) = (
            turned(self.settings.cache_type_k, head, k),
            turned(self.settings.cache_type_v, values, v),
        );
        // Keys are turned by the largest power of two times 64 that divides a head, values by 64.
        let mut side: u64 = 64;
        while head > 0 && head.is_multiple_of(side * 2) {
            side *= 2;
        }
        Inputs {
            cells,
            keys_at,
            values_at,
            mask,
            turn_keys: keys.then(|| self.input(F32, [side, side, 1, 1])),
            turn_values: values.then(|| self.input(F32, [64, 64, 1, 1])),
        }
    }

    pub(super) fn all_inputs(&mut self) -> AllInputs {
        let full = self.inputs(false);
        let window = self.decoder.windows.then(|| self.inputs(true));
        AllInputs { full, window }
    }

    fn turned(&mut self, x: Id, by: Option<Id>) -> Id {
        let Some(by) = by else { return x };
        let (shape, side) = (self.graph.ne(x), self.graph.ne(by)[0]);
        let rows = self.graph.tensors[x].elements() / side;
        let flat = self.shaped(x, [side, rows, 1, 1]);
        let product = self.graph.product(by, flat);
        self.shaped(product, shape)
    }

    /// Queries, keys and values as rows: `heads` and elements of a head of each.
    fn projected(&mut self, x: Id, layer: usize, sizes: [(u64, u64); 3]) -> ([Id; 3], bool) {
        let d = self.decoder;
        if d.fused_qkv || self.has(layer, "attn_qkv.weight") {
            let width = sizes.iter().fold(0_u64, |sum, &(heads, head)| {
                sum.saturating_add(heads.saturating_mul(head))
            });
            let all = self.linear(x, layer, "attn_qkv.weight", width);
            return ([self.biased_if(all, layer, "attn_qkv.bias"); 3], true);
        }
        let names = ["attn_q", "attn_k", "attn_v"];
        let out = [0, 1, 2].map(|i| {
            let (heads, head) = sizes[i];
            let name = names[i];
            let out = self.linear(x, layer, &format!("{name}.weight"), heads.saturating_mul(head));
            if d.attention_bias {
                self.biased(out, layer, &format!("{name}.bias"))
            } else {
                self.biased_if(out, layer, &format!("{name}.bias"))
            }
        });
        (out, false)
    }

    /// Queries, keys and values as heads.
    pub(super) fn projections(&mut self, x: Id, layer: usize, sizes: [(u64, u64); 3]) -> [Id; 3] {
        let tokens = self.batch.tokens;
        let (out, fused) = self.projected(x, layer, sizes);
        let row = self.graph.ne(out[0])[0].saturating_mul(4);
        let mut i = 0;
        out.map(|id| {
            let (heads, head) = sizes[i];
            i += 1;
            let strides = fused.then(|| [4, head.saturating_mul(4), row, row.saturating_mul(tokens)]);
            self.graph.view(id, [head, heads, tokens, 1], strides)
        })
    }

    /// Queries, keys and values as rows without gaps.
    pub(super) fn projected_rows(&mut self, x: Id, layer: usize, sizes: [(u64, u64); 3]) -> [Id; 3] {
        let tokens = self.batch.tokens;
        let (out, fused) = self.projected(x, layer, sizes);
        if !fused {
            return out;
        }
        let mut i = 0;
        out.map(|id| {
            let (heads, head) = sizes[i];
            i += 1;
            let view = self.part(id, [heads.saturating_mul(head), tokens, 1, 1]);
            self.copy(view)
        })
    }

    /// Query heads of a layer, by the output projection.
    pub(super) fn query_heads(&mut self, layer: usize, head: u64) -> u64 {
        if self.weights.tensors.is_empty() {
            return self.decoder.heads;
        }
        let rows = self.size_of(layer, "attn_output.weight", 0);
        (rows / head.max(1)).max(1)
    }

    /// Attention without its output projection.
    pub(super) fn attend(&mut self, asked: Asked, cache: &Inputs) -> Id {
        let d = self.decoder;
        let tokens = self.batch.tokens;
        let (layer, streams) = (asked.layer, self.caches.streams.max(1));
        let q = self.turned(asked.q, cache.turn_keys);
        let new = asked.new.map(|(k, v)| {
            if asked.latent {
                (k, v)
            } else {
                (self.turned(k, cache.turn_keys), self.turned(v, cache.turn_values))
            }
        });
        self.graph.expand(q);
        if let Some((k, v)) = new {
            for id in if d.windows { [k, v] } else { [v, k] } {
                self.graph.expand(id);
            }
        }
        let (keys, values) = self.kept(new, &asked, cache);
        let (n, b) = (self.graph.ne(q), self.graph.tensors[q].nb);
        let part = n[2] / streams;
        let q = self.graph.view(
            q,
            [n[0], n[1], part, streams],
            Some([b[0], b[1], b[2], b[2].saturating_mul(part)]),
        );
        let [q, keys, mut values] = [q, keys, values].map(|id| self.graph.exchange(id));
        let mut more = Vec::new();
        if d.sinks {
            more.push(self.weight(Some(layer), "attn_sinks.weight", [self.decoder.heads, 1, 1, 1]));
        }
        // The latent results of all heads become the heads' own.
        let unfold = asked.latent.then(|| self.given(layer, "attn_v_b.weight"));
        let n = self.graph.ne(q);
        let head = self.graph.ne(values)[0];
        let out = if self.settings.flash_attn {
            let mut sources = vec![q, keys, values, cache.mask];
            sources.append(&mut more);
            let mut out = self
                .graph
                .compute(Op::FlashAttention, F32, [head, n[2], n[1], streams], &sources);
            let (k, v) = (self.graph.ne(keys), self.graph.ne(values));
            let shared = self.graph.ne(q)[2] / k[2].max(1);
            self.graph.tensors[out].host_only = !attends(k[0], v[0], shared);
            if let Some(unfold) = unfold {
                out = self.graph.exchange(out);
                out = self.graph.product(unfold, out);
                out = self.graph.exchange(out);
                out = self.copy(out);
            }
            let n = self.graph.ne(out);
            self.shaped(out, [times(&n[..2]), tokens, 1, 1])
        } else {
            let mut scores = self.graph.product(keys, q);
            if d.score_cap {
                for _ in 0..3 {
                    scores = self.each(scores);
                }
            }
            let mut sources = vec![scores, cache.mask];
            sources.append(&mut more);
            scores = self.graph.map(Op::InPlace, &sources);
            if asked.latent || !self.settings.values_transposed() {
                let turned = self.permuted(values, [1, 0, 2, 3]);
                let kind = self.graph.tensors[turned].kind;
                let ne = self.graph.ne(turned);
                values = self.graph.compute(Op::Other, kind, ne, &[turned]);
            }
            let mut mixed = self.graph.product(values, scores);
            if let Some(unfold) = unfold {
                mixed = self.graph.product(unfold, mixed);
            }
            let turned = self.graph.exchange(mixed);
            let n = self.graph.ne(turned);
            self.copy_as(turned, [times(&n[..2]), tokens, 1, 1])
        };
        self.graph.expand(out);
        if asked.latent {
            return out;
        }
        self.turned(out, cache.turn_values)
    }

    /// The output projection.
    pub(super) fn attention_output(&mut self, x: Id, layer: usize) -> Id {
        let out = self.linear(x, layer, "attn_output.weight", self.decoder.embedding);
        if self.decoder.sinks {
            return self.biased(out, layer, "attn_output.bias");
        }
        self.biased_if(out, layer, "attn_output.bias")
    }

    /// Writes keys and values into the layer's cache; the whole of it, as heads.
    fn kept(&mut self, new: Option<(Id, Id)>, asked: &Asked, cache: &Inputs) -> (Id, Id) {
        let (tokens, streams) = (self.batch.tokens, self.caches.streams.max(1));
        let by_token = !self.settings.values_transposed();
        let (types, cells) = (
            (self.settings.cache_type_k, self.settings.cache_type_v),
            cache.cells,
        );
        let (heads, head_k, head_v) = self.cache_heads(asked.cache_of);
        let (width_k, width_v) = (heads.saturating_mul(head_k), heads.saturating_mul(head_v));
        // Values that lie by element are as wide as the widest layer's.
        let widest = if by_token {
            width_v
        } else {
            let all = self.model.layers.iter().filter_map(|l| l.attention);
            all.map(|a| a.values).max().unwrap_or(width_v)
        };
        let device = self.devices[asked.cache_of];
        let keys = self.cache_tensor(types.0, width_k, cells, device);
        let bytes = |kind: GgmlType, n: u64| (n / kind.block).saturating_mul(kind.block_bytes);
        let as_heads = |kind: GgmlType, head: u64, width: u64| {
            let row = bytes(kind, width);
            [
                kind.block_bytes,
                bytes(kind, head),
                row,
                row.saturating_mul(cells),
            ]
        };
        if let Some((k, _)) = new {
            let rows = self.flat(k, width_k);
            self.write(
                keys,
                rows,
                cache.keys_at,
                [width_k, cells.saturating_mul(streams), 1, 1],
            );
        }
        let all_keys = |b: &mut Self| {
            b.graph.view(
                keys,
                [head_k, heads, cells, streams],
                Some(as_heads(types.0, head_k, width_k)),
            )
        };
        if asked.latent {
            let keys = all_keys(self);
            let nb = self.graph.tensors[keys].nb;
            let width = new.map_or(1, |(_, v)| self.graph.ne(v)[0]);
            let values = self.graph.view(keys, [width, heads, cells, streams], Some(nb));
            return (keys, values);
        }
        let values = self.cache_tensor(types.1, widest, cells, device);
        if let Some((_, v)) = new {
            if by_token {
                let rows = self.flat(v, width_v);
                self.write(
                    values,
                    rows,
                    cache.values_at,
                    [width_v, cells.saturating_mul(streams), 1, 1],
                );
            } else {
                let together = self.graph.tensors[v].nb[2] == width_v.saturating_mul(4);
                let row = [width_v, tokens, 1, 1];
                let mut rows = if together {
                    self.shaped(v, row)
                } else {
                    self.copy_as(v, row)
                };
                if width_v < widest {
                    rows = self.copy_as(rows, [widest, tokens, 1, 1]);
                }
                let all = times(&self.graph.ne(rows));
                rows = self.shaped(rows, [1, all, 1, 1]);
                let every = times(&[widest, cells, streams]);
                self.write(values, rows, cache.values_at, [1, every, 1, 1]);
            }
        }
        let keys = all_keys(self);
        let values = if by_token {
            self.graph.view(
                values,
                [head_v, heads, cells, streams],
                Some(as_heads(types.1, head_v, width_v)),
            )
        } else {
            let row = bytes(types.1, cells);
            let strides = [
                types.1.block_bytes,
                row.saturating_mul(head_v),
                row,
                row.saturating_mul(widest),
            ];
            self.graph
                .view(values, [cells, heads, head_v, streams], Some(strides))
        };
        (keys, values)
    }

    fn cache_tensor(&mut self, kind: GgmlType, width: u64, cells: u64, device: usize) -> Id {
        self.graph.add(Tensor {
            home: Some(device),
            ..Tensor::new(kind, [width, cells, self.caches.streams.max(1), 1])
        })
    }

    /// Heads as rows.
    fn flat(&mut self, x: Id, width: u64) -> Id {
        let step = self.graph.tensors[x].nb[2];
        let all = step.saturating_mul(self.batch.tokens);
        self.graph
            .view(x, [width, self.batch.tokens, 1, 1], Some([4, step, all, all]))
    }

    fn write(&mut self, cache: Id, rows: Id, at: Id, shape: [u64; 4]) {
        let merged = self.caches.streams > 1 || shape[0] == 1;
        let target = if merged { self.shaped(cache, shape) } else { cache };
        let kind = self.graph.tensors[cache].kind;
        let written = self.graph.add(Tensor {
            op: Op::SetRows,
            sources: vec![rows, at, target],
            root: Some(cache),
            ..Tensor::new(kind, self.graph.ne(target))
        });
        self.graph.expand(written);
    }
}
