//! A `config.json` from outside: reading it, laying it out and planning it never panic.
#![no_main]

use kvwise_core::arch::Config;
use kvwise_core::arch::family::{Eagle, Reading, read, read_eagle};
use kvwise_core::engine::vllm::Settings;
use kvwise_core::plan::{Engine, Hardware, Load, Policy, Request, Subject, plan};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = Config::parse(bytes) else { return };
    let _ = read_eagle("fuzz", &config, Eagle::Three, 32_000);
    let Ok(Reading::Model(model)) = read("fuzz", &config) else { return };
    let _ = plan(&Request {
        subject: Subject::of_model("fuzz", "fuzz", &model, &config),
        hardware: Hardware::custom(80 << 30, 8),
        engine: Engine::Vllm(Box::new(Settings::default())),
        load: Load::default(),
        policy: Policy::none(),
        explain: true,
    });
});
