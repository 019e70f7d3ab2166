//! From a deployment's words to a question for the planner: names looked up, values read.

use std::sync::Arc;

use kvwise_core::arch::{Config, Model};
use kvwise_core::engine::llamacpp::Header;
use kvwise_core::plan::{CheckpointBytes, Correction, Engine, Hardware, Load, Policy, Request, Subject};
use kvwise_core::quant::Inventories;
use kvwise_core::{Error, ErrorKind, Result};
use kvwise_io::model::{Checkpoint, Place};

use super::super::lookup::Looked;
use super::{Deployment, EngineName, engines};

/// A deployment whose names were looked up and whose values were read.
#[derive(Debug, Clone)]
pub struct Resolved {
    name: String,
    source: String,
    described: Option<(Arc<Model>, Arc<Config>)>,
    inventories: Inventories,
    refused: Option<String>,
    fix: Option<String>,
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
                fix: self.fix.clone(),
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

impl Deployment {
    /// Looks up names and reads values.
    ///
    /// # Errors
    /// If a name is not known, a value cannot be read, or two contradict each other; the message names the flag.
    pub fn resolve(&self) -> Result<Resolved> {
        let asked = self.asked()?;
        let Some(name) = &self.model else {
            return self.of_params(asked);
        };
        let looked = self.lookup.read(name, self.revision.as_deref()).map_err(|error| {
            if error.kind() == ErrorKind::NotFound && self.params_b.is_some() {
                error.hint("with nothing but a size known, leave the name out: kvwise plan --params-b 8 --engine generic --gpu h100")
            } else {
                error
            }
        })?;
        match &looked.gguf {
            Some(header) => self.of_gguf(asked, &looked, header),
            None => self.of_model(asked, &looked),
        }
    }

    /// What can be read without the model.
    fn asked(&self) -> Result<Asked> {
        let mut warnings = Vec::new();
        let engine = self.engine_name()?;
        let params = self.params()?;
        let (hardware, free_bytes) = self.hardware(self.ranks(engine)?, &mut warnings)?;
        let load = self.load(&mut warnings)?;
        Ok(Asked {
            engine,
            params,
            hardware,
            free_bytes,
            load,
            warnings,
        })
    }

    /// GPUs that the parallel sizes take.
    fn ranks(&self, engine: EngineName) -> Result<u64> {
        let data_parallel = match engine {
            // SGLang's attention groups are made of the tensor-parallel ranks.
            EngineName::Sglang => None,
            // llama.cpp uses all GPUs that there are.
            EngineName::LlamaCpp => self.gpus,
            EngineName::Vllm | EngineName::Generic => self.data_parallel_size,
        };
        [
            self.tensor_parallel_size,
            self.pipeline_parallel_size,
            data_parallel,
        ]
        .iter()
        .try_fold(1_u64, |product, size| product.checked_mul(size.unwrap_or(1)))
        .filter(|n| (1..=1 << 16).contains(n))
        .ok_or_else(|| Error::input("the parallel sizes must be at least 1 and at most 65536 together"))
    }

    /// With nothing but a number of parameters known.
    fn of_params(&self, asked: Asked) -> Result<Resolved> {
        if asked.params.is_none() {
            return Err(
                Error::input("which model? give a name, a folder or a config.json")
                    .hint("kvwise plan meta-llama/Llama-3.1-8B --gpu h100")
                    .hint(
                        "with nothing but a size known: kvwise plan --params-b 8 --engine generic --gpu h100",
                    ),
            );
        }
        if asked.engine != EngineName::Generic && self.engine.is_some() {
            return Err(Error::input(
                "an engine's layout cannot be planned from a number of parameters alone",
            )
            .hint("give the model, or --engine generic for the weights"));
        }
        let engine = Engine::Generic(self.generic()?);
        let policy = self.policy(EngineName::Generic)?;
        let name = format!("{} B parameters", self.params_b.unwrap_or_default());
        Ok(asked.with(name, "--params-b".to_owned(), engine, policy))
    }

    /// A GGUF file, for llama.cpp or engine-independent arithmetic.
    fn of_gguf(&self, mut asked: Asked, looked: &Looked, header: &Header) -> Result<Resolved> {
        asked.warnings.extend(looked.notes.iter().cloned());
        let file = engines::from_file(&looked.name, header).map_err(|e| e.at(&looked.name))?;
        let engine = match asked.engine {
            EngineName::LlamaCpp => {
                Engine::LlamaCpp(Box::new(self.llamacpp(Some(file.file), self.gpus.unwrap_or(1))?))
            }
            EngineName::Generic => Engine::Generic(self.generic()?),
            EngineName::Vllm | EngineName::Sglang => {
                return Err(Error::unsupported(format!(
                    "{}: a GGUF file is planned for llama.cpp, not for vLLM or SGLang",
                    looked.name
                ))
                .hint("leave --engine out, or give the original model"));
            }
        };
        let name = file.name.unwrap_or_else(|| looked.name.clone());
        let mut policy = self.policy(asked.engine)?;
        policy.site = self.correction(
            &name,
            &file.model.architecture,
            &asked.hardware,
            &engine,
            &mut asked.warnings,
        )?;
        Ok(Resolved {
            described: Some((Arc::new(file.model), Arc::new(file.config))),
            checkpoint: Some(file.checkpoint),
            ..asked.with(name, looked.name.clone(), engine, policy)
        })
    }

    /// A model with a configuration.
    fn of_model(&self, mut asked: Asked, looked: &Looked) -> Result<Resolved> {
        asked.warnings.extend(looked.notes.iter().cloned());
        let described = looked.model.as_deref();
        let checkpoint = looked
            .checkpoint
            .as_ref()
            .map(|checkpoint| checkpoint_bytes(checkpoint, &mut asked.warnings))
            .transpose()?;
        let source = self.source(&looked.place, &mut asked.warnings);
        if described.is_some() && asked.engine != EngineName::Generic && asked.params.take().is_some() {
            asked.warnings.push(
                "--params-b is not used: the configuration says every layer's parameters; --engine generic takes it \
                 instead of their count"
                    .to_owned(),
            );
        }
        let engine = match asked.engine {
            EngineName::Vllm => Engine::Vllm(Box::new(self.vllm(&looked.config, described)?)),
            EngineName::Sglang => Engine::Sglang(Box::new(self.sglang(&looked.name, described)?)),
            EngineName::LlamaCpp => Engine::LlamaCpp(Box::new(self.llamacpp(None, self.gpus.unwrap_or(1))?)),
            EngineName::Generic => Engine::Generic(self.generic()?),
        };
        let left_out = match (&engine, described) {
            (Engine::Vllm(settings), Some(model)) => settings.leaves_out_towers(&model.architecture),
            _ => self.language_model_only,
        };
        if let Some(part) = looked.unread_tower.filter(|_| !left_out) {
            asked.warnings.push(format!(
                "the weights of the tower in {part} are not known here and not counted; --language-model-only leaves it out"
            ));
        }
        let mut policy = self.policy(asked.engine)?;
        if let Some(model) = described {
            policy.site = self.correction(
                &looked.name,
                &model.architecture,
                &asked.hardware,
                &engine,
                &mut asked.warnings,
            )?;
        }
        Ok(Resolved {
            described: looked
                .model
                .as_ref()
                .map(|model| (Arc::clone(model), Arc::clone(&looked.config))),
            inventories: looked.inventories.clone(),
            refused: looked.refused.clone(),
            fix: looked.fix.clone(),
            checkpoint,
            ..asked.with(looked.name.clone(), source, engine, policy)
        })
    }

    /// Where the model was found, in words.
    fn source(&self, place: &Place, warnings: &mut Vec<String>) -> String {
        match place {
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
        }
    }
}

/// What the checkpoint's own files say of its size.
fn checkpoint_bytes(checkpoint: &Checkpoint, warnings: &mut Vec<String>) -> Result<CheckpointBytes> {
    Ok(CheckpointBytes {
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
    })
}

/// What a deployment says that does not depend on its model.
struct Asked {
    engine: EngineName,
    params: Option<u64>,
    hardware: Hardware,
    free_bytes: Option<u64>,
    load: Load,
    warnings: Vec<String>,
}

impl Asked {
    /// With the rest, as it is for a model of which nothing is known.
    fn with(self, name: String, source: String, engine: Engine, policy: Policy) -> Resolved {
        Resolved {
            name,
            source,
            described: None,
            inventories: Inventories::default(),
            refused: None,
            fix: None,
            params: self.params,
            checkpoint: None,
            hardware: self.hardware,
            free_bytes: self.free_bytes,
            engine,
            load: self.load,
            policy,
            warnings: self.warnings,
        }
    }
}
