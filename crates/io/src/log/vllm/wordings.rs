//! The table of wordings: first who is it, then flags, memory, the cache, refusals.

use super::super::boot::{Cache, EngineKind, Refusal};
use super::super::figure::{self, Figure, after, count, number};
use super::super::python;
use super::Wording;
use super::read::{
    backend, concurrency, engine_line, flags_read, gib, gib_after, own, profiling_results, refuse, set_gpu,
    set_model, v0_terms, version, whole_gib,
};

/// All wordings; the first that matches reads the line.
pub const WORDINGS: &[Wording] = &[
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
    // Weights.
    Wording {
        phrase: "Loading model weights took ",
        source: "0.4 to 0.7, worker/model_runner.py",
        read: |boot, line, rest| {
            boot.rank(&line.worker).model_load = Some(gib(rest)?.0);
            own(boot)
        },
    },
    Wording {
        phrase: "Model loading took ",
        source: "0.7.3 to 0.32 (GB, then GiB, then GiB memory), v1/worker/gpu_model_runner.py",
        read: |boot, line, rest| {
            boot.rank(&line.worker).model_load = Some(gib(rest)?.0);
            own(boot)
        },
    },
    Wording {
        phrase: "Loading drafter model",
        source: "0.8 to 0.32, v1/worker/gpu_model_runner.py",
        read: |boot, line, _| {
            boot.remark("drafter", line.number, &line.text);
            own(boot)
        },
    },
    // What the profile measured.
    Wording {
        phrase: "x gpu_memory_utilization (",
        source: "0.6.5 to 0.10, worker/worker.py: one sentence with the budget",
        read: |boot, line, rest| {
            let (utilization, rest) = number(rest)?;
            boot.utilization = Some(utilization);
            let requested = gib_after(rest, "= ");
            let rank = boot.rank(&line.worker);
            rank.total = gib_after(&line.text, "total_gpu_memory (").or(rank.total);
            rank.requested = requested.or(rank.requested);
            v0_terms(boot, line);
            own(boot)
        },
    },
    Wording {
        phrase: "model weights take ",
        source: "0.6.4 to 0.10, worker/worker.py: one sentence, or one term a line",
        read: |boot, line, _| {
            v0_terms(boot, line);
            own(boot)
        },
    },
    Wording {
        phrase: "PyTorch activation peak memory ",
        source: "0.6.4, worker/worker.py: one term a line",
        read: |boot, line, _| {
            v0_terms(boot, line);
            own(boot)
        },
    },
    Wording {
        phrase: "non_torch_memory ",
        source: "0.6.4, worker/worker.py: one term a line",
        read: |boot, line, _| {
            v0_terms(boot, line);
            own(boot)
        },
    },
    Wording {
        phrase: "Memory profiling results: duration=",
        source: "0.6.2 to 0.6.4, worker/worker.py: all terms of a line as name=value",
        read: |boot, line, rest| profiling_results(boot, line, rest),
    },
    Wording {
        phrase: "available_kv_cache_memory ",
        source: "0.6.4, worker/worker.py: one term a line",
        read: |boot, line, rest| {
            boot.rank(&line.worker).available_kv = Some(gib(rest)?.0);
            own(boot)
        },
    },
    Wording {
        phrase: "] total_gpu_memory ",
        source: "0.6.4, worker/worker.py: one term a line",
        read: |boot, line, rest| {
            boot.rank(&line.worker).total = Some(gib(rest)?.0);
            own(boot)
        },
    },
    Wording {
        phrase: "] gpu_memory_utilization ",
        source: "0.6.4, worker/worker.py: one term a line",
        read: |boot, _, rest| {
            boot.utilization = Some(number(rest)?.0);
            own(boot)
        },
    },
    Wording {
        phrase: "the current vLLM instance can use ",
        source: "0.6.4, worker/worker.py: one term a line",
        read: |boot, line, rest| {
            boot.rank(&line.worker).requested = Some(gib(rest)?.0);
            own(boot)
        },
    },
    Wording {
        phrase: "; Requested memory: ",
        source: "0.9 to 0.32 at debug level, v1/worker/gpu_worker.py",
        read: |boot, line, rest| {
            let (utilization, rest) = number(rest)?;
            let requested = gib_after(rest, "(util), ")?;
            boot.utilization.get_or_insert(utilization);
            let rank = boot.rank(&line.worker);
            rank.requested = Some(requested);
            rank.free_at_start = gib_after(&line.text, "Initial free memory: ").or(rank.free_at_start);
            own(boot)
        },
    },
    Wording {
        phrase: "Total non KV cache memory: ",
        source: "0.8.5 to 0.32 at debug level, utils/mem_utils.py (non-torch until 0.26, total consumed since 0.27)",
        read: |boot, line, rest| {
            gib(rest)?;
            let rank = boot.rank(&line.worker);
            rank.activation = gib_after(rest, "torch peak memory increase: ").or(rank.activation);
            rank.non_torch = gib_after(rest, "non-torch forward increase memory: ").or(rank.non_torch);
            rank.consumed = gib_after(rest, "total consumed (from mem_get_info): ").or(rank.consumed);
            if let Some(weights) = gib_after(rest, "weights memory: ") {
                rank.model_load.get_or_insert(weights);
            }
            own(boot)
        },
    },
    Wording {
        phrase: "Available KV cache memory: ",
        source: "0.8.5 to 0.32, v1/worker/gpu_worker.py",
        read: |boot, line, rest| {
            boot.rank(&line.worker).available_kv = Some(gib(rest)?.0);
            own(boot)
        },
    },
    Wording {
        phrase: "GiB memory for KV Cache as specified by kv_cache_memory_bytes",
        source: "0.10.2 to 0.32, v1/worker/gpu_worker.py",
        read: |boot, line, _| {
            let given = gib_after(&line.text, "reserved ")?;
            boot.kv_given = Some(given);
            let rank = boot.rank(&line.worker);
            rank.available_kv = Some(given);
            rank.free_at_start = gib_after(&line.text, "Initial free memory ").or(rank.free_at_start);
            own(boot)
        },
    },
    Wording {
        phrase: "Explicitly set (",
        source: "0.27 to 0.32 on CPUs, v1/worker/cpu_worker.py",
        read: |boot, line, rest| {
            let (given, rest) = gib(rest)?;
            let total = gib(rest.strip_prefix('/')?)?.0;
            boot.kv_given = Some(whole_gib(given));
            boot.cpu = true;
            let rank = boot.rank(&line.worker);
            rank.available_kv = Some(whole_gib(given));
            rank.total = Some(total);
            own(boot)
        },
    },
    Wording {
        phrase: "Auto set (",
        source: "0.27 to 0.32 on CPUs, v1/worker/cpu_worker.py",
        read: |boot, line, rest| {
            let (available, rest) = gib(rest)?;
            let total = gib(rest.strip_prefix('/')?)?.0;
            boot.cpu = true;
            let rank = boot.rank(&line.worker);
            rank.available_kv = Some(available);
            rank.total = Some(total);
            rank.requested = gib_after(rest, "with ");
            rank.consumed = gib_after(rest, "for the worker. ");
            own(boot)
        },
    },
    Wording {
        phrase: "for CPU backend is not set, using ",
        source: "0.6 to 0.26 on CPUs, platforms/cpu.py",
        read: |boot, line, rest| {
            let (gibs, _) = count(rest)?;
            boot.cpu = true;
            let given = Figure::exact(i64::try_from(gibs.checked_mul(1 << 30)?).ok()?);
            boot.kv_given = Some(given);
            boot.rank(&line.worker).available_kv = Some(given);
            own(boot)
        },
    },
    // Graphs.
    Wording {
        phrase: "Estimated CUDA graph memory: ",
        source: "0.19 to 0.32, v1/worker/gpu_model_runner.py",
        read: |boot, line, rest| {
            boot.rank(&line.worker).graphs_estimate = Some(gib(rest)?.0);
            own(boot)
        },
    },
    Wording {
        phrase: "CUDA graph pool memory: ",
        source: "0.19 to 0.32, v1/worker/gpu_worker.py",
        read: |boot, line, rest| {
            let (actual, rest) = gib(rest)?;
            let rank = boot.rank(&line.worker);
            rank.graphs = Some(actual);
            rank.graphs_estimate = gib_after(rest, "(actual), ").or(rank.graphs_estimate);
            own(boot)
        },
    },
    Wording {
        phrase: "Graph capturing finished in ",
        source: "0.6 to 0.32, v1/worker/gpu_model_runner.py (without the size in 0.6)",
        read: |boot, line, rest| {
            if let Some(graphs) = gib_after(rest, "took ") {
                boot.rank(&line.worker).graphs.get_or_insert(graphs);
            }
            own(boot)
        },
    },
    Wording {
        phrase: "CUDA graph memory profiling is enabled",
        source: "0.21 to 0.32, v1/worker/gpu_worker.py",
        read: |boot, _, rest| {
            let (utilization, _) = number(after(rest, "--gpu-memory-utilization=")?)?;
            boot.utilization = Some(utilization);
            own(boot)
        },
    },
    // The refusal of the start-up check before the summary, whose beginning is the same.
    Wording {
        phrase: "on startup is less than",
        source: "0.9 to 0.32, v1/worker/utils.py (with the device's name since 0.14)",
        read: |boot, line, rest| {
            let memory = after(&line.text, "Free memory on device")?;
            let (free, tail) = gib(after(memory, "(")?)?;
            let total = gib(tail.strip_prefix('/')?)?.0;
            let (utilization, tail) = number(after(rest, "(")?)?;
            let requested = gib(tail.trim_start_matches([',', ' ']))?.0;
            boot.utilization = Some(utilization);
            let rank = boot.rank(&line.worker);
            rank.total = Some(total);
            rank.free_at_start = Some(free);
            rank.requested = Some(requested);
            refuse(
                boot,
                Refusal::FreeMemory {
                    free,
                    total,
                    utilization,
                    requested,
                },
            )
        },
    },
    Wording {
        phrase: "Free memory on device",
        source: "0.11 to 0.32, v1/worker/gpu_worker.py: the summary after start-up",
        read: |boot, line, rest| {
            let (free, tail) = gib(after(rest, "(")?)?;
            let total = gib(tail.strip_prefix('/')?)?.0;
            if let Some((utilization, tail)) =
                after(rest, "Desired GPU memory utilization is (").and_then(number)
            {
                boot.utilization = Some(utilization);
                boot.rank(&line.worker).requested = gib(tail.trim_start_matches([',', ' '])).map(|(f, _)| f);
            }
            let available = after(rest, "Current kv cache memory in use is ").and_then(gib);
            let usage = after(rest, "Actual usage is ");
            let rank = boot.rank(&line.worker);
            rank.free_at_start = Some(free);
            rank.total = Some(total);
            if let Some(usage) = usage {
                let (first, tail) = gib(usage)?;
                if tail.trim_start().starts_with("for consumed memory") {
                    rank.consumed = Some(first);
                } else {
                    rank.model_load.get_or_insert(first);
                }
                let mut terms = tail.split(", ");
                while let Some(term) = terms.next().filter(|t| t.len() < 400) {
                    let term = term.trim_start_matches("and ");
                    let Some((figure, name)) = gib(term) else { continue };
                    if name.contains("for peak activation") {
                        rank.activation = Some(figure);
                    } else if name.contains("for non-torch memory") {
                        rank.non_torch = Some(figure);
                    } else if name.contains("for CUDAGraph memory") {
                        rank.graphs.get_or_insert(figure);
                    }
                }
            }
            if let Some((figure, _)) = available {
                rank.available_kv.get_or_insert(figure);
            }
            own(boot)
        },
    },
    // The pool.
    Wording {
        phrase: "KV cache size: ",
        source: "0.8 to 0.32, v1/core/kv_cache_utils.py (with the concurrency in one line since 0.22)",
        read: |boot, line, rest| {
            let (tokens, tail) = count(rest)?;
            if !tail.trim_start().starts_with("token") {
                return None;
            }
            // The last line counts: data-parallel engines print one each, of the same size.
            boot.tokens = Some(tokens);
            boot.cpu |= line.text.contains("CPU KV cache size");
            concurrency(boot, tail);
            own(boot)
        },
    },
    Wording {
        phrase: "Maximum concurrency for ",
        source: "0.6 to 0.21, v1/core/kv_cache_utils.py; executor/executor_base.py",
        read: |boot, line, _| {
            concurrency(boot, &line.text);
            own(boot)
        },
    },
    Wording {
        phrase: "Overriding num_gpu_blocks=",
        source: "0.6 to 0.32, v1/core/kv_cache_utils.py",
        read: |boot, _, rest| {
            let (before, rest) = count(rest)?;
            let (blocks, _) = count(after(rest, "num_gpu_blocks_override=")?)?;
            boot.blocks_before_override = Some(before);
            boot.num_blocks = Some(blocks);
            own(boot)
        },
    },
    Wording {
        phrase: " blocks: ",
        source: "0.4 to 0.10 (# GPU, # CUDA, # cuda, # CPU, # rocm blocks), executor/executor_base.py; v1/core 0.6, 0.7",
        read: |boot, line, rest| {
            let before = line.text.split(" blocks: ").next()?;
            let device = before.rsplit("# ").next().filter(|_| before.contains("# "))?;
            if device.len() > 12 || boot.engine.is_some_and(|e| e != EngineKind::Vllm) {
                return None;
            }
            boot.num_blocks = Some(count(rest)?.0);
            own(boot)
        },
    },
    Wording {
        phrase: "Setting attention block size to ",
        source: "0.10 to 0.32, platforms/interface.py; model_executor/models/config.py",
        read: |boot, _, rest| {
            boot.block_size = Some(count(rest)?.0);
            own(boot)
        },
    },
    Wording {
        phrase: "Auto-fit max_model_len: ",
        source: "0.14 to 0.32, v1/core/kv_cache_utils.py",
        read: |boot, _, rest| {
            let length = after(rest, " to ")
                .filter(|_| rest.starts_with("reduced"))
                .or_else(|| after(rest, "length "));
            boot.max_model_len = Some(count(length?)?.0);
            own(boot)
        },
    },
    Wording {
        phrase: " padding layers, may waste",
        source: "0.10 to 0.32, v1/core/kv_cache_utils.py",
        read: |boot, line, _| {
            boot.remark("padding_layers", line.number, &line.text);
            own(boot)
        },
    },
    // Refusals.
    Wording {
        phrase: "No available memory for the cache blocks",
        source: "0.4 to 0.32, v1/core/kv_cache_utils.py; worker/worker.py",
        read: |boot, _, _| refuse(boot, Refusal::NoMemory),
    },
    Wording {
        phrase: "KV cache is needed, which is larger than the available KV cache memory (",
        source: "0.8 to 0.32, v1/core/kv_cache_utils.py",
        read: |boot, line, rest| {
            let available = gib(rest).map(|(f, _)| f);
            let before = line.text.split("KV cache is needed").next()?;
            let (max_model_len, tail) = count(after(before, "max seq len (")?)?;
            let needed = gib(tail.trim_start_matches([')', ',', ' '])).map(|(f, _)| f);
            let estimated = after(rest, "maximum model length is ")
                .and_then(count)
                .map(|(n, _)| n);
            refuse(
                boot,
                Refusal::TooLong {
                    max_model_len,
                    needed,
                    available,
                    pool_tokens: None,
                    estimated,
                },
            )
        },
    },
    Wording {
        phrase: ") is larger than the maximum number of tokens that can be stored in KV cache (",
        source: "0.4 to 0.10, worker/worker.py; v1/core/kv_cache_utils.py of 0.7",
        read: |boot, line, rest| {
            let (max_model_len, _) = count(after(&line.text, "max seq len (")?)?;
            refuse(
                boot,
                Refusal::TooLong {
                    max_model_len,
                    needed: None,
                    available: None,
                    pool_tokens: count(rest).map(|(n, _)| n),
                    estimated: None,
                },
            )
        },
    },
    Wording {
        phrase: "CUDA out of memory. Tried to allocate ",
        source: "PyTorch's message, any version",
        read: |boot, line, rest| {
            boot.engine?;
            let tried = figure::gib(rest).map(|(f, _)| f);
            let others = after(rest, "Process ")
                .and_then(|t| after(t, " has "))
                .and_then(figure::gib)
                .map(|(f, _)| f);
            boot.remark("out_of_memory", line.number, &line.text);
            // After start-up it is a failed request and no refusal.
            if !boot.is_up {
                refuse(boot, Refusal::OutOfMemory { tried, others })?;
            }
            Some(())
        },
    },
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
