//! `values.yaml`: what the manifests say, as values of a chart.

use kvwise_core::Result;

use super::super::quote::yaml;
use super::k8s::{Lines, PROBE_PERIOD_S};
use super::nodes::Role;
use super::{MODEL_FOLDER, Server};

/// `values.yaml`: the same as values of a chart.
///
/// # Errors
/// If no container is made for these GPUs.
pub fn values(server: &Server) -> Result<String> {
    server.needs_containers("a values file")?;
    let mut out = Lines(server.comments());
    out.add(0, "replicaCount: 1");
    out.add(0, "image:");
    out.add(2, format!("repository: {}", yaml(&server.image.repository)));
    out.add(2, format!("tag: {}", yaml(&server.image.tag)));
    out.add(2, "pullPolicy: IfNotPresent");
    if let Some(nodes) = server.nodes {
        out.add(0, "nodes:");
        out.add(2, format!("count: {}", nodes.count));
        out.add(2, format!("gpusEach: {}", nodes.gpus_each));
        for (role, name) in [(Role::Head, "leader:"), (Role::Worker, "worker:")] {
            out.add(0, name);
            out.command(2, server, role);
        }
    } else {
        out.command(0, server, Role::Alone);
    }
    for (indent, text) in [
        (0, "env:".to_owned()),
        (2, "- name: HF_TOKEN".to_owned()),
        (4, "valueFrom:".to_owned()),
        (
            6,
            "secretKeyRef: {name: huggingface, key: token, optional: true}".to_owned(),
        ),
        (0, "resources:".to_owned()),
        (2, "requests:".to_owned()),
        (4, format!("cpu: \"{}\"", server.cores())),
        (4, format!("memory: {}Gi", server.host_memory_gib())),
    ] {
        out.add(indent, text);
    }
    if let Some(gpu) = server.gpu_line() {
        out.add(4, &gpu);
        out.add(2, "limits:");
        out.add(4, gpu);
    }
    for (indent, text) in [
        (0, "service:".to_owned()),
        (2, "type: ClusterIP".to_owned()),
        (2, format!("port: {}", server.port)),
        (0, "startupProbe:".to_owned()),
        (2, format!("httpGet: {{path: /health, port: {}}}", server.port)),
        (2, format!("periodSeconds: {PROBE_PERIOD_S}")),
        (2, format!("failureThreshold: {}", server.startup_looks())),
        (0, "readinessProbe:".to_owned()),
        (2, format!("httpGet: {{path: /health, port: {}}}", server.port)),
        (0, "livenessProbe:".to_owned()),
        (2, format!("httpGet: {{path: /health, port: {}}}", server.port)),
        (2, "periodSeconds: 15".to_owned()),
        (0, "sharedMemory:".to_owned()),
        (2, format!("sizeLimit: {}Gi", server.shared_memory_gib())),
    ] {
        out.add(indent, text);
    }
    match server.mounted() {
        None => {
            out.add(0, "cache:");
            out.add(2, format!("size: {}Gi", server.cache_gib()));
            out.add(2, "mountPath: /root/.cache/huggingface");
            out.add(2, format!("accessMode: {}", server.access_mode()));
        }
        Some(path) => {
            out.add(0, "model:");
            out.add(2, format!("hostPath: {}", yaml(&path.to_string_lossy())));
            out.add(2, format!("mountPath: {MODEL_FOLDER}"));
        }
    }
    Ok(out.0)
}
