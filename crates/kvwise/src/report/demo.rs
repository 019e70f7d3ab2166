//! The answers of `kvwise demo`.

use serde::Serialize;

use super::sheet::Sheet;

/// `kvwise demo capacity`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CapacityReport {
    /// Name and version of this structure.
    pub schema: &'static str,
    /// Bytes for K and V.
    pub kv_memory_bytes: u64,
    /// Bytes of K and V a token.
    pub kv_bytes_per_token: u64,
    /// What a server without paging reserves for a request.
    pub max_model_len: u64,
    /// Tokens per block.
    pub block_size: u64,
    /// Tokens the pool holds.
    pub capacity_tokens: u64,
    /// Blocks the pool holds.
    pub capacity_blocks: u64,
    /// One row a context length.
    pub rows: Vec<CapacityRow>,
}

/// Requests that fit at one context length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CapacityRow {
    /// Tokens of a request.
    pub context_tokens: u64,
    /// Bytes of a request.
    pub request_bytes: u64,
    /// Without any waste.
    pub ideal_requests: u64,
    /// Reserving `max_model_len` for each.
    pub reserve_max_requests: u64,
    /// Reserving the next power of two.
    pub reserve_power_of_two_requests: u64,
    /// In blocks, on demand.
    pub paged_requests: u64,
    /// The tutorial's constant: 50 % of the ideal.
    pub tutorial_unpaged_requests: u64,
    /// The tutorial's constant: 95 % of the ideal.
    pub tutorial_paged_requests: u64,
}

/// `kvwise demo fragmentation`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FragmentationReport {
    /// Name and version of this structure.
    pub schema: &'static str,
    /// Slots of the pool.
    pub pool_tokens: u64,
    /// Longest sequence.
    pub max_model_len: u64,
    /// Tokens per block.
    pub block_size: u64,
    /// Mean prompt.
    pub input_mean_tokens: f64,
    /// Mean output.
    pub output_mean_tokens: f64,
    /// Spread of both.
    pub sigma: f64,
    /// Steps looked at.
    pub steps: u64,
    /// Seed of the lengths.
    pub seed: u64,
    /// One row a policy.
    pub rows: Vec<FragmentationRow>,
}

/// Where the slots are under one policy, in percent of the pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FragmentationRow {
    /// Name as in the paper.
    pub policy: &'static str,
    /// Slots with K and V.
    pub token_states_percent: f64,
    /// Slots that will be used.
    pub reservation_percent: f64,
    /// Reserved slots that will never be used.
    pub internal_percent: f64,
    /// Other slots.
    pub external_percent: f64,
    /// Requests running, on average.
    pub mean_running: f64,
    /// Requests that started over.
    pub preemptions: u64,
    /// The paper's share of slots with K and V.
    pub paper_token_states_percent: f64,
}

/// `kvwise demo sharing`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SharingReport {
    /// Name and version of this structure.
    pub schema: &'static str,
    /// Tokens per block.
    pub block_size: u32,
    /// Bytes of K and V a token.
    pub kv_bytes_per_token: u64,
    /// One row a scenario.
    pub rows: Vec<SharingRow>,
}

/// What sharing saves in one scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SharingRow {
    /// What the requests have in common.
    pub scenario: String,
    /// How many.
    pub requests: u32,
    /// Bytes without sharing, whole blocks.
    pub without_bytes: u64,
    /// Bytes with sharing, whole blocks.
    pub with_bytes: u64,
    /// Saved memory in percent.
    pub saved_percent: f64,
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Prompt tokens that are computed.
    pub computed_tokens: u64,
    /// Prompt tokens not computed, in percent.
    pub prefill_saved_percent: f64,
    /// Saved memory in percent if single tokens were shared and nothing computed again.
    pub tutorial_saved_percent: f64,
}

impl CapacityReport {
    /// The report as a table.
    pub fn sheet(&self) -> Sheet {
        let mut sheet = Sheet::new(
            format!(
                "{} tokens ({} blocks of {}) in {} of KV memory, {} bytes a token",
                self.capacity_tokens,
                self.capacity_blocks,
                self.block_size,
                gib(self.kv_memory_bytes),
                self.kv_bytes_per_token
            ),
            &[
                ("context", true),
                ("KV a request", true),
                ("no waste", true),
                ("reserve max", true),
                ("reserve 2^n", true),
                ("paged", true),
                ("tutorial, unpaged", true),
                ("tutorial, paged", true),
            ],
        );
        for row in &self.rows {
            sheet.row(vec![
                row.context_tokens.to_string(),
                gib(row.request_bytes),
                row.ideal_requests.to_string(),
                row.reserve_max_requests.to_string(),
                row.reserve_power_of_two_requests.to_string(),
                row.paged_requests.to_string(),
                row.tutorial_unpaged_requests.to_string(),
                row.tutorial_paged_requests.to_string(),
            ]);
        }
        sheet.note(format!(
            "Requests that fit. Reserve max: {} tokens for everybody; reserve 2^n: the next power of two of the \
             length; paged: blocks on demand, only the last one partly empty.",
            self.max_model_len
        ));
        sheet.note(
            "Tutorial columns: the fixed 50 % and 95 % that tutorials use; what paging gains really depends on the \
             lengths.",
        );
        sheet
    }
}

impl FragmentationReport {
    /// The report as a table.
    pub fn sheet(&self) -> Sheet {
        let mut sheet = Sheet::new(
            format!(
                "Where {} KV slots are on a saturated server (mean prompt {}, mean output {}, at most {} tokens)",
                self.pool_tokens, self.input_mean_tokens, self.output_mean_tokens, self.max_model_len
            ),
            &[
                ("policy", false),
                ("token states %", true),
                ("reservation %", true),
                ("internal %", true),
                ("external %", true),
                ("running", true),
                ("preemptions", true),
                ("paper: token states %", true),
            ],
        );
        for row in &self.rows {
            let percent = |share: f64| format!("{share:.1}");
            sheet.row(vec![
                row.policy.to_owned(),
                percent(row.token_states_percent),
                percent(row.reservation_percent),
                percent(row.internal_percent),
                percent(row.external_percent),
                percent(row.mean_running),
                row.preemptions.to_string(),
                percent(row.paper_token_states_percent),
            ]);
        }
        sheet.note(
            "Token states hold K and V; reservation will be used later by its request; internal never will; external \
             is the rest: rounding of chunks, chunks too small for the next request, free blocks.",
        );
        sheet.note(
            "Orca reserves one chunk from a buddy allocator: the longest sequence (Max), prompt + next power of two of \
             the output (Pow2), exactly what is used (Oracle). vLLM takes blocks on demand.",
        );
        sheet.note(
            "Paper: Kwon et al., SOSP 2023 (arXiv 2309.06180), figure 2, measured with real ShareGPT lengths below \
             saturation; here lengths are log-normal, so the shares come close but are not equal.",
        );
        sheet
    }
}

impl SharingReport {
    /// The report as a table.
    pub fn sheet(&self) -> Sheet {
        let mut sheet = Sheet::new(
            format!(
                "What shared prefixes save, in blocks of {} tokens of {} bytes",
                self.block_size, self.kv_bytes_per_token
            ),
            &[
                ("scenario", false),
                ("requests", true),
                ("without sharing", true),
                ("with sharing", true),
                ("memory saved %", true),
                ("prompt tokens", true),
                ("computed", true),
                ("prefill saved %", true),
                ("token trie: saved %", true),
            ],
        );
        for row in &self.rows {
            sheet.row(vec![
                row.scenario.clone(),
                row.requests.to_string(),
                gib(row.without_bytes),
                gib(row.with_bytes),
                format!("{:.1}", row.saved_percent),
                row.prompt_tokens.to_string(),
                row.computed_tokens.to_string(),
                format!("{:.1}", row.prefill_saved_percent),
                format!("{:.1}", row.tutorial_saved_percent),
            ]);
        }
        sheet.note(
            "All requests held at once. Engines share whole blocks and always compute a prompt's last token; the last \
             column is the tutorial's trie, which shares single tokens.",
        );
        sheet
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64)
}
