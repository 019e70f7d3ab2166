//! Sizes and lists of one configuration that have to agree: where they do not, the engine's configuration class raises
//! an error and the server does not start (transformers 5.19.0, `validate_architecture`, `validate_layer_type` and
//! `validate_rope` of the classes). Each refusal names the fields with their values, and its hint is what to change.

use serde_json::Value;

use crate::arch::Config;
use crate::names::nearest;
use crate::{Error, Result};

/// Kinds of attention and state layers (`ALLOWED_ATTN_LAYER_TYPES` with the older names that are translated).
const LAYER_KINDS: [&str; 17] = [
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "window_attention",
    "indexed_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
    "minimax_m3_sparse",
    "conv",
    "moe",
    "hybrid",
    "hybrid_sliding",
    "linear_attention",
    "mamba",
    "attention",
    "deepseek_sparse_attention",
    "qwen_sparse_attention",
];

/// Kinds of feed-forward layers (`ALLOWED_MLP_LAYER_TYPES`).
const MLP_KINDS: [&str; 2] = ["sparse", "dense"];

/// Kinds of rotary embeddings that the engine has (vLLM 0.32.0, `get_rope` in `layers/rotary_embedding/__init__.py`) with
/// older names (`patch_legacy_rope_type`), and the numbers that each needs beside its base; lengths are filled in.
const ROTARY: [(&str, &[&str]); 16] = [
    ("default", &[]),
    ("mrope", &[]),
    ("bailing_mrope", &[]),
    ("openpangu", &[]),
    ("mllama4", &[]),
    ("proportional", &[]),
    ("axial", &[]),
    ("linear", &["factor"]),
    ("ntk", &["factor"]),
    ("dynamic", &["factor"]),
    ("yarn", &["factor"]),
    ("deepseek_yarn", &["factor"]),
    ("deepseek_llama_scaling", &["factor"]),
    ("longrope", &["short_factor", "long_factor"]),
    ("su", &["short_factor", "long_factor"]),
    ("llama3", &["factor", "low_freq_factor", "high_freq_factor"]),
];

/// Numbers that some kinds may have, and whose value has to be a positive number then.
const OPTIONAL: [&str; 4] = [
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "partial_rotary_factor",
];

/// What the engine refuses a file for, and what to change in it.
fn disagrees(why: impl Into<String>, fix: impl Into<String>) -> Error {
    Error::unsupported(why).hint(fix)
}

/// What to write in the place of a word that is none of `known`.
fn instead(field: &str, word: &str, known: &[&'static str]) -> String {
    let word: String = word.chars().take(60).collect();
    let close = nearest(&word, known.iter().copied(), 3);
    let choice = match close.as_slice() {
        [] => known,
        close => close,
    };
    match choice {
        [one] => format!("write \"{one}\" for {field}"),
        several => format!("write one of {} for {field}", several.join(", ")),
    }
}

/// `hidden_size` is a multiple of `num_attention_heads`.
pub(super) fn heads_divide_width(filled: &Config) -> Result<()> {
    let (Some(width), Some(heads)) = (filled.u64("hidden_size")?, filled.u64("num_attention_heads")?) else {
        return Ok(());
    };
    // Zero heads are named where heads are read.
    if heads == 0 || width.is_multiple_of(heads) {
        return Ok(());
    }
    Err(disagrees(
        format!(
            "{} is {width}, which is not a multiple of {} ({heads})",
            filled.name("hidden_size"),
            filled.name("num_attention_heads")
        ),
        format!(
            "correct {} or {}, of which the first has to be a multiple of the second",
            filled.name("hidden_size"),
            filled.name("num_attention_heads")
        ),
    ))
}

/// `layer_types` and `mlp_layer_types` name every layer once, by names that are known.
pub(super) fn layer_types_fit(filled: &Config) -> Result<()> {
    for (key, known) in [
        ("layer_types", &LAYER_KINDS[..]),
        ("mlp_layer_types", &MLP_KINDS[..]),
    ] {
        // A class whose first list is empty does not look at the second.
        let Some(list) = filled.array(key)? else {
            return Ok(());
        };
        let unknown = list
            .iter()
            .find(|kind| !kind.as_str().is_some_and(|name| known.contains(&name)));
        if let Some(kind) = unknown {
            let fix = instead("it", kind.as_str().unwrap_or_default(), known);
            let kind: String = kind.to_string().chars().take(60).collect();
            return Err(disagrees(
                format!(
                    "{} names a layer {kind}, which is no kind of layer that the configuration class knows",
                    filled.name(key)
                ),
                fix,
            ));
        }
        if let Some(layers) = filled.u64("num_hidden_layers")?
            && layers != list.len() as u64
        {
            return Err(disagrees(
                format!(
                    "{} names {} layers, but {} is {layers}",
                    filled.name(key),
                    list.len(),
                    filled.name("num_hidden_layers")
                ),
                format!(
                    "give {} one entry for each of the {layers} layers, or set {} to {}",
                    filled.name(key),
                    filled.name("num_hidden_layers"),
                    list.len()
                ),
            ));
        }
    }
    Ok(())
}

/// The settings of rotary embeddings, under their older name first; `None` where there are none.
fn rotary(filled: &Config) -> Result<Option<Config>> {
    for key in ["rope_scaling", "rope_parameters"] {
        let object = filled.get(key).and_then(Value::as_object);
        if object.is_some_and(|rope| !rope.is_empty()) {
            return filled.sub(key);
        }
    }
    Ok(None)
}

/// Scaled rotary embeddings have the numbers that their kind needs.
pub(super) fn rotary_is_complete(filled: &Config) -> Result<()> {
    let Some(rope) = rotary(filled)? else {
        return check_share(filled);
    };
    // One object a kind of layer counts where the layers are of that kind.
    let kinds = filled.strs("layer_types")?.unwrap_or_default();
    let mut parts = Vec::new();
    for (name, value) in rope.map() {
        if let Value::Object(map) = value
            && kinds.contains(&name.as_str())
        {
            parts.push(rope.child(name, map.clone()));
        }
    }
    if parts.is_empty() {
        parts.push(rope);
    }
    check_share(filled)?;
    for part in parts {
        rotary_part(&part)?;
    }
    Ok(())
}

/// One kind's settings.
fn rotary_part(part: &Config) -> Result<()> {
    let key = if part.has("rope_type") || !part.has("type") {
        "rope_type"
    } else {
        "type"
    };
    let name = match part.map().get(key) {
        None => "default",
        Some(Value::String(name)) => name,
        Some(other) => return Err(part.wrong(key, other, "the name of a kind of rotary embedding")),
    };
    if let (Some(new), Some(old)) = (part.get("rope_type"), part.get("type"))
        && new != old
        && !matches!(
            (old.as_str(), name),
            (Some("su"), "longrope") | (Some("mrope"), "default")
        )
    {
        return Err(disagrees(
            format!(
                "{} is {new} and {} is {old}: only one of them should be there",
                part.name("rope_type"),
                part.name("type")
            ),
            format!("leave {} out", part.name("type")),
        ));
    }
    let Some((_, needed)) = ROTARY.iter().find(|(known, _)| *known == name) else {
        let fix = instead(&part.name(key), name, &ROTARY.map(|(known, _)| known));
        let name: String = name.chars().take(60).collect();
        return Err(disagrees(
            format!("{} is {name:?}: Unknown RoPE scaling type", part.name(key)),
            fix,
        ));
    };
    for number in *needed {
        match part.get(number) {
            None => {
                return Err(disagrees(
                    format!(
                        "{} is missing, which rotary embeddings of type {name} need",
                        part.name(number)
                    ),
                    format!(
                        "add {} as the model's page gives it, or leave the scaling out",
                        part.name(number)
                    ),
                ));
            }
            Some(value) => {
                let list = matches!(*number, "short_factor" | "long_factor");
                let positive = value.as_f64().is_some_and(|n| n > 0.0);
                if list != value.is_array() || list == positive {
                    return Err(part.wrong(number, value, if list { "a list" } else { "a positive number" }));
                }
            }
        }
    }
    if let Some(base) = part.map().get("rope_theta")
        && base.as_f64().is_none_or(|base| base <= 0.0)
    {
        return Err(part.wrong("rope_theta", base, "a positive number"));
    }
    for number in OPTIONAL {
        if let Some(value) = part.map().get(number)
            && name != "default"
            && !value.as_f64().is_some_and(|n| n > 0.0)
        {
            return Err(part.wrong(number, value, "a positive number"));
        }
    }
    for number in ["mscale", "mscale_all_dim"] {
        // The engine turns these into numbers, also where they are text.
        if let Some(value) = part.map().get(number)
            && !value.is_number()
            && value
                .as_str()
                .is_none_or(|text| text.trim().parse::<f64>().is_err())
        {
            return Err(part.wrong(number, value, "a number"));
        }
    }
    check_share(part)
}

/// The share of a head that is turned lies between none and all (vLLM 0.32.0, `get_rope`).
fn check_share(config: &Config) -> Result<()> {
    for key in ["partial_rotary_factor", "rotary_pct", "rotary_emb_fraction"] {
        if let Some(share) = config.f64(key)?
            && !(share > 0.0 && share <= 1.0)
        {
            return Err(disagrees(
                format!(
                    "{} is {share}, which must be between 0.0 and 1.0",
                    config.name(key)
                ),
                format!(
                    "give {} the share of a head that is turned, above 0 and at most 1",
                    config.name(key)
                ),
            ));
        }
    }
    Ok(())
}

/// What single classes ask for beyond that.
pub(super) fn of_class(model_type: &str, filled: &Config) -> Result<()> {
    let n = |key: &str| filled.dim_or(key, 0);
    // The reason, and what to change.
    let refuse = |holds: bool, why: &dyn Fn() -> (String, String)| {
        if holds {
            return Ok(());
        }
        let (why, fix) = why();
        Err(disagrees(why, fix))
    };
    match model_type {
        "bamba" | "falcon_h1" | "granitemoehybrid" => {
            let inner = match n("mamba_d_ssm")? {
                width if model_type == "falcon_h1" && width > 0 => width,
                _ => n("mamba_expand")? * n("hidden_size")?,
            };
            let (heads, width) = (n("mamba_n_heads")?, n("mamba_d_head")?);
            refuse(heads * width == inner, &|| {
                let (count, size) = (filled.name("mamba_n_heads"), filled.name("mamba_d_head"));
                (
                    format!(
                        "{count} ({heads}) heads of {size} ({width}) are not the {inner} elements of the state layers' inner width"
                    ),
                    format!("correct {count} or {size}, whose product has to be {inner}"),
                )
            })
        }
        "mamba2" => {
            let inner = n("hidden_size")? * n("expand")?;
            let (heads, width) = (n("num_heads")?, n("head_dim")?);
            refuse(heads * width == inner, &|| {
                let (count, size) = (filled.name("num_heads"), filled.name("head_dim"));
                (
                    format!(
                        "{count} ({heads}) heads of {size} ({width}) are not hidden_size times expand ({inner})"
                    ),
                    format!("correct {count} or {size}, whose product has to be {inner}"),
                )
            })
        }
        "jamba" => {
            for (offset, period) in [
                ("attn_layer_offset", "attn_layer_period"),
                ("expert_layer_offset", "expert_layer_period"),
            ] {
                let (first, every) = (n(offset)?, n(period)?);
                refuse(first < every, &|| {
                    (
                        format!("{offset} is {first}, which must be below {period} ({every})"),
                        format!("write an {offset} from 0 to {}", every.saturating_sub(1)),
                    )
                })?;
            }
            Ok(())
        }
        "jetmoe" => {
            let (active, experts) = (n("num_experts_per_tok")?, n("num_local_experts")?);
            refuse(active <= experts, &|| {
                (
                    format!("num_experts_per_tok is {active}, more than the {experts} of num_local_experts"),
                    format!("write at most {experts} for num_experts_per_tok"),
                )
            })
        }
        "gptj" => {
            let (turned, width) = (n("rotary_dim")?, n("n_embd")? / n("n_head")?.max(1));
            refuse(turned > 0 || !filled.has("rotary_dim"), &|| {
                (
                    "rotary_dim is 0, which leaves rotary embeddings without elements".to_owned(),
                    format!("write a rotary_dim from 1 to {width}, or leave it out"),
                )
            })?;
            refuse(turned <= width, &|| {
                (
                    format!("rotary_dim is {turned}, more than the {width} elements of a head"),
                    format!("write at most {width} for rotary_dim"),
                )
            })
        }
        "glm4_moe" => refuse(filled.has("head_dim"), &|| {
            (
                "head_dim is missing, which GLM-4.5's class takes from the configuration alone".to_owned(),
                "add head_dim as the model's page gives it (128 in the published files)".to_owned(),
            )
        }),
        "gpt_oss" => {
            // Its attention takes these whatever the kind (vLLM 0.32.0, `models/gpt_oss.py`).
            let Some(rope) = rotary(filled)? else {
                return Ok(());
            };
            for number in ["factor", "beta_fast", "beta_slow"] {
                refuse(rope.get(number).is_some(), &|| {
                    (
                        format!(
                            "{} is missing, which GPT-OSS's attention needs",
                            rope.name(number)
                        ),
                        format!("add {} as the model's page gives it", rope.name(number)),
                    )
                })?;
            }
            Ok(())
        }
        "dbrx" => refuse(!filled.flag("tie_word_embeddings", false)?, &|| {
            (
                "tie_word_embeddings is true, which DBRX's configuration class does not support".to_owned(),
                "set tie_word_embeddings to false".to_owned(),
            )
        }),
        "olmo_hybrid" => {
            let Some(kinds) = filled.strs("layer_types")? else {
                return Ok(());
            };
            let linear = kinds.iter().filter(|kind| **kind == "linear_attention").count();
            refuse(linear > 0 && linear < kinds.len(), &|| {
                (
                    format!(
                        "{linear} of the {} layers in layer_types are linear_attention; OLMo-Hybrid needs both kinds",
                        kinds.len()
                    ),
                    "name the layers in layer_types as the model's page does".to_owned(),
                )
            })
        }
        "zaya" => {
            let (heads, kv) = (n("num_attention_heads")?, n("num_key_value_heads")?.max(1));
            let active = n("num_experts_per_tok")?;
            refuse(active == 1, &|| {
                (
                    format!("num_experts_per_tok is {active}, and Zaya's class supports only 1"),
                    "set num_experts_per_tok to 1".to_owned(),
                )
            })?;
            refuse(heads.is_multiple_of(kv), &|| {
                (
                    format!("num_attention_heads is {heads}, which is not a multiple of num_key_value_heads ({kv})"),
                    "correct num_attention_heads or num_key_value_heads, of which the first has to be a multiple of the \
                     second"
                        .to_owned(),
                )
            })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(value: Value) -> Config {
        let Value::Object(map) = value else {
            panic!("not an object")
        };
        Config::from_map(map)
    }

    #[track_caller]
    fn refused(checked: Result<()>, says: &str) -> String {
        let error = checked.unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
        assert_eq!(error.to_string(), says);
        let [fix] = error.hints() else {
            panic!("not one way out: {:?}", error.hints())
        };
        fix.clone()
    }

    #[test]
    fn a_refusal_says_what_to_change() {
        let types = json!({"layer_types": ["full_atention"], "num_hidden_layers": 2});
        let says = "layer_types names a layer \"full_atention\", which is no kind of layer that the configuration class knows";
        assert_eq!(
            refused(layer_types_fit(&config(types)), says),
            "write \"full_attention\" for it"
        );
        let types = json!({"layer_types": ["mamba"], "num_hidden_layers": 2});
        assert_eq!(
            refused(
                layer_types_fit(&config(types)),
                "layer_types names 1 layers, but num_hidden_layers is 2"
            ),
            "give layer_types one entry for each of the 2 layers, or set num_hidden_layers to 1"
        );
        let rope = json!({"rope_scaling": {"rope_type": "spiral"}});
        let fix = refused(
            rotary_is_complete(&config(rope)),
            "rope_scaling.rope_type is \"spiral\": Unknown RoPE scaling type",
        );
        assert!(
            fix.starts_with("write one of default, mrope,") && fix.ends_with(" for rope_scaling.rope_type"),
            "{fix}"
        );
    }

    #[test]
    fn layer_types_name_every_layer_by_names_that_are_known() {
        let of = |types: Value, layers: u64| {
            layer_types_fit(&config(
                json!({"layer_types": types, "num_hidden_layers": layers}),
            ))
        };
        assert!(of(json!(["full_attention", "mamba"]), 2).is_ok());
        assert!(of(json!(null), 2).is_ok());
        refused(
            of(json!(["full_attention"]), 2),
            "layer_types names 1 layers, but num_hidden_layers is 2",
        );
        refused(
            of(json!([]), 2),
            "layer_types names 0 layers, but num_hidden_layers is 2",
        );
        refused(
            of(json!(["full"]), 1),
            "layer_types names a layer \"full\", which is no kind of layer that the configuration class knows",
        );
        // Feed-forward parts are looked at only beside a list of layers.
        let mlp = json!({"mlp_layer_types": ["dense"], "num_hidden_layers": 2});
        assert!(layer_types_fit(&config(mlp)).is_ok());
    }

    #[test]
    fn scaled_rotary_embeddings_need_their_numbers() {
        let of = |rope: Value| {
            rotary_is_complete(&config(
                json!({"rope_scaling": rope, "layer_types": ["full_attention"]}),
            ))
        };
        assert!(of(json!({})).is_ok());
        assert!(of(json!({"rope_type": "default"})).is_ok());
        assert!(of(json!({"type": "yarn", "factor": 4.0})).is_ok());
        assert!(of(json!({"type": "su", "short_factor": [1.0], "long_factor": [1.0]})).is_ok());
        refused(
            of(json!({"rope_type": "spiral", "factor": 4.0})),
            "rope_scaling.rope_type is \"spiral\": Unknown RoPE scaling type",
        );
        refused(
            of(json!({"rope_type": "yarn", "type": "linear", "factor": 4.0})),
            "rope_scaling.rope_type is \"yarn\" and rope_scaling.type is \"linear\": only one of them should be there",
        );
        refused(
            of(json!({"partial_rotary_factor": 1.5})),
            "rope_scaling.partial_rotary_factor is 1.5, which must be between 0.0 and 1.0",
        );
        for (rope, says) in [
            (
                json!({"rope_type": null, "factor": 8.0}),
                "rope_scaling.rope_type is null, expected the name of a kind of rotary embedding",
            ),
            (
                json!({"type": "yarn", "factor": "4"}),
                "rope_scaling.factor is \"4\", expected a positive number",
            ),
            (
                json!({"type": "yarn", "factor": 4, "beta_slow": 0}),
                "rope_scaling.beta_slow is 0, expected a positive number",
            ),
            (
                json!({"type": "su", "short_factor": 1.0, "long_factor": []}),
                "rope_scaling.short_factor is 1.0, expected a list",
            ),
        ] {
            assert_eq!(of(rope).unwrap_err().to_string(), says);
        }
        refused(
            of(json!({"type": "yarn"})),
            "rope_scaling.factor is missing, which rotary embeddings of type yarn need",
        );
        refused(
            of(json!({"full_attention": {"rope_type": "linear", "factor": null}})),
            "rope_scaling.full_attention.factor is missing, which rotary embeddings of type linear need",
        );
        refused(
            of(json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0})),
            "rope_scaling.high_freq_factor is missing, which rotary embeddings of type llama3 need",
        );
    }

    #[test]
    fn widths_are_multiples_of_heads_and_of_state_heads() {
        refused(
            heads_divide_width(&config(json!({"hidden_size": 4096, "num_attention_heads": 30}))),
            "hidden_size is 4096, which is not a multiple of num_attention_heads (30)",
        );
        assert!(heads_divide_width(&config(json!({"hidden_size": 4096, "num_attention_heads": 32}))).is_ok());
        let state = json!({"mamba_expand": 2, "hidden_size": 64, "mamba_n_heads": 8, "mamba_d_head": 8});
        refused(
            of_class("bamba", &config(state)),
            "mamba_n_heads (8) heads of mamba_d_head (8) are not the 128 elements of the state layers' inner width",
        );
        let given = json!({"mamba_d_ssm": 64, "hidden_size": 64, "mamba_n_heads": 8, "mamba_d_head": 8});
        assert!(of_class("falcon_h1", &config(given)).is_ok());
        let jamba = json!({"attn_layer_offset": 8, "attn_layer_period": 8, "expert_layer_offset": 1, "expert_layer_period": 2});
        refused(
            of_class("jamba", &config(jamba)),
            "attn_layer_offset is 8, which must be below attn_layer_period (8)",
        );
    }
}
