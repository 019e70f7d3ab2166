//! Finds the engines' servers in commands, Compose files, Kubernetes manifests and values files.

use kvwise_core::{Error, Result};
use serde_json::Value;

use super::shell;

/// A server that somebody starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Where it was found, for people.
    pub place: String,
    /// `vllm`, `sglang` or `llamacpp`.
    pub engine: &'static str,
    /// Version, from the image's tag.
    pub version: Option<String>,
    /// Words after program and subcommand.
    pub words: Vec<String>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// GPUs that the container gets, where it says a number.
    pub gpus: Option<u64>,
    /// Image of the container.
    pub image: Option<String>,
    /// For containers: whether shared memory is more than the 64 MiB of the runtime's default.
    pub shared_memory: Option<bool>,
    /// Whether the model was given with `--model` to `vllm serve`.
    pub serve: bool,
}

/// Servers in shell text.
///
/// # Errors
/// If the text cannot be split, or starts no server.
pub fn in_shell(text: &str, place: &str) -> Result<Vec<Found>> {
    let commands = shell::split(text).map_err(|e| Error::input(format!("{place}: {e}")))?;
    let mut found = Vec::new();
    for command in &commands {
        if let Some(mut server) = in_words(&command.words) {
            server.place = if text.lines().count() > 1 {
                format!("{place}, line {}", command.line)
            } else {
                place.to_owned()
            };
            let mut environment = command.environment.clone();
            environment.append(&mut server.environment);
            server.environment = environment;
            found.push(server);
        }
    }
    if found.is_empty() {
        return Err(none(place));
    }
    Ok(found)
}

fn none(place: &str) -> Error {
    Error::input(format!("{place}: no vLLM, SGLang or llama.cpp server is started here"))
        .hint("expected something like: vllm serve MODEL --flags, python3 -m sglang.launch_server --model-path MODEL")
        .hint("or docker run, a Compose file, a Kubernetes manifest, a profile")
}

/// A server in the words of one command.
pub fn in_words(words: &[String]) -> Option<Found> {
    let mut rest = words;
    // What only starts something else.
    while let Some(first) = rest.first() {
        let name = first.rsplit('/').next().unwrap_or(first);
        let assignment = first
            .split_once('=')
            .is_some_and(|(n, _)| !n.is_empty() && n.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
        if ["exec", "sudo", "nohup", "env", "time", "command"].contains(&name) || assignment {
            rest = &rest[1..];
        } else {
            break;
        }
    }
    let name = |w: &String| w.rsplit('/').next().unwrap_or(w).to_owned();
    let program = name(rest.first()?);
    let second = rest.get(1).map(String::as_str);
    match (program.as_str(), second) {
        ("vllm", Some("serve")) => return Some(server("vllm", &rest[2..], true)),
        ("llama-server", _) => return Some(server("llamacpp", &rest[1..], false)),
        ("sglang", Some("serve")) => return Some(server("sglang", &rest[2..], false)),
        ("docker" | "podman", Some("run")) => return docker(&rest[2..]),
        ("bash" | "sh", Some("-c")) => {
            let inner = shell::split(rest.get(2)?).ok()?;
            // The words after the shell's name are what "$@" stands for.
            let own = rest.get(4..).unwrap_or_default();
            return inner.iter().find_map(|command| {
                let words: Vec<String> = command
                    .words
                    .iter()
                    .flat_map(|word| {
                        if word == "$@" {
                            own.to_vec()
                        } else {
                            vec![word.clone()]
                        }
                    })
                    .collect();
                let mut found = in_words(&words)?;
                found
                    .environment
                    .splice(0..0, command.environment.iter().cloned());
                Some(found)
            });
        }
        _ => {}
    }
    let module = rest
        .iter()
        .position(|w| w == "-m")
        .and_then(|i| Some((i, rest.get(i + 1)?)));
    match module {
        Some((i, m)) if m == "vllm.entrypoints.openai.api_server" || m == "vllm.entrypoints.api_server" => {
            Some(server("vllm", &rest[i + 2..], false))
        }
        Some((i, m)) if m == "sglang.launch_server" => Some(server("sglang", &rest[i + 2..], false)),
        Some((i, m)) if m == "vllm.entrypoints.cli.main" && rest.get(i + 2).is_some_and(|w| w == "serve") => {
            Some(server("vllm", &rest[i + 3..], true))
        }
        _ => None,
    }
}

fn server(engine: &'static str, words: &[String], serve: bool) -> Found {
    Found {
        engine,
        words: words.to_vec(),
        serve,
        ..Found::default()
    }
}

/// Flags of `docker run` that take no value; all others take one.
const DOCKER_SWITCHES: [&str; 18] = [
    "-d",
    "--detach",
    "-i",
    "--interactive",
    "-t",
    "--tty",
    "-it",
    "-ti",
    "-itd",
    "-dit",
    "-P",
    "--publish-all",
    "--rm",
    "--privileged",
    "--init",
    "--read-only",
    "-q",
    "--quiet",
];

fn docker(words: &[String]) -> Option<Found> {
    let (mut environment, mut gpus, mut entrypoint) = (Vec::new(), None, None);
    let mut shared_memory = false;
    let mut i = 0;
    while let Some(word) = words.get(i).filter(|w| w.starts_with('-')) {
        i += 1;
        if DOCKER_SWITCHES.contains(&word.as_str()) {
            continue;
        }
        let (flag, value) = match word.split_once('=') {
            Some((flag, value)) if word.starts_with("--") => (flag, Some(value.to_owned())),
            _ => {
                let value = words.get(i).cloned();
                i += 1;
                (word.as_str(), value)
            }
        };
        let Some(value) = value else { continue };
        match flag {
            "-e" | "--env" => {
                environment.extend(value.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())));
            }
            "--gpus" => gpus = gpu_count(&value),
            "--entrypoint" => entrypoint = Some(value),
            "--shm-size" => shared_memory = true,
            "--ipc" => shared_memory |= value == "host",
            _ => {}
        }
    }
    let image = words.get(i)?;
    let after = &words[i + 1..];
    let mut found = container(image, entrypoint.as_slice(), after)?;
    found.environment = environment;
    found.gpus = gpus;
    found.shared_memory = Some(shared_memory);
    Some(found)
}

/// `2`, `count=2`, `"device=0,1"`; nothing for `all`.
fn gpu_count(value: &str) -> Option<u64> {
    let value = value.trim_matches('"');
    match value.split_once('=') {
        Some(("device", list)) => Some(list.split(',').filter(|d| !d.is_empty()).count() as u64),
        Some(("count", n)) => n.parse().ok(),
        _ => value.parse().ok(),
    }
}

/// A server in a container: by its entry point, its command, or what its image runs by itself.
fn container(image: &str, entrypoint: &[String], command: &[String]) -> Option<Found> {
    let all: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    let mut found = if let Some(found) = in_words(&all) {
        found
    } else if image.contains("vllm-openai") || image.contains("vllm/vllm") {
        server("vllm", command, false)
    } else if image.contains("llama.cpp:server") {
        server("llamacpp", command, false)
    } else {
        return None;
    };
    let name = image.rsplit('/').next().unwrap_or(image);
    let tag = name
        .split('@')
        .next()
        .and_then(|n| n.split_once(':'))
        .map(|(_, tag)| tag);
    found.version = tag
        .map(|t| t.trim_start_matches('v'))
        .filter(|t| t.starts_with(|c: char| c.is_ascii_digit()))
        .map(|t| t.split(['-', '+']).next().unwrap_or(t).to_owned());
    found.image = Some(image.to_owned());
    Some(found)
}

/// Servers in the documents of a YAML file.
///
/// # Errors
/// If there is none.
pub fn in_yaml(documents: &[Value], place: &str) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for document in documents {
        if let Some(services) = document.get("services").and_then(Value::as_object) {
            for (name, service) in services {
                found.extend(compose(name, service, place));
            }
        } else if document.get("kind").is_some() {
            let kind = document["kind"].as_str().unwrap_or_default();
            let name = document["metadata"]["name"].as_str().unwrap_or_default();
            pods(document, 0, &mut |pod| {
                for container in pod["containers"].as_array().into_iter().flatten() {
                    found.extend(k8s(container, pod, &format!("{place}, {kind} {name}")));
                }
            });
        } else if document.get("args").is_some() || document.get("command").is_some() {
            found.extend(values(document, document, place));
        } else {
            // Charts for several machines say it once for each kind of pod.
            for role in ["leader", "worker"] {
                if let Some(part) = document.get(role) {
                    found.extend(values(document, part, &format!("{place}, {role}")));
                }
            }
        }
    }
    if found.is_empty() {
        return Err(none(place));
    }
    Ok(found)
}

/// A list of words, or shell text.
fn words_of(value: Option<&Value>, dollars: bool) -> Vec<String> {
    let plain = |text: &str| {
        if dollars {
            text.replace("$$", "$")
        } else {
            text.to_owned()
        }
    };
    match value {
        Some(Value::String(text)) => shell::split(&plain(text))
            .ok()
            .and_then(|commands| commands.into_iter().next())
            .map(|c| c.words)
            .unwrap_or_default(),
        Some(Value::Array(list)) => list
            .iter()
            .map(|v| plain(v.as_str().map_or_else(|| v.to_string(), str::to_owned).as_str()))
            .collect(),
        _ => Vec::new(),
    }
}

/// Variables as a map, as `NAME=value`, or as Kubernetes' names and values.
fn environment_of(value: Option<&Value>) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    match value {
        Some(Value::Object(map)) => map.iter().map(|(n, v)| (n.clone(), text(v))).collect(),
        Some(Value::Array(list)) => list
            .iter()
            .filter_map(|v| match v {
                Value::String(pair) => pair.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())),
                other => Some((
                    other.get("name")?.as_str()?.to_owned(),
                    other.get("value").map(text)?,
                )),
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn compose(name: &str, service: &Value, place: &str) -> Option<Found> {
    let image = service["image"].as_str().unwrap_or_default();
    let entrypoint = words_of(service.get("entrypoint"), true);
    let mut found = container(image, &entrypoint, &words_of(service.get("command"), true))?;
    found.place = format!("{place}, service {name}");
    found.environment = environment_of(service.get("environment"));
    let devices = &service["deploy"]["resources"]["reservations"]["devices"];
    found.gpus = devices[0]["count"]
        .as_u64()
        .or_else(|| devices[0]["device_ids"].as_array().map(|ids| ids.len() as u64));
    found.shared_memory = Some(service.get("shm_size").is_some() || service["ipc"].as_str() == Some("host"));
    Some(found)
}

/// Every pod specification inside of a document: wherever an object has containers.
fn pods(value: &Value, depth: usize, each: &mut dyn FnMut(&Value)) {
    if depth > 12 {
        return;
    }
    match value {
        Value::Object(map) => {
            if map.get("containers").is_some_and(Value::is_array) {
                each(value);
                return;
            }
            map.values().for_each(|v| pods(v, depth + 1, each));
        }
        Value::Array(list) => list.iter().for_each(|v| pods(v, depth + 1, each)),
        _ => {}
    }
}

fn k8s(of: &Value, pod: &Value, place: &str) -> Option<Found> {
    let image = of["image"].as_str().unwrap_or_default();
    let mut found = container(
        image,
        &words_of(of.get("command"), true),
        &words_of(of.get("args"), true),
    )?;
    place.clone_into(&mut found.place);
    found.environment = environment_of(of.get("env"));
    found.gpus = gpu_limit(&of["resources"]);
    let memory = |v: &Value| v["emptyDir"]["medium"].as_str() == Some("Memory");
    found.shared_memory = Some(
        pod["volumes"]
            .as_array()
            .is_some_and(|list| list.iter().any(memory)),
    );
    Some(found)
}

fn gpu_limit(resources: &Value) -> Option<u64> {
    ["nvidia.com/gpu", "amd.com/gpu"].iter().find_map(|name| {
        let value = resources["limits"]
            .get(*name)
            .or_else(|| resources["requests"].get(*name))?;
        value.as_u64().or_else(|| value.as_str()?.parse().ok())
    })
}

/// A server in a chart's values; `part` has its words.
fn values(document: &Value, part: &Value, place: &str) -> Option<Found> {
    let image = format!(
        "{}:{}",
        document["image"]["repository"].as_str().unwrap_or_default(),
        document["image"]["tag"].as_str().unwrap_or_default()
    );
    let command = words_of(part.get("command"), true);
    let mut found = container(&image, &command, &words_of(part.get("args"), true))?;
    found.place = format!("{place}, values");
    found.environment = environment_of(document.get("env"));
    found.gpus = gpu_limit(&document["resources"]);
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Found {
        in_shell(text, "here").unwrap().remove(0)
    }

    #[test]
    fn servers_are_found_behind_everything_that_starts_them() {
        for (text, engine, first) in [
            ("vllm serve m -tp 2", "vllm", "m"),
            ("CUDA_VISIBLE_DEVICES=0 exec /opt/bin/vllm serve m", "vllm", "m"),
            (
                "nohup python3 -u -m vllm.entrypoints.openai.api_server --model m &",
                "vllm",
                "--model",
            ),
            (
                "sudo env A=b python -m sglang.launch_server --model-path m",
                "sglang",
                "--model-path",
            ),
            ("bash -c 'X=1 vllm serve m'", "vllm", "m"),
            (
                "docker run --gpus all -p 8000:8000 vllm/vllm-openai:v0.10.2 --model m",
                "vllm",
                "--model",
            ),
            (
                "docker run --rm --entrypoint vllm vllm/vllm-openai:latest serve m",
                "vllm",
                "m",
            ),
            (
                "docker run lmsysorg/sglang:v0.5.23 python3 -m sglang.launch_server --model-path m",
                "sglang",
                "--model-path",
            ),
        ] {
            let found = one(text);
            assert_eq!((found.engine, found.words[0].as_str()), (engine, first), "{text}");
        }
        assert!(in_shell("echo vllm", "here").is_err());
    }

    #[test]
    fn a_container_says_its_version_gpus_and_shared_memory() {
        let found = one("docker run --gpus '\"device=0,1\"' --ipc=host -e A=b vllm/vllm-openai:v0.10.2-x m");
        assert_eq!((found.version.as_deref(), found.gpus), (Some("0.10.2"), Some(2)));
        assert_eq!(found.shared_memory, Some(true));
        assert_eq!(found.environment, [("A".to_owned(), "b".to_owned())]);
        let found = one("docker run --gpus all vllm/vllm-openai:latest m");
        assert_eq!(
            (found.version, found.gpus, found.shared_memory),
            (None, None, Some(false))
        );
    }

    #[test]
    fn yaml_of_every_kind_is_understood() {
        let compose = "services: {a: {image: 'vllm/vllm-openai:v0.12.0', command: '--model m --dtype auto', ipc: host}, b: {image: nginx}}";
        let pod = "kind: Deployment\nmetadata: {name: x}\nspec: {template: {spec: {containers: [{image: y, command: [vllm, serve], \
                   args: [m, '$$(A)'], resources: {limits: {nvidia.com/gpu: '4'}}}]}}}";
        let values = "image: {repository: vllm/vllm-openai, tag: v0.12.0}\nargs: [--model, m]";
        let read = |text: &str| in_yaml(&[serde_saphyr::from_str(text).unwrap()], "f");
        let found = read(compose).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].words, ["--model", "m", "--dtype", "auto"]);
        let found = read(pod).unwrap();
        assert_eq!((found[0].words[1].as_str(), found[0].gpus), ("$(A)", Some(4)));
        assert_eq!(read(values).unwrap()[0].version.as_deref(), Some("0.12.0"));
        assert!(read("kind: Service").is_err());
    }
}
