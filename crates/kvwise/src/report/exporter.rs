//! Derived metrics as a page in Prometheus' text format (0.0.4).

use std::fmt::Write;
use std::ops::Deref;

use kvwise_io::prometheus::engine::{
    EngineKey, GENERATION_TOKENS, PREEMPTIONS, PREFIX_HITS, PREFIX_QUERIES, PROMPT_TOKENS,
};

use crate::usecase::exporter::Server;
use crate::usecase::watch::EngineState;

/// A family and its samples; samples of one family must stand together.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    samples: String,
}

/// Families in the page's order.
struct Page(Vec<Family>);

impl Page {
    fn sample(
        &mut self,
        name: &'static str,
        kind: &'static str,
        help: &'static str,
        labels: &str,
        value: Option<f64>,
    ) {
        let Some(value) = value.filter(|v| v.is_finite()) else {
            return;
        };
        let index = self.0.iter().position(|f| f.name == name).unwrap_or_else(|| {
            self.0.push(Family {
                name,
                kind,
                help,
                samples: String::new(),
            });
            self.0.len() - 1
        });
        let _ = writeln!(self.0[index].samples, "{name}{{{labels}}} {value}");
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, labels: &str, value: Option<f64>) {
        self.sample(name, "gauge", help, labels, value);
    }

    fn counter(&mut self, name: &'static str, help: &'static str, labels: &str, value: Option<f64>) {
        self.sample(name, "counter", help, labels, value);
    }

    fn text(self) -> String {
        let mut text = String::new();
        for family in self.0 {
            let (name, help, kind) = (family.name, family.help, family.kind);
            let _ = write!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{}",
                family.samples
            );
        }
        text
    }
}

/// A label's value: backslash, quote and line end are escaped.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// The page about these servers.
pub fn page<S: Deref<Target = Server>>(servers: impl Iterator<Item = S>) -> String {
    let mut page = Page(Vec::new());
    for server in servers {
        let labels = format!("server=\"{}\"", escaped(&server.url));
        let up = if server.is_up { 1.0 } else { 0.0 };
        page.gauge(
            "kvwise_server_up",
            "Whether the last scrape of the server brought its metrics",
            &labels,
            (server.scrapes > 0).then_some(up),
        );
        page.counter(
            "kvwise_scrapes_total",
            "Scrapes of the server that were tried",
            &labels,
            Some(server.scrapes as f64),
        );
        page.counter(
            "kvwise_scrape_failures_total",
            "Scrapes of the server that failed",
            &labels,
            Some(server.failures as f64),
        );
        page.gauge(
            "kvwise_scrape_seconds",
            "How long the last scrape of the server took",
            &labels,
            (server.scrapes > 0).then_some(server.last_scrape_s),
        );
        // figures of a server that is down are old: nothing is said instead
        if server.is_up {
            for (key, engine) in &server.engines {
                engine_samples(&mut page, &engine_labels(&labels, key), engine);
            }
        }
    }
    page.text()
}

fn engine_labels(server: &str, key: &EngineKey) -> String {
    format!(
        "{server},engine=\"{}\",model_name=\"{}\",rank=\"{}\"",
        key.engine.name(),
        escaped(&key.model),
        escaped(&key.rank)
    )
}

fn engine_samples(page: &mut Page, labels: &str, engine: &EngineState) {
    let now = engine.now();
    page.gauge(
        "kvwise_kv_usage_ratio",
        "Share of the KV pool that requests hold",
        labels,
        now.usage,
    );
    page.gauge(
        "kvwise_running_requests",
        "Requests in the batch",
        labels,
        now.running,
    );
    page.gauge(
        "kvwise_waiting_requests",
        "Requests in the queue",
        labels,
        now.waiting,
    );
    page.gauge(
        "kvwise_kv_capacity_tokens",
        "Tokens that the KV pool holds",
        labels,
        engine.capacity_tokens,
    );
    for (window, seconds) in [("1m", 60.0), ("5m", 300.0)] {
        let labels = format!("{labels},window=\"{window}\"");
        let peak = engine.peak_usage(seconds);
        page.gauge(
            "kvwise_kv_usage_peak_ratio",
            "Highest share of the KV pool that requests held in the window",
            &labels,
            peak,
        );
        page.gauge(
            "kvwise_kv_never_held_tokens",
            "Tokens of the KV pool that no request held in the window; they serve as prefix cache only",
            &labels,
            peak.and_then(|p| Some((1.0 - p).max(0.0) * engine.capacity_tokens?)),
        );
        page.gauge(
            "kvwise_prefix_hit_ratio",
            "Share of the looked-up prompt tokens that were found cached in the window",
            &labels,
            engine.hit_rate_over(seconds),
        );
    }
    for (name, help, counter) in [
        (
            "kvwise_preemptions_total",
            "Requests thrown out of the batch for want of KV blocks; goes on over restarts of the server",
            PREEMPTIONS,
        ),
        (
            "kvwise_prefix_query_tokens_total",
            "Prompt tokens looked up in the prefix cache; goes on over restarts of the server",
            PREFIX_QUERIES,
        ),
        (
            "kvwise_prefix_hit_tokens_total",
            "Prompt tokens found in the prefix cache; goes on over restarts of the server",
            PREFIX_HITS,
        ),
        (
            "kvwise_prompt_tokens_total",
            "Prompt tokens processed; goes on over restarts of the server",
            PROMPT_TOKENS,
        ),
        (
            "kvwise_generation_tokens_total",
            "Tokens generated; goes on over restarts of the server",
            GENERATION_TOKENS,
        ),
    ] {
        page.counter(name, help, labels, now.totals.get(counter).copied().flatten());
    }
    page.counter(
        "kvwise_restarts_total",
        "Restarts of the server that were noticed",
        labels,
        Some(engine.restarts as f64),
    );
    for (name, help, histogram) in [
        (
            "kvwise_time_to_first_token_seconds",
            "Quantile of the time to the first token over the last minute",
            "ttft_s",
        ),
        (
            "kvwise_inter_token_latency_seconds",
            "Quantile of the time between tokens over the last minute",
            "itl_s",
        ),
        (
            "kvwise_queue_seconds",
            "Quantile of the time in the queue over the last minute",
            "queue_s",
        ),
    ] {
        for (text, q) in [("0.5", 0.5), ("0.99", 0.99)] {
            let labels = format!("{labels},quantile=\"{text}\"");
            page.gauge(name, help, &labels, engine.quantile(histogram, q));
        }
    }
    for (rule, found) in engine.live_rules() {
        page.gauge(
            "kvwise_finding",
            "Whether the rule finds something wrong now",
            &format!("{labels},rule=\"{rule}\""),
            Some(if found.is_some() { 1.0 } else { 0.0 }),
        );
    }
}

#[cfg(test)]
mod tests {
    use kvwise_io::prometheus::text;

    use super::*;

    #[test]
    fn a_page_of_nobody_is_empty_and_a_down_server_says_only_that() {
        assert_eq!(page(std::iter::empty::<Box<Server>>()), "");
        let server = Box::new(Server {
            url: "http://a\"b\\c".to_owned(),
            scrapes: 3,
            failures: 3,
            ..Server::default()
        });
        let page = page(std::iter::once(server));
        let parsed = text::parse(&page).unwrap();
        assert_eq!(parsed.samples.len(), 4);
        let up = &parsed.samples[0];
        assert_eq!((up.name, up.value), ("kvwise_server_up", 0.0));
        assert_eq!(parsed.label(up, "server").unwrap(), "http://a\"b\\c");
    }
}
