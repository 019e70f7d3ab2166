//! A whole plan inside the library: reading the model's layers, the memory layout, the verdict and the advice.
//!
//! Ceiling: 100 microseconds for a catalogue model whose configuration is parsed, without advice's further plans.

use divan::Bencher;
use kvwise_core::arch::{Config, Model, family};
use kvwise_core::engine::vllm::Settings;
use kvwise_core::plan::{Engine, Hardware, Load, Policy, Request, Subject, plan};
use kvwise_core::{catalogue, hardware};

const MODELS: [&str; 5] = [
    "meta-llama/Llama-3.1-8B",
    "deepseek-ai/DeepSeek-V3",
    "nvidia/GLM-5.1-NVFP4",
    "openai/gpt-oss-120b",
    "nvidia/Nemotron-H-56B-Base-8K",
];

fn main() {
    divan::main();
}

fn read(name: &str) -> (Config, Model) {
    let config = catalogue::find(name)
        .and_then(|entry| entry.config())
        .expect("in the catalogue");
    match family::read(name, &config).expect("read") {
        family::Reading::Model(model) => (config, *model),
        family::Reading::Refused(refusal) => panic!("{refusal:?}"),
    }
}

#[divan::bench(args = MODELS)]
fn look_up_and_read_layers(name: &str) -> usize {
    read(name).1.layers.len()
}

/// From the text of a `config.json` in memory to the plan, advice and its further plans included.
#[divan::bench(args = MODELS)]
fn from_text_to_plan(bencher: Bencher, name: &str) {
    let text = catalogue::find(name)
        .and_then(|entry| entry.config())
        .map(|config| serde_json::Value::Object(config.into_map()).to_string())
        .expect("in the catalogue");
    let gpu = hardware::find("b200").expect("in the catalogue");
    bencher.bench(|| {
        let config = Config::parse(divan::black_box(text.as_bytes())).expect("parsed");
        let family::Reading::Model(model) = family::read(name, &config).expect("read") else {
            panic!("{name} is served")
        };
        plan(&request(name, &model, &config, gpu))
            .expect("planned")
            .kv_cache
    });
}

fn request<'a>(name: &'a str, model: &'a Model, config: &'a Config, gpu: &hardware::Gpu) -> Request<'a> {
    Request {
        subject: Subject::of_model(name, "catalogue", model, config),
        hardware: Hardware::of(gpu, 8),
        engine: Engine::Vllm(Box::new(Settings {
            tensor_parallel_size: 8,
            ..Settings::default()
        })),
        load: Load {
            contexts: vec![8192],
            ..Load::default()
        },
        policy: Policy::none(),
        explain: false,
    }
}

#[divan::bench(args = MODELS)]
fn plan_and_advise(bencher: Bencher, name: &str) {
    let (config, model) = read(name);
    let gpu = hardware::find("b200").expect("in the catalogue");
    // Each has its own request, which remembers what was worked out about the parameters.
    bencher
        .with_inputs(|| request(name, &model, &config, gpu))
        .bench_refs(|request| plan(request).expect("planned"));
}
