//! Why predicted and actual differ: rules that each need evidence, in the log or in the numbers.

use kvwise_core::units::human_bytes;
use kvwise_io::log::{Boot, Cache, EngineKind};

use super::Case;
use crate::report::verify::{Cause, Row, Status, two_decimals};

/// Memory in use before the start that is worth a remark.
const OTHERS_BYTES: u64 = 1 << 30;
/// Weights that differ by less than this share need no explanation.
const WEIGHTS_PERCENT: f64 = 2.0;
/// An estimate of the graphs that is off by more than this is worth a remark.
const GRAPHS_BYTES: i64 = 1 << 29;

/// The likely causes of what differs, most telling first.
pub(super) fn causes(case: &Case, rows: &mut [Row]) -> Vec<Cause> {
    let mut causes = Vec::new();
    let boot = case.boot;
    let wrong = |name: &str| rows.iter().any(|r| r.name == name && r.status.is_wrong());
    weights(case, rows, &mut causes);
    if wrong("activation") || wrong("available_kv") {
        activation(case, &mut causes);
    }
    if let Some(non_torch) = boot.largest(|rank| rank.non_torch)
        && non_torch.bytes < 0
    {
        causes.push(Cause {
            term: "non_torch",
            cause: "a negative figure: memory outside of PyTorch's allocator (sleep mode, cumem, shared or released memory) was counted as PyTorch's".to_owned(),
            evidence: boot.evidence_of("sleep_mode").cloned(),
        });
    }
    graphs(boot, &mut causes);
    others(boot, &mut causes);
    if wrong("budget") {
        causes.push(Cause {
            term: "budget",
            cause: "the utilisation of the log is not the one that was planned with: --gpu-memory-utilization, or the version's default (0.90 until 0.24, 0.92 later)".to_owned(),
            evidence: None,
        });
    }
    communication(case, rows, &mut causes);
    pool(case, rows, &mut causes);
    ranks(boot, &mut causes);
    unexplained(case, rows, &mut causes);
    causes
}

fn weights(case: &Case, rows: &[Row], causes: &mut Vec<Cause>) {
    let boot = case.boot;
    let Some(row) = rows.iter().find(|r| r.name == "weights") else {
        return;
    };
    let (Some((predicted, ..)), Some((actual, ..))) = (row.predicted, row.actual) else {
        return;
    };
    if (actual - predicted).abs() * 100.0 <= predicted * WEIGHTS_PERCENT || !row.status.is_wrong() {
        return;
    }
    let drafter = boot.evidence_of("drafter");
    let method = boot.setting("quantization").and_then(kvwise_io::log::Value::text);
    let params = case.plan.model.params;
    let ranks = case.plan.gpu.count.max(1) as f64;
    let bits = if params > 0 {
        actual * ranks * 8.0 / params as f64
    } else {
        0.0
    };
    let planned_drafter = (case.plan.inputs)
        .get("speculative_config")
        .is_some_and(|config| !config.is_null());
    let (cause, evidence) = if actual > predicted && drafter.is_some() && !planned_drafter {
        (
            "the engine's figure includes a drafter for speculative decoding".to_owned(),
            drafter.cloned(),
        )
    } else if actual < predicted
        && let Some(offloaded) = boot.evidence_of("weights_offloaded")
    {
        (
            "a part of the weights stays on the host (--cpu-offload-gb), which a plan does not know"
                .to_owned(),
            Some(offloaded.clone()),
        )
    } else if actual < predicted * 0.8 {
        (
            format!(
                "the server holds {bits:.1} bits a parameter{}: its checkpoint is quantised otherwise than the planned one (--quantization, or name the quantised model)",
                method.map(|m| format!(" ({m})")).unwrap_or_default()
            ),
            None,
        )
    } else if actual > predicted * 1.2 {
        (
            format!(
                "the server holds {bits:.1} bits a parameter: a wider type, parts that are not quantised, or another checkpoint than the planned one"
            ),
            None,
        )
    } else {
        (
            "buffers, converted or padded weights, LoRA slots or a tower that is (not) loaded".to_owned(),
            None,
        )
    };
    causes.push(Cause {
        term: "weights",
        cause,
        evidence,
    });
}

fn activation(case: &Case, causes: &mut Vec<Cause>) {
    let boot = case.boot;
    let mut add = |cause: String, what: &str| {
        causes.push(Cause {
            term: "activation",
            cause,
            evidence: boot.evidence_of(what).cloned(),
        });
    };
    if boot.compile_cache == Some(Cache::Cold) {
        add(
            "the compile cache was cold: compiling raised the measured peak; a second start of the same server will have more KV memory (0.15 against 1.09 GiB in one deployment)".to_owned(),
            "cold_compile_cache",
        );
    }
    if boot.evidence_of("no_flashinfer").is_some() {
        add(
            "FlashInfer is not installed: this release's own sampler sorts all logits, which takes 39 bytes a logit and not 14 (the plan takes the official images, which have FlashInfer)".to_owned(),
            "no_flashinfer",
        );
    }
    if boot.evidence_of("encoder").is_some() {
        add(
            "the profiling step encoded images or videos: a plan takes the largest ones that the makers' files and --limit-mm-per-prompt and --mm-processor-kwargs allow".to_owned(),
            "encoder",
        );
    }
    if boot.evidence_of("encoder_skipped").is_some() {
        add(
            "the server does not profile its encoder (--skip-mm-profiling, or all limits are 0); with the same flag a plan does neither".to_owned(),
            "encoder_skipped",
        );
    }
    if boot.evidence_of("memory_grew").is_some() {
        add(
            "another process gave memory back while the engine profiled, so it counted what PyTorch had reserved".to_owned(),
            "memory_grew",
        );
    }
    if boot.evidence_of("mm_reservation").is_some() {
        add(
            "room for decoding images on the GPU was taken off afterwards (--mm-ipc-gpu-memory-gb)"
                .to_owned(),
            "mm_reservation",
        );
    }
    if boot.engine == Some(EngineKind::Vllm)
        && boot.setting("max_num_seqs").is_none()
        && case
            .plan
            .inputs
            .get("max_num_seqs")
            .is_none_or(serde_json::Value::is_null)
        && boot.flags.is_empty()
    {
        add(
            "the log does not show the flags: --max-num-seqs and --max-num-batched-tokens other than the defaults change the peak".to_owned(),
            "",
        );
    }
    if boot.setting("enable_lora").and_then(kvwise_io::log::Value::flag) == Some(true) {
        add("LoRA slots are allocated when the model is loaded".to_owned(), "");
    }
}

/// vLLM's own estimate of its graphs against what it captured.
fn graphs(boot: &Boot, causes: &mut Vec<Cause>) {
    let estimate = boot.largest(|rank| rank.graphs_estimate);
    let captured = boot.largest(|rank| rank.graphs);
    if let (Some(estimate), Some(captured)) = (estimate, captured)
        && (estimate.bytes - captured.bytes).abs() >= GRAPHS_BYTES
    {
        causes.push(Cause {
            term: "cuda_graphs",
            cause: format!(
                "the engine took {} off the budget for its graphs and captured {}: its own estimate is what the KV memory depends on",
                two_decimals(estimate.at_least_zero()),
                two_decimals(captured.at_least_zero())
            ),
            evidence: None,
        });
    }
}

/// SGLang's ranks had more free than planned: they talk over another link than was planned for.
fn communication(case: &Case, rows: &[Row], causes: &mut Vec<Cause>) {
    let error = rows
        .iter()
        .find(|row| row.name == "free_before_load" && row.status.is_wrong())
        .and_then(|row| row.error);
    let (Some(error), true) = (error, case.plan.gpu.count > 1) else {
        return;
    };
    causes.push(Cause {
        term: "free_before_load",
        cause: format!(
            "{} was free before loading than with communication buffers as over {}: --interconnect says how the GPUs talk",
            if error > 0.0 { "more" } else { "less" },
            if case.resolved.hardware().pcie_only { "PCIe" } else { "NVLink" }
        ),
        evidence: None,
    });
}

/// Memory that others held before the start.
fn others(boot: &Boot, causes: &mut Vec<Cause>) {
    if boot.cpu {
        return;
    }
    let used = boot
        .ranks
        .iter()
        .filter_map(|rank| Some(rank.total?.minus(rank.free_at_start?).at_least_zero()))
        .max()
        .unwrap_or(0);
    if used >= OTHERS_BYTES {
        causes.push(Cause {
            term: "gpu_memory",
            cause: format!(
                "{} were in use before the engine measured: another process on the GPU, or a desktop; vLLM's budget is a share of all memory, so the rest must still be free",
                human_bytes(used)
            ),
            evidence: None,
        });
    }
}

/// The same memory, but another number of blocks or tokens.
fn pool(case: &Case, rows: &[Row], causes: &mut Vec<Cause>) {
    let wrong = |name: &str| rows.iter().find(|r| r.name == name && r.status.is_wrong());
    let tokens = wrong("kv_tokens_of_logged_memory")
        .or_else(|| wrong("kv_tokens").filter(|row| row.basis == kvwise_core::plan::Basis::Exact));
    let Some(row) = tokens else { return };
    let (Some((predicted, ..)), Some((actual, ..))) = (row.predicted, row.actual) else {
        return;
    };
    let ratio = actual / predicted.max(1.0);
    let near = |x: f64| (ratio / x - 1.0).abs() < 0.03;
    let boot = case.boot;
    let cause = if near(2.0) {
        "twice the tokens: an 8-bit KV cache was planned as 16 bits (--kv-cache-dtype, or what the checkpoint says)".to_owned()
    } else if near(0.5) {
        "half the tokens: a 16-bit KV cache was planned as 8 bits (--kv-cache-dtype)".to_owned()
    } else if wrong("block_size").is_some() {
        "the block size is another one: attention backend, prefix caching, ranks and version decide it"
            .to_owned()
    } else if boot.evidence_of("padding_layers").is_some() {
        "layers of several kinds are grouped otherwise: prefix caching, speculative decoding or the version differ".to_owned()
    } else if boot.ranks.len() > 1 {
        "ranks hold different layers or memory: the smallest decides".to_owned()
    } else {
        "the layout of the cache is not as planned: check version, block size, attention backend and KV type"
            .to_owned()
    };
    causes.push(Cause {
        term: row.name,
        cause,
        evidence: boot.evidence_of("padding_layers").cloned(),
    });
}

/// Estimates that are off for no reason that the log shows.
fn unexplained(case: &Case, rows: &[Row], causes: &mut Vec<Cause>) {
    let outside = rows.iter().find(|row| {
        row.status == Status::Outside && !causes.iter().any(|c| c.term == row.name && c.evidence.is_some())
    });
    let Some(row) = outside else { return };
    if case.settings.is_none_or(|s| s.kv_cache_memory_bytes.is_some()) {
        return;
    }
    causes.push(Cause {
        term: row.name,
        cause: if case.resolved.correction().is_some() {
            "the server differs from the logs that the site calibration rests on; --save adds this one".to_owned()
        } else {
            "the estimate was fitted to other servers' logs, its sum better than its parts; --save makes later plans of this deployment start from this log".to_owned()
        },
        evidence: None,
    });
}

/// Workers that were left with different memory.
fn ranks(boot: &Boot, causes: &mut Vec<Cause>) {
    let (Some(least), Some(most)) = (
        boot.smallest(|rank| rank.available_kv),
        boot.largest(|rank| rank.available_kv),
    ) else {
        return;
    };
    let total = boot.largest(|rank| rank.total).map_or(i64::MAX, |t| t.bytes);
    if most.bytes - least.bytes > total / 100 {
        let worker = boot
            .ranks
            .iter()
            .find(|rank| rank.available_kv == Some(least))
            .map(|rank| rank.worker.clone())
            .unwrap_or_default();
        causes.push(Cause {
            term: "available_kv",
            cause: format!(
                "the ranks differ: {worker} has {}, another {}; every rank gets the blocks of the smallest",
                two_decimals(least.at_least_zero()),
                two_decimals(most.at_least_zero())
            ),
            evidence: None,
        });
    }
}
