//! What a user says about a deployment, and what it becomes: model, hardware and engine settings.
//!
//! The same fields come from the command line, from a profile file and from requests to the web interface.

mod generic;
mod speculative;
mod vllm;

use std::sync::Arc;

use kvwise_core::arch::{Config, Model};
use kvwise_core::dtype::Dtype;
use kvwise_core::names::nearest;
use kvwise_core::plan::{
    CheckpointBytes, Correction, Engine, Factor, Hardware, Load, Mode, Policy, Request, Site, Subject,
};
use kvwise_core::quant::Inventories;
use kvwise_core::units::{GIB, human_bytes, parse_bytes, parse_count};
use kvwise_core::{Error, Result};
use kvwise_io::gpu::user;
use kvwise_io::model::{Checkpoint, Place, is_gguf_name};
use serde::{Deserialize, Serialize};

mod engines;

use super::gpus;
use super::lookup::Lookup;
use super::settings;

/// Everything that can be said; what is not said has the engine's default. Sizes, counts and names are text in the
/// spellings of the command line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(
    missing_docs,
    reason = "each field is the flag of the same name, documented there"
)]
pub struct Deployment {
    pub model: Option<String>,
    pub revision: Option<String>,
    pub params_b: Option<f64>,
    pub gpu: Option<String>,
    pub gpus: Option<u64>,
    pub gpu_memory: Option<String>,
    pub interconnect: Option<String>,
    pub engine: Option<String>,
    pub engine_version: Option<String>,
    pub tensor_parallel_size: Option<u64>,
    pub pipeline_parallel_size: Option<u64>,
    pub data_parallel_size: Option<u64>,
    pub enable_expert_parallel: bool,
    pub decode_context_parallel_size: Option<u64>,
    pub dtype: Option<String>,
    pub quantization: Option<String>,
    pub kv_cache_dtype: Option<String>,
    pub kv_cache_dtype_skip_layers: Option<String>,
    pub block_size: Option<u64>,
    pub max_model_len: Option<String>,
    pub max_num_seqs: Option<u64>,
    pub max_num_batched_tokens: Option<String>,
    pub gpu_memory_utilization: Option<f64>,
    pub kv_cache_memory_bytes: Option<String>,
    pub num_gpu_blocks_override: Option<u64>,
    pub enforce_eager: bool,
    pub no_enable_prefix_caching: bool,
    pub no_async_scheduling: bool,
    pub disable_hybrid_kv_cache_manager: bool,
    pub attention_backend: Option<String>,
    pub language_model_only: bool,
    pub speculative_config: Option<String>,
    pub enable_lora: bool,
    pub max_loras: Option<u64>,
    pub max_lora_rank: Option<u64>,
    pub mem_fraction_static: Option<f64>,
    pub page_size: Option<u64>,
    pub chunked_prefill_size: Option<i64>,
    pub max_running_requests: Option<u64>,
    pub max_total_tokens: Option<String>,
    pub swa_full_tokens_ratio: Option<f64>,
    pub mamba_full_memory_ratio: Option<f64>,
    pub speculative_algorithm: Option<String>,
    pub speculative_draft_model_path: Option<String>,
    pub speculative_num_steps: Option<u64>,
    pub speculative_eagle_topk: Option<u64>,
    pub speculative_num_draft_tokens: Option<u64>,
    pub ctx_size: Option<String>,
    pub parallel: Option<u64>,
    pub cache_type_k: Option<String>,
    pub cache_type_v: Option<String>,
    pub n_gpu_layers: Option<u64>,
    pub tensor_split: Vec<f64>,
    pub ubatch_size: Option<u64>,
    pub swa_full: bool,
    pub kv_unified: bool,
    pub no_flash_attn: bool,
    pub no_kv_offload: bool,
    pub context: Vec<String>,
    pub concurrency: Vec<u64>,
    pub prompt_tokens: Option<u64>,
    pub gen_tokens: Option<u64>,
    pub mode: Option<String>,
    pub overhead: Option<String>,
    pub fragmentation_factor: Option<String>,
    pub headroom: Option<String>,
    /// How far names are looked up; not part of what a file or a request can say.
    #[serde(skip)]
    pub lookup: Lookup,
    pub no_calibration: bool,
}

/// A deployment whose names were looked up and whose values were read.
#[derive(Debug, Clone)]
pub struct Resolved {
    name: String,
    source: String,
    described: Option<(Arc<Model>, Arc<Config>)>,
    inventories: Inventories,
    refused: Option<String>,
    params: Option<u64>,
    checkpoint: Option<CheckpointBytes>,
    hardware: Hardware,
    /// Free memory of the tightest GPU used, where this machine was asked (`--gpu auto`).
    free_bytes: Option<u64>,
    engine: Engine,
    load: Load,
    policy: Policy,
    /// What the user should know about how the values were read.
    pub warnings: Vec<String>,
}

impl Resolved {
    /// The question for the planner.
    pub fn request(&self, explain: bool) -> Request<'_> {
        Request {
            subject: Subject {
                name: &self.name,
                source: self.source.clone(),
                model: self.described(),
                refused: self.refused.clone(),
                params: self.params,
                checkpoint: self.checkpoint,
                inventories: self.inventories.clone(),
            },
            hardware: self.hardware.clone(),
            engine: self.engine.clone(),
            load: self.load.clone(),
            policy: self.policy,
            explain,
        }
    }

    /// The model, if its layers are known.
    pub fn model(&self) -> Option<&Model> {
        self.described.as_ref().map(|(model, _)| &**model)
    }

    /// The model and the configuration it was read from, if its layers are known.
    pub fn described(&self) -> Option<(&Model, &Config)> {
        self.described
            .as_ref()
            .map(|(model, config)| (&**model, &**config))
    }

    /// The same without what the checkpoint says of its quantisation, as if it were in another format.
    ///
    /// # Errors
    /// If the configuration cannot be read without it.
    pub fn without_checkpoint_quantization(mut self) -> Result<Self> {
        if let Some((_, config)) = &mut self.described {
            let mut map = config.map().clone();
            map.remove("quantization_config");
            let text = serde_json::Value::Object(map).to_string();
            *config = Config::parse(text.as_bytes())?.into();
        }
        self.checkpoint = None;
        Ok(self)
    }

    /// The engine with its settings.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What the model is called where it was found.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The correction by the user's own logs, if any applies.
    pub fn correction(&self) -> Option<Correction> {
        self.policy.site
    }

    /// Prompt tokens of one request of the load, if it says.
    pub fn prompt_tokens(&self) -> Option<u64> {
        self.load.prompt_tokens
    }

    /// The hardware.
    pub fn hardware(&self) -> &Hardware {
        &self.hardware
    }

    /// Free memory of the tightest GPU used, in bytes, where this machine was asked (`--gpu auto`).
    pub fn free_bytes(&self) -> Option<u64> {
        self.free_bytes
    }
}

/// Engines by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EngineName {
    Vllm,
    Sglang,
    LlamaCpp,
    Generic,
}

impl Deployment {
    /// `self`, with what it leaves open taken from `base` (flags win over a file).
    ///
    /// # Errors
    /// Never; the result of serialising plain fields is always readable.
    pub fn over(&self, base: &Self) -> Result<Self> {
        let broken = |e: serde_json::Error| Error::input(format!("cannot combine flags and profile: {e}"));
        let mut merged = serde_json::to_value(base).map_err(broken)?;
        let own = serde_json::to_value(self).map_err(broken)?;
        if let (Some(merged), Some(own)) = (merged.as_object_mut(), own.as_object()) {
            for (key, value) in own {
                let said = !(value.is_null()
                    || value.as_bool() == Some(false)
                    || value.as_array().is_some_and(Vec::is_empty));
                if said {
                    merged.insert(key.clone(), value.clone());
                }
            }
        }
        let merged: Self = serde_json::from_value(merged).map_err(broken)?;
        Ok(Self {
            lookup: self.lookup.clone(),
            ..merged
        })
    }

    /// Looks up names and reads values.
    ///
    /// # Errors
    /// If a name is not known, a value cannot be read, or two contradict each other; the message names the flag.
    pub fn resolve(&self) -> Result<Resolved> {
        let mut warnings = Vec::new();
        let engine_name = self.engine_name()?;
        let params = self.params()?;
        let (tp, pp, dp) = (
            self.tensor_parallel_size.unwrap_or(1),
            self.pipeline_parallel_size.unwrap_or(1),
            match engine_name {
                // SGLang's attention groups are made of the tensor-parallel ranks.
                EngineName::Sglang => 1,
                // llama.cpp uses all GPUs that there are.
                EngineName::LlamaCpp => self.gpus.unwrap_or(1),
                _ => self.data_parallel_size.unwrap_or(1),
            },
        );
        let ranks = [pp, dp]
            .iter()
            .try_fold(tp, |product, &n| product.checked_mul(n))
            .filter(|&n| (1..=1 << 16).contains(&n))
            .ok_or_else(|| {
                Error::input("the parallel sizes must be at least 1 and at most 65536 together")
            })?;
        let (hardware, free_bytes) = self.hardware(ranks, &mut warnings)?;
        let load = self.load(&mut warnings)?;
        let Some(name) = &self.model else {
            if params.is_none() {
                return Err(Error::input("which model? give a name, a folder or a config.json")
                    .hint("kvwise plan meta-llama/Llama-3.1-8B --gpu h100")
                    .hint("with nothing but a size known: kvwise plan --params-b 8 --engine generic --gpu h100"));
            }
            if engine_name != EngineName::Generic && self.engine.is_some() {
                return Err(Error::input(
                    "an engine's layout cannot be planned from a number of parameters alone",
                )
                .hint("give the model, or --engine generic for the weights"));
            }
            return Ok(Resolved {
                name: format!("{} B parameters", self.params_b.unwrap_or_default()),
                source: "--params-b".to_owned(),
                described: None,
                inventories: Inventories::default(),
                refused: None,
                params,
                checkpoint: None,
                hardware,
                free_bytes,
                engine: Engine::Generic(self.generic(None)?),
                load,
                policy: self.policy(EngineName::Generic)?,
                warnings,
            });
        };

        let looked = self.lookup.read(name, self.revision.as_deref())?;
        warnings.extend(looked.notes.iter().cloned());
        if let Some(header) = &looked.gguf {
            let gpus = self.gpus.unwrap_or(1);
            let file = engines::from_file(&looked.name, header).map_err(|e| e.at(&looked.name))?;
            let engine = match engine_name {
                EngineName::LlamaCpp => Engine::LlamaCpp(Box::new(self.llamacpp(Some(file.file), gpus)?)),
                EngineName::Generic => Engine::Generic(self.generic(None)?),
                EngineName::Vllm | EngineName::Sglang => {
                    return Err(Error::unsupported(format!(
                        "{}: a GGUF file is planned for llama.cpp, not for vLLM or SGLang",
                        looked.name
                    ))
                    .hint("leave --engine out, or give the original model"));
                }
            };
            let name = file.name.unwrap_or_else(|| looked.name.clone());
            let mut policy = self.policy(engine_name)?;
            policy.site =
                self.correction(&name, &file.model.architecture, &hardware, &engine, &mut warnings)?;
            return Ok(Resolved {
                name,
                source: looked.name.clone(),
                described: Some((Arc::new(file.model), Arc::new(file.config))),
                inventories: Inventories::default(),
                refused: None,
                params,
                checkpoint: Some(file.checkpoint),
                hardware,
                free_bytes,
                engine,
                load,
                policy,
                warnings,
            });
        }
        let described = looked.model.as_deref();
        if !self.language_model_only
            && let Some(part) = looked.unread_tower
        {
            warnings.push(format!(
                "the weights of the tower in {part} are not known here and not counted; --language-model-only leaves it out"
            ));
        }
        let checkpoint = match &looked.checkpoint {
            None => None,
            Some(checkpoint) => Some(CheckpointBytes {
                total_bytes: checkpoint.total_bytes()?,
                source: match checkpoint {
                    Checkpoint::Tensors(_) => "safetensors",
                    Checkpoint::Index { missing, .. } => {
                        warnings.push(format!(
                            "{} of the {} files of the checkpoint's index are missing: its total_size is taken",
                            missing.0, missing.1
                        ));
                        "index"
                    }
                },
            }),
        };
        let source = match &looked.place {
            Place::Catalogue(provenance) => {
                warnings.extend(provenance.note.map(|note| format!("catalogue: {note}")));
                format!("catalogue: {} ({})", provenance.source, provenance.date)
            }
            Place::Path(path) => {
                if self.revision.is_some() {
                    warnings.push("--revision means nothing to a file or folder".to_owned());
                }
                path.display().to_string()
            }
            Place::Hub(origin) => origin.to_string(),
            Place::Shape => "a shape in words".to_owned(),
        };
        let engine = match engine_name {
            EngineName::Vllm => Engine::Vllm(Box::new(self.vllm(&looked.config, described)?)),
            EngineName::Sglang => Engine::Sglang(Box::new(self.sglang(&looked.name, described)?)),
            EngineName::LlamaCpp => Engine::LlamaCpp(Box::new(self.llamacpp(None, self.gpus.unwrap_or(1))?)),
            EngineName::Generic => Engine::Generic(self.generic(Some(&looked.config))?),
        };
        let mut policy = self.policy(engine_name)?;
        if let Some(model) = described {
            policy.site = self.correction(
                &looked.name,
                &model.architecture,
                &hardware,
                &engine,
                &mut warnings,
            )?;
        }
        Ok(Resolved {
            name: looked.name.clone(),
            source,
            described: looked
                .model
                .as_ref()
                .map(|model| (Arc::clone(model), Arc::clone(&looked.config))),
            inventories: looked.inventories.clone(),
            refused: looked.refused.clone(),
            params,
            checkpoint,
            hardware,
            free_bytes,
            engine,
            load,
            policy,
            warnings,
        })
    }

    /// What a site calibration would be kept for; `None` for engines whose memory is not measured.
    pub fn site(&self, model: &str, family: &str, hardware: &Hardware, engine: &Engine) -> Option<Site> {
        let site = |name: &str, version: String, quantization: Option<String>| Site {
            gpu: hardware.name.clone(),
            engine: name.to_owned(),
            engine_version: version,
            family: family.to_owned(),
            model: model.to_owned(),
            tensor_parallel_size: self.tensor_parallel_size.unwrap_or(1),
            pipeline_parallel_size: self.pipeline_parallel_size.unwrap_or(1),
            speculative: None,
            quantization,
        };
        match engine {
            Engine::Vllm(settings) => Some(Site {
                tensor_parallel_size: settings.tensor_parallel_size,
                pipeline_parallel_size: settings.pipeline_parallel_size,
                speculative: settings
                    .speculative
                    .as_ref()
                    .map(|speculative| format!("{:?}", speculative.method).to_ascii_lowercase()),
                ..site(
                    "vllm",
                    format!("{}.{}", settings.version.major, settings.version.minor),
                    settings.quantization.clone(),
                )
            }),
            Engine::Sglang(settings) => Some(Site {
                speculative: settings
                    .speculative
                    .as_ref()
                    .map(|speculative| speculative.algorithm.name().to_ascii_lowercase()),
                ..site(
                    "sglang",
                    kvwise_core::engine::sglang::VERSION.to_owned(),
                    settings.quantization.clone(),
                )
            }),
            Engine::LlamaCpp(engine) => Some(Site {
                tensor_parallel_size: engine.settings.gpus,
                ..site(
                    "llamacpp",
                    kvwise_core::engine::llamacpp::VERSION.to_owned(),
                    engine.mix.clone(),
                )
            }),
            Engine::Generic(_) => None,
        }
    }

    /// What the site's logs correct, with a warning that says so. Only vLLM's estimates are scaled by logs of other models.
    fn correction(
        &self,
        model: &str,
        family: &str,
        hardware: &Hardware,
        engine: &Engine,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Correction>> {
        let Some(site) = self
            .site(model, family, hardware, engine)
            .filter(|_| !self.no_calibration)
        else {
            return Ok(None);
        };
        let vllm = matches!(engine, Engine::Vllm(_));
        let correction = Correction::choose(&settings::observations()?, &site)
            .filter(|correction| vllm || matches!(correction, Correction::Deployment { .. }));
        warnings.extend(
            correction
                .map(|correction| format!("{}; --no-calibration plans without it", correction.sentence())),
        );
        Ok(correction)
    }

    fn engine_name(&self) -> Result<EngineName> {
        match self.engine.as_deref().map(str::to_ascii_lowercase).as_deref() {
            None if self.model.as_deref().is_some_and(is_gguf_name) => Ok(EngineName::LlamaCpp),
            None | Some("vllm") => Ok(EngineName::Vllm),
            Some("sglang") => Ok(EngineName::Sglang),
            Some("llamacpp" | "llama.cpp" | "llama-cpp") => Ok(EngineName::LlamaCpp),
            Some("generic") => Ok(EngineName::Generic),
            Some(other) => {
                let names = ["vllm", "sglang", "llamacpp", "generic"];
                let error = Error::input(format!("--engine is \"{other}\", expected {}", names.join(", ")));
                Err(match nearest(other, names, 1).first() {
                    Some(near) => error.hint(format!("did you mean {near}?")),
                    None => error,
                })
            }
        }
    }

    fn params(&self) -> Result<Option<u64>> {
        let Some(billions) = self.params_b else {
            return Ok(None);
        };
        if !(billions > 0.0 && billions <= 100_000.0) {
            return Err(Error::input(format!(
                "--params-b is {billions}, expected billions of parameters, like 7 or 6.74"
            )));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked: positive and at most 10^14"
        )]
        let params = (billions * 1e9).round() as u64;
        Ok(Some(params))
    }

    fn hardware(&self, ranks: u64, warnings: &mut Vec<String>) -> Result<(Hardware, Option<u64>)> {
        let gpus = self.gpus.unwrap_or(ranks);
        if gpus == 0 {
            return Err(Error::input("--gpus is 0, expected at least 1"));
        }
        let memory = self
            .gpu_memory
            .as_deref()
            .map(|text| parse_bytes(text).map_err(|e| e.at("--gpu-memory")))
            .transpose()?;
        if let Some(bytes) = memory
            && !(GIB / 4..=1 << 50).contains(&bytes)
        {
            return Err(Error::input(format!(
                "--gpu-memory is {}, expected at least 256 MiB and at most 1 PiB",
                human_bytes(bytes)
            )));
        }
        let mut free_bytes = None;
        let mut hardware = match (&self.gpu, memory) {
            (Some(name), _) if name.eq_ignore_ascii_case("auto") => {
                let here = gpus::auto(ranks, self.gpus, warnings)?;
                free_bytes = here.free_bytes;
                here.hardware
            }
            (Some(name), Some(bytes)) if name.eq_ignore_ascii_case("cpu") => Hardware::cpu(bytes, gpus),
            (Some(name), None) if name.eq_ignore_ascii_case("cpu") => {
                return Err(Error::input("--gpu cpu: how much memory has the node?")
                    .hint("--gpu cpu --gpu-memory 64GiB"));
            }
            (Some(name), _) => Hardware::of(user::find(name)?, gpus),
            (None, Some(bytes)) => Hardware::custom(bytes, gpus),
            (None, None) => {
                return Err(
                    Error::input("which GPU? give --gpu, or --gpu-memory for any other card").hint(
                        "examples: --gpu h100, --gpu auto, --gpu-memory 48GiB; `kvwise gpus` lists all",
                    ),
                );
            }
        };
        if let Some(bytes) = memory {
            hardware.driver_bytes = bytes;
            hardware.torch_bytes = bytes;
            hardware.torch_known = true;
        }
        if let Some(link) = &self.interconnect {
            hardware.pcie_only = match link.to_ascii_lowercase().as_str() {
                "pcie" => true,
                "nvlink" => false,
                other => {
                    return Err(
                        Error::input(format!("--interconnect is \"{other}\"")).hint("write pcie or nvlink")
                    );
                }
            };
            hardware.link_given = true;
        }
        let gpus = hardware.gpus;
        if gpus > ranks {
            warnings.push(format!(
                "{gpus} GPUs are there, but the parallel sizes use {ranks}; --tensor-parallel-size {gpus} would use all"
            ));
        }
        Ok((hardware, free_bytes))
    }

    fn load(&self, warnings: &mut Vec<String>) -> Result<Load> {
        let mut contexts = self
            .context
            .iter()
            .map(|text| parse_count(text).map_err(|e| e.at("--context")))
            .collect::<Result<Vec<_>>>()?;
        let prompt_tokens = match (self.prompt_tokens, self.gen_tokens) {
            (None, None) => None,
            (prompt, output) => {
                if !contexts.is_empty() {
                    return Err(Error::input(
                        "--context and --prompt-tokens/--gen-tokens both say how long a request is: give one of them",
                    ));
                }
                let sum = prompt
                    .unwrap_or(0)
                    .checked_add(output.unwrap_or(0))
                    .ok_or_else(|| Error::overflow("--prompt-tokens plus --gen-tokens"))?;
                if output.is_none() {
                    warnings.push("--gen-tokens is not given: the output counts as 0 tokens".to_owned());
                }
                contexts.push(sum);
                prompt
            }
        };
        let load = Load {
            contexts,
            concurrencies: if self.concurrency.is_empty() {
                vec![1]
            } else {
                self.concurrency.clone()
            },
            prompt_tokens,
            mode: self.mode.as_deref().map(Mode::parse).transpose()?,
        };
        load.validate()?;
        Ok(load)
    }

    fn policy(&self, engine: EngineName) -> Result<Policy> {
        let mut policy = match engine {
            EngineName::Vllm | EngineName::Sglang | EngineName::LlamaCpp => Policy::none(),
            EngineName::Generic => Policy::generic(),
        };
        if let Some(text) = &self.overhead {
            policy.overhead_bytes = Some(parse_bytes(text).map_err(|e| e.at("--overhead"))?);
        }
        if let Some(text) = &self.headroom {
            policy.headroom_bytes = parse_bytes(text).map_err(|e| e.at("--headroom"))?;
        }
        if let Some(text) = &self.fragmentation_factor {
            policy.fragmentation = Factor::parse(text).map_err(|e| e.at("--fragmentation-factor"))?;
        }
        Ok(policy)
    }

    /// `--kv-cache-memory-bytes`: plain bytes, or a size with its unit.
    fn pool_bytes(&self) -> Result<Option<u64>> {
        self.kv_cache_memory_bytes
            .as_deref()
            .map(|text| {
                parse_count(text)
                    .or_else(|_| parse_bytes(text))
                    .map_err(|e| e.at("--kv-cache-memory-bytes"))
            })
            .transpose()
    }

    /// `--dtype`: `auto` is none.
    fn weight_dtype(&self) -> Result<Option<Dtype>> {
        match self.dtype.as_deref() {
            None | Some("auto") => Ok(None),
            Some(text) => match Dtype::parse(text) {
                Some(dtype @ (Dtype::F16 | Dtype::Bf16 | Dtype::F32)) => Ok(Some(dtype)),
                _ => Err(Error::input(format!("--dtype is \"{text}\""))
                    .hint("write auto, float16 (half, fp16), bfloat16 (bf16) or float32 (float, fp32)")),
            },
        }
    }
}

#[cfg(test)]
mod tests;
