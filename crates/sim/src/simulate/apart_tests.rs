//! Laws of prefill and decode on different engines, and of tiers behind the pool.

use proptest::prelude::*;

use super::tests::{requests, scheduler, step_model, trace_of};
use super::*;
use crate::cost::StepModel;
use crate::sched::sglang::step::{Side, StepConfig};
use crate::trace::Trace;

const BLOCK_BYTES: u64 = 2 << 20;

fn speed(bytes_per_s: f64) -> LinkSpeed {
    LinkSpeed {
        bytes_per_s,
        latency_s: 1e-4,
    }
}

fn apart(model: &StepModel, sizes: (u32, u32), blocks: (u32, u32), bytes_per_s: f64) -> Deployment<'_> {
    let clock = StepClock::Model(model);
    Deployment {
        replicas: sizes.1,
        disaggregation: Some(Disaggregation {
            engine: EngineConfig::Vllm(scheduler(blocks.0)),
            clock,
            host: HostTimes::VLLM,
            replicas: sizes.0,
            ranks: 1,
            transfer: Transfer {
                bytes_per_block: BLOCK_BYTES,
                speed: speed(bytes_per_s),
                handoff_s: 0.001,
            },
        }),
        ..Deployment::new(EngineConfig::Vllm(scheduler(blocks.1)), clock)
    }
}

/// SGLang's engines apart, with so many tokens on each side.
fn sglang_apart(
    model: &StepModel,
    sizes: (u32, u32),
    tokens: (usize, usize),
    page: usize,
    bytes_per_s: f64,
) -> Deployment<'_> {
    let clock = StepClock::Model(model);
    let engine = |tokens, side| {
        EngineConfig::Sglang(StepConfig {
            page_size: page,
            max_running: 4,
            max_context_tokens: 2048,
            chunked_prefill_tokens: Some(128),
            side,
            ..StepConfig::new(tokens)
        })
    };
    let decode = Side::Decode {
        reserved_tokens: 64,
        extra_rows: 3,
    };
    Deployment {
        replicas: sizes.1,
        disaggregation: Some(Disaggregation {
            engine: engine(tokens.0, Side::Prefill),
            clock,
            host: HostTimes::SGLANG,
            replicas: sizes.0,
            ranks: 1,
            transfer: Transfer {
                bytes_per_block: BLOCK_BYTES / 16 * page as u64,
                speed: speed(bytes_per_s),
                handoff_s: 0.001,
            },
        }),
        ..Deployment::new(engine(tokens.1, decode), clock)
    }
}

fn tier(name: &str, capacity_blocks: u32, bytes_per_s: f64, policy: TierPolicy) -> TierConfig {
    TierConfig {
        name: name.to_owned(),
        capacity_blocks,
        bytes_per_block: BLOCK_BYTES,
        read: speed(bytes_per_s),
        write: speed(bytes_per_s),
        policy,
    }
}

fn simulated(trace: &Trace, deployment: &Deployment<'_>, arrivals: Arrivals) -> Run {
    run(trace, deployment, arrivals, ()).unwrap().0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_request_goes_through_both_sides_once_however_small_the_pools(
        requests in requests(), prefill in 1_u32..4, decode in 1_u32..4, p_blocks in 24_u32..60, d_blocks in 24_u32..60,
        slow in any::<bool>(), closed in any::<bool>(), host in 0_u32..80,
    ) {
        let trace = trace_of(&requests);
        let model = step_model("h100_sxm");
        let mut deployment = apart(&model, (prefill, decode), (p_blocks, d_blocks), if slow { 1e8 } else { 5e10 });
        if host > 0 {
            deployment.tiers.push(tier("host", host, 2e9, TierPolicy::Lru));
        }
        let arrivals = if closed { Arrivals::Closed { concurrency: 6 } } else { Arrivals::Trace { speed: 4.0 } };
        let result = simulated(&trace, &deployment, arrivals);
        for (i, r) in result.records.iter().enumerate() {
            if r.rejected {
                continue;
            }
            prop_assert_eq!(r.output_tokens, trace.output_len(i).max(1), "request {} {:?}", i, r);
            prop_assert!(
                r.arrival_s <= r.admitted_s
                    && r.admitted_s < r.prefilled_s
                    && r.prefilled_s < r.kv_arrived_s
                    && r.kv_arrived_s < r.first_token_s
                    && r.first_token_s <= r.finished_s,
                "{:?}", r
            );
            prop_assert!(r.engine < prefill);
        }
        // Prompts of at most 18 blocks and 60 more tokens fit into 24 blocks.
        prop_assert!(result.records.iter().all(|r| !r.rejected));
        prop_assert_eq!(result.transfers.requests, trace.len() as u64);
        let engines = f64::from(prefill + decode);
        let accounted = result.busy.total_s() + result.host_s + result.idle_s;
        prop_assert!((accounted - engines * result.end_s).abs() < 1e-6 * (1.0 + engines * result.end_s));
    }

    #[test]
    fn sglang_serves_every_request_on_both_sides_once_however_small_the_pools(
        requests in requests(), prefill in 1_u32..4, decode in 1_u32..4, p_tokens in 500_usize..900,
        d_tokens in 500_usize..900, page in 0_usize..3, slow in any::<bool>(), closed in any::<bool>(),
    ) {
        let trace = trace_of(&requests);
        let model = step_model("h100_sxm");
        let page = [1, 4, 16][page];
        let rate = if slow { 1e8 } else { 5e10 };
        let deployment = sglang_apart(&model, (prefill, decode), (p_tokens, d_tokens), page, rate);
        let arrivals = if closed { Arrivals::Closed { concurrency: 6 } } else { Arrivals::Trace { speed: 4.0 } };
        let result = simulated(&trace, &deployment, arrivals);
        let mut pages = 0;
        for (i, r) in result.records.iter().enumerate() {
            // Prompts of at most 18 blocks of 16, 60 more tokens and what is kept free fit into 500.
            prop_assert!(!r.rejected, "request {} {:?}", i, r);
            prop_assert_eq!(r.output_tokens, trace.output_len(i).max(1), "request {} {:?}", i, r);
            prop_assert!(
                r.arrival_s + 0.001 <= r.admitted_s
                    && r.admitted_s < r.prefilled_s
                    && r.prefilled_s < r.kv_arrived_s
                    && r.kv_arrived_s <= r.first_token_s
                    && r.first_token_s <= r.finished_s,
                "{:?}", r
            );
            prop_assert!(r.engine < prefill);
            pages += u64::from(r.input_tokens).div_ceil(page as u64);
        }
        // The decode side keeps no prefixes: every page of every prompt moves once.
        prop_assert_eq!(result.transfers.requests, trace.len() as u64);
        prop_assert_eq!(result.transfers.blocks, pages);
        let engines = f64::from(prefill + decode);
        let accounted = result.busy.total_s() + result.host_s + result.idle_s;
        prop_assert!((accounted - engines * result.end_s).abs() < 1e-6 * (1.0 + engines * result.end_s));
    }

    #[test]
    fn a_request_alone_is_never_later_over_a_faster_link(requests in requests(), factor in 1.0_f64..100.0) {
        let trace = trace_of(&requests);
        let model = step_model("h100_sxm");
        let closed = Arrivals::Closed { concurrency: 1 };
        let slow = simulated(&trace, &apart(&model, (1, 1), (4096, 4096), 1e9), closed);
        let fast = simulated(&trace, &apart(&model, (1, 1), (4096, 4096), 1e9 * factor), closed);
        for (s, f) in slow.records.iter().zip(&fast.records) {
            prop_assert!(f.kv_arrived_s - f.prefilled_s <= s.kv_arrived_s - s.prefilled_s + 1e-9);
            prop_assert!(f.first_token_s <= s.first_token_s + 1e-9 && f.finished_s <= s.finished_s + 1e-9);
        }
        // The decode side has earlier prompts in its own cache: only the rest is read.
        prop_assert_eq!(slow.transfers.blocks, fast.transfers.blocks);
    }

    #[test]
    fn tiers_serve_every_request_once_whatever_their_sizes_and_speeds(
        requests in requests(), pool in 24_u32..48, host in 1_u32..80, disk in 0_u32..200, slow in any::<bool>(),
        arc in any::<bool>(), closed in any::<bool>(),
    ) {
        let trace = trace_of(&requests);
        let model = step_model("h100_sxm");
        let policy = if arc { TierPolicy::Arc } else { TierPolicy::Lru };
        let mut tiers = vec![tier("host", host, if slow { 2e8 } else { 5e10 }, policy)];
        if disk > 0 {
            tiers.push(tier("disk", disk, 1e9, TierPolicy::Lru));
        }
        let deployment = Deployment {
            tiers,
            ..Deployment::new(EngineConfig::Vllm(scheduler(pool)), StepClock::Model(&model))
        };
        let arrivals = if closed { Arrivals::Closed { concurrency: 6 } } else { Arrivals::Trace { speed: 4.0 } };
        let result = simulated(&trace, &deployment, arrivals);
        for (i, r) in result.records.iter().enumerate() {
            prop_assert!(!r.rejected);
            prop_assert_eq!(r.output_tokens, trace.output_len(i).max(1));
            prop_assert!(r.arrival_s <= r.admitted_s && r.admitted_s < r.first_token_s, "{:?}", r);
            if r.preemptions == 0 {
                prop_assert!(r.hit_tokens + r.loaded_tokens <= r.input_tokens);
            }
        }
        let loaded: u64 = result.records.iter().map(|r| u64::from(r.loaded_tokens)).sum();
        let hits: u64 = result.tiers.iter().map(|t| t.hit_tokens).sum();
        prop_assert_eq!(loaded, hits);
        prop_assert!((result.busy.total_s() + result.host_s + result.idle_s - result.end_s).abs() < 1e-6 * (1.0 + result.end_s));
    }

    /// The naive twin of a host tier without limit: a pool without limit.
    #[test]
    fn pool_and_endless_host_together_find_what_an_endless_pool_finds(requests in requests(), pool in 24_u32..40) {
        let trace = trace_of(&requests);
        let model = step_model("h100_sxm");
        let closed = Arrivals::Closed { concurrency: 1 };
        let of = |blocks: u32, tiers: Vec<TierConfig>| {
            let deployment = Deployment {
                tiers,
                ..Deployment::new(EngineConfig::Vllm(scheduler(blocks)), StepClock::Model(&model))
            };
            simulated(&trace, &deployment, closed)
        };
        let endless = of(8192, Vec::new());
        let tiered = of(pool, vec![tier("host", 8192, 1e12, TierPolicy::Lru)]);
        for (e, t) in endless.records.iter().zip(&tiered.records) {
            // The connector may also bring the last block of a prompt, whose last token is then computed again.
            let found = (t.hit_tokens + t.loaded_tokens).min((t.input_tokens - 1) / 16 * 16);
            prop_assert_eq!(e.hit_tokens, found);
        }
    }
}

#[test]
fn a_disk_behind_a_small_host_keeps_what_the_host_gave_up() {
    // Eight prefixes of 128 tokens in turn, four times: the pool and the host hold two or three of them.
    let mut builder = crate::trace::TraceBuilder::new("test", 16, crate::trace::IdMeaning::Prefix);
    for i in 0..32_u64 {
        let mut ids: Vec<u64> = (0..8).map(|b| 1000 * (i % 8) + b).collect();
        ids.push(100_000 + i);
        builder
            .push(&crate::trace::NewRequest {
                arrival: Some(i as f64),
                input_len: Some(144),
                output_len: Some(4),
                prompt: crate::trace::PromptIds::Blocks(&ids),
                ..crate::trace::NewRequest::default()
            })
            .unwrap();
    }
    let trace = builder.finish();
    let model = step_model("h100_sxm");
    let of = |tiers: Vec<TierConfig>| {
        let deployment = Deployment {
            tiers,
            ..Deployment::new(EngineConfig::Vllm(scheduler(26)), StepClock::Model(&model))
        };
        simulated(&trace, &deployment, Arrivals::Trace { speed: 1.0 })
    };
    let host = tier("host", 24, 5e10, TierPolicy::Lru);
    let disk = tier("disk", 4096, 1e10, TierPolicy::Lru);
    let (none, one, two) = (of(Vec::new()), of(vec![host.clone()]), of(vec![host, disk]));
    let hits = |r: &Run| {
        r.records
            .iter()
            .map(|r| u64::from(r.hit_tokens + r.loaded_tokens))
            .sum::<u64>()
    };
    assert_eq!((hits(&none), hits(&one)), (0, 0));
    // From the second round on all eight blocks of each prefix.
    assert_eq!(hits(&two), 24 * 128);
    assert_eq!((two.tiers[0].hit_tokens, two.tiers[1].hit_tokens), (0, 24 * 128));
    assert_eq!(two.tiers[1].read_bytes, 24 * 8 * BLOCK_BYTES);
    // What comes back from the disk costs its way: 8 blocks at 10 GB/s, then at 50 GB/s.
    let waited = two.records[8].admitted_s - two.records[8].arrival_s;
    let way = 8.0 * BLOCK_BYTES as f64 * (1e-10 + 2e-11) + 2e-4;
    assert!((waited - way).abs() < 1e-9, "{waited} s instead of {way} s");
}

#[test]
fn a_handed_over_request_pays_for_every_part_of_its_way() {
    let lengths = Lengths {
        input_tokens: 100,
        output_tokens: 10,
        ratio: 1.0,
    };
    let trace = closed_loop(lengths, 1, 1).unwrap();
    let model = step_model("h100_sxm");
    let deployment = apart(&model, (1, 1), (64, 64), 1e9);
    let r = simulated(&trace, &deployment, Arrivals::Closed { concurrency: 1 }).records[0];
    let step = |prefill: u64, decode: u64| {
        let prefills = [crate::cost::Prefill {
            new_tokens: prefill,
            past_tokens: 0,
        }];
        let batch = crate::cost::Batch::new(
            u64::from(decode > 0),
            decode as f64,
            if prefill > 0 { &prefills } else { &[] },
        );
        model.time(&batch).total_s() + HostTimes::VLLM.step_s
    };
    assert!((r.prefilled_s - step(100, 0)).abs() < 1e-12);
    // Seven blocks over 1 GB/s after 1 ms at the router and 0.1 ms on the way.
    let way = 0.001 + 7.0 * BLOCK_BYTES as f64 / 1e9 + 1e-4;
    assert!((r.kv_arrived_s - r.prefilled_s - way).abs() < 1e-9);
    // The last prompt token is computed again, as one more decode.
    assert!((r.first_token_s - r.kv_arrived_s - step(0, 99)).abs() < 1e-9);
}

#[test]
fn sglang_sends_chunks_while_it_computes_and_its_prefill_engine_gives_the_first_token() {
    let lengths = Lengths {
        input_tokens: 300,
        output_tokens: 10,
        ratio: 1.0,
    };
    let trace = closed_loop(lengths, 1, 1).unwrap();
    let model = step_model("h100_sxm");
    let closed = Arrivals::Closed { concurrency: 1 };
    let r = simulated(
        &trace,
        &sglang_apart(&model, (1, 1), (4096, 4096), 1, 1e9),
        closed,
    )
    .records[0];
    let step = |prefill: u64, past: u64| {
        let prefills = [crate::cost::Prefill {
            new_tokens: prefill,
            past_tokens: past,
        }];
        let prefills = if prefill > 0 { &prefills[..] } else { &[] };
        let decode = u64::from(prefill == 0);
        let batch = crate::cost::Batch::new(decode, if decode > 0 { past as f64 } else { 0.0 }, prefills);
        model.time(&batch).total_s() + HostTimes::SGLANG.step_s
    };
    // The decode side has room at once and says so 1 ms later; then three chunks.
    assert!((r.admitted_s - 0.001).abs() < 1e-12);
    let (one, two) = (step(128, 0), step(128, 128));
    let prefilled = 0.001 + one + two + step(44, 256);
    assert!((r.prefilled_s - prefilled).abs() < 1e-12);
    // 44 of the 300 tokens, and what of the first two chunks was not yet through.
    let token_s = BLOCK_BYTES as f64 / 16.0 / 1e9;
    let chunks = ((0.001 + one + 128.0 * token_s).max(0.001 + one + two) + 128.0 * token_s).max(prefilled);
    assert!((r.kv_arrived_s - (chunks + 44.0 * token_s + 1e-4)).abs() < 1e-9);
    // Nothing is computed again: the first token goes out at once, the second after one step.
    assert!((r.first_token_s - r.kv_arrived_s).abs() < 1e-12);
    let second = (1..10).map(|n| step(0, 299 + n)).sum::<f64>();
    assert!((r.finished_s - r.first_token_s - second).abs() < 1e-4, "{r:?}");
}

#[test]
fn sglangs_decode_side_makes_room_before_a_prompt_is_computed() {
    // Two requests of 300 and a pool that has room for one and what is kept free for it.
    let lengths = Lengths {
        input_tokens: 300,
        output_tokens: 40,
        ratio: 1.0,
    };
    let trace = closed_loop(lengths, 2, 1).unwrap();
    let model = step_model("h100_sxm");
    let closed = Arrivals::Closed { concurrency: 2 };
    let of = |tokens| {
        simulated(
            &trace,
            &sglang_apart(&model, (1, 1), (4096, tokens), 1, 1e9),
            closed,
        )
        .records
    };
    let small = of(600);
    assert!(small[1].admitted_s > small[0].finished_s, "{small:?}");
    let large = of(800);
    assert!(large[1].admitted_s < large[0].first_token_s, "{large:?}");
}

#[test]
fn what_cannot_be_apart_is_refused() {
    let trace = closed_loop(
        Lengths {
            input_tokens: 100,
            output_tokens: 10,
            ratio: 1.0,
        },
        4,
        1,
    )
    .unwrap();
    let model = step_model("h100_sxm");
    let refused = |d: &Deployment<'_>| {
        run(&trace, d, Arrivals::Closed { concurrency: 1 }, ())
            .unwrap_err()
            .to_string()
    };
    let mut pages = sglang_apart(&model, (1, 1), (4096, 4096), 4, 1e9);
    if let Some(d) = &mut pages.disaggregation {
        d.engine = EngineConfig::Sglang(StepConfig {
            page_size: 8,
            ..StepConfig::new(4096)
        });
    }
    assert!(refused(&pages).contains("pages of 8 tokens"));
    let mut mixed = apart(&model, (1, 1), (64, 64), 1e9);
    mixed.engine = EngineConfig::Sglang(StepConfig::new(4096));
    assert!(refused(&mixed).contains("neither reads the other's cache"));
    let none = apart(&model, (0, 1), (64, 64), 1e9);
    assert!(refused(&none).contains("prefill engines"));
    let mut uncached = scheduler(64);
    uncached.prefix_caching = false;
    let off = Deployment {
        tiers: vec![tier("host", 4, 1e9, TierPolicy::Lru)],
        ..Deployment::new(EngineConfig::Vllm(uncached.clone()), StepClock::Model(&model))
    };
    assert!(refused(&off).contains("prefix caching is off"));
    let mut both = apart(&model, (1, 1), (64, 64), 1e9);
    both.tiers.push(tier("host", 4, 1e9, TierPolicy::Lru));
    if let Some(d) = &mut both.disaggregation {
        d.engine = EngineConfig::Vllm(uncached);
    }
    assert!(refused(&both).contains("prefix caching is off"));
}
