//! Shell scripts: the server itself, and its container.

use kvwise_core::Result;

use super::super::quote::{mount_field, shell};
use super::{MODEL_FOLDER, ModelPlace, Server, Vendor};

/// `serve_command.sh`: starts the server; words after it are added to the command.
pub fn serve(server: &Server) -> String {
    let mut out = String::from("#!/bin/sh\n");
    out.push_str(&server.comments());
    out.push_str("set -eu\n\n");
    if server.engine == "vllm" && server.port == 8000 {
        out.push_str(
            "# Listens to port 8000 of every interface; further flags may follow the script's name.\n",
        );
    } else {
        out.push_str("# Further flags may follow the script's name.\n");
    }
    out.push_str(&format!("exec {}", server.program().join(" ")));
    for group in server.groups(false) {
        out.push_str(" \\\n  ");
        out.push_str(&words(&group));
    }
    out.push_str(" \\\n  \"$@\"\n");
    out
}

fn words(group: &[String]) -> String {
    group.iter().map(|w| shell(w)).collect::<Vec<_>>().join(" ")
}

/// `docker_command.sh`: the same server in the engine's image.
///
/// # Errors
/// If no container is made for these GPUs.
pub fn docker(server: &Server) -> Result<String> {
    server.needs_containers("a container")?;
    let mut out = String::from("#!/bin/sh\n");
    out.push_str(&server.comments());
    out.push_str(
        "set -eu\n\n# The hub's files are kept between starts; HF_TOKEN is handed on if it is set.\n\
         hub=\"${HF_HOME:-$HOME/.cache/huggingface}\"\nmkdir -p \"$hub\"\n\n",
    );
    out.push_str("exec docker run --rm \\\n");
    match server.vendor {
        Vendor::Amd => {
            out.push_str("  --device /dev/kfd --device /dev/dri --group-add video --security-opt seccomp=unconfined \\\n");
        }
        _ => out.push_str(&format!("  --gpus {} \\\n", server.gpus)),
    }
    out.push_str(&format!("  --shm-size {}g \\\n", server.shared_memory_gib()));
    out.push_str(&format!(
        "  --publish {0}:{0} \\\n  --env HF_TOKEN \\\n",
        server.port
    ));
    out.push_str("  --volume \"$hub\":/root/.cache/huggingface \\\n");
    if let ModelPlace::Folder(path) = &server.model {
        let mount = format!(
            "type=bind,{},target={MODEL_FOLDER},readonly",
            mount_field("source", &path.to_string_lossy())
        );
        out.push_str(&format!("  --mount {} \\\n", shell(&mount)));
    }
    let (program, rest) = entry(server);
    out.push_str(&format!(
        "  --entrypoint {program} \\\n  {} {rest}",
        shell(&server.image.reference())
    ));
    for group in server.groups(true) {
        out.push_str(" \\\n  ");
        out.push_str(&words(&group));
    }
    out.push_str(" \\\n  \"$@\"\n");
    Ok(out)
}

/// The program apart from its first arguments: images of different versions have different entry points, so it is named.
fn entry(server: &Server) -> (&'static str, String) {
    let (first, rest) = server
        .program()
        .split_first()
        .expect("every engine has a program");
    (first, rest.join(" "))
}
