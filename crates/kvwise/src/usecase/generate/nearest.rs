//! The nearest deployment that fits: few changes, the least invasive first, each replanned.

use kvwise_core::plan::{self, Plan};
use serde_json::{Value, json};

use super::super::deployment::Deployment;
use super::super::effect::with;

/// A deployment that fits.
#[derive(Debug, Clone, PartialEq)]
pub struct Nearest {
    /// Flags to add, as words.
    pub flags: Vec<(String, String)>,
    /// What its plan says.
    pub verdict: String,
}

/// The first of a list of changes with which everything fits.
///
/// Changes that cost no hardware come first: a shorter longest request, an 8-bit cache; then more GPUs; then both.
pub fn nearest(deployment: &Deployment) -> Option<Nearest> {
    let planned = |changes: &[(&str, Value)]| -> Option<Plan> {
        let mut changed = deployment.clone();
        for (field, value) in changes {
            changed = with(&changed, field, Some(value.clone())).ok()?;
        }
        // The number of cards that are there is no bound for an offer of more.
        if changes.iter().any(|(field, _)| *field == "tensor_parallel_size") {
            changed.gpus = None;
        }
        plan::assess(&changed.resolve().ok()?.request(false)).ok()
    };
    let tp = deployment.tensor_parallel_size.unwrap_or(1);
    let fp8 = ("kv_cache_dtype", json!("fp8"));
    let length = ("max_model_len", json!("auto"));
    let mut tries: Vec<Vec<(&str, Value)>> = vec![
        vec![length.clone()],
        vec![fp8.clone()],
        vec![length.clone(), fp8.clone()],
    ];
    for ranks in [2, 4, 8].into_iter().filter(|&n| n > tp) {
        let more = ("tensor_parallel_size", json!(ranks));
        tries.push(vec![more.clone()]);
        tries.push(vec![more.clone(), length.clone()]);
        tries.push(vec![more.clone(), fp8.clone()]);
        tries.push(vec![more, length.clone(), fp8.clone()]);
    }
    for changes in tries {
        let already = changes.iter().any(|(field, _)| match *field {
            "kv_cache_dtype" => deployment.kv_cache_dtype.is_some(),
            _ => false,
        });
        if already {
            continue;
        }
        let Some(plan) = planned(&changes).filter(|plan| plan.feasibility.fits) else {
            continue;
        };
        let flags = changes
            .iter()
            .map(|(field, value)| {
                let value = match (*field, &plan.kv_cache) {
                    // `auto` is said as the length that it comes to.
                    ("max_model_len", Some(kv)) => kv.max_model_len.to_string(),
                    _ => super::plain(value),
                };
                (format!("--{}", field.replace('_', "-")), value)
            })
            .collect();
        return Some(Nearest {
            flags,
            verdict: plan.verdict,
        });
    }
    None
}
