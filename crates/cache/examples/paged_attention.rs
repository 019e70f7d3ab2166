//! All three levels with real numbers: a tiny transformer served through radix tree, request rows and K/V store,
//! beside the same transformer with a plain dense cache. Prefixes are shared, nodes are evicted, pages are reused, and
//! the outputs are equal bit for bit.
//!
//! ```text
//! cargo run -p kvwise-cache --example paged_attention
//! ```
//!
//! The transformer is a real one in miniature (embedding, RMS norm, grouped-query attention with rotary positions,
//! gated feed-forward, greedy sampling) with fixed pseudo-random weights; its sums run in a fixed order, so equal
//! inputs give equal bits. What the paged side must get right for equality is everything this crate does: which
//! slot a token has, that shared slots hold the K and V of exactly that prefix, and that no slot is reused while
//! a request reads it.
#![allow(clippy::print_stdout, reason = "an example prints its result")]
#![allow(clippy::cast_possible_truncation, reason = "the dice show small numbers")]

use kvwise_cache::Result;
use kvwise_cache::radix::{Namespace, RadixCache, RadixCacheConfig, RequestKv, TreePolicy};
use kvwise_cache::store::{KvDtype, KvLayout, KvStore, KvStoreConfig};

const VOCABULARY: usize = 48;
const WIDTH: usize = 24;
const LAYERS: usize = 2;
const QUERY_HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 6;
const HIDDEN: usize = 40;

/// Where attention finds K and V of earlier tokens.
trait Cache {
    /// Keeps K and V (`[head][dim]`) of the token at `position`.
    fn append(&mut self, layer: usize, position: usize, key: &[f32], value: &[f32]) -> Result<()>;
    /// K and V of the first `count` tokens, `[token][head][dim]`.
    fn read(&mut self, layer: usize, count: usize) -> Result<(&[f32], &[f32])>;
}

/// The textbook cache: one growing array a layer and request, nothing shared. Numbers are rounded to the store's
/// format when kept, as the store does.
struct DenseCache {
    dtype: KvDtype,
    keys: [Vec<f32>; LAYERS],
    values: [Vec<f32>; LAYERS],
}

impl DenseCache {
    fn new(dtype: KvDtype) -> Self {
        Self {
            dtype,
            keys: Default::default(),
            values: Default::default(),
        }
    }

    fn rounded(&self, number: f32) -> f32 {
        let mut bytes = [0; 4];
        let bytes = &mut bytes[..self.dtype.bytes()];
        self.dtype.encode(number, bytes);
        self.dtype.decode(bytes)
    }
}

impl Cache for DenseCache {
    fn append(&mut self, layer: usize, position: usize, key: &[f32], value: &[f32]) -> Result<()> {
        assert_eq!(
            self.keys[layer].len(),
            position * key.len(),
            "tokens come in order"
        );
        let (key, value): (Vec<f32>, Vec<f32>) = (
            key.iter().map(|&k| self.rounded(k)).collect(),
            value.iter().map(|&v| self.rounded(v)).collect(),
        );
        self.keys[layer].extend(key);
        self.values[layer].extend(value);
        Ok(())
    }

    fn read(&mut self, layer: usize, count: usize) -> Result<(&[f32], &[f32])> {
        let end = count * KV_HEADS * HEAD_DIM;
        Ok((&self.keys[layer][..end], &self.values[layer][..end]))
    }
}

/// The paged cache of one request: its row gives the slot of every position, the store the numbers.
struct PagedCache<'a> {
    slots: Vec<u32>,
    store: &'a mut KvStore,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cache for PagedCache<'_> {
    fn append(&mut self, layer: usize, position: usize, key: &[f32], value: &[f32]) -> Result<()> {
        self.store
            .write(layer, &self.slots[position..=position], key, value)
    }

    fn read(&mut self, layer: usize, count: usize) -> Result<(&[f32], &[f32])> {
        let numbers = count * KV_HEADS * HEAD_DIM;
        self.keys.resize(numbers, 0.0);
        self.values.resize(numbers, 0.0);
        self.store
            .gather_keys(layer, &self.slots[..count], &mut self.keys)?;
        self.store
            .gather_values(layer, &self.slots[..count], &mut self.values)?;
        Ok((&self.keys, &self.values))
    }
}

/// Row-major weights, the same in every run.
struct Matrix {
    columns: usize,
    weights: Vec<f32>,
}

impl Matrix {
    fn random(rows: usize, columns: usize, state: &mut u64) -> Self {
        let weights = (0..rows * columns)
            .map(|_| uniform(state) / (columns as f32).sqrt())
            .collect();
        Self { columns, weights }
    }

    fn apply(&self, input: &[f32]) -> Vec<f32> {
        self.weights
            .chunks_exact(self.columns)
            .map(|row| dot(row, input))
            .collect()
    }
}

struct Layer {
    query: Matrix,
    key: Matrix,
    value: Matrix,
    output: Matrix,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

struct Transformer {
    embedding: Matrix,
    layers: Vec<Layer>,
}

impl Transformer {
    fn new(seed: u64) -> Self {
        let state = &mut seed.wrapping_mul(2).wrapping_add(1);
        let embedding = Matrix::random(VOCABULARY, WIDTH, state);
        let layers = (0..LAYERS)
            .map(|_| Layer {
                query: Matrix::random(QUERY_HEADS * HEAD_DIM, WIDTH, state),
                key: Matrix::random(KV_HEADS * HEAD_DIM, WIDTH, state),
                value: Matrix::random(KV_HEADS * HEAD_DIM, WIDTH, state),
                output: Matrix::random(WIDTH, QUERY_HEADS * HEAD_DIM, state),
                gate: Matrix::random(HIDDEN, WIDTH, state),
                up: Matrix::random(HIDDEN, WIDTH, state),
                down: Matrix::random(WIDTH, HIDDEN, state),
            })
            .collect();
        Self { embedding, layers }
    }

    /// Computes one token, keeping its K and V, and returns the logits of the next one.
    fn step(&self, token: u32, position: usize, cache: &mut impl Cache) -> Result<Vec<f32>> {
        let token = token as usize;
        let mut state: Vec<f32> = self.embedding.weights[token * WIDTH..(token + 1) * WIDTH].to_vec();
        for (at, layer) in self.layers.iter().enumerate() {
            let normed = rms_norm(&state);
            let mut query = layer.query.apply(&normed);
            let mut key = layer.key.apply(&normed);
            rotate(&mut query, position);
            rotate(&mut key, position);
            cache.append(at, position, &key, &layer.value.apply(&normed))?;
            let (keys, values) = cache.read(at, position + 1)?;
            add(&mut state, &layer.output.apply(&attend(&query, keys, values)));
            let normed = rms_norm(&state);
            let gate = layer
                .gate
                .apply(&normed)
                .into_iter()
                .map(|g| g / (1.0 + (-g).exp()));
            let hidden: Vec<f32> = gate.zip(layer.up.apply(&normed)).map(|(g, u)| g * u).collect();
            add(&mut state, &layer.down.apply(&hidden));
        }
        Ok(self.embedding.apply(&rms_norm(&state)))
    }
}

/// Grouped-query attention of one token over all cached ones.
fn attend(query: &[f32], keys: &[f32], values: &[f32]) -> Vec<f32> {
    let mut output = Vec::with_capacity(query.len());
    for (head, q) in query.chunks_exact(HEAD_DIM).enumerate() {
        let shared = head / (QUERY_HEADS / KV_HEADS);
        let of_head = |numbers: &'_ [f32]| -> Vec<Vec<f32>> {
            numbers
                .chunks_exact(HEAD_DIM)
                .skip(shared)
                .step_by(KV_HEADS)
                .map(<[f32]>::to_vec)
                .collect()
        };
        let scores: Vec<f32> = of_head(keys)
            .iter()
            .map(|k| dot(q, k) / (HEAD_DIM as f32).sqrt())
            .collect();
        let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|s| (s - highest).exp()).collect();
        let sum: f32 = weights.iter().sum();
        let mut mixed = vec![0.0; HEAD_DIM];
        for (weight, value) in weights.iter().zip(of_head(values)) {
            for (m, v) in mixed.iter_mut().zip(value) {
                *m += weight / sum * v;
            }
        }
        output.extend(mixed);
    }
    output
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn add(sum: &mut [f32], more: &[f32]) {
    for (s, m) in sum.iter_mut().zip(more) {
        *s += m;
    }
}

fn rms_norm(input: &[f32]) -> Vec<f32> {
    let scale = 1.0 / (dot(input, input) / input.len() as f32 + 1e-6).sqrt();
    input.iter().map(|x| x * scale).collect()
}

/// Rotary position embedding on neighbouring pairs.
fn rotate(heads: &mut [f32], position: usize) {
    for (at, pair) in heads.chunks_exact_mut(2).enumerate() {
        let frequency = 1e4f32.powf(-2.0 * (at % (HEAD_DIM / 2)) as f32 / HEAD_DIM as f32);
        let (sin, cos) = (position as f32 * frequency).sin_cos();
        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
    }
}

/// Next number of a fixed sequence (xorshift), in -1..1.
fn uniform(state: &mut u64) -> f32 {
    random(state, 1 << 24) as f32 / (1 << 23) as f32 - 1.0
}

fn random(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) % below
}

/// Greedy decoding: the prompt from `start` on, then `outputs` tokens. Returns the tokens and all last logits.
fn generate(
    model: &Transformer,
    prompt: &[u32],
    start: usize,
    outputs: usize,
    cache: &mut impl Cache,
) -> Result<(Vec<u32>, Vec<f32>)> {
    let (mut tokens, mut seen, mut logits) = (prompt.to_vec(), Vec::new(), Vec::new());
    for position in start..prompt.len() + outputs - 1 {
        logits = model.step(tokens[position], position, cache)?;
        if position + 1 >= prompt.len() {
            let best = (0u32..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1));
            tokens.push(best.expect("the vocabulary is not empty").0);
            seen.extend_from_slice(&logits);
        }
    }
    Ok((tokens, if seen.is_empty() { logits } else { seen }))
}

/// What a run did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Requests served twice, dense and paged.
    pub requests: usize,
    /// Logits compared, all equal bit for bit.
    pub logits_compared: usize,
    /// Prompt tokens.
    pub prompt_tokens: usize,
    /// Prompt tokens that were not computed again.
    pub shared_tokens: usize,
    /// Nodes evicted from the tree.
    pub evictions: usize,
}

/// Serves `requests` chats, each both ways, and compares every logit.
///
/// Every third request stays open (holding its locks and slots) while the next ones run, as in a batch.
///
/// # Errors
/// If the cache refuses a step: a bug in this example.
///
/// # Panics
/// If the two sides differ in a token or in one bit of a logit.
pub fn run(dtype: KvDtype, layout: KvLayout, page_size: usize, requests: usize) -> Result<Report> {
    let model = Transformer::new(7);
    let capacity_tokens = 96 / page_size * page_size;
    let mut cache = RadixCache::new(RadixCacheConfig {
        capacity_tokens,
        page_size,
        policy: TreePolicy::Lru,
        max_requests: 3,
        max_context_tokens: 64,
        enabled: true,
    })?;
    let mut store = KvStore::new(KvStoreConfig {
        layers: LAYERS,
        capacity_tokens,
        page_size,
        heads: KV_HEADS,
        key_dim: HEAD_DIM,
        value_dim: HEAD_DIM,
        dtype,
        layout,
    })?;
    let mut report = Report::default();
    let mut open: Option<(RequestKv, Vec<u32>, usize)> = None;
    let mut dice = 99;
    let mut chats: Vec<Vec<u32>> = Vec::new();
    for number in 0..requests {
        // a new chat after one of three system prompts, or the next turn of an earlier chat
        let earlier = (!chats.is_empty() && random(&mut dice, 3) > 0)
            .then(|| chats[random(&mut dice, chats.len() as u64) as usize].clone());
        let mut prompt = earlier.filter(|chat| chat.len() < 30).unwrap_or_else(|| {
            let system = random(&mut dice, 3);
            (0..10)
                .map(|i| ((system * 7 + i * 5) % VOCABULARY as u64) as u32)
                .collect()
        });
        for _ in 0..=random(&mut dice, 5) {
            prompt.push(random(&mut dice, VOCABULARY as u64) as u32);
        }
        let outputs = 1 + random(&mut dice, 6) as usize;

        let (expected, expected_logits) = generate(&model, &prompt, 0, outputs, &mut DenseCache::new(dtype))?;

        let mut request = cache.lookup(Namespace::DEFAULT, &prompt, 0)?;
        cache.start(&mut request)?;
        // slots for prompt and output; the last output token needs none, its K and V are never computed
        let end = prompt.len() + outputs - 1;
        cache.extend(&mut request, end, |_| report.evictions += 1)?;
        let row = request.row().expect("the request was started");
        let mut paged = PagedCache {
            slots: cache.rows().get(row)?[..end].to_vec(),
            store: &mut store,
            keys: Vec::new(),
            values: Vec::new(),
        };
        let (tokens, logits) = generate(&model, &prompt, request.prefix_len(), outputs, &mut paged)?;

        assert_eq!(tokens, expected, "request {number}: the tokens differ");
        assert!(
            logits
                .iter()
                .map(|l| l.to_bits())
                .eq(expected_logits.iter().map(|l| l.to_bits())),
            "request {number}: the logits differ"
        );
        report.requests += 1;
        report.logits_compared += logits.len();
        report.prompt_tokens += prompt.len();
        report.shared_tokens += request.prefix_len();
        chats.push(tokens.clone());
        if let Some((request, tokens, prompt_len)) = open.take() {
            cache.finish(request, &tokens, prompt_len)?;
        }
        let computed = tokens[..end].to_vec();
        if number % 3 == 0 {
            cache.checkpoint(&mut request, &prompt, prompt.len())?;
            open = Some((request, computed, prompt.len()));
        } else {
            cache.finish(request, &computed, prompt.len())?;
        }
    }
    if let Some((request, tokens, prompt_len)) = open {
        cache.finish(request, &tokens, prompt_len)?;
    }
    Ok(report)
}

fn main() -> Result<()> {
    println!("dtype    layout page  requests  logits equal  prompt tokens  shared  evictions");
    for dtype in KvDtype::ALL {
        for (layout, page_size) in [(KvLayout::Nhd, 1), (KvLayout::Nhd, 4), (KvLayout::Hnd, 8)] {
            let r = run(dtype, layout, page_size, 60)?;
            println!(
                "{:<8} {:<6} {:>4} {:>9} {:>13} {:>14} {:>7} {:>10}",
                format!("{dtype:?}"),
                format!("{layout:?}"),
                page_size,
                r.requests,
                r.logits_compared,
                r.prompt_tokens,
                r.shared_tokens,
                r.evictions
            );
        }
    }
    Ok(())
}
