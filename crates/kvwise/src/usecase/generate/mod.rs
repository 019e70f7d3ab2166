//! Generating: plan, choose the flags, check them against the engine's parser, and make the files; nothing is written here.

mod command;
mod llamacpp;
mod nearest;
mod nodes;
mod sglang;

use std::path::PathBuf;

use kvwise_core::arch::shape;
use kvwise_core::engine::flags::{self, Table, parse::parse};
use kvwise_core::plan::{self, Plan};
use kvwise_core::{Error, ErrorKind, Result, hardware};
use kvwise_io::bundle::BundleFile;
use kvwise_io::plan_profile;

pub use nearest::{Nearest, nearest};

use super::deployment::Deployment;
use super::speed;
use crate::report::generate::{self as report, Executor, Image, ModelPlace, Server, Vendor};

/// A file, or pair of files, that can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Artifact {
    /// `serve_command.sh`.
    Command,
    /// `docker_command.sh`.
    Docker,
    /// `docker-compose.yaml`.
    Compose,
    /// `k8s.yaml` and `values.yaml`.
    K8s,
    /// `profile.yaml`.
    Profile,
}

impl Artifact {
    /// Every kind with the word that asks for it.
    pub const ALL: [(&'static str, Self); 5] = [
        ("command", Self::Command),
        ("docker", Self::Docker),
        ("compose", Self::Compose),
        ("k8s", Self::K8s),
        ("profile", Self::Profile),
    ];

    /// By its word.
    ///
    /// # Errors
    /// If there is no such kind.
    pub fn parse(word: &str) -> Result<Self> {
        Self::ALL
            .iter()
            .find(|(name, _)| *name == word.trim())
            .map(|&(_, artifact)| artifact)
            .ok_or_else(|| {
                let names = Self::ALL.map(|(name, _)| name);
                let error = Error::input(format!("--emit has \"{word}\", expected {}", names.join(", ")));
                match kvwise_core::names::nearest(word, names, 1).first() {
                    Some(near) => error.hint(format!("did you mean {near}?")),
                    None => error,
                }
            })
    }
}

/// What to generate.
#[derive(Debug, Clone, Default)]
pub struct Order {
    /// The deployment.
    pub deployment: Deployment,
    /// Files to make; the plan is always among them. Empty for all that can be made, with a warning about others.
    pub emit: Vec<Artifact>,
    /// Port of the server.
    pub port: Option<u16>,
    /// Container image instead of the engine's own.
    pub image: Option<String>,
    /// Name under which clients ask for the model.
    pub served_model_name: Option<String>,
    /// Whether the model's own code may run.
    pub trust_remote_code: bool,
    /// Further words for the engine, checked like the others.
    pub extra: Vec<String>,
    /// Hub repository with the GGUF files that llama.cpp is to serve (`ORG/NAME` or `ORG/NAME:QUANT`).
    pub hf_repo: Option<String>,
    /// GPUs of one machine; a server that needs more spans several. `None` for [`GPUS_PER_NODE`].
    pub gpus_per_node: Option<u64>,
    /// Who puts the ranks on several machines.
    pub executor: Executor,
}

/// GPUs of the usual server.
pub const GPUS_PER_NODE: u64 = 8;

/// What came of an order.
#[derive(Debug)]
pub enum Outcome {
    /// The files.
    Files {
        /// The plan they rest on.
        plan: Box<Plan>,
        /// The server they start.
        server: Box<Server>,
        /// The files.
        files: Vec<BundleFile>,
    },
    /// It does not fit, so there is nothing to start.
    DoesNotFit {
        /// The plan that says so.
        plan: Box<Plan>,
    },
}

/// Makes the files of an order.
///
/// # Errors
/// If the deployment cannot be planned, no server can be started from it, or a flag is not one of this engine version.
pub fn generate(order: &Order) -> Result<Outcome> {
    let deployment = command::prepared(&order.deployment)?;
    let resolved = deployment.resolve()?;
    let mut plan = plan::plan(&resolved.request(false))?;
    plan.feasibility
        .warnings
        .splice(0..0, resolved.warnings.iter().cloned());
    if !plan.feasibility.fits {
        return Ok(Outcome::DoesNotFit { plan: Box::new(plan) });
    }
    speed::tell(&mut plan, &resolved, false)?;
    let mut server = server(order, &deployment, &resolved, &plan)?;
    check(&server)?;
    let mut files = Vec::new();
    let mut left_out: Vec<(&str, Error)> = Vec::new();
    for (word, artifact) in Artifact::ALL {
        if !order.emit.is_empty() && !order.emit.contains(&artifact) {
            continue;
        }
        match made(artifact, &server, &deployment) {
            Ok(more) => files.extend(more),
            // What was not asked for by name may be missing.
            Err(e) if order.emit.is_empty() && e.kind() == ErrorKind::Unsupported => left_out.push((word, e)),
            Err(e) => return Err(e),
        }
    }
    if let Some((_, why)) = left_out.first() {
        let words: Vec<&str> = left_out.iter().map(|(word, _)| *word).collect();
        server
            .warnings
            .push(format!("no files for {}: {why}", words.join(", ")));
    }
    files.push(file("plan.json", crate::report::json_text(&plan)?, false));
    Ok(Outcome::Files {
        plan: Box::new(plan),
        server: Box::new(server),
        files,
    })
}

/// The files of one kind.
fn made(artifact: Artifact, server: &Server, deployment: &Deployment) -> Result<Vec<BundleFile>> {
    Ok(match artifact {
        Artifact::Command => vec![file("serve_command.sh", report::scripts::serve(server), true)],
        Artifact::Docker => vec![file("docker_command.sh", report::scripts::docker(server)?, true)],
        Artifact::Compose => vec![file(
            "docker-compose.yaml",
            report::compose::compose(server)?,
            false,
        )],
        Artifact::K8s => vec![
            file("k8s.yaml", report::k8s::manifests(server)?, false),
            file("values.yaml", report::values::values(server)?, false),
        ],
        Artifact::Profile => vec![file(
            "profile.yaml",
            plan_profile::to_text(&deployment.to_profile()?)?,
            false,
        )],
    })
}

fn file(name: &'static str, text: String, executable: bool) -> BundleFile {
    BundleFile {
        name,
        text,
        executable,
    }
}

fn server(
    order: &Order,
    deployment: &Deployment,
    resolved: &super::deployment::Resolved,
    plan: &Plan,
) -> Result<Server> {
    let model = place(order, deployment, plan)?;
    let version = plan.engine.version.clone().unwrap_or_default();
    let served_name = order.served_model_name.clone().or_else(|| match &model {
        // In a container the folder has another path; clients keep asking by the name of the folder.
        ModelPlace::Folder(path) => path.file_name().map(|n| n.to_string_lossy().into_owned()),
        ModelPlace::File(path) => path.file_stem().map(|n| n.to_string_lossy().into_owned()),
        ModelPlace::Hub(_) => None,
    });
    let mut arguments = match plan.engine.name {
        "vllm" => command::vllm(deployment, resolved, plan)?,
        "sglang" => sglang::sglang(deployment, resolved, plan)?,
        "llamacpp" => llamacpp::llamacpp(deployment, plan, matches!(model, ModelPlace::Hub(_)))?,
        other => {
            return Err(
                Error::unsupported(format!("no server is started for the engine {other}"))
                    .hint("give --engine vllm, sglang or llamacpp"),
            );
        }
    };
    if order.trust_remote_code && plan.engine.name == "llamacpp" {
        return Err(Error::input(
            "--trust-remote-code means nothing to llama.cpp: a GGUF file brings no code",
        )
        .hint("leave it out"));
    }
    let per_node = order.gpus_per_node.unwrap_or(GPUS_PER_NODE);
    let nodes = nodes::nodes(deployment, plan, per_node, order.executor)?;
    if let Some(nodes) = &nodes {
        arguments.extend(nodes::arguments(deployment, plan, nodes));
    }
    command::frontend(plan.engine.name, order, served_name.as_deref(), &mut arguments);
    let extra = command::extra(plan.engine.name, &order.extra, &arguments)?;
    arguments.extend(extra);
    let vendor = vendor(deployment);
    let consider = plan
        .recommended
        .iter()
        .filter_map(|(flag, advice)| {
            let text = |key: &str| advice.get(key).map(plain);
            Some((
                format!("--{}", flag.replace('_', "-")),
                text("value")?,
                text("why")?,
            ))
        })
        .collect();
    Ok(Server {
        engine: plan.engine.name,
        image: match &order.image {
            Some(image) => Image::given(image)?,
            None => Image::of(plan.engine.name, &version, vendor),
        },
        version,
        model,
        name: report::resource_name(&plan.model.name),
        arguments,
        port: order.port.unwrap_or(match plan.engine.name {
            "sglang" => 30_000,
            "llamacpp" => 8080,
            _ => 8000,
        }),
        gpus: nodes.map_or(plan.gpu.count, |n| n.gpus_each),
        nodes,
        image_given: order.image.is_some(),
        gpu_name: plan.gpu.name.clone(),
        vendor,
        weights_bytes: plan.weights.total_bytes,
        memory_bytes: plan.memory.budget_bytes,
        verdict: plan.verdict.clone(),
        consider,
        warnings: plan.feasibility.warnings.clone(),
    })
}

/// A JSON value without quotes.
fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The flags of an engine for which servers are started.
fn table(engine: &str) -> &'static Table {
    flags::of(engine).unwrap_or_else(flags::vllm)
}

fn vendor(deployment: &Deployment) -> Vendor {
    if deployment
        .gpu
        .as_deref()
        .is_some_and(|g| g.eq_ignore_ascii_case("cpu"))
    {
        return Vendor::Cpu;
    }
    let compute = deployment
        .gpu
        .as_deref()
        .and_then(|name| hardware::find(name).ok())
        .map(|gpu| (gpu.compute.as_str(), gpu.compute_capability));
    match compute {
        // A card that is not in the catalogue is taken for what most are.
        None | Some((_, Some(_))) => Vendor::Nvidia,
        Some((compute, None)) if compute.starts_with("gfx") => Vendor::Amd,
        Some(_) => Vendor::Other,
    }
}

/// Where the weights are.
fn place(order: &Order, deployment: &Deployment, plan: &Plan) -> Result<ModelPlace> {
    let Some(given) = &deployment.model else {
        return Err(Error::input(
            "a number of parameters alone cannot be served: give the model",
        ));
    };
    let path = PathBuf::from(given);
    let llamacpp = plan.engine.name == "llamacpp";
    if let Some(repo) = &order.hf_repo {
        if !llamacpp {
            return Err(Error::input(format!(
                "--hf-repo names GGUF files for llama.cpp, and the engine is {}",
                plan.engine.name
            ))
            .hint("leave it out, or give --engine llamacpp"));
        }
        return hub_repository(repo);
    }
    if llamacpp && !path.is_file() {
        return Err(Error::input(format!(
            "llama.cpp serves GGUF files, and {given} is a checkpoint of another kind"
        ))
        .hint("give the .gguf file as the model, or a hub repository with such files: --hf-repo ORG/NAME-GGUF:Q4_K_M"));
    }
    if path.is_dir() || path.is_file() {
        let absolute = std::path::absolute(&path)
            .map_err(|e| Error::io(format!("{given}: cannot tell the absolute path: {e}")))?;
        if absolute.to_str().is_none() {
            return Err(Error::input(format!(
                "{}: the path is not UTF-8, so no manifest can hold it",
                path.display()
            ))
            .hint("rename it, or link to it"));
        }
        if llamacpp {
            return Ok(ModelPlace::File(absolute));
        }
        if path.is_dir() {
            return Ok(ModelPlace::Folder(absolute));
        }
        return Err(Error::input(format!(
            "{given} is a single file, and {} serves a folder with its weights and tokenizer or a hub id",
            plan.engine.name
        ))
        .hint("give the folder of the checkpoint, or the name of the model on the hub"));
    }
    if shape::is_shape(given) {
        return Err(
            Error::input("a shape in words is no checkpoint that could be served").hint("give the model"),
        );
    }
    // The catalogue's own spelling: the name that the hub knows.
    Ok(ModelPlace::Hub(plan.model.name.clone()))
}

/// A repository of the hub as llama.cpp takes it, `ORG/NAME` or `ORG/NAME:QUANT`.
fn hub_repository(text: &str) -> Result<ModelPlace> {
    let plain = |part: &str| {
        let letters = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('-') && part.chars().all(letters)
    };
    let (name, quant) = text.split_once(':').unwrap_or((text, "Q4_K_M"));
    match name.split_once('/') {
        Some((org, repo)) if plain(org) && plain(repo) && plain(quant) => {
            Ok(ModelPlace::Hub(text.to_owned()))
        }
        _ => Err(Error::input(format!(
            "--hf-repo is \"{text}\", expected ORG/NAME or ORG/NAME:QUANT"
        ))
        .hint("example: --hf-repo ggml-org/Qwen3-8B-GGUF:Q4_K_M")),
    }
}

/// Reads the command back by the engine's own rules before anything is written.
fn check(server: &Server) -> Result<()> {
    let table = table(server.engine);
    for container in [false, true] {
        let parsed = parse(table, &server.node_words(container));
        if let Some(problem) = parsed.problems.first() {
            return Err(Error::input(format!(
                "{} {} would refuse the command: {problem}",
                server.engine, table.version
            ))
            .hint("correct the flag; every flag of the command is checked against the engine's own list"));
        }
        for given in &parsed.given {
            if !table.has(given.flag, &server.version) {
                return Err(Error::unsupported(format!(
                    "{} is not known to be a flag of {} {}: the first of the compared versions that has it is {}",
                    given.flag.name(),
                    server.engine,
                    server.version,
                    given.flag.first
                ))
                .hint("leave out --engine-version, or the flag"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
