//! What vLLM calls the modules of a class, and what it makes of the names in a checkpoint's lists.
//!
//! A wrapper's language model lies under a prefix of its own (`language_model.model.layers.3…`), while files name it as
//! the wrapper of another library does (`model.language_model.layers.3…`). vLLM renames the entries of lists by the class's
//! `hf_to_vllm_mapper` and compares them with its own paths, so that an entry in a third spelling hits nothing. The rows of
//! `data/vllm_modules.jsonl` are what its classes asked for while they were built (vLLM 0.32.0; how: `tests/golden/README.md`).

use std::borrow::Cow;

use serde_json::Value;

use crate::Result;
use crate::arch::Config;

/// One row: classes (`c`), and where they differ from most their paths (`p`), modules below a layer (`n`), modules without a
/// scheme (`u`), embedding (`v`), mappers (`m`), fused modules (`f`), modules of towers (`t`), methods that leave towers out
/// (`s`), whether the experts' class is one of its own (`k`) and names of an expert's matrices (`e`).
const ROWS: &str = include_str!("../../data/vllm_modules.jsonl");

/// What most classes fuse; a name that a class does not have is never asked for.
const USUALLY_FUSED: &[(&str, &[&str])] = &[
    ("qkv_proj", &["q_proj", "k_proj", "v_proj"]),
    ("gate_up_proj", &["gate_proj", "up_proj"]),
    ("fused_qkv_a_proj", &["q_a_proj", "kv_a_proj_with_mqa"]),
    ("in_proj_qkvz", &["in_proj_qkv", "in_proj_z"]),
    ("in_proj_ba", &["in_proj_b", "in_proj_a"]),
];

/// The names of one class.
#[derive(Debug, Clone, Default)]
pub(super) struct Naming {
    /// Beginnings of this program's paths and of the engine's.
    paths: Vec<(String, String)>,
    /// Modules below a layer that the engine calls otherwise: behind `=` a whole path, with the layer's number for `{}`.
    modules: Vec<(String, String)>,
    /// Modules that it builds without the checkpoint's quantisation, below a layer, or behind `=` a whole path.
    plain: Vec<String>,
    /// The path under which it asks for the scheme of token embeddings; some classes have none.
    embedding: Option<String>,
    /// Renamings of the wrapper, then of the language model in it.
    mappers: Vec<Mapper>,
    /// Modules that the engine fuses, with the parts that checkpoints name.
    fused: Vec<(String, Vec<String>)>,
    /// Modules of a tower that are built with the checkpoint's quantisation: this program's names and the engine's.
    towers: Vec<(String, String)>,
    /// Methods under which the class builds its tower without the checkpoint's quantisation; `awq-text` is AWQ that the
    /// language model's part of a file says.
    plain_towers: Vec<String>,
    /// Whether the experts' class is called otherwise than targets of checkpoints do.
    experts_apart: bool,
    /// Names of an expert's matrices in checkpoints: gate, up, down.
    experts: Option<[String; 3]>,
}

/// Renamings in the order in which the engine applies them (vLLM 0.32.0, `WeightsMapper` in `models/utils.py`).
#[derive(Debug, Clone, Default)]
struct Mapper {
    parts: Vec<(String, String)>,
    beginnings: Vec<(String, String)>,
    endings: Vec<(String, String)>,
}

impl Mapper {
    fn rename(&self, name: &str) -> String {
        let mut name = name.to_owned();
        for (from, to) in &self.parts {
            if name.contains(from.as_str()) {
                name = name.replacen(from.as_str(), to, 1);
            }
        }
        for (from, to) in &self.beginnings {
            if let Some(rest) = name.strip_prefix(from.as_str()) {
                name = format!("{to}{rest}");
            }
        }
        for (from, to) in &self.endings {
            if let Some(rest) = name.strip_suffix(from.as_str()) {
                name = format!("{rest}{to}");
            }
        }
        name
    }
}

impl Naming {
    /// The names of a configuration's class.
    ///
    /// # Errors
    /// If `architectures` is no list of texts.
    pub(super) fn of(file: &Config) -> Result<Self> {
        let class = file
            .strs("architectures")?
            .and_then(|list| list.first().copied())
            .unwrap_or_default();
        Ok(Self::of_class(class))
    }

    /// The names of a class; those of most for one that is not in the table.
    pub(super) fn of_class(class: &str) -> Self {
        let usual = || {
            let parts = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
            USUALLY_FUSED
                .iter()
                .map(|&(name, names)| (name.to_owned(), parts(names)))
                .collect()
        };
        let Some(row) = row(class) else {
            return Self {
                fused: usual(),
                embedding: Some("model.embed_tokens".to_owned()),
                ..Self::default()
            };
        };
        let mappers = row["m"].as_array().map_or(&[][..], Vec::as_slice);
        Self {
            paths: pairs(&row["p"]),
            modules: pairs(&row["n"]),
            plain: texts(&row["u"]),
            embedding: row["v"].as_str().map(str::to_owned),
            mappers: mappers
                .iter()
                .map(|mapper| Mapper {
                    parts: pairs(&mapper["substr"]),
                    beginnings: pairs(&mapper["prefix"]),
                    endings: pairs(&mapper["suffix"]),
                })
                .collect(),
            fused: match &row["f"] {
                Value::Object(fused) => fused
                    .iter()
                    .map(|(name, parts)| (name.clone(), texts(parts)))
                    .collect(),
                _ => usual(),
            },
            towers: pairs(&row["t"]),
            plain_towers: texts(&row["s"]),
            experts_apart: row["k"].as_bool().unwrap_or(false),
            experts: <[String; 3]>::try_from(texts(&row["e"])).ok(),
        }
    }

    /// What the engine calls the module at a path of this program's; `None` for one that it builds without the
    /// checkpoint's quantisation.
    pub(super) fn path<'a>(&self, path: &'a str) -> Option<Cow<'a, str>> {
        if self.paths.is_empty() && self.modules.is_empty() && self.plain.is_empty() {
            return Some(Cow::Borrowed(path));
        }
        let layer = layer(path);
        let below = layer.map_or(path, |(_, _, below)| below);
        let plain = |name: &String| {
            name.strip_prefix('=')
                .map_or(layer.is_some() && name == below, |whole| whole == path)
        };
        if self.plain.iter().any(plain) {
            return None;
        }
        let renamed = layer.and_then(|_| self.modules.iter().find(|(from, _)| from == below));
        if let (Some((_, to)), Some((_, number, _))) = (renamed, layer)
            && let Some(whole) = to.strip_prefix('=')
        {
            return Some(Cow::Owned(whole.replace("{}", number)));
        }
        let prefix = self
            .paths
            .iter()
            .find(|(from, _)| path.starts_with(from.as_str()));
        if prefix.is_none() && renamed.is_none() {
            return Some(Cow::Borrowed(path));
        }
        let mut whole = path.to_owned();
        if let Some((_, to)) = renamed {
            whole.truncate(path.len() - below.len());
            whole.push_str(to);
        }
        if let Some((from, to)) = prefix {
            whole.replace_range(..from.len(), to);
        }
        Some(Cow::Owned(whole))
    }

    /// The path of token embeddings, `None` where they are built without the checkpoint's quantisation.
    pub(super) fn embedding(&self) -> Option<&str> {
        self.embedding.as_deref()
    }

    /// What the engine calls a tower's module, `None` if it builds it without the checkpoint's quantisation.
    pub(super) fn tower(&self, path: &str) -> Option<&str> {
        let (_, name) = self.towers.iter().find(|(own, _)| own == path)?;
        Some(name)
    }

    /// What the engine makes of an entry of a list of modules.
    pub(super) fn rename<'a>(&self, entry: &'a str) -> Cow<'a, str> {
        self.mappers.iter().fold(Cow::Borrowed(entry), |name, mapper| {
            Cow::Owned(mapper.rename(&name))
        })
    }

    /// Whether the engine renames entries of this class at all.
    pub(super) fn renames(&self) -> bool {
        !self.mappers.is_empty()
    }

    /// The same for all entries.
    pub(super) fn rename_all<'a>(&self, entries: &[&'a str]) -> Vec<Cow<'a, str>> {
        entries.iter().map(|entry| self.rename(entry)).collect()
    }

    /// The parts of the module of this path, if it is fused, and its own name.
    fn parts_of<'a>(&self, path: &'a str) -> Option<(&'a str, &[String])> {
        let name = path.rsplit_once('.').map_or(path, |(_, name)| name);
        let (_, parts) = self.fused.iter().find(|(fused, _)| fused == name)?;
        Some((name, parts))
    }

    /// Whether a module is fused of others in checkpoints.
    pub(super) fn fuses(&self, path: &str) -> bool {
        self.parts_of(path).is_some()
    }

    /// Calls `see` with the names that the parts of a fused module have in a checkpoint; never for a module that is one
    /// there too.
    pub(super) fn each_part(&self, path: &str, mut see: impl FnMut(&str)) {
        let Some((name, parts)) = self.parts_of(path) else {
            return;
        };
        let mut full = String::with_capacity(path.len() + 16);
        for part in parts {
            full.clear();
            for (i, piece) in path.split(name).enumerate() {
                if i > 0 {
                    full.push_str(part);
                }
                full.push_str(piece);
            }
            see(&full);
        }
    }

    /// All of these names.
    pub(super) fn parts(&self, path: &str) -> Vec<String> {
        let mut all = Vec::new();
        self.each_part(path, |part| all.push(part.to_owned()));
        all
    }

    /// The fused modules and their parts.
    pub(super) fn fused(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.fused
            .iter()
            .map(|(name, parts)| (name.as_str(), parts.as_slice()))
    }

    /// Whether the class builds its tower without the checkpoint's quantisation under a method.
    pub(super) fn plain_tower(&self, method: &str) -> bool {
        self.plain_towers.iter().any(|plain| {
            plain == method
                || plain == "fp8"
                    && method
                        .strip_prefix("fp8")
                        .is_some_and(|rest| rest.starts_with('_'))
        })
    }

    /// Whether targets that name a class miss the experts.
    pub(super) fn experts_apart(&self) -> bool {
        self.experts_apart
    }

    /// What a checkpoint calls the matrices of a single expert.
    pub(super) fn of_expert(&self, experts: &str) -> [String; 3] {
        match &self.experts {
            Some(names) => names.each_ref().map(|name| format!("{experts}.0.{name}")),
            None => ["gate_proj", "up_proj", "down_proj"].map(|name| format!("{experts}.0.{name}")),
        }
    }
}

/// A path's beginning up to its layer's number, the number, and what is below.
fn layer(path: &str) -> Option<(&str, &str, &str)> {
    let mut start = 0;
    for part in path.split('.') {
        let end = start + part.len();
        if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            return Some((&path[..start], part, path.get(end + 1..)?));
        }
        start = end + 1;
    }
    None
}

/// The row of a class.
fn row(class: &str) -> Option<Value> {
    if class.is_empty() || class.contains(['"', '\\', '\n']) {
        return None;
    }
    let quoted = format!("\"{class}\"");
    let at = memchr::memmem::find(ROWS.as_bytes(), quoted.as_bytes())?;
    let start = ROWS[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let end = ROWS[at..].find('\n').map_or(ROWS.len(), |length| at + length);
    serde_json::from_str(&ROWS[start..end]).ok()
}

fn pairs(value: &Value) -> Vec<(String, String)> {
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    list.iter()
        .filter_map(|pair| {
            Some((
                pair.get(0)?.as_str()?.to_owned(),
                pair.get(1)?.as_str()?.to_owned(),
            ))
        })
        .collect()
}

fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    list.iter()
        .filter_map(|text| text.as_str().map(str::to_owned))
        .collect()
}
