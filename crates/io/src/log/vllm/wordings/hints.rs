//! What explains differences between two starts.

use super::super::super::boot::Cache;
use super::super::Wording;
use super::super::read::{backend, own};

/// In this order.
pub(super) const ALL: &[Wording] = &[
    // What explains differences.
    Wording {
        phrase: "Encoder cache will be initialized with a budget of ",
        source: "0.9 to 0.32, v1/worker/gpu_model_runner.py: multimodal inputs are profiled",
        read: |boot, line, _| {
            boot.remark("encoder", line.number, &line.text);
            own(boot)
        },
    },
    Wording {
        phrase: "Encoder cache initialized with budget of ",
        source: "builds of 0.23 between releases: as above, without the inputs",
        read: |boot, line, _| {
            boot.remark("encoder", line.number, &line.text);
            own(boot)
        },
    },
    Wording {
        phrase: "Skipping memory profiling for multimodal encoder and encoder cache",
        source: "0.10.2 to 0.33, v1/worker/gpu_model_runner.py: --skip-mm-profiling",
        read: |boot, line, _| {
            boot.remark("encoder_skipped", line.number, &line.text);
            own(boot)
        },
    },
    Wording {
        phrase: "Encoder cache will not be initialized",
        source: "0.7.3 to 0.33, v1/core/encoder_cache_manager.py: --limit-mm-per-prompt is 0 for all kinds",
        read: |boot, line, _| {
            boot.remark("encoder_skipped", line.number, &line.text);
            own(boot)
        },
    },
    Wording {
        phrase: "Total CPU offloaded parameters: ",
        source: "0.17 to 0.33, model_executor/offloader/uva.py: weights that stay on the host",
        read: |boot, line, _| {
            boot.remark("weights_offloaded", line.number, &line.text);
            own(boot)
        },
    },
    Wording {
        phrase: "CuMemAllocator: sleep freed ",
        source: "0.11 to 0.33, device_allocator/cumem.py: sleep mode after start-up",
        read: |boot, line, _| {
            boot.remark("sleep_mode", line.number, &line.text);
            own(boot)
        },
    },
    Wording {
        phrase: "Directly load ",
        source: "0.8 to 0.32, compilation/backends.py and decorators.py: compiled graphs came from the cache",
        read: |boot, _, _| {
            boot.compile_cache.get_or_insert(Cache::Warm);
            own(boot)
        },
    },
    Wording {
        phrase: "Compiling a graph for ",
        source: "0.7 to 0.32, compilation/backends.py: the cache was cold",
        read: |boot, line, _| {
            boot.compile_cache = Some(Cache::Cold);
            boot.remark("cold_compile_cache", line.number, &line.text);
            own(boot)
        },
    },
    Wording {
        phrase: "sleep-mode backend",
        source: "0.26 to 0.32, device_allocator: weights are not in PyTorch's count",
        read: |boot, line, _| {
            boot.remark("sleep_mode", line.number, &line.text);
            own(boot)
        },
    },
    Wording {
        phrase: "attention backend",
        source: "0.6 to 0.32: `Using FLASH_ATTN attention backend`, `Using AttentionBackendEnum.X backend`",
        read: |boot, line, _| backend(boot, &line.text),
    },
    Wording {
        phrase: "Using AttentionBackendEnum.",
        source: "0.14 to 0.32, platforms/cuda.py",
        read: |boot, line, _| backend(boot, &line.text),
    },
    Wording {
        phrase: "Using Flash Attention backend",
        source: "0.6 to 0.12, platforms/cuda.py",
        read: |boot, _, _| {
            boot.backend.get_or_insert_with(|| "FLASH_ATTN".to_owned());
            own(boot)
        },
    },
    Wording {
        phrase: "FlashInfer is not available. Falling back to the PyTorch-native implementation",
        source: "0.7 to 0.10, v1/sample/ops/topk_topp_sampler.py",
        read: |boot, line, _| {
            boot.remark("no_flashinfer", line.number, &line.text);
            own(boot)
        },
    },
];
