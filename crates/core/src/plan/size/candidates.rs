//! Single changes worth trying, engine by engine, with what each costs.

use crate::engine::llamacpp::GgmlType;
use crate::engine::llamacpp::convert::Mix;
use crate::engine::vllm::KvDtype;
use crate::engine::{sglang, vllm};
use crate::plan::changed::{with_generic, with_llamacpp, with_sglang, with_vllm};
use crate::plan::request::{Engine, Generic, LlamaCpp, Request};

/// Flag, value, the changed request if the change means something, and what it costs.
type Candidate<'a> = (&'static str, String, Option<Request<'a>>, &'static str);

/// Single changes worth trying, with what each costs.
pub(super) fn candidates<'a>(request: &Request<'a>) -> Vec<Candidate<'a>> {
    let mut out = Vec::new();
    match &request.engine {
        Engine::Vllm(s) => of_vllm(request, s, &mut out),
        Engine::Sglang(s) => of_sglang(request, s, &mut out),
        Engine::LlamaCpp(engine) => of_llamacpp(request, engine, &mut out),
        Engine::Generic(s) => of_generic(request, s, &mut out),
    }
    out
}

/// Whether the checkpoint is quantised already.
fn quantised(request: &Request) -> bool {
    request
        .subject
        .model
        .is_some_and(|(_, config)| config.get("quantization_config").is_some_and(|q| !q.is_null()))
}

fn of_vllm<'a>(request: &Request<'a>, s: &vllm::Settings, out: &mut Vec<Candidate<'a>>) {
    let given_pool = s.kv_cache_memory_bytes.is_some();
    if s.kv_cache_dtype == KvDtype::Auto {
        out.push((
            "--kv-cache-dtype",
            "fp8".to_owned(),
            with_vllm(request, |s| s.kv_cache_dtype = KvDtype::Fp8),
            "8-bit keys and values: a small loss of accuracy",
        ));
    }
    if s.gpu_memory_utilization.is_none_or(|u| u < 0.95) && !given_pool {
        out.push((
            "--gpu-memory-utilization",
            "0.95".to_owned(),
            with_vllm(request, |s| s.gpu_memory_utilization = Some(0.95)),
            "less is left for CUDA graphs of old versions and for other processes",
        ));
    }
    if !s.enforce_eager && !given_pool {
        out.push((
            "--enforce-eager",
            String::new(),
            with_vllm(request, |s| s.enforce_eager = true),
            "slower steps: no CUDA graphs",
        ));
    }
    let sequences = request.load.concurrencies.first().copied().unwrap_or(1);
    if s.max_num_seqs.is_none_or(|n| n > sequences) {
        out.push((
            "--max-num-seqs",
            sequences.to_string(),
            with_vllm(request, |s| s.max_num_seqs = Some(sequences)),
            "further requests wait",
        ));
    }
    if s.max_num_batched_tokens.is_none_or(|n| n > 2048) {
        let tokens = 2048.max(sequences);
        out.push((
            "--max-num-batched-tokens",
            tokens.to_string(),
            with_vllm(request, |s| {
                s.max_num_batched_tokens = Some(tokens);
                s.max_num_seqs = s.max_num_seqs.map(|n| n.min(tokens));
            }),
            "prompts take more steps",
        ));
    }
    let towers = request.subject.model.is_some_and(|(model, _)| {
        model.outside.iter().any(|part| part.tower) && !s.leaves_out_towers(&model.architecture)
    });
    if towers {
        out.push((
            "--language-model-only",
            String::new(),
            with_vllm(request, |s| s.language_model_only = true),
            "no images, video or audio",
        ));
    }
    if s.quantization.is_none() && !quantised(request) {
        out.push((
            "--quantization",
            "fp8".to_owned(),
            with_vllm(request, |s| s.quantization = Some("fp8".to_owned())),
            "8-bit weights: a small loss of accuracy",
        ));
    }
    let tp = s.tensor_parallel_size.saturating_mul(2);
    out.push((
        "--tensor-parallel-size",
        tp.to_string(),
        with_vllm(request, |s| s.tensor_parallel_size = tp),
        "twice the GPUs",
    ));
    let pp = s.pipeline_parallel_size.saturating_mul(2);
    out.push((
        "--pipeline-parallel-size",
        pp.to_string(),
        with_vllm(request, |s| s.pipeline_parallel_size = pp),
        "twice the GPUs, and a request passes them one after the other",
    ));
}

fn of_sglang<'a>(request: &Request<'a>, s: &sglang::Settings, out: &mut Vec<Candidate<'a>>) {
    let measured = s.kv_cache_memory_bytes.is_none();
    if s.kv_cache_dtype == sglang::KvDtype::Auto {
        out.push((
            "--kv-cache-dtype",
            "fp8_e4m3".to_owned(),
            with_sglang(request, |s| s.kv_cache_dtype = sglang::KvDtype::Fp8E4m3),
            "8-bit keys and values: a small loss of accuracy",
        ));
    }
    if s.mem_fraction_static.is_none_or(|f| f < 0.93) && measured {
        out.push((
            "--mem-fraction-static",
            "0.93".to_owned(),
            with_sglang(request, |s| s.mem_fraction_static = Some(0.93)),
            "less is left for activations and graphs: long prompts may run out of memory",
        ));
    }
    if s.chunked_prefill_size
        .is_none_or(|c| !matches!(c, sglang::Chunk::Tokens(n) if n <= 2048))
        && s.mem_fraction_static.is_none()
        && measured
    {
        out.push((
            "--chunked-prefill-size",
            "2048".to_owned(),
            with_sglang(request, |s| {
                s.chunked_prefill_size = Some(sglang::Chunk::Tokens(2048));
            }),
            "prompts take more steps",
        ));
    }
    if !s.disable_cuda_graph && s.mem_fraction_static.is_none() && measured {
        out.push((
            "--disable-cuda-graph",
            String::new(),
            with_sglang(request, |s| s.disable_cuda_graph = true),
            "slower steps: no CUDA graphs",
        ));
    }
    if s.speculative.is_some() {
        out.push((
            "--speculative-algorithm",
            "(none)".to_owned(),
            with_sglang(request, |s| s.speculative = None),
            "one token a step: slower answers",
        ));
    }
    if s.quantization.is_none() && !quantised(request) {
        out.push((
            "--quantization",
            "fp8".to_owned(),
            with_sglang(request, |s| s.quantization = Some("fp8".to_owned())),
            "8-bit weights: a small loss of accuracy",
        ));
    }
    let (tp, pp) = (s.tp().saturating_mul(2), s.pp().saturating_mul(2));
    out.push((
        "--tensor-parallel-size",
        tp.to_string(),
        with_sglang(request, |s| s.tensor_parallel_size = tp),
        "twice the GPUs",
    ));
    out.push((
        "--pipeline-parallel-size",
        pp.to_string(),
        with_sglang(request, |s| s.pipeline_parallel_size = pp),
        "twice the GPUs, and a request passes them one after the other",
    ));
}

fn of_llamacpp<'a>(request: &Request<'a>, engine: &LlamaCpp, out: &mut Vec<Candidate<'a>>) {
    let s = &engine.settings;
    let q8 = GgmlType::by_name("q8_0");
    for (flag, now) in [
        ("--cache-type-k", s.cache_type_k),
        ("--cache-type-v", s.cache_type_v),
    ] {
        let Some(q8) = q8.filter(|q8| q8.row_bytes(1 << 10) < now.row_bytes(1 << 10)) else {
            continue;
        };
        // Values can be quantised with flash attention alone.
        if flag == "--cache-type-v" && !s.flash_attn {
            continue;
        }
        out.push((
            flag,
            "q8_0".to_owned(),
            with_llamacpp(request, |engine| {
                if flag == "--cache-type-k" {
                    engine.settings.cache_type_k = q8;
                } else {
                    engine.settings.cache_type_v = q8;
                }
            }),
            "8-bit keys or values: a small loss of accuracy",
        ));
    }
    if !s.flash_attn {
        out.push((
            "--flash-attn",
            "on".to_owned(),
            with_llamacpp(request, |engine| engine.settings.flash_attn = true),
            "nothing where the GPU has it",
        ));
    }
    if s.ubatch_size > 256 {
        out.push((
            "--ubatch-size",
            "256".to_owned(),
            with_llamacpp(request, |engine| engine.settings.ubatch_size = 256),
            "prompts are read more slowly",
        ));
    }
    if s.swa_full {
        out.push((
            "--swa-full",
            "(leave out)".to_owned(),
            with_llamacpp(request, |engine| engine.settings.swa_full = false),
            "windows keep no more than they attend to: some prefixes cannot be reused",
        ));
    }
    if engine.file.is_none() {
        let now = engine.mix.as_deref().unwrap_or("q4_k_m");
        let bits = Mix::by_name(now).map_or(0, |mix| mix.millibits);
        let smaller = ["q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k"]
            .into_iter()
            .find(|name| Mix::by_name(name).is_some_and(|mix| mix.millibits < bits));
        if let Some(name) = smaller {
            out.push((
                "--quantization",
                name.to_owned(),
                with_llamacpp(request, |engine| engine.mix = Some(name.to_owned())),
                "fewer bits a weight: a loss of accuracy",
            ));
        }
    }
    let gpus = s.gpus.saturating_mul(2);
    out.push((
        "--gpus",
        gpus.to_string(),
        with_llamacpp(request, |engine| {
            engine.settings.gpus = gpus;
            engine.settings.tensor_split.clear();
        }),
        "twice the GPUs, one after the other",
    ));
}

fn of_generic<'a>(request: &Request<'a>, s: &Generic, out: &mut Vec<Candidate<'a>>) {
    if s.kv_element_bytes.is_none_or(|bytes| bytes > 1) {
        out.push((
            "--kv-cache-dtype",
            "fp8".to_owned(),
            with_generic(request, |s| s.kv_element_bytes = Some(1)),
            "8-bit keys and values: a small loss of accuracy",
        ));
    }
    let tp = s.tensor_parallel_size.saturating_mul(2);
    out.push((
        "--tensor-parallel-size",
        tp.to_string(),
        with_generic(request, |s| s.tensor_parallel_size = tp),
        "twice the GPUs",
    ));
}
