//! Weights of multi-token-prediction modules against those of vLLM 0.32.0's own classes.

use kvwise_core::arch::family::{Reading, read};
use kvwise_core::arch::{Config, Parallel};
use kvwise_core::dtype::Dtype;
use serde_json::Value;

const CONFIGS: &str = include_str!("golden/vllm_configs.jsonl");

/// Configuration, tensor-parallel size, bytes that vLLM's drafter class registers on the meta device, and rows and
/// width of the embedding and the head in it, which loading then replaces by the target's.
const ROWS: &[(&str, u64, u64, u64, u64)] = &[
    ("deepseek-ai--DeepSeek-V3", 1, 26_926_853_120, 129_280, 7168),
    ("deepseek-ai--DeepSeek-V3", 2, 13_583_199_232, 129_280, 7168),
    ("zai-org--GLM-5.2", 1, 23_712_173_056, 154_880, 6144),
    ("zai-org--GLM-5.2", 2, 11_958_684_672, 154_880, 6144),
    ("Qwen--Qwen3.5-35B-A3B", 1, 3_723_518_976, 248_320, 2048),
    ("Qwen--Qwen3.5-35B-A3B", 2, 1_862_296_576, 248_320, 2048),
];

#[test]
fn prediction_modules_have_the_bytes_of_the_engine_without_what_is_shared() {
    for &(name, tp, registered, rows, width) in ROWS {
        let line = CONFIGS
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .find(|row| row["name"] == name)
            .unwrap();
        let config = Config::parse(line["config"].as_str().unwrap().as_bytes()).unwrap();
        let Reading::Model(model) = read(name, &config).unwrap() else {
            panic!("{name} was not read as a model");
        };
        let shared = 2 * rows * width * 2 / tp;
        let got = model
            .mtp_weight_bytes(1, &Parallel::tensor(tp), Dtype::Bf16, None)
            .unwrap();
        assert_eq!(got, registered - shared, "{name} at tp {tp}");
    }
}
