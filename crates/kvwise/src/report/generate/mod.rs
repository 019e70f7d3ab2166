//! A server to be started, and its files: scripts, Compose, Kubernetes.

pub mod compose;
pub mod k8s;
pub mod nodes;
pub mod scripts;
pub mod values;

use std::path::{Path, PathBuf};

use kvwise_core::{Error, Result};
use serde::Serialize;

use super::quote;
use super::table::{Align, Grid};
use super::text::wrap;
pub use nodes::{Executor, Nodes};

/// Folder of the model inside of a container.
pub const MODEL_FOLDER: &str = "/model";

/// A flag with its words, and why it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Argument {
    /// The flag.
    pub flag: String,
    /// Its words.
    pub values: Vec<String>,
    /// Why it is there.
    pub why: String,
}

/// Where the weights are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelPlace {
    /// On the hub, under this id.
    Hub(String),
    /// In this folder, absolute.
    Folder(PathBuf),
    /// In this GGUF file, absolute; its other parts, if it has any, lie beside it.
    File(PathBuf),
}

/// Maker of the GPUs; containers get at them in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    /// CUDA.
    Nvidia,
    /// `ROCm`.
    Amd,
    /// No GPU at all.
    Cpu,
    /// Anything else: no containers are generated.
    Other,
}

/// A build of llama.cpp with published images: the newest that was found named in public records when this was written
/// (2026-11-22, `ghcr.io/ggml-org/llama.cpp:server-cuda-b11243`). Tags are `server-TYPE-bBUILD`, and for processors `server-bBUILD`
/// (llama.cpp, `.github/workflows/docker.yml`); TYPE is `cuda`, made with CUDA 12, or `rocm` (llama.cpp 30255fc, `docs/docker.md`).
const LLAMACPP_IMAGE: &str = "b11243";

/// A container image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Image {
    /// Repository.
    pub repository: String,
    /// Tag; empty if the reference has a digest.
    pub tag: String,
}

impl Image {
    /// The engine's published image of this version.
    pub fn of(engine: &str, version: &str, vendor: Vendor) -> Self {
        if engine == "llamacpp" {
            // Images are made of one build a day, so that not every version has one.
            let build = LLAMACPP_IMAGE;
            return Self {
                repository: "ghcr.io/ggml-org/llama.cpp".to_owned(),
                tag: match vendor {
                    Vendor::Amd => format!("server-rocm-{build}"),
                    Vendor::Cpu => format!("server-{build}"),
                    _ => format!("server-cuda-{build}"),
                },
            };
        }
        let repository = match (engine, vendor) {
            ("sglang", _) => "lmsysorg/sglang",
            (_, Vendor::Amd) => "vllm/vllm-openai-rocm",
            _ => "vllm/vllm-openai",
        };
        Self {
            repository: repository.to_owned(),
            tag: format!("v{version}"),
        }
    }

    /// An image as the user writes it: `registry:5000/name:tag`, or with a digest.
    ///
    /// # Errors
    /// If it holds anything that a reference cannot.
    pub fn given(text: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@".contains(c);
        if text.is_empty() || text.starts_with('-') || !text.chars().all(plain) {
            return Err(Error::input(format!(
                "--image is \"{}\", expected a reference like vllm/vllm-openai:v0.32.0",
                quote::comment(text)
            )));
        }
        let name_at = text.rfind('/').map_or(0, |i| i + 1);
        Ok(match text[name_at..].split_once(':') {
            Some((name, tag)) if !text.contains('@') => Self {
                repository: format!("{}{name}", &text[..name_at]),
                tag: tag.to_owned(),
            },
            _ => Self {
                repository: text.to_owned(),
                tag: String::new(),
            },
        })
    }

    /// As one word.
    pub fn reference(&self) -> String {
        if self.tag.is_empty() {
            self.repository.clone()
        } else {
            format!("{}:{}", self.repository, self.tag)
        }
    }
}

/// A server to be started.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Server {
    /// `vllm`, `sglang` or `llamacpp`.
    pub engine: &'static str,
    /// Its version.
    pub version: String,
    /// Its container image.
    pub image: Image,
    /// Whether the user chose the image.
    pub image_given: bool,
    /// Where the weights are.
    pub model: ModelPlace,
    /// A name that Kubernetes accepts.
    pub name: String,
    /// Flags after the model.
    pub arguments: Vec<Argument>,
    /// Port it listens to.
    pub port: u16,
    /// GPUs it takes on one machine.
    pub gpus: u64,
    /// The machines, if there are several.
    pub nodes: Option<Nodes>,
    /// Their catalogue name.
    pub gpu_name: String,
    /// Their maker.
    pub vendor: Vendor,
    /// Bytes of the weights.
    pub weights_bytes: u64,
    /// Memory of one GPU that the engine may take, in bytes.
    pub memory_bytes: u64,
    /// What the plan says.
    pub verdict: String,
    /// Settings worth a thought: flag, value, why.
    pub consider: Vec<(String, String, String)>,
    /// What else one should know.
    pub warnings: Vec<String>,
}

impl Server {
    /// Whether the image has no group named after devices: then its user, root, opens them as they are (llama.cpp 30255fc,
    /// `docs/docker.md`).
    pub(super) fn names_no_groups(&self) -> bool {
        self.engine == "llamacpp"
    }

    /// Program and subcommand, on this machine or in the engine's image.
    pub fn program(&self, container: bool) -> &'static [&'static str] {
        match (self.engine, container) {
            ("sglang", _) => &["python3", "-m", "sglang.launch_server"],
            // The folder of the image is not on its PATH (llama.cpp b11434, `.devops/cuda.Dockerfile`).
            ("llamacpp", true) => &["/app/llama-server"],
            ("llamacpp", false) => &["llama-server"],
            _ => &["vllm", "serve"],
        }
    }

    /// The model as this side names it.
    fn model(&self, container: bool) -> String {
        match &self.model {
            ModelPlace::Hub(id) => id.clone(),
            ModelPlace::Folder(_) if container => MODEL_FOLDER.to_owned(),
            ModelPlace::File(path) if container => match path.file_name() {
                Some(name) => format!("{MODEL_FOLDER}/{}", name.to_string_lossy()),
                None => MODEL_FOLDER.to_owned(),
            },
            ModelPlace::Folder(path) | ModelPlace::File(path) => path.to_string_lossy().into_owned(),
        }
    }

    /// The folder of this machine that a container needs.
    fn mounted(&self) -> Option<&Path> {
        match &self.model {
            ModelPlace::Hub(_) => None,
            ModelPlace::Folder(path) => Some(path),
            ModelPlace::File(path) => path.parent(),
        }
    }

    /// A command of the engine's image that succeeds when the server answers, as a list for Compose.
    fn probe(&self) -> Vec<String> {
        let url = format!("http://127.0.0.1:{}/health", self.port);
        let words: Vec<String> = match self.engine {
            "llamacpp" => vec!["curl".to_owned(), "-f".to_owned(), url],
            _ => vec![
                "python3".to_owned(),
                "-c".to_owned(),
                format!("import urllib.request as r; r.urlopen('{url}', timeout=5)"),
            ],
        };
        std::iter::once("CMD".to_owned()).chain(words).collect()
    }

    /// The groups of words after the program: the model, then a flag with its values each.
    pub fn groups(&self, container: bool) -> Vec<Vec<String>> {
        let model = self.model(container);
        let mut groups = vec![match self.engine {
            "sglang" => vec!["--model-path".to_owned(), model],
            "llamacpp" if matches!(self.model, ModelPlace::Hub(_)) => vec!["--hf-repo".to_owned(), model],
            "llamacpp" => vec!["--model".to_owned(), model],
            _ => vec![model],
        }];
        for argument in &self.arguments {
            // A value that begins with a dash would be read as a flag unless it is joined; llama.cpp takes it as it is, and no
            // joined ones.
            groups.push(match argument.values.as_slice() {
                [one] if one.starts_with('-') && self.engine != "llamacpp" => {
                    vec![format!("{}={one}", argument.flag)]
                }
                values => std::iter::once(&argument.flag).chain(values).cloned().collect(),
            });
        }
        groups
    }

    /// All words after the program.
    pub fn words(&self, container: bool) -> Vec<String> {
        self.groups(container).into_iter().flatten().collect()
    }

    /// Bytes of shared memory for the ranks' messages.
    pub fn shared_memory_gib(&self) -> u64 {
        // A GiB for the server and a GiB a rank: NCCL and the engines' message queues take some hundred MiB a rank.
        1 + self.gpus
    }

    /// Says that containers are not made for these GPUs.
    fn needs_containers(&self, what: &str) -> Result<()> {
        if self.image_given && self.vendor != Vendor::Other {
            return Ok(());
        }
        // Ray left the image with vLLM 0.19 (vllm-project/vllm#33445, kubernetes-sigs/lws#835).
        if self.by_ray() && !kvwise_core::engine::flags::older(&self.version, "0.19.0") {
            return Err(Error::unsupported(format!(
                "{what} that runs under Ray needs an image with Ray, and the one of vLLM {} has none",
                self.version
            ))
            .hint(format!(
                "make one (FROM {}, RUN pip install ray) and name it: --image, or give --emit command,profile",
                self.image.reference()
            ))
            .hint("or leave out --distributed-executor-backend: vLLM spans machines without Ray"));
        }
        match (self.engine, self.vendor) {
            (_, Vendor::Other) => Err(Error::unsupported(format!(
                "{what} is generated for NVIDIA and AMD GPUs, and {} is neither",
                self.gpu_name
            ))
            .hint("give --emit command,profile")),
            ("sglang", Vendor::Amd) => Err(Error::unsupported(format!(
                "{what} needs an image, and the tags of SGLang's ROCm images name the card and the ROCm version"
            ))
            .hint("give --image, or --emit command,profile")),
            ("vllm" | "sglang", Vendor::Cpu) => Err(Error::unsupported(format!(
                "{what} needs an image, and none that serves on CPUs is known to be published for every version"
            ))
            .hint("give --image, or --emit command,profile")),
            _ => Ok(()),
        }
    }

    /// Lines that say what the files are, without the comment sign.
    pub fn heading(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "{} {} for {} on {}{} x {}, written by kvwise {}.",
                self.engine,
                self.version,
                self.model(false),
                self.nodes
                    .map_or_else(String::new, |n| format!("{} nodes of ", n.count)),
                self.gpus,
                self.gpu_name,
                env!("CARGO_PKG_VERSION")
            ),
            format!("The plan: {}", self.verdict),
        ];
        lines.extend(self.warnings.iter().map(|w| format!("Note: {w}")));
        lines
    }

    /// Lines that say why each flag is there.
    pub fn reasons(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .arguments
            .iter()
            .map(|a| {
                let words = [std::slice::from_ref(&a.flag), &a.values].concat().join(" ");
                if a.why.is_empty() {
                    words
                } else {
                    format!("{words}: {}", a.why)
                }
            })
            .collect();
        lines.extend(
            self.consider
                .iter()
                .map(|(flag, value, why)| format!("consider {flag} {value}: {why}")),
        );
        lines
    }

    /// Heading and reasons as comments.
    fn comments(&self) -> String {
        let mut out = String::new();
        for line in self.heading() {
            out.push_str(&format!("# {}\n", quote::comment(&line)));
        }
        out.push_str("#\n");
        for line in self.reasons() {
            out.push_str(&format!("# {}\n", quote::comment(&line)));
        }
        out
    }
}

/// A name for Kubernetes' objects: letters, digits and dashes, at most 50 of them, a letter first.
pub fn resource_name(model: &str) -> String {
    let short = model.trim_end_matches('/').rsplit('/').next().unwrap_or(model);
    let mut name: String = short
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    while name.contains("--") {
        name = name.replace("--", "-");
    }
    let name: String = name
        .trim_matches(|c: char| !c.is_ascii_alphanumeric())
        .chars()
        .take(44)
        .collect();
    let name = name.trim_end_matches('-');
    match name.chars().next() {
        None => "model".to_owned(),
        // Words that YAML reads as something other than text.
        Some(_) if ["null", "true", "false", "yes", "no", "on", "off", "y", "n"].contains(&name) => {
            format!("model-{name}")
        }
        Some(first) if first.is_ascii_digit() => format!("model-{name}"),
        Some(_) => name.to_owned(),
    }
}

/// What was generated.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Generated {
    /// Version of the JSON shape.
    pub schema: &'static str,
    /// Whether files were written.
    pub written: bool,
    /// The folder.
    pub directory: String,
    /// Names of the files.
    pub files: Vec<String>,
    /// What the plan says.
    pub verdict: String,
    /// Words of the command.
    pub command: Vec<String>,
    /// Its flags with their reasons.
    pub arguments: Vec<Argument>,
    /// What to change where nothing was written and no other deployment is near.
    pub fix: Option<String>,
    /// Flags with which the nearest deployment fits, where this one does not.
    pub nearest: Option<NearestPart>,
    /// What else one should know.
    pub warnings: Vec<String>,
}

/// The nearest deployment that fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NearestPart {
    /// Flags to add.
    pub flags: Vec<String>,
    /// What its plan says.
    pub verdict: String,
}

/// Version of [`Generated`].
pub const SCHEMA: &str = "kvwise.generate/1";

impl Generated {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        wrap(&mut out, &self.verdict, "");
        if let Some(nearest) = &self.nearest {
            let line = format!(
                "nearest that fits: {} ({})",
                nearest.flags.join(" "),
                nearest.verdict
            );
            wrap(&mut out, &line, "  ");
        } else if let Some(fix) = &self.fix {
            wrap(&mut out, &format!("fix: {fix}"), "  ");
        }
        if self.command.is_empty() {
            out.push_str("nothing was written\n");
            return out;
        }
        let words: Vec<String> = self.command.iter().map(|w| quote::shell(w)).collect();
        out.push_str(&format!("\n$ {}\n\n", words.join(" ")));
        out.push_str(&self.grid().text());
        out.push('\n');
        for file in &self.files {
            let did = if self.written { "wrote" } else { "would write" };
            out.push_str(&format!(
                "{did} {}\n",
                quote::comment(&format!("{}/{file}", self.directory))
            ));
        }
        for warning in &self.warnings {
            wrap(&mut out, &format!("note: {warning}"), "  ");
        }
        out
    }

    /// One row a flag.
    pub fn grid(&self) -> Grid {
        let mut grid = Grid::new(&[
            ("flag", Align::Left),
            ("value", Align::Left),
            ("why", Align::Left),
        ]);
        for argument in &self.arguments {
            grid.row([
                argument.flag.clone(),
                quote::comment(&argument.values.join(" ")),
                argument.why.clone(),
            ]);
        }
        grid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_objects_are_labels_whatever_the_model_is_called() {
        for (model, name) in [
            ("meta-llama/Llama-3.1-8B", "llama-3-1-8b"),
            ("../weird $(rm) `x`\n", "weird-rm-x"),
            ("模型", "model"),
            ("7b", "model-7b"),
            ("Null", "model-null"),
            ("/a/b/", "b"),
        ] {
            assert_eq!(resource_name(model), name);
        }
        let long = resource_name(&"x".repeat(300));
        assert!(long.len() <= 50);
    }

    #[test]
    fn images_are_split_into_repository_and_tag() {
        let image = Image::given("registry:5000/a/b:v1").unwrap();
        assert_eq!(
            (image.repository.as_str(), image.tag.as_str()),
            ("registry:5000/a/b", "v1")
        );
        let digest = Image::given("a/b@sha256:00ff").unwrap();
        assert_eq!(digest.reference(), "a/b@sha256:00ff");
        assert_eq!(Image::given("registry:5000/a/b").unwrap().tag, "");
        assert!(Image::given("a b").is_err() && Image::given("-v").is_err());
    }
}
