//! The requests of a recording as a trace: lengths, arrivals and block hashes; no text and no token.
//!
//! One JSON object a line in the `tokens` form: `id`, `arrival` (scheduler steps before it came: the step clock of
//! `replay`), `timestamp` (milliseconds since the first arrival: the time clock), `input_len`, `output_len`,
//! `hash_ids`, `priority`. A hash id stands for one full block of `hash_block` tokens together with everything before
//! it; ids are small numbers given in the order of first appearance. The tokens behind the last full block of a prompt
//! belong to no other request: they get an id of their own.
//!
//! What a replay cannot know from this: blocks that a request filled while it generated are shared only with requests
//! whose prompts repeat them; their ids are in `output_hash_ids`, for readers that use them.

use kvwise_core::{Error, Result};
use rusqlite::Connection;
use rustc_hash::FxHashMap;
use serde::Serialize;

use super::store::sql;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TraceRequest {
    /// `r` and a number, in order of arrival.
    pub id: String,
    /// Scheduler steps before it came.
    pub arrival: i64,
    /// Milliseconds since the first arrival.
    pub timestamp: i64,
    /// Prompt tokens.
    pub input_len: i64,
    /// Generated tokens.
    pub output_len: i64,
    /// One for each block of the prompt; the last may stand for less than a block.
    pub hash_ids: Vec<u64>,
    /// One for each further full block, of which the first may begin in the prompt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub output_hash_ids: Vec<u64>,
    /// vLLM's priority.
    #[serde(skip_serializing_if = "is_zero")]
    pub priority: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde wants")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// The trace of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// By arrival.
    pub requests: Vec<TraceRequest>,
    /// Tokens of one hash.
    pub hash_block_tokens: i64,
    /// Requests left out because they had not finished, or had no hashes.
    pub left_out: u64,
}

/// Makes the trace of a recording.
///
/// # Errors
/// If no request with block hashes was recorded, or two processes used different block sizes.
pub fn read(db: &Connection) -> Result<Trace> {
    let mut statement = db
        .prepare(
            "SELECT arrival_us, arrival_step, prompt_tokens, output_tokens, priority, hash_block_tokens, hash_ids \
             FROM request ORDER BY arrival_us, process_id, request",
        )
        .map_err(sql)?;
    let mut rows = statement.query([]).map_err(sql)?;
    let mut trace = Trace {
        requests: Vec::new(),
        hash_block_tokens: 0,
        left_out: 0,
    };
    let mut numbers: FxHashMap<u64, u64> = FxHashMap::default();
    let mut next = 0_u64;
    let mut first_us = None;
    while let Some(r) = rows.next().map_err(sql)? {
        let arrival_us: i64 = r.get(0).map_err(sql)?;
        let prompt: i64 = r.get(2).map_err(sql)?;
        let (output, block): (Option<i64>, Option<i64>) = (r.get(3).map_err(sql)?, r.get(5).map_err(sql)?);
        let hashes: Option<String> = r.get(6).map_err(sql)?;
        let (Some(output), Some(block), Some(hashes)) = (output, block.filter(|b| *b > 0), hashes) else {
            trace.left_out += 1;
            continue;
        };
        if trace.hash_block_tokens != 0 && trace.hash_block_tokens != block {
            return Err(Error::unsupported(format!(
                "the recording has requests hashed in blocks of {} and of {block} tokens; one trace cannot hold both",
                trace.hash_block_tokens
            )));
        }
        trace.hash_block_tokens = block;
        let hashes: Vec<u64> = serde_json::from_str(&hashes)
            .map_err(|e| Error::input(format!("session.sqlite: request: hash_ids is not a list: {e}")))?;
        let mut id_of = |hash: u64| {
            *numbers.entry(hash).or_insert_with(|| {
                next += 1;
                next - 1
            })
        };
        let full = usize::try_from(prompt / block).unwrap_or(0);
        let mut ids: Vec<u64> = hashes.iter().take(full).map(|h| id_of(*h)).collect();
        let output_ids: Vec<u64> = hashes.iter().skip(full).map(|h| id_of(*h)).collect();
        // the tail of the prompt, and blocks of which the recording has no hash (caching off), belong to nobody else
        let wanted = usize::try_from((prompt + block - 1) / block).unwrap_or(0);
        while ids.len() < wanted {
            ids.push(next);
            next += 1;
        }
        let first = *first_us.get_or_insert(arrival_us);
        trace.requests.push(TraceRequest {
            id: format!("r{}", trace.requests.len()),
            arrival: r.get(1).map_err(sql)?,
            timestamp: (arrival_us - first) / 1000,
            input_len: prompt,
            output_len: output,
            hash_ids: ids,
            output_hash_ids: output_ids,
            priority: r.get(4).map_err(sql)?,
        });
    }
    if trace.requests.is_empty() {
        return Err(
            Error::input("the recording has no finished request with block hashes")
                .hint("traces need the probe: record with `kvwise run -o DIR -- COMMAND`, prefix caching on"),
        );
    }
    Ok(trace)
}

/// The trace as JSON lines.
///
/// # Errors
/// Never in practice: the structures are plain.
pub fn to_jsonl(trace: &Trace) -> Result<String> {
    let mut out = String::new();
    for request in &trace.requests {
        let line = serde_json::to_string(request).map_err(|e| Error::io(format!("trace: {e}")))?;
        out.push_str(&line);
        out.push('\n');
    }
    Ok(out)
}
