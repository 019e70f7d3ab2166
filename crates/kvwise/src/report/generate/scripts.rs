//! Shell scripts: the server itself, and its container.

use kvwise_core::Result;

use super::super::quote::{mount_field, shell};
use super::{MODEL_FOLDER, Server, Vendor};

/// `serve_command.sh`: starts the server; words after it are added to the command.
pub fn serve(server: &Server) -> String {
    let mut out = String::from("#!/bin/sh\n");
    out.push_str(&server.comments());
    out.push_str("set -eu\n\n");
    out.push_str(&node_lines(server));
    if server.engine == "vllm" && server.port == 8000 {
        out.push_str(
            "# Listens to port 8000 of every interface; further flags may follow the script's name.\n",
        );
    } else {
        out.push_str("# Further flags may follow the script's name.\n");
    }
    out.push_str(&format!("exec {}", server.program(false).join(" ")));
    for group in server.groups(false) {
        out.push_str(" \\\n  ");
        out.push_str(&words(&group));
    }
    finish(server, &mut out);
    out
}

/// What a script of several machines asks for and how it tells the head from the others.
fn node_lines(server: &Server) -> String {
    let Some(nodes) = server.nodes else {
        return String::new();
    };
    let mut out = format!(
        "# Run this on each of {} machines with {} GPUs. Machine 0, the head, answers requests.\n\
         : \"${{NODE_RANK:?set it to 0 on the head, to 1 on the next machine, and so on}}\"\n\
         : \"${{HEAD_ADDRESS:?set it to an address of the head that all machines reach}}\"\n",
        nodes.count, nodes.gpus_each
    );
    if server.engine == "vllm" {
        out.push_str("if [ \"$NODE_RANK\" -gt 0 ]; then set -- --headless \"$@\"; fi\n");
    }
    out.push('\n');
    out
}

/// The machine's own words and the user's.
fn finish(server: &Server, out: &mut String) {
    if !server.node_words.is_empty() {
        out.push_str(" \\\n  ");
        out.push_str(&server.node_words);
    }
    out.push_str(" \\\n  \"$@\"\n");
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
    out.push_str(&node_lines(server));
    out.push_str("exec docker run --rm \\\n");
    match server.vendor {
        Vendor::Amd => {
            out.push_str("  --device /dev/kfd --device /dev/dri --group-add video --security-opt seccomp=unconfined \\\n");
        }
        Vendor::Cpu => {}
        _ => out.push_str(&format!("  --gpus {} \\\n", server.gpus)),
    }
    out.push_str(&format!("  --shm-size {}g \\\n", server.shared_memory_gib()));
    if server.nodes.is_some() {
        // The ranks talk over ports that they choose themselves.
        out.push_str("  --network host \\\n");
    } else {
        out.push_str(&format!("  --publish {0}:{0} \\\n", server.port));
    }
    out.push_str("  --env HF_TOKEN \\\n");
    out.push_str("  --volume \"$hub\":/root/.cache/huggingface \\\n");
    if let Some(path) = server.mounted() {
        let mount = format!(
            "type=bind,{},target={MODEL_FOLDER},readonly",
            mount_field("source", &path.to_string_lossy())
        );
        out.push_str(&format!("  --mount {} \\\n", shell(&mount)));
    }
    let (program, rest) = entry(server);
    out.push_str(&format!(
        "  --entrypoint {program} \\\n  {}{rest}",
        shell(&server.image.reference())
    ));
    for group in server.groups(true) {
        out.push_str(" \\\n  ");
        out.push_str(&words(&group));
    }
    finish(server, &mut out);
    Ok(out)
}

/// The program apart from its first arguments, which begin with a blank: images of different versions have different entry points, so it is named.
fn entry(server: &Server) -> (&'static str, String) {
    let (first, rest) = server
        .program(true)
        .split_first()
        .expect("every engine has a program");
    (first, rest.iter().flat_map(|word| [" ", word]).collect())
}
