//! Lines about requests. They are most of a log, and some quote what clients sent, which may be another server's log.

use std::sync::LazyLock;

use memchr::memmem::Finder;

/// What lines about requests contain, and no line of a start does.
const PHRASES: [&str; 13] = [
    // uvicorn's access log, in front of all engines' APIs
    " HTTP/1.",
    // vLLM: entrypoints/logger.py, v1/metrics/loggers.py
    "Received request ",
    "Generated response ",
    "Avg prompt throughput: ",
    // vLLM: logging_utils/dump_input.py writes the engine's configuration and requests once more when a step fails
    "Dumping input data for ",
    "Dumping scheduler output for ",
    // SGLang: managers/request_metrics_exporter.py, tokenizer_manager.py, scheduler's statistics
    "Receive: obj=",
    "Finish: obj=",
    "Prefill batch",
    "Decode batch",
    // llama.cpp: tools/server
    "log_server_r: ",
    "slot update_slots: ",
    "slot print_timing: ",
];

static FINDERS: LazyLock<[Finder<'static>; 13]> = LazyLock::new(|| PHRASES.map(Finder::new));

/// Whether a line, as it stands in the file, is about requests and says nothing of a start.
pub fn is_traffic(raw: &[u8]) -> bool {
    FINDERS.iter().any(|finder| finder.find(raw).is_some())
}

#[cfg(test)]
mod tests {
    use super::is_traffic;

    #[test]
    fn lines_of_requests_are_told_from_lines_of_a_start() {
        for line in [
            r#"(APIServer pid=1) INFO:     10.0.0.1:30000 - "POST /v1/chat/completions HTTP/1.1" 200 OK"#,
            r#"{"log":"INFO:     10.0.0.1 - \"GET /health HTTP/1.1\" 200 OK\n"}"#,
            "INFO [logger.py:43] Received request cmpl-1: prompt: 'Available KV cache memory: 1.00 GiB'",
            "INFO [loggers.py:257] Engine 000: Avg prompt throughput: 12.3 tokens/s",
            "ERROR [dump_input.py:72] Dumping input data for V1 LLM engine (v0.31.0) with config: model='x'",
            "[2026-09-12 00:22:48 TP0] Decode batch. #running-req: 1",
        ] {
            assert!(is_traffic(line.as_bytes()), "{line}");
        }
        for line in [
            "INFO [gpu_worker.py:436] Available KV cache memory: 19.36 GiB",
            "INFO:     Uvicorn running on http://0.0.0.0:8000 (Press CTRL+C to quit)",
            "",
        ] {
            assert!(!is_traffic(line.as_bytes()), "{line}");
        }
    }
}
