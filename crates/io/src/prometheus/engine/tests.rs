use super::*;
use crate::prometheus::text::parse;

const VLLM: &str = include_str!("../../../testdata/vllm_0.32.0_metrics.txt");

fn snapshots(text: &str) -> Vec<Snapshot> {
    Vocabulary::default().snapshots(&parse(text).expect("a page"))
}

#[test]
fn a_real_vllm_page_is_understood() {
    let all = snapshots(VLLM);
    assert_eq!(all.len(), 1);
    let s = &all[0];
    assert_eq!(s.key.engine, EngineKind::Vllm);
    assert_eq!((s.key.model.as_str(), s.key.rank.as_str()), ("tiny", "0"));
    assert_eq!(s.gauges[USAGE], Some(0.0));
    assert_eq!(s.counters[PREEMPTIONS], Some(6.0));
    assert_eq!(s.counters[PREFIX_QUERIES], Some(9889.0));
    assert_eq!(s.counters[PREFIX_HITS], Some(5056.0));
    assert_eq!(s.capacity_tokens(), Some(2080.0));
    assert_eq!(s.config.get("num_gpu_blocks").map(String::as_str), Some("65"));
    let lifetimes = s.histograms[12].as_ref().expect("kv_block_lifetime_seconds");
    assert!((lifetimes.count - 158.0).abs() < 1e-9);
    assert!(
        lifetimes
            .buckets
            .last()
            .is_some_and(|b| (b.1 - 158.0).abs() < 1e-9)
    );
    // llama.cpp's decode_steps and SGLang's evicted_tokens are not vLLM's to publish
    assert!(s.missing().is_empty(), "{:?}", s.missing());
}

#[test]
fn cache_config_without_a_model_label_belongs_to_the_engine_of_its_rank() {
    // vLLM publishes cache_config_info with `engine` but without `model_name`
    let text = "vllm:cache_config_info{engine=\"0\",num_gpu_blocks=\"9\"} 1\n\
                vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 1\n";
    let all = snapshots(text);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].config.get("num_gpu_blocks").map(String::as_str), Some("9"));
}

#[test]
fn several_engines_and_models_stay_apart_and_missing_families_are_named() {
    let text = "vllm:num_requests_running{engine=\"0\",model_name=\"a\"} 1\n\
                vllm:num_requests_running{engine=\"1\",model_name=\"a\"} 2\n\
                vllm:num_requests_running{engine=\"0\",model_name=\"b\"} 3\n\
                llamacpp:requests_processing 4\n";
    let all = snapshots(text);
    let running: Vec<_> = all.iter().map(|s| s.gauges[RUNNING]).collect();
    assert_eq!(
        running,
        [Some(1.0), Some(2.0), Some(3.0), Some(4.0)].map(|v| v).to_vec()
    );
    assert!(all[0].missing().contains(&"usage_ratio"));
    assert!(all[0].missing().contains(&"preemptions"));
    assert!(
        !all[3].missing().contains(&"preemptions"),
        "llama.cpp never publishes it"
    );
}

/// A server b11549 after 24 requests with 4320 prompt tokens, of which its answers said that 2099 were reused.
const LLAMACPP: &str = "llamacpp:prompt_tokens_total 2221\nllamacpp:prompt_tokens_cached_total 2099\n\
    llamacpp:prompt_seconds_total 2.97179\nllamacpp:tokens_predicted_total 748\n\
    llamacpp:tokens_predicted_seconds_total 14.9351\nllamacpp:n_decode_total 196\nllamacpp:n_tokens_max 324\n\
    llamacpp:prompt_tokens_seconds 747.361\nllamacpp:predicted_tokens_seconds 48.4766\n\
    llamacpp:requests_processing 0\nllamacpp:requests_deferred 0\nllamacpp:n_busy_slots_per_decode 3.81633\n";

#[test]
fn prompt_tokens_of_llama_cpp_are_those_computed_and_those_reused() {
    let all = snapshots(LLAMACPP);
    let counters = all[0].counters;
    assert_eq!(
        [PROMPT_TOKENS, PREFIX_QUERIES, PREFIX_HITS, GENERATION_TOKENS].map(|i| counters[i]),
        [Some(4320.0), Some(4320.0), Some(2099.0), Some(748.0)]
    );
    assert_eq!(all[0].missing(), ["usage_ratio", "used_tokens"]);
    let before_2026 = snapshots("llamacpp:prompt_tokens_total 7\nllamacpp:kv_cache_usage_ratio 0.5\n");
    assert_eq!(before_2026[0].counters[PROMPT_TOKENS], Some(7.0));
    assert_eq!(before_2026[0].counters[PREFIX_QUERIES], None);
    assert_eq!(before_2026[0].gauges[USAGE], Some(0.5));
}

#[test]
fn the_newest_name_of_a_quantity_wins() {
    let text = "vllm:gpu_cache_usage_perc{engine=\"0\"} 0.9\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n\
                vllm:gpu_cache_usage_perc{engine=\"1\"} 0.25\n";
    let all = snapshots(text);
    assert_eq!(all[0].gauges[USAGE], Some(0.5));
    assert_eq!(all[1].gauges[USAGE], Some(0.25));
}

#[test]
fn sglang_ranks_of_one_scheduler_count_once_and_sources_of_cached_tokens_add_up() {
    let text = "sglang:num_running_reqs{model_name=\"m\",tp_rank=\"0\",dp_rank=\"0\"} 7\n\
                sglang:num_running_reqs{model_name=\"m\",tp_rank=\"1\",dp_rank=\"0\"} 7\n\
                sglang:max_total_num_tokens{model_name=\"m\",tp_rank=\"0\",dp_rank=\"0\"} 1000\n\
                sglang:prompt_tokens_total{model_name=\"m\"} 100\n\
                sglang:cached_tokens_total{model_name=\"m\",cache_source=\"device\"} 30\n\
                sglang:cached_tokens_total{model_name=\"m\",cache_source=\"host\"} 12\n";
    let all = snapshots(text);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].gauges[RUNNING], Some(7.0));
    assert_eq!(all[0].counters[PREFIX_QUERIES], Some(100.0));
    assert_eq!(all[0].counters[PREFIX_HITS], Some(42.0));
    assert_eq!(all[0].capacity_tokens(), Some(1000.0));
}

#[test]
fn values_that_are_no_numbers_are_left_out() {
    let all = snapshots(
        "vllm:kv_cache_usage_perc NaN\nvllm:num_requests_running +Inf\nvllm:num_preemptions_total 1\n",
    );
    assert_eq!(all[0].gauges, [None; NUM_GAUGES]);
    assert_eq!(all[0].counters[PREEMPTIONS], Some(1.0));
}
