//! Builds a [`Trace`] request by request, checking what only a whole trace can contradict.

use super::columns::{NameColumn, TextColumn};
use super::{BlockPaths, Content, PathInterner, Run, Span, TokenPool, Trace, TraceFormat};
use kvwise_core::{Error, Result};

/// What an id of a block stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdMeaning {
    /// The whole prefix up to and including the block (Mooncake, Bailian, kv-cache-tester): equal ids mean
    /// reusable prefixes, and an id after two different parents is an error.
    Prefix,
    /// The content of one block: a prefix is shared where the ids are equal from the start on.
    Content,
}

/// The prompt of a [`NewRequest`].
#[derive(Debug, Clone, Copy, Default)]
pub enum PromptIds<'a> {
    /// Only its length is known.
    #[default]
    Unknown,
    /// Token ids.
    Tokens(&'a [u32]),
    /// Block ids as the file gives them.
    Blocks(&'a [u64]),
}

/// One request on its way into a trace.
#[derive(Debug, Clone, Copy, Default)]
pub struct NewRequest<'a> {
    /// Seconds (or steps); all requests of a trace have it or none.
    pub arrival: Option<f64>,
    /// Prompt tokens; may be left out where the prompt says it.
    pub input_len: Option<u64>,
    /// Generated tokens; without it as many as `output_tokens`, or 1.
    pub output_len: Option<u64>,
    /// The prompt.
    pub prompt: PromptIds<'a>,
    /// The generated tokens.
    pub output_tokens: Option<&'a [u32]>,
    /// Scheduling priority.
    pub priority: i64,
    /// vLLM's `cache_salt`.
    pub cache_salt: Option<&'a str>,
    /// SGLang's `extra_key`.
    pub extra_key: Option<&'a str>,
    /// LoRA adapter.
    pub lora: Option<&'a str>,
    /// Conversation number.
    pub session: Option<u32>,
    /// The id as JSON text (a string with quotes, or an integer).
    pub id_json: Option<&'a str>,
}

/// Longest prompt or output that is believed, in tokens.
pub const MAX_REQUEST_TOKENS: u64 = 1 << 31;
/// Latest arrival that is believed, in seconds: what 64-bit nanoseconds hold.
const MAX_ARRIVAL: f64 = 9.2e9;

/// Collects requests; see [`TraceBuilder::push`].
#[derive(Debug)]
pub struct TraceBuilder {
    pub(super) trace: Trace,
    block_tokens: u32,
    interner: PathInterner,
    runs: Vec<Run>,
    last_arrival: f64,
}

impl TraceBuilder {
    /// A builder for the trace called `name`, whose block ids (if any) stand for `block_tokens` tokens.
    pub fn new(name: impl Into<String>, block_tokens: u32, meaning: IdMeaning) -> Self {
        let interner = match meaning {
            IdMeaning::Prefix => PathInterner::by_prefix(),
            IdMeaning::Content => PathInterner::by_content(),
        };
        let trace = Trace {
            name: name.into(),
            format: TraceFormat::Generated,
            arrivals: Vec::new(),
            input_lens: Vec::new(),
            output_lens: Vec::new(),
            content: Content::None,
            outputs: TokenPool::default(),
            has_output_tokens: Vec::new(),
            priorities: Vec::new(),
            cache_salts: NameColumn::default(),
            extra_keys: NameColumn::default(),
            loras: NameColumn::default(),
            sessions: Vec::new(),
            ids: TextColumn::default(),
        };
        Self {
            trace,
            block_tokens,
            interner,
            runs: Vec::new(),
            last_arrival: 0.0,
        }
    }

    /// States the format that the requests come from.
    #[must_use]
    pub fn format(mut self, format: TraceFormat) -> Self {
        self.trace.format = format;
        self
    }

    /// Requests so far.
    pub fn len(&self) -> usize {
        self.trace.len()
    }

    /// Whether there is no request yet.
    pub fn is_empty(&self) -> bool {
        self.trace.is_empty()
    }

    /// Whether the requests so far have ids.
    pub fn has_ids(&self) -> bool {
        !self.trace.ids.is_empty()
    }

    /// Whether the requests so far have arrival times.
    pub fn has_arrivals(&self) -> bool {
        self.trace.has_arrivals()
    }

    /// Whether the requests so far have block ids.
    pub fn has_block_ids(&self) -> bool {
        matches!(self.trace.content, Content::Blocks(_))
    }

    /// Arrival of the last request, 0 before the first.
    pub fn last_arrival(&self) -> f64 {
        self.last_arrival
    }

    /// Distinct blocks so far.
    pub(super) fn distinct_blocks(&self) -> u64 {
        self.interner.len() as u64
    }

    /// Bytes of the table that finds blocks while the trace is read.
    pub(super) fn table_bytes(&self) -> u64 {
        self.interner.table_bytes()
    }

    /// Ends a name space of block ids; see [`PathInterner::new_scope`].
    pub fn new_scope(&mut self) {
        self.interner.new_scope();
    }

    /// Appends a request. After an error the trace is as before.
    ///
    /// # Errors
    /// One sentence without a place (the caller knows file and line): a length of 0 or above
    /// [`MAX_REQUEST_TOKENS`], lengths that disagree with the content, a time that is not finite, negative or
    /// absent where others have one, contradicting ids, two kinds of content in one trace.
    pub fn push(&mut self, request: &NewRequest<'_>) -> Result<()> {
        if self.trace.len() >= u32::MAX as usize {
            return Err(too_many_requests());
        }
        let input_len = self.input_len(request)?;
        let output_len = output_len(request)?;
        self.check_optional_columns(request)?;
        self.push_content(request.prompt)?; // the last step that can fail
        self.record(request, input_len, output_len);
        Ok(())
    }

    /// Appends everything but the prompt.
    fn record(&mut self, request: &NewRequest<'_>, input_len: u32, output_len: u32) {
        let index = self.trace.len();
        let trace = &mut self.trace;
        if let Some(arrival) = request.arrival {
            trace.arrivals.push(arrival);
            self.last_arrival = arrival;
        }
        trace.input_lens.push(input_len);
        trace.output_lens.push(output_len);
        if request.output_tokens.is_some() || !trace.has_output_tokens.is_empty() {
            trace.has_output_tokens.resize(index, false);
            trace.outputs.spans.resize(index, Span::default());
            trace.has_output_tokens.push(request.output_tokens.is_some());
            trace.outputs.push(request.output_tokens.unwrap_or(&[]));
        }
        if request.priority != 0 || !trace.priorities.is_empty() {
            trace.priorities.resize(index, 0);
            trace.priorities.push(request.priority);
        }
        trace.cache_salts.push(index, request.cache_salt);
        trace.extra_keys.push(index, request.extra_key);
        trace.loras.push(index, request.lora);
        trace.sessions.extend(request.session);
        if let Some(id) = request.id_json {
            trace.ids.push(id);
        }
    }

    fn input_len(&self, request: &NewRequest<'_>) -> Result<u32> {
        let stated = request.input_len;
        let len = match request.prompt {
            PromptIds::Unknown => stated
                .ok_or_else(|| Error::input("neither an input length nor tokens nor hash ids are given"))?,
            PromptIds::Tokens(tokens) => {
                let real = tokens.len() as u64;
                if let Some(stated) = stated.filter(|&s| s != real) {
                    return Err(Error::input(format!(
                        "input length is {stated}, but {real} tokens are given"
                    )));
                }
                real
            }
            PromptIds::Blocks(ids) => {
                let (count, size) = (ids.len() as u64, u64::from(self.block_tokens));
                if size == 0 {
                    return Err(Error::input("hash ids are given, but a block has 0 tokens"));
                }
                let len = stated.unwrap_or(count * size);
                if count != len / size && count != len.div_ceil(size) {
                    let fit = |n: u64| if count == 0 { 0 } else { n.div_ceil(count) };
                    return Err(Error::input(format!(
                        "input length is {len}, but {count} hash ids of {size} tokens are given (expected {})",
                        len.div_ceil(size)
                    ))
                    .hint(format!(
                        "if an id stands for another number of tokens (this line: about {}), say --hash-block N",
                        fit(len)
                    )));
                }
                len
            }
        };
        if len == 0 {
            return Err(Error::input("the input length is 0, expected at least 1 token"));
        }
        bounded(len, "the input length")
    }

    /// Times are sane, and what is given for one request is given for all.
    fn check_optional_columns(&self, request: &NewRequest<'_>) -> Result<()> {
        let started = !self.trace.is_empty();
        for (given, before, what) in [
            (
                request.session.is_some(),
                !self.trace.sessions.is_empty(),
                "a conversation",
            ),
            (request.id_json.is_some(), !self.trace.ids.is_empty(), "an id"),
        ] {
            if started && given != before {
                return Err(Error::input(format!(
                    "{what} is given for some requests but not for all"
                )));
            }
        }
        let arrival = request.arrival;
        if arrival.is_some() != self.trace.has_arrivals() && !self.trace.is_empty() {
            return Err(Error::input(
                "an arrival time is given for some requests but not for all",
            ));
        }
        match arrival {
            Some(t) if !t.is_finite() => Err(Error::input(format!(
                "the arrival time is {t}, expected a finite number"
            ))),
            Some(t) if t < 0.0 => Err(Error::input(format!(
                "the arrival time is {t}, expected 0 or later"
            ))),
            Some(t) if t > MAX_ARRIVAL => Err(Error::input(format!(
                "the arrival time is {t:e} s, more than 64-bit nanoseconds hold"
            ))),
            _ => Ok(()),
        }
    }

    fn push_content(&mut self, prompt: PromptIds<'_>) -> Result<()> {
        let first = self.trace.is_empty();
        let mixed =
            || Error::input("the trace mixes token ids, hash ids and requests without either; use one kind");
        if first {
            self.trace.content = match prompt {
                PromptIds::Unknown => Content::None,
                PromptIds::Tokens(_) => Content::Tokens(TokenPool::default()),
                PromptIds::Blocks(_) => Content::Blocks(BlockPaths {
                    block_tokens: self.block_tokens,
                    runs: Vec::new(),
                    spans: Vec::new(),
                    parents: Vec::new(),
                    raw_ids: Vec::new(),
                }),
            };
        }
        match (&mut self.trace.content, prompt) {
            (Content::None, PromptIds::Unknown) => Ok(()),
            (Content::Tokens(pool), PromptIds::Tokens(tokens)) => {
                pool.push(tokens);
                Ok(())
            }
            (Content::Blocks(paths), PromptIds::Blocks(ids)) => {
                self.runs.clear();
                self.interner.intern(ids, &mut self.runs)?;
                let start = paths.runs.len() as u64;
                let len = u32::try_from(self.runs.len()).expect("a path has at most 2^31 runs");
                paths.runs.extend_from_slice(&self.runs);
                paths.spans.push(Span { start, len });
                Ok(())
            }
            _ => Err(mixed()),
        }
    }

    /// Appends the requests of another trace, whose block ids name other prefixes than those so far.
    ///
    /// Made for folders that are read in parallel, one trace a file. With `session`
    /// they all become that conversation.
    ///
    /// # Errors
    /// If the two traces differ in the kind of content, block size or in having times, ids or sessions.
    pub fn append(&mut self, other: &Trace, session: Option<u32>) -> Result<()> {
        let request = |index: usize| {
            let request = other.request(index);
            NewRequest {
                session: session.or(request.session),
                ..request
            }
        };
        if other.is_empty() {
            return Ok(());
        }
        let Content::Blocks(paths) = &other.content else {
            return (0..other.len()).try_for_each(|index| self.push(&request(index)));
        };
        if self.trace.is_empty() {
            self.block_tokens = paths.block_tokens;
        }
        if paths.block_tokens != self.block_tokens {
            return Err(Error::input(format!(
                "blocks have {} tokens here, but {} in the files before",
                paths.block_tokens, self.block_tokens
            )));
        }
        if self.trace.len() + other.len() > u32::MAX as usize {
            return Err(too_many_requests());
        }
        for index in [0, other.len() - 1] {
            self.check_optional_columns(&request(index))?;
        }
        let shift = self.interner.adopt(&paths.parents, &paths.raw_ids)?;
        for index in 0..other.len() {
            self.push_content(PromptIds::Blocks(&[]))?;
            let Content::Blocks(own) = &mut self.trace.content else {
                unreachable!("just made blocks")
            };
            own.spans.pop();
            let runs = paths.get(index).runs();
            let start = own.runs.len() as u64;
            own.runs.extend(runs.iter().map(|run| Run {
                first: run.first + shift,
                len: run.len,
            }));
            own.spans.push(Span {
                start,
                len: u32::try_from(runs.len()).expect("a path has at most 2^31 runs"),
            });
            self.record(&request(index), other.input_len(index), other.output_len(index));
        }
        Ok(())
    }

    /// The trace.
    pub fn finish(self) -> Trace {
        let mut trace = self.trace;
        if let Content::Blocks(paths) = &mut trace.content {
            (paths.parents, paths.raw_ids) = self.interner.into_tree();
            paths.runs.shrink_to_fit();
        }
        trace
    }
}

fn too_many_requests() -> Error {
    Error::unsupported("the trace has more than 4,294,967,294 requests, more than 32-bit numbers hold")
}

fn output_len(request: &NewRequest<'_>) -> Result<u32> {
    let given = request.output_tokens.map(|t| t.len() as u64);
    let len = match (request.output_len, given) {
        (Some(stated), Some(real)) if stated != real => {
            return Err(Error::input(format!(
                "output length is {stated}, but {real} output tokens are given"
            )));
        }
        (Some(len), _) | (None, Some(len)) => len,
        (None, None) => 1,
    };
    bounded(len, "the output length")
}

fn bounded(len: u64, what: &str) -> Result<u32> {
    if len > MAX_REQUEST_TOKENS {
        return Err(Error::input(format!(
            "{what} is {len} tokens, more than the {MAX_REQUEST_TOKENS} that are believed"
        )));
    }
    u32::try_from(len).map_err(|_| Error::overflow(what))
}
