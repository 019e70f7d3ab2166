//! `docker-compose.yaml`, by the Compose specification.

use kvwise_core::Result;

use super::super::quote::{yaml, yaml_without_variables as value};
use super::{MODEL_FOLDER, Server, Vendor};

/// A project with one service.
///
/// # Errors
/// If no container is made for these GPUs.
pub fn compose(server: &Server) -> Result<String> {
    server.needs_containers("a Compose file")?;
    server.needs_one_node("a Compose file")?;
    let mut out = server.comments();
    let mut line = |indent: usize, text: &str| {
        out.push_str(&" ".repeat(indent));
        out.push_str(text);
        out.push('\n');
    };
    line(0, "services:");
    line(2, &format!("{}:", server.name));
    line(4, &format!("image: {}", yaml(&server.image.reference())));
    let program: Vec<String> = server.program(true).iter().map(|w| yaml(w)).collect();
    line(4, &format!("entrypoint: [{}]", program.join(", ")));
    line(4, "command:");
    for group in server.groups(true) {
        for word in group {
            line(6, &format!("- {}", value(&word)));
        }
    }
    line(4, "ports:");
    line(6, &format!("- {}", yaml(&format!("{0}:{0}", server.port))));
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
    line(4, "restart: unless-stopped");
    if server.vendor == Vendor::Amd {
        line(4, "devices: [\"/dev/kfd\", \"/dev/dri\"]");
        line(4, "group_add: [\"video\"]");
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
    Ok(out)
}
