//! Modules that the engine fuses out of several of a checkpoint's, by class (vLLM 0.32.0, `packed_modules_mapping` of its
//! model classes): ignore lists name the parts.

use crate::Result;
use crate::arch::Config;

/// The name of each fused module and those of its parts.
pub(super) type Fused = &'static [(&'static str, &'static [&'static str])];

/// What most classes fuse; a name that a class does not have is never asked for.
pub(super) const USUAL: Fused = &[
    ("qkv_proj", &["q_proj", "k_proj", "v_proj"]),
    ("gate_up_proj", &["gate_proj", "up_proj"]),
    ("fused_qkv_a_proj", &["q_a_proj", "kv_a_proj_with_mqa"]),
    ("in_proj_qkvz", &["in_proj_qkv", "in_proj_z"]),
    ("in_proj_ba", &["in_proj_b", "in_proj_a"]),
];

/// Classes with other parts. Those without any compare an ignore list with the fused names alone.
const CLASSES: &[(&[&str], Fused)] = &[
    (
        &[
            "BloomForCausalLM",
            "DbrxForCausalLM",
            "FalconMambaForCausalLM",
            "Glm5NextForCausalLM",
            "GPT2LMHeadModel",
            "GPTJForCausalLM",
            "HrmTextForCausalLM",
            "IQuestLoopCoderForCausalLM",
            "KimiLinearForCausalLM",
            "Mamba2ForCausalLM",
            "MambaForCausalLM",
            "OrionForCausalLM",
            "Phi3ForCausalLM",
            "Phi4MMForCausalLM",
            "Plamo3ForCausalLM",
            "StableLmForCausalLM",
            "Step3TextForCausalLM",
            "Zamba2ForCausalLM",
        ],
        &[],
    ),
    (
        &["ExaoneForCausalLM"],
        &[
            ("qkv_proj", &["q_proj", "k_proj", "v_proj"]),
            ("gate_up_proj", &["c_fc_0", "c_fc_1"]),
        ],
    ),
    (
        &["InternLM2ForCausalLM", "InternLM2ForRewardModel"],
        &[("gate_up_proj", &["w1", "w3"])],
    ),
    (
        &["Lfm2ForCausalLM", "Lfm2MoeForCausalLM"],
        &[
            ("qkv_proj", &["q_proj", "k_proj", "v_proj"]),
            ("w13", &["w1", "w3"]),
        ],
    ),
    (
        &["MiMoV2ForCausalLM"],
        &[("gate_up_proj", &["gate_proj", "up_proj"])],
    ),
    (
        &["Param2MoEForCausalLM"],
        &[
            ("qkv_proj", &["query_key_value"]),
            ("gate_up_proj", &["gate_proj", "up_proj"]),
        ],
    ),
];

/// What the class of a configuration fuses.
pub(super) fn of(file: &Config) -> Result<Fused> {
    let class = file
        .strs("architectures")?
        .and_then(|list| list.first().copied())
        .unwrap_or_default();
    Ok(CLASSES
        .iter()
        .find(|(classes, _)| classes.contains(&class))
        .map_or(USUAL, |&(_, fused)| fused))
}

/// Calls `see` with the names that the parts of a fused module have in a checkpoint; never for a module that is one
/// there too.
pub(super) fn each_part(path: &str, fused: Fused, mut see: impl FnMut(&str)) {
    let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
    let Some((_, parts)) = fused.iter().find(|(fused, _)| *fused == name) else {
        return;
    };
    let mut full = String::with_capacity(path.len() + 16);
    for part in *parts {
        full.clear();
        full.extend([parent, ".", part]);
        see(&full);
    }
}

/// All of these names.
pub(super) fn parts(path: &str, fused: Fused) -> Vec<String> {
    let mut all = Vec::new();
    each_part(path, fused, |part| all.push(part.to_owned()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::family::{Standing, standing};

    #[test]
    fn every_class_in_the_list_is_one_that_is_read() {
        for class in CLASSES.iter().flat_map(|(classes, _)| *classes) {
            assert!(matches!(standing(class), Standing::Described(_)), "{class}");
        }
    }

    #[test]
    fn parts_are_those_of_the_class() {
        let of = |class: &str| {
            of(&Config::parse(format!("{{\"architectures\": [\"{class}\"]}}").as_bytes()).unwrap()).unwrap()
        };
        let path = "model.layers.0.self_attn.qkv_proj";
        assert_eq!(parts(path, of("LlamaForCausalLM")).len(), 3);
        assert_eq!(
            parts(path, of("Param2MoEForCausalLM")),
            ["model.layers.0.self_attn.query_key_value"]
        );
        assert!(parts(path, of("KimiLinearForCausalLM")).is_empty());
        assert!(parts("lm_head", USUAL).is_empty());
    }
}
