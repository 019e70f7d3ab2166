//! Reads how somebody starts an engine, and says what its flags mean for memory and what is wrong with them.

mod llamacpp;
mod planned;
mod recognise;
mod rules;
mod shell;

use std::path::Path;

use kvwise_core::engine::flags::{self, Table, parse::parse};
use kvwise_core::{Error, Result};
use kvwise_io::{model, plan_profile};
use serde_json::Value;

pub use planned::Target;

use crate::report::lint::{Level, Lint, ServerPart};
use recognise::Found;

/// Largest file that is read, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file, or standard input's text with the name to show.
    Text {
        /// Name for messages.
        name: String,
        /// Content.
        text: String,
    },
    /// The words of a command.
    Words(Vec<String>),
}

impl Source {
    /// What the words after `kvwise lint` mean: a file that is there, shell text in one word, or the words themselves.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn of(words: &[String], stdin: impl FnOnce() -> Result<String>) -> Result<Self> {
        let [one] = words else {
            return Ok(Self::Words(words.to_vec()));
        };
        if one == "-" {
            return Ok(Self::Text {
                name: "standard input".to_owned(),
                text: stdin()?,
            });
        }
        let path = Path::new(one);
        if path.is_file() {
            let bytes = model::read_capped(path, MAX_BYTES)?;
            let text =
                String::from_utf8(bytes).map_err(|e| Error::input(format!("{one}: not UTF-8: {e}")))?;
            return Ok(Self::Text {
                name: one.clone(),
                text,
            });
        }
        if one.split_whitespace().count() == 1 {
            return Err(Error::not_found(format!("{one}: there is no such file")).hint(
                "give a file, - for standard input, or a whole command: kvwise lint vllm serve MODEL --flags",
            ));
        }
        Ok(Self::Text {
            name: "command".to_owned(),
            text: one.clone(),
        })
    }
}

/// Looks at a source.
///
/// # Errors
/// If nothing in it starts an engine.
pub fn lint(source: &Source, target: &Target) -> Result<Lint> {
    let (name, servers) = match source {
        Source::Words(words) => {
            let found = recognise::in_words(words).ok_or_else(|| {
                Error::input("the words start no vLLM, SGLang or llama.cpp server")
                    .hint("expected something like: kvwise lint vllm serve MODEL --tensor-parallel-size 2")
            })?;
            let place = "command".to_owned();
            (place.clone(), vec![(Found { place, ..found }, Target::default())])
        }
        Source::Text { name, text } => (name.clone(), read(text, name)?),
    };
    let mut parts: Vec<ServerPart> = Vec::new();
    for (found, from_file) in servers {
        parts.push(server(&found, &target.over(&from_file)));
    }
    let count = |level: Level| {
        parts
            .iter()
            .flat_map(|p| &p.findings)
            .filter(|f| f.level == level)
            .count()
    };
    Ok(Lint {
        schema: crate::report::lint::SCHEMA,
        source: name,
        errors: count(Level::Error),
        warnings: count(Level::Warning),
        servers: parts,
    })
}

/// Servers in a text of any kind, with what the text says of its hardware.
fn read(text: &str, name: &str) -> Result<Vec<(Found, Target)>> {
    let bare = |found: Vec<Found>| found.into_iter().map(|f| (f, Target::default())).collect();
    let looks_like_yaml = text.lines().any(|line| {
        let key = line.trim_end();
        [
            "services:",
            "kind:",
            "apiVersion:",
            "profile_version:",
            "args:",
            "image:",
        ]
        .iter()
        .any(|k| key.starts_with(k))
    });
    if !looks_like_yaml {
        return Ok(bare(recognise::in_shell(text, name)?));
    }
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| {
        let says = e.to_string();
        Error::input(format!(
            "{name}: not YAML: {}",
            says.lines().next().unwrap_or_default()
        ))
    })?;
    if documents.iter().any(|d| d.get("profile_version").is_some()) {
        return profile(text, name);
    }
    Ok(bare(recognise::in_yaml(&documents, name)?))
}

/// A profile: its sections as the flags they stand for, and its `vllm_args` as they are.
fn profile(text: &str, name: &str) -> Result<Vec<(Found, Target)>> {
    let profile = plan_profile::parse(text).map_err(|e| e.at(name))?;
    let mut words: Vec<String> = profile.model.id.clone().into_iter().collect();
    let mut put = |flag: &str, value: Option<String>| {
        if let Some(value) = value {
            words.extend([flag.to_owned(), value]);
        }
    };
    put("--revision", profile.model.revision.clone());
    put("--dtype", profile.model.dtype.clone());
    // In a profile `none` means that nothing is said of quantisation.
    put(
        "--quantization",
        profile
            .model
            .quantization
            .clone()
            .filter(|q| q != "none" && q != "auto"),
    );
    put("--kv-cache-dtype", profile.model.kv_cache_dtype.clone());
    put(
        "--max-model-len",
        profile.model.max_model_len.map(|n| n.to_string()),
    );
    put(
        "--tensor-parallel-size",
        profile.hardware.tp_size.map(|n| n.to_string()),
    );
    put(
        "--gpu-memory-utilization",
        profile.policy.gpu_memory_utilization.map(|n| n.to_string()),
    );
    for (key, value) in &profile.outputs.vllm_args {
        let flag = format!("--{}", key.trim_start_matches('-').replace('_', "-"));
        match value {
            Value::Bool(true) => words.push(flag),
            Value::Bool(false) => words.push(format!("--no-{}", &flag[2..])),
            Value::Null => {}
            Value::String(text) => words.extend([flag, text.clone()]),
            other => words.extend([flag, other.to_string()]),
        }
    }
    let tokens = |n: Option<u64>| n.unwrap_or(0);
    let context = tokens(profile.workload.prompt_tokens).saturating_add(tokens(profile.workload.gen_tokens));
    let target = Target {
        gpu: profile.hardware.gpu_name.clone().filter(|n| n != "auto"),
        gpu_memory: profile.hardware.vram_gb.map(|gib| format!("{gib:.9}GiB")),
        context: (context > 0).then_some(context),
        concurrency: profile.workload.concurrency,
        engine_version: None,
    };
    let found = Found {
        place: format!("{name}, profile"),
        engine: "vllm",
        words,
        gpus: profile.hardware.gpus,
        serve: true,
        ..Found::default()
    };
    Ok(vec![(found, target)])
}

fn table(engine: &str) -> &'static Table {
    flags::of(engine).unwrap_or_else(flags::vllm)
}

fn server(found: &Found, target: &Target) -> ServerPart {
    let table = table(found.engine);
    let parsed = parse(table, &found.words);
    let model = match found.engine {
        "sglang" => parsed.value("--model-path").map(str::to_owned),
        "llamacpp" => ["--model", "--hf-repo", "--model-url"]
            .iter()
            .find_map(|flag| parsed.value(flag))
            .map(str::to_owned),
        _ => parsed
            .positionals
            .first()
            .cloned()
            .or_else(|| parsed.value("--model").map(str::to_owned)),
    };
    let version = target.engine_version.clone().or_else(|| found.version.clone());
    let mut findings = rules::problems(table, &parsed, version.as_deref());
    findings.extend(rules::settings(found, table, &parsed, model.as_deref()));
    findings.extend(rules::environment(found));
    findings.extend(rules::container(found, &parsed));
    let planned = planned::plan(found, &parsed, model.as_deref(), version.as_deref(), target);
    findings.extend(planned.findings);
    findings.sort_by_key(|f| f.level);
    ServerPart {
        place: found.place.clone(),
        engine: found.engine,
        engine_version: version.unwrap_or_else(|| table.version.to_owned()),
        model,
        findings,
        flags: planned.flags,
        verdict: planned.verdict,
    }
}

#[cfg(test)]
mod tests;
