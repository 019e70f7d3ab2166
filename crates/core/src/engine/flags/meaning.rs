//! What a flag means for the memory of a GPU, in a sentence.

/// What a flag of an engine does to memory; `None` for flags that do nothing to it worth saying.
///
/// vLLM's rules are those of 0.32.0 (`config/cache.py`, `config/scheduler.py`, `v1/worker/gpu_worker.py`), SGLang's those of
/// 0.5.23 (`server_args.py`, `model_executor`), llama.cpp's those of b11549 (`src/llama-context.cpp`, `tools/server`).
pub fn meaning(engine: &str, flag: &str) -> Option<&'static str> {
    let table = match engine {
        "sglang" => SGLANG,
        "llamacpp" => LLAMACPP,
        _ => VLLM,
    };
    table
        .iter()
        .find(|(name, _)| *name == flag)
        .map(|(_, says)| *says)
}

const VLLM: &[(&str, &str)] = &[
    (
        "--tensor-parallel-size",
        "splits weights and KV heads over this many GPUs",
    ),
    (
        "--pipeline-parallel-size",
        "gives each group of GPUs a share of the layers",
    ),
    (
        "--data-parallel-size",
        "runs this many copies of the attention layers, each with its own KV cache",
    ),
    (
        "--enable-expert-parallel",
        "gives whole experts to GPUs instead of a slice of each",
    ),
    (
        "--decode-context-parallel-size",
        "splits the tokens of the KV cache over GPUs that would hold copies",
    ),
    ("--dtype", "sets the bytes of unquantised weights and activations"),
    (
        "--quantization",
        "sets the format of the weights; a checkpoint that is quantised already says so itself",
    ),
    (
        "--kv-cache-dtype",
        "sets the bytes of one element of the KV cache",
    ),
    (
        "--block-size",
        "sets how many tokens are handed out at once; the last block of a request is partly empty",
    ),
    (
        "--max-model-len",
        "is the longest request; the pool must hold one of this length or the engine does not start",
    ),
    (
        "--max-num-seqs",
        "bounds the requests that run at once, and the CUDA graphs that are captured",
    ),
    (
        "--max-num-batched-tokens",
        "bounds the tokens of one step, and with them the peak of the activations",
    ),
    (
        "--gpu-memory-utilization",
        "is the share of the GPU's total memory that the engine takes, weights included",
    ),
    (
        "--kv-cache-memory-bytes",
        "sets the KV cache by hand: the memory profile and the utilisation are then ignored",
    ),
    (
        "--num-gpu-blocks-override",
        "sets the number of blocks by hand, whatever the memory",
    ),
    (
        "--enforce-eager",
        "leaves out CUDA graphs: their memory is free for the KV cache, but decoding is slower",
    ),
    (
        "--enable-prefix-caching",
        "keeps computed blocks for later requests; costs no memory that is not free anyway",
    ),
    (
        "--async-scheduling",
        "prepares the next step early; sliding windows then hold a step's tokens twice",
    ),
    (
        "--disable-hybrid-kv-cache-manager",
        "makes layers with a sliding window keep every token",
    ),
    (
        "--attention-backend",
        "decides which block sizes and KV types are possible",
    ),
    (
        "--language-model-only",
        "leaves vision and audio towers out of memory",
    ),
    ("--speculative-config", "adds the drafter's weights and KV cache"),
    ("--enable-lora", "reserves slots for adapters"),
    ("--max-loras", "is the number of adapter slots on the GPU"),
    ("--max-lora-rank", "sets the size of an adapter slot"),
    (
        "--kv-cache-dtype-skip-layers",
        "keeps these layers' cache unquantised",
    ),
    (
        "--cpu-offload-gb",
        "keeps this much of the weights in the host's memory and fetches it in every step",
    ),
    (
        "--kv-offloading-size",
        "keeps evicted KV blocks in the host's memory",
    ),
    ("--mamba-cache-dtype", "sets the bytes of recurrent states"),
    ("--mamba-ssm-cache-dtype", "sets the bytes of recurrent states"),
    (
        "--max-cudagraph-capture-size",
        "bounds the CUDA graphs, which take memory outside the KV cache",
    ),
    (
        "--cudagraph-capture-sizes",
        "lists the CUDA graphs, which take memory outside the KV cache",
    ),
    (
        "--limit-mm-per-prompt",
        "bounds the images and clips for which the profile run reserves memory",
    ),
    (
        "--mm-processor-kwargs",
        "may make images smaller, and with them what the profile run encodes",
    ),
    (
        "--skip-mm-profiling",
        "leaves images out of the memory profile: a full batch of them may then run out",
    ),
    (
        "--enable-sleep-mode",
        "allocates weights and cache so that they can be given back while idle",
    ),
];

const SGLANG: &[(&str, &str)] = &[
    ("--tp-size", "splits weights and KV heads over this many GPUs"),
    ("--pp-size", "gives each group of GPUs a share of the layers"),
    (
        "--dp-size",
        "runs this many replicas, or data-parallel attention groups",
    ),
    (
        "--attn-dp-size",
        "divides the tensor-parallel ranks into groups with whole attention layers and requests of their own",
    ),
    ("--ep-size", "gives whole experts to GPUs"),
    (
        "--speculative-algorithm",
        "drafts tokens that one step of the model checks together; the drafter has weights and a cache of its own",
    ),
    (
        "--speculative-draft-model-path",
        "is the drafter; the model itself where its own prediction modules draft",
    ),
    (
        "--speculative-num-steps",
        "is how many tokens are drafted in a row",
    ),
    (
        "--speculative-eagle-topk",
        "is how many branches each drafted token has; 1 makes a chain",
    ),
    (
        "--speculative-num-draft-tokens",
        "is how many tokens of a request one step checks: the drafts and the one they hang on",
    ),
    ("--dtype", "sets the bytes of unquantised weights and activations"),
    ("--quantization", "sets the format of the weights"),
    (
        "--kv-cache-dtype",
        "sets the bytes of one element of the KV cache",
    ),
    ("--context-length", "is the longest request"),
    (
        "--mem-fraction-static",
        "is the share of the memory for weights and KV pool together; the rest is for activations and graphs",
    ),
    ("--max-total-tokens", "caps the tokens of the KV pool"),
    (
        "--max-running-requests",
        "bounds the requests that run at once, and the rows of the request table",
    ),
    (
        "--chunked-prefill-size",
        "bounds the prompt tokens of one step, and with them the activations",
    ),
    (
        "--max-prefill-tokens",
        "bounds the prompt tokens that are taken up at once",
    ),
    ("--page-size", "sets how many tokens are handed out at once"),
    ("--disable-radix-cache", "forgets prefixes when a request ends"),
    (
        "--cuda-graph-max-bs-decode",
        "bounds the CUDA graphs, which take memory outside the KV pool",
    ),
    (
        "--swa-full-tokens-ratio",
        "divides the pool between windowed and full layers",
    ),
    (
        "--cpu-offload-gb",
        "keeps this much of the weights in the host's memory",
    ),
    ("--enable-lora", "reserves slots for adapters"),
    (
        "--attention-backend",
        "decides which page sizes and KV types are possible",
    ),
];

const LLAMACPP: &[(&str, &str)] = &[
    (
        "--ctx-size",
        "is the tokens of all slots together; their cache is allocated at start",
    ),
    (
        "--parallel",
        "is the requests at once; each slot gets an equal part of the context",
    ),
    (
        "--kv-unified",
        "lets all slots share one cache instead of an equal part each",
    ),
    (
        "--n-gpu-layers",
        "is how many layers go to GPUs; left open, the server may move some to the host",
    ),
    ("--cache-type-k", "sets the bytes of one element of the keys"),
    (
        "--cache-type-v",
        "sets the bytes of one element of the values; quantised ones need flash attention",
    ),
    (
        "--flash-attn",
        "decides whether attention keeps its scores in memory",
    ),
    (
        "--ubatch-size",
        "bounds the tokens of one computation, and with them the compute buffer",
    ),
    (
        "--batch-size",
        "bounds the tokens that are taken up at once; it must hold a physical batch",
    ),
    (
        "--swa-full",
        "makes layers with a sliding window keep every token",
    ),
    (
        "--kv-offload",
        "decides whether the caches lie with the GPUs or with the host",
    ),
    ("--tensor-split", "divides the layers between the GPUs"),
    (
        "--split-mode",
        "says what is spread over the GPUs: nothing, layers, rows or all",
    ),
    (
        "--main-gpu",
        "names the GPU that has the model where nothing is split",
    ),
    (
        "--override-tensor",
        "places tensors by their names, with a GPU or the host",
    ),
    (
        "--cache-ram",
        "keeps prompts in the host's memory, up to this many MiB",
    ),
    (
        "--n-cpu-moe",
        "keeps the experts of the first layers with the host",
    ),
    ("--cpu-moe", "keeps all experts with the host"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::flags;

    #[test]
    fn every_flag_that_is_explained_exists() {
        for (table, rows) in [
            (flags::vllm(), VLLM),
            (flags::sglang(), SGLANG),
            (flags::llamacpp(), LLAMACPP),
        ] {
            for (name, _) in rows {
                assert!(
                    table.get(name).is_some_and(|f| f.name() == *name),
                    "{} {name}",
                    table.engine
                );
            }
        }
        assert!(meaning("vllm", "--max-model-len").is_some());
        assert!(meaning("vllm", "--port").is_none());
    }
}
