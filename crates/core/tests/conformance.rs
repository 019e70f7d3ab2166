//! vLLM 0.32.0's own answers against ours: every golden row is equal, or a known difference with its reason.
//!
//! `golden/vllm_rows.jsonl` holds what vLLM's own code computed for `golden/vllm_configs.jsonl`, the files `towers_*` the
//! same for wrappers with towers (see `golden/README.md`). `golden/known_differences.tsv` lists what is not equal and why. With
//! `KVWISE_WRITE_CONFORMANCE=1` the table of the documentation is written anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use kvwise_core::arch::family::{Reading, read};
use kvwise_core::arch::{Cache, CacheKind, Config, Model, Parallel};
use kvwise_core::dtype::Dtype;
use kvwise_core::engine::vllm::{Backend, Gpu, KvDtype, Layout, MaxModelLen, Settings, layout};
use serde_json::Value;

const ROWS: &str = concat!(
    include_str!("golden/vllm_rows.jsonl"),
    include_str!("golden/towers_rows.jsonl")
);
const CONFIGS: &str = concat!(
    include_str!("golden/vllm_configs.jsonl"),
    include_str!("golden/towers_configs.jsonl")
);
const KNOWN: &str = include_str!("golden/known_differences.tsv");
const PAGE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/src/reference/conformance.md"
);

const H100: Gpu = Gpu {
    major: 9,
    minor: 0,
    memory_bytes: 80 << 30,
    a100: false,
    hopper: false,
    memory_unknown: false,
};

/// Where the stand-in for `FLASH_ATTN` takes any multiple of 16, as on Ampere: Hopper's own fixes pages for some heads.
const A100: Gpu = Gpu {
    major: 8,
    minor: 0,
    memory_bytes: 80 << 30,
    a100: true,
    hopper: false,
    memory_unknown: false,
};

/// One line of `known_differences.tsv`.
struct Known {
    /// Configuration name; `*` at the end matches the rest.
    config: &'static str,
    /// Setting label as in the table, or `*`.
    setting: &'static str,
    /// `kv` or `weights`.
    part: &'static str,
    reason: &'static str,
}

impl Known {
    fn all() -> Vec<Self> {
        KNOWN
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| {
                let cells: Vec<&str> = line.split('\t').collect();
                let [config, setting, part, reason] = cells[..] else {
                    panic!("known_differences.tsv: expected 4 cells in {line:?}");
                };
                Self {
                    config,
                    setting,
                    part,
                    reason,
                }
            })
            .collect()
    }

    fn covers(&self, config: &str, setting: &str, part: &str) -> bool {
        let name = match self.config.strip_suffix('*') {
            Some(prefix) => config.starts_with(prefix),
            None => config == self.config,
        };
        name && self.part == part && (self.setting == "*" || self.setting == setting)
    }
}

/// A configuration as it was read.
enum Subject {
    Model(Box<Model>, String),
    Unread(String, String),
}

fn subjects() -> BTreeMap<String, Subject> {
    CONFIGS
        .lines()
        .map(|line| {
            let entry: Value = serde_json::from_str(line).unwrap();
            let name = entry["name"].as_str().unwrap().to_owned();
            let class = entry["class"].as_str().unwrap().to_owned();
            let text = entry["config"].as_str().unwrap();
            let subject = match Config::parse(text.as_bytes()).and_then(|config| read(&name, &config)) {
                Ok(Reading::Model(model)) => Subject::Model(model, class),
                Ok(Reading::Refused(refusal)) => Subject::Unread(class, refusal.reason),
                Err(error) => Subject::Unread(class, error.to_string()),
            };
            (name, subject)
        })
        .collect()
}

/// Arguments that have a column of their own in the table.
const COLUMNS: [&str; 7] = [
    "tp",
    "pp",
    "kv_dtype",
    "no_prefix_caching",
    "with_encoder",
    "max_model_len",
    "available_bytes",
];

/// The column of the table that a row belongs to; rarer settings share one and are listed below the table.
fn setting(args: &Value) -> (String, Option<String>) {
    let rare: Vec<String> = args
        .as_object()
        .unwrap()
        .iter()
        .filter(|(key, value)| {
            !COLUMNS.contains(&key.as_str())
                || (key.as_str() == "kv_dtype" && value.as_str() != Some("fp8"))
                || (key.as_str() == "tp" && value.as_u64() > Some(8))
                || (key.as_str() == "pp" && value.as_u64() > Some(2))
        })
        .map(|(key, value)| format!("{key}={}", value.to_string().trim_matches('"')))
        .collect();
    if !rare.is_empty() {
        return ("other".to_owned(), Some(rare.join(" ")));
    }
    let mut label = format!("TP {}", args["tp"].as_u64().unwrap_or(1));
    if let Some(stages) = args["pp"].as_u64() {
        let _ = write!(label, ", PP {stages}");
    }
    if let Some(dtype) = args["kv_dtype"].as_str() {
        let _ = write!(label, ", {dtype}");
    }
    if args["no_prefix_caching"].as_bool() == Some(true) {
        label.push_str(", no prefix caching");
    }
    if args["with_encoder"].as_bool() == Some(true) {
        label.push_str(", with towers");
    }
    (label, None)
}

/// The settings the reference scripts used: stand-ins for `FLASH_ATTN`, and `FLASHMLA` for latent attention without
/// an indexer, unless the row names others; 8192 batched tokens, asynchronous scheduling without pipeline stages.
fn settings(args: &Value, model: &Model) -> Settings {
    let any = |wanted: fn(&CacheKind) -> bool| {
        model
            .layers
            .iter()
            .flat_map(|layer| &layer.caches)
            .any(|cache| wanted(&cache.kind))
    };
    let latent = any(|kind| matches!(kind, CacheKind::Latent { .. } | CacheKind::Compressed { .. }));
    let sparse = any(|kind| matches!(kind, CacheKind::Latent { sparse: true, .. }));
    let backend = match (latent, sparse) {
        (true, true) => None,
        (true, false) => Some(args["mla_backend"].as_str().unwrap_or("FLASHMLA")),
        (false, _) => Some(args["backend"].as_str().unwrap_or("FLASH_ATTN")),
    };
    let stages = args["pp"].as_u64().unwrap_or(1);
    Settings {
        tensor_parallel_size: args["tp"].as_u64().unwrap_or(1),
        pipeline_parallel_size: stages,
        decode_context_parallel_size: args["dcp"].as_u64().unwrap_or(1),
        kv_cache_dtype: KvDtype::parse(args["kv_dtype"].as_str().unwrap_or("auto")).unwrap(),
        block_size: args["block_size"].as_u64(),
        max_model_len: args["max_model_len"]
            .as_u64()
            .map_or(MaxModelLen::Derived, MaxModelLen::Tokens),
        max_num_batched_tokens: Some(args["max_num_batched_tokens"].as_u64().unwrap_or(8192)),
        max_num_seqs: Some(256),
        async_scheduling: Some(stages == 1 && args["asyn"].as_u64() != Some(0)),
        enable_prefix_caching: Some(args["no_prefix_caching"].as_bool() != Some(true)),
        disable_hybrid_kv_cache_manager: args["no_hybrid"].as_bool() == Some(true),
        attention_backend: backend.map(|name| Backend::parse(name).unwrap()),
        ..Settings::default()
    }
}

fn group_kind(wrapper: &str) -> &'static str {
    match wrapper {
        // R-SWA (Unlimited-OCR) gives blocks back during decoding; it is sized as full attention is.
        "FullAttention" | "RSWA" => "full_attention",
        "SlidingWindow" => "sliding_window",
        "Mamba" => "mamba",
        "MLAAttention" => "mla_attention",
        "ChunkedLocalAttention" => "chunked_local_attention",
        "CrossAttention" => "cross_attention",
        "UniformType" => "uniform_type",
        other => panic!("unknown group {other}"),
    }
}

/// The row's concurrency, rounded as the standard library rounds (the JSON reader may be off by one unit).
fn concurrency(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once("\"max_concurrency\":")?;
    let (digits, _) = rest.split_once([',', '}'])?;
    digits.parse().ok()
}

/// Fields in which our layout is not vLLM's, as `field: theirs, ours`.
fn differences(row: &Value, concurrency: Option<f64>, ours: &Layout) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |field: &str, theirs: String, ours: String| {
        if theirs != ours {
            found.push(format!("{field}: vLLM {theirs}, ours {ours}"));
        }
    };
    let optional = |value: Option<u64>| value.map_or("null".to_owned(), |n| n.to_string());
    let bytes: Vec<u64> = ours.stages.iter().map(|stage| stage.bytes_per_block).collect();
    compare(
        "block_size",
        row["block_size"].to_string(),
        ours.block_size.to_string(),
    );
    compare(
        "mamba_block_size",
        row["mamba_block_size"].to_string(),
        optional(ours.mamba_block_size),
    );
    compare(
        "mamba_page_size_padded",
        row["mamba_page_size_padded"].to_string(),
        optional(ours.mamba_page_bytes_padded),
    );
    compare(
        "kv_layers",
        row["kv_layers"].to_string(),
        ours.kv_layers.to_string(),
    );
    compare(
        "bytes_per_block",
        row["bytes_per_block"].to_string(),
        format!("{bytes:?}").replace(' ', ""),
    );
    compare(
        "num_blocks",
        row["num_blocks"].to_string(),
        ours.num_blocks.to_string(),
    );
    compare(
        "capacity_tokens",
        row["capacity_tokens"].to_string(),
        optional(ours.capacity_tokens),
    );
    compare(
        "scheduler_block_size",
        row["scheduler_block_size"].to_string(),
        ours.scheduler_block_size.to_string(),
    );
    compare(
        "hash_block_size",
        row["hash_block_size"].to_string(),
        ours.hash_block_size.to_string(),
    );
    if concurrency != ours.max_concurrency {
        compare(
            "max_concurrency",
            row["max_concurrency"].to_string(),
            format!("{:?}", ours.max_concurrency),
        );
    }
    let theirs: Vec<String> = row["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| {
            let kind = group_kind(group[1].as_str().unwrap());
            let page = if kind == "uniform_type" {
                Value::from(0)
            } else {
                group[3].clone()
            };
            format!("{} {kind} {} {page} {}", group[0], group[2], group[4])
        })
        .collect();
    let own: Vec<String> = ours
        .groups
        .iter()
        .map(|group| {
            let page = if group.kind == "uniform_type" {
                0
            } else {
                group.page_bytes
            };
            format!(
                "{} {} {} {page} {}",
                group.layers, group.kind, group.block_size, group.blocks_per_request
            )
        })
        .collect();
    compare("groups", theirs.join("; "), own.join("; "));
    found
}

/// Differences of one row: in the cache, and in the weights.
fn row_differences(line: &str, row: &Value, model: &Model) -> (Vec<String>, Vec<String>) {
    let args = &row["args"];
    let settings = settings(args, model);
    let latent = |cache: &Cache| {
        matches!(
            cache.kind,
            CacheKind::Latent { .. } | CacheKind::Compressed { .. }
        )
    };
    let dense = !model.layers.iter().flat_map(|layer| &layer.caches).any(latent);
    let gpu = if dense { A100 } else { H100 };
    let outcome = match layout(
        model,
        &settings,
        gpu,
        &[args["available_bytes"].as_u64().unwrap()],
    ) {
        Ok(outcome) => outcome,
        Err(error) => return (vec![format!("error: {error}")], Vec::new()),
    };
    if row["refused"].as_bool() == Some(true) {
        let found = match outcome.refused {
            None => Some("vLLM refuses, we do not".to_owned()),
            Some(refusal) => {
                let theirs = row["estimated_max_model_len"].as_u64();
                let ours = refusal.estimated_max_model_len;
                (theirs != ours).then(|| format!("estimated_max_model_len: vLLM {theirs:?}, ours {ours:?}"))
            }
        };
        return (found.into_iter().collect(), Vec::new());
    }
    // The reference scripts stand in for every backend, so its limits are not part of the comparison.
    let kv = match &outcome.layout {
        Some(ours) => differences(row, concurrency(line), ours),
        None => vec![format!("refused: {:?}", outcome.refused)],
    };
    let parallel = Parallel {
        pp: settings.pipeline_parallel_size,
        ..Parallel::tensor(settings.tensor_parallel_size)
    };
    let towers = args["with_encoder"].as_bool() == Some(true);
    let weights: Vec<String> = (0..parallel.pp)
        .map(
            |stage| match model.weight_bytes(stage, &parallel, Dtype::Bf16, towers) {
                Ok(bytes) => bytes.to_string(),
                Err(error) => error.to_string(),
            },
        )
        .collect();
    let own = format!("[{}]", weights.join(","));
    let theirs = row["weight_bytes_per_rank"].to_string();
    let weights = (theirs != "null" && theirs != own)
        .then(|| format!("weight_bytes_per_rank: vLLM {theirs}, ours {own}"));
    (kv, weights.into_iter().collect())
}

/// Tally of one cell of the table.
#[derive(Default)]
struct Cell {
    rows: usize,
    exact_kv: usize,
    exact_weights: usize,
    /// Rows that tell the weights: refusals and `DeepSeek-V4` do not.
    weight_rows: usize,
}

struct Report {
    /// Inequalities that no known difference covers.
    unexpected: Vec<String>,
    /// Rare settings: rows, and rows that are exact in the cache.
    rare: BTreeMap<String, (usize, usize)>,
    /// Configurations that are not read, by class and reason.
    unread: BTreeMap<String, Vec<String>>,
    /// Known differences that cover nothing any more.
    stale: Vec<String>,
    /// Architecture, then setting.
    cells: BTreeMap<String, BTreeMap<String, Cell>>,
    /// Architecture and the reasons of its differences.
    reasons: BTreeMap<String, BTreeSet<String>>,
    rows: usize,
    exact_kv: usize,
    exact_weights: usize,
    weight_rows: usize,
}

fn report() -> Report {
    let subjects = subjects();
    let known = Known::all();
    let mut used = vec![false; known.len()];
    let mut report = Report {
        unexpected: Vec::new(),
        rare: BTreeMap::new(),
        unread: BTreeMap::new(),
        stale: Vec::new(),
        cells: BTreeMap::new(),
        reasons: BTreeMap::new(),
        rows: 0,
        exact_kv: 0,
        exact_weights: 0,
        weight_rows: 0,
    };
    for line in ROWS.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let name = row["config"].as_str().unwrap();
        let (label, rare) = setting(&row["args"]);
        let (class, kv, weights) = match &subjects[name] {
            Subject::Model(model, class) => {
                let (kv, weights) = row_differences(line, &row, model);
                (class, kv, weights)
            }
            Subject::Unread(class, _) if row["refused"].as_bool() == Some(true) => {
                (class, Vec::new(), Vec::new())
            }
            Subject::Unread(class, reason) => {
                report
                    .unread
                    .entry(format!("{class}: {reason}"))
                    .or_default()
                    .push(name.to_owned());
                report.rows += 1;
                report
                    .cells
                    .entry(class.clone())
                    .or_default()
                    .entry(label)
                    .or_default()
                    .rows += 1;
                continue;
            }
        };
        let cell = report
            .cells
            .entry(class.clone())
            .or_default()
            .entry(label.clone())
            .or_default();
        cell.rows += 1;
        report.rows += 1;
        if let Some(rare) = rare {
            let (rows, exact) = report.rare.entry(rare).or_default();
            *rows += 1;
            *exact += usize::from(kv.is_empty());
        }
        let weighed = row["weight_bytes_per_rank"].is_array();
        cell.weight_rows += usize::from(weighed);
        report.weight_rows += usize::from(weighed);
        for (part, found) in [("kv", kv), ("weights", weights)] {
            if part == "weights" && !weighed {
                continue;
            }
            if found.is_empty() {
                let count = if part == "kv" {
                    &mut cell.exact_kv
                } else {
                    &mut cell.exact_weights
                };
                *count += 1;
                *(if part == "kv" {
                    &mut report.exact_kv
                } else {
                    &mut report.exact_weights
                }) += 1;
                continue;
            }
            match known.iter().position(|one| one.covers(name, &label, part)) {
                Some(index) => {
                    used[index] = true;
                    let reason = format!("{part}: {}", known[index].reason);
                    report.reasons.entry(class.clone()).or_default().insert(reason);
                }
                None => report
                    .unexpected
                    .push(format!("{name} [{label}] {part}: {}", found.join("; "))),
            }
        }
    }
    for (one, used) in known.iter().zip(used) {
        if !used {
            report
                .stale
                .push(format!("{} [{}] {}", one.config, one.setting, one.part));
        }
    }
    report
}

/// The documentation's table.
fn page(report: &Report) -> String {
    let labels: BTreeSet<&String> = report.cells.values().flat_map(BTreeMap::keys).collect();
    let mut text = format!(
        "# Conformance with vLLM 0.32.0\n\n\
         Generated by `KVWISE_WRITE_CONFORMANCE=1 cargo test -p kvwise-core --test conformance`; do not edit.\n\n\
         Each row of the golden data is what vLLM's own code computed for one configuration and setting, with {} rows\n\
         in all. The cache is exact in {} of them: block sizes, groups, bytes per block, number of blocks, tokens and\n\
         concurrency are equal, or both refuse. {} rows tell the weights, and the bytes of every rank are equal in {}.\n\
         A cell shows exact/all rows of the cache, then of the weights; `=` stands for all, `-` for none. How the rows\n\
         were made, and what the stand-ins for GPU kernels leave open: `crates/core/tests/golden/README.md`.\n\n",
        report.rows, report.exact_kv, report.weight_rows, report.exact_weights
    );
    let _ = write!(text, "| architecture |");
    for label in &labels {
        let _ = write!(text, " {label} |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(labels.len()));
    text.push('\n');
    for (class, cells) in &report.cells {
        let _ = write!(text, "| {class} |");
        for label in &labels {
            let cell = cells.get(*label).map_or(String::new(), |cell| {
                let show = |exact: usize, rows: usize| match rows {
                    0 => "-".to_owned(),
                    rows if exact == rows => "=".to_owned(),
                    rows => format!("{exact}/{rows}"),
                };
                format!(
                    "{} {}",
                    show(cell.exact_kv, cell.rows),
                    show(cell.exact_weights, cell.weight_rows)
                )
            });
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    text.push_str("\n## Other settings\n\nThe column \"other\" in detail, exact/all rows of the cache.\n\n| setting | exact |\n|---|---|\n");
    for (setting, (rows, exact)) in &report.rare {
        let _ = writeln!(text, "| {setting} | {exact}/{rows} |");
    }
    text.push_str(
        "\n## What only a GPU shows\n\n\
         The reference's stand-in for `FLASH_ATTN` takes blocks of any multiple of 16, so rows are compared with the blocks\n\
         that an A100 takes. On Hopper, Gemma-4 with an 8-bit cache has others: its full layers have heads of 512 elements,\n\
         which FlashAttention 4 alone serves, from pages of 64 tokens (vLLM 0.32.0, `_get_sm90_fa4_fp8_kv_block_size` in\n\
         `v1/attention/backends/flash_attn.py`; `Gemma4Config` in `model_executor/models/config.py` leaves the choice to each\n\
         layer there). With images the layers are served by `TRITON_FLASH_ATTN`, which takes the blocks that both of its\n\
         kernels take: 64 again. A plan for an H100 says 64, the reference 16.\n",
    );
    text.push_str(QUANTISED);
    if !report.unread.is_empty() {
        text.push_str("\n## Not read\n\n");
        for (reason, names) in &report.unread {
            let _ = writeln!(text, "- {reason} ({} rows)", names.len());
        }
    }
    text.push_str("\n## Known differences\n\n");
    if report.reasons.is_empty() {
        text.push_str("None.\n");
    }
    for (class, reasons) in &report.reasons {
        for reason in reasons {
            let _ = writeln!(text, "- {class}, {reason}");
        }
    }
    text
}

/// What the page says of quantised checkpoints, whose rows are compared by another test.
const QUANTISED: &str = "\n## Quantised checkpoints\n\n\
    Rows above ignore quantisation. `golden/quantized_rows.jsonl` and `quantized_variants.jsonl` compare the weights of 35 kinds\n\
    of `quantization_config` on classes of all families, all equal. Random variants beyond them still differ in these kinds:\n\n\
    - Ignore lists that name a wrapper's layers without the wrapper's own prefix (`model.layers.0.…` for Llama-4, Qwen3-VL,\n  \
    Qwen2-Audio or HRM, whose files say `language_model.model.…`): the engine skips nothing, a plan leaves these modules in 16\n  \
    bits.\n\
    - Lists that do not leave out a vision or audio tower: the engine quantises it, or refuses groups that do not divide it;\n  \
    a plan keeps towers in 16 bits, as published checkpoints do.\n\
    - gpt-oss in a format whose experts have no biases in the engine (ModelOpt, AWQ, llm-compressor's FP8 and FP4): a plan counts\n  \
    biases for ModelOpt and llm-compressor.\n\
    - torchao and Humming, whose tensors are made by other libraries, are not sized; `moe_wna16` as a checkpoint's own method is\n  \
    refused as the engine does.\n\n\
    Where the reference has no GPU it differs by itself: auto-round's experts stay in 16 bits, `experts_int8` is counted before the\n\
    load turns it to 8 bits, GPTQ of 8 bits is refused, and kernels accept groups that no kernel takes.\n";

#[test]
fn every_golden_row_equals_vllm_or_is_a_known_difference() {
    let report = report();
    if std::env::var_os("KVWISE_WRITE_CONFORMANCE").is_some() {
        let path = std::path::Path::new(PAGE);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, page(&report)).unwrap();
    }
    assert!(report.rows >= 1000, "golden rows have been lost: {}", report.rows);
    assert!(
        report.unexpected.is_empty(),
        "{} inequalities ({} of {} rows are exact in the cache, {} in the weights):\n{}",
        report.unexpected.len(),
        report.exact_kv,
        report.rows,
        report.exact_weights,
        report.unexpected.join("\n")
    );
    assert!(
        report.unread.is_empty(),
        "not read:\n{}",
        report.unread.keys().cloned().collect::<Vec<_>>().join("\n")
    );
    assert!(
        report.stale.is_empty(),
        "known differences that are equal now, take them off the list:\n{}",
        report.stale.join("\n")
    );
}
