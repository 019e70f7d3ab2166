//! What the search found, in the shape of the report: the best, the runners-up with what they lack, three sentences.

use kvwise_core::units::grouped;
use kvwise_sim::trace::Trace;

use super::super::deployment::Deployment;
use super::bench::{Load, Measured, Simulated};
use super::search::{Bench, Fate, Size, Solution, order};
use super::space::{Candidate, Unfit};
use super::{Objective, Question, growth, largest};
use crate::report::recommend::{Deployed, PlannedOnly, Recommendation, SCHEMA, Searched, WorkloadPart};

/// A time to first token that nobody means to accept without having said so.
const LONG_WAIT_MS: f64 = 10_000.0;

/// The traffic, as far as it is simulated.
pub(super) fn workload(q: &Question, trace: &Trace) -> WorkloadPart {
    let duration_s = (0..trace.len())
        .filter_map(|i| trace.arrival(i))
        .fold(0.0, f64::max);
    WorkloadPart {
        name: q.trace.name().to_owned(),
        requests: trace.len() as u64,
        of_requests: q.trace.len() as u64,
        rate_per_s: (q.load == Load::Open && duration_s > 0.0).then(|| trace.len() as f64 / duration_s),
        concurrency: match q.load {
            Load::Closed(n) => Some(n),
            Load::Open => None,
        },
    }
}

/// The objective's word.
pub(super) fn objective(q: &Question) -> &'static str {
    match q.objective {
        Objective::Cost => "cost",
        Objective::Gpus => "gpus",
        Objective::Throughput => "throughput",
    }
}

/// Everything that is known when the search has ended.
pub(super) struct Answer<'a> {
    pub(super) question: &'a Question,
    pub(super) trace: &'a Trace,
    pub(super) candidates: &'a [Candidate],
    pub(super) sizes: &'a [Size],
    pub(super) fates: &'a [Fate],
    pub(super) bench: &'a Simulated<'a>,
    pub(super) unfit: Vec<Unfit>,
    pub(super) planned_only: Vec<PlannedOnly>,
}

impl Answer<'_> {
    pub(super) fn report(&self, best: Option<Solution>) -> Recommendation {
        let q = self.question;
        let recommended = best.map(|s| self.option(&s, true, String::new()));
        let holds_factor = best.map(|s| self.sensitivity(&s));
        let alternatives = self.alternatives(best);
        let mut all: Vec<Deployed> = recommended.iter().cloned().chain(alternatives).collect();
        mark_pareto(&mut all);
        let recommended = recommended.map(|_| all.remove(0));
        let rate = workload(q, self.trace).rate_per_s;
        Recommendation {
            schema: SCHEMA,
            model: q.base.model.clone().unwrap_or_default(),
            objective: objective(q),
            explanation: self.explanation(best, recommended.as_ref(), &all, holds_factor, rate),
            workload: workload(q, self.trace),
            slo_ttft_ms: q.objectives.slo.ttft_ms,
            slo_tpot_ms: q.objectives.slo.tpot_ms,
            slo_percentile: q.objectives.percentile,
            recommended,
            holds_factor,
            alternatives: all,
            planned_only: self.planned_only.clone(),
            prices_source: q.prices.source.clone(),
            prices_date: q.prices.date.clone(),
            searched: Searched {
                candidates: self.candidates.len() as u64,
                simulations: self.bench.simulations() as u64,
            },
        }
    }

    /// The largest multiple of the traffic, in steps of 5 %, that the solution holds.
    fn sensitivity(&self, s: &Solution) -> f64 {
        let factor = |step: u32| s.factor * growth(step);
        factor(largest(|step| {
            self.bench
                .holds_for_sure(s.candidate, factor(step) / s.replicas as f64)
        }))
    }

    fn option(&self, s: &Solution, all: bool, why_not: String) -> Deployed {
        let measured = self.bench.measure(s.candidate, s.factor / s.replicas as f64, all);
        self.described(s.candidate, s.replicas, Some(&measured), why_not)
    }

    fn described(
        &self,
        candidate: usize,
        replicas: u64,
        measured: Option<&Measured>,
        why_not: String,
    ) -> Deployed {
        let c = &self.candidates[candidate];
        let size = self.sizes[candidate];
        let usd_per_hour = size.usd_per_hour * replicas as f64;
        let tokens = measured.map(|m| m.output_tokens_per_s * replicas as f64);
        Deployed {
            engine: c.engine,
            gpu: c.gpu.clone(),
            gpus_per_replica: c.gpus,
            replicas,
            gpus: c.gpus * replicas,
            usd_per_hour,
            usd_per_million_output_tokens: tokens
                .filter(|&t| t > 0.0)
                .map(|t| usd_per_hour / (t * 3600.0) * 1e6),
            ttft_ms: measured.map(|m| m.ttft_ms),
            tpot_ms: measured.map(|m| m.tpot_ms),
            output_tokens_per_s: tokens,
            flags: self.words(c),
            pareto: false,
            why_not,
        }
    }

    /// The words of a candidate for `kvwise generate` and the engine.
    fn words(&self, c: &Candidate) -> Vec<String> {
        let mut words = flags(&c.deployment);
        // Machines of another size than usual, where several hold a replica.
        if let Some(n) = self.question.network.gpus_per_machine.filter(|&n| c.gpus > n) {
            words.extend(["--gpus-per-node".to_owned(), n.to_string()]);
        }
        words
    }

    /// The best deployment of every kind of GPU, and the next best of the recommended kind, with what they lack.
    fn alternatives(&self, best: Option<Solution>) -> Vec<Deployed> {
        let q = self.question;
        let kind = |i: usize| (self.candidates[i].engine, self.candidates[i].gpu.as_str());
        let mut kinds: Vec<(&str, &str)> = (0..self.candidates.len()).map(kind).collect();
        kinds.dedup();
        let mut rows: Vec<(Option<Solution>, Deployed)> = Vec::new();
        for one in kinds {
            let own = || (0..self.candidates.len()).filter(|&i| kind(i) == one);
            let is_best = |i: usize| best.is_some_and(|b| b.candidate == i);
            let held = own()
                .filter(|&i| !is_best(i))
                .filter_map(|i| match self.fates[i] {
                    Fate::Holds(s) => Some(s),
                    _ => None,
                })
                .min_by(|a, b| order(q.objective, self.sizes, a, b));
            if let Some(s) = held {
                let why = best.map_or_else(String::new, |b| self.compared(&s, &b));
                rows.push((Some(s), self.option(&s, false, why)));
                continue;
            }
            if own().any(is_best) {
                continue;
            }
            let Some(row) = self.lost(&own(), best) else {
                continue;
            };
            rows.push((None, row));
        }
        rows.sort_by(|a, b| match (&a.0, &b.0) {
            (Some(x), Some(y)) => order(q.objective, self.sizes, x, y),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => a.1.usd_per_hour.total_cmp(&b.1.usd_per_hour),
        });
        let mut out: Vec<Deployed> = rows.into_iter().map(|(_, row)| row).collect();
        for Unfit { engine, gpu, why } in &self.unfit {
            let price = q.prices.of(gpu).unwrap_or(0.0);
            out.push(Deployed {
                engine,
                gpu: gpu.clone(),
                gpus_per_replica: 8,
                replicas: 1,
                gpus: 8,
                usd_per_hour: price * 8.0,
                usd_per_million_output_tokens: None,
                ttft_ms: None,
                tpot_ms: None,
                output_tokens_per_s: None,
                flags: Vec::new(),
                pareto: false,
                why_not: why.clone(),
            });
        }
        out
    }

    /// The row of a kind of GPU of which no deployment was found good.
    fn lost(&self, own: &(impl Iterator<Item = usize> + Clone), best: Option<Solution>) -> Option<Deployed> {
        // The one that came closest: what misses with all its replicas, else what was not worth a try.
        let missed = own.clone().find_map(|i| match self.fates[i] {
            Fate::Misses { replicas } => Some((i, replicas)),
            _ => None,
        });
        if let Some((i, replicas)) = missed {
            let measured = self.bench.measure(i, 1.0 / replicas as f64, false);
            let why = measured
                .misses(self.question.objectives)
                .unwrap_or_else(|| "misses the objectives on all of the requests".to_owned());
            let why = format!("{why} with {replicas} replicas, all that the limits allow");
            return Some(self.described(i, replicas, Some(&measured), why));
        }
        let i = own
            .clone()
            .min_by(|&a, &b| self.sizes[a].usd_per_hour.total_cmp(&self.sizes[b].usd_per_hour))?;
        let why = match (self.fates[i], best) {
            (Fate::TooLarge, _) => "a single replica exceeds --max-gpus or --budget".to_owned(),
            (_, Some(b))
                if self.sizes[i].usd_per_hour <= self.sizes[b.candidate].usd_per_hour * b.replicas as f64 =>
            {
                "a single replica is no better already".to_owned()
            }
            (_, Some(b)) => format!(
                "a single replica {}",
                self.compared(
                    &Solution {
                        candidate: i,
                        replicas: 1,
                        factor: 1.0
                    },
                    &b
                )
            ),
            (_, None) => String::new(),
        };
        Some(self.described(i, 1, None, why))
    }

    /// By how much a solution is worse than the best.
    fn compared(&self, s: &Solution, best: &Solution) -> String {
        let cost = |s: &Solution| self.sizes[s.candidate].usd_per_hour * s.replicas as f64;
        let gpus = |s: &Solution| self.sizes[s.candidate].gpus * s.replicas;
        let times = |a: f64, b: f64| format!("{:.2} times as much", a / b);
        match self.question.objective {
            Objective::Cost if cost(s) > cost(best) * (1.0 + 1e-9) => {
                format!("costs {}", times(cost(s), cost(best)))
            }
            Objective::Gpus if gpus(s) > gpus(best) => {
                format!("takes {} GPUs instead of {}", gpus(s), gpus(best))
            }
            Objective::Gpus if cost(s) > cost(best) * (1.0 + 1e-9) => {
                format!("takes as many GPUs and costs {}", times(cost(s), cost(best)))
            }
            Objective::Throughput if s.factor < best.factor * (1.0 - 1e-9) => {
                format!(
                    "holds {:.2} times the traffic, {:.2} less",
                    s.factor,
                    best.factor - s.factor
                )
            }
            _ if s.replicas != best.replicas => {
                format!("costs as much, with {} replicas", grouped(s.replicas))
            }
            _ => "costs as much and holds no more traffic".to_owned(),
        }
    }

    /// Three sentences: what, why not something else, how far it reaches.
    fn explanation(
        &self,
        best: Option<Solution>,
        recommended: Option<&Deployed>,
        alternatives: &[Deployed],
        holds_factor: Option<f64>,
        rate: Option<f64>,
    ) -> Vec<String> {
        let q = self.question;
        let load = match (q.load, rate) {
            (Load::Closed(n), _) => format!("{} requests at once", grouped(u64::from(n))),
            (Load::Open, Some(rate)) => format!("{rate:.2} requests a second"),
            (Load::Open, None) => "the traffic".to_owned(),
        };
        let (Some(best), Some(r)) = (best, recommended) else {
            let mut out = vec![format!(
                "Nothing holds {load} within {} GPUs{}.",
                q.max_gpus,
                q.budget_usd_per_hour
                    .map_or_else(String::new, |b| format!(" and ${b} an hour"))
            )];
            if let Some(near) = alternatives.first() {
                out.push(format!(
                    "The nearest, {} x {}: {}.",
                    near.gpus, near.gpu, near.why_not
                ));
            }
            return out;
        };
        let limit = |x: Option<f64>| x.map_or_else(String::new, |x| format!(" (limit {x:.0})"));
        let p = q.objectives.percentile;
        let replicas = if r.replicas == 1 {
            "1 replica".to_owned()
        } else {
            format!("{} replicas", r.replicas)
        };
        let mut out = vec![format!(
            "{replicas}{} on {} x {} each cost ${:.2} an hour and hold {:.2} times {load}: time to first token {:.0} ms{} and time per output token {:.1} ms{} at the {p}th percentile.",
            if r.engine == "sglang" { " of SGLang" } else { "" },
            r.gpus_per_replica,
            r.gpu,
            r.usd_per_hour,
            best.factor,
            r.ttft_ms.unwrap_or_default(),
            limit(q.objectives.slo.ttft_ms),
            r.tpot_ms.unwrap_or_default(),
            limit(q.objectives.slo.tpot_ms),
        )];
        out.push(
            match alternatives.iter().find(|a| {
                a.ttft_ms.is_some() && !a.why_not.contains("misses") && !a.why_not.contains("instead of")
            }) {
                Some(next) => format!(
                    "It is the best of {} deployments by {}; the next, {} x {}{}, {}.",
                    self.candidates.len(),
                    match q.objective {
                        Objective::Cost => "cost",
                        Objective::Gpus => "number of GPUs",
                        Objective::Throughput => "traffic",
                    },
                    next.gpus,
                    next.gpu,
                    if next.engine == r.engine {
                        String::new()
                    } else {
                        format!(" with {}", next.engine)
                    },
                    next.why_not
                ),
                None => format!(
                    "Of {} deployments it is the only kind that holds the objectives.",
                    self.candidates.len()
                ),
            },
        );
        let factor = holds_factor.unwrap_or(1.0);
        let next = self
            .bench
            .measure(best.candidate, factor * 1.05 / best.replicas as f64, true)
            .misses(q.objectives)
            .unwrap_or_else(|| "nothing, as far as was tried".to_owned());
        let chosen = &self.candidates[best.candidate];
        let drafted = chosen.drafter.as_ref().zip(chosen.setting.drafted).map_or_else(
            String::new,
            |(drafter, (_, n))| {
                format!(
                    " That {n} token{} a step drafted by {} {} accepted with a probability of {} is {}.",
                    if n == 1 { "" } else { "s" },
                    drafter.name(),
                    if n == 1 { "is" } else { "are" },
                    drafter.acceptance,
                    if drafter.given {
                        "your figure"
                    } else {
                        "assumed (2026-11-22, see the guide): measure yours"
                    }
                )
            },
        );
        let pool = if chosen.engine == "sglang" {
            " SGLang's times rest on fewer measured points than vLLM's."
        } else {
            ""
        };
        // A queue that nobody limits may be as long as the traffic.
        let unlimited = match (q.objectives.slo.ttft_ms, r.ttft_ms) {
            (None, Some(ttft)) if ttft > LONG_WAIT_MS => {
                " Nothing limits the time to first token: --slo-ttft-ms does.".to_owned()
            }
            _ => String::new(),
        };
        let machines = match q.network.between(r.gpus_per_replica) {
            Ok(Some((_, Some(note)))) => format!(" A replica's {note}."),
            _ => String::new(),
        };
        out.push(format!(
            "It holds up to {factor:.2} times this traffic; what gives way beyond: {next}.{drafted}{pool}{unlimited}{machines}"
        ));
        out
    }
}

/// The deployment's flags as words for `kvwise generate` and the engine.
fn flags(deployment: &Deployment) -> Vec<String> {
    let mut out = Vec::new();
    let mut put = |flag: &str, value: Option<String>| {
        if let Some(value) = value {
            out.extend([flag.to_owned(), value]);
        }
    };
    let size = |n: Option<u64>| n.filter(|&n| n > 1).map(|n| n.to_string());
    put("--engine", deployment.engine.clone());
    put("--tensor-parallel-size", size(deployment.tensor_parallel_size));
    put(
        "--pipeline-parallel-size",
        size(deployment.pipeline_parallel_size),
    );
    put("--data-parallel-size", size(deployment.data_parallel_size));
    put("--max-model-len", deployment.max_model_len.clone());
    put("--quantization", deployment.quantization.clone());
    put("--kv-cache-dtype", deployment.kv_cache_dtype.clone());
    put("--max-num-seqs", deployment.max_num_seqs.map(|n| n.to_string()));
    put(
        "--max-num-batched-tokens",
        deployment.max_num_batched_tokens.clone(),
    );
    put(
        "--max-running-requests",
        deployment.max_running_requests.map(|n| n.to_string()),
    );
    put(
        "--chunked-prefill-size",
        deployment.chunked_prefill_size.map(|n| n.to_string()),
    );
    put("--block-size", deployment.block_size.map(|n| n.to_string()));
    put("--speculative-config", deployment.speculative_config.clone());
    put(
        "--speculative-algorithm",
        deployment.speculative_algorithm.clone(),
    );
    put(
        "--speculative-draft-model-path",
        deployment.speculative_draft_model_path.clone(),
    );
    let number = |n: Option<u64>| n.map(|n| n.to_string());
    put(
        "--speculative-num-steps",
        number(deployment.speculative_num_steps),
    );
    put(
        "--speculative-eagle-topk",
        number(deployment.speculative_eagle_topk),
    );
    put(
        "--speculative-num-draft-tokens",
        number(deployment.speculative_num_draft_tokens),
    );
    if deployment.enable_expert_parallel {
        out.push("--enable-expert-parallel".to_owned());
    }
    out
}

/// Marks the rows that no other row beats in money, GPUs and both latencies at once.
fn mark_pareto(rows: &mut [Deployed]) {
    let key = |r: &Deployed| Some([r.usd_per_hour, r.gpus as f64, r.ttft_ms?, r.tpot_ms?]);
    let keys: Vec<Option<[f64; 4]>> = rows.iter().map(key).collect();
    for (i, row) in rows.iter_mut().enumerate() {
        let Some(own) = keys[i] else { continue };
        let beaten = keys.iter().flatten().any(|other| {
            other.iter().zip(&own).all(|(a, b)| a <= b) && other.iter().zip(&own).any(|(a, b)| a < b)
        });
        row.pareto = !beaten;
    }
}
