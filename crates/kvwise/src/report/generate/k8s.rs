//! Kubernetes: a deployment with its volumes and service, and the same as values for a chart.

use kvwise_core::Result;
use kvwise_core::units::GIB;

use super::super::quote::{yaml, yaml_without_variables as value};
use super::{MODEL_FOLDER, Server, Vendor};

/// Seconds between two looks of the start-up probe.
const PROBE_PERIOD_S: u64 = 10;

/// Lines of YAML.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, indent: usize, text: impl AsRef<str>) {
        self.0.push_str(&" ".repeat(indent));
        self.0.push_str(text.as_ref());
        self.0.push('\n');
    }
}

impl Server {
    /// The resource of the GPUs with their number; nothing on CPUs.
    fn gpu_line(&self) -> Option<String> {
        match self.vendor {
            Vendor::Cpu => None,
            Vendor::Amd => Some(format!("amd.com/gpu: {}", self.gpus)),
            _ => Some(format!("nvidia.com/gpu: {}", self.gpus)),
        }
    }

    /// Room for the hub's files: the weights and a third more, in steps of 10 GiB.
    fn cache_gib(&self) -> u64 {
        (self.weights_bytes / GIB * 4 / 3 + 10).div_ceil(10) * 10
    }

    /// Looks of the start-up probe: the weights at 100 MiB/s, and twenty minutes for loading and compilation.
    fn startup_looks(&self) -> u64 {
        (self.weights_bytes / (100 << 20) + 1200).div_ceil(PROBE_PERIOD_S)
    }

    /// Cores: the engines spin one for each rank, besides scheduler and server.
    fn cores(&self) -> u64 {
        2 + self.gpus
    }

    /// Host memory to ask for: each process holds some GiB of libraries and buffers, and shared memory counts too. On CPUs the
    /// weights and the cache lie there as well.
    fn host_memory_gib(&self) -> u64 {
        let own = match self.vendor {
            Vendor::Cpu => self.memory_bytes.div_ceil(GIB),
            _ => 0,
        };
        8 + 4 * self.gpus + self.shared_memory_gib() + own
    }
}

/// `k8s.yaml`: volume claim, deployment and service.
///
/// # Errors
/// If no container is made for these GPUs.
pub fn manifests(server: &Server) -> Result<String> {
    server.needs_containers("a Kubernetes manifest")?;
    server.needs_one_node("a Kubernetes manifest")?;
    let mut out = Lines(server.comments());
    let name = &server.name;
    out.0.push_str(
        "#\n# The token of the hub, where the model needs one, comes from a secret that this file only refers to:\n\
         #   kubectl create secret generic huggingface --from-literal=token=\"$HF_TOKEN\"\n",
    );
    let hub = server.mounted().is_none();
    if hub {
        for (indent, text) in [
            (0, "apiVersion: v1".to_owned()),
            (0, "kind: PersistentVolumeClaim".to_owned()),
            (0, "metadata:".to_owned()),
            (2, format!("name: {name}-hub")),
            (2, "labels:".to_owned()),
            (4, format!("app: {name}")),
            (0, "spec:".to_owned()),
            (2, "accessModes: [\"ReadWriteOnce\"]".to_owned()),
            (2, "resources:".to_owned()),
            (4, "requests:".to_owned()),
            (
                6,
                format!(
                    "storage: {}Gi  # the weights and a third more",
                    server.cache_gib()
                ),
            ),
            (0, "---".to_owned()),
        ] {
            out.add(indent, text);
        }
    }
    deployment(server, hub, &mut out);
    for (indent, text) in [
        (0, "---".to_owned()),
        (0, "apiVersion: v1".to_owned()),
        (0, "kind: Service".to_owned()),
        (0, "metadata:".to_owned()),
        (2, format!("name: {name}")),
        (2, "labels:".to_owned()),
        (4, format!("app: {name}")),
        (0, "spec:".to_owned()),
        (2, "type: ClusterIP".to_owned()),
        (2, "selector:".to_owned()),
        (4, format!("app: {name}")),
        (2, "ports:".to_owned()),
        (4, "- name: http".to_owned()),
        (6, format!("port: {}", server.port)),
        (6, "targetPort: http".to_owned()),
    ] {
        out.add(indent, text);
    }
    Ok(out.0)
}

fn deployment(server: &Server, hub: bool, out: &mut Lines) {
    let name = &server.name;
    for (indent, text) in [
        (0, "apiVersion: apps/v1".to_owned()),
        (0, "kind: Deployment".to_owned()),
        (0, "metadata:".to_owned()),
        (2, format!("name: {name}")),
        (2, "labels:".to_owned()),
        (4, format!("app: {name}")),
        (0, "spec:".to_owned()),
        (2, "replicas: 1".to_owned()),
        (2, "strategy:".to_owned()),
        (
            4,
            "type: Recreate  # two copies would need the GPUs twice".to_owned(),
        ),
        (2, "selector:".to_owned()),
        (4, "matchLabels:".to_owned()),
        (6, format!("app: {name}")),
        (2, "template:".to_owned()),
        (4, "metadata:".to_owned()),
        (6, "labels:".to_owned()),
        (8, format!("app: {name}")),
        (4, "spec:".to_owned()),
        // The variables that Kubernetes adds for a service called vllm collide with the engine's own VLLM_PORT.
        (6, "enableServiceLinks: false".to_owned()),
        (6, "terminationGracePeriodSeconds: 120".to_owned()),
        (6, "containers:".to_owned()),
        (8, "- name: server".to_owned()),
        (10, format!("image: {}", yaml(&server.image.reference()))),
    ] {
        out.add(indent, text);
    }
    let program: Vec<String> = server.program(true).iter().map(|w| yaml(w)).collect();
    out.add(10, format!("command: [{}]", program.join(", ")));
    out.add(10, "args:");
    for group in server.groups(true) {
        for word in group {
            out.add(12, format!("- {}", value(&word)));
        }
    }
    for (indent, text) in [
        (10, "env:".to_owned()),
        (12, "- name: HF_TOKEN".to_owned()),
        (14, "valueFrom:".to_owned()),
        (16, "secretKeyRef:".to_owned()),
        (18, "name: huggingface".to_owned()),
        (18, "key: token".to_owned()),
        (18, "optional: true".to_owned()),
        (10, "ports:".to_owned()),
        (12, "- name: http".to_owned()),
        (14, format!("containerPort: {}", server.port)),
        (10, "resources:".to_owned()),
        (12, "requests:".to_owned()),
        (
            14,
            format!("cpu: \"{}\"  # one a rank, scheduler and server", server.cores()),
        ),
        (14, format!("memory: {}Gi", server.host_memory_gib())),
    ] {
        out.add(indent, text);
    }
    if let Some(gpus) = server.gpu_line() {
        out.add(14, &gpus);
        out.add(12, "limits:");
        out.add(14, gpus);
    }
    for (indent, text) in [
        (10, "startupProbe:".to_owned()),
        (12, "httpGet: {path: /health, port: http}".to_owned()),
        (12, format!("periodSeconds: {PROBE_PERIOD_S}")),
        (
            12,
            format!(
                "failureThreshold: {}  # the weights at 100 MiB/s, and twenty minutes to load and compile",
                server.startup_looks()
            ),
        ),
        (10, "readinessProbe:".to_owned()),
        (12, "httpGet: {path: /health, port: http}".to_owned()),
        (12, "periodSeconds: 5".to_owned()),
        (10, "livenessProbe:".to_owned()),
        (12, "httpGet: {path: /health, port: http}".to_owned()),
        (12, "periodSeconds: 15".to_owned()),
        (12, "timeoutSeconds: 10".to_owned()),
        (12, "failureThreshold: 4".to_owned()),
        (10, "volumeMounts:".to_owned()),
        (12, "- name: shared-memory".to_owned()),
        (14, "mountPath: /dev/shm".to_owned()),
    ] {
        out.add(indent, text);
    }
    let (volume, path) = if hub {
        ("hub", "/root/.cache/huggingface")
    } else {
        ("model", MODEL_FOLDER)
    };
    out.add(12, format!("- name: {volume}"));
    out.add(14, format!("mountPath: {path}"));
    if !hub {
        out.add(14, "readOnly: true");
    }
    out.add(6, "volumes:");
    out.add(8, "- name: shared-memory");
    out.add(10, "emptyDir:");
    out.add(12, "medium: Memory");
    out.add(12, format!("sizeLimit: {}Gi", server.shared_memory_gib()));
    out.add(8, format!("- name: {volume}"));
    match server.mounted() {
        None => {
            out.add(10, "persistentVolumeClaim:");
            out.add(12, format!("claimName: {name}-hub"));
        }
        Some(path) => {
            out.add(10, "hostPath:  # the node must have this folder");
            out.add(12, format!("path: {}", yaml(&path.to_string_lossy())));
            out.add(12, "type: Directory");
        }
    }
}

/// `values.yaml`: the same as values of a chart.
///
/// # Errors
/// If no container is made for these GPUs.
pub fn values(server: &Server) -> Result<String> {
    server.needs_containers("a values file")?;
    server.needs_one_node("a values file")?;
    let mut out = Lines(server.comments());
    out.add(0, "replicaCount: 1");
    out.add(0, "image:");
    out.add(2, format!("repository: {}", yaml(&server.image.repository)));
    out.add(2, format!("tag: {}", yaml(&server.image.tag)));
    out.add(2, "pullPolicy: IfNotPresent");
    let program: Vec<String> = server.program(true).iter().map(|w| yaml(w)).collect();
    out.add(0, format!("command: [{}]", program.join(", ")));
    out.add(0, "args:");
    for group in server.groups(true) {
        for word in group {
            out.add(2, format!("- {}", value(&word)));
        }
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
        }
        Some(path) => {
            out.add(0, "model:");
            out.add(2, format!("hostPath: {}", yaml(&path.to_string_lossy())));
            out.add(2, format!("mountPath: {MODEL_FOLDER}"));
        }
    }
    Ok(out.0)
}
