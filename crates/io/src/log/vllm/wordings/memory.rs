//! Weights, what the profile measured, graphs, and the sums of both.

use super::super::super::boot::Refusal;
use super::super::super::figure::{Figure, after, count, number};
use super::super::Wording;
use super::super::read::{gib, gib_after, own, profiling_results, refuse, v0_terms, whole_gib};

/// In this order.
pub(super) const ALL: &[Wording] = &[
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
        phrase: "Memory profiling results: ",
        source: "0.6.2 to 0.6.4, worker/worker.py: all terms of a line as name=value (the duration before them in some builds)",
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
        phrase: ", requested GPU memory: ",
        source: "0.9.2 to 0.10.0 at debug level, v1/worker/gpu_worker.py",
        read: |boot, line, rest| {
            let (requested, _) = gib(rest)?;
            let rank = boot.rank(&line.worker);
            rank.requested = Some(requested);
            rank.free_at_start = gib_after(&line.text, "Initial free memory: ").or(rank.free_at_start);
            own(boot)
        },
    },
    Wording {
        phrase: "; Requested memory: ",
        source: "0.10.1 to 0.33 at debug level, v1/worker/gpu_worker.py",
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
        phrase: "Applying persisted startup plan ",
        source: "0.26 to 0.33, v1/worker/startup_plan.py: an earlier start's size is taken, nothing is profiled",
        read: |boot, line, rest| {
            let bytes = count(after(rest, "kv_cache_memory_bytes=")?)?.0;
            let given = Figure::exact(i64::try_from(bytes).ok()?);
            boot.kv_given = Some(given);
            boot.rank(&line.worker).available_kv = Some(given);
            boot.remark("startup_plan", line.number, &line.text);
            own(boot)
        },
    },
    Wording {
        phrase: "of GPU memory for frontend multimodal decoding",
        source: "0.25 to 0.33, v1/worker/gpu_worker.py: what image decoding keeps is taken off afterwards",
        read: |boot, line, rest| {
            let left = gib_after(rest, "KV cache memory reduced to ")?;
            boot.rank(&line.worker).available_kv = Some(left);
            boot.remark("mm_reservation", line.number, &line.text);
            own(boot)
        },
    },
    Wording {
        phrase: "Free memory grew by ",
        source: "0.29 to 0.33, v1/worker/gpu_worker.py: another process gave memory back during the profile",
        read: |boot, line, rest| {
            gib(rest)?;
            boot.remark("memory_grew", line.number, &line.text);
            own(boot)
        },
    },
    Wording {
        phrase: "VLLM_CPU_KVCACHE_SPACE not set. Using ",
        source: "0.13 to 0.19 on CPUs, platforms/cpu.py",
        read: |boot, line, rest| {
            let (given, _) = gib(rest)?;
            boot.cpu = true;
            boot.kv_given = Some(whole_gib(given));
            boot.rank(&line.worker).available_kv = Some(whole_gib(given));
            own(boot)
        },
    },
    Wording {
        phrase: "Explicitly set (",
        source: "0.20 to 0.33 on CPUs, v1/worker/cpu_worker.py",
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
        source: "0.20 to 0.33 on CPUs, v1/worker/cpu_worker.py",
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
        source: "0.6 to 0.12 on CPUs, platforms/cpu.py",
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
        source: "0.18 to 0.33, v1/worker/gpu_model_runner.py",
        read: |boot, line, rest| {
            boot.rank(&line.worker).graphs_estimate = Some(gib(rest)?.0);
            own(boot)
        },
    },
    Wording {
        phrase: "CUDA graph pool memory: ",
        source: "0.18 to 0.33, v1/worker/gpu_worker.py",
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
        source: "0.20 to 0.33, v1/worker/gpu_worker.py",
        read: |boot, _, rest| {
            let (utilization, _) = number(after(rest, "--gpu-memory-utilization=")?)?;
            boot.utilization = Some(utilization);
            own(boot)
        },
    },
    Wording {
        phrase: "CUDA graph memory profiling will be enabled by default",
        source: "0.18 and 0.19, v1/worker/gpu_worker.py: what the next release will do",
        read: |boot, _, rest| {
            let (utilization, _) = number(after(rest, "--gpu-memory-utilization from ")?)?;
            boot.utilization = Some(utilization);
            own(boot)
        },
    },
    // The refusal of the start-up check before the summary, whose beginning is the same.
    Wording {
        phrase: "on startup is less than",
        source: "0.9 to 0.33, v1/worker/utils.py (with the device's name since 0.14); cpu_worker.py since 0.20",
        read: |boot, line, rest| {
            let memory = after(&line.text, "Free memory on device")
                .or_else(|| after(&line.text, "Available memory on node"))?;
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
        phrase: "on kv cache allocation is less than requested memory for kv (",
        source: "0.20 to 0.33 on CPUs, v1/worker/cpu_worker.py",
        read: |boot, line, rest| {
            let memory = after(&line.text, "Available memory on node")?;
            let (free, tail) = gib(after(memory, "(")?)?;
            let total = gib(tail.strip_prefix('/')?)?.0;
            let requested = gib(rest)?.0;
            boot.cpu = true;
            let rank = boot.rank(&line.worker);
            rank.total = Some(total);
            rank.free_at_start = Some(free);
            rank.requested = Some(requested);
            refuse(
                boot,
                Refusal::FreeMemory {
                    free,
                    total,
                    utilization: requested.bytes as f64 / total.bytes.max(1) as f64,
                    requested,
                },
            )
        },
    },
    Wording {
        phrase: "Free memory on device",
        source: "0.10.2 to 0.33, v1/worker/gpu_worker.py: the summary after start-up",
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
];
