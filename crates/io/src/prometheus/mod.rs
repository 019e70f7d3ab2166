//! Prometheus metrics of inference servers: text format, typed families, scraping.
//!
//! - [`text`]: the text exposition format, borrowed and allocation-light. Own code, because the libraries at hand
//!   drop names with a colon (`vllm:num_requests_running`), which is how every engine here names its metrics.
//! - [`histogram`]: cumulative histograms, differences between two scrapes, quantiles.
//! - [`engine`]: what one engine says about itself in one scrape, in one vocabulary for vLLM, SGLang and llama.cpp.
//! - [`scrape`]: one page over HTTP, with every limit that a hostile or broken server needs.
//! - [`api`]: the same samples out of a Prometheus server's history.

pub mod api;
pub mod engine;
pub mod histogram;
pub mod scrape;
pub mod text;
