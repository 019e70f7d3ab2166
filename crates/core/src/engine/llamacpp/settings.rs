//! What a user can say to llama.cpp about memory, under the names of `llama-server`'s flags.

use super::compute::Outputs;
use super::ggml::GgmlType;
use super::hparams::Hparams;
use super::place::Placement;
use crate::{Error, Result};

/// Most sequences (`LLAMA_MAX_SEQ`).
pub(crate) const MAX_SEQUENCES: u64 = 256;

/// Settings of one server. `None` is llama.cpp's default.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `--ctx-size`: tokens of all sequences together; `None` or 0 is the model's.
    pub ctx_size: Option<u64>,
    /// `--parallel`: sequences at once (default 1, as in the library).
    pub parallel: u64,
    /// `--kv-unified`: one cache shared by all sequences, instead of an equal part for each.
    pub kv_unified: bool,
    /// `--cache-type-k`.
    pub cache_type_k: GgmlType,
    /// `--cache-type-v`.
    pub cache_type_v: GgmlType,
    /// `--swa-full`: windows keep the whole context.
    pub swa_full: bool,
    /// `--flash-attn on` (or auto on hardware that has it).
    pub flash_attn: bool,
    /// Whether flash attention was left to llama.cpp, which lays caches out for it before it looks whether the GPU has a kernel.
    pub flash_attn_auto: bool,
    /// `--batch-size`.
    pub batch_size: u64,
    /// `--ubatch-size`.
    pub ubatch_size: u64,
    /// `--n-gpu-layers`; `None` is all of them.
    pub gpu_layers: Option<u64>,
    /// `--tensor-split`: shares of the GPUs; empty splits by free memory, which is equally among equal cards.
    pub tensor_split: Vec<f64>,
    /// Whether caches stay with the host (`--no-kv-offload`).
    pub no_kv_offload: bool,
    /// GPUs.
    pub gpus: u64,
    /// For which tokens of a batch logits are reserved.
    pub outputs: Outputs,
    /// `--n-cpu-moe`: the experts of that many first layers stay with the host (`--cpu-moe`: of all).
    pub cpu_moe_layers: u64,
}

/// Whether CUDA's flash attention has a kernel for heads of these widths, `shared` query heads to one of keys
/// (b11434, `ggml-cuda/fattn.cu`, a card with tensor cores).
pub(super) fn attends(keys: u64, values: u64, shared: u64) -> bool {
    match keys {
        40 | 64 | 72 | 80 | 96 | 112 | 128 | 256 => keys == values,
        192 => values == 128 && shared >= 2 && shared.is_multiple_of(8),
        320 => values == 256 && shared >= 2 && shared.is_multiple_of(32),
        512 => values == keys && shared >= 2,
        576 => values == 512 && shared >= 2,
        _ => false,
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ctx_size: None,
            parallel: 1,
            kv_unified: false,
            cache_type_k: GgmlType::F16,
            cache_type_v: GgmlType::F16,
            swa_full: false,
            flash_attn: true,
            flash_attn_auto: false,
            batch_size: 2048,
            ubatch_size: 512,
            gpu_layers: None,
            tensor_split: Vec::new(),
            no_kv_offload: false,
            gpus: 1,
            outputs: Outputs::Sequences,
            cpu_moe_layers: 0,
        }
    }
}

impl Settings {
    /// Checks each value by itself and against the others.
    ///
    /// # Errors
    /// If a value is out of range or contradicts another; the flag is named.
    pub fn validate(&self) -> Result<()> {
        for (flag, n, most) in [
            ("--ctx-size", self.ctx_size.unwrap_or(1), 1 << 31),
            ("--parallel", self.parallel, MAX_SEQUENCES),
            ("--batch-size", self.batch_size, 1 << 24),
            ("--ubatch-size", self.ubatch_size, 1 << 24),
            ("--gpus", self.gpus, 1 << 10),
        ] {
            if n == 0 && flag != "--ctx-size" || n > most {
                return Err(Error::input(format!("{flag} is {n}, expected 1 to {most}")));
            }
        }
        if !self.tensor_split.is_empty() {
            if self.tensor_split.len() as u64 != self.gpus {
                return Err(Error::input(format!(
                    "--tensor-split has {} shares for {} GPUs",
                    self.tensor_split.len(),
                    self.gpus
                ))
                .hint("give one share for each GPU, and --gpus"));
            }
            let sum: f64 = self.tensor_split.iter().sum();
            if self.tensor_split.iter().any(|s| !(*s >= 0.0 && s.is_finite())) || sum <= 0.0 {
                return Err(Error::input(
                    "--tensor-split must be shares of 0 or more, not all 0",
                ));
            }
        }
        Ok(())
    }

    /// These settings where flash attention is left to llama.cpp: it turns it off if the GPU has no kernel for the heads of a
    /// layer (b11434, `llama-context.cpp`, `resolve_fused_ops`; `ggml-cuda/fattn.cu`, a card with tensor cores).
    #[must_use]
    pub fn with_flash_attention_resolved(mut self, model: &Hparams, placement: &Placement) -> Self {
        // Values in blocks cannot lie by element, so they ask for it themselves.
        if self.flash_attn_auto && self.flash_attn && !self.cache_type_v.quantized() {
            self.flash_attn = model
                .layers
                .iter()
                .zip(&placement.devices)
                .all(|(layer, device)| {
                    let (Some(a), Some(_)) = (layer.attention, device) else {
                        return true;
                    };
                    let kv = a.heads.max(1);
                    let keys = a.keys / kv;
                    let values = if model.mla {
                        keys.saturating_sub(64)
                    } else {
                        a.values / kv
                    };
                    attends(keys, values, model.heads / kv)
                });
        }
        self
    }

    /// Whether values lie by element and not by token.
    pub fn values_transposed(&self) -> bool {
        !self.flash_attn && !self.flash_attn_auto
    }

    /// Why llama.cpp would not make the context (0c1e570, `src/llama-context.cpp`, `llama_init_from_model`).
    pub fn refusal(&self, model: &Hparams) -> Option<String> {
        let (k, v) = (self.cache_type_k, self.cache_type_v);
        if model.mla && k != v {
            return Some(format!(
                "this model keeps keys and values as one: the cache types must be the same, not {} and {}",
                k.name, v.name
            ));
        }
        if v.quantized() && !self.flash_attn {
            return Some(format!("a V cache of {} needs flash attention", v.name));
        }
        for (what, kind, width) in [("K", k, model.head_widths.0), ("V", v, model.head_widths.1)] {
            if self.flash_attn && !width.is_multiple_of(kind.block) {
                return Some(format!(
                    "a {what} cache of {} needs heads in whole blocks of {}, but a head has {width} elements",
                    kind.name, kind.block
                ));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_named_with_their_flag() {
        let says = |s: Settings, text: &str| {
            let e = s.validate().unwrap_err().to_string();
            assert!(e.contains(text), "{e}");
        };
        let d = Settings::default;
        says(Settings { parallel: 0, ..d() }, "--parallel is 0");
        says(Settings { parallel: 257, ..d() }, "--parallel is 257");
        says(
            Settings {
                ubatch_size: 0,
                ..d()
            },
            "--ubatch-size",
        );
        says(
            Settings {
                ctx_size: Some(u64::MAX),
                ..d()
            },
            "--ctx-size",
        );
        says(
            Settings {
                tensor_split: vec![1.0],
                gpus: 2,
                ..d()
            },
            "1 shares for 2 GPUs",
        );
        says(
            Settings {
                tensor_split: vec![0.0, 0.0],
                gpus: 2,
                ..d()
            },
            "not all 0",
        );
        says(
            Settings {
                tensor_split: vec![f64::NAN, 1.0],
                gpus: 2,
                ..d()
            },
            "not all 0",
        );
        assert!(d().validate().is_ok());
    }
}
