//! Servers of several nodes: how many, and what each is told.
//!
//! vLLM 0.32.0 (`engine/arg_utils.py`, `create_engine_config`): `--nnodes` must divide all ranks, data-parallel ones included;
//! each node takes as many whole replicas, or as even a share of one, as it has ranks; rank 0 alone serves HTTP, the others run
//! `--headless`. SGLang 0.5.23 (`server_args.py`) divides tensor- and pipeline-parallel ranks by `--nnodes` in the same way.

use kvwise_core::plan::Plan;
use kvwise_core::{Error, Result};

use super::super::deployment::Deployment;
use crate::report::generate::{Argument, Nodes};

/// Port of the head at which the ranks find each other; SGLang's examples use it.
const SGLANG_PORT: u16 = 20_000;

/// The fewest nodes that hold the GPUs, with equal numbers on each; `None` if one does.
///
/// # Errors
/// If no number of nodes divides the ranks as the engine wants them.
pub fn nodes(deployment: &Deployment, plan: &Plan, gpus_per_node: u64) -> Result<Option<Nodes>> {
    let gpus = plan.gpu.count;
    if gpus <= gpus_per_node {
        return Ok(None);
    }
    let engine = plan.engine.name;
    if engine == "llamacpp" {
        return Err(Error::unsupported(format!(
            "llama.cpp's server uses the GPUs of one machine, and {gpus} are more than the {gpus_per_node} of a node"
        ))
        .hint("give --gpus-per-node if a machine has more"));
    }
    let version_has = |flag: &str| {
        super::table(engine)
            .get(flag)
            .is_some_and(|f| super::table(engine).has(f, plan.engine.version.as_deref().unwrap_or_default()))
    };
    if !version_has("--nnodes") {
        return Err(Error::unsupported(format!(
            "{engine} {} has no --nnodes: {gpus} GPUs on nodes of {gpus_per_node} need a Ray cluster, which is not generated",
            plan.engine.version.as_deref().unwrap_or_default()
        ))
        .hint("leave out --engine-version, or give --gpus-per-node if a node has more GPUs"));
    }
    let dp = if engine == "vllm" {
        deployment.data_parallel_size.unwrap_or(1)
    } else {
        1
    };
    let replica = gpus / dp.max(1);
    // Whole replicas on a node, or whole nodes for a replica.
    let even = |nodes: &u64| {
        let each = gpus / nodes;
        gpus.is_multiple_of(*nodes)
            && each <= gpus_per_node
            && (each.is_multiple_of(replica) || replica.is_multiple_of(each))
    };
    let least = gpus.div_ceil(gpus_per_node);
    let Some(count) = (least..=gpus).find(even) else {
        return Err(Error::unsupported(format!(
            "{gpus} GPUs cannot be divided evenly between nodes of {gpus_per_node}"
        )));
    };
    Ok(Some(Nodes {
        count,
        gpus_each: gpus / count,
    }))
}

/// The flag that is the same on all nodes.
pub fn argument(nodes: &Nodes) -> Argument {
    Argument {
        flag: "--nnodes".to_owned(),
        values: vec![nodes.count.to_string()],
        why: format!(
            "{} GPUs on each of so many nodes; start the script on every one",
            nodes.gpus_each
        ),
    }
}

/// What a node is told besides, as it stands in a script: its rank and where the head is.
pub fn own_words(engine: &str) -> String {
    match engine {
        "sglang" => {
            format!("--node-rank \"$NODE_RANK\" --dist-init-addr \"$HEAD_ADDRESS:{SGLANG_PORT}\"")
        }
        _ => "--node-rank \"$NODE_RANK\" --master-addr \"$HEAD_ADDRESS\"".to_owned(),
    }
}
