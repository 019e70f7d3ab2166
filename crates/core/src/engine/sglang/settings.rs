//! What a user can say to SGLang about memory, under the engine's own names.

use super::speculative::Speculative;
use crate::dtype::Dtype;
use crate::names::nearest;
use crate::{Error, Result};

/// Element type of the KV pool (`--kv-cache-dtype`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvDtype {
    /// The model's type, or fp8 where a ModelOpt checkpoint says so.
    #[default]
    Auto,
    /// bfloat16.
    Bfloat16,
    /// 8-bit float, 4 exponent bits.
    Fp8E4m3,
    /// 8-bit float, 5 exponent bits.
    Fp8E5m2,
    /// 8-bit float with a scale for every 32 (Blackwell).
    Mxfp8,
    /// 4-bit float with a scale for every 16 and one for the tensor (Blackwell).
    Nvfp4,
    /// 4-bit float with a scale for every 16.
    Fp4MxBlock16,
}

impl KvDtype {
    /// The engine's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Bfloat16 => "bfloat16",
            Self::Fp8E4m3 => "fp8_e4m3",
            Self::Fp8E5m2 => "fp8_e5m2",
            Self::Mxfp8 => "mxfp8",
            Self::Nvfp4 => "nvfp4",
            Self::Fp4MxBlock16 => "fp4_mx_block16",
        }
    }

    /// Whether elements have 4 bits.
    pub const fn is_fp4(self) -> bool {
        matches!(self, Self::Nvfp4 | Self::Fp4MxBlock16)
    }

    /// Parses the engine's spellings and the common others.
    ///
    /// # Errors
    /// If the type is not one that is planned for SGLang.
    pub fn parse(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "bf16" | "bfloat16" => Ok(Self::Bfloat16),
            "fp8_e4m3" | "fp8" | "fp8_e4m3fn" | "float8_e4m3fn" => Ok(Self::Fp8E4m3),
            "fp8_e5m2" | "float8_e5m2" => Ok(Self::Fp8E5m2),
            "mxfp8" => Ok(Self::Mxfp8),
            "nvfp4" => Ok(Self::Nvfp4),
            "fp4_mx_block16" => Ok(Self::Fp4MxBlock16),
            "fp4_e2m1" | "mxfp4" => Err(Error::input(format!(
                "--kv-cache-dtype {text} does not say how SGLang scales its 4-bit cache"
            ))
            .hint("write nvfp4 (Blackwell) or fp4_mx_block16")),
            other => {
                let error = Error::input(format!(
                    "--kv-cache-dtype is \"{text}\", which SGLang does not take"
                ))
                .hint("write auto, bfloat16, fp8_e4m3, fp8_e5m2, mxfp8, nvfp4 or fp4_mx_block16");
                Err(
                    match nearest(
                        other,
                        [
                            "auto",
                            "bfloat16",
                            "fp8_e4m3",
                            "fp8_e5m2",
                            "mxfp8",
                            "nvfp4",
                            "fp4_mx_block16",
                        ],
                        1,
                    )
                    .first()
                    {
                        Some(near) => error.hint(format!("did you mean {near}?")),
                        None => error,
                    },
                )
            }
        }
    }
}

/// `--chunked-prefill-size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// At most this many prompt tokens a step.
    Tokens(u64),
    /// Whole prompts (`-1`).
    Whole,
}

/// Settings of one server. `None` is the engine's default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// `--tp-size`; 0 counts as 1.
    pub tensor_parallel_size: u64,
    /// `--pp-size`; 0 counts as 1.
    pub pipeline_parallel_size: u64,
    /// `--dp-size` together with `--enable-dp-attention`: groups of ranks that each serve requests of their own with
    /// whole attention layers. 0 counts as 1.
    pub attention_dp_size: u64,
    /// Whether whole experts are given to ranks (`--ep-size` equal to the tensor-parallel size).
    pub expert_parallel: bool,
    /// `--dtype`.
    pub dtype: Option<Dtype>,
    /// `--quantization`, as written.
    pub quantization: Option<String>,
    /// `--kv-cache-dtype`.
    pub kv_cache_dtype: KvDtype,
    /// `--mem-fraction-static`.
    pub mem_fraction_static: Option<f64>,
    /// `--page-size`.
    pub page_size: Option<u64>,
    /// `--chunked-prefill-size`.
    pub chunked_prefill_size: Option<Chunk>,
    /// `--max-running-requests`.
    pub max_running_requests: Option<u64>,
    /// `--max-total-tokens`.
    pub max_total_tokens: Option<u64>,
    /// `--context-length`.
    pub context_length: Option<u64>,
    /// Whether a context beyond the configuration's is taken (`SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1` in the environment).
    pub longer_context: bool,
    /// `--disable-cuda-graph`.
    pub disable_cuda_graph: bool,
    /// `--disable-prefill-cuda-graph`.
    pub disable_prefill_cuda_graph: bool,
    /// `--cuda-graph-max-bs-decode`.
    pub cuda_graph_max_bs: Option<u64>,
    /// `--swa-full-tokens-ratio`.
    pub swa_full_tokens_ratio: Option<f64>,
    /// `--mamba-full-memory-ratio`.
    pub mamba_full_memory_ratio: Option<f64>,
    /// `--max-mamba-cache-size`.
    pub max_mamba_cache_size: Option<u64>,
    /// `--mamba-radix-cache-strategy extra_buffer` (true) or `no_buffer` (false); `None` is `auto`.
    pub mamba_extra_buffer: Option<bool>,
    /// `--disable-radix-cache`.
    pub disable_radix_cache: bool,
    /// `--disable-overlap-schedule`.
    pub disable_overlap_schedule: bool,
    /// `--attention-backend`.
    pub attention_backend: Option<String>,
    /// Bytes of the KV pools on each GPU, given instead of being measured.
    pub kv_cache_memory_bytes: Option<u64>,
    /// Whether vision and audio towers are left out (`--language-model-only`).
    pub language_model_only: bool,
    /// Speculative decoding.
    pub speculative: Option<Speculative>,
}

impl Settings {
    /// Tensor-parallel ranks.
    pub fn tp(&self) -> u64 {
        self.tensor_parallel_size.max(1)
    }

    /// Pipeline stages.
    pub fn pp(&self) -> u64 {
        self.pipeline_parallel_size.max(1)
    }

    /// Attention groups (`dp_size` under DP attention, else 1).
    pub fn attention_dp(&self) -> u64 {
        self.attention_dp_size.max(1)
    }

    /// Whether a step waits for the results of the one before: as set, and always with pipeline stages
    /// (0.5.23, `srt/arg_groups/overrides.py`, `_pipeline_parallel_overlap_disable`).
    pub fn in_order(&self) -> bool {
        self.disable_overlap_schedule || self.pp() > 1
    }

    /// Ranks that share one attention layer.
    pub fn attention_tp(&self) -> u64 {
        (self.tp() / self.attention_dp()).max(1)
    }

    /// Checks each value by itself and against the others.
    ///
    /// # Errors
    /// If a value is out of range or contradicts another; the message names the flag.
    pub fn validate(&self) -> Result<()> {
        let share = |flag: &str, value: Option<f64>, most: f64| match value {
            Some(v) if !(v > 0.0 && v <= most) => Err(Error::input(format!(
                "{flag} is {v}, expected more than 0 and at most {most}"
            ))),
            _ => Ok(()),
        };
        share("--mem-fraction-static", self.mem_fraction_static, 0.999)?;
        share("--swa-full-tokens-ratio", self.swa_full_tokens_ratio, 1.0)?;
        share("--mamba-full-memory-ratio", self.mamba_full_memory_ratio, 1000.0)?;
        let chunk = match self.chunked_prefill_size {
            Some(Chunk::Tokens(n)) => Some(n),
            _ => None,
        };
        for (flag, value) in [
            ("--page-size", self.page_size),
            ("--chunked-prefill-size", chunk),
            ("--max-running-requests", self.max_running_requests),
            ("--max-total-tokens", self.max_total_tokens),
            ("--max-model-len (SGLang: --context-length)", self.context_length),
            ("--cuda-graph-max-bs-decode", self.cuda_graph_max_bs),
            ("--max-mamba-cache-size", self.max_mamba_cache_size),
        ] {
            if let Some(n) = value
                && !(1..=1 << 40).contains(&n)
            {
                return Err(Error::input(format!(
                    "{flag} is {n}, expected 1 to {}",
                    1_u64 << 40
                )));
            }
        }
        for (flag, n) in [
            ("--tensor-parallel-size", self.tp()),
            ("--pipeline-parallel-size", self.pp()),
            ("--data-parallel-size", self.attention_dp()),
        ] {
            if n > 1 << 16 {
                return Err(Error::input(format!("{flag} is {n}, expected 1 to 65536")));
            }
        }
        if !self.tp().is_multiple_of(self.attention_dp()) {
            return Err(Error::input(format!(
                "--data-parallel-size {} does not divide --tensor-parallel-size {}: under DP attention the groups are \
                 made of the tensor-parallel ranks",
                self.attention_dp(),
                self.tp()
            )));
        }
        if let Some(speculative) = &self.speculative {
            speculative.validate()?;
        }
        if self.max_mamba_cache_size.is_some_and(|n| n < self.attention_dp()) {
            return Err(Error::input(
                "--max-mamba-cache-size is smaller than the number of attention groups that share it",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_out_of_range_is_named_with_its_flag() {
        let says = |settings: Settings, text: &str| {
            let e = settings.validate().unwrap_err().to_string();
            assert!(e.contains(text), "{e}");
        };
        let d = Settings::default;
        says(
            Settings {
                mem_fraction_static: Some(1.5),
                ..d()
            },
            "--mem-fraction-static is 1.5",
        );
        says(
            Settings {
                mem_fraction_static: Some(f64::NAN),
                ..d()
            },
            "--mem-fraction-static is NaN",
        );
        says(
            Settings {
                page_size: Some(0),
                ..d()
            },
            "--page-size is 0",
        );
        says(
            Settings {
                max_total_tokens: Some(u64::MAX),
                ..d()
            },
            "--max-total-tokens",
        );
        says(
            Settings {
                tensor_parallel_size: 8,
                attention_dp_size: 3,
                ..d()
            },
            "does not divide",
        );
        says(
            Settings {
                tensor_parallel_size: u64::MAX,
                ..d()
            },
            "expected 1 to 65536",
        );
        assert!(d().validate().is_ok());
        assert!(KvDtype::parse("mxfp4").is_err());
        assert_eq!(KvDtype::parse("NVFP4").unwrap(), KvDtype::Nvfp4);
        assert!(format!("{:?}", KvDtype::parse("fp8_e4").unwrap_err()).contains("fp8_e4m3"));
    }
}
