//! What the flags mean in bytes: the command as a deployment, planned, and planned again without each flag.

use std::path::Path;

use kvwise_core::engine::flags::{meaning::meaning, parse::Parsed};
use kvwise_core::plan::{self, OomRisk};
use serde_json::Value;

use super::super::deployment::Deployment;
use super::super::effect;
use super::llamacpp;
use super::recognise::Found;
use crate::report::lint::{Finding, FlagPart, Level};

/// The hardware and load that a command is judged for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// Kind of GPU.
    pub gpu: Option<String>,
    /// Memory of one, for other cards.
    pub gpu_memory: Option<String>,
    /// Tokens of a request.
    pub context: Option<u64>,
    /// Requests at once.
    pub concurrency: Option<u64>,
    /// Version, where the command does not say it.
    pub engine_version: Option<String>,
}

impl Target {
    /// `self`, with what it leaves open taken from `base`.
    #[must_use]
    pub fn over(&self, base: &Self) -> Self {
        Self {
            gpu: self.gpu.clone().or_else(|| base.gpu.clone()),
            gpu_memory: self.gpu_memory.clone().or_else(|| base.gpu_memory.clone()),
            context: self.context.or(base.context),
            concurrency: self.concurrency.or(base.concurrency),
            engine_version: self
                .engine_version
                .clone()
                .or_else(|| base.engine_version.clone()),
        }
    }
}

/// What planning adds to the findings.
#[derive(Debug, Default)]
pub struct Planned {
    /// What is wrong or could be better.
    pub findings: Vec<Finding>,
    /// What each flag means.
    pub flags: Vec<FlagPart>,
    /// The plan's verdict, where there is a plan.
    pub verdict: Option<String>,
}

/// Names of SGLang's flags for fields of a deployment.
const SGLANG_FIELDS: [(&str, &str); 9] = [
    ("--tp-size", "tensor_parallel_size"),
    ("--pp-size", "pipeline_parallel_size"),
    ("--attn-dp-size", "data_parallel_size"),
    ("--context-length", "max_model_len"),
    ("--mem-fraction-static", "mem_fraction_static"),
    ("--page-size", "page_size"),
    ("--chunked-prefill-size", "chunked_prefill_size"),
    ("--max-running-requests", "max_running_requests"),
    ("--disable-radix-cache", "no_enable_prefix_caching"),
];

/// The field of a deployment that a flag sets.
fn field(engine: &str, flag: &str, fields: &serde_json::Map<String, Value>) -> Option<String> {
    if engine == "sglang"
        && let Some((_, field)) = SGLANG_FIELDS.iter().find(|(name, _)| *name == flag)
    {
        return fields.contains_key(*field).then(|| (*field).to_owned());
    }
    let plain = flag.trim_start_matches('-').replace('-', "_");
    let opposite = format!("no_{plain}");
    // What is not a flag of an engine stays the caller's.
    let own = ["model", "gpu", "gpus", "engine", "mode", "context", "concurrency"].contains(&plain.as_str());
    [plain, opposite]
        .into_iter()
        .find(|name| fields.contains_key(name))
        .filter(|_| !own)
}

/// Machines that run the server together, as both engines say it.
fn nodes(parsed: &Parsed) -> u64 {
    parsed
        .value("--nnodes")
        .and_then(|n| n.trim().parse().ok())
        .unwrap_or(1)
        .max(1)
}

/// Whether Ray places the ranks, so that other machines may hold GPUs that the command does not tell of.
pub fn by_ray(parsed: &Parsed) -> bool {
    parsed.value("--distributed-executor-backend") == Some("ray")
}

/// Plans the command, as far as a model and a GPU are known.
pub fn plan(
    found: &Found,
    parsed: &Parsed,
    model: Option<&str>,
    version: Option<&str>,
    target: &Target,
) -> Planned {
    let mut out = Planned::default();
    let mut deployment = Deployment {
        model: model.map(str::to_owned),
        engine: Some(found.engine.to_owned()),
        engine_version: version.filter(|_| found.engine == "vllm").map(str::to_owned),
        gpu: target.gpu.clone(),
        gpu_memory: target.gpu_memory.clone(),
        gpus: found
            .gpus
            .filter(|_| !by_ray(parsed))
            .map(|gpus| gpus.saturating_mul(nodes(parsed))),
        context: target.context.map(|n| n.to_string()).into_iter().collect(),
        concurrency: target.concurrency.into_iter().collect(),
        ..Deployment::default()
    };
    let all = serde_json::to_value(&deployment).unwrap_or_default();
    let empty = serde_json::Map::new();
    let names = all.as_object().unwrap_or(&empty);
    let mut said: Vec<(usize, String)> = Vec::new();
    for (i, given) in parsed.given.iter().enumerate() {
        if found.engine == "llamacpp"
            && let Some((field, value)) = llamacpp::field(given, &deployment)
        {
            if let Ok(changed) = effect::with(&deployment, field, Some(value)) {
                deployment = changed;
                said.push((i, field.to_owned()));
            }
            continue;
        }
        let Some(field) = field(found.engine, given.flag.name(), names) else {
            continue;
        };
        if let Some(path) = &given.field {
            if let Some(changed) = merged(&deployment, &field, path, given.values.first()) {
                deployment = changed;
                said.push((i, field));
            }
            continue;
        }
        let opposite = field.starts_with("no_") && !given.flag.name().starts_with("--no-");
        let value = match given.values.first() {
            None => Value::Bool(given.negated == opposite || found.engine == "sglang"),
            Some(text) => match typed(&deployment, &field, text) {
                Some(value) => value,
                None => continue,
            },
        };
        if let Ok(changed) = effect::with(&deployment, &field, Some(value)) {
            deployment = changed;
            said.push((i, field));
        }
    }
    let mut known = target.gpu.is_some() || target.gpu_memory.is_some();
    if found.engine == "llamacpp" && !model.is_some_and(|m| Path::new(m).is_file()) {
        // A file that is not here says nothing, but the name of a repository on the hub says which model and format it holds.
        let of_catalogue = model.and_then(llamacpp::of_catalogue);
        known &= of_catalogue.is_some();
        if let Some((name, format)) = of_catalogue {
            out.findings.push(Finding {
                level: Level::Info,
                code: "read-from-name",
                flag: None,
                message: format!(
                    "{} is taken for {name} in the mix {format}, by its name",
                    model.unwrap_or_default()
                ),
                fix: None,
            });
            deployment.model = Some(name.to_owned());
            deployment.quantization = Some(format.to_owned());
        }
    }
    let plan = if known && model.is_some() {
        match deployment.resolve().and_then(|r| plan::plan(&r.request(false))) {
            Ok(plan) => Some(plan),
            Err(e) => {
                out.findings.push(Finding {
                    level: Level::Warning,
                    code: "not-planned",
                    flag: None,
                    message: format!("the command could not be planned: {e}"),
                    fix: e.hints().first().cloned(),
                });
                None
            }
        }
    } else {
        None
    };
    for (i, given) in parsed.given.iter().enumerate() {
        let means = meaning(found.engine, given.flag.name());
        let effect = plan.as_ref().and_then(|plan| {
            let (_, field) = said.iter().find(|(index, _)| *index == i)?;
            effect::effect(&deployment, plan, field)
        });
        if means.is_some() || effect.is_some() {
            out.flags.push(FlagPart {
                flag: given.written.clone(),
                value: given.values.join(" "),
                means: means.map(str::to_owned),
                effect,
            });
        }
    }
    let Some(plan) = plan else { return out };
    if !plan.feasibility.fits {
        out.findings.push(Finding {
            level: Level::Error,
            code: "does-not-fit",
            flag: None,
            message: plan.verdict.clone(),
            fix: plan.fix.clone(),
        });
    } else if plan.feasibility.oom_risk != OomRisk::Low {
        out.findings.push(Finding {
            level: Level::Warning,
            code: "tight",
            flag: None,
            message: format!(
                "{:.2} GiB are left beside this load: the risk of running out of memory is not low",
                plan.feasibility.headroom_gb
            ),
            fix: None,
        });
    }
    if plan.feasibility.fits {
        for (flag, advice) in &plan.recommended {
            let text = |key: &str| advice[key].as_str().unwrap_or_default().to_owned();
            let flag = format!("--{}", flag.replace('_', "-"));
            out.findings.push(Finding {
                level: Level::Info,
                code: "better",
                message: format!("{flag} {} would give {}", text("value"), text("why")),
                flag: Some(flag),
                fix: None,
            });
        }
    }
    out.verdict = Some(plan.verdict);
    out
}

/// The deployment with one key of a JSON flag set, as `--limit-mm-per-prompt.image 2` does; `None` if the flag takes no JSON.
fn merged(deployment: &Deployment, field: &str, path: &str, value: Option<&String>) -> Option<Deployment> {
    let all = serde_json::to_value(deployment).ok()?;
    let mut object = match all.get(field)? {
        Value::Null => Value::Object(serde_json::Map::new()),
        Value::String(text) => serde_json::from_str(text).ok().filter(Value::is_object)?,
        _ => return None,
    };
    let mut at = &mut object;
    for key in path.split('.') {
        at = at
            .as_object_mut()?
            .entry(key)
            .or_insert_with(|| Value::Object(serde_json::Map::new()));
    }
    *at = value.map_or(Value::Bool(true), |text| {
        serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()))
    });
    effect::with(deployment, field, Some(Value::String(object.to_string()))).ok()
}

/// The text as the type that the field takes.
fn typed(deployment: &Deployment, field: &str, text: &str) -> Option<Value> {
    let text = text.trim();
    let candidates = [
        Some(Value::String(text.to_owned())),
        text.parse::<u64>().ok().map(Value::from),
        text.parse::<f64>().ok().map(Value::from),
    ];
    candidates
        .into_iter()
        .flatten()
        .find(|value| effect::with(deployment, field, Some(value.clone())).is_ok())
}
