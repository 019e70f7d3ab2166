//! Measured serving points, and what the simulator says about them.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small whole numbers of a table"
)]

use kvwise_core::arch::{Config, Model, family};
use kvwise_core::hardware;
use kvwise_core::plan::Hardware;
use kvwise_core::{Error, Result};
use kvwise_sim::cost::{Calibration, Engine, Precision, StepModel, StepOptions, Tuning};
use kvwise_sim::sched::sglang::step::StepConfig;
use kvwise_sim::sched::vllm::SchedulerConfig;
use kvwise_sim::simulate::{
    Arrivals, Deployment, EngineConfig, Lengths, Slo, StepClock, closed_loop, run, summarize,
};

/// One measured point. The protocol is that of the measured runs: ten requests a concurrent client, lengths uniform
/// between 0.8 n and n, no prefix caching, 8192 batched tokens (SGLang: what the runs' own scripts set).
#[derive(Debug, Clone, PartialEq)]
pub struct Served {
    /// GPU by the calibration's name.
    pub hardware: String,
    /// Hub id.
    pub model: String,
    /// Whose kernels and scheduler.
    pub engine: Engine,
    /// `fp8`, `fp4` or `bf16`.
    pub precision: String,
    /// Tensor-parallel ranks.
    pub tp: u64,
    /// Expert-parallel ranks.
    pub ep: u64,
    /// Longest prompt.
    pub input_tokens: u32,
    /// Longest answer.
    pub output_tokens: u32,
    /// Requests under way.
    pub concurrency: u32,
    /// Measured time to first token; NaN where none was published.
    pub ttft_ms: f64,
    /// Measured time per output token.
    pub tpot_ms: f64,
    /// Who published it, where the table says so.
    pub source: String,
    /// Requests in all, where not ten a client.
    pub requests: Option<u32>,
    /// Share of the longest length that the shortest has; 0.8 where the table does not say.
    pub length_ratio: f64,
    /// Type of the cache (`fp8` or `bf16`), where the table says so.
    pub kv_dtype: Option<String>,
}

/// The points of a CSV with the columns hardware, model, engine, precision, tp, ep, isl, osl, concurrency, `ttft_ms` and
/// `tpot_ms`, whatever others it has.
///
/// # Errors
/// If a column is missing or a number cannot be read.
pub fn points(csv: &str) -> Result<Vec<Served>> {
    let mut lines = csv.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let column = |name: &str| {
        header
            .iter()
            .position(|h| *h == name)
            .ok_or_else(|| Error::input(format!("there is no column {name}")))
    };
    let names = [
        "hardware",
        "model",
        "engine",
        "precision",
        "tp",
        "ep",
        "isl",
        "osl",
        "concurrency",
        "ttft_ms",
        "tpot_ms",
    ];
    let columns = names.iter().map(|n| column(n)).collect::<Result<Vec<_>>>()?;
    let source = column("source").ok();
    let (requests, ratio, kv_dtype) = (
        column("requests").ok(),
        column("length_ratio").ok(),
        column("kv_dtype").ok(),
    );
    lines
        .filter(|l| !l.is_empty())
        .map(|line| {
            let cells: Vec<&str> = line.split(',').collect();
            let text = |i: usize| cells.get(columns[i]).copied().unwrap_or_default();
            let number = |i: usize| {
                text(i)
                    .parse::<f64>()
                    .map_err(|e| Error::input(format!("{}: {e} in {line}", names[i])))
            };
            Ok(Served {
                hardware: text(0).to_owned(),
                model: text(1).to_owned(),
                engine: if text(2) == "sglang" {
                    Engine::Sglang
                } else {
                    Engine::Vllm
                },
                precision: text(3).to_owned(),
                tp: number(4)? as u64,
                ep: (number(5)? as u64).max(1),
                input_tokens: number(6)? as u32,
                output_tokens: number(7)? as u32,
                concurrency: number(8)? as u32,
                ttft_ms: text(9).parse().unwrap_or(f64::NAN),
                tpot_ms: number(10)?,
                source: source
                    .and_then(|i| cells.get(i))
                    .copied()
                    .unwrap_or_default()
                    .to_owned(),
                requests: requests.and_then(|i| cells.get(i)?.parse().ok()),
                length_ratio: ratio.and_then(|i| cells.get(i)?.parse().ok()).unwrap_or(0.8),
                kv_dtype: kv_dtype.and_then(|i| Some((*cells.get(i)?).to_owned())),
            })
        })
        .collect()
}

impl Served {
    /// Whether the server had no room for all its clients: the first token took longer than 5 s.
    pub fn waited(&self) -> bool {
        self.ttft_ms >= 5000.0
    }

    /// Formats of linear layers and experts that such a checkpoint computes in.
    fn precisions(&self) -> (Precision, Precision) {
        let blackwell = self.hardware.starts_with('b');
        match self.precision.as_str() {
            "fp4" if self.model.contains("gpt-oss") => (
                Precision::Bf16,
                if blackwell {
                    Precision::Mxfp4A8
                } else {
                    Precision::Mxfp4A16
                },
            ),
            "fp4" => (Precision::Nvfp4, Precision::Nvfp4),
            "fp8" if self.model.contains("Llama") => (Precision::Fp8, Precision::Fp8),
            "fp8" => (Precision::Fp8Block, Precision::Fp8Block),
            _ => (Precision::Bf16, Precision::Bf16),
        }
    }

    /// Kernels of the point's GPU; for those that have none of their own, a relative's on the datasheet, as the program takes
    /// them.
    fn calibration(&self) -> Result<Calibration> {
        Calibration::embedded(&self.hardware).or_else(|_| {
            let name = self.hardware.trim_end_matches("_sxm");
            Calibration::of(&Hardware::of(hardware::find(name)?, self.tp))
        })
    }

    /// Whether the run was one of `InferenceX`'s own scripts.
    fn by_script(&self) -> bool {
        !self.source.starts_with("sgl-project")
    }

    /// Whether the cache is 8-bit.
    fn kv_fp8(&self) -> bool {
        match self.kv_dtype.as_deref() {
            Some(dtype) => dtype == "fp8",
            None => self.model.contains("Llama") || self.hardware.starts_with('b'),
        }
    }

    /// What the scripts of these runs set for SGLang (`benchmarks/single_node/fixed_seq_len/` of SemiAnalysisAI/InferenceX at
    /// 843c6254): chunked prefill and prefill tokens, and turns between two looks for new requests.
    fn sglang_settings(&self) -> (usize, u32) {
        let blackwell = self.hardware.starts_with('b');
        if !self.by_script() {
            // The engine's own: chunks by memory (80 GB, 180 GB and more), a look before each turn.
            let large = blackwell || ["mi300x", "gb300"].contains(&self.hardware.as_str());
            return (if large { 16_384 } else { 8192 }, 1);
        }
        let often = |from: u32| if self.concurrency >= from { 30 } else { 10 };
        if self.model.contains("DeepSeek-R1") {
            return match (blackwell, self.precision.as_str(), self.tp) {
                (false, ..) => (32_768, 1),
                (true, "fp4", _) => (16_384, often(16)),
                (true, _, 4) => (8192, 10),
                (true, ..) => (32_768, often(16)),
            };
        }
        (16_384, if blackwell { often(5) } else { 1 })
    }

    /// Mean time to first token and mean time per output token as simulated, milliseconds.
    ///
    /// # Errors
    /// If the configuration cannot be read or a kernel is missing.
    pub fn simulated(&self, model: &Model, tuning: Tuning) -> Result<(f64, f64)> {
        let (linear, experts) = self.precisions();
        let options = StepOptions {
            ep: self.ep,
            linear,
            experts,
            kv_fp8: self.kv_fp8(),
            ..StepOptions::new(self.engine, self.tp)
        };
        let calibration = self.calibration()?;
        let step = StepModel::tuned(model, &calibration, options, tuning)?;
        let lengths = Lengths {
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            ratio: self.length_ratio,
        };
        let trace = closed_loop(lengths, self.requests.unwrap_or(self.concurrency * 10), 1)?;
        let longest = (self.input_tokens + self.output_tokens + 16).max(2048);
        let engine = match self.engine {
            Engine::Vllm => EngineConfig::Vllm(SchedulerConfig {
                max_num_seqs: self.concurrency,
                prefix_caching: false,
                max_model_len: longest,
                ..SchedulerConfig::new(4_000_000, 16)
            }),
            Engine::Sglang => EngineConfig::Sglang(StepConfig {
                chunked_prefill_tokens: Some(self.sglang_settings().0),
                max_prefill_tokens: self.sglang_settings().0.max(16_384),
                recv_interval: self.sglang_settings().1,
                max_running: self.concurrency as usize,
                max_context_tokens: longest as usize,
                radix_cache: false,
                ..StepConfig::new(8_000_000)
            }),
        };
        let deployment = Deployment::new(engine, StepClock::Model(&step));
        let arrivals = Arrivals::Closed {
            concurrency: self.concurrency,
        };
        let (result, ()) = run(&trace, &deployment, arrivals, ())?;
        let s = summarize(&result, deployment.host, Slo::default());
        Ok((s.ttft_ms.mean, s.tpot_ms.mean))
    }
}

/// The model of a configuration's text.
///
/// # Errors
/// If it cannot be read, or the engine refuses it.
pub fn model(name: &str, config: &[u8]) -> Result<Model> {
    match family::read(name, &Config::parse(config)?)? {
        family::Reading::Model(model) => Ok(*model),
        family::Reading::Refused(refusal) => Err(Error::unsupported(format!("{name}: {}", refusal.reason))),
    }
}

/// The value below which `share` of the numbers lie.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|x| x.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let index = (share * sorted.len() as f64) as usize;
    sorted
        .get(index.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}
