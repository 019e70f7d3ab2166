//! Small consecutive numbers for block contents, so that no block is ever hashed.
//!
//! Two blocks get the same number if and only if vLLM's chain hash would be equal: same tokens, same prefix, same salt
//! and adapter. Three cases:
//!
//! - **block-id traces**: the trace is a prefix tree already; the blocks of a node are numbered consecutively, so the
//!   names of a run of nodes are one range of numbers: filling a request's key list costs about a nanosecond a block;
//! - **token traces**: a block is interned by (number of its parent, its tokens) under a 128-bit hash;
//! - **generated tokens** without ids in the trace are unlike those of any other request: in block-id and length-only
//!   traces their blocks get fresh numbers; in token traces they get the ids that the reference script makes up
//!   (a CRC of request and position), since a trace could contain those.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths and node numbers of a trace are u32, checked when it is read"
)]

use kvwise_cache::hash::fast_chain;
use kvwise_core::{Error, Result};
use rustc_hash::FxHashMap;

use crate::sched::vllm::ContentKeys;
use crate::trace::{Content, Prompt, Trace};

/// Names the blocks of a trace's requests; the tag of a request is its number in the trace.
pub struct TraceContent<'a> {
    trace: &'a Trace,
    hash_block_size: u32,
    /// Numbers a node of a block-id trace owns.
    keys_per_node: u32,
    next: u32,
    /// First number of nodes seen under other isolation keys than none: (isolation, node).
    isolated: FxHashMap<(u32, u32), u32>,
    /// Isolation of each request, 0 for none; empty if no request has any.
    isolation: Vec<u32>,
    /// Interned (parent, tokens) of token traces, and of given outputs.
    interned: FxHashMap<u128, u32>,
    /// Token ids of running requests of token traces: prompt and outputs so far are rebuilt from here.
    scratch: Vec<u32>,
    ids: Option<Vec<u8>>,
    id_spans: Vec<(u32, u32)>,
}

/// Which columns of the trace separate prefixes, besides `cache_salt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Isolation {
    /// Also the adapter's name (`lora`).
    pub lora: bool,
}

impl<'a> TraceContent<'a> {
    /// Names for blocks of `hash_block_size` tokens; `groups` is how many tables each block may stand in.
    ///
    /// # Errors
    /// If the trace has more distinct blocks than 32-bit numbers.
    pub fn new(trace: &'a Trace, hash_block_size: u32, groups: u32, isolation: Isolation) -> Result<Self> {
        let mut keys_per_node = 0;
        let mut nodes = 0;
        if let Content::Blocks(paths) = trace.content() {
            let per_block = paths.block_tokens();
            keys_per_node = if per_block % hash_block_size == 0 {
                per_block / hash_block_size
            } else {
                per_block / hash_block_size + 1
            };
            nodes = paths.unique_blocks();
        }
        let names = u64::from(nodes) * u64::from(keys_per_node) + generated_blocks(trace, hash_block_size);
        if names.saturating_mul(u64::from(groups)) > u64::from(u32::MAX / 2) {
            return Err(Error::unsupported(format!(
                "{}: {names} distinct blocks of {hash_block_size} tokens in {groups} groups are more than this replay numbers",
                trace.name()
            ))
            .hint("use larger blocks (--block-size) or a part of the trace"));
        }
        let isolation = isolation_numbers(trace, isolation);
        Ok(Self {
            trace,
            hash_block_size,
            keys_per_node,
            next: nodes * keys_per_node,
            isolated: FxHashMap::default(),
            isolation,
            interned: FxHashMap::default(),
            scratch: Vec::new(),
            ids: None,
            id_spans: Vec::new(),
        })
    }

    /// About how many numbers will be used: room to reserve.
    pub fn expected_keys(&self) -> usize {
        match self.trace.content() {
            Content::Tokens(pool) => (pool.total_tokens() / u64::from(self.hash_block_size)) as usize,
            Content::Blocks(_) | Content::None => {
                self.next as usize + generated_blocks(self.trace, self.hash_block_size) as usize
            }
        }
    }

    fn fresh(&mut self) -> u32 {
        let key = self.next;
        self.next += 1;
        key
    }

    fn isolation_of(&self, tag: u32) -> u32 {
        self.isolation.get(tag as usize).copied().unwrap_or(0)
    }

    /// First number of a node's blocks for a request under `isolation`.
    fn node_base(&mut self, isolation: u32, node: u32) -> u32 {
        if isolation == 0 {
            return node * self.keys_per_node;
        }
        let next = &mut self.next;
        let keys_per_node = self.keys_per_node;
        *self.isolated.entry((isolation, node)).or_insert_with(|| {
            let base = *next;
            *next += keys_per_node;
            base
        })
    }

    /// Names of the blocks that end inside the part of the prompt that the trace describes.
    fn extend_blocks(&mut self, tag: u32, num_tokens: u32, keys: &mut Vec<u32>) {
        let Prompt::Blocks(path) = self.trace.prompt(tag as usize) else {
            return;
        };
        let per_node = path.block_tokens();
        let size = self.hash_block_size;
        let known =
            (path.len() as u64 * u64::from(per_node)).min(u64::from(self.trace.input_len(tag as usize)));
        let end = (known.min(u64::from(num_tokens)) / u64::from(size)) as usize;
        if keys.len() >= end {
            return;
        }
        let isolation = self.isolation_of(tag);
        if isolation == 0 && per_node % size == 0 {
            // Consecutive nodes have consecutive numbers: one range a run.
            let per = self.keys_per_node as usize;
            let mut first_block = 0;
            for run in path.runs() {
                let blocks = run.len as usize * per;
                let from = keys.len().max(first_block);
                let to = (first_block + blocks).min(end);
                if from < to {
                    let base = run.first * self.keys_per_node;
                    keys.extend(base + (from - first_block) as u32..base + (to - first_block) as u32);
                }
                first_block += blocks;
                if first_block >= end {
                    break;
                }
            }
            return;
        }
        for (position, node) in path.iter().enumerate() {
            let start = position as u64 * u64::from(per_node);
            // Blocks that end in (start, start + per_node].
            let first = start / u64::from(size);
            let last = ((start + u64::from(per_node)) / u64::from(size)).min(end as u64);
            if last <= keys.len() as u64 {
                continue;
            }
            let base = self.node_base(isolation, node);
            let from = first.max(keys.len() as u64);
            keys.extend((from - first) as u32 + base..(last - first) as u32 + base);
            if last as usize >= end {
                break;
            }
        }
    }

    fn extend_tokens(&mut self, tag: u32, num_tokens: u32, keys: &mut Vec<u32>) {
        let size = self.hash_block_size as usize;
        let end = num_tokens as usize / size;
        let index = tag as usize;
        let Prompt::Tokens(prompt) = self.trace.prompt(index) else {
            return;
        };
        while keys.len() < end {
            let start = keys.len() * size;
            let parent = keys.last().map_or_else(
                || u128::MAX - u128::from(self.isolation_of(tag)),
                |&key| u128::from(key),
            );
            let hash = if let Some(tokens) = prompt.get(start..start + size) {
                fast_chain(parent, tokens)
            } else {
                let mut scratch = std::mem::take(&mut self.scratch);
                scratch.clear();
                scratch.extend_from_slice(prompt.get(start..).unwrap_or(&[]));
                let first_output = (start + scratch.len() - prompt.len()) as u32;
                let missing = (size - scratch.len()) as u32;
                for k in first_output..first_output + missing {
                    scratch.push(self.output_token(index, k));
                }
                let hash = fast_chain(parent, &scratch);
                self.scratch = scratch;
                hash
            };
            let next = &mut self.next;
            let key = *self.interned.entry(hash).or_insert_with(|| {
                let key = *next;
                *next += 1;
                key
            });
            keys.push(key);
        }
    }

    /// Names of blocks that hold generated tokens, in a trace of block ids or lengths.
    fn extend_generated(&mut self, tag: u32, num_tokens: u32, keys: &mut Vec<u32>) {
        let size = self.hash_block_size;
        let end = (num_tokens / size) as usize;
        let index = tag as usize;
        let Some(outputs) = self.trace.output_tokens(index) else {
            while keys.len() < end {
                let key = self.fresh();
                keys.push(key);
            }
            return;
        };
        // Given outputs: a request with the same prompt and the same outputs shares their blocks.
        let prompt = u64::from(self.trace.input_len(index));
        let (tail_node, known) = match self.trace.prompt(index) {
            Prompt::Blocks(path) => (
                path.iter().last().map_or(u32::MAX, |node| node),
                path.len() as u64 * u64::from(path.block_tokens()),
            ),
            Prompt::Unknown | Prompt::Tokens(_) => (u32::MAX, 0),
        };
        while keys.len() < end {
            let start = keys.len() as u64 * u64::from(size);
            let stop = start + u64::from(size);
            let first = start.saturating_sub(prompt);
            if known < prompt && start < prompt || stop - prompt > outputs.len() as u64 {
                let key = self.fresh();
                keys.push(key);
                continue;
            }
            let parent = keys.last().map_or_else(
                || u128::MAX - u128::from(self.isolation_of(tag)),
                |&key| u128::from(key),
            );
            let mut scratch = std::mem::take(&mut self.scratch);
            scratch.clear();
            // What of the block belongs to the prompt is named by the prompt's last node and its length.
            scratch.extend([tail_node, (prompt - start.min(prompt)) as u32]);
            scratch.extend_from_slice(&outputs[first as usize..(stop - prompt) as usize]);
            let hash = fast_chain(parent, &scratch);
            self.scratch = scratch;
            let next = &mut self.next;
            let key = *self.interned.entry(hash).or_insert_with(|| {
                let key = *next;
                *next += 1;
                key
            });
            keys.push(key);
        }
    }

    /// Generated token `k` of a request of a token trace.
    fn output_token(&mut self, index: usize, k: u32) -> u32 {
        if let Some(&token) = self.trace.output_tokens(index).and_then(|o| o.get(k as usize)) {
            return token;
        }
        if self.ids.is_none() {
            let mut bytes = Vec::new();
            for i in 0..self.trace.len() {
                let start = bytes.len() as u32;
                bytes.extend_from_slice(self.trace.id(i).as_bytes());
                self.id_spans.push((start, bytes.len() as u32));
            }
            self.ids = Some(bytes);
        }
        let (start, end) = self.id_spans[index];
        let id = self
            .ids
            .as_ref()
            .map_or(&[][..], |ids| &ids[start as usize..end as usize]);
        invented_token(id, k)
    }
}

/// The token id that the reference script gives to generated token `k`: 10^9 plus 28 bits of `crc32("id:k")`.
fn invented_token(id: &[u8], k: u32) -> u32 {
    let mut crc = u32::MAX;
    let mut feed = |byte: u8| {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    };
    id.iter().copied().for_each(&mut feed);
    feed(b':');
    k.to_string().bytes().for_each(&mut feed);
    1_000_000_000 + (!crc & 0x0FFF_FFFF)
}

/// Upper bound of blocks that end in generated tokens or in undescribed prompt tails.
fn generated_blocks(trace: &Trace, hash_block_size: u32) -> u64 {
    let size = u64::from(hash_block_size);
    let described = |i: usize| match trace.prompt(i) {
        Prompt::Blocks(path) => path.len() as u64 * u64::from(path.block_tokens()),
        Prompt::Tokens(tokens) => tokens.len() as u64,
        Prompt::Unknown => 0,
    };
    (0..trace.len())
        .map(|i| {
            let total = u64::from(trace.input_len(i)) + u64::from(trace.output_len(i).max(1));
            (total / size).saturating_sub(described(i).min(u64::from(trace.input_len(i))) / size)
        })
        .sum()
}

/// One number for each combination of salt and adapter, 0 for none.
fn isolation_numbers(trace: &Trace, isolation: Isolation) -> Vec<u32> {
    let salts = trace.cache_salt_column();
    let loras = trace.lora_column();
    let use_lora = isolation.lora && !loras.is_empty();
    if salts.is_empty() && !use_lora {
        return Vec::new();
    }
    let mut numbers: FxHashMap<(u32, u32), u32> = FxHashMap::default();
    (0..trace.len())
        .map(|i| {
            // An empty salt is no salt.
            let salt = match trace.cache_salt(i) {
                None | Some("") => 0,
                Some(_) => salts.number(i),
            };
            let lora = if use_lora { loras.number(i) } else { 0 };
            if (salt, lora) == (0, 0) {
                return 0;
            }
            let next = numbers.len() as u32 + 1;
            *numbers.entry((salt, lora)).or_insert(next)
        })
        .collect()
}

impl ContentKeys for TraceContent<'_> {
    #[inline]
    fn extend(&mut self, tag: u32, num_tokens: u32, keys: &mut Vec<u32>) {
        if keys.len() >= (num_tokens / self.hash_block_size) as usize {
            return;
        }
        if matches!(self.trace.content(), Content::Tokens(_)) {
            self.extend_tokens(tag, num_tokens, keys);
            return;
        }
        self.extend_blocks(tag, num_tokens, keys);
        self.extend_generated(tag, num_tokens, keys);
    }
}
