//! Planning: read what the user said, look the names up, ask the planner.

use kvwise_core::Result;
use kvwise_core::plan::{self, Plan};

use super::deployment::Deployment;

/// Answers for a deployment.
///
/// # Errors
/// If a name is not known or a value cannot be used.
pub fn plan(deployment: &Deployment, explain: bool) -> Result<Plan> {
    let resolved = deployment.resolve()?;
    let mut plan = plan::plan(&resolved.request(explain))?;
    plan.feasibility.warnings.splice(0..0, resolved.warnings);
    Ok(plan)
}
