//! `docker-compose.yaml`, by the Compose specification.

use kvwise_core::Result;

use super::super::quote::{yaml, yaml_without_variables as value};
use super::nodes::{Places, Role};
use super::{MODEL_FOLDER, Server, Vendor};

/// A project with one service, or with one for the head of several machines and one for the others.
///
/// # Errors
/// If no container is made for these GPUs.
pub fn compose(server: &Server) -> Result<String> {
    server.needs_containers("a Compose file")?;
    let mut out = server.comments();
    if let Some(nodes) = server.nodes {
        out.push_str(&format!(
            "#\n# On the head of {} machines with {} GPUs, which answers requests, and on each of the others:\n\
             #   NODE_RANK=0 HEAD_ADDRESS=10.0.0.1 docker compose --profile head up\n\
             #   NODE_RANK=1 HEAD_ADDRESS=10.0.0.1 docker compose --profile worker up\n",
            nodes.count, nodes.gpus_each
        ));
    }
    out.push_str("services:\n");
    if server.nodes.is_some() {
        service(server, &server.name, Role::Head, &mut out);
        service(server, &format!("{}-worker", server.name), Role::Worker, &mut out);
    } else {
        service(server, &server.name, Role::Alone, &mut out);
    }
    Ok(out)
}

fn service(server: &Server, name: &str, role: Role, out: &mut String) {
    let mut line = |indent: usize, text: &str| {
        out.push_str(&" ".repeat(indent));
        out.push_str(text);
        out.push('\n');
    };
    line(2, &format!("{name}:"));
    match role {
        Role::Alone => {}
        Role::Head => line(4, "profiles: [head]"),
        Role::Worker => line(4, "profiles: [worker]"),
    }
    line(4, &format!("image: {}", yaml(&server.image.reference())));
    let command = server.command(role, Places::COMPOSE);
    let program: Vec<String> = command.entry.iter().map(super::nodes::Word::yaml).collect();
    line(4, &format!("entrypoint: [{}]", program.join(", ")));
    if command.words.is_empty() {
        line(4, "command: []");
    } else {
        line(4, "command:");
    }
    for word in &command.words {
        line(6, &format!("- {}", word.yaml()));
    }
    if role == Role::Alone {
        line(4, "ports:");
        line(6, &format!("- {}", yaml(&format!("{0}:{0}", server.port))));
    } else {
        line(
            4,
            "network_mode: host  # the ranks talk over ports that they choose",
        );
    }
    line(4, "environment:");
    line(6, "- HF_TOKEN  # handed on if it is set");
    line(4, "volumes:");
    line(6, "- type: bind");
    line(8, "source: ${HF_HOME:-~/.cache/huggingface}");
    line(8, "target: /root/.cache/huggingface");
    line(8, "bind:");
    line(10, "create_host_path: true");
    if let Some(path) = server.mounted() {
        line(6, "- type: bind");
        line(8, &format!("source: {}", value(&path.to_string_lossy())));
        line(8, &format!("target: {MODEL_FOLDER}"));
        line(8, "read_only: true");
    }
    line(
        4,
        &format!(
            "shm_size: {}gb  # messages between the ranks",
            server.shared_memory_gib()
        ),
    );
    if role.answers() {
        line(4, "healthcheck:");
        let probe: Vec<String> = server.probe().iter().map(|w| yaml(w)).collect();
        line(6, &format!("test: [{}]", probe.join(", ")));
        line(6, "interval: 15s");
        line(6, "timeout: 10s");
        line(6, "retries: 4");
        line(
            6,
            "start_period: 30m  # download and compilation happen before the first answer",
        );
    }
    line(4, "restart: unless-stopped");
    if server.vendor == Vendor::Amd {
        line(4, "devices: [\"/dev/kfd\", \"/dev/dri\"]");
        if !server.names_no_groups() {
            line(4, "group_add: [\"video\"]");
        }
        line(4, "security_opt: [\"seccomp=unconfined\"]");
    } else if server.vendor == Vendor::Nvidia {
        line(4, "deploy:");
        line(6, "resources:");
        line(8, "reservations:");
        line(10, "devices:");
        line(12, "- driver: nvidia");
        line(14, &format!("count: {}", server.gpus));
        line(14, "capabilities: [\"gpu\"]");
    }
}
