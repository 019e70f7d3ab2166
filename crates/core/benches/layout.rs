//! Laying out the KV cache of published models: the budget is 100 microseconds each.

use kvwise_core::arch::family::{Reading, read};
use kvwise_core::arch::{Config, Model};
use kvwise_core::engine::vllm::{Gpu, Settings, layout};

const CONFIGS: &str = include_str!("../tests/golden/vllm_configs.jsonl");

fn main() {
    divan::main();
}

fn model(name: &str) -> Model {
    let line = CONFIGS
        .lines()
        .find(|line| line.contains(&format!("\"name\": \"{name}\"")))
        .expect("the golden configurations have this model");
    let entry: serde_json::Value = serde_json::from_str(line).expect("golden lines are JSON");
    let text = entry["config"].as_str().expect("the configuration is text");
    let config = Config::parse(text.as_bytes()).expect("a published configuration parses");
    match read(name, &config).expect("a published configuration is read") {
        Reading::Model(model) => *model,
        Reading::Refused(refusal) => panic!("{}", refusal.reason),
    }
}

#[divan::bench(args = [
    "meta-llama--Meta-Llama-3.1-8B",
    "deepseek-ai--DeepSeek-V3.2",
    "openai--gpt-oss-120b",
    "nvidia--Llama-3_3-Nemotron-Super-49B-v1",
])]
fn published_model(bencher: divan::Bencher, name: &str) {
    let model = model(name);
    let gpu = Gpu::new("NVIDIA H100 80GB HBM3", 9, 0, 85_017_755_648);
    let settings = Settings::default();
    bencher.bench(|| layout(divan::black_box(&model), &settings, gpu, &[40 << 30]));
}
