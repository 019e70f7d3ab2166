//! How much of a trace a planned deployment's KV cache holds: tokens, and what one of them costs.

use kvwise_core::plan::plan;
use kvwise_core::{Error, Result};

use super::deployment::Deployment;

/// The KV cache of one replica of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvRoom {
    /// Model, hardware and engine, for people.
    pub name: String,
    /// Why the engine would not start, or why nothing is left for the cache; then `capacity_tokens` is 0.
    pub refused: Option<String>,
    /// Tokens, as the engine logs them.
    pub capacity_tokens: u64,
    /// Tokens of a block of the engine.
    pub block_size: u64,
    /// Blocks of the pool, the null block included.
    pub num_blocks: u64,
    /// Whether one kind of layer fills the pool, so that blocks of the pool are blocks of the prompt.
    pub one_group: bool,
    /// Bytes of a cached token on one GPU (the tightest). Under several groups of layers the pool's bytes over its
    /// tokens, because windows and states do not grow with every token.
    pub bytes_per_token: u64,
    /// Bytes of a cached token on all GPUs of the replica together: what a copy in host memory takes.
    pub bytes_per_token_total: u64,
    /// GPUs of the replica.
    pub gpus: u64,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Plans `deployment` and answers what its KV cache holds.
///
/// # Errors
/// If the deployment cannot be planned, or the model keeps no KV cache or none that is known.
pub fn kv_room(deployment: &Deployment) -> Result<KvRoom> {
    let resolved = deployment.resolve()?;
    let plan = plan(&resolved.request(false))?;
    let mut warnings = resolved.warnings.clone();
    let Some(kv) = &plan.kv_cache else {
        return Err(Error::unsupported(format!(
            "{}: no KV cache is known for this model, so nothing can be said in bytes",
            plan.model.name
        ))
        .hint("name a model of the catalogue or a config.json, or give --kv-bytes-per-token"));
    };
    let [tp, pp, dp] = [
        deployment.tensor_parallel_size,
        deployment.pipeline_parallel_size,
        deployment.data_parallel_size,
    ]
    .map(|n| n.unwrap_or(1).max(1));
    if dp > 1 {
        warnings.push(format!(
            "--data-parallel-size is {dp}: each replica has its own cache; the answer is for one that gets all of this traffic"
        ));
    }
    let overflow = || Error::overflow("the bytes of the KV pool");
    let tightest = kv.bytes_per_block.iter().copied().max().unwrap_or(0);
    let all_stages: u64 = kv
        .bytes_per_block
        .iter()
        .try_fold(0u64, |sum, &bytes| sum.checked_add(bytes))
        .ok_or_else(overflow)?;
    let nothing_left = kv.num_blocks < 2 || kv.capacity_tokens == 0;
    let refused = plan.feasibility.refused.clone().or_else(|| {
        nothing_left.then(|| "the weights and overhead leave no memory for the KV cache".to_owned())
    });
    let one_group = kv.groups.len() == 1;
    let bytes_per_token = if one_group || kv.capacity_tokens == 0 {
        kv.bytes_per_token
    } else {
        let pool = kv.num_blocks.checked_mul(tightest).ok_or_else(overflow)?;
        pool.div_ceil(kv.capacity_tokens)
    };
    // the other stages hold the same tokens in blocks of their own size; every rank of a stage has one
    let total = u128::from(bytes_per_token) * u128::from(all_stages) * u128::from(tp);
    let bytes_per_token_total =
        u64::try_from(total.div_ceil(u128::from(tightest.max(1)))).map_err(|_| overflow())?;
    let gpus = tp.checked_mul(pp).ok_or_else(overflow)?;
    Ok(KvRoom {
        name: format!(
            "{} on {gpus} x {}, {} {}",
            plan.model.name,
            plan.gpu.name,
            plan.engine.name,
            plan.engine.version.as_deref().unwrap_or_default()
        )
        .trim_end()
        .to_owned(),
        capacity_tokens: if refused.is_some() { 0 } else { kv.capacity_tokens },
        refused,
        block_size: kv.block_size,
        num_blocks: kv.num_blocks,
        one_group,
        bytes_per_token,
        bytes_per_token_total,
        gpus,
        warnings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama(tp: u64) -> Deployment {
        Deployment {
            model: Some("meta-llama/Llama-3.1-8B".to_owned()),
            gpu: Some("h100".to_owned()),
            tensor_parallel_size: Some(tp),
            ..Deployment::default()
        }
    }

    #[test]
    fn a_token_of_llama_8b_takes_128_kib_on_one_gpu_and_in_all() {
        let room = kv_room(&llama(1)).unwrap();
        assert_eq!(
            (room.bytes_per_token, room.bytes_per_token_total),
            (131_072, 131_072)
        );
        assert!(room.one_group && room.refused.is_none());
        // the engine's figure: blocks times their tokens
        assert_eq!(room.capacity_tokens, room.num_blocks * room.block_size);
    }

    #[test]
    fn two_ranks_halve_the_bytes_on_a_gpu_and_keep_their_sum() {
        let room = kv_room(&llama(2)).unwrap();
        assert_eq!(
            (room.bytes_per_token, room.bytes_per_token_total),
            (65_536, 131_072)
        );
        assert_eq!(room.gpus, 2);
    }

    #[test]
    fn a_model_that_does_not_fit_has_no_room_and_says_why() {
        let room = kv_room(&Deployment {
            model: Some("meta-llama/Llama-3.1-8B".to_owned()),
            gpu: Some("t4".to_owned()),
            ..Deployment::default()
        })
        .unwrap();
        assert_eq!(room.capacity_tokens, 0);
        assert!(room.refused.is_some(), "{room:?}");
        assert_eq!(
            room.bytes_per_token, 131_072,
            "what a token costs is known all the same"
        );
    }
}
