//! Request traces: what arrived when, how long it was, and which prefixes it shared.
//!
//! A [`Trace`] is columnar: one array a property, one entry a request, in the order of the file. Prompts come in
//! three kinds, one kind a trace ([`Content`]):
//!
//! - **tokens**: the token ids themselves, in one flat pool;
//! - **blocks**: an anonymised trace names every block of `block_tokens` tokens by an id. Requests are then paths
//!   in one prefix tree, kept as runs of consecutive nodes ([`BlockPaths`]): 8 bytes a run instead of 8 bytes a
//!   block, because a request that repeats an earlier one follows nodes that were numbered consecutively;
//! - **none**: lengths and times only.
//!
//! ```
//! use kvwise_sim::trace::{IdMeaning, NewRequest, Prompt, PromptIds, TraceBuilder};
//!
//! let mut builder = TraceBuilder::new("example", 16, IdMeaning::Prefix);
//! builder.push(&NewRequest { input_len: Some(40), prompt: PromptIds::Blocks(&[7, 8, 9]), ..NewRequest::default() })?;
//! builder.push(&NewRequest { input_len: Some(48), prompt: PromptIds::Blocks(&[7, 8, 4]), ..NewRequest::default() })?;
//! let trace = builder.finish();
//!
//! assert_eq!(trace.len(), 2);
//! let Prompt::Blocks(path) = trace.prompt(1) else { unreachable!() };
//! assert_eq!(path.iter().collect::<Vec<_>>(), [0, 1, 3]); // nodes, numbered as they first appear
//! # Ok::<(), kvwise_core::Error>(())
//! ```
//!
//! Order: a trace keeps the order of its file. Whoever needs the order of arrival asks [`Trace::arrival_order`].
//! Times: kept as the number the file gives, in seconds (in the `tokens` format: seconds or scheduler steps, as
//! the reader of the trace decides), so that a comparison with an engine's floating-point clock is exact.

mod adapters;
mod builder;
mod chunk;
mod columns;
mod format;
mod paths;
mod size;
mod summary;

pub use adapters::Adapters;
pub use builder::{IdMeaning, MAX_REQUEST_TOKENS, NewRequest, PromptIds, TraceBuilder};
pub use columns::{NameColumn, NameTable, TextColumn};
pub use format::TraceFormat;
pub use paths::{BlockPath, BlockPaths, PathInterner, ROOT, Run};
pub(crate) use size::size_of_u64;
pub use size::{TraceSize, table_bytes};
pub use summary::{Distribution, Summary, concurrency, log2_bins};

use kvwise_core::{Error, Result};

/// A position in one of the flat pools.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) len: u32,
}

impl Span {
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        // A span was made from a Vec's length, so it fits usize.
        let start = usize::try_from(self.start).expect("a span lies in memory");
        start..start + self.len as usize
    }
}

/// What is known of the prompts of a trace.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Only lengths.
    None,
    /// Token ids.
    Tokens(TokenPool),
    /// Ids of blocks, interned as nodes of one prefix tree.
    Blocks(BlockPaths),
}

/// Token ids of many requests in one array.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenPool {
    pub(crate) tokens: Vec<u32>,
    pub(crate) spans: Vec<Span>,
}

impl TokenPool {
    /// The tokens of entry `index`.
    pub fn get(&self, index: usize) -> &[u32] {
        &self.tokens[self.spans[index].range()]
    }

    /// All tokens of all entries.
    pub fn total_tokens(&self) -> u64 {
        self.spans.iter().map(|s| u64::from(s.len)).sum()
    }

    pub(crate) fn push(&mut self, tokens: &[u32]) {
        let start = self.tokens.len() as u64;
        self.tokens.extend_from_slice(tokens);
        // callers refuse prompts of 2^32 tokens or more
        let len = u32::try_from(tokens.len()).expect("a prompt has fewer than 2^32 tokens");
        self.spans.push(Span { start, len });
    }
}

/// The prompt of one request.
#[derive(Debug, Clone, Copy)]
pub enum Prompt<'a> {
    /// Only its length is known.
    Unknown,
    /// Its token ids; as many as the input length.
    Tokens(&'a [u32]),
    /// Its blocks. They cover the whole input (the last one perhaps partly) or, in formats that list full
    /// blocks only, all but the last `input_len % block_tokens` tokens.
    Blocks(BlockPath<'a>),
}

/// Requests with their arrival times, lengths and (if known) shared content; see the [module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    pub(crate) name: String,
    pub(crate) format: TraceFormat,
    /// Empty if the trace has no times.
    pub(crate) arrivals: Vec<f64>,
    pub(crate) input_lens: Vec<u32>,
    pub(crate) output_lens: Vec<u32>,
    pub(crate) content: Content,
    /// Output token ids; requests without any have an empty span and `false` in `has_output_tokens`.
    pub(crate) outputs: TokenPool,
    pub(crate) has_output_tokens: Vec<bool>,
    /// Empty if all are 0.
    pub(crate) priorities: Vec<i64>,
    pub(crate) cache_salts: NameColumn,
    pub(crate) extra_keys: NameColumn,
    pub(crate) loras: NameColumn,
    /// Conversation numbers, empty if unknown.
    pub(crate) sessions: Vec<u32>,
    /// Raw JSON text of each id (`"r0"` with its quotes, `7` without); empty if the file has no ids.
    pub(crate) ids: TextColumn,
}

impl Trace {
    /// What the trace is called: the file's name, or the generator's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The format that it was read from.
    pub fn format(&self) -> TraceFormat {
        self.format
    }

    /// How many requests.
    pub fn len(&self) -> usize {
        self.input_lens.len()
    }

    /// Whether there is no request at all.
    pub fn is_empty(&self) -> bool {
        self.input_lens.is_empty()
    }

    /// What is known of the prompts.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Tokens of a block id; `None` unless the content is [`Content::Blocks`].
    pub fn block_tokens(&self) -> Option<u32> {
        match &self.content {
            Content::Blocks(paths) => Some(paths.block_tokens()),
            Content::None | Content::Tokens(_) => None,
        }
    }

    /// The prompt of request `index`.
    pub fn prompt(&self, index: usize) -> Prompt<'_> {
        match &self.content {
            Content::None => Prompt::Unknown,
            Content::Tokens(pool) => Prompt::Tokens(pool.get(index)),
            Content::Blocks(paths) => Prompt::Blocks(paths.get(index)),
        }
    }

    /// Prompt length in tokens, at least 1.
    pub fn input_len(&self, index: usize) -> u32 {
        self.input_lens[index]
    }

    /// Generated tokens; 0 if the trace says so.
    pub fn output_len(&self, index: usize) -> u32 {
        self.output_lens[index]
    }

    /// All prompt lengths, in tokens.
    pub fn input_lens(&self) -> &[u32] {
        &self.input_lens
    }

    /// All output lengths, in tokens.
    pub fn output_lens(&self) -> &[u32] {
        &self.output_lens
    }

    /// The ids of the generated tokens, where the trace gives them: exactly `output_len` of them.
    pub fn output_tokens(&self, index: usize) -> Option<&[u32]> {
        (self.has_output_tokens.get(index) == Some(&true)).then(|| self.outputs.get(index))
    }

    /// Whether the trace has arrival times.
    pub fn has_arrivals(&self) -> bool {
        !self.arrivals.is_empty()
    }

    /// Arrival time as the file gives it, in seconds (`tokens` format: seconds or scheduler steps, as its reader
    /// decides). Finite and not negative.
    pub fn arrival(&self, index: usize) -> Option<f64> {
        self.arrivals.get(index).copied()
    }

    /// Arrival time rounded to nanoseconds.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bounded when it was read"
    )]
    pub fn arrival_ns(&self, index: usize) -> Option<u64> {
        self.arrival(index).map(|seconds| (seconds * 1e9).round() as u64)
    }

    /// Request numbers by arrival time, ties in file order; `None` without times.
    pub fn arrival_order(&self) -> Option<Vec<u32>> {
        if !self.has_arrivals() {
            return None;
        }
        let mut order: Vec<u32> = (0..self.request_count()).collect();
        order.sort_by(|&a, &b| self.arrivals[a as usize].total_cmp(&self.arrivals[b as usize]));
        Some(order)
    }

    /// Scheduling priority (smaller runs first in vLLM); 0 if not given.
    pub fn priority(&self, index: usize) -> i64 {
        self.priorities.get(index).copied().unwrap_or(0)
    }

    /// vLLM's `cache_salt`: prefixes are shared only between equal salts.
    pub fn cache_salt(&self, index: usize) -> Option<&str> {
        self.cache_salts.get(index)
    }

    /// SGLang's `extra_key`: prefixes are shared only between equal keys.
    pub fn extra_key(&self, index: usize) -> Option<&str> {
        self.extra_keys.get(index)
    }

    /// Name of the LoRA adapter, part of the block hash in vLLM.
    pub fn lora(&self, index: usize) -> Option<&str> {
        self.loras.get(index)
    }

    /// The column of salts: interned, 0 for none.
    pub fn cache_salt_column(&self) -> &NameColumn {
        &self.cache_salts
    }

    /// The column of extra keys: interned, 0 for none.
    pub fn extra_key_column(&self) -> &NameColumn {
        &self.extra_keys
    }

    /// The column of adapters: interned, 0 for none.
    pub fn lora_column(&self) -> &NameColumn {
        &self.loras
    }

    /// Whether some request can share a prefix only with requests of the same salt, key or adapter.
    pub fn has_isolation_keys(&self) -> bool {
        !(self.cache_salts.is_empty() && self.extra_keys.is_empty() && self.loras.is_empty())
    }

    /// Number of the conversation that the request belongs to, counted from 0.
    pub fn session(&self, index: usize) -> Option<u32> {
        self.sessions.get(index).copied()
    }

    /// The id as JSON text: `"r0"` with its quotes, or `7`; the request's number if the trace has no ids.
    pub fn id_json(&self, index: usize) -> String {
        self.ids
            .get(index)
            .map_or_else(|| index.to_string(), str::to_owned)
    }

    /// The id as plain text: `r0`, `7`; the request's number if the trace has no ids.
    pub fn id(&self, index: usize) -> String {
        let json = self.id_json(index);
        // the column holds only JSON integers and strings; strings without escapes need no decoder
        match json.strip_prefix('"').and_then(|s| s.strip_suffix('"')) {
            Some(inner) => columns::unescape(inner),
            None => json,
        }
    }

    /// The prompt of request `index` as token ids, appended to `out`.
    ///
    /// Blocks expand to `node * block_tokens + position`, cut at the input length: equal tokens exactly where the
    /// blocks are equal, which is all a prefix cache looks at. Content of full blocks only gives fewer tokens than
    /// the input length.
    ///
    /// # Errors
    /// If the trace has no content, or its ids would not fit 32 bits.
    pub fn append_tokens(&self, index: usize, out: &mut Vec<u32>) -> Result<()> {
        match self.prompt(index) {
            Prompt::Unknown => Err(Error::input(format!(
                "{}: the trace has lengths only, no tokens and no hash ids, so prefixes cannot be compared",
                self.name
            ))),
            Prompt::Tokens(tokens) => {
                out.extend_from_slice(tokens);
                Ok(())
            }
            Prompt::Blocks(path) => {
                let block_tokens = path.block_tokens();
                if u64::from(path.tree_len()) * u64::from(block_tokens) > u64::from(u32::MAX) {
                    return Err(Error::unsupported(format!(
                        "{}: {} distinct blocks of {block_tokens} tokens need more than 2^32 token ids",
                        self.name,
                        path.tree_len()
                    )));
                }
                let mut left = self.input_len(index);
                for node in path.iter() {
                    let take = left.min(block_tokens);
                    let first = node * block_tokens;
                    out.extend(first..first + take);
                    left -= take;
                }
                Ok(())
            }
        }
    }

    /// Request `index` as a builder takes it, without the blocks of its prompt.
    pub(crate) fn request(&self, index: usize) -> NewRequest<'_> {
        NewRequest {
            arrival: self.arrival(index),
            input_len: Some(u64::from(self.input_len(index))),
            output_len: Some(u64::from(self.output_len(index))),
            prompt: match self.prompt(index) {
                Prompt::Tokens(tokens) => PromptIds::Tokens(tokens),
                Prompt::Unknown | Prompt::Blocks(_) => PromptIds::Unknown,
            },
            output_tokens: self.output_tokens(index),
            priority: self.priority(index),
            cache_salt: self.cache_salt(index),
            extra_key: self.extra_key(index),
            lora: self.lora(index),
            session: self.session(index),
            id_json: self.ids.get(index),
        }
    }

    /// How many requests; a builder refuses more than `u32` can count.
    pub fn request_count(&self) -> u32 {
        u32::try_from(self.len()).expect("a builder takes fewer than 2^32 requests")
    }

    /// The same requests in another order, or some of them: entry `k` of the answer is request `order[k]`.
    ///
    /// # Panics
    /// If a number in `order` is not that of a request.
    #[must_use]
    pub fn select(&self, order: &[u32]) -> Self {
        self.clone().into_order(order)
    }

    /// As [`Trace::select`], without a copy of the content.
    ///
    /// # Panics
    /// If a number in `order` is not that of a request.
    #[must_use]
    pub fn into_order(mut self, order: &[u32]) -> Self {
        fn pick<T: Copy>(column: &mut Vec<T>, order: &[u32]) {
            if !column.is_empty() {
                *column = order.iter().map(|&i| column[i as usize]).collect();
            }
        }
        pick(&mut self.arrivals, order);
        pick(&mut self.input_lens, order);
        pick(&mut self.output_lens, order);
        match &mut self.content {
            Content::None => {}
            Content::Tokens(pool) => pick(&mut pool.spans, order),
            Content::Blocks(paths) => pick(&mut paths.spans, order),
        }
        pick(&mut self.outputs.spans, order);
        pick(&mut self.has_output_tokens, order);
        pick(&mut self.priorities, order);
        pick(&mut self.sessions, order);
        for column in [&mut self.cache_salts, &mut self.extra_keys, &mut self.loras] {
            pick(&mut column.numbers, order);
        }
        self.ids = self.ids.select(order);
        self
    }
}

#[cfg(test)]
mod tests;
