//! What one setting of a deployment does: the plan with it against the plan without it.

use kvwise_core::Result;
use kvwise_core::plan::{self, Plan};
use kvwise_core::units::grouped;
use serde_json::Value;

use super::deployment::Deployment;

/// Numbers of SGLang's drafts that are given together or not at all.
const NUMBERS_OF_DRAFTS: [&str; 3] = [
    "speculative_num_steps",
    "speculative_eagle_topk",
    "speculative_num_draft_tokens",
];

/// The deployment with one field as if nothing had been said about it, nor about what means nothing without it.
///
/// # Errors
/// Never for names of fields; serialising plain fields is always readable.
pub fn without(deployment: &Deployment, field: &str) -> Result<Deployment> {
    let mut bare = with(deployment, field, None)?;
    if field == "speculative_algorithm" {
        bare = with(&bare, "speculative_draft_model_path", None)?;
    }
    if field == "speculative_algorithm" || NUMBERS_OF_DRAFTS.contains(&field) {
        for number in NUMBERS_OF_DRAFTS {
            bare = with(&bare, number, None)?;
        }
    }
    Ok(bare)
}

/// The deployment with one field set, or unset.
///
/// # Errors
/// If the field does not take the value.
pub fn with(deployment: &Deployment, field: &str, value: Option<Value>) -> Result<Deployment> {
    let broken = |e: serde_json::Error| kvwise_core::Error::input(format!("{field}: {e}"));
    let mut all = serde_json::to_value(deployment).map_err(broken)?;
    let empty = serde_json::to_value(Deployment::default()).map_err(broken)?;
    if let Some(fields) = all.as_object_mut() {
        let value = value.or_else(|| empty.get(field).cloned()).unwrap_or(Value::Null);
        fields.insert(field.to_owned(), value);
    }
    let changed: Deployment = serde_json::from_value(all).map_err(broken)?;
    Ok(Deployment {
        lookup: deployment.lookup.clone(),
        ..changed
    })
}

/// What the field changes, in words, by planning without it; `None` if nothing that a plan shows.
pub fn effect(deployment: &Deployment, plan: &Plan, field: &str) -> Option<String> {
    let other = without(deployment, field).ok()?;
    let other = match other.resolve() {
        Ok(resolved) => plan::assess(&resolved.request(false)),
        Err(e) => Err(e),
    };
    match other {
        Ok(other) => difference(plan, &other),
        Err(e) => Some(format!("without it there is no plan: {e}")),
    }
}

/// What `plan` has that `other` has not, in words.
fn difference(plan: &Plan, other: &Plan) -> Option<String> {
    if plan.feasibility.refused.is_none()
        && let Some(reason) = &other.feasibility.refused
    {
        return Some(format!(
            "without it the engine would not start: {}",
            first_sentence(reason)
        ));
    }
    if plan.memory.headroom_bytes.0 >= 0 && other.memory.headroom_bytes.0 < 0 {
        return Some("without it weights and overhead do not fit".to_owned());
    }
    let (mine, theirs) = (plan.kv_cache.as_ref()?, other.kv_cache.as_ref()?);
    if mine.max_model_len == theirs.max_model_len && mine.capacity_tokens != theirs.capacity_tokens {
        return Some(format!(
            "the KV cache holds {} tokens, {} without it",
            grouped(mine.capacity_tokens),
            grouped(theirs.capacity_tokens)
        ));
    }
    if mine.max_model_len != theirs.max_model_len {
        return Some(format!(
            "{:.1} requests of {} tokens fit at once, {:.1} of {} without it",
            mine.max_concurrency,
            grouped(mine.max_model_len),
            theirs.max_concurrency,
            grouped(theirs.max_model_len)
        ));
    }
    None
}

fn first_sentence(text: &str) -> &str {
    text.split_once(". ").map_or(text, |(first, _)| first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> Deployment {
        Deployment {
            model: Some("Llama-3.1-8B".to_owned()),
            gpu: Some("h100".to_owned()),
            kv_cache_dtype: Some("fp8".to_owned()),
            max_num_seqs: Some(64),
            ..Deployment::default()
        }
    }

    fn planned(deployment: &Deployment) -> Plan {
        plan::plan(&deployment.resolve().unwrap().request(false)).unwrap()
    }

    #[test]
    fn the_effect_of_a_setting_is_the_difference_of_two_plans() {
        let deployment = llama();
        let plan = planned(&deployment);
        let bare = planned(&without(&deployment, "kv_cache_dtype").unwrap());
        let says = effect(&deployment, &plan, "kv_cache_dtype").unwrap();
        assert!(
            says.contains(&grouped(plan.kv_cache.as_ref().unwrap().capacity_tokens)),
            "{says}"
        );
        assert!(
            says.contains(&grouped(bare.kv_cache.as_ref().unwrap().capacity_tokens)),
            "{says}"
        );
    }

    #[test]
    fn numbers_that_are_given_together_are_taken_away_together() {
        let deployment = Deployment {
            model: Some("zai-org/GLM-4.5-Air".to_owned()),
            engine: Some("sglang".to_owned()),
            gpu: Some("h200".to_owned()),
            tensor_parallel_size: Some(4),
            max_num_seqs: None,
            kv_cache_dtype: None,
            speculative_algorithm: Some("EAGLE".to_owned()),
            speculative_num_steps: Some(1),
            speculative_eagle_topk: Some(1),
            speculative_num_draft_tokens: Some(2),
            ..llama()
        };
        let plan = planned(&deployment);
        for number in NUMBERS_OF_DRAFTS {
            let says = effect(&deployment, &plan, number);
            assert!(
                !says.as_deref().unwrap_or_default().contains("no plan"),
                "{number}: {says:?}"
            );
        }
        let says = effect(&deployment, &plan, "speculative_algorithm").unwrap();
        assert!(says.contains("without it"), "{says}");
        let bare = without(&deployment, "speculative_algorithm").unwrap();
        assert_eq!(
            (bare.speculative_num_steps, bare.speculative_eagle_topk),
            (None, None)
        );
    }

    #[test]
    fn what_changes_nothing_has_no_effect() {
        let deployment = Deployment {
            mode: Some("balanced".to_owned()),
            ..llama()
        };
        let plan = planned(&deployment);
        assert_eq!(effect(&deployment, &plan, "prompt_tokens"), None);
    }

    #[test]
    fn a_setting_without_which_the_engine_does_not_start_says_so() {
        let deployment = Deployment {
            model: Some("meta-llama/Llama-3.1-70B".to_owned()),
            gpu: Some("h100".to_owned()),
            tensor_parallel_size: Some(2),
            max_model_len: Some("8192".to_owned()),
            ..Deployment::default()
        };
        let plan = planned(&deployment);
        let says = effect(&deployment, &plan, "max_model_len").unwrap();
        assert!(
            says.starts_with("without it the engine would not start"),
            "{says}"
        );
    }
}
