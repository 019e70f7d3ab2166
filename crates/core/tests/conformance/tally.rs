//! How many rows are equal, by architecture and setting.

use std::collections::{BTreeMap, BTreeSet};

use kvwise_core::Result;
use kvwise_core::arch::family::{Reading, read};

use kvwise_core::arch::{Config, Model};
use serde_json::Value;

use super::compare::row_differences;
use super::known::Known;
use super::layers::cut;
use super::settings::setting;

const ROWS: &str = concat!(
    include_str!("../golden/vllm_rows.jsonl"),
    include_str!("../golden/towers_rows.jsonl"),
    include_str!("../golden/combined_rows.jsonl")
);
const CONFIGS: &str = concat!(
    include_str!("../golden/vllm_configs.jsonl"),
    include_str!("../golden/towers_configs.jsonl")
);

/// A configuration as it was read.
enum Subject {
    Model(Box<Model>, String),
    Unread(String, String),
}

/// Name, class and text of every configuration.
fn configs() -> impl Iterator<Item = (String, String, String)> {
    CONFIGS.lines().map(|line| {
        let entry: Value = serde_json::from_str(line).unwrap();
        let cell = |key: &str| entry[key].as_str().unwrap().to_owned();
        (cell("name"), cell("class"), cell("config"))
    })
}

fn subject(name: &str, class: &str, config: Result<Config>) -> Subject {
    let class = class.to_owned();
    match config.and_then(|config| read(name, &config)) {
        Ok(Reading::Model(model)) => Subject::Model(model, class),
        Ok(Reading::Refused(refusal)) => Subject::Unread(class, refusal.reason),
        Err(error) => Subject::Unread(class, error.to_string()),
    }
}

/// Tally of one cell of the table.
#[derive(Default)]
pub struct Cell {
    pub rows: usize,
    pub exact_kv: usize,
    pub exact_weights: usize,
    /// Rows that tell the weights: refusals and `DeepSeek-V4` do not.
    pub weight_rows: usize,
}

pub struct Report {
    /// Inequalities that no known difference covers.
    pub unexpected: Vec<String>,
    /// Rare settings: rows, and rows that are exact in the cache.
    pub rare: BTreeMap<String, (usize, usize)>,
    /// Configurations that are not read, by class and reason.
    pub unread: BTreeMap<String, Vec<String>>,
    /// Known differences that cover nothing any more.
    pub stale: Vec<String>,
    /// Architecture, then setting.
    pub cells: BTreeMap<String, BTreeMap<String, Cell>>,
    /// Architecture and the reasons of its differences.
    pub reasons: BTreeMap<String, BTreeSet<String>>,
    pub rows: usize,
    pub exact_kv: usize,
    pub exact_weights: usize,
    pub weight_rows: usize,
}

pub fn report() -> Report {
    let texts: BTreeMap<String, (String, String)> = configs()
        .map(|(name, class, text)| (name, (class, text)))
        .collect();
    let subjects: BTreeMap<&str, Subject> = texts
        .iter()
        .map(|(name, (class, text))| {
            (
                name.as_str(),
                subject(name, class, Config::parse(text.as_bytes())),
            )
        })
        .collect();
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
        let shallow = row["args"]["layers"].as_u64().map(|layers| {
            let (class, text) = &texts[name];
            let map = Config::parse(text.as_bytes()).unwrap().into_map();
            subject(name, class, Ok(Config::from_map(cut(map, layers))))
        });
        let (class, kv, weights) = match shallow.as_ref().unwrap_or(&subjects[name]) {
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
