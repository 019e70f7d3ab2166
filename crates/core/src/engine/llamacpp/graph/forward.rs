//! The forward pass of a [`Decoder`] as a graph: which tensors there are and in which order they are computed
//! (llama.cpp b11434, `src/llama-graph.cpp`, `src/llama-kv-cache.cpp`).

use super::decoder::{Batch, Decoder, EmbeddingScale};
use super::tensor::{Graph, Id, Op, Tensor};
use crate::engine::llamacpp::place::Weights;
use crate::engine::llamacpp::{Caches, GgmlType, Settings};

/// The inputs of attention in one kind of cache.
#[derive(Debug, Clone, Copy)]
struct Inputs {
    cells: u64,
    keys_at: Id,
    values_at: Id,
    mask: Id,
    /// Rotations of heads whose cache is quantised.
    turn_keys: Option<Id>,
    turn_values: Option<Id>,
}

/// Builds the graph of one batch.
pub(super) struct Builder<'a> {
    pub(super) decoder: &'a Decoder,
    pub(super) weights: &'a Weights,
    pub(super) settings: &'a Settings,
    pub(super) caches: &'a Caches,
    pub(super) devices: &'a [usize],
    pub(super) host: usize,
    pub(super) batch: Batch,
    pub(super) graph: Graph,
    /// Factors of the rotation on each device that has been met.
    pub(super) factors: Vec<(usize, Id)>,
}

const F32: GgmlType = GgmlType::F32;

impl Builder<'_> {
    fn input(&mut self, kind: GgmlType, ne: [u64; 4]) -> Id {
        self.graph.add(Tensor {
            input: true,
            ..Tensor::new(kind, ne)
        })
    }

    fn integers(&mut self, name: &str, n: u64) -> Id {
        self.input(GgmlType::by_name(name).unwrap_or(F32), [n, 1, 1, 1])
    }

    /// A weight of `layer` (`None`: the token embedding, which is with the host).
    fn weight(&mut self, layer: Option<usize>, name: &str, ne: [u64; 4]) -> Id {
        let full = match layer {
            Some(layer) if layer + 1 < self.devices.len() => format!("blk.{layer}.{name}"),
            _ => name.to_owned(),
        };
        let home = layer.map_or(self.host, |layer| self.devices[layer]);
        let stored = self.weights.tensor(&full, ne);
        self.graph.add(Tensor {
            home: Some(home),
            weight: true,
            stored: Some(stored.bytes),
            padding: stored.padding,
            ..Tensor::new(F32, ne)
        })
    }

    /// A norm with its weights. One inside of a layer stays on the layer's device.
    fn norm(&mut self, x: Id, layer: usize, name: &str, inside: bool) -> Id {
        let normed = self.graph.map(Op::InPlace, &[x]);
        if inside && (self.batch.tokens < 32 || self.batch.all_on_gpus) {
            self.graph.tensors[normed].device = Some(self.devices[layer]);
        }
        let width = self.graph.ne(x)[0];
        let weight = self.weight(Some(layer), name, [width, 1, 1, 1]);
        self.graph.map(Op::InPlace, &[normed, weight])
    }

    fn biased(&mut self, x: Id, layer: usize, name: &str) -> Id {
        let bias = self.weight(Some(layer), name, [self.graph.ne(x)[0], 1, 1, 1]);
        self.graph.map(Op::InPlace, &[x, bias])
    }

    fn linear(&mut self, x: Id, layer: usize, name: &str, outputs: u64) -> Id {
        let weight = self.weight(Some(layer), name, [self.graph.ne(x)[0], outputs, 1, 1]);
        self.graph.product(weight, x)
    }

    pub(super) fn run(mut self) -> Graph {
        let d = self.decoder;
        let (tokens, last) = (self.batch.tokens, d.slides.len());
        let mut x = self.embeddings();
        let positions = self.integers("i32", tokens);
        let full = self.inputs(false);
        let window = d.windows.then(|| self.inputs(true));
        let wanted = self.integers("i32", self.batch.outputs);
        for layer in 0..last {
            let cache = match window {
                Some(window) if d.slides[layer] => window,
                _ => full,
            };
            let mut residual = x;
            let normed = self.norm(x, layer, "attn_norm.weight", true);
            let mut out = self.attention(normed, layer, positions, &cache);
            if layer + 1 == last {
                out = self.rows(out, wanted);
                residual = self.rows(residual, wanted);
            }
            if d.style.post_norms {
                out = self.norm(out, layer, "post_attention_norm.weight", true);
            }
            let middle = self.graph.map(Op::InPlace, &[out, residual]);
            let name = if d.style.gpt_oss {
                "post_attention_norm.weight"
            } else {
                "ffn_norm.weight"
            };
            let normed = self.norm(middle, layer, name, true);
            let mut out = if d.experts.0 > 0 {
                self.experts(normed, layer)
            } else {
                self.feed_forward(normed, layer)
            };
            if d.style.post_norms {
                out = self.norm(out, layer, "post_ffw_norm.weight", false);
            }
            x = self.graph.map(Op::InPlace, &[out, middle]);
        }
        let normed = self.norm(x, last, "output_norm.weight", false);
        let mut logits = self.linear(normed, last, "output.weight", d.vocabulary);
        if d.style.final_cap {
            for _ in 0..3 {
                logits = self.graph.map(Op::InPlace, &[logits]);
            }
        }
        self.graph.expand(logits);
        self.graph
    }

    fn rows(&mut self, of: Id, at: Id) -> Id {
        let (width, count) = (self.graph.ne(of)[0], self.graph.ne(at)[0]);
        self.graph
            .compute(Op::GetRows, F32, [width, count, 1, 1], &[of, at])
    }

    /// Embeddings of tokens; vectors and mixtures of both, which the graph has room for too, are never read.
    fn embeddings(&mut self) -> Id {
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
        match d.style.embedding_scale {
            EmbeddingScale::None => embedded,
            EmbeddingScale::Number => self.graph.map(Op::InPlace, &[embedded]),
            EmbeddingScale::Tokens => {
                let scales = self.input(F32, [1, tokens, 1, 1]);
                let scaled = self.graph.map(Op::InPlace, &[embedded, scales]);
                self.graph.expand(scaled);
                scaled
            }
        }
    }

    fn inputs(&mut self, window: bool) -> Inputs {
        let d = self.decoder;
        let (tokens, streams, flash) = (self.batch.tokens, self.caches.streams, self.settings.flash_attn);
        let cells = if window {
            self.caches.window_cells
        } else {
            self.caches.cells
        };
        let width = d.kv_heads.saturating_mul(d.head);
        let keys_at = self.integers("i64", tokens);
        let values_at = self.integers(
            "i64",
            if flash {
                tokens
            } else {
                tokens.saturating_mul(width)
            },
        );
        let mask = self.input(
            if flash { GgmlType::F16 } else { F32 },
            [cells, tokens / streams, 1, streams],
        );
        let turned = |kind: GgmlType| kind.quantized() && d.head.is_multiple_of(64);
        // Keys are turned by the largest power of two times 64 that divides a head, values by 64.
        let mut side = 64;
        while d.head.is_multiple_of(side * 2) {
            side *= 2;
        }
        Inputs {
            cells,
            keys_at,
            values_at,
            mask,
            turn_keys: turned(self.settings.cache_type_k).then(|| self.input(F32, [side, side, 1, 1])),
            turn_values: turned(self.settings.cache_type_v).then(|| self.input(F32, [64, 64, 1, 1])),
        }
    }

    fn turned(&mut self, x: Id, by: Option<Id>) -> Id {
        let Some(by) = by else { return x };
        let (shape, side) = (self.graph.ne(x), self.graph.ne(by)[0]);
        let rows = self.graph.tensors[x].elements() / side;
        let flat = self.graph.view(x, [side, rows, 1, 1], None);
        let product = self.graph.product(by, flat);
        self.graph.view(product, shape, None)
    }

    /// Queries, keys and values as heads.
    fn projections(&mut self, x: Id, layer: usize) -> [Id; 3] {
        let d = self.decoder;
        let tokens = self.batch.tokens;
        if d.style.fused {
            let width = d.head.saturating_mul(d.heads + 2 * d.kv_heads);
            let all = self.linear(x, layer, "attn_qkv.weight", width);
            let row = width.saturating_mul(4);
            let strides = [4, d.head.saturating_mul(4), row, row.saturating_mul(tokens)];
            return [d.heads, d.kv_heads, d.kv_heads]
                .map(|heads| self.graph.view(all, [d.head, heads, tokens, 1], Some(strides)));
        }
        [
            ("attn_q", d.heads),
            ("attn_k", d.kv_heads),
            ("attn_v", d.kv_heads),
        ]
        .map(|(name, heads)| {
            let mut out = self.linear(x, layer, &format!("{name}.weight"), heads.saturating_mul(d.head));
            if d.attention_bias {
                out = self.biased(out, layer, &format!("{name}.bias"));
            }
            self.graph.view(out, [d.head, heads, tokens, 1], None)
        })
    }

    fn rotated(&mut self, x: Id, layer: usize, positions: Id) -> Id {
        let mut sources = vec![x, positions];
        if self.decoder.rope_factors {
            // One tensor for all layers of a device.
            let device = self.devices[layer];
            let known = self
                .factors
                .iter()
                .find(|(at, _)| *at == device)
                .map(|(_, id)| *id);
            let factors = known.unwrap_or_else(|| {
                let last = self.devices.len() - 1;
                let made = self.weight(Some(last), "rope_freqs.weight", [self.decoder.head / 2, 1, 1, 1]);
                self.graph.tensors[made].home = Some(device);
                self.factors.push((device, made));
                made
            });
            sources.push(factors);
        }
        self.graph.map(Op::Rope, &sources)
    }

    fn attention(&mut self, x: Id, layer: usize, positions: Id, cache: &Inputs) -> Id {
        let d = self.decoder;
        let tokens = self.batch.tokens;
        let [mut q, mut k, mut v] = self.projections(x, layer);
        if d.style.query_norms {
            q = self.norm(q, layer, "attn_q_norm.weight", true);
        }
        q = self.rotated(q, layer, positions);
        if d.style.query_norms {
            k = self.norm(k, layer, "attn_k_norm.weight", true);
        }
        k = self.rotated(k, layer, positions);
        if d.style.query_scale {
            q = self.graph.map(Op::InPlace, &[q]);
        }
        q = self.turned(q, cache.turn_keys);
        k = self.turned(k, cache.turn_keys);
        v = self.turned(v, cache.turn_values);
        let order = if d.windows { [q, k, v] } else { [q, v, k] };
        for id in order {
            self.graph.expand(id);
        }
        let (keys, values) = self.kept(k, v, layer, cache);
        let streams = self.caches.streams;
        let (n, b) = (self.graph.ne(q), self.graph.tensors[q].nb);
        let part = n[2] / streams;
        let q = self.graph.view(
            q,
            [n[0], n[1], part, streams],
            Some([b[0], b[1], b[2], b[2].saturating_mul(part)]),
        );
        let [q, keys, values] = [q, keys, values].map(|id| self.graph.exchange(id));
        let mut more = Vec::new();
        if d.style.gpt_oss {
            more.push(self.weight(Some(layer), "attn_sinks.weight", [d.heads, 1, 1, 1]));
        }
        let width = d.head.saturating_mul(d.heads);
        let mut out = if self.settings.flash_attn {
            let mut sources = vec![q, keys, values, cache.mask];
            sources.append(&mut more);
            let n = self.graph.ne(q);
            let attended =
                self.graph
                    .compute(Op::FlashAttention, F32, [d.head, n[2], n[1], streams], &sources);
            self.graph.view(attended, [width, tokens, 1, 1], None)
        } else {
            let mut scores = self.graph.product(keys, q);
            if d.style.score_cap {
                for _ in 0..3 {
                    scores = self.graph.map(Op::InPlace, &[scores]);
                }
            }
            let mut sources = vec![scores, cache.mask];
            sources.append(&mut more);
            scores = self.graph.map(Op::InPlace, &sources);
            let mixed = self.graph.product(values, scores);
            let turned = self.graph.exchange(mixed);
            self.graph
                .compute(Op::Other, F32, [width, tokens, 1, 1], &[turned])
        };
        self.graph.expand(out);
        out = self.turned(out, cache.turn_values);
        out = self.linear(out, layer, "attn_output.weight", d.embedding);
        if d.style.gpt_oss {
            out = self.biased(out, layer, "attn_output.bias");
        }
        out
    }

    /// Writes keys and values into the layer's cache; the whole of it, as heads.
    fn kept(&mut self, k: Id, v: Id, layer: usize, cache: &Inputs) -> (Id, Id) {
        let d = self.decoder;
        let (tokens, streams, flash) = (self.batch.tokens, self.caches.streams, self.settings.flash_attn);
        let (types, cells) = (
            (self.settings.cache_type_k, self.settings.cache_type_v),
            cache.cells,
        );
        let width = d.kv_heads.saturating_mul(d.head);
        let device = self.devices[layer];
        let mut store = |kind: GgmlType| {
            self.graph.add(Tensor {
                home: Some(device),
                ..Tensor::new(kind, [width, cells, streams, 1])
            })
        };
        let (keys, values) = (store(types.0), store(types.1));
        let flat = |graph: &mut Graph, id: Id| {
            let step = graph.tensors[id].nb[2];
            let all = step.saturating_mul(tokens);
            graph.view(id, [width, tokens, 1, 1], Some([4, step, all, all]))
        };
        let new_keys = flat(&mut self.graph, k);
        self.write(
            keys,
            new_keys,
            cache.keys_at,
            [width, cells.saturating_mul(streams), 1, 1],
        );
        if flash {
            let new_values = flat(&mut self.graph, v);
            self.write(
                values,
                new_values,
                cache.values_at,
                [width, cells.saturating_mul(streams), 1, 1],
            );
        } else {
            let together = self.graph.tensors[v].nb[2] == width.saturating_mul(4);
            let row = [width, tokens, 1, 1];
            let mut new_values = if together {
                self.graph.view(v, row, None)
            } else {
                self.graph.compute(Op::Other, F32, row, &[v])
            };
            new_values = self
                .graph
                .view(new_values, [1, width.saturating_mul(tokens), 1, 1], None);
            let every = width.saturating_mul(cells).saturating_mul(streams);
            self.write(values, new_values, cache.values_at, [1, every, 1, 1]);
        }
        let bytes = |kind: GgmlType, n: u64| (n / kind.block).saturating_mul(kind.block_bytes);
        let as_heads = |kind: GgmlType| {
            let row = bytes(kind, width);
            [
                kind.block_bytes,
                bytes(kind, d.head),
                row,
                row.saturating_mul(cells),
            ]
        };
        let keys = self.graph.view(
            keys,
            [d.head, d.kv_heads, cells, streams],
            Some(as_heads(types.0)),
        );
        let values = if flash {
            self.graph.view(
                values,
                [d.head, d.kv_heads, cells, streams],
                Some(as_heads(types.1)),
            )
        } else {
            let row = bytes(types.1, cells);
            let strides = [
                types.1.block_bytes,
                row.saturating_mul(d.head),
                row,
                row.saturating_mul(width),
            ];
            self.graph
                .view(values, [cells, d.kv_heads, d.head, streams], Some(strides))
        };
        (keys, values)
    }

    fn write(&mut self, cache: Id, rows: Id, at: Id, shape: [u64; 4]) {
        let merged = self.caches.streams > 1 || shape[0] == 1;
        let target = if merged {
            self.graph.view(cache, shape, None)
        } else {
            cache
        };
        let kind = self.graph.tensors[cache].kind;
        let written = self.graph.add(Tensor {
            op: Op::SetRows,
            sources: vec![rows, at, target],
            root: Some(cache),
            ..Tensor::new(kind, self.graph.ne(target))
        });
        self.graph.expand(written);
    }

    fn feed_forward(&mut self, x: Id, layer: usize) -> Id {
        let d = self.decoder;
        let width = d.feed_forward;
        let rows = self.graph.ne(x)[1];
        let hidden = if d.style.fused {
            let both = self.linear(x, layer, "ffn_up.weight", width.saturating_mul(2));
            self.graph.compute(Op::Other, F32, [width, rows, 1, 1], &[both])
        } else {
            let up = self.linear(x, layer, "ffn_up.weight", width);
            let gate = self.linear(x, layer, "ffn_gate.weight", width);
            self.graph.map(Op::Other, &[gate, up])
        };
        self.linear(hidden, layer, "ffn_down.weight", d.embedding)
    }

    /// One product of the chosen experts, with its bias.
    fn chosen(&mut self, x: Id, chosen: Id, layer: usize, name: &str, outputs: u64) -> Id {
        let d = self.decoder;
        let (inputs, n) = (self.graph.ne(x), self.graph.ne(chosen));
        let weight = self.weight(
            Some(layer),
            &format!("{name}.weight"),
            [inputs[0], outputs, d.experts.0, 1],
        );
        let out = self.graph.compute(
            Op::MulMatId,
            F32,
            [outputs, n[0], inputs[2], 1],
            &[weight, x, chosen],
        );
        if !d.style.gpt_oss {
            return out;
        }
        let bias = self.weight(Some(layer), &format!("{name}.bias"), [outputs, d.experts.0, 1, 1]);
        self.graph.map(Op::InPlace, &[out, bias, chosen])
    }

    fn experts(&mut self, x: Id, layer: usize) -> Id {
        let d = self.decoder;
        let (count, used) = d.experts;
        let rows = self.graph.ne(x)[1];
        let mut logits = self.linear(x, layer, "ffn_gate_inp.weight", count);
        if d.style.gpt_oss {
            logits = self.biased(logits, layer, "ffn_gate_inp.bias");
        } else {
            logits = self.graph.map(Op::InPlace, &[logits]);
        }
        let i32 = GgmlType::by_name("i32").unwrap_or(F32);
        let sorted = self.graph.compute(Op::Other, i32, [count, rows, 1, 1], &[logits]);
        let strides = self.graph.tensors[sorted].nb;
        let chosen = self.graph.view(sorted, [used, rows, 1, 1], Some(strides));
        let each = self.graph.view(logits, [1, count, rows, 1], None);
        let mut shares = self
            .graph
            .compute(Op::GetRows, F32, [1, used, rows, 1], &[each, chosen]);
        shares = self.graph.view(shares, [used, rows, 1, 1], None);
        shares = if d.style.gpt_oss {
            self.graph.map(Op::InPlace, &[shares])
        } else {
            let sum = self.graph.compute(Op::Other, F32, [1, rows, 1, 1], &[shares]);
            let sum = self.graph.map(Op::InPlace, &[sum]);
            self.graph.map(Op::InPlace, &[shares, sum])
        };
        shares = self.graph.view(shares, [1, used, rows, 1], None);
        self.graph.expand(shares);
        let x = self.graph.view(x, [d.embedding, 1, rows, 1], None);
        let up = self.chosen(x, chosen, layer, "ffn_up_exps", d.expert);
        let gate = self.chosen(x, chosen, layer, "ffn_gate_exps", d.expert);
        let hidden = self.graph.map(Op::Other, &[gate, up]);
        let out = self.chosen(hidden, chosen, layer, "ffn_down_exps", d.embedding);
        let out = self.graph.map(Op::InPlace, &[out, shares]);
        self.graph.expand(out);
        let step = self.graph.tensors[out].nb[2];
        let all = step.saturating_mul(rows);
        let parts: Vec<Id> = (0..used)
            .map(|_| {
                self.graph
                    .view(out, [d.embedding, rows, 1, 1], Some([4, step, all, all]))
            })
            .collect();
        for &part in &parts {
            self.graph.expand(part);
        }
        let mut sum = parts[0];
        for &part in &parts[1..] {
            sum = self
                .graph
                .compute(Op::InPlace, F32, [d.embedding, rows, 1, 1], &[sum, part]);
            self.graph.expand(sum);
        }
        if used == 1 {
            sum = self
                .graph
                .compute(Op::Other, F32, [d.embedding, rows, 1, 1], &[sum]);
        }
        sum
    }
}
