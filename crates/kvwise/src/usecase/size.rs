//! Sizing: read what the user said, look the names up, ask the planner the other way round.

use kvwise_core::plan::size::{self, Need, Sizing};
use kvwise_core::{Error, Result};

use super::deployment::Deployment;

/// Answers for the first load of a deployment.
///
/// # Errors
/// If a name is not known, a value cannot be used, or no context is given.
pub fn size(deployment: &Deployment, probability: f64, max_gpus: u64) -> Result<Sizing> {
    let resolved = deployment.resolve()?;
    let request = resolved.request(false);
    let Some(&context) = request.load.contexts.first() else {
        return Err(Error::input("a need has a length: --context is missing")
            .hint("give --context, or --prompt-tokens and --gen-tokens"));
    };
    if request.load.contexts.len() > 1 || request.load.concurrencies.len() > 1 {
        return Err(Error::input(
            "size answers for one need, but several contexts or concurrencies were given",
        )
        .hint("kvwise plan takes several values and makes a grid"));
    }
    let need = Need {
        context,
        concurrency: request.load.concurrencies.first().copied().unwrap_or(1),
        probability,
        max_gpus,
    };
    let mut sizing = size::size(&request, &need)?;
    sizing.warnings.splice(0..0, resolved.warnings.iter().cloned());
    Ok(sizing)
}
