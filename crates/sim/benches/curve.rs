//! The one pass over a synthetic trace of conversations: `cargo bench -p kvwise-sim --bench curve`.

use divan::Bencher;
use kvwise_sim::curve::{Curve, Semantics, vllm_serial_run};
use kvwise_sim::trace::{IdMeaning, NewRequest, PromptIds, Trace, TraceBuilder};

fn main() {
    divan::main();
}

/// 500 conversations of 20 turns; each turn sends its history of 30 blocks a turn again.
fn conversations() -> Trace {
    let mut builder = TraceBuilder::new("bench", 64, IdMeaning::Prefix);
    let mut fresh = 0u64;
    let mut chats: Vec<Vec<u64>> = vec![Vec::new(); 500];
    for turn in 0..20 {
        for k in 0..chats.len() {
            // a fixed shuffle, so that neighbours do not follow each other
            let chat = &mut chats[(k * 211 + turn * 37) % 500];
            chat.extend(fresh..fresh + 30);
            fresh += 30;
            builder
                .push(&NewRequest {
                    prompt: PromptIds::Blocks(chat),
                    ..NewRequest::default()
                })
                .expect("valid");
        }
    }
    builder.finish()
}

#[divan::bench]
fn one_pass_prefix_lru(bencher: Bencher<'_, '_>) {
    let trace = conversations();
    let paths = trace.to_blocks(None).expect("blocks");
    bencher
        .counter(divan::counter::ItemsCount::new(paths.block_accesses()))
        .bench(|| Curve::of_paths(&paths, trace.input_lens(), |_| None, Semantics::PrefixLru));
}

#[divan::bench]
fn one_vllm_run_at_50000_blocks(bencher: Bencher<'_, '_>) {
    let trace = conversations();
    let paths = trace.to_blocks(None).expect("blocks");
    bencher
        .counter(divan::counter::ItemsCount::new(paths.block_accesses()))
        .bench(|| vllm_serial_run(&paths, trace.input_lens(), 50_000));
}
