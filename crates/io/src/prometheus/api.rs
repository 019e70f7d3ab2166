//! The same samples out of a Prometheus server's history, through its HTTP API.
//!
//! Instant queries with a range selector (`{...}[10m]`) return the stored samples with their own times, so that a
//! session made from history has exactly the scrapes that Prometheus made: no interpolation, no lookback.

use std::collections::BTreeMap;
use std::time::Duration;

use kvwise_core::{Error, Result};
use serde::Deserialize;

use super::scrape;

/// Most bytes of one answer.
const MAX_ANSWER_BYTES: u64 = 256 << 20;

/// Families that are asked for.
const SELECTOR: &str = r#"{__name__=~"(vllm|sglang|llamacpp):.*|process_start_time_seconds"}"#;

/// A Prometheus server (or anything with its HTTP API: Thanos, Mimir, `VictoriaMetrics`).
#[derive(Debug, Clone)]
pub struct PrometheusServer {
    agent: ureq::Agent,
    base: String,
}

/// One scrape of one target as Prometheus stored it: a page in the text format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredScrape {
    /// Value of the `instance` label.
    pub instance: String,
    /// When, in milliseconds since 1970.
    pub time_unix_ms: i64,
    /// The samples of that moment in the text format.
    pub page: String,
}

#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    result: Vec<Series>,
}

#[derive(Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
    #[serde(default)]
    values: Vec<(f64, String)>,
}

impl PrometheusServer {
    /// A server at `url`, which may end in a path prefix.
    ///
    /// # Errors
    /// If the URL cannot be used.
    pub fn new(url: &str, timeout: Duration) -> Result<Self> {
        let (base, path) = scrape::split_url(url)?;
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let prefix = path
            .trim_end_matches('/')
            .trim_end_matches("/api/v1")
            .trim_end_matches("/graph");
        Ok(Self {
            agent: scrape::agent(timeout),
            base: format!("{base}{prefix}"),
        })
    }

    /// Every stored scrape of engines' metrics in `(end - window, end]`, by time, then by instance.
    ///
    /// # Errors
    /// If the server cannot be reached, refuses the query, or answers something else.
    pub fn scrapes(&self, end_unix_s: f64, window: Duration) -> Result<Vec<StoredScrape>> {
        let query = format!("{SELECTOR}[{}ms]", window.as_millis().max(1));
        let url = format!(
            "{}/api/v1/query?time={end_unix_s:.3}&query={}",
            self.base,
            percent_encode(&query)
        );
        let body = scrape::get(&self.agent, &url, MAX_ANSWER_BYTES)?;
        parse_answer(&body).map_err(|e| e.at(&self.base))
    }
}

fn parse_answer(body: &[u8]) -> Result<Vec<StoredScrape>> {
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|e| Error::input(format!("not an answer of Prometheus' HTTP API: {e}")))?;
    if answer.status != "success" {
        let why = answer.error.unwrap_or_else(|| answer.status.clone());
        return Err(Error::io(format!("Prometheus refused the query: {why}")));
    }
    let mut pages: BTreeMap<(i64, String), String> = BTreeMap::new();
    for mut series in answer.data.map(|d| d.result).unwrap_or_default() {
        let name = series.metric.remove("__name__").unwrap_or_default();
        let instance = series.metric.remove("instance").unwrap_or_default();
        series.metric.remove("job");
        let labels: Vec<String> = series
            .metric
            .iter()
            .map(|(k, v)| {
                let v = v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                format!("{k}=\"{v}\"")
            })
            .collect();
        let labels = labels.join(",");
        for (time, value) in series.values {
            if !time.is_finite() {
                continue;
            }
            #[expect(
                clippy::cast_possible_truncation,
                reason = "milliseconds since 1970 fit in 64 bits"
            )]
            let key = ((time * 1000.0).round() as i64, instance.clone());
            let page = pages.entry(key).or_default();
            page.push_str(&name);
            page.push('{');
            page.push_str(&labels);
            page.push_str("} ");
            page.push_str(&value);
            page.push('\n');
        }
    }
    Ok(pages
        .into_iter()
        .map(|((time_unix_ms, instance), page)| StoredScrape {
            instance,
            time_unix_ms,
            page,
        })
        .collect())
}

fn percent_encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_scrapes_become_pages_by_time_and_instance() {
        let body = br#"{"status":"success","data":{"resultType":"matrix","result":[
            {"metric":{"__name__":"vllm:num_requests_running","instance":"a:1","job":"j","model_name":"m\"x"},
             "values":[[100.5,"1"],[101.5,"2"]]},
            {"metric":{"__name__":"vllm:num_requests_waiting","instance":"a:1","job":"j","model_name":"m\"x"},
             "values":[[100.5,"7"]]}]}}"#;
        let scrapes = parse_answer(body).expect("valid");
        assert_eq!(scrapes.len(), 2);
        assert_eq!(scrapes[0].time_unix_ms, 100_500);
        assert_eq!(
            scrapes[0].page,
            "vllm:num_requests_running{model_name=\"m\\\"x\"} 1\nvllm:num_requests_waiting{model_name=\"m\\\"x\"} 7\n"
        );
        assert_eq!(scrapes[1].time_unix_ms, 101_500);
    }

    #[test]
    fn refusals_and_foreign_answers_are_named() {
        let refused =
            parse_answer(br#"{"status":"error","errorType":"bad_data","error":"too many samples"}"#);
        assert!(
            refused
                .expect_err("must fail")
                .to_string()
                .contains("too many samples")
        );
        assert!(parse_answer(b"<html>").is_err());
    }
}
