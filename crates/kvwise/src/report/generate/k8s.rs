//! Kubernetes: the pods of a server with their volumes and service. One machine is a `Deployment`, several are a
//! `LeaderWorkerSet`.
//!
//! `LeaderWorkerSet` is an object of its own controller (kubernetes-sigs/lws v0.9.0,
//! `config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml`), which numbers the pods of a group, tells each the
//! address of the first, and starts a group anew when one of its pods fails.

use kvwise_core::Result;
use kvwise_core::units::GIB;

use super::super::quote::yaml;
use super::nodes::{Places, Role, Word};
use super::{MODEL_FOLDER, Server, Vendor};

/// Seconds between two looks of the start-up probe.
pub(super) const PROBE_PERIOD_S: u64 = 10;

/// Lines of YAML.
#[derive(Default)]
pub(super) struct Lines(pub(super) String);

impl Lines {
    pub(super) fn add(&mut self, indent: usize, text: impl AsRef<str>) {
        self.0.push_str(&" ".repeat(indent));
        self.0.push_str(text.as_ref());
        self.0.push('\n');
    }

    /// The same lines, all moved to the right.
    fn block<const N: usize>(&mut self, base: usize, lines: [(usize, String); N]) {
        for (indent, text) in lines {
            self.add(base + indent, text);
        }
    }

    /// A container's program and words.
    pub(super) fn command(&mut self, base: usize, server: &Server, role: Role) {
        let command = server.command(role, Places::KUBERNETES);
        let program: Vec<String> = command.entry.iter().map(Word::yaml).collect();
        self.add(base, format!("command: [{}]", program.join(", ")));
        if command.words.is_empty() {
            return;
        }
        self.add(base, "args:");
        for word in &command.words {
            self.add(base + 2, format!("- {}", word.yaml()));
        }
    }
}

impl Server {
    /// The resource of the GPUs with their number; nothing on CPUs.
    pub(super) fn gpu_line(&self) -> Option<String> {
        match self.vendor {
            Vendor::Cpu => None,
            Vendor::Amd => Some(format!("amd.com/gpu: {}", self.gpus)),
            _ => Some(format!("nvidia.com/gpu: {}", self.gpus)),
        }
    }

    /// Room for the hub's files: the weights and a third more, in steps of 10 GiB.
    pub(super) fn cache_gib(&self) -> u64 {
        (self.weights_bytes / GIB * 4 / 3 + 10).div_ceil(10) * 10
    }

    /// Looks of the start-up probe: the weights at 100 MiB/s, and twenty minutes for loading and compilation.
    pub(super) fn startup_looks(&self) -> u64 {
        (self.weights_bytes / (100 << 20) + 1200).div_ceil(PROBE_PERIOD_S)
    }

    /// Cores: the engines spin one for each rank, besides scheduler and server.
    pub(super) fn cores(&self) -> u64 {
        2 + self.gpus
    }

    /// Host memory to ask for: each process holds some GiB of libraries and buffers, and shared memory counts too. On CPUs the
    /// weights and the cache lie there as well.
    pub(super) fn host_memory_gib(&self) -> u64 {
        let own = match self.vendor {
            Vendor::Cpu => self.memory_bytes.div_ceil(GIB),
            _ => 0,
        };
        8 + 4 * self.gpus + self.shared_memory_gib() + own
    }

    /// How the claim for the hub's files is used.
    pub(super) fn access_mode(&self) -> &'static str {
        if self.nodes.is_some() {
            "ReadWriteMany"
        } else {
            "ReadWriteOnce"
        }
    }
}

/// `k8s.yaml`: volume claim, pods and service.
///
/// # Errors
/// If no container is made for these GPUs.
pub fn manifests(server: &Server) -> Result<String> {
    server.needs_containers("a Kubernetes manifest")?;
    let mut out = Lines(server.comments());
    let name = &server.name;
    out.0.push_str(
        "#\n# The token of the hub, where the model needs one, comes from a secret that this file only refers to:\n\
         #   kubectl create secret generic huggingface --from-literal=token=\"$HF_TOKEN\"\n",
    );
    if let Some(nodes) = server.nodes {
        out.0.push_str(&format!(
            "#\n# The {} pods are a LeaderWorkerSet, whose controller (kubernetes-sigs/lws, v0.9.0 was read) must be installed.\n\
             # The ranks talk over the pods' network. Where nodes have RDMA, give both containers its resource (its name is the\n\
             # cluster's own, like rdma/ib: 1) and the capability IPC_LOCK: between machines it is many times faster.\n",
            nodes.count
        ));
    }
    if server.mounted().is_none() {
        claim(server, &mut out);
    }
    if server.nodes.is_some() {
        leader_worker_set(server, &mut out);
    } else {
        deployment(server, &mut out);
    }
    // A LeaderWorkerSet has a service of its own name, by which its pods find each other.
    let suffix = if server.nodes.is_some() { "-leader" } else { "" };
    out.add(0, "---");
    object(("v1", "Service"), name, suffix, &mut out);
    out.block(
        0,
        [
            (2, "type: ClusterIP".to_owned()),
            (2, "selector:".to_owned()),
            (4, format!("app: {name}")),
        ],
    );
    if server.nodes.is_some() {
        out.add(4, "role: leader  # the others answer nobody");
    }
    out.block(
        0,
        [
            (2, "ports:".to_owned()),
            (4, "- name: http".to_owned()),
            (6, format!("port: {}", server.port)),
            (6, "targetPort: http".to_owned()),
        ],
    );
    Ok(out.0)
}

/// The first lines of an object of this API and kind, up to its specification.
fn object((api, kind): (&str, &str), app: &str, suffix: &str, out: &mut Lines) {
    out.block(
        0,
        [
            (0, format!("apiVersion: {api}")),
            (0, format!("kind: {kind}")),
            (0, "metadata:".to_owned()),
            (2, format!("name: {app}{suffix}")),
            (2, "labels:".to_owned()),
            (4, format!("app: {app}")),
            (0, "spec:".to_owned()),
        ],
    );
}

/// The claim of the volume for the hub's files.
fn claim(server: &Server, out: &mut Lines) {
    object(("v1", "PersistentVolumeClaim"), &server.name, "-hub", out);
    let mode = server.access_mode();
    if server.nodes.is_some() {
        out.add(
            2,
            format!("accessModes: [\"{mode}\"]  # every node reads it: the storage class must allow that"),
        );
    } else {
        out.add(2, format!("accessModes: [\"{mode}\"]"));
    }
    out.block(
        0,
        [
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
        ],
    );
}

fn deployment(server: &Server, out: &mut Lines) {
    let name = &server.name;
    object(("apps/v1", "Deployment"), name, "", out);
    out.block(
        0,
        [
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
        ],
    );
    pod(server, Role::Alone, 4, out);
}

fn leader_worker_set(server: &Server, out: &mut Lines) {
    let name = &server.name;
    let count = server.nodes.map_or(1, |n| n.count);
    object(("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"), name, "", out);
    out.block(
        0,
        [
            (2, "replicas: 1".to_owned()),
            // The ranks find each other before the first one answers.
            (2, "startupPolicy: LeaderCreated".to_owned()),
            (2, "leaderWorkerTemplate:".to_owned()),
            (4, format!("size: {count}  # pods of one server")),
            (
                4,
                "restartPolicy: RecreateGroupOnPodRestart  # ranks cannot join a server that runs".to_owned(),
            ),
            (4, "leaderTemplate:".to_owned()),
        ],
    );
    pod(server, Role::Head, 6, out);
    out.add(4, "workerTemplate:");
    pod(server, Role::Worker, 6, out);
}

/// A pod template's metadata and specification.
fn pod(server: &Server, role: Role, base: usize, out: &mut Lines) {
    let name = &server.name;
    out.block(
        base,
        [
            (0, "metadata:".to_owned()),
            (2, "labels:".to_owned()),
            (4, format!("app: {name}")),
        ],
    );
    match role {
        Role::Alone => {}
        Role::Head => out.add(base + 4, "role: leader"),
        Role::Worker => out.add(base + 4, "role: worker"),
    }
    out.block(
        base,
        [
            (0, "spec:".to_owned()),
            // The variables that Kubernetes adds for a service called vllm collide with the engine's own VLLM_PORT.
            (2, "enableServiceLinks: false".to_owned()),
            (2, "terminationGracePeriodSeconds: 120".to_owned()),
            (2, "containers:".to_owned()),
            (4, "- name: server".to_owned()),
            (6, format!("image: {}", yaml(&server.image.reference()))),
        ],
    );
    out.command(base + 6, server, role);
    out.block(
        base,
        [
            (6, "env:".to_owned()),
            (8, "- name: HF_TOKEN".to_owned()),
            (10, "valueFrom:".to_owned()),
            (12, "secretKeyRef:".to_owned()),
            (14, "name: huggingface".to_owned()),
            (14, "key: token".to_owned()),
            (14, "optional: true".to_owned()),
        ],
    );
    if role.answers() {
        out.block(
            base,
            [
                (6, "ports:".to_owned()),
                (8, "- name: http".to_owned()),
                (10, format!("containerPort: {}", server.port)),
            ],
        );
    }
    out.block(
        base,
        [
            (6, "resources:".to_owned()),
            (8, "requests:".to_owned()),
            (
                10,
                format!("cpu: \"{}\"  # one a rank, scheduler and server", server.cores()),
            ),
            (10, format!("memory: {}Gi", server.host_memory_gib())),
        ],
    );
    if let Some(gpus) = server.gpu_line() {
        out.add(base + 10, &gpus);
        out.add(base + 8, "limits:");
        out.add(base + 10, gpus);
    }
    if role.answers() {
        probes(server, base + 6, out);
    }
    volumes(server, base, out);
}

fn probes(server: &Server, base: usize, out: &mut Lines) {
    out.block(
        base,
        [
            (0, "startupProbe:".to_owned()),
            (2, "httpGet: {path: /health, port: http}".to_owned()),
            (2, format!("periodSeconds: {PROBE_PERIOD_S}")),
            (
                2,
                format!(
                    "failureThreshold: {}  # the weights at 100 MiB/s, and twenty minutes to load and compile",
                    server.startup_looks()
                ),
            ),
            (0, "readinessProbe:".to_owned()),
            (2, "httpGet: {path: /health, port: http}".to_owned()),
            (2, "periodSeconds: 5".to_owned()),
            (0, "livenessProbe:".to_owned()),
            (2, "httpGet: {path: /health, port: http}".to_owned()),
            (2, "periodSeconds: 15".to_owned()),
            (2, "timeoutSeconds: 10".to_owned()),
            (2, "failureThreshold: 4".to_owned()),
        ],
    );
}

fn volumes(server: &Server, base: usize, out: &mut Lines) {
    let name = &server.name;
    let hub = server.mounted().is_none();
    let (volume, path) = if hub {
        ("hub", "/root/.cache/huggingface")
    } else {
        ("model", MODEL_FOLDER)
    };
    out.block(
        base,
        [
            (6, "volumeMounts:".to_owned()),
            (8, "- name: shared-memory".to_owned()),
            (10, "mountPath: /dev/shm".to_owned()),
            (8, format!("- name: {volume}")),
            (10, format!("mountPath: {path}")),
        ],
    );
    if !hub {
        out.add(base + 10, "readOnly: true");
    }
    out.block(
        base,
        [
            (2, "volumes:".to_owned()),
            (4, "- name: shared-memory".to_owned()),
            (6, "emptyDir:".to_owned()),
            (8, "medium: Memory".to_owned()),
            (8, format!("sizeLimit: {}Gi", server.shared_memory_gib())),
            (4, format!("- name: {volume}")),
        ],
    );
    match server.mounted() {
        None => {
            out.add(base + 6, "persistentVolumeClaim:");
            out.add(base + 8, format!("claimName: {name}-hub"));
        }
        Some(path) => {
            out.add(base + 6, "hostPath:  # the node must have this folder");
            out.add(base + 8, format!("path: {}", yaml(&path.to_string_lossy())));
            out.add(base + 8, "type: Directory");
        }
    }
}
