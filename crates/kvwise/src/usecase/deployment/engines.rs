//! Settings of SGLang and llama.cpp from what a user says, and the flags that mean nothing to an engine.

use kvwise_core::arch::{Config, Model};
use kvwise_core::engine::llamacpp::hparams::display_name;
use kvwise_core::engine::llamacpp::{self, GgmlType, Header, Hparams, Weights, convert};
use kvwise_core::engine::sglang;
use kvwise_core::plan::{CheckpointBytes, GgufFile, LlamaCpp};
use kvwise_core::units::parse_count;
use kvwise_core::{Error, Result};

use super::{Deployment, speculative};

/// A flag that the user gave, and what to write instead, if anything.
type Foreign = (&'static str, bool, &'static str);

impl Deployment {
    /// Refuses flags that mean nothing to `engine`.
    fn refuse(engine: &str, flags: &[Foreign]) -> Result<()> {
        for &(flag, given, instead) in flags {
            if given {
                let error = Error::input(format!("{flag} means nothing to --engine {engine}"));
                return Err(if instead.is_empty() {
                    error.hint("leave it out")
                } else {
                    error.hint(format!("{engine} calls it {instead}"))
                });
            }
        }
        Ok(())
    }

    /// Flags of SGLang alone.
    fn of_sglang(&self) -> [Foreign; 12] {
        [
            ("--mem-fraction-static", self.mem_fraction_static.is_some(), ""),
            ("--page-size", self.page_size.is_some(), ""),
            ("--chunked-prefill-size", self.chunked_prefill_size.is_some(), ""),
            ("--max-running-requests", self.max_running_requests.is_some(), ""),
            ("--max-total-tokens", self.max_total_tokens.is_some(), ""),
            (
                "--swa-full-tokens-ratio",
                self.swa_full_tokens_ratio.is_some(),
                "",
            ),
            (
                "--mamba-full-memory-ratio",
                self.mamba_full_memory_ratio.is_some(),
                "",
            ),
            (
                "--speculative-algorithm",
                self.speculative_algorithm.is_some(),
                "--speculative-config (method)",
            ),
            (
                "--speculative-draft-model-path",
                self.speculative_draft_model_path.is_some(),
                "--speculative-config (model)",
            ),
            (
                "--speculative-num-steps",
                self.speculative_num_steps.is_some(),
                "--speculative-config (num_speculative_tokens)",
            ),
            (
                "--speculative-eagle-topk",
                self.speculative_eagle_topk.is_some(),
                "",
            ),
            (
                "--speculative-num-draft-tokens",
                self.speculative_num_draft_tokens.is_some(),
                "--speculative-config (num_speculative_tokens)",
            ),
        ]
    }

    /// Flags of llama.cpp alone.
    fn of_llamacpp(&self) -> [Foreign; 16] {
        [
            ("--ctx-size", self.ctx_size.is_some(), ""),
            ("--parallel", self.parallel.is_some(), ""),
            ("--cache-type-k", self.cache_type_k.is_some(), ""),
            ("--cache-type-v", self.cache_type_v.is_some(), ""),
            ("--n-gpu-layers", self.n_gpu_layers.is_some(), ""),
            ("--tensor-split", !self.tensor_split.is_empty(), ""),
            ("--split-mode", self.split_mode.is_some(), ""),
            ("--main-gpu", self.main_gpu.is_some(), ""),
            ("--override-tensor", !self.override_tensor.is_empty(), ""),
            ("--n-cpu-moe", self.n_cpu_moe.is_some(), ""),
            ("--cpu-moe", self.cpu_moe, ""),
            ("--ubatch-size", self.ubatch_size.is_some(), ""),
            ("--swa-full", self.swa_full, ""),
            ("--kv-unified", self.kv_unified, ""),
            ("--no-flash-attn", self.no_flash_attn, ""),
            ("--no-kv-offload", self.no_kv_offload, ""),
        ]
    }

    /// Flags that vLLM alone has.
    fn of_vllm(&self) -> [Foreign; 12] {
        [
            (
                "--num-gpu-blocks-override",
                self.num_gpu_blocks_override.is_some(),
                "",
            ),
            (
                "--max-num-batched-tokens",
                self.max_num_batched_tokens.is_some(),
                "",
            ),
            (
                "--decode-context-parallel-size",
                self.decode_context_parallel_size.is_some_and(|n| n > 1),
                "",
            ),
            (
                "--disable-hybrid-kv-cache-manager",
                self.disable_hybrid_kv_cache_manager,
                "",
            ),
            (
                "--speculative-config",
                self.speculative_config.is_some(),
                "--speculative-algorithm and --speculative-draft-model-path",
            ),
            ("--limit-mm-per-prompt", self.limit_mm_per_prompt.is_some(), ""),
            ("--mm-processor-kwargs", self.mm_processor_kwargs.is_some(), ""),
            ("--skip-mm-profiling", self.skip_mm_profiling, ""),
            ("--enable-lora", self.enable_lora, ""),
            ("--max-loras", self.max_loras.is_some(), ""),
            ("--max-lora-rank", self.max_lora_rank.is_some(), ""),
            ("--engine-version", self.engine_version.is_some(), ""),
        ]
    }

    /// Refuses SGLang's and llama.cpp's own flags, for the other engines.
    pub(super) fn refuse_others(&self, engine: &str) -> Result<()> {
        Self::refuse(engine, &self.of_sglang())?;
        Self::refuse(engine, &self.of_llamacpp())
    }

    /// SGLang's settings.
    ///
    /// # Errors
    /// If a flag means nothing to SGLang, a value cannot be read, or the drafter is not found.
    pub(super) fn sglang(&self, model: &str, target: Option<&Model>) -> Result<sglang::Settings> {
        Self::refuse("sglang", &self.of_llamacpp())?;
        Self::refuse("sglang", &self.of_vllm())?;
        Self::refuse(
            "sglang",
            &[(
                "--gpu-memory-utilization",
                self.gpu_memory_utilization.is_some(),
                "--mem-fraction-static",
            )],
        )?;
        let count = |flag: &str, text: &Option<String>| {
            text.as_deref()
                .map(|text| parse_count(text).map_err(|e| e.at(flag)))
                .transpose()
        };
        // Under DP attention the groups are made of the tensor-parallel ranks: N ranks in all.
        let tp = self.tensor_parallel_size.unwrap_or(1);
        let settings = sglang::Settings {
            tensor_parallel_size: tp,
            pipeline_parallel_size: self.pipeline_parallel_size.unwrap_or(1),
            attention_dp_size: self.data_parallel_size.unwrap_or(1),
            expert_parallel: self.enable_expert_parallel,
            dtype: self.weight_dtype()?,
            quantization: match self.quantization.as_deref() {
                None | Some("auto") => None,
                Some(text) => Some(text.to_ascii_lowercase()),
            },
            kv_cache_dtype: match self.kv_cache_dtype.as_deref() {
                None => sglang::KvDtype::Auto,
                Some(text) => sglang::KvDtype::parse(text)?,
            },
            mem_fraction_static: self.mem_fraction_static,
            // vLLM's names for the same.
            page_size: self.page_size.or(self.block_size),
            chunked_prefill_size: match self.chunked_prefill_size {
                None => None,
                Some(-1) => Some(sglang::Chunk::Whole),
                Some(n) => Some(sglang::Chunk::Tokens(
                    u64::try_from(n).ok().filter(|&n| n > 0).ok_or_else(|| {
                        Error::input(format!(
                            "--chunked-prefill-size is {n}, expected -1 or at least 1"
                        ))
                    })?,
                )),
            },
            max_running_requests: self.max_running_requests.or(self.max_num_seqs),
            max_total_tokens: count("--max-total-tokens", &self.max_total_tokens)?,
            context_length: match self.max_model_len.as_deref() {
                None | Some("auto") => None,
                Some(text) => Some(parse_count(text).map_err(|e| e.at("--max-model-len"))?),
            },
            longer_context: self.longer_context,
            disable_cuda_graph: self.enforce_eager,
            swa_full_tokens_ratio: self.swa_full_tokens_ratio,
            mamba_full_memory_ratio: self.mamba_full_memory_ratio,
            disable_radix_cache: self.no_enable_prefix_caching,
            disable_overlap_schedule: self.no_async_scheduling,
            attention_backend: self.attention_backend.clone(),
            kv_cache_memory_bytes: self.pool_bytes()?,
            language_model_only: self.language_model_only,
            speculative: self.sglang_speculative(model, target)?,
            ..sglang::Settings::default()
        };
        settings.validate()?;
        Ok(settings)
    }

    /// SGLang's speculative decoding.
    fn sglang_speculative(&self, model: &str, target: Option<&Model>) -> Result<Option<sglang::Speculative>> {
        let Some(algorithm) = &self.speculative_algorithm else {
            return match &self.speculative_draft_model_path {
                Some(_) => Err(Error::input(
                    "--speculative-draft-model-path needs --speculative-algorithm",
                )),
                None => Ok(None),
            };
        };
        let algorithm = sglang::Algorithm::parse(algorithm)?;
        let drafter = match &self.speculative_draft_model_path {
            None => sglang::Drafter::Unnamed,
            Some(path) if path == model || self.model.as_ref() == Some(path) => sglang::Drafter::Target,
            Some(path) => sglang::Drafter::Model(Box::new(speculative::of_sglang(
                path,
                algorithm,
                target,
                &self.lookup,
            )?)),
        };
        Ok(Some(sglang::Speculative {
            algorithm,
            num_steps: self.speculative_num_steps,
            eagle_topk: self.speculative_eagle_topk,
            num_draft_tokens: self.speculative_num_draft_tokens,
            drafter,
        }))
    }

    /// llama.cpp's settings, for a file if there is one.
    ///
    /// # Errors
    /// If a flag means nothing to llama.cpp or a value cannot be read.
    pub(super) fn llamacpp(&self, file: Option<GgufFile>, gpus: u64) -> Result<LlamaCpp> {
        Self::refuse("llamacpp", &self.of_sglang())?;
        Self::refuse("llamacpp", &self.of_vllm())?;
        Self::refuse(
            "llamacpp",
            &[
                (
                    "--gpu-memory-utilization",
                    self.gpu_memory_utilization.is_some(),
                    "",
                ),
                (
                    "--kv-cache-memory-bytes",
                    self.kv_cache_memory_bytes.is_some(),
                    "--ctx-size",
                ),
                ("--block-size", self.block_size.is_some(), ""),
                ("--max-num-seqs", self.max_num_seqs.is_some(), "--parallel"),
                ("--attention-backend", self.attention_backend.is_some(), ""),
                (
                    "--tensor-parallel-size",
                    self.tensor_parallel_size.is_some_and(|n| n > 1),
                    "--gpus and --tensor-split",
                ),
                (
                    "--pipeline-parallel-size",
                    self.pipeline_parallel_size.is_some_and(|n| n > 1),
                    "--gpus and --tensor-split",
                ),
                (
                    "--data-parallel-size",
                    self.data_parallel_size.is_some_and(|n| n > 1),
                    "",
                ),
                (
                    "--quantization",
                    file.is_some() && self.quantization.as_deref().is_some_and(|q| q != "auto"),
                    "",
                ),
            ],
        )?;
        let kind = |flag: &str, own: &Option<String>| match own.as_deref().or(self.kv_cache_dtype.as_deref())
        {
            None | Some("auto") => Ok(GgmlType::F16),
            Some(text) => GgmlType::cache(flag, text),
        };
        let size = match (&self.ctx_size, &self.max_model_len) {
            (Some(text), _) => Some(("--ctx-size", text)),
            (None, Some(text)) if text != "auto" => Some(("--max-model-len", text)),
            _ => None,
        };
        let defaults = llamacpp::Settings::default();
        let settings = llamacpp::Settings {
            ctx_size: size
                .map(|(flag, text)| parse_count(text).map_err(|e| e.at(flag)))
                .transpose()?,
            parallel: self.parallel.unwrap_or(defaults.parallel),
            kv_unified: self.kv_unified,
            cache_type_k: kind("--cache-type-k", &self.cache_type_k)?,
            cache_type_v: kind("--cache-type-v", &self.cache_type_v)?,
            swa_full: self.swa_full,
            flash_attn: !self.no_flash_attn,
            flash_attn_auto: !self.no_flash_attn,
            cpu_moe_layers: if self.cpu_moe {
                u64::MAX
            } else {
                self.n_cpu_moe.unwrap_or(0)
            },
            ubatch_size: self.ubatch_size.unwrap_or(defaults.ubatch_size),
            gpu_layers: self.n_gpu_layers,
            tensor_split: self.tensor_split.clone(),
            split_mode: self
                .split_mode
                .as_deref()
                .map_or(Ok(defaults.split_mode), llamacpp::SplitMode::by_name)?,
            main_gpu: self.main_gpu.unwrap_or(defaults.main_gpu),
            overrides: llamacpp::Overrides::read(&self.override_tensor, gpus)?,
            no_kv_offload: self.no_kv_offload,
            gpus,
            ..defaults
        };
        settings.validate()?;
        let mix = match self.quantization.as_deref() {
            None | Some("auto") => None,
            Some("none") => Some("bf16".to_owned()),
            Some(text) => match convert::Mix::by_name(text) {
                Some(mix) => Some(mix.name.to_owned()),
                None => {
                    return Err(Error::input(format!(
                        "--quantization is \"{text}\", which is no mix of llama.cpp's"
                    ))
                    .hint(format!("write one of {}", convert::mix_names().join(", "))));
                }
            },
        };
        Ok(LlamaCpp { settings, file, mix })
    }
}

/// What a GGUF file is, for the planner.
pub(super) struct FromFile {
    /// Its own name, else the path.
    pub name: Option<String>,
    /// Layers and bytes.
    pub file: GgufFile,
    /// The same as layers for engines that ask no more.
    pub model: Model,
    /// An empty configuration.
    pub config: Config,
    /// Bytes of all tensors.
    pub checkpoint: CheckpointBytes,
}

/// Reads what a header says of the model.
///
/// # Errors
/// If the architecture is not modelled or a size makes no sense.
pub(super) fn from_file(name: &str, header: &Header) -> Result<FromFile> {
    let hparams = Hparams::read(header)?;
    let weights = Weights::of_file(header, &hparams)?;
    let checkpoint = CheckpointBytes {
        total_bytes: weights.file,
        source: "gguf",
    };
    Ok(FromFile {
        name: display_name(header).map(str::to_owned),
        model: convert::model(name, &hparams, header)?,
        config: Config::from_map(serde_json::Map::new()),
        file: GgufFile { hparams, weights },
        checkpoint,
    })
}
