//! The load that a deployment is planned for, and what the user wants to keep free.

use kvwise_core::plan::{Factor, Load, Mode, Policy};
use kvwise_core::units::{parse_bytes, parse_count};
use kvwise_core::{Error, Result};

use super::{Deployment, EngineName};

impl Deployment {
    pub(super) fn load(&self, warnings: &mut Vec<String>) -> Result<Load> {
        let mut contexts = self
            .context
            .iter()
            .map(|text| parse_count(text).map_err(|e| e.at("--context")))
            .collect::<Result<Vec<_>>>()?;
        let prompt_tokens = match (self.prompt_tokens, self.gen_tokens) {
            (None, None) => None,
            (prompt, output) => {
                if !contexts.is_empty() {
                    return Err(Error::input(
                        "--context and --prompt-tokens/--gen-tokens both say how long a request is: give one of them",
                    ));
                }
                let sum = prompt
                    .unwrap_or(0)
                    .checked_add(output.unwrap_or(0))
                    .ok_or_else(|| Error::overflow("--prompt-tokens plus --gen-tokens"))?;
                if output.is_none() {
                    warnings.push("--gen-tokens is not given: the output counts as 0 tokens".to_owned());
                }
                contexts.push(sum);
                prompt
            }
        };
        let load = Load {
            contexts,
            concurrencies: if self.concurrency.is_empty() {
                vec![1]
            } else {
                self.concurrency.clone()
            },
            prompt_tokens,
            mode: self.mode.as_deref().map(Mode::parse).transpose()?,
        };
        load.validate()?;
        Ok(load)
    }

    pub(super) fn policy(&self, engine: EngineName) -> Result<Policy> {
        let mut policy = match engine {
            EngineName::Vllm | EngineName::Sglang | EngineName::LlamaCpp => Policy::none(),
            EngineName::Generic => Policy::generic(),
        };
        if let Some(text) = &self.overhead {
            policy.overhead_bytes = Some(parse_bytes(text).map_err(|e| e.at("--overhead"))?);
        }
        if let Some(text) = &self.headroom {
            policy.headroom_bytes = parse_bytes(text).map_err(|e| e.at("--headroom"))?;
        }
        if let Some(text) = &self.fragmentation_factor {
            policy.fragmentation = Factor::parse(text).map_err(|e| e.at("--fragmentation-factor"))?;
        }
        Ok(policy)
    }
}
