//! The same laws over every arrangement: both engines, closed and open loops and sessions, replicas behind every router, tiers,
//! prefill apart from decode.

use proptest::prelude::*;

use super::tests::{scheduler, step_model, trace_of};
use super::*;
use crate::cost::StepModel;
use crate::sched::sglang::step::{Side, StepConfig};
use crate::trace::Trace;

/// What is arranged, by number, so that proptest can draw it.
#[derive(Debug, Clone, Copy)]
struct Arrangement {
    sglang: bool,
    replicas: u32,
    routing: Routing,
    /// vLLM's only.
    tiers: bool,
    apart: bool,
    /// 0: closed loop, 1: open loop, 2: sessions.
    load: u8,
    /// Tokens of each pool.
    pool_tokens: u32,
}

fn arrangements() -> impl Strategy<Value = Arrangement> {
    (
        any::<bool>(),
        1_u32..4,
        0_usize..4,
        any::<bool>(),
        any::<bool>(),
        0_u8..3,
        500_u32..1200,
    )
        .prop_map(
            |(sglang, replicas, routing, tiers, apart, load, pool_tokens)| Arrangement {
                sglang,
                replicas,
                routing: [
                    Routing::RoundRobin,
                    Routing::LeastLoaded,
                    Routing::PrefixAware,
                    Routing::SessionAffinity,
                ][routing],
                tiers: tiers && !sglang,
                apart,
                load,
                pool_tokens,
            },
        )
}

fn speed() -> LinkSpeed {
    LinkSpeed {
        bytes_per_s: 2e10,
        latency_s: 1e-4,
    }
}

impl Arrangement {
    fn engine(&self, side: Side) -> EngineConfig {
        if self.sglang {
            EngineConfig::Sglang(StepConfig {
                max_running: 4,
                max_context_tokens: 2048,
                chunked_prefill_tokens: Some(128),
                side,
                ..StepConfig::new(self.pool_tokens as usize)
            })
        } else {
            EngineConfig::Vllm(scheduler(self.pool_tokens / 16))
        }
    }

    fn deployment<'a>(&self, model: &'a StepModel) -> Deployment<'a> {
        let clock = StepClock::Model(model);
        let decode = if self.apart {
            Side::Decode {
                reserved_tokens: 32,
                extra_rows: 1,
            }
        } else {
            Side::Whole
        };
        let mut deployment = Deployment {
            replicas: self.replicas,
            routing: self.routing,
            ..Deployment::new(self.engine(decode), clock)
        };
        if self.apart {
            deployment.disaggregation = Some(Disaggregation {
                engine: self.engine(Side::Prefill),
                clock,
                host: deployment.host,
                replicas: 2,
                ranks: 1,
                transfer: Transfer {
                    bytes_per_block: if self.sglang { 2 << 17 } else { 2 << 20 },
                    speed: speed(),
                    handoff_s: 0.001,
                },
            });
        }
        if self.tiers {
            deployment.tiers = vec![TierConfig {
                name: "host".to_owned(),
                capacity_blocks: 60,
                bytes_per_block: 2 << 20,
                read: speed(),
                write: speed(),
                policy: TierPolicy::Lru,
            }];
        }
        deployment
    }

    fn traffic(&self, requests: &[(u32, u8, u8, u8)], seed: u64) -> (Trace, Arrivals) {
        match self.load {
            0 => (trace_of(requests), Arrivals::Closed { concurrency: 5 }),
            1 => (trace_of(requests), Arrivals::Trace { speed: 3.0 }),
            _ => {
                let lengths = Lengths {
                    input_tokens: 60,
                    output_tokens: 20,
                    ratio: 0.3,
                };
                let trace = sessions(lengths, 6, 3, seed).unwrap();
                let arrivals = Arrivals::Sessions {
                    concurrency: 4,
                    think_s: 0.2,
                    seed,
                };
                (trace, arrivals)
            }
        }
    }
}

fn requests() -> impl Strategy<Value = Vec<(u32, u8, u8, u8)>> {
    prop::collection::vec((0_u32..10, 0_u8..6, 0_u8..12, 0_u8..40), 1..25)
}

fn simulated(trace: &Trace, deployment: &Deployment<'_>, arrivals: Arrivals) -> Run {
    run(trace, deployment, arrivals, ()).unwrap().0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn nobody_is_lost_served_twice_or_starved_and_all_time_is_accounted_for(
        arrangement in arrangements(), requests in requests(), seed in 0_u64..1000,
    ) {
        let (trace, arrivals) = arrangement.traffic(&requests, seed);
        let model = step_model("h100_sxm");
        let deployment = arrangement.deployment(&model);
        let result = simulated(&trace, &deployment, arrivals);
        prop_assert_eq!(result.records.len(), trace.len());
        let mut tokens = 0;
        for (i, r) in result.records.iter().enumerate() {
            // Every request fits every one of these pools: whoever waits for ever would have no end here.
            prop_assert!(!r.rejected, "request {} {:?}", i, r);
            prop_assert_eq!(r.output_tokens, trace.output_len(i).max(1), "request {} {:?}", i, r);
            prop_assert!(
                r.arrival_s <= r.admitted_s && r.admitted_s < r.first_token_s && r.first_token_s <= r.finished_s
                    && r.finished_s <= result.end_s + 1e-9,
                "{:?}", r
            );
            prop_assert!(r.hit_tokens <= r.input_tokens);
            tokens += u64::from(r.output_tokens);
        }
        // Little's law, as an identity: the time that requests spend inside is the integral of how many are inside.
        let mut edges: Vec<(f64, i64)> = result.records.iter().flat_map(|r| [(r.arrival_s, 1), (r.finished_s, -1)]).collect();
        edges.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut inside, mut area, mut last) = (0_i64, 0.0, 0.0);
        for (at, change) in edges {
            area += inside as f64 * (at - last);
            (inside, last) = (inside + change, at);
        }
        let spent: f64 = result.records.iter().map(|r| r.finished_s - r.arrival_s).sum();
        prop_assert!((area - spent).abs() <= 1e-9 * (1.0 + spent));
        if let Arrivals::Closed { concurrency } = arrivals {
            prop_assert!(area <= f64::from(concurrency) * result.end_s + 1e-9);
        }
        // Every gap between two tokens of a request was noted once: all tokens but first ones of decoding steps.
        let gaps: u64 = result.gaps.iter().map(|g| g.1).sum();
        prop_assert!(gaps <= tokens, "{} gaps, {} tokens", gaps, tokens);
        let engines = f64::from(arrangement.replicas) + if arrangement.apart { 2.0 } else { 0.0 };
        let accounted = result.busy.total_s() + result.host_s + result.idle_s;
        prop_assert!((accounted - engines * result.end_s).abs() <= 1e-6 * (1.0 + accounted));
        prop_assert!((0.0..=1.0).contains(&result.kv_usage_mean) && result.kv_usage_mean <= result.kv_usage_peak + 1e-12);
        prop_assert!(result.kv_usage_peak <= 1.0);
    }

    #[test]
    fn steps_that_pass_together_are_the_steps_one_by_one(
        arrangement in arrangements(), requests in requests(), seed in 0_u64..1000,
    ) {
        let (trace, arrivals) = arrangement.traffic(&requests, seed);
        // On a clock of equal steps the two are the same to the bit: who ran when, found what, was pushed out.
        let model = step_model("h100_sxm");
        let of = |stretch_steps: u32, fixed: bool| {
            let mut deployment = arrangement.deployment(&model);
            deployment.stretch_steps = stretch_steps;
            if fixed {
                deployment.clock = StepClock::Fixed(0.01);
                if let Some(d) = &mut deployment.disaggregation {
                    d.clock = StepClock::Fixed(0.01);
                }
            }
            simulated(&trace, &deployment, arrivals)
        };
        let (one, many) = (of(0, true), of(256, true));
        prop_assert_eq!(format!("{:?}", one.records), format!("{:?}", many.records));
        let counted = |r: &Run| (r.steps, r.preemptions, r.hit_tokens, r.end_s.to_bits(), r.transfers, r.tiers.clone());
        prop_assert_eq!(counted(&one), counted(&many));
        // With kernel times a stretch is timed by its middle, and attention is not quite linear in the context.
        if arrangement.load == 0 && arrangement.replicas == 1 && !arrangement.apart && !arrangement.tiers {
            let (one, many) = (of(0, false), of(256, false));
            prop_assert!((one.end_s - many.end_s).abs() <= 1e-3 * one.end_s, "{} s, {} s", one.end_s, many.end_s);
        }
    }

    #[test]
    fn the_same_question_has_the_same_answer_on_any_thread(
        arrangement in arrangements(), requests in requests(), seed in 0_u64..1000,
    ) {
        let (trace, arrivals) = arrangement.traffic(&requests, seed);
        let model = step_model("l40s");
        let deployment = arrangement.deployment(&model);
        // As text: times that never came are NaN, which equals nothing.
        let here = format!("{:?}", simulated(&trace, &deployment, arrivals));
        let there = std::thread::scope(|scope| {
            scope.spawn(|| format!("{:?}", simulated(&trace, &deployment, arrivals))).join().unwrap()
        });
        prop_assert_eq!(here, there);
    }

    #[test]
    fn in_a_closed_loop_without_pressure_a_faster_gpu_ends_no_later(
        arrangement in arrangements(), requests in requests(),
    ) {
        // One engine and room for everybody: with less of either, who meets whom in a batch may change for the worse.
        let arrangement = Arrangement { load: 0, replicas: 1, apart: false, tiers: false, pool_tokens: 1 << 16, ..arrangement };
        let (trace, arrivals) = arrangement.traffic(&requests, 1);
        let (slow, fast) = (step_model("l40s"), step_model("h200_sxm"));
        let slow = simulated(&trace, &arrangement.deployment(&slow), arrivals);
        let fast = simulated(&trace, &arrangement.deployment(&fast), arrivals);
        prop_assert!(fast.end_s <= slow.end_s, "{} s after {} s", fast.end_s, slow.end_s);
    }

    #[test]
    fn with_half_of_the_machine_s_speed_the_open_loop_never_serves_more_a_second_beyond_noise(
        arrangement in arrangements(), requests in requests(),
    ) {
        let arrangement = Arrangement { load: 1, ..arrangement };
        let (trace, arrivals) = arrangement.traffic(&requests, 1);
        let (slow, fast) = (step_model("l40s"), step_model("h200_sxm"));
        let slow = simulated(&trace, &arrangement.deployment(&slow), arrivals);
        let fast = simulated(&trace, &arrangement.deployment(&fast), arrivals);
        // The last to end decides: a tenth is what an unlucky batch costs with few requests.
        prop_assert!(fast.end_s <= 1.1 * slow.end_s, "{} s after {} s", fast.end_s, slow.end_s);
    }

    #[test]
    fn one_request_after_the_other_finds_no_less_in_a_larger_pool(
        sglang in any::<bool>(), requests in requests(), less in 500_u32..900, more in 0_u32..4000,
    ) {
        let of = |pool_tokens: u32| Arrangement {
            sglang, replicas: 1, routing: Routing::RoundRobin, tiers: false, apart: false, load: 0, pool_tokens,
        };
        let trace = trace_of(&requests);
        let model = step_model("h100_sxm");
        let hits = |pool: u32| {
            let closed = Arrivals::Closed { concurrency: 1 };
            simulated(&trace, &of(pool).deployment(&model), closed).hit_tokens
        };
        // Evicting the least recently used is a stack algorithm: what a small pool holds, a larger one holds, too. Leaves and
        // blocks leave in the order of their own last use, so that ends of prefixes go first.
        prop_assert!(hits(less + more) >= hits(less));
    }
}
