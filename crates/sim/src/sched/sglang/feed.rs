//! The requests of a [`Trace`] as the replay takes them.

#![expect(
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    reason = "request numbers and lengths of a trace are u32"
)]

use kvwise_cache::radix::Namespaces;
use kvwise_core::{Error, Result};

use super::Request;
use crate::trace::{Prompt, Trace, TraceFormat};

/// Prompt and output tokens of each request in file order.
///
/// Blocks become runs of numbers that are equal exactly where blocks are equal. Output tokens that the trace does not
/// give are numbers that no other request has (below 0), so later prompts cannot match them; so are the tokens
/// after the last full block in formats that list full blocks only.
#[derive(Debug)]
pub struct Feed<'a> {
    trace: &'a Trace,
    names: Namespaces,
    /// Expand the file's own block ids, as given output tokens may continue with them.
    by_raw_id: bool,
    next: usize,
}

impl<'a> Feed<'a> {
    /// The requests of `trace`.
    ///
    /// # Errors
    /// If the trace has lengths only.
    pub fn new(trace: &'a Trace) -> Result<Self> {
        if !trace.is_empty() && matches!(trace.prompt(0), Prompt::Unknown) {
            return Err(Error::input(format!(
                "{}: the trace has lengths only, no tokens and no hash ids, so prefixes cannot be compared",
                trace.name()
            )));
        }
        let by_raw_id = (0..trace.len()).any(|at| trace.output_tokens(at).is_some());
        Ok(Self {
            trace,
            names: Namespaces::default(),
            by_raw_id,
            next: 0,
        })
    }

    /// Tokens of the longest request, prompt and output.
    pub fn longest_request_tokens(&self) -> usize {
        let trace = self.trace;
        (0..trace.len())
            .map(|at| trace.input_len(at) as usize + trace.output_len(at) as usize)
            .max()
            .unwrap_or(1)
    }

    /// Prompt tokens of request `number`, without making them.
    pub(super) fn prompt_len(&self, number: usize) -> usize {
        let input = self.trace.input_len(number) as usize;
        match self.trace.prompt(number) {
            Prompt::Tokens(given) => given.len(),
            Prompt::Blocks(path) if self.trace.format() == TraceFormat::Tokens => {
                input.min(path.iter().count().saturating_mul(path.block_tokens() as usize))
            }
            Prompt::Unknown => 0,
            Prompt::Blocks(_) => input,
        }
    }

    /// The tokens of request `number`.
    pub(super) fn request(&mut self, number: usize) -> Result<Request> {
        let trace = self.trace;
        let at = |e: Error| e.at(format_args!("{}: request {}", trace.name(), trace.id(number)));
        let (input, output) = (
            trace.input_len(number) as usize,
            trace.output_len(number) as usize,
        );
        let mut tokens: Vec<i64> = Vec::with_capacity(input + output);
        // 2^32 numbers below zero for each request: outputs from the lower half, missing prompt tokens from the upper
        let own = -((number as i64 + 1) << 32);
        match trace.prompt(number) {
            Prompt::Unknown => {}
            Prompt::Tokens(given) => tokens.extend(given.iter().map(|&t| i64::from(t))),
            Prompt::Blocks(path) => {
                let size = u64::from(path.block_tokens());
                let mut push = |block: u64| {
                    let first = block
                        .checked_add(1)
                        .and_then(|next| next.checked_mul(size))
                        .and_then(|end| i64::try_from(end - size).ok())
                        .ok_or_else(|| Error::overflow(format!("block id {block} times {size} tokens")))?;
                    let count = (size as usize).min(input - tokens.len()) as i64;
                    tokens.extend(first..first + count);
                    Ok(())
                };
                if self.by_raw_id {
                    path.raw_ids().try_for_each(&mut push).map_err(at)?;
                } else {
                    path.iter().map(u64::from).try_for_each(&mut push).map_err(at)?;
                }
                // the reference takes a prompt of the `tokens` format for as long as its blocks are
                if trace.format() != TraceFormat::Tokens {
                    let missing = (input - tokens.len()) as i64;
                    tokens.extend(own + (1 << 31)..own + (1 << 31) + missing);
                }
            }
        }
        let prompt_len = tokens.len();
        match trace.output_tokens(number) {
            Some(given) => tokens.extend(given.iter().map(|&t| i64::from(t))),
            None => tokens.extend(own..own + output as i64),
        }
        // SGLang appends the adapter's name to the extra key
        let (extra_key, lora) = (trace.extra_key(number), trace.lora(number));
        let joined = lora.map(|lora| format!("{}{lora}", extra_key.unwrap_or_default()));
        let namespace = self
            .names
            .intern(joined.as_deref().or(extra_key), trace.cache_salt(number))
            .map_err(|e| at(super::of_cache(e)))?;
        Ok(Request {
            number,
            tokens,
            prompt_len,
            namespace,
            priority: trace.priority(number),
        })
    }
}

impl Iterator for Feed<'_> {
    type Item = Result<Request>;

    fn next(&mut self) -> Option<Result<Request>> {
        if self.next == self.trace.len() {
            return None;
        }
        self.next += 1;
        Some(self.request(self.next - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{IdMeaning, NewRequest, PromptIds, TraceBuilder};

    fn feed(trace: &Trace) -> Vec<Request> {
        Feed::new(trace).unwrap().collect::<Result<_>>().unwrap()
    }

    #[test]
    fn equal_blocks_become_equal_tokens_and_outputs_are_nobody_elses() {
        let mut builder = TraceBuilder::new("t", 4, IdMeaning::Prefix).format(TraceFormat::Mooncake);
        for (ids, input_len) in [(&[7u64, 8][..], 6), (&[7, 9][..], 8)] {
            let prompt = PromptIds::Blocks(ids);
            let request = NewRequest {
                input_len: Some(input_len),
                output_len: Some(2),
                prompt,
                ..NewRequest::default()
            };
            builder.push(&request).unwrap();
        }
        let requests = feed(&builder.finish());
        assert_eq!(requests[0].tokens[..4], requests[1].tokens[..4]);
        assert_ne!(requests[0].tokens[4], requests[1].tokens[4]);
        assert_eq!((requests[0].prompt_len, requests[0].tokens.len()), (6, 8));
        assert!(
            requests
                .iter()
                .all(|r| r.tokens[r.prompt_len..].iter().all(|&t| t < 0))
        );
        assert!(
            requests[0].tokens[6..]
                .iter()
                .all(|t| !requests[1].tokens.contains(t))
        );
    }

    #[test]
    fn a_prompt_is_as_long_as_its_tokens_are() {
        for format in [TraceFormat::Mooncake, TraceFormat::Tokens, TraceFormat::Bailian] {
            let mut builder = TraceBuilder::new("t", 4, IdMeaning::Prefix).format(format);
            for (ids, input_len) in [
                (&[7u64, 8][..], 6),
                (&[7, 9][..], 8),
                (&[7][..], 6),
                (&[3, 4][..], 5),
            ] {
                let request = NewRequest {
                    input_len: Some(input_len),
                    output_len: Some(2),
                    prompt: PromptIds::Blocks(ids),
                    ..NewRequest::default()
                };
                builder.push(&request).unwrap();
            }
            let trace = builder.finish();
            let lens: Vec<usize> = (0..4).map(|i| Feed::new(&trace).unwrap().prompt_len(i)).collect();
            let made: Vec<usize> = feed(&trace).iter().map(|r| r.prompt_len).collect();
            assert_eq!(lens, made, "{format:?}");
        }
    }

    #[test]
    fn tokens_after_the_last_full_block_are_nobody_elses() {
        let mut builder = TraceBuilder::new("t", 4, IdMeaning::Prefix).format(TraceFormat::Bailian);
        for _ in 0..2 {
            let prompt = PromptIds::Blocks(&[7]);
            let request = NewRequest {
                input_len: Some(6),
                output_len: Some(1),
                prompt,
                ..NewRequest::default()
            };
            builder.push(&request).unwrap();
        }
        let requests = feed(&builder.finish());
        assert_eq!(requests[0].tokens[..4], requests[1].tokens[..4]);
        assert_eq!(requests[0].prompt_len, 6);
        assert!(
            requests[0].tokens[4..]
                .iter()
                .all(|t| !requests[1].tokens.contains(t))
        );
    }

    #[test]
    fn adapters_and_salts_keep_prefixes_apart() {
        let mut builder = TraceBuilder::new("t", 4, IdMeaning::Content);
        for (lora, cache_salt) in [
            (None, None),
            (Some("a"), None),
            (None, Some("s")),
            (Some("a"), None),
        ] {
            let prompt = PromptIds::Tokens(&[1, 2, 3]);
            let request = NewRequest {
                prompt,
                output_len: Some(1),
                lora,
                cache_salt,
                ..NewRequest::default()
            };
            builder.push(&request).unwrap();
        }
        let spaces: Vec<_> = feed(&builder.finish()).iter().map(|r| r.namespace).collect();
        assert_eq!(spaces[1], spaces[3]);
        assert!(spaces[0] != spaces[1] && spaces[0] != spaces[2] && spaces[1] != spaces[2]);
    }
}
