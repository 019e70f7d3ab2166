//! Which device computes what, and what is copied between them (llama.cpp b11434, `ggml/src/ggml-backend.cpp`,
//! `ggml_backend_sched_split_graph`, with the answers that the CUDA backend gives).

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::tensor::{Graph, Id, Op, Tensor};

/// A GPU takes operations on weights of the host over from this many rows on
/// (`ggml_backend_cuda_device_offload_op`).
const OFFLOAD_ROWS: u64 = 32;

/// Tensors with the device they get their place on, in the order they get it.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    pub(super) leafs: Vec<(Id, usize)>,
    pub(super) nodes: Vec<(Id, usize)>,
}

/// Consecutive operations on one device.
struct Split {
    device: usize,
    start: usize,
    end: usize,
    inputs: Vec<Id>,
}

/// Assigns the devices; the host is the one after the GPUs. `copies` is how many batches are in flight.
pub(super) fn schedule(graph: &mut Graph, gpus: usize, copies: usize) -> Schedule {
    assign(graph, gpus);
    let mut copied: HashMap<(Id, usize), Vec<Id>> = HashMap::new();
    let splits = split(graph, copies, &mut copied);
    let mut inputs = Vec::new();
    if copies > 1 {
        for leaf in graph.leafs.clone() {
            if !graph.tensors[leaf].input {
                continue;
            }
            let device = graph.tensors[leaf].device.unwrap_or(gpus);
            if let Entry::Vacant(slot) = copied.entry((leaf, device)) {
                let mut made = vec![leaf];
                for _ in 1..copies {
                    made.push(copy_of(graph, leaf, device, true));
                }
                graph.tensors[leaf].output = true;
                slot.insert(made);
            }
            inputs.push((leaf, device));
        }
    }
    let mut out = Schedule::default();
    for split in &splits {
        for &input in &split.inputs {
            // Keeps the source until it is copied.
            let of = &graph.tensors[input];
            let device = of.device.unwrap_or(gpus);
            let keeper = Tensor {
                op: Op::Leaf,
                sources: vec![input],
                root: Some(of.root.unwrap_or(input)),
                nb: of.nb,
                ..Tensor::new(of.kind, of.ne)
            };
            let keeper = graph.add(keeper);
            out.nodes.push((keeper, device));
            out.nodes.push((copied[&(input, split.device)][0], split.device));
        }
        for &node in &graph.nodes[split.start..split.end] {
            out.nodes.push((node, graph.tensors[node].device.unwrap_or(gpus)));
        }
    }
    if copies > 1 {
        for key in &inputs {
            out.leafs.extend(copied[key].iter().map(|&id| (id, key.1)));
        }
        for split in &splits {
            for &input in &split.inputs {
                let made = &copied[&(input, split.device)];
                out.leafs.extend(made.iter().map(|&id| (id, split.device)));
            }
        }
    }
    for &leaf in &graph.leafs {
        out.leafs.push((leaf, graph.tensors[leaf].device.unwrap_or(gpus)));
    }
    out
}

/// Device of the buffer that a tensor, or what it is a view of, lies in.
fn home(graph: &Graph, id: Id) -> Option<usize> {
    let tensor = &graph.tensors[id];
    tensor.root.map_or(tensor.home, |root| graph.tensors[root].home)
}

/// Whether a device can read all sources: a GPU reads no other GPU's memory.
fn runs(graph: &Graph, id: Id, device: usize, gpus: usize) -> bool {
    device == gpus
        || !graph.tensors[id].host_only
            && graph.tensors[id]
                .sources
                .iter()
                .filter_map(|&s| graph.tensors[s].home)
                .all(|home| home == gpus || home == device)
}

/// Whether a GPU takes the operation over although its weight is with the host.
fn taken_over(tensor: &Tensor) -> bool {
    let rows = match tensor.op {
        Op::GetRows => 0,
        Op::MulMat => tensor.ne[1],
        Op::MulMatId | Op::Rope => tensor.ne[2],
        _ => tensor.ne[1]
            .saturating_mul(tensor.ne[2])
            .saturating_mul(tensor.ne[3]),
    };
    rows >= OFFLOAD_ROWS
}

/// The device that where a tensor or its weights lie asks for.
fn fixed(graph: &Graph, id: Id, gpus: usize) -> Option<usize> {
    if let Some(home) = home(graph, id) {
        return Some(home);
    }
    let tensor = &graph.tensors[id];
    if tensor.input {
        return Some(gpus);
    }
    // Tables of rotations and sinks of attention are too small to decide.
    if matches!(tensor.op, Op::Rope | Op::FlashAttention) {
        return None;
    }
    let weight = tensor
        .sources
        .iter()
        .map(|&s| &graph.tensors[s])
        .find(|s| s.weight && s.home.is_some())?;
    let host = weight.home == Some(gpus);
    (0..gpus)
        .find(|&gpu| host && runs(graph, id, gpu, gpus) && taken_over(tensor))
        .or(weight.home)
}

fn assign(graph: &mut Graph, gpus: usize) {
    let order: Vec<Id> = graph.leafs.iter().chain(&graph.nodes).copied().collect();
    for id in order {
        if graph.tensors[id].device.is_none() {
            graph.tensors[id].device = fixed(graph, id, gpus);
        }
    }
    // What nothing decides goes where its neighbours are: first the GPUs spread down and up, then the rest.
    let down: Vec<Id> = graph.nodes.clone();
    let up: Vec<Id> = graph.nodes.iter().rev().copied().collect();
    for (order, gpus_only) in [(&down, true), (&up, true), (&down, false), (&up, false)] {
        let mut current = None;
        for &id in order {
            if graph.tensors[id].op == Op::View {
                continue;
            }
            match (graph.tensors[id].device, current) {
                (Some(device), _) => current = (!gpus_only || device != gpus).then_some(device),
                (None, Some(device)) if runs(graph, id, device, gpus) => {
                    graph.tensors[id].device = Some(device);
                }
                (None, _) => {}
            }
        }
    }
    for &id in &down {
        if graph.tensors[id].op != Op::View && graph.tensors[id].device.is_none() {
            // The device that most sources can be read on, the first of equal ones.
            let readable = |device: usize| {
                let sources = &graph.tensors[id].sources;
                sources.iter().filter(|&&s| readable_on(graph, s, device)).count()
            };
            let best = (0..=gpus)
                .filter(|&device| runs(graph, id, device, gpus))
                .max_by_key(|&device| (readable(device), std::cmp::Reverse(device)));
            graph.tensors[id].device = best;
        }
    }
    for &id in &down {
        let inherit = |graph: &Graph, id: Id| graph.tensors[id].root.and_then(|r| graph.tensors[r].device);
        if graph.tensors[id].device.is_none() {
            graph.tensors[id].device = inherit(graph, id);
        }
        let own = graph.tensors[id].device;
        for i in 0..graph.tensors[id].sources.len() {
            let source = graph.tensors[id].sources[i];
            if graph.tensors[source].device.is_none() {
                graph.tensors[source].device = if graph.tensors[source].root.is_some() {
                    inherit(graph, source)
                } else {
                    own
                };
            }
        }
        graph.tensors[id].device.get_or_insert(0);
    }
}

/// Whether a device can read a tensor where it lies or will lie.
fn readable_on(graph: &Graph, id: Id, device: usize) -> bool {
    let tensor = &graph.tensors[id];
    home(graph, id)
        .or(tensor.device)
        .or_else(|| tensor.root.and_then(|root| graph.tensors[root].device))
        == Some(device)
}

fn copy_of(graph: &mut Graph, id: Id, device: usize, kept: bool) -> Id {
    let of = &graph.tensors[id];
    let copy = Tensor {
        nb: of.nb,
        stored: of.stored,
        padding: of.padding,
        device: Some(device),
        input: kept,
        output: kept,
        ..Tensor::new(of.kind, of.ne)
    };
    graph.add(copy)
}

/// Cuts the graph where the device changes, and where a weight of the host is copied, so that the copies share a place.
fn split(graph: &mut Graph, copies: usize, copied: &mut HashMap<(Id, usize), Vec<Id>>) -> Vec<Split> {
    let nodes = graph.nodes.clone();
    let computed = |graph: &Graph, id: Id| graph.tensors[id].op != Op::View;
    let first = nodes.iter().position(|&id| computed(graph, id)).unwrap_or(0);
    let device_of = |graph: &Graph, id: Id| graph.tensors[id].device.unwrap_or(0);
    let mut current = Split {
        device: nodes.get(first).map_or(0, |&id| device_of(graph, id)),
        start: 0,
        end: nodes.len(),
        inputs: Vec::new(),
    };
    let mut splits = Vec::new();
    for (i, &id) in nodes.iter().enumerate().skip(first) {
        if !computed(graph, id) {
            continue;
        }
        let device = device_of(graph, id);
        let foreign = |graph: &Graph, source: Id| {
            graph.tensors[source].device != Some(current.device)
                && !readable_on(graph, source, current.device)
        };
        let weight_comes = !current.inputs.is_empty()
            && graph.tensors[id]
                .sources
                .iter()
                .any(|&s| graph.tensors[s].weight && foreign(graph, s));
        if device != current.device || weight_comes {
            current.end = i;
            let next = Split {
                device,
                start: i,
                end: nodes.len(),
                inputs: Vec::new(),
            };
            splits.push(std::mem::replace(&mut current, next));
        }
        for k in 0..graph.tensors[id].sources.len() {
            let source = graph.tensors[id].sources[k];
            if graph.tensors[source].device == Some(current.device)
                || readable_on(graph, source, current.device)
            {
                continue;
            }
            let key = (source, current.device);
            if let Entry::Vacant(slot) = copied.entry(key) {
                let made = (0..copies)
                    .map(|_| copy_of(graph, source, current.device, copies > 1))
                    .collect();
                slot.insert(made);
                current.inputs.push(source);
            }
            graph.tensors[id].sources[k] = copied[&key][0];
        }
    }
    splits.push(current);
    splits
}
