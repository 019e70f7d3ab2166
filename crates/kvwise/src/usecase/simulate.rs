//! Simulating: traffic on a planned deployment, several seeds, what-if comparisons.

use kvwise_core::plan::{self, Plan};
use kvwise_core::{Error, Result};
use kvwise_sim::simulate::{HostTimes, Run, Slo, Summary, run, summarize};
use serde_json::Value;

use super::deployment::Deployment;
use super::served::{Confidence, Prepared, Served, Serving, prepare};
use super::traffic::Workload;

/// A simulated deployment.
#[derive(Debug)]
pub struct Outcome {
    /// The plan that it rests on.
    pub plan: Plan,
    /// Engine.
    pub engine: &'static str,
    /// GPUs of all replicas.
    pub gpus: u64,
    /// Replicas.
    pub replicas: u32,
    /// Why nothing could be simulated; then there is no run.
    pub refused: Option<String>,
    /// What would let the engine start, if one change does.
    pub fix: Option<String>,
    /// How far the times can be trusted.
    pub confidence: Option<Confidence>,
    /// What happened.
    pub run: Run,
    /// Its figures.
    pub summary: Summary,
    /// Host times that were used.
    pub host: HostTimes,
    /// Whether the lower bound was computed.
    pub roofline: bool,
    /// How it is served.
    pub serving: Serving,
    /// Where prefill is apart: prefill replicas, their GPUs, decode replicas, their GPUs.
    pub apart: Option<[u64; 4]>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Runs the workload on the deployment.
///
/// # Errors
/// If a name or value cannot be used, or the deployment has a part that is not simulated.
pub fn simulate(
    deployment: &Deployment,
    serving: &Serving,
    workload: &Workload<'_>,
    slo: Slo,
) -> Result<Outcome> {
    match prepare(deployment, serving)? {
        Prepared::Ready(served) => {
            let mut outcome = simulate_served(&served, workload, slo)?;
            outcome.serving = serving.clone();
            Ok(outcome)
        }
        Prepared::Refused(plan, reason) => Ok(Outcome {
            engine: plan.engine.name,
            gpus: plan.gpu.count,
            plan: *plan,
            replicas: serving.replicas,
            fix: fix(deployment, serving, workload),
            refused: Some(reason),
            confidence: None,
            run: Run::default(),
            summary: Summary::default(),
            host: HostTimes::default(),
            roofline: false,
            serving: serving.clone(),
            apart: None,
            warnings: Vec::new(),
        }),
    }
}

/// Runs the workload on a deployment that is ready.
///
/// # Errors
/// If the workload and the deployment do not go together.
pub fn simulate_served(served: &Served, workload: &Workload<'_>, slo: Slo) -> Result<Outcome> {
    let simulated = served.simulated();
    let (run, ()) = run(&workload.trace, &simulated, workload.arrivals, ())?;
    let summary = summarize(&run, simulated.host, slo);
    let mut warnings = served.warnings.clone();
    if summary.rejected > 0 {
        warnings.push(format!(
            "{} of {} requests can never run: longer than --max-model-len or larger than the pool",
            summary.rejected,
            workload.trace.len()
        ));
    }
    Ok(Outcome {
        plan: served.plan.clone(),
        engine: served.engine,
        gpus: served.gpus(),
        replicas: served.replicas,
        refused: None,
        fix: None,
        confidence: Some(served.confidence.clone()),
        run,
        summary,
        host: simulated.host,
        roofline: served.roofline,
        serving: Serving::default(),
        apart: served.prefill.as_ref().map(|(prefill, _)| {
            [
                prefill.replicas.into(),
                prefill.gpus(),
                served.replicas.into(),
                served.own_gpus(),
            ]
        }),
        warnings,
    })
}

/// What would let the engine start and hold the longest request of the workload: the plan's own fix for that length.
/// None where prefill and decode are apart, which are two deployments.
pub fn fix(deployment: &Deployment, serving: &Serving, workload: &Workload<'_>) -> Option<String> {
    if serving.split.is_some() {
        return None;
    }
    let trace = &*workload.trace;
    let longest = (0..trace.len())
        .map(|i| u64::from(trace.input_len(i)) + u64::from(trace.output_len(i)))
        .max()?;
    let asked = Deployment {
        context: vec![longest.to_string()],
        concurrency: Vec::new(),
        ..deployment.clone()
    };
    let resolved = asked.resolve().ok()?;
    plan::plan(&resolved.request(false)).ok()?.fix
}

/// The deployment with the flags of `changes` (`kv-cache-dtype=fp8,tp=2`) set; `flag` is the one that gave them.
///
/// # Errors
/// If a flag is not known or its value has the wrong type.
pub fn changed(deployment: &Deployment, flag: &str, changes: &str) -> Result<Deployment> {
    let broken = |e: &dyn std::fmt::Display| Error::input(format!("{flag} \"{changes}\": {e}"));
    let mut value = serde_json::to_value(deployment).map_err(|e| broken(&e))?;
    let Some(fields) = value.as_object_mut() else {
        return Err(broken(&"no fields"));
    };
    for change in changes.split(',').map(str::trim).filter(|c| !c.is_empty()) {
        let (flag, text) = change.split_once('=').unwrap_or((change, "true"));
        let key = match flag.trim_start_matches('-') {
            "tp" => "tensor_parallel_size".to_owned(),
            "pp" => "pipeline_parallel_size".to_owned(),
            "dp" => "data_parallel_size".to_owned(),
            "dcp" => "decode_context_parallel_size".to_owned(),
            other => other.replace('-', "_"),
        };
        if !fields.contains_key(&key) {
            let known: Vec<String> = fields.keys().map(|k| k.replace('_', "-")).collect();
            let near = kvwise_core::names::nearest(flag, known.iter().map(String::as_str), 1);
            let error = broken(&format!("there is no flag {flag}"));
            return Err(match near.first() {
                Some(near) => error.hint(format!("did you mean {near}?")),
                None => error,
            });
        }
        // A field takes text, a number or a switch: the one that it accepts is right.
        let candidates = [
            Value::String(text.to_owned()),
            text.parse::<u64>().map_or(Value::Null, Value::from),
            text.parse::<f64>().map_or(Value::Null, Value::from),
            text.parse::<bool>().map_or(Value::Null, Value::from),
        ];
        let before = fields.clone();
        let mut taken = false;
        for candidate in candidates.into_iter().filter(|c| !c.is_null()) {
            fields.insert(key.clone(), candidate);
            if serde_json::from_value::<Deployment>(Value::Object(fields.clone())).is_ok() {
                taken = true;
                break;
            }
        }
        if !taken {
            *fields = before;
            return Err(broken(&format!("{flag} does not take the value \"{text}\"")));
        }
    }
    serde_json::from_value(value).map_err(|e| broken(&e))
}
