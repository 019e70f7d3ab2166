//! Planning: read what the user said, look the names up, ask the planner.

use kvwise_core::Result;
use kvwise_core::plan::{self, Plan};

use super::deployment::Deployment;
use super::{gpus, speed};

/// Answers for a deployment.
///
/// # Errors
/// If a name is not known or a value cannot be used.
pub fn plan(deployment: &Deployment, explain: bool) -> Result<Plan> {
    let resolved = deployment.resolve()?;
    let mut plan = plan::plan(&resolved.request(explain))?;
    speed::tell(&mut plan, &resolved, explain)?;
    if let Some(free_bytes) = resolved.free_bytes() {
        gpus::check_start(&mut plan, resolved.engine(), resolved.hardware(), free_bytes);
    }
    plan.feasibility.warnings.splice(0..0, resolved.warnings);
    Ok(plan)
}
