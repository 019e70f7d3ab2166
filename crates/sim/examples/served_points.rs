//! Compares simulated with measured serving points.
//!
//! `cargo run --release -p kvwise-sim --example served_points -- points.csv configs/` reads a table of points (see
//! `crates/sim/tests/served/mod.rs` for its columns and the protocol) and a folder of `config.json` files named
//! `org--model.json`, and prints the error of each row and their median and 95th percentile by model and GPU.

#![expect(clippy::print_stdout, reason = "an example prints its result")]

use std::collections::BTreeMap;
use std::error::Error;

use kvwise_sim::cost::Tuning;

#[path = "../tests/served/mod.rs"]
mod served;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(points), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("usage: served_points POINTS.csv CONFIG_FOLDER".into());
    };
    let mut errors: BTreeMap<String, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    for p in served::points(&std::fs::read_to_string(points)?)? {
        let file = p
            .model
            .replace("meta-llama/Llama-3.1", "meta-llama/Meta-Llama-3.1")
            .replace('/', "--");
        let path = format!("{folder}/{file}.json");
        let config = std::fs::read(&path).map_err(|e| format!("{path}: {e}"))?;
        let (ttft, tpot) = p.simulated(&served::model(&p.model, &config)?, Tuning::default())?;
        let (te, pe) = (ttft / p.ttft_ms - 1.0, tpot / p.tpot_ms - 1.0);
        println!(
            "{} {} {} tp{} ep{} {}/{} c{}: ttft {ttft:.0}/{:.0} ms {te:+.2}, tpot {tpot:.2}/{:.2} ms {pe:+.2}",
            p.hardware,
            p.model,
            p.precision,
            p.tp,
            p.ep,
            p.input_tokens,
            p.output_tokens,
            p.concurrency,
            p.ttft_ms,
            p.tpot_ms
        );
        // Rows that waited for memory are another question.
        if !p.waited() {
            for key in [format!("{} {}", p.model, p.hardware), "all".to_owned()] {
                let entry = errors.entry(key).or_default();
                entry.0.push(te);
                entry.1.push(pe);
            }
        }
    }
    for (key, (ttft, tpot)) in &errors {
        let absolute = |all: &[f64]| all.iter().map(|x| x.abs()).collect::<Vec<_>>();
        println!(
            "{key}: {} rows, tpot median {:.3} p95 {:.3} (bias {:+.3}), ttft median {:.3}",
            tpot.len(),
            served::quantile(&absolute(tpot), 0.5),
            served::quantile(&absolute(tpot), 0.95),
            served::quantile(tpot, 0.5),
            served::quantile(&absolute(ttft), 0.5)
        );
    }
    Ok(())
}
