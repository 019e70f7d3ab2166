//! Traces in Mooncake's form, for examples that measure speed.

use kvwise_sim::trace::{IdMeaning, NewRequest, PromptIds, Trace, TraceBuilder};

/// The requests of a file, one JSON object a line.
///
/// # Errors
/// If the file cannot be read, or a line is no request.
pub fn read(path: &str) -> Result<Trace, Box<dyn std::error::Error>> {
    let mut builder = TraceBuilder::new(path, 512, IdMeaning::Prefix);
    for line in std::fs::read_to_string(path)?.lines() {
        let row: serde_json::Value = serde_json::from_str(line)?;
        let number = |name: &str| row.get(name).and_then(serde_json::Value::as_u64);
        let ids: Vec<u64> = row["hash_ids"]
            .as_array()
            .map(|a| a.iter().filter_map(serde_json::Value::as_u64).collect())
            .unwrap_or_default();
        builder.push(&NewRequest {
            arrival: number("timestamp").map(|ms| ms as f64 / 1000.0),
            input_len: number("input_length"),
            output_len: number("output_length"),
            prompt: PromptIds::Blocks(&ids),
            ..NewRequest::default()
        })?;
    }
    Ok(builder.finish())
}
