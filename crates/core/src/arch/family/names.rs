//! What classes call the modules that most call alike (vLLM 0.32.0, their model files): a checkpoint's list of modules that
//! stay unquantised is about these names.

use super::dense::Decoder;

/// A module below its layer, and what the class calls it.
type Renames = &'static [(&'static str, &'static str)];

const BAILING: Renames = &[
    ("attention.qkv_proj", "attention.query_key_value"),
    ("attention.o_proj", "attention.dense"),
];
const BLOOM: Renames = &[
    ("self_attention.qkv_proj", "self_attention.query_key_value"),
    ("self_attention.o_proj", "self_attention.dense"),
    ("mlp.up_proj", "mlp.dense_h_to_4h"),
    ("mlp.down_proj", "mlp.dense_4h_to_h"),
];
const GPT2: Renames = &[
    ("attn.qkv_proj", "attn.c_attn"),
    ("attn.o_proj", "attn.c_proj"),
    ("mlp.up_proj", "mlp.c_fc"),
    ("mlp.down_proj", "mlp.c_proj"),
];
const INTERN: Renames = &[
    ("self_attn.qkv_proj", "attention.wqkv"),
    ("self_attn.o_proj", "attention.wo"),
    ("mlp.gate_up_proj", "feed_forward.gate_up_proj"),
    ("mlp.down_proj", "feed_forward.w2"),
];
const LFM: Renames = &[
    ("self_attn.o_proj", "self_attn.out_proj"),
    ("mlp.gate_up_proj", "feed_forward.w13"),
    ("mlp.down_proj", "feed_forward.w2"),
];
const NEOX: Renames = &[
    ("attention.qkv_proj", "attention.query_key_value"),
    ("attention.o_proj", "attention.dense"),
    ("mlp.up_proj", "mlp.dense_h_to_4h"),
    ("mlp.down_proj", "mlp.dense_4h_to_h"),
];

const CLASSES: &[(&[&str], Renames)] = &[
    (
        &[
            "BailingMoeForCausalLM",
            "BailingMoeV2ForCausalLM",
            "SarvamMoEForCausalLM",
        ],
        BAILING,
    ),
    (&["BloomForCausalLM", "FalconForCausalLM"], BLOOM),
    (
        &["DbrxForCausalLM"],
        &[
            ("self_attn.qkv_proj", "norm_attn_norm.attn.Wqkv"),
            ("self_attn.o_proj", "norm_attn_norm.attn.out_proj"),
            // The engine asks for the scheme of the experts under the name of the module around them.
            ("ffn.experts", "ffn"),
        ],
    ),
    (
        &["ExaoneForCausalLM"],
        &[
            ("self_attn.qkv_proj", "attn.attention.qkv_proj"),
            ("self_attn.o_proj", "attn.attention.out_proj"),
            ("mlp.down_proj", "mlp.c_proj"),
        ],
    ),
    (
        &[
            "GPT2LMHeadModel",
            "GPT2ForSequenceClassification",
            "GPTBigCodeForCausalLM",
        ],
        GPT2,
    ),
    (
        &["GPTJForCausalLM"],
        &[
            ("attn.o_proj", "attn.out_proj"),
            ("mlp.up_proj", "mlp.fc_in"),
            ("mlp.down_proj", "mlp.fc_out"),
        ],
    ),
    (&["GPTNeoXForCausalLM"], NEOX),
    (&["InternLM2ForCausalLM", "InternLM2ForRewardModel"], INTERN),
    (&["Lfm2ForCausalLM", "Lfm2MoeForCausalLM"], LFM),
    (
        &["OPTForCausalLM"],
        &[
            ("self_attn.o_proj", "self_attn.out_proj"),
            ("mlp.up_proj", "fc1"),
            ("mlp.down_proj", "fc2"),
        ],
    ),
    (
        &["PhiForCausalLM"],
        &[
            ("self_attn.o_proj", "self_attn.dense"),
            ("mlp.up_proj", "mlp.fc1"),
            ("mlp.down_proj", "mlp.fc2"),
        ],
    ),
    (
        &["Starcoder2ForCausalLM"],
        &[("mlp.up_proj", "mlp.c_fc"), ("mlp.down_proj", "mlp.c_proj")],
    ),
];

/// Gives the modules of a decoder the names of its class.
pub(crate) fn apply(class: &str, decoder: &mut Decoder) {
    let Some((_, renames)) = CLASSES.iter().find(|(classes, _)| classes.contains(&class)) else {
        return;
    };
    for weight in decoder.layers.iter_mut().flat_map(|layer| &mut layer.weights) {
        if let Some((_, name)) = renames.iter().find(|(usual, _)| *usual == weight.name) {
            (*name).clone_into(&mut weight.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::family::registry;

    #[test]
    fn every_class_in_the_list_is_one_that_is_read() {
        for class in CLASSES.iter().flat_map(|(classes, _)| *classes) {
            let (built, _) = crate::arch::family::pooling::resolve(class);
            assert!(registry::reader(&built).is_some(), "{class}");
        }
    }
}
