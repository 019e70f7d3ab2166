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
    /// Factors of rotations, which the first layer of each GPU holds; those of the first layer of all count as its weights.
    pub rotations: u64,
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
            file: header.tensor_bytes()?,
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
            let stored = Stored {
                bytes: tensor.bytes,
                padding: row_padding(tensor.kind.block, tensor.kind.block_bytes, width),
            };
            let on_gpu = tensor
                .bytes
                .checked_add(stored.padding)
                .and_then(|n| n.checked_next_multiple_of(GPU_ALIGNMENT))
                .ok_or_else(too_large)?;
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
            match layer_of(&tensor.name) {
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
                }
                None if tensor.name.starts_with("output") => {
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
        }
    }
}

fn rotates(name: &str) -> bool {
    name.starts_with("rope_freqs.") || name.starts_with("rope_factors_")
}

/// The layer of `blk.7.attn_q.weight`. Rotation factors are one tensor for all layers, which llama.cpp places with
/// the first of them (`llama-arch.cpp`: `LLM_TENSOR_ROPE_FREQS` and `_FACTORS_*` repeat, their name has no layer).
fn layer_of(name: &str) -> Option<usize> {
    if rotates(name) {
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
    /// Whether a GPU holds layers, but not the first of all: then it has its own copy of what all layers share.
    pub fn copies_shared(&self, gpu: u64) -> bool {
        let repeating = &self.devices[..self.devices.len().saturating_sub(1)];
        repeating.contains(&Some(gpu)) && repeating.first() != Some(&Some(gpu))
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
    let shares: Vec<f64> = if settings.tensor_split.is_empty() {
        vec![1.0; usize::try_from(settings.gpus).unwrap_or(1)]
    } else {
        settings.tensor_split.clone()
    };
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
