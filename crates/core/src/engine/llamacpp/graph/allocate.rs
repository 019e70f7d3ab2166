//! Where the tensors of a graph lie in the buffer of their device, and how large it gets
//! (llama.cpp b11434, `ggml/src/ggml-alloc.c`).
//!
//! Every tensor gets its place when it is computed and gives it back after its last use. A place is the smallest hole that
//! is large enough, else the end; an operation element by element takes its source's place if nothing else needs it.

use super::schedule::Schedule;
use super::tensor::{Graph, Id, Op};

/// CUDA's alignment; `ggml_backend_cuda_buffer_type_get_alignment`.
pub(in crate::engine::llamacpp) const GPU_ALIGNMENT: u64 = 128;
/// The CPU's (`TENSOR_ALIGNMENT`).
const HOST_ALIGNMENT: u64 = 32;
/// CUDA pads rows of quantised tensors to this many elements (`MATRIX_ROW_PADDING`).
const ROW_PADDING: u64 = 512;
/// Larger than any buffer.
const ENDLESS: u64 = 1 << 60;

/// Bytes behind the last row of a quantised tensor with rows of `width` elements on a GPU.
pub(in crate::engine::llamacpp) fn row_padding(block: u64, block_bytes: u64, width: u64) -> u64 {
    if block == 1 || width.is_multiple_of(ROW_PADDING) {
        return 0;
    }
    (ROW_PADDING - width % ROW_PADDING) / block * block_bytes
}

/// One device's buffer: what is free of it, by address.
#[derive(Debug, Clone)]
struct Buffer {
    alignment: u64,
    /// Address and size of each hole; the last is the endless end.
    holes: Vec<(u64, u64)>,
    size: u64,
}

impl Buffer {
    fn new(alignment: u64) -> Self {
        Self {
            alignment,
            holes: vec![(0, ENDLESS)],
            size: 0,
        }
    }

    fn padded(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.alignment).saturating_mul(self.alignment)
    }

    /// A place of `bytes`: the smallest hole that takes them (the last of equal ones), else the end.
    fn take(&mut self, bytes: u64) -> u64 {
        let bytes = self.padded(bytes);
        let end = self.holes.len() - 1;
        let best = (0..end)
            .filter(|&i| self.holes[i].1 >= bytes)
            .min_by_key(|&i| (self.holes[i].1, std::cmp::Reverse(i)))
            .unwrap_or(end);
        let hole = &mut self.holes[best];
        let at = hole.0;
        hole.0 = hole.0.saturating_add(bytes);
        hole.1 = hole.1.saturating_sub(bytes);
        if hole.1 == 0 && best != end {
            self.holes.remove(best);
        }
        self.size = self.size.max(at.saturating_add(bytes));
        at
    }

    /// Joins a place with the first hole that it touches, and that with its neighbour. Tensors without elements leave holes without
    /// bytes, which count as others do.
    fn give_back(&mut self, at: u64, bytes: u64) {
        let bytes = self.padded(bytes);
        for i in 0..self.holes.len() {
            let (from, size) = self.holes[i];
            if from + size == at {
                self.holes[i].1 += bytes;
                if self.holes.get(i + 1).is_some_and(|next| next.0 == at + bytes) {
                    self.holes[i].1 += self.holes.remove(i + 1).1;
                }
                return;
            }
            if at + bytes == from {
                self.holes[i] = (at, size + bytes);
                if i > 0 && self.holes[i - 1].0 + self.holes[i - 1].1 == at {
                    self.holes[i - 1].1 += self.holes.remove(i).1;
                }
                return;
            }
        }
        let next = self.holes.partition_point(|hole| hole.0 < at);
        self.holes.insert(next, (at, bytes));
    }
}

/// What is known of a tensor while the graph runs.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    users: u64,
    views: u64,
    buffer: usize,
    at: u64,
    /// Whether it has a place of its own.
    placed: bool,
}

struct Allocator<'a> {
    graph: &'a Graph,
    gpus: usize,
    buffers: Vec<Buffer>,
    states: Vec<State>,
}

/// Bytes of each device's buffer, the host's last; `None` if one would leave 60 bits.
pub(super) fn allocate(graph: &Graph, schedule: &Schedule, gpus: usize) -> Option<Vec<u64>> {
    if graph.tensors.iter().any(|t| t.bytes() >= ENDLESS >> 20) {
        return None;
    }
    let mut buffers = vec![Buffer::new(GPU_ALIGNMENT); gpus];
    buffers.push(Buffer::new(HOST_ALIGNMENT));
    let mut a = Allocator {
        graph,
        gpus,
        buffers,
        states: vec![State::default(); graph.tensors.len()],
    };
    for &(id, device) in &schedule.leafs {
        a.place(id, device);
    }
    for &(id, device) in &schedule.nodes {
        let tensor = &graph.tensors[id];
        if let (Some(root), true) = (tensor.root, tensor.op != Op::Leaf) {
            a.states[root].views += 1;
        }
        if tensor.input {
            a.place(id, device);
        }
        for &source in &tensor.sources {
            a.states[source].users += 1;
            if graph.tensors[source].input {
                a.place(source, device);
            }
        }
    }
    for &(id, device) in &schedule.nodes {
        for &source in &graph.tensors[id].sources {
            a.place(source, device);
        }
        a.place(id, device);
        for &source in &graph.tensors[id].sources {
            a.used(source);
        }
    }
    Some(a.buffers.iter().map(|buffer| buffer.size).collect())
}

impl Allocator<'_> {
    /// Bytes that a tensor takes on a device.
    fn bytes(&self, id: Id, device: usize) -> u64 {
        let tensor = &self.graph.tensors[id];
        let mut bytes = tensor.bytes();
        if device >= self.gpus {
            return bytes;
        }
        if tensor.op == Op::FlashAttention {
            // Keys and values of other types are copied to 16 bits behind the result.
            for (i, &id) in tensor.sources.iter().enumerate().take(3).skip(1) {
                let source = &self.graph.tensors[id];
                // Values that are a part of the latent keys are copied with them.
                let latent = i == 2
                    && source.root.is_some()
                    && source.root == self.graph.tensors[tensor.sources[1]].root;
                if !latent && source.kind != crate::engine::llamacpp::GgmlType::F16 {
                    bytes = bytes.next_multiple_of(GPU_ALIGNMENT) + source.elements().saturating_mul(2);
                }
            }
        }
        bytes
            .saturating_add(tensor.padding)
            .saturating_add(if tensor.stored.is_some() {
                0
            } else {
                row_padding(tensor.kind.block, tensor.kind.block_bytes, tensor.ne[0])
            })
    }

    fn place(&mut self, id: Id, device: usize) {
        let tensor = &self.graph.tensors[id];
        if self.states[id].placed || tensor.home.is_some() || tensor.root.is_some() {
            return;
        }
        self.states[id].placed = true;
        if tensor.op.in_place()
            && let Some(source) = tensor
                .sources
                .iter()
                .copied()
                .find(|&s| self.can_take_over(s, id))
        {
            let State { buffer, at, .. } = self.states[source];
            self.states[source].placed = false;
            self.states[id].buffer = buffer;
            self.states[id].at = at;
            let alignment = self.buffers[buffer].alignment;
            let (had, needs) = (
                self.bytes(source, buffer).next_multiple_of(alignment),
                self.bytes(id, buffer).next_multiple_of(alignment),
            );
            if had > needs {
                self.buffers[buffer].give_back(at + needs, had - needs);
            }
            return;
        }
        let bytes = self.bytes(id, device);
        self.states[id].buffer = device;
        self.states[id].at = self.buffers[device].take(bytes);
    }

    /// Whether `id`, the last user of `source`, can lie where that lies.
    fn can_take_over(&self, source: Id, id: Id) -> bool {
        let (of, state) = (&self.graph.tensors[source], self.states[source]);
        state.placed
            && !of.output
            && of.same_layout(&self.graph.tensors[id])
            && state.users == 1
            && state.views == 0
    }

    /// Counts one use of `id` down, and gives its place back after the last.
    fn used(&mut self, id: Id) {
        let state = &mut self.states[id];
        state.users -= 1;
        if state.users > 0 || state.views > 0 {
            return;
        }
        if let Some(root) = self.graph.tensors[id].root {
            let state = &mut self.states[root];
            state.views = state.views.saturating_sub(1);
            if state.views == 0 && state.users == 0 && state.placed {
                self.free(root);
            }
        } else if state.placed {
            self.free(id);
        }
    }

    fn free(&mut self, id: Id) {
        if self.graph.tensors[id].output {
            return;
        }
        let State { buffer, at, .. } = self.states[id];
        let bytes = self.bytes(id, buffer);
        self.buffers[buffer].give_back(at, bytes);
        self.states[id].placed = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_smallest_hole_is_taken_and_neighbours_are_joined() {
        let mut b = Buffer::new(128);
        let places: Vec<u64> = [100, 300, 128, 500, 10].into_iter().map(|n| b.take(n)).collect();
        assert_eq!(places, [0, 128, 512, 640, 1152]);
        b.give_back(128, 300);
        b.give_back(640, 500);
        assert_eq!(
            b.take(380),
            128,
            "384 of 512 bytes are no smaller hole than 384 of 384"
        );
        b.give_back(512, 128);
        assert_eq!(b.take(600), 512, "two holes became one");
        assert_eq!(b.size, 1280);
    }

    #[test]
    fn rows_of_quantised_tensors_are_padded_to_512_elements() {
        assert_eq!(row_padding(32, 34, 4096), 0);
        assert_eq!(row_padding(32, 34, 2880), 204);
        assert_eq!(row_padding(1, 2, 100), 0);
    }

    proptest! {
        /// A table of every byte (of 128) gives the same places.
        #[test]
        fn a_map_of_every_byte_agrees(sizes in prop::collection::vec((1_u64..20, any::<prop::sample::Index>(), any::<bool>()), 1..60)) {
            let place = |n: u64| usize::try_from(n).unwrap();
            let mut b = Buffer::new(128);
            let mut taken = [false; 4096];
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (n, which, back) in sizes {
                if back && !held.is_empty() {
                    let (at, n) = held.swap_remove(which.index(held.len()));
                    b.give_back(at * 128, n * 128);
                    taken[place(at)..place(at + n)].fill(false);
                    continue;
                }
                let end = taken.iter().rposition(|&t| t).map_or(0, |i| i + 1);
                let mut holes = Vec::new();
                let mut i = 0;
                while i < end {
                    let length = taken[i..end].iter().take_while(|&&t| !t).count();
                    if length > 0 {
                        holes.push((length as u64, i as u64));
                    }
                    i += length.max(1);
                }
                let wanted = holes
                    .iter()
                    .filter(|h| h.0 >= n)
                    .min_by_key(|h| (h.0, std::cmp::Reverse(h.1)))
                    .map_or(end as u64, |h| h.1);
                let at = b.take(n * 128 - 5) / 128;
                prop_assert_eq!(at, wanted);
                taken[place(at)..place(at + n)].fill(true);
                held.push((at, n));
            }
        }
    }
}
