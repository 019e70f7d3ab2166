//! Published start-up logs, as `data/measurements/vllm_boots.csv` holds them.

use crate::engine::vllm::runner::Runner;
use crate::engine::vllm::{Rules, SORTING_SAMPLER, Version};
use crate::plan::budget::encoder::Encoder;
use crate::plan::budget::{Inputs, SECOND_RUNNER_SAMPLER, graph_sizes};
use crate::units::{GIB, MIB};

const LOGS: &str = include_str!("../../../../../../data/measurements/vllm_boots.csv");

/// Releases from which the sampler holds another number of bytes a logit; the first is the V0 engine.
pub const ERAS: [Version; 4] = [
    Version::new(0, 0, 0),
    Version::new(0, 8, 0),
    Version::new(0, 10, 2),
    Version::new(0, 17, 0),
];

/// The index of the second runner among the samplers.
pub const SECOND_RUNNER: usize = 4;

/// One start-up log.
pub struct Boot {
    pub id: u64,
    pub model: String,
    pub gpu: String,
    pub gpu_gib: f64,
    pub version: Version,
    pub inputs: Inputs,
    /// Whether the second model runner served it.
    pub second_runner: bool,
    /// utilisation x memory - weights - KV cache, all as logged.
    pub logged_gib: f64,
    /// One over the square root of the number of logs of its deployment.
    pub weight: f64,
}

impl Boot {
    pub fn family(&self) -> String {
        let name = self.model.to_ascii_lowercase();
        name.split(['-', '.', '_'])
            .next()
            .unwrap_or_default()
            .trim_end_matches(|c: char| c.is_ascii_digit())
            .to_owned()
    }

    /// What is left out together: one model on one kind of GPU under one minor version.
    pub fn deployment(&self) -> (String, String, u32) {
        (
            self.model.chars().take(14).collect(),
            self.gpu.chars().take(8).collect(),
            self.version.minor,
        )
    }

    /// Which of [`Fit::sampler`](super::fit::Fit) holds for it.
    pub fn era(&self) -> usize {
        if self.second_runner {
            return SECOND_RUNNER;
        }
        if self.inputs.sampler_decibytes_per_logit == SORTING_SAMPLER && self.version < ERAS[2] {
            return 0;
        }
        ERAS.iter().rposition(|&since| self.version >= since).unwrap_or(0)
    }

    /// Share of the GPU's memory, in percent; positive where too much is predicted.
    pub fn error_percent(&self, predicted: u64) -> f64 {
        (gib(predicted) - self.logged_gib) / self.gpu_gib * 100.0
    }
}

/// Bytes in GiB.
pub fn gib(bytes: u64) -> f64 {
    bytes as f64 / GIB as f64
}

/// All start-up logs.
pub fn boots() -> Vec<Boot> {
    let mut boots = read();
    let deployments: Vec<_> = boots.iter().map(Boot::deployment).collect();
    for (boot, own) in boots.iter_mut().zip(&deployments) {
        let alike = deployments.iter().filter(|other| *other == own).count();
        boot.weight = (alike as f64).sqrt().recip();
    }
    boots
}

fn read() -> Vec<Boot> {
    let mut lines = LOGS.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            assert_eq!(fields.len(), header.len(), "{line}");
            let text = |name: &str| fields[header.iter().position(|h| *h == name).unwrap()];
            let whole = |name: &str| text(name).parse::<u64>().unwrap();
            let real = |name: &str| text(name).parse::<f64>().unwrap();
            let version = Version::parse(text("version")).unwrap();
            let rules = Rules::of(version);
            let v0_engine = text("engine") == "v0";
            let second_runner = text("engine") == "v2";
            let runner = Runner::logged(second_runner, version);
            let amd = text("maker") == "amd";
            let encodes = runner.encodes();
            Boot {
                id: whole("id"),
                model: text("model").to_owned(),
                gpu: text("gpu").to_owned(),
                gpu_gib: real("gpu_gib"),
                version,
                inputs: Inputs {
                    max_num_batched_tokens: whole("batched_tokens"),
                    max_num_seqs: whole("sequences"),
                    hidden_size: whole("hidden"),
                    widest_projection: whole("widest"),
                    vocab_size: whole("vocabulary"),
                    element_bytes: 2,
                    tensor_parallel_size: whole("tp"),
                    pipeline_parallel_size: whole("pp"),
                    enforce_eager: whole("eager") == 1,
                    graph_sizes: graph_sizes(whole("sequences"), 1, whole("batched_tokens")),
                    unified_memory: whole("unified") == 1,
                    encoder: if encodes {
                        Encoder {
                            patches: whole("patches"),
                            width: whole("tower_width"),
                            held_bytes: whole("held_mib") * MIB,
                        }
                    } else {
                        Encoder::default()
                    },
                    v0_engine,
                    xformers: v0_engine && whole("capability") < 8,
                    amd,
                    other_maker: text("maker") != "nvidia",
                    symmetric_memory: whole("capability") >= 9,
                    sampler_decibytes_per_logit: if v0_engine || (amd && version < Version::new(0, 17, 0)) {
                        SORTING_SAMPLER
                    } else if second_runner {
                        SECOND_RUNNER_SAMPLER
                    } else {
                        rules.sampler_decibytes_per_logit
                    },
                    counts_tokens: runner.counts_tokens(),
                    workspace_bytes: whole("workspace_mib") * MIB,
                    graphs_in_budget: rules.subtracts_cuda_graph_estimate
                        && runner.estimates_graphs()
                        && !(amd && version < Version::new(0, 26, 0)),
                },
                second_runner,
                logged_gib: real("gpu_gib") * real("utilization") - real("load_gib") - real("available_gib"),
                weight: 1.0,
            }
        })
        .collect()
}
