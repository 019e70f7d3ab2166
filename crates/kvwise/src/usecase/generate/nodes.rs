//! Servers of several nodes: how many, and what each is told.
//!
//! vLLM 0.32.0 (`engine/arg_utils.py`, `create_engine_config`): `--nnodes` must divide all ranks, data-parallel ones included;
//! each node takes as many whole replicas, or as even a share of one, as it has ranks; rank 0 alone serves HTTP, the others run
//! `--headless`. Under Ray (`v1/engine/utils.py`, `create_dp_placement_groups`) each node takes whole data-parallel replicas, as
//! many as the head. SGLang 0.5.23 (`server_args.py`) divides tensor- and pipeline-parallel ranks by `--nnodes` in the same way.

use kvwise_core::plan::Plan;
use kvwise_core::{Error, Result};

use super::super::deployment::Deployment;
use crate::report::generate::{Argument, Executor, Nodes};

/// The fewest nodes that hold the GPUs, with equal numbers on each; `None` if one does.
///
/// # Errors
/// If no number of nodes divides the ranks as the engine wants them.
pub fn nodes(
    deployment: &Deployment,
    plan: &Plan,
    gpus_per_node: u64,
    executor: Executor,
) -> Result<Option<Nodes>> {
    let gpus = plan.gpu.count;
    let engine = plan.engine.name;
    let ray = executor == Executor::Ray;
    if ray && engine != "vllm" {
        return Err(Error::input(format!(
            "--distributed-executor-backend ray is a way of vLLM, and the engine is {engine}"
        ))
        .hint("leave it out"));
    }
    if gpus <= gpus_per_node {
        if ray {
            return Err(Error::input(format!(
                "--distributed-executor-backend ray is for several machines, and {gpus} GPUs are on one"
            ))
            .hint("leave it out, or give --gpus-per-node if a machine has fewer"));
        }
        return Ok(None);
    }
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
    if !ray && !version_has("--nnodes") {
        return Err(Error::unsupported(format!(
            "{engine} {} has no --nnodes: {gpus} GPUs on nodes of {gpus_per_node} need a Ray cluster",
            plan.engine.version.as_deref().unwrap_or_default()
        ))
        .hint("add --distributed-executor-backend ray")
        .hint("or leave out --engine-version, or give --gpus-per-node if a node has more GPUs"));
    }
    let dp = if engine == "vllm" {
        deployment.data_parallel_size.unwrap_or(1)
    } else {
        1
    };
    let replica = gpus / dp.max(1);
    // Whole replicas on a node, or whole nodes for a replica; under Ray a replica of several is on one node.
    let even = |nodes: &u64| {
        let each = gpus / nodes;
        gpus.is_multiple_of(*nodes)
            && each <= gpus_per_node
            && (each.is_multiple_of(replica) || (!ray || dp == 1) && replica.is_multiple_of(each))
    };
    let least = gpus.div_ceil(gpus_per_node);
    let Some(count) = (least..=gpus).find(even) else {
        let error = Error::unsupported(format!(
            "{gpus} GPUs cannot be divided evenly between nodes of {gpus_per_node}"
        ));
        return Err(if ray && dp > 1 {
            error.hint("under Ray a data-parallel replica is on one machine: leave out --distributed-executor-backend")
        } else {
            error
        });
    };
    Ok(Some(Nodes {
        count,
        gpus_each: gpus / count,
        executor,
    }))
}

/// The flags that are the same on all nodes.
pub fn arguments(deployment: &Deployment, plan: &Plan, nodes: &Nodes) -> Vec<Argument> {
    let argument = |flag: &str, value: String, why: String| Argument {
        flag: flag.to_owned(),
        values: vec![value],
        why,
    };
    if nodes.executor == Executor::Own {
        return vec![argument(
            "--nnodes",
            nodes.count.to_string(),
            format!(
                "{} GPUs on each of so many nodes; start the script on every one",
                nodes.gpus_each
            ),
        )];
    }
    let mut out = vec![argument(
        "--distributed-executor-backend",
        "ray".to_owned(),
        format!(
            "Ray places the ranks on {} nodes of {} GPUs, as was asked for",
            nodes.count, nodes.gpus_each
        ),
    )];
    let dp = deployment.data_parallel_size.unwrap_or(1);
    if dp > 1 {
        let replica = (plan.gpu.count / dp).max(1);
        out.push(argument(
            "--data-parallel-backend",
            "ray".to_owned(),
            "Ray starts the data-parallel ranks of all nodes, too".to_owned(),
        ));
        out.push(argument(
            "--data-parallel-size-local",
            (nodes.gpus_each / replica).to_string(),
            "data-parallel ranks of one node".to_owned(),
        ));
    }
    out
}
