//! Tables of cosines and sines that rotary embeddings keep beside the weights.
//!
//! An engine computes them once for every position that a model may have; layers with equal settings share one table
//! (vLLM 0.32.0, `get_rope` in `model_executor/layers/rotary_embedding/__init__.py` and the classes beside it). They are no
//! parameters, but what start-up logs call the model's load contains them.

use std::collections::BTreeSet;

use super::Text;
use crate::arch::{AttentionScales, CacheKind, Config, Model};
use crate::engine::vllm::Version;
use crate::{Error, Result};

/// Types of models that know their positions in other ways, or not at all.
const WITHOUT: [&str; 20] = [
    "bert",
    "bloom",
    "gpt2",
    "gpt_bigcode",
    "jamba",
    "mamba",
    "mamba2",
    "falcon_mamba",
    "mpt",
    "nemotron_h",
    "opt",
    "roberta",
    "xlm-roberta",
    "t5",
    "bart",
    "whisper",
    "zamba",
    "bamba",
    "granitemoehybrid",
    "biogpt",
];

/// Rows of a table for every position of images and text, where positions have three parts (`mrope.py`).
const MULTIMODAL_ROWS: u64 = 4;

/// Classes whose positions never exceed the number of tokens, and the release that is known to size their tables by that
/// (`mrope_positions_factor` in `models/qwen3_vl.py` of 0.32.0; start-up logs of 0.13 and 0.27 have the longer tables).
const COUNT: [&str; 2] = ["Qwen3VL", "Qwen3_5"];
const COUNTED: Version = Version::new(0, 32, 0);

/// One table: positions, and values of one position.
type Table = (u64, u64);

/// Elements of all tables of a model, each of the model's element type, as a release of vLLM keeps them.
///
/// # Errors
/// If a number of the configuration is not one, or a product leaves 64 bits.
pub fn rotary_elements(model: &Model, file: &Config, version: Version) -> Result<u64> {
    // Whether the file agrees was asked when the model was read.
    let text = Text::find_disagreeing(&model.architecture, file)?;
    let config = &text.config;
    let alibi = config.bool("alibi")?.unwrap_or(false);
    // The generic Transformers backend computes the values anew in each step.
    let generic = model.attention_scales == AttentionScales::InModelType;
    if alibi || generic || WITHOUT.contains(&text.model_type()?) {
        return Ok(0);
    }
    let longer = version < COUNTED || !COUNT.iter().any(|class| model.architecture.starts_with(class));
    let mut tables: BTreeSet<(bool, Table)> = BTreeSet::new();
    let rope = config.sub("rope_parameters")?.or(config.sub("rope_scaling")?);
    let local_base = config.get("rope_local_base_freq").is_some() || text.model_type()?.starts_with("gemma3");
    // Layers are many and their kinds few.
    let mut seen: Vec<(bool, u64, bool)> = Vec::new();
    let turned_apart = !config.bool("indexer_rope_interleave")?.unwrap_or(false);
    for cache in model.layers.iter().flat_map(|layer| &layer.caches) {
        let kind @ (sliding, head, whole) = match &cache.kind {
            CacheKind::Full(heads) | CacheKind::Chunked { heads, .. } => (false, heads.head_dim, false),
            CacheKind::Sliding { heads, .. } => (true, heads.head_dim, false),
            CacheKind::Latent { rope, .. } => (false, *rope, true),
            // The indexer turns its keys in another order, from a table of its own.
            CacheKind::Indexer { .. } | CacheKind::PooledIndexer { .. } if turned_apart => {
                (true, config.dim_or("qk_rope_head_dim", 0)?, true)
            }
            _ => continue,
        };
        if seen.contains(&kind) {
            continue;
        }
        seen.push(kind);
        let (named, own) = match &rope {
            None => (false, None),
            Some(rope) => {
                let kind = if sliding {
                    "sliding_attention"
                } else {
                    "full_attention"
                };
                match rope.sub(kind)? {
                    Some(own) => (true, Some(own)),
                    None => (false, Some(rope.clone())),
                }
            }
        };
        let width = if whole {
            head
        } else {
            width(config, own.as_ref(), head)?
        };
        // A window's layers have a table of their own where they have other settings.
        let apart = sliding && (named || local_base || whole);
        let scaling = if sliding && local_base { None } else { own.as_ref() };
        tables.insert((apart, (rows(config, scaling, longer)?, width)));
    }
    let overflow = || Error::overflow("the tables of the rotary embedding");
    // gpt-oss keeps its table in 32 bits (`gpt_oss.py`).
    let halves = if text.model_type()? == "gpt_oss" { 2 } else { 1 };
    tables.iter().try_fold(0u64, |sum, (_, (rows, width))| {
        rows.checked_mul(*width)
            .and_then(|n| n.checked_mul(halves))
            .and_then(|n| sum.checked_add(n))
            .ok_or_else(overflow)
    })
}

/// Values of one position: the part of a head that is turned.
fn width(config: &Config, rope: Option<&Config>, head: u64) -> Result<u64> {
    let kind = match rope {
        Some(rope) => rope.str("rope_type")?,
        None => None,
    };
    if kind == Some("proportional") {
        // Gemma 4: the part that is not turned has cosines of one and sines of zero.
        return Ok(head);
    }
    if let Some(dim) = match rope {
        Some(rope) => rope.u64("rope_dim")?,
        None => None,
    }
    .or(config.u64("rotary_dim")?)
    {
        return Ok(dim.min(head));
    }
    let mut factor = None;
    if let Some(rope) = rope {
        factor = rope.f64("partial_rotary_factor")?;
    }
    for key in ["partial_rotary_factor", "rotary_pct", "rope_pct"] {
        factor = factor.or(config.f64(key)?);
    }
    let factor = factor.unwrap_or(1.0);
    if !(0.0..=1.0).contains(&factor) {
        return Err(Error::input(format!(
            "{} is {factor}; it is a share of a head, from 0 to 1",
            config.name("partial_rotary_factor")
        )));
    }
    // The engine's own rounding: `int(head_size * partial_rotary_factor)`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a head, which is at most 2^26"
    )]
    let turned = (head as f64 * factor) as u64;
    Ok(turned)
}

/// Positions that a table has rows for.
fn rows(config: &Config, rope: Option<&Config>, longer: bool) -> Result<u64> {
    const KEYS: [&str; 4] = [
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "seq_length",
    ];
    let longest = config.first_u64(&KEYS)?.unwrap_or(2048);
    let Some(rope) = rope else {
        return Ok(longest);
    };
    let kind = rope.str("rope_type")?.or(rope.str("type")?).unwrap_or("default");
    let factor = rope.f64("factor")?.unwrap_or(1.0);
    let original = match rope.u64("original_max_position_embeddings")? {
        Some(n) => n,
        None => config.u64("original_max_position_embeddings")?.unwrap_or(longest),
    };
    if rope.get("mrope_section").is_some() {
        let base = if kind == "yarn" { original } else { longest };
        return base
            .checked_mul(if longer { MULTIMODAL_ROWS } else { 1 })
            .ok_or_else(|| Error::overflow("the rows of the rotary embedding's table"));
    }
    match kind {
        "longrope" | "su" => original
            .checked_add(longest)
            .ok_or_else(|| Error::overflow("the rows of the rotary embedding's table")),
        "yarn" | "deepseek_yarn" | "deepseek_llama_scaling" => scaled(original, factor, rope),
        "linear" | "dynamic" | "ntk" => scaled(longest, factor, rope),
        _ => Ok(longest),
    }
}

fn scaled(length: u64, factor: f64, rope: &Config) -> Result<u64> {
    let product = length as f64 * factor;
    if !(1.0..9.0e15).contains(&product) {
        return Err(Error::input(format!(
            "{} is {factor}, which makes the table of the rotary embedding {product} positions long",
            rope.name("factor")
        )));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and 9e15, checked above"
    )]
    Ok(product as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::family::{Reading, read};
    use crate::catalogue;

    /// Bytes of `cos_sin_cache` in vLLM 0.32.0's own model classes on the meta device, one model of the catalogue a line.
    const TABLES: &str = include_str!("../../../tests/data/rotary_tables.tsv");

    #[test]
    fn tables_are_as_large_as_those_of_the_engines_own_classes() {
        let mut compared = 0;
        for line in TABLES.lines().filter(|line| !line.starts_with('#')) {
            let (name, bytes) = line.split_once('\t').unwrap();
            let config = catalogue::find(name).unwrap().config().unwrap();
            let Reading::Model(model) = read(name, &config).unwrap() else {
                panic!("{name} is refused");
            };
            let elements = rotary_elements(&model, &config, Version::new(0, 32, 0)).unwrap();
            assert_eq!(elements * 2, bytes.parse::<u64>().unwrap(), "{name}");
            compared += 1;
        }
        assert!(compared > 80, "{compared} models");
    }

    #[test]
    fn images_and_videos_have_four_times_the_positions_until_a_release_counts_them() {
        let config = catalogue::find("Qwen/Qwen3-VL-30B-A3B-Instruct")
            .unwrap()
            .config()
            .unwrap();
        let Reading::Model(model) = read("m", &config).unwrap() else {
            panic!("refused");
        };
        let at = |minor| rotary_elements(&model, &config, Version::new(0, minor, 0)).unwrap();
        assert_eq!(at(13), 4 * 262_144 * 128);
        assert_eq!(at(32), 262_144 * 128);
    }

    #[test]
    fn a_share_of_a_head_beyond_one_is_an_error_and_absurd_factors_do_not_wrap() {
        let of = |text: &str| {
            let config = Config::parse(text.as_bytes())?;
            match read("m", &config)? {
                Reading::Model(model) => rotary_elements(&model, &config, Version::new(0, 32, 0)),
                Reading::Refused(refusal) => Err(Error::unsupported(refusal.reason)),
            }
        };
        let with = |extra: &str| {
            format!(
                r#"{{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":64,"num_attention_heads":4,
                "num_hidden_layers":2,"intermediate_size":128,"vocab_size":100,"max_position_embeddings":2048{extra}}}"#
            )
        };
        assert_eq!(of(&with("")).unwrap(), 2048 * 16);
        let error = of(&with(r#","partial_rotary_factor":1.5"#)).unwrap_err();
        assert!(error.to_string().contains("partial_rotary_factor"), "{error}");
        assert!(of(&with(r#","rope_scaling":{"type":"linear","factor":1e300}"#)).is_err());
    }
}
