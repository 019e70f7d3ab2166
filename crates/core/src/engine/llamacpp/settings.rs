//! What a user can say to llama.cpp about memory, under the names of `llama-server`'s flags.

use super::compute::Outputs;
use super::ggml::GgmlType;
use super::hparams::Hparams;
use super::overrides::Overrides;
use super::place::{Placement, Weights};
use crate::{Error, Result};

/// Most sequences (`LLAMA_MAX_SEQ`).
pub(crate) const MAX_SEQUENCES: u64 = 256;

/// What is spread over several GPUs (`--split-mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SplitMode {
    /// Nothing: one GPU has the model.
    None,
    /// Layers with their caches.
    #[default]
    Layer,
    /// Rows of each matrix.
    Row,
    /// Matrices and caches, in parallel.
    Tensor,
}

impl SplitMode {
    /// The mode of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn by_name(name: &str) -> Result<Self> {
        match name {
            "none" => Ok(Self::None),
            "layer" => Ok(Self::Layer),
            "row" => Ok(Self::Row),
            "tensor" => Ok(Self::Tensor),
            _ => Err(Error::input(format!(
                "--split-mode is \"{name}\", which llama.cpp does not have"
            ))
            .hint("write none, layer, row or tensor")),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Layer => "layer",
            Self::Row => "row",
            Self::Tensor => "tensor",
        }
    }
}

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
    /// `--split-mode`.
    pub split_mode: SplitMode,
    /// `--main-gpu`: the one that has the model where nothing is split; a negative one is the host.
    pub main_gpu: i64,
    /// `--override-tensor`; the patterns are asked before those of `--cpu-moe` and `--n-cpu-moe`.
    pub overrides: Overrides,
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
            split_mode: SplitMode::Layer,
            main_gpu: 0,
            overrides: Overrides::default(),
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
            if self.tensor_split.len() as u64 > self.gpus {
                return Err(Error::input(format!(
                    "--tensor-split has {} shares for {} GPUs",
                    self.tensor_split.len(),
                    self.gpus
                ))
                .hint("give --gpus, or at most one share for each GPU"));
            }
            if self.tensor_split.iter().any(|s| !(*s >= 0.0 && s.is_finite())) {
                return Err(Error::input("--tensor-split must be shares of 0 or more"));
            }
        }
        if self.split_mode == SplitMode::Tensor {
            return Err(Error::unsupported(
                "--split-mode tensor is not planned: which part of each tensor a GPU has is not modelled",
            )
            .hint("plan --split-mode layer"));
        }
        if self.split_mode == SplitMode::None && !self.overrides.is_empty() && self.gpus > 1 {
            return Err(Error::unsupported(
                "--override-tensor with --split-mode none on several GPUs is not planned",
            )
            .hint("give --gpus 1"));
        }
        Ok(())
    }

    /// The share of each GPU: those left out are 0, and where all are 0 memory decides, which is equal (b11434,
    /// `src/llama-model.cpp`, `load_tensors`).
    pub fn shares(&self) -> Vec<f64> {
        let gpus = usize::try_from(self.gpus).unwrap_or(1);
        if self.tensor_split.iter().take(gpus).all(|&share| share == 0.0) {
            return vec![1.0; gpus];
        }
        let mut shares = self.tensor_split.clone();
        shares.resize(gpus, 0.0);
        shares
    }

    /// Where the name of a tensor places it, whatever its layer: `Some(None)` is the host.
    pub fn placed_by_name(&self, name: &str) -> Option<Option<u64>> {
        self.overrides
            .of(name)
            .or_else(|| Weights::stays_with_host(name, self).then_some(None))
    }

    /// Whether any names place tensors, so that batches are not pipelined.
    pub fn names_place_tensors(&self) -> bool {
        self.cpu_moe_layers > 0 || !self.overrides.is_empty()
    }

    /// The settings of the devices that are used, and what others do (b11434, `src/llama.cpp`, `llama_prepare_model_devices`): where
    /// nothing is split, one GPU alone has the model.
    #[must_use]
    pub fn on_used_devices(mut self) -> (Self, Option<String>) {
        let said = match self.split_mode {
            SplitMode::None => {
                let idle = self.gpus.saturating_sub(1);
                self.gpus = 1;
                self.tensor_split.clear();
                if self.main_gpu < 0 {
                    self.gpu_layers = Some(0);
                    Some(format!(
                        "--split-mode none with --main-gpu {}: no GPU is used",
                        self.main_gpu
                    ))
                } else {
                    (idle > 0).then(|| {
                        format!(
                            "--split-mode none: GPU {} has all of it, {idle} more stay empty",
                            self.main_gpu
                        )
                    })
                }
            }
            _ if self.main_gpu != 0 => Some(
                "--main-gpu changes nothing: llama.cpp b11549 reads it with --split-mode none alone"
                    .to_owned(),
            ),
            _ => None,
        };
        (self, said)
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
        // b11434, `make_gpu_buft_list`; only SYCL's backend still has split buffers (pull request 24216 of June 2026).
        if self.split_mode == SplitMode::Row {
            return Some(
                "--split-mode row needs split buffers, which llama.cpp's CUDA backend no longer has; --split-mode layer starts"
                    .to_owned(),
            );
        }
        if self.split_mode == SplitMode::None
            && u64::try_from(self.main_gpu).is_ok_and(|gpu| gpu >= self.gpus)
        {
            return Some(format!(
                "--main-gpu is {}, but there are GPUs 0 to {}",
                self.main_gpu,
                self.gpus.saturating_sub(1)
            ));
        }
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
                tensor_split: vec![1.0, 1.0, 1.0],
                gpus: 2,
                ..d()
            },
            "3 shares for 2 GPUs",
        );
        says(
            Settings {
                tensor_split: vec![f64::NAN, 1.0],
                gpus: 2,
                ..d()
            },
            "shares of 0 or more",
        );
        says(
            Settings {
                split_mode: SplitMode::Tensor,
                ..d()
            },
            "--split-mode tensor is not planned",
        );
        assert!(d().validate().is_ok());
    }

    #[test]
    fn shares_that_are_left_out_are_nothing_and_no_shares_are_equal_ones() {
        let of = |tensor_split: &[f64]| {
            Settings {
                tensor_split: tensor_split.to_vec(),
                gpus: 3,
                ..Settings::default()
            }
            .shares()
        };
        assert_eq!(of(&[3.0, 1.0]), [3.0, 1.0, 0.0]);
        assert_eq!(of(&[0.0, 0.0]), [1.0; 3]);
        assert_eq!(of(&[]), [1.0; 3]);
    }

    #[test]
    fn where_nothing_is_split_one_gpu_has_the_model() {
        let made = Settings {
            split_mode: SplitMode::None,
            main_gpu: 1,
            gpus: 3,
            tensor_split: vec![1.0, 2.0],
            ..Settings::default()
        };
        let (used, said) = made.clone().on_used_devices();
        assert_eq!((used.gpus, used.gpu_layers), (1, None));
        assert!(said.unwrap().contains("GPU 1 has all of it, 2 more"));
        let (used, said) = Settings { main_gpu: -1, ..made }.on_used_devices();
        assert_eq!(used.gpu_layers, Some(0));
        assert!(said.unwrap().contains("no GPU is used"));
    }
}
