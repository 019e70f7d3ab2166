//! The cache that was made of the memory, and why there is none.

use super::super::super::boot::{EngineKind, Refusal};
use super::super::super::figure::{self, after, count};
use super::super::Wording;
use super::super::read::{concurrency, gib, own, refuse};

/// In this order.
pub(super) const ALL: &[Wording] = &[
    // The pool.
    Wording {
        phrase: "KV cache size: ",
        source: "0.8 to 0.32, v1/core/kv_cache_utils.py (with the concurrency in one line since 0.28)",
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
        source: "0.6.3 to 0.27, v1/core/kv_cache_utils.py; executor/executor_base.py",
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
        source: "0.14 to 0.33, v1/core/kv_cache_utils.py, since 0.33 kv_cache_planning.py",
        read: |boot, _, rest| {
            let length = after(rest, " to ")
                .filter(|_| rest.starts_with("reduced"))
                .or_else(|| after(rest, "length "))
                .or_else(|| after(rest, "max_model_len="));
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
    Wording {
        phrase: "Multiplying the GPU KV cache size by the ",
        source: "0.10.2 to 0.20, v1/core/kv_cache_utils.py: context parallelism, counted in the tokens below",
        read: |boot, line, _| {
            boot.remark("context_parallel", line.number, &line.text);
            own(boot)
        },
    },
    // Refusals.
    Wording {
        phrase: ") exceeds available Mamba cache blocks (",
        source: "0.20 to 0.33, config/compilation.py: a block for each sequence of a graph",
        read: |boot, line, rest| {
            let (max_num_seqs, _) = count(after(&line.text, "max_num_seqs (")?)?;
            let (blocks, _) = count(rest)?;
            refuse(boot, Refusal::StateBlocks { max_num_seqs, blocks })
        },
    },
    Wording {
        phrase: "frontend multimodal GPU decoding reserves ",
        source: "0.25 to 0.33, v1/worker/gpu_worker.py",
        read: |boot, line, _| {
            boot.remark("mm_reservation", line.number, &line.text);
            refuse(boot, Refusal::NoMemory)
        },
    },
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
];
