//! Compares simulated with measured serving points.
//!
//! `cargo run --release -p kvwise-sim --example served_points -- points.csv configs/` reads a CSV with the columns
//! hardware, model, engine, precision, tp, ep, isl, osl, concurrency, `ttft_ms`, `tpot_ms` and a folder of `config.json`
//! files named `org--model.json`, and prints the error of each row and their median and 95th percentile by model.
//! The protocol is that of the measured runs: ten requests a concurrent client, lengths uniform between 0.8 n and n,
//! no prefix caching, 8192 batched tokens.

#![expect(clippy::print_stdout, reason = "an example prints its result")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small numbers of an example"
)]

use std::collections::BTreeMap;
use std::error::Error;

use kvwise_core::arch::{Config, Model, family};
use kvwise_sim::cost::{Calibration, Engine, Precision, StepModel, StepOptions};
use kvwise_sim::replay::vllm::Isolation;
use kvwise_sim::sched::vllm::SchedulerConfig;
use kvwise_sim::simulate::{
    Arrivals, Deployment, HostTimes, Lengths, Slo, StepClock, closed_loop, run, summarize,
};

fn model(folder: &str, name: &str) -> Result<Model, Box<dyn Error>> {
    let file = name
        .replace("meta-llama/Llama-3.1", "meta-llama/Meta-Llama-3.1")
        .replace('/', "--");
    let bytes =
        std::fs::read(format!("{folder}/{file}.json")).map_err(|e| format!("{folder}/{file}.json: {e}"))?;
    match family::read(name, &Config::parse(&bytes)?)? {
        family::Reading::Model(model) => Ok(*model),
        family::Reading::Refused(refusal) => Err(format!("{name}: {refusal:?}").into()),
    }
}

fn precisions(model: &str, hardware: &str, precision: &str) -> (Precision, Precision) {
    let blackwell = hardware.starts_with('b');
    match (model, precision) {
        (m, "fp4") if m.contains("gpt-oss") => (
            Precision::Bf16,
            if blackwell {
                Precision::Mxfp4A8
            } else {
                Precision::Mxfp4A16
            },
        ),
        (_, "fp4") => (Precision::Nvfp4, Precision::Nvfp4),
        (m, "fp8") if m.contains("DeepSeek") || m.contains("MiniMax") || m.contains("Qwen") => {
            (Precision::Fp8Block, Precision::Fp8Block)
        }
        (_, "fp8") => (Precision::Fp8, Precision::Fp8),
        _ => (Precision::Bf16, Precision::Bf16),
    }
}

fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (share * values.len() as f64) as usize;
    values
        .get(index.min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(points), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("usage: served_points POINTS.csv CONFIG_FOLDER".into());
    };
    let text = std::fs::read_to_string(points)?;
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let column = |name: &str| {
        header
            .iter()
            .position(|h| *h == name)
            .ok_or(format!("no column {name}"))
    };
    let (hw, md, en, pr, tp, ep, isl, osl, cc, tt, po) = (
        column("hardware")?,
        column("model")?,
        column("engine")?,
        column("precision")?,
        column("tp")?,
        column("ep")?,
        column("isl")?,
        column("osl")?,
        column("concurrency")?,
        column("ttft_ms")?,
        column("tpot_ms")?,
    );
    let mut errors: BTreeMap<String, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    for line in lines {
        let cells: Vec<&str> = line.split(',').collect();
        let number = |i: usize| cells[i].parse::<f64>();
        let whole = |i: usize| number(i).map(|x| x as u64);
        let (name, hardware) = (cells[md], cells[hw]);
        let concurrency = whole(cc)? as u32;
        let model = model(&folder, name)?;
        let (linear, experts) = precisions(name, hardware, cells[pr]);
        let calibration = Calibration::embedded(hardware)?;
        let engine = if cells[en] == "sglang" {
            Engine::Sglang
        } else {
            Engine::Vllm
        };
        let kv_fp8 = name.contains("Llama") || hardware.starts_with('b');
        let options = StepOptions {
            engine,
            tp: whole(tp)?,
            ep: whole(ep)?.max(1),
            linear,
            experts,
            kv_fp8,
        };
        let step = StepModel::new(&model, &calibration, options)?;
        let lengths = Lengths {
            input_tokens: whole(isl)? as u32,
            output_tokens: whole(osl)? as u32,
            ratio: 0.8,
        };
        let trace = closed_loop(lengths, concurrency * 10, 1)?;
        let scheduler = SchedulerConfig {
            max_num_seqs: concurrency,
            prefix_caching: false,
            max_model_len: (lengths.input_tokens + lengths.output_tokens + 16).max(2048),
            ..SchedulerConfig::new(4_000_000, 16)
        };
        let deployment = Deployment {
            scheduler,
            clock: StepClock::Model(&step),
            host: HostTimes::default(),
            isolation: Isolation::default(),
        };
        let (result, ()) = run(&trace, &deployment, Arrivals::Closed { concurrency }, ())?;
        let s = summarize(&result, deployment.host, Slo::default());
        let (ttft, tpot) = (number(tt)?, number(po)?);
        let (te, pe) = (s.ttft_ms.mean / ttft - 1.0, s.tpot_ms.mean / tpot - 1.0);
        println!(
            "{hardware} {name} {} tp{} {}/{} c{concurrency}: ttft {:.0}/{ttft:.0} ms {te:+.2}, tpot {:.2}/{tpot:.2} ms {pe:+.2}",
            cells[pr],
            options.tp,
            lengths.input_tokens,
            lengths.output_tokens,
            s.ttft_ms.mean,
            s.tpot_ms.mean
        );
        // Rows that waited for memory are another question.
        if ttft < 5000.0 {
            for key in [format!("{name} {hardware}"), "all".to_owned()] {
                let entry = errors.entry(key).or_default();
                entry.0.push(te);
                entry.1.push(pe);
            }
        }
    }
    for (key, (ttft, tpot)) in &mut errors {
        let bias = quantile(&mut tpot.clone(), 0.5);
        let mut te: Vec<f64> = ttft.iter().map(|x| x.abs()).collect();
        let mut pe: Vec<f64> = tpot.iter().map(|x| x.abs()).collect();
        println!(
            "{key}: {} rows, tpot median {:.3} p95 {:.3} (bias {bias:+.3}), ttft median {:.3}",
            pe.len(),
            quantile(&mut pe, 0.5),
            quantile(&mut pe, 0.95),
            quantile(&mut te, 0.5)
        );
    }
    Ok(())
}
