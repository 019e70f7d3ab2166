//! Who is it: release, model, flags, what the engine made of them, and its GPU.

use super::super::super::figure::{after, count};
use super::super::super::python;
use super::super::Wording;
use super::super::read::{engine_line, flags_read, own, set_gpu, set_model, version};

/// In this order.
pub(super) const ALL: &[Wording] = &[
    // Who is it.
    Wording {
        phrase: "vLLM API server version ",
        source: "0.6 to 0.17, entrypoints/openai/api_server.py",
        read: |boot, _, rest| version(boot, rest),
    },
    Wording {
        phrase: "vLLM server version ",
        source: "0.18 to 0.32, entrypoints/serve/utils/api_utils.py, without a wide terminal",
        read: |boot, _, rest| {
            version(boot, rest)?;
            if let Some(model) = after(rest, "serving model ") {
                set_model(boot, model.trim());
            }
            Some(())
        },
    },
    Wording {
        phrase: "█  version ",
        source: "0.18 to 0.32, entrypoints/serve/utils/api_utils.py, the banner",
        read: |boot, _, rest| version(boot, rest),
    },
    Wording {
        phrase: "█  model ",
        source: "0.18 to 0.32, entrypoints/serve/utils/api_utils.py, the banner",
        read: |boot, _, rest| {
            set_model(boot, rest.trim());
            Some(())
        },
    },
    Wording {
        phrase: "non-default args: ",
        source: "0.8.5 to 0.32, entrypoints/utils.py",
        read: |boot, _, rest| {
            boot.flags.extend(python::pairs(rest));
            flags_read(boot)
        },
    },
    Wording {
        phrase: "args: Namespace(",
        source: "0.4 to 0.9, entrypoints/openai/api_server.py",
        read: |boot, _, rest| {
            boot.flags.extend(python::pairs(rest));
            flags_read(boot)
        },
    },
    Wording {
        phrase: "Initializing a V1 LLM engine (v",
        source: "0.6.4 to 0.33, v1/engine/core.py",
        read: |boot, _, rest| engine_line(boot, rest),
    },
    Wording {
        phrase: "Initializing a V0 LLM engine (v",
        source: "0.7.3 to 0.10, engine/llm_engine.py",
        read: |boot, _, rest| {
            boot.v0 = true;
            engine_line(boot, rest)
        },
    },
    Wording {
        phrase: "Initializing an LLM engine (v",
        source: "0.4 to 0.7.2, engine/llm_engine.py",
        read: |boot, _, rest| {
            boot.v0 = true;
            engine_line(boot, rest)
        },
    },
    Wording {
        phrase: "Using max model len ",
        source: "0.8.5 to 0.32, config/model.py",
        read: |boot, _, rest| {
            boot.max_model_len = Some(count(rest)?.0);
            own(boot)
        },
    },
    Wording {
        phrase: "Chunked prefill is enabled with max_num_batched_tokens",
        source: "0.6 to 0.32, config/scheduler.py",
        read: |boot, _, rest| {
            boot.max_num_batched_tokens = Some(count(rest)?.0);
            own(boot)
        },
    },
    Wording {
        phrase: "Using V2 Model Runner",
        source: "0.24 to 0.32, v1/worker/gpu_worker.py",
        read: |boot, _, _| {
            boot.v2_runner = true;
            own(boot)
        },
    },
    Wording {
        phrase: "Starting to load model ",
        source: "0.6 to 0.32, v1/worker/gpu_model_runner.py; worker/model_runner.py",
        read: |boot, _, rest| {
            set_model(boot, rest.trim().trim_end_matches("..."));
            own(boot)
        },
    },
    // The GPU's name, which vLLM prints by chance only.
    Wording {
        phrase: "device_name=",
        source: "0.6 to 0.32, fused_moe.py and fp8_utils.py: the name of a missing kernel configuration",
        read: |boot, _, rest| {
            let name: String = rest
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || "_-+".contains(*c))
                .take(60)
                .collect();
            set_gpu(boot, &name.replace('_', " "))
        },
    },
    Wording {
        phrase: "Starting vLLM",
        source: "0.8 to 0.32, entrypoints/launcher.py",
        read: |boot, _, _| own(boot),
    },
];
