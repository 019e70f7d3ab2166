//! The accuracy page's table of coefficients: what each rests on, and how far it is off on data that it was not fitted to.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use kvwise_sim::cost::Tuning;
use kvwise_sim::simulate::HostTimes;
use serde_json::Value;

const GPUS: [&str; 5] = ["h100_sxm", "h200_sxm", "b200_sxm", "a100_sxm", "l40s"];

/// Kinds of kernels by their name in the fits.
const KINDS: [(&str, &str); 6] = [
    ("gemm", "matrix products"),
    ("attn_ctx", "prefill attention"),
    ("attn_decode", "decode attention"),
    ("mla_decode", "latent decode attention"),
    ("moe", "routed experts"),
    ("allreduce", "sums over GPUs"),
];

/// Medians and 95th percentiles of the errors on held-out measurements, a row a kernel that a step model can ask for.
///
/// # Panics
/// If a fit has no held-out error, or names no table that it was made from.
pub fn kernels(root: &Path) -> String {
    let fits: Vec<Value> = GPUS
        .iter()
        .map(|gpu| {
            let path = root.join(format!("data/calibration/{gpu}.json"));
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            serde_json::from_str(&text).unwrap()
        })
        .collect();
    let mut out = String::from(
        "| kernel | H100 | H200 | B200 | A100 | L40S |\n| :-- | --: | --: | --: | --: | --: |\n",
    );
    for (kind, title) in KINDS {
        let names: BTreeSet<&String> = fits
            .iter()
            .filter_map(|fit| fit[kind].as_object())
            .flat_map(|kernels| kernels.keys())
            .filter(|name| !name.starts_with("trtllm"))
            .collect();
        for name in names {
            let cells: Vec<String> = fits.iter().map(|fit| held_out(&fit[kind][name])).collect();
            let _ = writeln!(out, "| {title}, `{name}` | {} |", cells.join(" | "));
        }
    }
    out
}

/// `median / 95th percentile` in percent and the number of rows, empty where the GPU has no such kernel.
fn held_out(kernel: &Value) -> String {
    if kernel.is_null() {
        return String::new();
    }
    let errors = kernel["fit_err"]["held_out"]
        .as_array()
        .unwrap_or_else(|| panic!("a fit without a held-out error: {kernel}"));
    let [median, p95, rows] = [0, 1, 2].map(|i| errors[i].as_f64().unwrap());
    format!("{:.0} / {:.0} % of {rows:.0}", median * 100.0, p95 * 100.0)
}

/// Everything else that times a step: value, origin, and what it was tested on.
pub fn factors() -> String {
    let t = Tuning::default();
    let (vllm, sglang) = (HostTimes::VLLM, HostTimes::SGLANG);
    let ms = |s: f64| format!("{:.1} ms", s * 1e3);
    let rows: [[String; 3]; 12] = [
        [
            format!("small kernels a layer: {}", t.small_kernels),
            "chosen on served points of Llama-3.1-70B and gpt-oss-120b".to_owned(),
            "chosen on one and tested on the other, below".to_owned(),
        ],
        [
            format!("share of the experts' launch floor: {}", t.expert_floor),
            "the same; kernels were measured eagerly, servers replay graphs".to_owned(),
            "the same".to_owned(),
        ],
        [
            "bandwidth of small kernels: 0.8, shortest kernel: 2 us".to_owned(),
            "`defaults` of each calibration".to_owned(),
            "the same".to_owned(),
        ],
        [
            format!(
                "busiest expert-parallel rank: {} spreads above the mean",
                t.expert_imbalance
            ),
            "derived: the largest of as many Poisson loads as ranks".to_owned(),
            "points with whole experts, below".to_owned(),
        ],
        [
            format!(
                "vLLM's whole 8-bit experts on Hopper: {} times the time",
                t.whole_expert_penalty
            ),
            "chosen on two points of MiniMax-M2.5 (pull 832 of InferenceX)".to_owned(),
            "no others are published: +4 and -15 % on those two".to_owned(),
        ],
        [
            format!(
                "a layer's launches where a step replays no CUDA graph: {}",
                ms(t.launch_s_per_layer)
            ),
            "chosen on Llama-3.1-70B on B200, whose scripts keep graphs to decoding (`FULL_DECODE_ONLY`): with it the times to the first token there are off by 17 % instead of 24; the tables below are without".to_owned(),
            "Qwen2.5-Omni-7B with `--enforce-eager` on A800 (issue 7960 of vllm-omni): 0.8 ms over 28 and over 24 layers".to_owned(),
        ],
        [
            format!(
                "recurrent states: {} of the bandwidth, {} of the 16-bit rate in prefill",
                t.state_bandwidth, t.state_rate
            ),
            "assumed".to_owned(),
            "Qwen3.5-397B-A17B, below".to_owned(),
        ],
        [
            "sparse indexers: 0.7 of the bandwidth, 0.5 of the 16-bit rate".to_owned(),
            "assumed".to_owned(),
            "on nothing: no served point of such a model was compared".to_owned(),
        ],
        [
            format!("host time of a step: {}", ms(vllm.step_s)),
            "chosen on served points of Llama-3.1-70B and gpt-oss-120b".to_owned(),
            "all tables below".to_owned(),
        ],
        [
            format!(
                "host time of a request: {} (vLLM), {} (SGLang)",
                ms(vllm.request_s),
                ms(sglang.request_s)
            ),
            "chosen on served points of those two models; SGLang's on DeepSeek-R1 on H200 and B200"
                .to_owned(),
            "times to the first token below: hosts differ by as much".to_owned(),
        ],
        [
            "AMD's GPUs: 2.4 times the time".to_owned(),
            "chosen on nine points of DeepSeek-V3.1 on MI300X".to_owned(),
            "three points of MiniMax-M2, below".to_owned(),
        ],
        [
            "sums between machines, prefill on other engines, tiers".to_owned(),
            "computed from the given rates (NCCL's own estimate for sums)".to_owned(),
            "on nothing: no served point on several machines was compared".to_owned(),
        ],
    ];
    let mut out = String::from("| factor | where from | tested on |\n| :-- | :-- | :-- |\n");
    for row in rows {
        let _ = writeln!(out, "| {} |", row.join(" | "));
    }
    out
}
