//! What shared prefixes save: counted by running the requests through the radix tree, beside the token-level figure
//! that a trie of single tokens suggests.
//!
//! The engines share less than tokens: whole blocks only (vLLM, and SGLang with pages above one token), and the
//! last token of a prompt is always computed, because its logits are wanted. All requests are held at once, so that
//! nothing is evicted: the question is what they need, not what a pool can give.

use kvwise_cache::radix::{Namespace, RadixCache, RadixCacheConfig, RequestKv, TreePolicy};
use kvwise_core::{Error, Result};

/// A kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// Requests with one system prompt and an own question.
    SystemPrompt {
        /// Tokens of the system prompt.
        system_tokens: u32,
        /// Tokens of each question.
        question_tokens: u32,
    },
    /// Requests with the same worked examples and an own question.
    FewShot {
        /// Examples.
        examples: u32,
        /// Tokens of an example.
        example_tokens: u32,
        /// Tokens of each question.
        question_tokens: u32,
    },
    /// Turns of one conversation: each prompt is the whole history and a new message.
    MultiTurn {
        /// Tokens of each message.
        message_tokens: u32,
        /// Tokens of each answer.
        answer_tokens: u32,
    },
}

/// What `requests` requests of a scenario need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharingAnswer {
    /// Requests (turns of a conversation).
    pub requests: u32,
    /// Prompt tokens of all requests.
    pub prompt_tokens: u64,
    /// Tokens in slots when nothing is shared, whole blocks.
    pub tokens_without_sharing: u64,
    /// Tokens in slots with sharing, whole blocks.
    pub tokens_with_sharing: u64,
    /// Prompt tokens computed; the others are read from the cache.
    pub computed_tokens: u64,
    /// Slots of a trie that has a node for each token: no blocks, nothing recomputed.
    pub trie_tokens: u64,
    /// Slots without sharing in the trie's terms.
    pub trie_tokens_without_sharing: u64,
}

/// Largest experiment, in tokens of all requests.
const MAX_TOKENS: u64 = 1 << 28;

/// Runs a scenario with pages of `block_size` tokens.
///
/// # Errors
/// If there are no requests or tokens, or more than 2^28 tokens in all.
pub fn sharing(scenario: Scenario, requests: u32, block_size: u32) -> Result<SharingAnswer> {
    if requests == 0 || block_size == 0 {
        return Err(Error::input("requests and block-size are positive counts"));
    }
    let prompts = prompts(scenario, requests)?;
    let block = block_size as usize;
    let total: usize = prompts
        .iter()
        .map(|p| p.tokens.len().next_multiple_of(block) + block)
        .sum();
    let longest = prompts.iter().map(|p| p.tokens.len()).max().unwrap_or(1);
    let mut cache = RadixCache::new(RadixCacheConfig {
        capacity_tokens: total,
        page_size: block,
        policy: TreePolicy::Lru,
        max_requests: prompts.len(),
        max_context_tokens: longest,
        enabled: true,
    })
    .map_err(of_cache)?;
    let mut answer = SharingAnswer {
        requests,
        prompt_tokens: 0,
        tokens_without_sharing: 0,
        tokens_with_sharing: 0,
        computed_tokens: 0,
        trie_tokens: 0,
        trie_tokens_without_sharing: 0,
    };
    let mut held: Vec<RequestKv> = Vec::with_capacity(prompts.len());
    for prompt in &prompts {
        let all = &prompt.tokens;
        let mut request = cache
            .lookup(Namespace::DEFAULT, &all[..prompt.prompt_len], 0)
            .map_err(of_cache)?;
        answer.prompt_tokens += prompt.prompt_len as u64;
        answer.computed_tokens += (prompt.prompt_len - request.prefix_len()) as u64;
        answer.tokens_without_sharing += all.len().next_multiple_of(block) as u64;
        answer.trie_tokens_without_sharing += all.len() as u64;
        answer.trie_tokens += prompt.new_tokens;
        cache.start(&mut request).map_err(of_cache)?;
        cache.extend(&mut request, all.len(), |_| {}).map_err(of_cache)?;
        cache
            .checkpoint(&mut request, all, prompt.prompt_len)
            .map_err(of_cache)?;
        held.push(request);
    }
    answer.tokens_with_sharing = (total - cache.slots().available_tokens()) as u64;
    for request in held {
        cache.retract(request).map_err(of_cache)?;
    }
    Ok(answer)
}

struct Served {
    /// Prompt and answer.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Tokens that no earlier request has at this place.
    new_tokens: u64,
}

fn prompts(scenario: Scenario, requests: u32) -> Result<Vec<Served>> {
    let (common, own, answer) = match scenario {
        Scenario::SystemPrompt {
            system_tokens,
            question_tokens,
        } => (u64::from(system_tokens), question_tokens, 0),
        Scenario::FewShot {
            examples,
            example_tokens,
            question_tokens,
        } => (
            u64::from(examples) * u64::from(example_tokens),
            question_tokens,
            0,
        ),
        Scenario::MultiTurn {
            message_tokens,
            answer_tokens,
        } => (0, message_tokens, answer_tokens),
    };
    if own == 0 {
        return Err(Error::input("each request needs at least one token of its own"));
    }
    let n = u64::from(requests);
    let per_turn = u64::from(own) + u64::from(answer);
    let is_chat = matches!(scenario, Scenario::MultiTurn { .. });
    let history = if is_chat {
        per_turn.saturating_mul(n)
    } else {
        common + per_turn
    };
    if history.saturating_mul(n) > MAX_TOKENS {
        return Err(Error::input(format!(
            "{requests} requests of this size are more than {MAX_TOKENS} tokens"
        )));
    }
    let mut next = 0u32;
    let mut fresh = |count: u64| -> Vec<u32> {
        let from = next;
        // below MAX_TOKENS in all
        next += u32::try_from(count).expect("checked above");
        (from..next).collect()
    };
    let mut before = fresh(common);
    let mut made = Vec::new();
    for number in 0..requests {
        let mut tokens = before.clone();
        tokens.extend(fresh(u64::from(own)));
        let prompt_len = tokens.len();
        tokens.extend(fresh(u64::from(answer)));
        if is_chat {
            before.clone_from(&tokens);
        }
        let shared = if number == 0 { 0 } else { common };
        let new_tokens = per_turn + common - shared;
        made.push(Served {
            tokens,
            prompt_len,
            new_tokens,
        });
    }
    Ok(made)
}

#[expect(clippy::needless_pass_by_value, reason = "used with map_err")]
fn of_cache(error: kvwise_cache::Error) -> Error {
    Error::input(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: Scenario = Scenario::SystemPrompt {
        system_tokens: 500,
        question_tokens: 100,
    };

    #[test]
    fn a_system_prompt_of_500_tokens_shares_496_in_blocks_of_16() {
        let answer = sharing(SYSTEM, 100, 16).unwrap();
        assert_eq!(answer.computed_tokens, 600 + 99 * (600 - 496));
        // 31 shared blocks, 7 of each request's own 38
        assert_eq!(answer.tokens_with_sharing, 16 * (31 + 100 * 7));
        assert_eq!(answer.tokens_without_sharing, 16 * 38 * 100);
        // the tutorial's 60,000 and 10,500 tokens: 82.5 % less
        assert_eq!(
            (answer.trie_tokens_without_sharing, answer.trie_tokens),
            (60_000, 10_500)
        );
    }

    #[test]
    fn pages_of_one_token_share_as_the_trie_does() {
        let answer = sharing(SYSTEM, 100, 1).unwrap();
        assert_eq!(answer.tokens_with_sharing, answer.trie_tokens);
        assert_eq!(answer.computed_tokens, 600 + 99 * 100);
    }

    #[test]
    fn a_prefix_shorter_than_a_block_shares_nothing() {
        let answer = sharing(
            Scenario::SystemPrompt {
                system_tokens: 6,
                question_tokens: 4,
            },
            6,
            16,
        )
        .unwrap();
        assert_eq!(answer.tokens_with_sharing, answer.tokens_without_sharing);
        assert_eq!(answer.computed_tokens, answer.prompt_tokens);
    }

    #[test]
    fn a_conversation_computes_each_message_once_and_an_identical_prompt_its_last_token() {
        let chat = Scenario::MultiTurn {
            message_tokens: 32,
            answer_tokens: 64,
        };
        let answer = sharing(chat, 10, 16).unwrap();
        assert_eq!(answer.computed_tokens, 320);
        assert_eq!(answer.tokens_with_sharing, 10 * 96);
        assert_eq!(answer.trie_tokens, 960);
    }

    #[test]
    fn impossible_scenarios_are_refused() {
        assert!(sharing(SYSTEM, 0, 16).is_err());
        assert!(sharing(SYSTEM, 1, 0).is_err());
        assert!(
            sharing(
                Scenario::SystemPrompt {
                    system_tokens: 5,
                    question_tokens: 0
                },
                3,
                1
            )
            .is_err()
        );
        assert!(sharing(SYSTEM, u32::MAX, 16).is_err());
    }
}
