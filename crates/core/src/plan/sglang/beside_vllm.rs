//! What vLLM would make of the same GPU, beside SGLang's derivation.

use crate::engine::{sglang, vllm};
use crate::plan::evaluation::Evaluation;
use crate::plan::ledger::Step;
use crate::plan::request::Request;
use crate::units::{grouped, human_bytes};

/// The same deployment by vLLM's rules, as steps of the derivation. Where vLLM refuses it, that is all there is to say.
pub(super) fn beside_vllm(
    evaluation: &mut Evaluation,
    request: &Request,
    settings: &sglang::Settings,
    reserve: u64,
) {
    let as_vllm = vllm::Settings {
        tensor_parallel_size: settings.attention_tp(),
        data_parallel_size: settings.attention_dp(),
        pipeline_parallel_size: settings.pp(),
        enable_expert_parallel: settings.expert_parallel,
        dtype: settings.dtype,
        quantization: settings.quantization.clone(),
        kv_cache_dtype: match settings.kv_cache_dtype {
            sglang::KvDtype::Auto => vllm::KvDtype::Auto,
            sglang::KvDtype::Bfloat16 => vllm::KvDtype::Bfloat16,
            sglang::KvDtype::Fp8E4m3 => vllm::KvDtype::Fp8,
            sglang::KvDtype::Fp8E5m2 => vllm::KvDtype::Fp8E5m2,
            sglang::KvDtype::Mxfp8 | sglang::KvDtype::Fp4MxBlock16 => {
                evaluation.steps.add(|| {
                    Step::new(
                        "vLLM on the same GPU",
                        format!("vLLM has no {} KV cache", settings.kv_cache_dtype.name()),
                        "not planned",
                    )
                    .of("vLLM 0.32.0, as --engine vllm plans it")
                });
                return;
            }
            sglang::KvDtype::Nvfp4 => vllm::KvDtype::Nvfp4,
        },
        language_model_only: settings.language_model_only,
        ..vllm::Settings::default()
    };
    let source = "vLLM 0.32.0, as --engine vllm plans it";
    let other = match crate::plan::vllm::evaluate(request, &as_vllm) {
        Ok(other) => other,
        Err(error) => {
            evaluation
                .steps
                .add(|| Step::new("vLLM on the same GPU", error.to_string(), "not planned").of(source));
            return;
        }
    };
    let tokens = |e: &Evaluation| e.kv_cache.as_ref().map_or(0, |kv| kv.capacity_tokens);
    let (ours, theirs) = (tokens(evaluation), tokens(&other));
    evaluation.steps.add(|| {
        Step::new(
            "vLLM on the same GPU",
            format!(
                "{} of {} - {} weights - {} measured for activations, graphs and context",
                human_bytes(other.budget_bytes),
                human_bytes(other.gpu_bytes),
                human_bytes(other.weights.bytes),
                human_bytes(other.overhead_bytes())
            ),
            other.refused.clone().unwrap_or_else(|| {
                format!(
                    "{} of KV cache, {} tokens",
                    human_bytes(other.available_bytes),
                    grouped(theirs)
                )
            }),
        )
        .of(source)
    });
    if other.refused.is_some() || evaluation.refused.is_some() {
        return;
    }
    let outside = other.gpu_bytes - other.budget_bytes.min(other.gpu_bytes);
    evaluation.steps.add(|| {
        Step::new(
            "difference",
            format!(
                "SGLang keeps {} free by rule, vLLM {} ({} outside of its budget and what it measures){}",
                human_bytes(reserve),
                human_bytes(outside.saturating_add(other.overhead_bytes())),
                human_bytes(outside),
                if evaluation.kv_cache.as_ref().is_some_and(|kv| kv.groups.len() > 1) {
                    "; vLLM's tokens count requests of the full length, SGLang's are slots of the full pool"
                } else {
                    ""
                }
            ),
            in_tokens(i128::from(ours) - i128::from(theirs)),
        )
    });
    parts(evaluation, &other);
}

/// How many tokens more or fewer SGLang holds.
fn in_tokens(more: i128) -> String {
    format!(
        "SGLang holds {} tokens {}",
        grouped(u64::try_from(more.unsigned_abs()).unwrap_or(u64::MAX)),
        if more >= 0 { "more" } else { "fewer" }
    )
}

/// Which part of the difference is memory, and which part is what the engines make of the same memory.
fn parts(evaluation: &mut Evaluation, other: &Evaluation) {
    let (Some(kv), Some(others)) = (&evaluation.kv_cache, &other.kv_cache) else {
        return;
    };
    let (ours, theirs) = (kv.capacity_tokens, others.capacity_tokens);
    let (here, there) = (evaluation.available_bytes, other.available_bytes);
    if here == 0 || ours == 0 {
        return;
    }
    let by_memory = (i128::from(here) - i128::from(there)) * i128::from(ours) / i128::from(here);
    let rest = i128::from(ours) - i128::from(theirs) - by_memory;
    let has = |kind: &str| kv.groups.iter().any(|group| group.kind.starts_with(kind));
    let mut reasons = Vec::new();
    if kv.bytes_per_token != others.bytes_per_token {
        reasons.push(format!(
            "a token takes {} in SGLang and {} in vLLM",
            human_bytes(kv.bytes_per_token),
            human_bytes(others.bytes_per_token)
        ));
    }
    if has("sliding") {
        reasons.push(
            "SGLang's windows have a fixed share of the full pool's slots (--swa-full-tokens-ratio), vLLM's take what requests need"
                .to_owned(),
        );
    }
    if has("state") {
        reasons.push(
            "SGLang gives recurrent states a fixed share of the memory (--mamba-full-memory-ratio), vLLM a request's out of the \
             same blocks"
                .to_owned(),
        );
    }
    if reasons.is_empty() {
        reasons.push("whole blocks and pages".to_owned());
    }
    let how = format!(
        "{} of pools instead of {}, at {} a token",
        human_bytes(here),
        human_bytes(there),
        human_bytes(here / ours)
    );
    evaluation
        .steps
        .add(|| Step::new("of it by memory", how, in_tokens(by_memory)));
    evaluation.steps.add(|| {
        Step::new(
            "of it by what the memory holds",
            reasons.join("; "),
            in_tokens(rest),
        )
    });
}
