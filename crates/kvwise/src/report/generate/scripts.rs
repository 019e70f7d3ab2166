//! Shell scripts: the server itself, and its container.

use kvwise_core::Result;

use super::super::quote::{mount_field, shell};
use super::nodes::{Places, RAY_HEAD, RAY_PORT, Role, ray_worker};
use super::{MODEL_FOLDER, Server, Vendor};

/// `serve_command.sh`: starts the server; words after it are added to the command.
pub fn serve(server: &Server) -> String {
    let mut out = String::from("#!/bin/sh\n");
    out.push_str(&server.comments());
    out.push_str("set -eu\n\n");
    out.push_str(&node_lines(server));
    out.push_str(&ray_lines(server));
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
    if server.engine == "vllm" && !server.by_ray() {
        out.push_str("if [ \"$NODE_RANK\" -gt 0 ]; then set -- --headless \"$@\"; fi\n");
    }
    out.push('\n');
    out
}

/// The Ray cluster around a server on this machine: the other machines end here, the head goes on.
fn ray_lines(server: &Server) -> String {
    if !server.by_ray() {
        return String::new();
    }
    format!(
        "# Every machine needs vLLM and Ray (pip install ray) in the same versions. Where machines have several networks, set\n\
         # VLLM_HOST_IP to this machine's address in the one to be used. When the server has ended: ray stop, on each machine.\n\
         address=\"${{VLLM_HOST_IP:+--node-ip-address=$VLLM_HOST_IP}}\"\n\
         if [ \"$NODE_RANK\" -gt 0 ]; then\n  \
         until ray start --address=\"$HEAD_ADDRESS:{RAY_PORT}\" $address --num-gpus={gpus} --block; do sleep 5; done\n  \
         exit\n\
         fi\n\
         ray start --head --port={RAY_PORT} $address --num-gpus={gpus}\n\n\
         # The server waits for the GPUs of the other machines, half an hour at most.\n",
        gpus = server.gpus
    )
}

/// The machine's own words and the user's.
fn finish(server: &Server, out: &mut String) {
    // Whether a machine runs headless is among the words that the script adds to the user's.
    let own = server.node_groups(Role::Head, Places::SHELL).concat();
    if !own.is_empty() {
        out.push_str(" \\\n  ");
        out.push_str(&own.join(" "));
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
    let image = shell(&server.image.reference());
    if server.by_ray() {
        out.push_str("if [ \"$NODE_RANK\" -gt 0 ]; then\n");
        out.push_str(&container(server));
        out.push_str(&format!(
            "  --entrypoint sh \\\n  {image} -c {} \"$HEAD_ADDRESS\"\nfi\n",
            shell(&ray_worker("\"$0\""))
        ));
    }
    out.push_str(&container(server));
    let (program, rest) = entry(server);
    if server.by_ray() {
        let program = server.program(true).join(" ");
        out.push_str(&format!(
            "  --entrypoint sh \\\n  {image} -c {} sh {program}",
            shell(RAY_HEAD)
        ));
    } else {
        out.push_str(&format!("  --entrypoint {program} \\\n  {image}{rest}"));
    }
    for group in server.groups(true) {
        out.push_str(" \\\n  ");
        out.push_str(&words(&group));
    }
    finish(server, &mut out);
    Ok(out)
}

/// `docker run` with everything before the entry point.
fn container(server: &Server) -> String {
    let mut out = String::from("exec docker run --rm \\\n");
    match server.vendor {
        Vendor::Amd => {
            let group = if server.names_no_groups() {
                ""
            } else {
                " --group-add video"
            };
            out.push_str(&format!(
                "  --device /dev/kfd --device /dev/dri{group} --security-opt seccomp=unconfined \\\n"
            ));
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
    out
}

/// The program apart from its first arguments, which begin with a blank: images of different versions have different entry points, so it is named.
fn entry(server: &Server) -> (&'static str, String) {
    let (first, rest) = server
        .program(true)
        .split_first()
        .expect("every engine has a program");
    (first, rest.iter().flat_map(|word| [" ", word]).collect())
}
