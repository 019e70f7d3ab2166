//! Every architecture's caches, longest sequence and weights against vLLM's own answers.
//!
//! `data/architectures.jsonl` holds, one line a configuration, what vLLM 0.32.0's model classes published when the
//! reference scripts built them on the meta device: each cache's specification with the number of layers that have
//! it, the derived maximum length, and the bytes of parameters on the first of one and of two tensor-parallel
//! ranks (no quantisation; language model only unless `towers`). Configurations are class defaults of transformers 5.19.0, and
//! geometries written after published models; a name says `model_type--class--variant`.

use std::collections::BTreeMap;

use kvwise_core::arch::family::{self, Reading};
use kvwise_core::arch::{CacheKind, Config, Heads, Model, Parallel, State};
use kvwise_core::dtype::Dtype;
use serde_json::Value;

const ROWS: &str = include_str!("data/architectures.jsonl");
/// Random variants of such configurations on up to eight ranks and two pipeline stages, with each stage's bytes.
const STAGES: &str = include_str!("data/stages.jsonl");

fn rows() -> impl Iterator<Item = Value> {
    ROWS.lines()
        .map(|line| serde_json::from_str(line).expect("each line is a JSON object"))
}

fn name(row: &Value) -> &str {
    row["name"].as_str().expect("a row has a name")
}

fn read(row: &Value) -> Result<Model, String> {
    let Value::Object(map) = row["config"].clone() else {
        return Err("the row has no configuration".to_owned());
    };
    match family::read(name(row), &Config::from_map(map)) {
        Ok(Reading::Model(model)) => Ok(*model),
        Ok(Reading::Refused(refusal)) => Err(format!("refused: {}", refusal.reason)),
        Err(error) => Err(error.to_string()),
    }
}

fn heads(kind: &str, h: &Heads) -> String {
    format!("{kind} {} {} {}", h.kv_heads, h.head_dim, h.head_dim_v)
}

fn dtype(of: Option<Dtype>) -> &'static str {
    of.unwrap_or(Dtype::Bf16).name()
}

/// A state's shapes as vLLM writes them for one rank, and its element types.
fn state(state: &State) -> String {
    match state {
        State::Mamba1 {
            inner,
            state,
            kernel,
            conv,
            ssm,
        } => format!(
            "state (({},{inner}),({inner},{state})) {},{}",
            kernel - 1,
            dtype(*conv),
            dtype(*ssm)
        ),
        State::Mamba2 {
            inner,
            groups,
            heads,
            head_dim,
            state,
            kernel,
            conv,
            ssm,
        } => format!(
            "state (({},{}),({heads},{head_dim},{state})) {},{}",
            kernel - 1,
            inner + 2 * groups * state,
            dtype(*conv),
            dtype(*ssm)
        ),
        State::GatedDelta {
            k_heads,
            v_heads,
            k_dim,
            v_dim,
            kernel,
            conv,
            ssm,
        } => format!(
            "state (({},{}),({v_heads},{v_dim},{k_dim})) {},{}",
            kernel - 1,
            2 * k_heads * k_dim + v_heads * v_dim,
            dtype(*conv),
            dtype(*ssm)
        ),
        State::Kda {
            heads,
            dim,
            kernel,
            conv,
            ssm,
            ..
        } => format!(
            "state (({},{}),({heads},{dim},{dim})) {},{}",
            kernel - 1,
            3 * heads * dim,
            dtype(*conv),
            dtype(ssm.or(Some(Dtype::F32)))
        ),
        State::Linear {
            heads,
            dim,
            dtype: of,
        } => {
            format!("state (({heads},{dim},{dim}),) {}", dtype(*of))
        }
        State::ShortConv { hidden, kernel, .. } => format!("state (({},{hidden}),) bfloat16", kernel - 1),
    }
}

fn specification(kind: &CacheKind) -> String {
    match kind {
        CacheKind::Full(h) => heads("full", h),
        CacheKind::Cross(h) => heads("cross", h),
        CacheKind::Sliding { heads: h, window } | CacheKind::ConvWindow { heads: h, window } => {
            format!("{} {window}", heads("sliding", h))
        }
        CacheKind::Chunked { heads: h, chunk } => format!("{} {chunk}", heads("chunked", h)),
        CacheKind::Latent { width, .. } => format!("latent 1 {width} 0"),
        CacheKind::SlidingLatent { width, window } => format!("sliding latent 1 {width} 0 {window}"),
        CacheKind::Indexer { bytes_per_token, .. } => format!("latent 1 {bytes_per_token} 0"),
        CacheKind::PooledIndexer {
            bytes_per_entry,
            pool,
            ..
        } => format!("pooled {bytes_per_entry} {pool}"),
        CacheKind::Ring {
            vectors, width, pool, ..
        } => format!("ring {vectors} {width} {pool}"),
        CacheKind::State(s) => state(s),
        other @ (CacheKind::Compressed { .. } | CacheKind::SharedCompressed { .. }) => format!("{other:?}"),
    }
}

fn caches(model: &Model) -> BTreeMap<String, u64> {
    let mut count = BTreeMap::new();
    for cache in model.layers.iter().flat_map(|layer| &layer.caches) {
        *count.entry(specification(&cache.kind)).or_insert(0) += 1;
    }
    count
}

fn report(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_layer_publishes_the_caches_that_vllm_publishes() {
    let mut wrong = Vec::new();
    for row in rows() {
        let expected: BTreeMap<String, u64> =
            serde_json::from_value(row["caches"].clone()).expect("caches are counts");
        match read(&row) {
            Ok(model) if caches(&model) == expected => {}
            Ok(model) => wrong.push(format!("{}: {:?}, vLLM {expected:?}", name(&row), caches(&model))),
            Err(error) => wrong.push(format!("{}: {error}", name(&row))),
        }
    }
    report(&wrong);
}

#[test]
fn the_longest_sequence_is_the_one_that_vllm_derives() {
    let mut wrong = Vec::new();
    for row in rows() {
        let expected = row["max_length"].as_u64();
        match read(&row) {
            // Where the file says nothing, the engine takes 2048 tokens.
            Ok(model) if Some(model.max_position.unwrap_or(2048)) == expected => {}
            Ok(model) => wrong.push(format!(
                "{}: {:?}, vLLM {expected:?}",
                name(&row),
                model.max_position
            )),
            Err(error) => wrong.push(format!("{}: {error}", name(&row))),
        }
    }
    report(&wrong);
}

#[test]
fn a_rank_holds_the_bytes_of_weights_that_vllm_allocates() {
    let mut wrong = Vec::new();
    for row in rows() {
        let expected = row["weight_bytes"].as_array().expect("weights are a list");
        let model = match read(&row) {
            Ok(model) => model,
            Err(error) => {
                wrong.push(format!("{}: {error}", name(&row)));
                continue;
            }
        };
        let towers = row["towers"] == true;
        for (bytes, tp) in expected.iter().zip([1, 2]) {
            let ours = model.weight_bytes(0, &Parallel::tensor(tp), Dtype::Bf16, towers);
            if ours.as_ref().ok().copied() != bytes.as_u64() {
                wrong.push(format!("{} at TP {tp}: {ours:?}, vLLM {bytes}", name(&row)));
            }
        }
    }
    report(&wrong);
}

#[test]
fn heads_that_two_ranks_cannot_share_are_refused_as_in_vllm() {
    let mut refused = 0;
    for row in rows().filter(|row| row["refused_at_2"] == true) {
        refused += 1;
        let model = read(&row).unwrap_or_else(|error| panic!("{}: {error}", name(&row)));
        let weights = model.weight_bytes(0, &Parallel::tensor(2), Dtype::Bf16, false);
        let odd_heads = !model.num_attention_heads.is_multiple_of(2);
        assert!(odd_heads || weights.is_err(), "{} is not refused", name(&row));
    }
    assert!(refused > 0, "the table holds refused rows");
}

#[test]
fn every_stage_of_a_pipeline_holds_the_bytes_that_vllm_allocates() {
    let mut wrong = Vec::new();
    for line in STAGES.lines() {
        let row: Value = serde_json::from_str(line).expect("each line is a JSON object");
        let parallel = Parallel {
            tp: row["tp"].as_u64().expect("a number of ranks"),
            pp: row["pp"].as_u64().expect("a number of stages"),
            ..Parallel::default()
        };
        let model = read(&row).unwrap_or_else(|error| panic!("{}: {error}", name(&row)));
        let expected = row["weight_bytes"].as_array().expect("weights are a list");
        for (bytes, stage) in expected.iter().zip(0..) {
            let ours = model.weight_bytes(stage, &parallel, Dtype::Bf16, false);
            if ours.as_ref().ok().copied() != bytes.as_u64() {
                wrong.push(format!("{}, stage {stage}: {ours:?}, vLLM {bytes}", name(&row)));
            }
        }
    }
    report(&wrong);
}

#[test]
fn each_class_is_read_by_one_row_of_the_registry() {
    let mut seen = std::collections::BTreeSet::new();
    for class in family::classes() {
        assert!(seen.insert(class), "{class} is on two rows of the registry");
    }
    assert!(seen.len() > 150, "{} classes are read", seen.len());
}
