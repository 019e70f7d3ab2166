//! Which layers go to which device (llama.cpp 0c1e570, `src/llama-model.cpp`, `load_tensors`).
//!
//! The last `--n-gpu-layers` of the layers are offloaded, the output counting as one more after the last. The token
//! embedding always stays with the host. Several GPUs take consecutive layers in proportion to their shares.

use std::collections::BTreeMap;

use super::gguf::Header;
use super::graph::{GPU_ALIGNMENT, row_padding};
use super::hparams::Hparams;
use super::settings::Settings;
use crate::{Error, Result};

/// Bytes of the weights, by what is placed together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Weights {
    /// Token embedding and whatever else is read before the first layer.
    pub input: u64,
    /// Each layer.
    pub layers: Vec<u64>,
    /// Final norm and output head; a tied embedding is copied, so it counts here too.
    pub output: u64,
    /// Bytes in the file (a tied embedding once).
    pub file: u64,
    /// Parameters, and those that one token uses.
    pub params: (u64, u64),
    /// What each layer takes more on a GPU, where tensors are aligned and rows padded; the output last.
    pub padding: Vec<u64>,
    /// Factors of rotations, which the first layer of each GPU that rotates by them holds; those of the first of all count as
    /// its weights.
    pub rotations: u64,
    /// Bytes of the file that are not read: layers that predict further tokens.
    pub unread: u64,
    /// What the routed experts of each layer take on a GPU.
    pub experts: Vec<u64>,
    /// The layers that rotate by factors.
    pub rotating: Vec<usize>,
    /// Tensors of a file by name; empty for a configuration.
    pub tensors: BTreeMap<String, Stored>,
}

/// Bytes of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stored {
    /// In the file.
    pub bytes: u64,
    /// What a GPU adds behind its last row.
    pub padding: u64,
    /// Dimensions, innermost first; zeros where they are not known.
    pub shape: [u64; 4],
    /// What it is placed with.
    pub home: Home,
}

/// What a tensor is placed with, unless its name says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Home {
    /// The host: it is read before the first layer.
    #[default]
    Host,
    /// This layer, the output after the last.
    Layer(usize),
    /// Nothing: it is not read.
    Unread,
}

impl Stored {
    /// What it takes on a GPU, `None` if that leaves 64 bits.
    fn on_gpu(&self) -> Option<u64> {
        self.bytes
            .checked_add(self.padding)?
            .checked_next_multiple_of(GPU_ALIGNMENT)
    }
}

/// Bytes of the weights on each device, tensor by tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// On each GPU.
    pub gpus: Vec<u64>,
    /// With the host.
    pub host: u64,
    /// The part of the host's whose layers are on GPUs.
    pub moved: u64,
}

impl Weights {
    /// Sums the tensors of a file by where llama.cpp places them.
    ///
    /// # Errors
    /// If a sum leaves 64 bits or a tensor belongs to a layer that the metadata does not count.
    pub fn of_file(header: &Header, model: &Hparams) -> Result<Self> {
        let mut out = Self {
            layers: vec![0; model.layers.len()],
            padding: vec![0; model.layers.len() + 1],
            // Gemma 4 rotates by factors where it sees the full context.
            rotating: (0..model.layers.len())
                .filter(|&i| {
                    model.architecture != "gemma4" || model.layers[i].attention.is_some_and(|a| !a.sliding)
                })
                .collect(),
            file: header.tensor_bytes()?,
            experts: vec![0; model.layers.len()],
            ..Self::default()
        };
        let too_large = || Error::overflow("the size of the weights");
        let add = |slot: &mut u64, bytes: u64| -> Result<()> {
            *slot = slot.checked_add(bytes).ok_or_else(too_large)?;
            Ok(())
        };
        let mut embedding = 0;
        let mut head = false;
        let (experts, used) = model.experts;
        let mut params = (0_u64, 0_u64);
        let mut embedding_padding = 0;
        for tensor in &header.tensors {
            let elements = tensor.elements()?;
            let width = tensor.shape.first().copied().unwrap_or(0);
            let first = out.rotating.first().copied().unwrap_or(0);
            let layer = layer_of(&tensor.name, first);
            let stored = Stored {
                bytes: tensor.bytes,
                padding: row_padding(tensor.kind.block, tensor.kind.block_bytes, width),
                shape: std::array::from_fn(|i| tensor.shape.get(i).copied().unwrap_or(1)),
                home: match layer {
                    // Layers that predict further tokens are read where they are asked for alone (`load_mtp`).
                    Some(layer) if layer >= model.keys.trunk && layer < model.layers.len() => Home::Unread,
                    Some(layer) => Home::Layer(layer),
                    None if with_output(&tensor.name, &model.architecture) => Home::Layer(model.layers.len()),
                    None => Home::Host,
                },
            };
            let on_gpu = stored.on_gpu().ok_or_else(too_large)?;
            let more = on_gpu - tensor.bytes;
            out.tensors.insert(tensor.name.clone(), stored);
            let routed = tensor.name.contains("_exps");
            let active = if routed && experts > 0 {
                elements / experts * used.min(experts)
            } else {
                elements
            };
            params.0 = params.0.checked_add(elements).ok_or_else(too_large)?;
            params.1 = params.1.checked_add(active).ok_or_else(too_large)?;
            if rotates(&tensor.name) {
                add(&mut out.rotations, on_gpu)?;
            }
            match layer {
                _ if stored.home == Home::Unread => add(&mut out.unread, tensor.bytes)?,
                Some(layer) => {
                    let count = model.layers.len();
                    let slot = out.layers.get_mut(layer).ok_or_else(|| {
                        Error::input(format!(
                            "tensor {} belongs to layer {layer}, but the metadata counts {count}",
                            tensor.name
                        ))
                    })?;
                    add(slot, tensor.bytes)?;
                    add(&mut out.padding[layer], more)?;
                    if routed_expert(&tensor.name) {
                        add(&mut out.experts[layer], on_gpu)?;
                    }
                }
                None if stored.home != Home::Host => {
                    head |= tensor.name == "output.weight";
                    add(&mut out.output, tensor.bytes)?;
                    add(&mut out.padding[model.layers.len()], more)?;
                }
                None => {
                    if tensor.name == "token_embd.weight" {
                        embedding = tensor.bytes;
                        embedding_padding = more;
                    }
                    add(&mut out.input, tensor.bytes)?;
                }
            }
        }
        if !head {
            add(&mut out.output, embedding)?;
            add(&mut out.padding[model.layers.len()], embedding_padding)?;
        }
        out.params = params;
        Ok(out)
    }

    /// Whether a tensor stays with the host although its layer is on a GPU (`common/arg.cpp`, `--cpu-moe` and `--n-cpu-moe`:
    /// `\.ffn_(up|down|gate|gate_up)_(ch|)exps`).
    pub fn stays_with_host(name: &str, settings: &Settings) -> bool {
        let Some(rest) = name.strip_prefix("blk.").filter(|_| settings.cpu_moe_layers > 0) else {
            return false;
        };
        let layer = rest.split('.').next().and_then(|layer| layer.parse::<u64>().ok());
        layer.is_some_and(|layer| layer < settings.cpu_moe_layers) && routed_expert(name)
    }

    /// Bytes of a layer that stay with the host by `--cpu-moe` or `--n-cpu-moe`, whatever the layer's device.
    pub fn experts_with_host(&self, layer: usize, settings: &Settings) -> u64 {
        if layer as u64 >= settings.cpu_moe_layers {
            return 0;
        }
        self.experts.get(layer).copied().unwrap_or(0)
    }

    /// Where every tensor of a file lies, also those that their names place.
    ///
    /// # Errors
    /// If a sum leaves 64 bits.
    pub fn placed(&self, placement: &Placement, settings: &Settings) -> Result<Placed> {
        let too_large = || Error::overflow("the weights of one device");
        let mut out = Placed {
            gpus: vec![0; usize::try_from(settings.gpus).unwrap_or(0)],
            host: 0,
            moved: 0,
        };
        let tied = !self.tensors.contains_key("output.weight");
        let device = |layer: usize| placement.devices.get(layer).copied().flatten();
        for (name, stored) in &self.tensors {
            let own = match stored.home {
                Home::Unread => continue,
                Home::Host => None,
                Home::Layer(layer) => device(layer),
            };
            let named = settings.placed_by_name(name);
            let mut places = vec![named.unwrap_or(own)];
            if named.is_none() {
                // Factors of rotations are on every GPU that rotates, a tied embedding beside the output too.
                if rotates(name) {
                    places.extend(
                        (0..settings.gpus)
                            .filter(|&gpu| placement.copies_factors(self, gpu))
                            .map(Some),
                    );
                }
                let output = placement.devices.last().copied().flatten();
                if tied && name == "token_embd.weight" && output.is_some() {
                    places.push(output);
                }
            } else if named == Some(None) && own.is_some() {
                out.moved = out.moved.checked_add(stored.bytes).ok_or_else(too_large)?;
            }
            for place in places {
                let gpu = place.and_then(|gpu| usize::try_from(gpu).ok());
                let (slot, bytes) = match gpu.and_then(|gpu| out.gpus.get_mut(gpu)) {
                    Some(slot) => (slot, stored.on_gpu().ok_or_else(too_large)?),
                    None => (&mut out.host, stored.bytes),
                };
                *slot = slot.checked_add(bytes).ok_or_else(too_large)?;
            }
        }
        Ok(out)
    }

    /// A tensor of the file; a head that is not there is the embedding, anything else is as dense as the average.
    pub fn tensor(&self, name: &str, shape: [u64; 4]) -> Stored {
        let named = |name: &str| self.tensors.get(name).copied();
        if let Some(stored) = named(name) {
            return stored;
        }
        if let ("output.weight", Some(stored)) = (name, named("token_embd.weight")) {
            return stored;
        }
        let elements = shape
            .iter()
            .fold(1_u128, |product, &n| product.saturating_mul(u128::from(n)));
        let bytes = elements.saturating_mul(u128::from(self.file)) / u128::from(self.params.0.max(1));
        Stored {
            bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
            padding: 0,
            shape: [0; 4],
            home: Home::Host,
        }
    }
}

/// Whether a tensor holds routed experts.
fn routed_expert(name: &str) -> bool {
    let part = name.split('.').nth(2).and_then(|part| part.strip_prefix("ffn_"));
    part.is_some_and(|part| {
        ["up", "down", "gate", "gate_up"].iter().any(|kind| {
            part.strip_prefix(kind)
                .is_some_and(|rest| rest.starts_with("_exps") || rest.starts_with("_chexps"))
        })
    })
}

/// Tensors without a layer in their name that are placed with the first one (`llama-arch.cpp`, `LLM_TENSOR_INFOS`).
const WITH_FIRST_LAYER: [&str; 2] = ["per_layer_model_proj.weight", "per_layer_proj_norm.weight"];

/// Whether a tensor is placed with the output.
fn with_output(name: &str, architecture: &str) -> bool {
    let final_norm = architecture.starts_with("lfm2") && name == "token_embd_norm.weight";
    final_norm || name.starts_with("output") || name.starts_with("altup_")
}

fn rotates(name: &str) -> bool {
    name.starts_with("rope_freqs.") || name.starts_with("rope_factors_")
}

/// The layer of `blk.7.attn_q.weight`. Rotation factors are one tensor for all layers, which llama.cpp places with
/// the first of them (`llama-arch.cpp`: `LLM_TENSOR_ROPE_FREQS` and `_FACTORS_*` repeat, their name has no layer).
fn layer_of(name: &str, rotating: usize) -> Option<usize> {
    if rotates(name) {
        return Some(rotating);
    }
    if WITH_FIRST_LAYER.contains(&name) {
        return Some(0);
    }
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Where the repeating layers and the output are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Device of each layer, the output last; `None` is the host.
    pub devices: Vec<Option<u64>>,
}

impl Placement {
    /// Whether a GPU holds layers that rotate by factors, but not the first of them: then it has its own copy of those.
    pub fn copies_factors(&self, weights: &Weights, gpu: u64) -> bool {
        let at = |layer: &usize| self.devices.get(*layer) == Some(&Some(gpu));
        weights.rotating.iter().any(at) && !weights.rotating.first().is_some_and(at)
    }

    /// Layers on any GPU, the output counted.
    pub fn offloaded(&self) -> u64 {
        self.devices.iter().filter(|d| d.is_some()).count() as u64
    }
}

/// Places `layers` repeating layers and the output.
pub fn place(layers: u64, settings: &Settings) -> Placement {
    let all = layers.saturating_add(1);
    let offload = settings.gpu_layers.unwrap_or(all).min(all);
    let first = all - offload;
    let shares = settings.shares();
    // Cumulative shares in single precision, as llama.cpp compares them.
    let mut ends = Vec::new();
    let mut sum = 0.0_f32;
    for share in &shares {
        sum += single(*share);
        ends.push(sum);
    }
    let devices = (0..all)
        .map(|layer| {
            let within = layer.checked_sub(first).filter(|_| offload > 0)?;
            let at = single(within as f64) / single(offload as f64);
            let device = ends.iter().take_while(|&&end| end / sum <= at).count() as u64;
            Some(device.min(shares.len() as u64 - 1))
        })
        .collect();
    Placement { devices }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "llama.cpp computes shares in single precision"
)]
fn single(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(layers: u64, gpu_layers: Option<u64>, split: &[f64]) -> Vec<Option<u64>> {
        place(
            layers,
            &Settings {
                gpu_layers,
                gpus: (split.len() as u64).max(1),
                tensor_split: split.to_vec(),
                ..Settings::default()
            },
        )
        .devices
    }

    #[test]
    fn the_last_layers_are_offloaded_and_the_output_counts_as_one() {
        let h = None;
        let g = Some(0);
        assert_eq!(devices(3, None, &[]), [g, g, g, g]);
        assert_eq!(devices(3, Some(0), &[]), [h, h, h, h]);
        assert_eq!(devices(3, Some(1), &[]), [h, h, h, g]);
        assert_eq!(devices(3, Some(2), &[]), [h, h, g, g]);
        assert_eq!(devices(3, Some(99), &[]), [g, g, g, g]);
    }

    #[test]
    fn gpus_take_consecutive_layers_in_proportion_to_their_shares() {
        let count = |d: &[Option<u64>], gpu| d.iter().filter(|&&x| x == Some(gpu)).count();
        let even = devices(31, None, &[1.0, 1.0]);
        assert_eq!((count(&even, 0), count(&even, 1)), (16, 16));
        let uneven = devices(31, None, &[3.0, 1.0]);
        assert_eq!((count(&uneven, 0), count(&uneven, 1)), (24, 8));
        assert!(uneven.windows(2).all(|w| w[0] <= w[1]));
        assert_eq!(
            count(&devices(31, None, &[0.0, 1.0]), 1),
            32,
            "a share of 0 takes nothing"
        );
    }
}
