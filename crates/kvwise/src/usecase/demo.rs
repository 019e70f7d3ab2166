//! `kvwise demo`: from the questions of [`kvwise_sim::demo`] to reports.

use kvwise_core::{Error, Result};
use kvwise_sim::demo::capacity::{CapacityQuestion, capacity};
use kvwise_sim::demo::fragmentation::{FragmentationQuestion, PAPER, Reservation, fragmentation};
use kvwise_sim::demo::sharing::{Scenario, sharing};

use crate::report::demo::{
    CapacityReport, CapacityRow, FragmentationReport, FragmentationRow, SharingReport, SharingRow,
};

/// Counts requests by reservation policy.
///
/// # Errors
/// If a size is 0 or contradicts another.
pub fn capacities(question: &CapacityQuestion) -> Result<CapacityReport> {
    let answer = capacity(question)?;
    let rows = answer.rows.iter().map(|row| CapacityRow {
        context_tokens: row.context_tokens,
        request_bytes: row.request_bytes,
        ideal_requests: row.ideal,
        reserve_max_requests: row.reserve_max,
        reserve_power_of_two_requests: row.reserve_power_of_two,
        paged_requests: row.paged,
        tutorial_unpaged_requests: row.tutorial_unpaged,
        tutorial_paged_requests: row.tutorial_paged,
    });
    Ok(CapacityReport {
        schema: "kvwise.demo.capacity/1",
        kv_memory_bytes: question.kv_memory_bytes,
        kv_bytes_per_token: question.kv_bytes_per_token,
        max_model_len: question.max_model_len,
        block_size: question.block_size,
        capacity_tokens: answer.capacity_tokens,
        capacity_blocks: answer.capacity_blocks,
        rows: rows.collect(),
    })
}

/// Runs the fragmentation experiment for all policies.
///
/// # Errors
/// If the experiment is impossible.
pub fn fragmentations(question: &FragmentationQuestion) -> Result<FragmentationReport> {
    let names = ["Orca (Max)", "Orca (Pow2)", "Orca (Oracle)", "vLLM"];
    let rows = Reservation::ALL
        .into_iter()
        .zip(names)
        .zip(PAPER)
        .map(|((reservation, policy), paper)| {
            let answer = fragmentation(question, reservation)?;
            Ok(FragmentationRow {
                policy,
                token_states_percent: answer.shares.token_states,
                reservation_percent: answer.shares.reservation,
                internal_percent: answer.shares.internal,
                external_percent: answer.shares.external,
                mean_running: answer.mean_running,
                preemptions: answer.preemptions,
                paper_token_states_percent: paper.token_states,
            })
        });
    Ok(FragmentationReport {
        schema: "kvwise.demo.fragmentation/1",
        pool_tokens: question.pool_tokens,
        max_model_len: question.max_model_len,
        block_size: question.block_size,
        input_mean_tokens: question.lengths.input_mean,
        output_mean_tokens: question.lengths.output_mean,
        sigma: question.lengths.sigma,
        steps: question.steps,
        seed: question.seed,
        rows: rows.collect::<Result<_>>()?,
    })
}

/// Runs sharing scenarios, each with its number of requests.
///
/// # Errors
/// If a scenario is impossible or its bytes leave 64 bits.
pub fn sharings(
    scenarios: &[(String, Scenario, u32)],
    block_size: u32,
    kv_bytes_per_token: u64,
) -> Result<SharingReport> {
    let rows = scenarios.iter().map(|(name, scenario, requests)| {
        let answer = sharing(*scenario, *requests, block_size)?;
        let bytes = |tokens: u64| {
            tokens
                .checked_mul(kv_bytes_per_token)
                .ok_or_else(|| Error::overflow("the KV memory in bytes"))
        };
        let saved = |with: u64, without: u64| 100.0 * (1.0 - with as f64 / without as f64);
        Ok(SharingRow {
            scenario: name.clone(),
            requests: answer.requests,
            without_bytes: bytes(answer.tokens_without_sharing)?,
            with_bytes: bytes(answer.tokens_with_sharing)?,
            saved_percent: saved(answer.tokens_with_sharing, answer.tokens_without_sharing),
            prompt_tokens: answer.prompt_tokens,
            computed_tokens: answer.computed_tokens,
            prefill_saved_percent: saved(answer.computed_tokens, answer.prompt_tokens),
            tutorial_saved_percent: saved(answer.trie_tokens, answer.trie_tokens_without_sharing),
        })
    });
    Ok(SharingReport {
        schema: "kvwise.demo.sharing/1",
        block_size,
        kv_bytes_per_token,
        rows: rows.collect::<Result<_>>()?,
    })
}
