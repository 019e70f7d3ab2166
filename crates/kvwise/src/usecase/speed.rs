//! How fast a planned load is served: the simulator's step times, without its events.
//!
//! What a plan says is what `kvwise simulate` does with the same batches: one step in which every request of the load decodes
//! at its full context, and one prompt alone. Waiting for each other is left to the simulator.

use kvwise_core::Result;
use kvwise_core::arch::{Config, Model};
use kvwise_core::engine::sglang::{Chunk, card_chunk_tokens};
use kvwise_core::plan::{Engine, Hardware, Performance, Plan, Range, Speed, SpeedBound, Step};
use kvwise_sim::cost::{self, Batch, Bound, Prefill, StepModel, StepTime};
use kvwise_sim::simulate::HostTimes;

use super::deployment::Resolved;
use super::served::TTFT_FACTOR;
use super::served::kernels::{Kernels, confidence, graphs, has_experts};

/// Steps of a prompt that are timed one by one; more are put together in as many groups.
const MOST_STEPS: u64 = 64;

/// Puts the step-time model's figures in place of the roofline's, for the engines that are simulated.
///
/// Left as they are: plans of engines and models that are not simulated, and of servers that do not start.
///
/// # Errors
/// If the checkpoint's format cannot be read.
pub fn tell(plan: &mut Plan, resolved: &Resolved, explain: bool) -> Result<()> {
    let Some(performance) = &plan.performance else {
        return Ok(());
    };
    let load = Load {
        context: performance.context,
        concurrency: performance.concurrency,
        prompt_tokens: performance.prompt_tokens,
    };
    if plan.feasibility.refused.is_some() {
        return Ok(());
    }
    let Some(clock) = Clock::of(plan, resolved)? else {
        return Ok(());
    };
    for row in &mut plan.grid {
        let load = Load {
            context: row.context,
            concurrency: row.concurrency,
            prompt_tokens: resolved.prompt_tokens().unwrap_or(row.context).max(1),
        };
        row.speed = Some(clock.speed(load));
    }
    plan.performance = Some(Performance {
        context: load.context,
        concurrency: load.concurrency,
        prompt_tokens: load.prompt_tokens,
        speed: clock.speed(load),
        roofline: clock.bound(load),
        basis: clock.basis.clone(),
        source: clock.source.clone(),
    });
    if explain {
        plan.steps.extend(clock.steps(load));
    }
    Ok(())
}

/// Requests that are served at once.
#[derive(Debug, Clone, Copy)]
struct Load {
    context: u64,
    concurrency: u64,
    prompt_tokens: u64,
}

/// Step times of one of a deployment's engines.
struct Clock {
    step: StepModel,
    host: HostTimes,
    /// Engines that know nothing of each other.
    replicas: u64,
    /// Ranks of each that step together.
    ranks: u64,
    /// Stages that share a step's requests.
    stages: u64,
    /// Prompt tokens of one step.
    chunk_tokens: u64,
    factor: f64,
    basis: String,
    source: String,
}

/// How an engine is spread, and what one step of it takes in.
struct Spread<'a> {
    engine: cost::Engine,
    quantization: Option<&'a str>,
    tp: u64,
    pp: u64,
    dp: u64,
    whole_experts: bool,
    batched_tokens: u64,
    chunk_tokens: u64,
    drafts: bool,
    eager: bool,
}

impl<'a> Spread<'a> {
    /// `None` for what is not simulated.
    fn of(engine: &'a Engine, plan: &Plan, hardware: &Hardware) -> Option<Self> {
        match engine {
            Engine::Vllm(s) if s.decode_context_parallel_size <= 1 => {
                let batched_tokens = plan.layout.as_ref()?.max_num_batched_tokens.max(1);
                let pp = s.pipeline_parallel_size.max(1);
                Some(Self {
                    engine: cost::Engine::Vllm,
                    quantization: s.quantization.as_deref(),
                    tp: s.tensor_parallel_size.max(1),
                    pp,
                    dp: s.data_parallel_size.max(1),
                    whole_experts: s.enable_expert_parallel,
                    batched_tokens,
                    chunk_tokens: batched_tokens.saturating_mul(pp),
                    drafts: s.speculative.is_some(),
                    eager: s.enforce_eager,
                })
            }
            Engine::Sglang(s) => {
                let dp = s.attention_dp();
                let chunk_tokens = match s.chunked_prefill_size {
                    None => card_chunk_tokens(hardware.driver_bytes as f64 / (1_u64 << 20) as f64) / dp,
                    Some(Chunk::Tokens(n)) => n / dp,
                    Some(Chunk::Whole) => u64::MAX,
                }
                .max(1);
                Some(Self {
                    engine: cost::Engine::Sglang,
                    quantization: s.quantization.as_deref(),
                    tp: s.attention_tp(),
                    pp: s.pp(),
                    dp,
                    whole_experts: s.expert_parallel,
                    batched_tokens: chunk_tokens,
                    chunk_tokens,
                    drafts: s.speculative.is_some(),
                    eager: s.disable_cuda_graph,
                })
            }
            _ => None,
        }
    }
}

impl Clock {
    /// `None` for what is not simulated.
    fn of(plan: &Plan, resolved: &Resolved) -> Result<Option<Self>> {
        let hardware = resolved.hardware();
        let (Some(described), Some(kv)) = (resolved.described(), &plan.kv_cache) else {
            return Ok(None);
        };
        let Some(spread) = Spread::of(resolved.engine(), plan, hardware) else {
            return Ok(None);
        };
        let (model, _): (&Model, &Config) = described;
        let together = spread.dp > 1 && has_experts(model);
        // As in a simulation: ranks that share experts step together, with whole experts; others know nothing of each other.
        if together && !spread.whole_experts || spread.dp > 1024 {
            return Ok(None);
        }
        let ranks = if together { spread.dp } else { 1 };
        let (calibration, options) = Kernels {
            described,
            quantization: spread.quantization,
            hardware,
            engine: spread.engine,
            tp: spread.tp,
            pp: spread.pp,
            ranks: u32::try_from(ranks).unwrap_or(u32::MAX),
            whole_experts: spread.whole_experts,
            kv_dtype: &kv.dtype,
            max_batched_tokens: spread.batched_tokens,
            graphs: graphs(spread.eager),
        }
        .options()?;
        let sglang = spread.engine == cost::Engine::Sglang;
        let confidence = confidence(&calibration, &plan.model.name, sglang);
        let gpus = spread.tp.saturating_mul(spread.pp).saturating_mul(ranks);
        let mut basis = confidence.basis;
        if gpus > 8 {
            basis.push_str("; all GPUs on one machine, so times over several are longer");
        }
        if spread.drafts {
            basis.push_str("; without drafts");
        }
        let source = if calibration.borrowed {
            format!(
                "efficiencies of kernels measured on {} ({}), at this GPU's datasheet rates",
                calibration.gpu, calibration.derived_from
            )
        } else {
            format!(
                "kernels measured on {} ({})",
                calibration.gpu, calibration.derived_from
            )
        };
        Ok(Some(Self {
            step: StepModel::new(model, &calibration, options)?,
            host: if sglang {
                HostTimes::SGLANG
            } else {
                HostTimes::VLLM
            },
            replicas: if together { 1 } else { spread.dp },
            ranks,
            stages: spread.pp,
            chunk_tokens: spread.chunk_tokens,
            factor: confidence.factor,
            basis,
            source,
        }))
    }

    /// Requests of the busiest rank.
    fn of_a_rank(&self, load: Load) -> u64 {
        load.concurrency.div_ceil(self.replicas * self.ranks)
    }

    /// The step in which all requests decode.
    fn decoding(&self, load: Load) -> Batch<'static> {
        let own = self.of_a_rank(load);
        let of_a_replica = load.concurrency.div_ceil(self.replicas);
        Batch {
            peer_tokens: of_a_replica.saturating_sub(own) as f64,
            ..Batch::new(own, own as f64 * load.context as f64, &[])
        }
    }

    /// Steps of one prompt, and how many of each. Where there are many, those of a group stand for their middle: what they
    /// cost grows evenly with what is cached.
    fn prompt(&self, load: Load) -> impl Iterator<Item = (Prefill, u64)> + use<> {
        let (total, chunk) = (load.prompt_tokens, self.chunk_tokens);
        let whole = total / chunk;
        let group = whole.div_ceil(MOST_STEPS).max(1);
        let groups = (0..whole.div_ceil(group)).map(move |i| {
            let first = i * group;
            let number = group.min(whole - first);
            let past_tokens = first * chunk + (number - 1) * chunk / 2;
            let step = Prefill {
                new_tokens: chunk,
                past_tokens,
            };
            (step, number)
        });
        let rest = (total % chunk > 0).then_some(Prefill {
            new_tokens: total % chunk,
            past_tokens: whole * chunk,
        });
        groups.chain(rest.map(|step| (step, 1)))
    }

    fn decode(&self, load: Load) -> StepTime {
        self.step.time(&self.decoding(load))
    }

    fn prefill(&self, load: Load) -> (StepTime, u64) {
        let mut total = StepTime::default();
        let mut steps = 0;
        for (chunk, number) in self.prompt(load) {
            total.add(&self.step.time(&Batch::new(0, 0.0, &[chunk])), number as f64);
            steps += number;
        }
        (total, steps)
    }

    fn speed(&self, load: Load) -> Speed {
        let tpot_ms = (self.decode(load).total_s() + self.host.step_s) * 1e3;
        let (prefill, steps) = self.prefill(load);
        let prefill_s = prefill.total_s() + self.host.step_s * steps as f64;
        let ttft_ms = (prefill_s + self.host.request_s) * 1e3;
        let engines = (self.replicas * self.ranks) as f64;
        let bound = self.bound(load);
        // However wide the range, nothing beats the datasheet.
        let rate = |expected: f64, factor: f64, most: f64| {
            let range = Range::around(expected, factor);
            Range {
                high: range.high.min(most.max(expected)),
                ..range
            }
        };
        let time = |expected: f64, factor: f64, least: f64| {
            let range = Range::around(expected, factor);
            Range {
                low: range.low.max(least.min(expected)),
                ..range
            }
        };
        Speed {
            prefill_tokens_per_s: rate(
                engines * load.prompt_tokens as f64 / prefill_s,
                self.factor * TTFT_FACTOR,
                bound.prefill_tokens_per_s,
            ),
            decode_tokens_per_s: rate(
                load.concurrency as f64 / tpot_ms * 1e3,
                self.factor,
                bound.decode_tokens_per_s,
            ),
            ttft_ms: time(ttft_ms, self.factor * TTFT_FACTOR, bound.ttft_ms),
            tpot_ms: time(tpot_ms, self.factor, bound.tpot_ms),
        }
    }

    fn bound(&self, load: Load) -> SpeedBound {
        let mut decoding = self.decoding(load);
        // Each stage has its share of the requests at a time, and a token passes all stages.
        decoding.decode_sequences = decoding.decode_sequences.div_ceil(self.stages);
        decoding.decode_context_tokens /= self.stages as f64;
        let tpot_ms = self.step.bound(&decoding).seconds() * 1e3;
        let mut prefill = Bound::default();
        for (chunk, number) in self.prompt(load) {
            prefill.add(&self.step.bound(&Batch::new(0, 0.0, &[chunk])), number as f64);
        }
        let stages = self.stages as f64;
        let prefill_s = prefill.seconds() / stages;
        let engines = (self.replicas * self.ranks) as f64;
        SpeedBound {
            prefill_tokens_per_s: engines * load.prompt_tokens as f64 / prefill_s,
            decode_tokens_per_s: load.concurrency as f64 / tpot_ms * 1e3,
            ttft_ms: prefill_s * 1e3,
            tpot_ms,
        }
    }

    /// The derivation.
    fn steps(&self, load: Load) -> [Step; 3] {
        let sum = |t: &StepTime, host_s: f64| {
            [
                ("linear layers", t.linear_s),
                ("experts", t.experts_s),
                ("attention", t.attention_s),
                ("states", t.state_s),
                ("sums over GPUs", t.communication_s),
                ("small kernels", t.elementwise_s),
                ("host", host_s),
            ]
            .iter()
            .filter(|(_, s)| *s > 0.0)
            .map(|(name, s)| format!("{:.3} {name}", s * 1e3))
            .collect::<Vec<_>>()
            .join(" + ")
        };
        let speed = self.speed(load);
        let ms = |range: Range| {
            format!(
                "{:.2} ms ({:.2} to {:.2})",
                range.expected.unwrap_or_default(),
                range.low,
                range.high
            )
        };
        let (prefill, steps) = self.prefill(load);
        let host_s = self.host.request_s + self.host.step_s * steps as f64;
        [
            Step::new("rates of kernels", self.source.clone(), self.basis.clone()),
            Step::new(
                format!(
                    "time of one more token, {} at once with {} tokens each",
                    load.concurrency, load.context
                ),
                sum(&self.decode(load), self.host.step_s),
                ms(speed.tpot_ms),
            ),
            Step::new(
                format!(
                    "time to the first token of a prompt of {} tokens alone",
                    load.prompt_tokens
                ),
                sum(&prefill, host_s),
                ms(speed.ttft_ms),
            ),
        ]
    }
}

#[cfg(test)]
mod grid_tests;
#[cfg(test)]
mod tests;
