//! Logs as servers printed them. The figures are those of the public threads and files that each test names; sentences
//! around them are shortened to what the reader looks at.

mod dresses;
mod tags;

use proptest::prelude::*;

use super::*;

fn read_text(text: &str) -> Result<Log> {
    read("test.log", &mut text.as_bytes())
}

fn one(text: &str) -> Boot {
    let mut log = read_text(text).unwrap();
    assert_eq!(log.boots.len(), 1, "{:#?}", log.boots);
    log.boots.remove(0)
}

/// The figure in GiB with at most four decimals.
fn gib(figure: Option<Figure>) -> String {
    let figure = figure.expect("the figure is there");
    let text = format!("{:.4}", figure.bytes as f64 / 1_073_741_824.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// github.com/vllm-project/vllm/issues/10517 and pull/10511: the V0 engine, one sentence and one term a line.
#[test]
fn the_v0_engine_is_read_in_both_of_its_wordings() {
    let boot = one(
        "INFO 12-13 19:54:11 api_server.py:652] vLLM API server version 0.6.5\n\
         INFO 12-13 19:54:11 llm_engine.py:234] Initializing an LLM engine (v0.6.5) with config: model='meta-llama/Meta-Llama-3-8B', speculative_config=None, dtype=torch.bfloat16, max_seq_len=8192, tensor_parallel_size=1, quantization=None, enforce_eager=False, kv_cache_dtype=auto, device_config=cuda\n\
         INFO 12-13 19:54:16 model_runner.py:1097] Loading model weights took 14.9595 GB\n\
         INFO 12-13 19:54:18 worker.py:243] Memory profiling results:\n\
         INFO 12-13 19:54:18 worker.py:243] duration\t0.75 seconds\n\
         INFO 12-13 19:54:18 worker.py:243] total_gpu_memory     79.22GiB\n\
         INFO 12-13 19:54:18 worker.py:243] gpu_memory_utilization       0.90\n\
         INFO 12-13 19:54:18 worker.py:243] the current vLLM instance can use    71.29GiB\n\
         INFO 12-13 19:54:18 worker.py:243] model weights take   14.96GiB\n\
         INFO 12-13 19:54:18 worker.py:243] non_torch_memory     1.79GiB\n\
         INFO 12-13 19:54:18 worker.py:243] PyTorch activation peak memory       1.26GiB\n\
         INFO 12-13 19:54:18 worker.py:243] available_kv_cache_memory    53.29GiB\n\
         INFO 12-13 19:54:18 gpu_executor.py:76] # GPU blocks: 27283, # CPU blocks: 2048\n\
         INFO 12-13 19:54:18 gpu_executor.py:80] Maximum concurrency for 8192 tokens per request: 53.29x\n\
         INFO 12-13 19:54:38 model_runner.py:1518] Graph capturing finished in 20 secs, took 0.32 GiB\n",
    );
    assert_eq!(boot.version.as_deref(), Some("0.6.5"));
    assert_eq!(boot.model.as_deref(), Some("meta-llama/Meta-Llama-3-8B"));
    assert!(boot.v0);
    let rank = &boot.ranks[0];
    assert_eq!(gib(rank.model_load), "14.9595");
    assert_eq!(gib(rank.total), "79.22");
    assert_eq!(gib(rank.requested), "71.29");
    assert_eq!(gib(rank.non_torch), "1.79");
    assert_eq!(gib(rank.activation), "1.26");
    assert_eq!(gib(rank.available_kv), "53.29");
    assert_eq!(gib(rank.graphs), "0.32");
    assert_eq!(boot.utilization, Some(0.9));
    assert_eq!(boot.num_blocks, Some(27_283));
    assert_eq!(boot.concurrency, Some((53.29, 8192)));

    // github.com/vllm-project/vllm/issues/14452: two stages on RTX 5090, the last one limits.
    let boot = one(
        "INFO 04-23 14:48:30 [llm_engine.py:242] Initializing a V0 LLM engine (v0.8.5.dev169+g7bdb42b2f) with config: model='/m/QwQ-32B-unsloth-bnb-4bit', pipeline_parallel_size=2, max_seq_len=50000\n\
         INFO 04-23 14:48:44 [worker.py:287] the current vLLM instance can use total_gpu_memory (31.37GiB) x gpu_memory_utilization (0.85) = 26.66GiB\n\
         INFO 04-23 14:48:44 [worker.py:287] model weights take 10.80GiB; non_torch_memory takes 0.33GiB; PyTorch activation peak memory takes 1.01GiB; the rest of the memory reserved for KV Cache is 14.52GiB.\n\
         (VllmWorkerProcess pid=12897) INFO 04-23 14:48:44 [worker.py:287] the current vLLM instance can use total_gpu_memory (31.37GiB) x gpu_memory_utilization (0.85) = 26.66GiB\n\
         (VllmWorkerProcess pid=12897) INFO 04-23 14:48:44 [worker.py:287] model weights take 10.30GiB; non_torch_memory takes 0.33GiB; PyTorch activation peak memory takes 1.77GiB; the rest of the memory reserved for KV Cache is 14.26GiB.\n\
         INFO 04-23 14:48:44 [executor_base.py:112] # cuda blocks: 7299, # CPU blocks: 2048\n\
         INFO 04-23 14:48:44 [executor_base.py:117] Maximum concurrency for 50000 tokens per request: 2.34x\n",
    );
    assert_eq!(boot.ranks.len(), 2);
    assert_eq!(gib(boot.smallest(|r| r.available_kv)), "14.26");
    assert_eq!(gib(boot.largest(|r| r.model_load)), "10.8");
    assert_eq!((boot.num_blocks, boot.utilization), (Some(7299), Some(0.85)));
    assert_eq!(boot.config["pipeline_parallel_size"].count(), Some(2));
}

/// Benchmark notes of Llama-3.1-70B in FP8 on an MI300X, and of Llama-3.1-8B on a W7900 (December 2024): V0's first wording.
#[test]
fn the_first_wording_of_v0_gives_the_peak_with_the_weights_in_it() {
    let boot = one(
        "INFO 12-25 14:00:09 model_runner.py:1094] Loading model weights took 67.6979 GB\n\
         INFO 12-25 14:00:28 worker.py:265] Memory profiling results: duration=18.41 seconds, total_gpu_memory=191.98GiB, initial_memory_usage=71.40GiB, peak_torch_memory=86.79GiB, memory_usage_post_profile=73.77GiB, non_torch_memory=6.07GiB, kv_cache_size=95.28GiB, gpu_memory_utilization=0.98.\n\
         INFO 12-25 14:00:28 gpu_executor.py:76] # GPU blocks: 19513, # CPU blocks: 819\n\
         INFO 12-25 14:00:28 gpu_executor.py:80] Maximum concurrency for 32768 tokens per request: 9.53x\n",
    );
    let rank = &boot.ranks[0];
    assert_eq!(gib(rank.total), "191.98");
    assert_eq!(gib(rank.activation), "19.0921");
    assert_eq!(gib(rank.non_torch), "6.07");
    assert_eq!(gib(rank.available_kv), "95.28");
    assert_eq!((boot.utilization, boot.num_blocks), (Some(0.98), Some(19_513)));
    let alone = one(
        "INFO 12-07 17:39:09 worker.py:237] Memory profiling results: duration=39.11 seconds, total_gpu_memory=44.98GiB, initial_memory_usage=15.23GiB, peak_torch_memory=16.20GiB, memory_usage_post_profile=15.46GiB, non_torch_memory=0.44GiB, kv_cache_size=23.84GiB, gpu_memory_utilization=0.90.\n",
    );
    assert_eq!(gib(alone.ranks[0].available_kv), "23.84");
    assert!(
        alone.ranks[0].activation.is_none(),
        "the weights are not in this excerpt"
    );
}

/// The V0 engine on a T4 (Qwen2.5-1.5B-Instruct, 0.7.3), and one of four RTX 2080 Ti under 0.8.5.
#[test]
fn v0_logs_of_turing_cards_are_read() {
    let boot = one(
        "INFO 05-30 16:22:24 model_runner.py:1110] Starting to load model Qwen/Qwen2.5-1.5B-Instruct...\n\
         INFO 05-30 16:23:22 model_runner.py:1115] Loading model weights took 2.8875 GB\n\
         INFO 05-30 16:23:28 worker.py:267] Memory profiling takes 5.07 seconds\n\
         INFO 05-30 16:23:28 worker.py:267] the current vLLM instance can use total_gpu_memory (14.56GiB) x gpu_memory_utilization (0.50) = 7.28GiB\n\
         INFO 05-30 16:23:28 worker.py:267] model weights take 2.89GiB; non_torch_memory takes 0.01GiB; PyTorch activation peak memory takes 2.02GiB; the rest of the memory reserved for KV Cache is 2.36GiB.\n\
         INFO 05-30 16:23:28 executor_base.py:110] # CUDA blocks: 5519, # CPU blocks: 9362\n\
         INFO 05-30 16:23:28 executor_base.py:115] Maximum concurrency for 32768 tokens per request: 2.69x\n\
         INFO 05-30 16:24:18 model_runner.py:1562] Graph capturing finished in 43 secs, took 0.17 GiB\n",
    );
    let rank = &boot.ranks[0];
    assert_eq!(
        (gib(rank.activation), gib(rank.non_torch)),
        ("2.02".to_owned(), "0.01".to_owned())
    );
    assert_eq!(boot.model.as_deref(), Some("Qwen/Qwen2.5-1.5B-Instruct"));
    assert_eq!((boot.num_blocks, boot.utilization), (Some(5519), Some(0.5)));
    let rocm = one(
        "INFO 06-05 13:03:05 [model_runner.py:1202] Model loading took 0.2363 GiB and 0.711783 seconds\n\
         INFO 06-05 13:03:17 [worker.py:303] Memory profiling takes 11.68 seconds\n\
         INFO 06-05 13:03:17 [worker.py:303] the current vLLM instance can use total_gpu_memory (23.98GiB) x gpu_memory_utilization (0.90) = 21.59GiB\n\
         INFO 06-05 13:03:17 [worker.py:303] model weights take 0.24GiB; non_torch_memory takes 0.53GiB; PyTorch activation peak memory takes 0.49GiB; the rest of the memory reserved for KV Cache is 20.33GiB.\n\
         INFO 06-05 13:03:17 [executor_base.py:112] # rocm blocks: 37011, # CPU blocks: 7281\n",
    );
    assert_eq!(
        (gib(rocm.ranks[0].available_kv), rocm.num_blocks),
        ("20.33".to_owned(), Some(37_011))
    );
}

/// A start of 0.28.1 on eight H200 (GLM-5.3-Flash, 2026-09-16) and the shorter line of 0.10.2 on L40S (2025-09-24).
#[test]
fn summaries_of_several_releases_are_read() {
    let boot = one(
        "(Worker_TP0 pid=9) INFO 09-16 10:00:00 [model_runner.py:422] Model loading took 38.24 GiB memory and 226.512052 seconds\n\
         (Worker_TP0 pid=9) INFO 09-16 10:02:00 [gpu_worker.py:637] Available KV cache memory: 81.79 GiB\n\
         (EngineCore pid=7) INFO 09-16 10:02:01 [kv_cache_utils.py:2315] GPU KV cache size: 7,228,559 tokens, Maximum concurrency for 131,072 tokens per request: 55.15x\n\
         (Worker_TP0 pid=9) INFO 09-16 10:05:00 [gpu_worker.py:876] Free memory on device (137.64/139.8 GiB) on startup. Desired GPU memory utilization is (0.9, 125.82 GiB). Actual usage is 39.98 GiB for consumed memory (weights + non-torch), 4.04 GiB for peak activation, and 1.2 GiB for CUDAGraph memory. Current kv cache memory in use is 81.79 GiB.\n",
    );
    let rank = &boot.ranks[0];
    assert_eq!(
        (gib(rank.total), gib(rank.non_torch)),
        ("139.8".to_owned(), "1.74".to_owned())
    );
    assert_eq!(
        (boot.tokens, boot.concurrency),
        (Some(7_228_559), Some((55.15, 131_072)))
    );
    let boot = one(
        "(Worker_TP3_EP3 pid=2081) INFO 09-24 20:53:41 [gpu_worker.py:298] Available KV cache memory: 10.65 GiB\n\
         (EngineCore_DP0 pid=1944) INFO 09-24 20:53:41 [kv_cache_utils.py:864] GPU KV cache size: 238,208 tokens\n\
         (EngineCore_DP0 pid=1944) INFO 09-24 20:53:41 [kv_cache_utils.py:868] Maximum concurrency for 32,768 tokens per request: 7.27x\n\
         (Worker_TP2_EP2 pid=2080) INFO 09-24 20:54:35 [gpu_worker.py:391] Free memory on device (43.93/44.42 GiB) on startup. Desired GPU memory utilization is (0.9, 39.98 GiB). Actual usage is 27.72 GiB for weight, 1.4 GiB for peak activation, 0.21 GiB for non-torch memory, and 3.45 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=7564378828` to fit into requested memory, or `--kv-cache-memory=11809093120` to fully utilize gpu memory. Current kv cache memory in use is 11423138508 bytes.\n",
    );
    assert_eq!(gib(boot.smallest(|r| r.non_torch)), "0.21");
    assert_eq!(gib(boot.smallest(|r| r.graphs)), "3.45");
    assert_eq!(boot.tokens, Some(238_208));
}

/// A start of 0.29 (2026-09-25, RTX of 6 GB): consumed memory, activations that contain the graph estimate.
#[test]
fn the_sums_that_newer_releases_print_are_taken_apart() {
    let boot = one(
        "(EngineCore pid=114) INFO 09-25 02:25:45 [gpu_model_runner.py:5471] Model loading took 1.95 GiB memory and 2.566028 seconds\n\
         (EngineCore pid=114) INFO 09-25 02:25:48 [gpu_model_runner.py:6806] Estimated CUDA graph memory: 0.10 GiB total\n\
         (EngineCore pid=114) INFO 09-25 02:25:49 [gpu_worker.py:625] Available KV cache memory: 2.41 GiB\n\
         (EngineCore pid=114) INFO 09-25 02:25:49 [kv_cache_utils.py:2032] GPU KV cache size: 70,240 tokens, Maximum concurrency for 2,048 tokens per request: 34.30x\n\
         (EngineCore pid=114) INFO 09-25 02:25:51 [gpu_model_runner.py:7001] Graph capturing finished in 1 secs, took 0.07 GiB\n\
         (EngineCore pid=114) INFO 09-25 02:25:51 [gpu_worker.py:860] Free memory on device (4.95/6.0 GiB) on startup. Desired GPU memory utilization is (0.79, 4.74 GiB). Actual usage is 2.1 GiB for consumed memory (weights + non-torch), 0.22 GiB for peak activation, and 0.07 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=2358995846` (2.2 GiB) to fit into requested memory, or `--kv-cache-memory=2590736384` (2.41 GiB) to fully utilize gpu memory. Current kv cache memory in use is 2.41 GiB.\n",
    );
    let rank = &boot.ranks[0];
    assert_eq!(gib(rank.total), "6");
    assert_eq!(gib(rank.free_at_start), "4.95");
    assert_eq!(gib(rank.requested), "4.74");
    assert_eq!(gib(rank.non_torch), "0.15");
    assert_eq!(gib(rank.activation), "0.12");
    assert_eq!(gib(rank.graphs), "0.07");
    assert_eq!(
        rank.total.unwrap().step_bytes,
        (1 << 30) / 100 + 1,
        "6.0 is rounded to two decimals"
    );
    assert_eq!(
        (boot.tokens, boot.concurrency),
        (Some(70_240), Some((34.3, 2048)))
    );
    assert_eq!(boot.utilization, Some(0.79));
}

/// 0.11 to 0.26 (Qwen3-8B class on 23.53 GiB, 2025-09-28): weights and non-torch apart; debug lines of the same start.
#[test]
fn the_summary_of_older_releases_and_the_debug_lines_agree() {
    let boot = one(
        "(EngineCore_DP0 pid=2552931) DEBUG 09-28 21:12:43 [v1/worker/gpu_worker.py:284] Initial free memory: 23.08 GiB; Requested memory: 0.80 (util), 18.82 GiB\n\
         (EngineCore_DP0 pid=2552931) DEBUG 09-28 21:12:43 [v1/worker/gpu_worker.py:297] Memory profiling takes 14.40 seconds. Total non KV cache memory: 10.22GiB; torch peak memory increase: 1.40GiB; non-torch forward increase memory: 0.02GiB; weights memory: 8.80GiB.\n\
         (EngineCore_DP0 pid=2552931) INFO 09-28 21:12:43 [v1/worker/gpu_worker.py:298] Available KV cache memory: 8.60 GiB\n\
         (EngineCore_DP0 pid=2552931) INFO 09-28 21:12:44 [v1/core/kv_cache_utils.py:864] GPU KV cache size: 62,608 tokens\n\
         (EngineCore_DP0 pid=2552931) INFO 09-28 21:12:44 [v1/core/kv_cache_utils.py:868] Maximum concurrency for 1,024 tokens per request: 61.14x\n\
         (EngineCore_DP0 pid=2552931) INFO 09-28 21:12:51 [v1/worker/gpu_worker.py:391] Free memory on device (23.08/23.53 GiB) on startup. Desired GPU memory utilization is (0.8, 18.82 GiB). Actual usage is 8.8 GiB for weight, 1.4 GiB for peak activation, 0.02 GiB for non-torch memory, and 0.68 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=8347223347` to fit into requested memory. Current kv cache memory in use is 9232221491 bytes.\n",
    );
    assert_eq!(boot.ranks.len(), 1, "{:?}", boot.ranks);
    let rank = &boot.ranks[0];
    assert_eq!(gib(rank.model_load), "8.8");
    assert_eq!(gib(rank.activation), "1.4");
    assert_eq!(gib(rank.non_torch), "0.02");
    assert_eq!(gib(rank.graphs), "0.68");
    assert_eq!(gib(rank.available_kv), "8.6");
    assert_eq!(boot.tokens, Some(62_608));
}

/// github.com/vllm-project/vllm/issues/20305, issues/25837, and a user's note of 0.9 (40,960 tokens refused).
#[test]
fn refusals_are_read_with_their_figures() {
    let free = one("ERROR 06-30 13:53:19 [core.py:515] EngineCore failed to start.\n\
         ERROR 06-30 13:53:19 [core.py:515] ValueError: Free memory on device (31.44/47.38 GiB) on startup is less than desired GPU memory utilization (0.95, 45.01 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.\n");
    let Some(Refusal::FreeMemory {
        free,
        total,
        utilization,
        requested,
    }) = free.refusal
    else {
        panic!("{free:?}");
    };
    assert_eq!(
        [
            gib(Some(free)),
            gib(Some(total)),
            utilization.to_string(),
            gib(Some(requested))
        ],
        ["31.44", "47.38", "0.95", "45.01"]
    );
    let device = one(
        "ValueError: Free memory on device cuda:0 (111.99/139.8 GiB) on startup is less than desired GPU memory utilization (0.95, 132.81 GiB).\n",
    );
    assert!(
        matches!(device.refusal, Some(Refusal::FreeMemory { utilization, .. }) if (utilization - 0.95).abs() < 1e-9)
    );

    for (text, needed, estimated) in [
        (
            "[vllm]  | ERROR 06-02 05:17:18 [core.py:387] ValueError: To serve at least one request with the models's max seq len (40960), (10.00 GiB KV cache is needed, which is larger than the available KV cache memory (1.25 GiB). Based on the available memory,  Try increasing `gpu_memory_utilization`\n",
            "10",
            None,
        ),
        (
            "ValueError: To serve at least one request with the model's max seq len (131072), 9.5 GiB KV cache is needed, which is larger than the available KV cache memory (6.91 GiB). Based on the available memory, the estimated maximum model length is 91520.\n",
            "9.5",
            Some(91_520),
        ),
    ] {
        let boot = one(text);
        let Some(Refusal::TooLong {
            needed: n,
            estimated: e,
            available,
            ..
        }) = &boot.refusal
        else {
            panic!("{boot:?}");
        };
        assert_eq!((gib(*n).as_str(), *e), (needed, estimated));
        assert!(available.is_some());
    }
    let v0 = one(
        "ERROR 04-17 15:10:09 [engine.py:448] ValueError: The model's max seq len (8192) is larger than the maximum number of tokens that can be stored in KV cache (2400). Try increasing\n",
    );
    assert!(matches!(
        v0.refusal,
        Some(Refusal::TooLong {
            max_model_len: 8192,
            pool_tokens: Some(2400),
            ..
        })
    ));
    let none = one(
        "INFO vLLM API server version 0.4.1\nValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.\n",
    );
    assert_eq!(none.refusal, Some(Refusal::NoMemory));
}

/// github.com/gpustack/runner/pull/251 (0.27.1 on two cards): workers in turn, the utilisation from a remark.
#[test]
fn tensor_parallel_workers_are_kept_apart() {
    let boot = one(
        "(Worker_TP1 pid=448) INFO 08-14 14:07:22 [gpu_model_runner.py:6806] Estimated CUDA graph memory: 0.36 GiB total\n\
         (Worker_TP1 pid=448) INFO 08-14 14:07:22 [gpu_worker.py:578] CUDA graph memory profiling is enabled (default since v0.21.0). The current --gpu-memory-utilization=0.8200 is equivalent to --gpu-memory-utilization=0.8048 without CUDA graph memory profiling.\n\
         (Worker_TP0 pid=447) INFO 08-14 14:07:22 [gpu_worker.py:563] Available KV cache memory: 6.87 GiB\n\
         (Worker_TP1 pid=448) INFO 08-14 14:07:22 [gpu_worker.py:563] Available KV cache memory: 6.91 GiB\n\
         (EngineCore pid=367) WARNING 08-14 14:07:22 [kv_cache_utils.py:1483] Add 3 padding layers, may waste at most 14.29% KV cache memory\n",
    );
    assert_eq!(boot.ranks.len(), 2);
    assert_eq!(gib(boot.smallest(|r| r.available_kv)), "6.87");
    assert_eq!(boot.utilization, Some(0.82));
    assert_eq!(boot.evidence_of("padding_layers").unwrap().line, 5);
}

/// github.com/sgl-project/sglang/pull/18263, github.com/noonghunna/club-3090/issues/1261 and a Nemotron run on XPUs.
#[test]
fn sglang_is_read_with_its_pools() {
    let boot = one(
        "[2026-09-12 00:22:11] server_args=ServerArgs(model_path='Qwen/Qwen3.6-27B-FP8', tp_size=2, mem_fraction_static=0.85, chunked_prefill_size=4096, page_size=1, quantization=None)\n\
         [2026-09-12 00:22:20 TP0] Load weight begin. avail mem=31.20 GB\n\
         [2026-09-12 00:22:40 TP0] Load weight end. elapsed=36.9 s, type=Qwen3_5ForConditionalGeneration, dtype=torch.bfloat16, avail mem=16.44 GB, mem usage=14.76 GB.\n\
         [2026-09-12 00:22:48 TP0] Mamba Cache is allocated. max_mamba_cache_size: 360, conv_state size: 0.99GB, ssm_state size: 50.77GB\n\
         [2026-09-12 00:22:48 TP0] KV Cache is allocated. dtype: torch.float8_e4m3fn, #tokens: 454112, K size: 3.46 GB, V size: 3.46 GB\n\
         [2026-09-12 00:22:48 TP0] Memory pool end. avail mem=8.40 GB\n\
         [2026-09-12 00:22:48 TP0] KV Cache is allocated. dtype: torch.float8_e4m3fn, #tokens: 454112, K size: 1.08 GB, V size: 1.08 GB\n\
         [2026-09-12 00:22:50 TP0] Capture cuda graph end. Time elapsed: 6.01 s. mem usage=0.73 GB. avail mem=5.50 GB.\n\
         [2026-09-12 00:22:50 TP0] max_total_num_tokens=454112, chunked_prefill_size=4096, max_prefill_tokens=16384, max_running_requests=48, context_len=262144, available_gpu_mem=5.46 GB\n\
         [2026-09-12 00:22:55] The server is fired up and ready to roll!\n",
    );
    assert_eq!(boot.engine, Some(EngineKind::Sglang));
    assert_eq!(boot.model.as_deref(), Some("Qwen/Qwen3.6-27B-FP8"));
    assert_eq!(boot.tokens, Some(454_112));
    assert_eq!(gib(boot.kv_bytes), "6.92");
    assert_eq!(gib(boot.state_bytes), "51.76");
    assert_eq!(boot.state_slots, Some(360));
    assert_eq!(gib(boot.ranks[0].model_load), "14.76");
    assert_eq!(gib(boot.ranks[0].graphs), "0.73");
    assert_eq!(boot.max_model_len, Some(262_144));
    assert_eq!(boot.flags["mem_fraction_static"].number(), Some(0.85));
    assert!(boot.is_up);
    let swa = one("[2026-06-01 10:00:00] SWAKVPool mem usage: 1.53 GB, swa size: 16384, full size: 81920\n");
    assert_eq!((swa.swa_tokens, swa.tokens), (Some(16_384), Some(81_920)));
}

/// Qwen3-4B in `Q4_K_M` (2026-10-08) and a 7B of 2026-05-05 under Ollama: buffers by device.
#[test]
fn llama_cpp_is_read_with_its_buffers() {
    let boot = one(
        "llama_model_loader: loaded meta data with 28 key-value pairs and 398 tensors from /m/Qwen3-4B-Q4_K_M.gguf (version GGUF V3 (latest))\n\
         load_tensors: offloaded 37/37 layers to GPU\n\
         load_tensors:   CPU_Mapped model buffer size =   304.28 MiB\n\
         load_tensors:        CUDA0 model buffer size =  2375.91 MiB\n\
         llama_context: n_seq_max     = 1\n\
         llama_context: n_ctx         = 8192\n\
         llama_context: n_ubatch      = 512\n\
         llama_context:  CUDA_Host  output buffer size =     2.32 MiB\n\
         llama_kv_cache:      CUDA0 KV buffer size =  1152.00 MiB\n\
         llama_kv_cache: size = 1152.00 MiB (  8192 cells,  36 layers,  1/1 seqs), K (f16):  576.00 MiB, V (f16):  576.00 MiB\n\
         sched_reserve:      CUDA0 compute buffer size =    85.01 MiB\n\
         sched_reserve:  CUDA_Host compute buffer size =    28.02 MiB\n",
    );
    assert_eq!(boot.engine, Some(EngineKind::Llamacpp));
    assert_eq!(boot.model.as_deref(), Some("/m/Qwen3-4B-Q4_K_M.gguf"));
    // 2 x 36 layers x 8 heads x 128 x 2 B x 8192 tokens
    assert_eq!(boot.kv_bytes.unwrap().bytes, 1_207_959_552);
    assert_eq!(boot.tokens, Some(8192));
    assert_eq!(boot.max_model_len, Some(8192));
    assert_eq!(gib(boot.ranks[0].model_load), "2.3202");
    assert_eq!(gib(boot.compute_bytes), "0.083");
    assert_eq!(boot.config["n_gpu_layers"].count(), Some(37));
    assert_eq!(boot.config["cache_type_k"].text().as_deref(), Some("f16"));
}

#[test]
fn several_starts_in_one_file_are_several_boots() {
    let start = |tokens: &str| {
        format!(
            "(APIServer pid=1) INFO [api_server.py:1805] vLLM API server version 0.10.1\n\
             (APIServer pid=1) INFO [utils.py:326] non-default args: {{'model': 'm', 'max_model_len': 2048}}\n\
             (EngineCore_0 pid=2) INFO Initializing a V1 LLM engine (v0.10.1) with config: model='m', max_seq_len=2048\n\
             (EngineCore_0 pid=2) INFO [kv_cache_utils.py:849] GPU KV cache size: {tokens} tokens\n\
             (APIServer pid=1) INFO:     Application startup complete.\n"
        )
    };
    let log = read_text(&(start("1,024") + "INFO: something else\n" + &start("2,048"))).unwrap();
    let tokens: Vec<Option<u64>> = log.boots.iter().map(|b| b.tokens).collect();
    assert_eq!(tokens, [Some(1024), Some(2048)]);
    assert_eq!(log.boots[1].first_line, Some(7));
}

/// A banner of 0.18 with colours inside of Docker's JSON, and compose's prefix.
#[test]
fn containers_and_colours_do_not_hide_a_line() {
    let boot = one(
        "{\"log\":\"(APIServer pid=1) INFO 03-23 22:45:59 [utils.py:297]  ▄▄ ▄█ █     █     █ ▀▄▀ █  version 0.18.1rc1.dev27+g63f49b8bd\\n\",\"stream\":\"stderr\",\"time\":\"2026-03-23T22:45:59Z\"}\n\
         {\"log\":\"(APIServer pid=1) INFO 03-23 22:45:59 [utils.py:297]   █▄█▀ █     █     █     █  model   /models/AWQ/Qwen3.5-35B-A3B-AWQ\\n\"}\n\
         vllm-1  | 2026-03-23T22:46:00.1Z \u{1b}[1;36m(EngineCore pid=7)\u{1b}[0;0m INFO [gpu_worker.py:436] Available KV cache memory: 53.54 GiB\n\
         vllm-1  | WARNING fused_moe.py: config not found at E=128,N=768,device_name=NVIDIA_H100_80GB_HBM3.json\n",
    );
    assert_eq!(boot.version.as_deref(), Some("0.18.1rc1.dev27+g63f49b8bd"));
    assert_eq!(boot.model.as_deref(), Some("/models/AWQ/Qwen3.5-35B-A3B-AWQ"));
    assert_eq!(gib(boot.ranks[0].available_kv), "53.54");
    assert_eq!(boot.gpu.as_deref(), Some("NVIDIA H100 80GB HBM3"));
}

#[test]
fn a_command_line_in_the_log_gives_its_flags() {
    let boot = one(
        "+ exec vllm serve \"Qwen/Qwen3-32B\" --tensor-parallel-size 2 --max-model-len=32768 --enforce-eager --gpu-memory-utilization 0.85\n\
         INFO GPU KV cache size: 67,296 tokens\n",
    );
    assert_eq!(boot.model.as_deref(), Some("Qwen/Qwen3-32B"));
    assert_eq!(boot.flags["tensor_parallel_size"].count(), Some(2));
    assert_eq!(boot.flags["max_model_len"].count(), Some(32_768));
    assert_eq!(boot.flags["enforce_eager"].flag(), Some(true));
    assert_eq!(boot.utilization, Some(0.85));
}

#[test]
fn what_is_no_log_is_an_error_that_says_so() {
    for text in [
        "",
        "\n\n",
        "hello\nworld\n",
        "{\"a\": 1}\n",
        "GET /v1/completions 200\n",
        "CUDA out of memory. Tried to allocate 20.00 GiB\n",
        "blocks: 5, blocks: 6\n",
    ] {
        let e = read_text(text).unwrap_err();
        assert!(
            e.to_string().starts_with("test.log: none of its ") && !e.hints().is_empty(),
            "{text:?}: {e:?}"
        );
    }
}

#[test]
fn hostile_lines_neither_panic_nor_invent_figures() {
    for text in [
        "Available KV cache memory: GiB\n".to_owned(),
        "Available KV cache memory: 99999999999999999999999999 GiB\n".to_owned(),
        "GPU KV cache size: -5 tokens\n".to_owned(),
        "GPU KV cache size: 1,2,3,,4 tokens\n".to_owned(),
        "Maximum concurrency for  tokens per request: x\n".to_owned(),
        "Free memory on device (\n".to_owned(),
        "Free memory on device (1/\n".to_owned(),
        "non-default args: {{{{{{{{\n".to_owned(),
        format!("non-default args: {}\n", "{'a': ".repeat(5000)),
        format!("args: Namespace({}\n", "a=b,".repeat(50_000)),
        "Initializing a V1 LLM engine (v".to_owned(),
        "max seq len (18446744073709551616), KV cache is needed, which is larger than the available KV cache memory (".to_owned(),
        "KV Cache is allocated. #tokens: 18446744073709551615, K size: 9e99 GB, V size: GB".to_owned(),
        "CUDA0 KV buffer size = 99999999999999 MiB\n".repeat(3),
    ] {
        // Either nothing is recognised, or what is recognised has figures within their types.
        let _ = read_text(&text);
        let with_start = format!("INFO vLLM API server version 0.9.2\n{text}");
        let log = read_text(&with_start).unwrap();
        assert!(log.boots[0].flags.len() <= 1024);
        assert!(log.boots[0].tokens.is_none_or(|n| n < 1 << 53), "{text}");
    }
}

#[test]
fn only_the_last_starts_of_an_endless_file_are_kept() {
    let mut text = String::new();
    for i in 0..MAX_BOOTS + 3 {
        text += &format!("INFO vLLM API server version 0.9.2\nINFO GPU KV cache size: {i} tokens\n");
    }
    let log = read_text(&text).unwrap();
    assert!(log.boots.len() <= MAX_BOOTS + 1);
    assert_eq!(log.boots.last().unwrap().tokens, Some(MAX_BOOTS as u64 + 2));
}

#[test]
fn every_wording_names_where_it_was_read() {
    for wording in vllm::WORDINGS.iter().copied().flatten() {
        assert!(
            wording.phrase.len() >= 7 && wording.source.len() > 8,
            "{}",
            wording.phrase
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Lines made of the wordings themselves, cut and glued at random.
    #[test]
    fn any_mixture_of_known_phrases_is_read_without_a_panic(
        parts in proptest::collection::vec((any::<prop::sample::Index>(), "[-0-9.,() GiBx]{0,20}", any::<bool>()), 0..30)
    ) {
        let phrases: Vec<&str> = vllm::WORDINGS.iter().copied().flatten().map(|w| w.phrase).collect();
        let mut text = String::from("vLLM API server version 0.9.2\n");
        for (at, tail, ends) in parts {
            let phrase: &&str = at.get(&phrases);
            text += phrase;
            text += &tail;
            if ends {
                text.push('\n');
            }
        }
        let log = read_text(&text).unwrap();
        prop_assert!(!log.boots.is_empty());
    }
}

#[test]
fn release_0_19_says_in_one_sentence_what_it_allows_itself_and_what_the_next_will_take() {
    // Lines of a start of 0.19.1 on one of four A100 with 40 GB, 2026-06-25.
    let log = read_text(
        "(EngineCore pid=1) INFO 06-25 17:21:40 [core.py:105] Initializing a V1 LLM engine (v0.19.1) with config: model='Qwen/Qwen3-8B', max_seq_len=40960\n\
         (EngineCore pid=1) INFO 06-25 17:21:52 [gpu_model_runner.py:4820] Model loading took 15.27 GiB memory and 4.543456 seconds\n\
         (EngineCore pid=1) INFO 06-25 17:21:58 [gpu_model_runner.py:5955] Estimated CUDA graph memory: 2.35 GiB total\n\
         (EngineCore pid=1) INFO 06-25 17:21:58 [gpu_worker.py:436] Available KV cache memory: 19.36 GiB\n\
         (EngineCore pid=1) INFO 06-25 17:21:58 [gpu_worker.py:470] In v0.19, CUDA graph memory profiling will be enabled by default (VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=1), which more accurately accounts for CUDA graph memory during KV cache allocation. To try it now, set VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=1 and increase --gpu-memory-utilization from 0.9000 to 0.9596 to maintain the same effective KV cache size.\n\
         (EngineCore pid=1) INFO 06-25 17:21:58 [kv_cache_utils.py:1319] GPU KV cache size: 140,960 tokens\n",
    )
    .unwrap();
    let boot = &log.boots[0];
    assert_eq!(boot.utilization, Some(0.9));
    assert_eq!(boot.tokens, Some(140_960));
    assert_eq!(boot.ranks[0].graphs_estimate.unwrap().bytes, 2_523_293_286);
}

#[test]
fn a_log_without_flashinfer_keeps_that_line_as_evidence() {
    // Lines of a start of 0.9.2, 2026-06-10.
    let log = read_text(
        "INFO 06-10 10:57:31 [api_server.py:1395] vLLM API server version 0.9.2\n\
         WARNING 06-10 10:57:52 [topk_topp_sampler.py:59] FlashInfer is not available. Falling back to the PyTorch-native implementation of top-p & top-k sampling. For the best performance, please install FlashInfer.\n\
         INFO 06-10 10:58:13 [gpu_worker.py:232] Available KV cache memory: 18.69 GiB\n",
    )
    .unwrap();
    assert_eq!(log.boots[0].evidence_of("no_flashinfer").unwrap().line, 2);
}

#[test]
fn what_clients_send_is_no_start_of_a_server() {
    // A start, then a client who quotes another server's log, then a step that fails and shows the configuration again.
    let log = read_text(
        "(EngineCore pid=1) INFO 06-25 17:21:40 [core.py:105] Initializing a V1 LLM engine (v0.19.1) with config: model='Qwen/Qwen3-8B', max_seq_len=40960\n\
         (EngineCore pid=1) INFO 06-25 17:21:58 [gpu_worker.py:436] Available KV cache memory: 19.36 GiB\n\
         (EngineCore pid=1) INFO 06-25 17:21:58 [kv_cache_utils.py:1319] GPU KV cache size: 140,960 tokens\n\
         (APIServer pid=9) INFO:     Application startup complete.\n\
         (APIServer pid=9) INFO 06-25 18:00:01 [logger.py:43] Received request chatcmpl-1: prompt: 'Why is this? Initializing a V1 LLM engine (v0.9.0) with config: model=\\'x\\' ... Available KV cache memory: 1.00 GiB'\n\
         (APIServer pid=9) INFO:     10.0.0.1:3000 - \"GET /?vLLM API server version 0.1 HTTP/1.1\" 404 Not Found\n\
         (EngineCore pid=1) ERROR 06-25 18:00:02 [dump_input.py:72] Dumping input data for V1 LLM engine (v0.19.1) with config: model='Qwen/Qwen3-8B', max_seq_len=40960, \n\
         (EngineCore pid=1) ERROR 06-25 18:00:02 [core.py:780] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n",
    )
    .unwrap();
    assert_eq!((log.boots.len(), log.lines), (1, 8));
    let boot = &log.boots[0];
    assert_eq!((boot.tokens, &boot.refusal), (Some(140_960), &None));
    assert_eq!(gib(boot.ranks[0].available_kv), "19.36");
}

#[test]
fn servers_whose_lines_are_mixed_are_told_apart_and_workers_of_one_are_not() {
    let server = |name: &str, tokens: &str| {
        [
            format!(
                "{name}  | (EngineCore pid=1) INFO 06-25 17:21:40 [core.py:105] Initializing a V1 LLM engine (v0.19.1) with config: model='m/{name}', max_seq_len=40960"
            ),
            format!(
                "{name}  | (EngineCore pid=1) INFO 06-25 17:21:58 [gpu_worker.py:436] Available KV cache memory: 19.36 GiB"
            ),
            format!(
                "{name}  | (EngineCore pid=1) INFO 06-25 17:21:58 [kv_cache_utils.py:1319] GPU KV cache size: {tokens} tokens"
            ),
        ]
    };
    let (a, b) = (server("chat-1", "140,960"), server("embed-1", "9,600"));
    let mixed: String = a
        .iter()
        .zip(&b)
        .flat_map(|(a, b)| [a.as_str(), "\n", b, "\n"])
        .collect();
    let log = read_text(&mixed).unwrap();
    let told: Vec<_> = (log.boots.iter())
        .map(|boot| (boot.source.as_str(), boot.model.as_deref(), boot.tokens))
        .collect();
    assert_eq!(
        told,
        [
            ("chat-1", Some("m/chat-1"), Some(140_960)),
            ("embed-1", Some("m/embed-1"), Some(9600))
        ]
    );
    let node = "node-1  | (Worker_TP1 pid=4) INFO 06-25 17:21:57 [gpu_worker.py:436] Available KV cache memory: 18.00 GiB\n";
    let log = read_text(&format!("{}\n{node}{}\n{}\n", a[0], a[1], a[2])).unwrap();
    assert_eq!(log.boots.len(), 1);
    assert_eq!(gib(log.boots[0].smallest(|rank| rank.available_kv)), "18");
}
