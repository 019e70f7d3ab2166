//! Vision towers and projectors beside a language model.
//!
//! Every pipeline stage holds them (vLLM 0.32.0 builds the tower on each), and `--language-model-only` leaves them
//! out. A block that repeats is written once with the number of layers as its count.

mod audio;
mod blocks;
mod deepencoder;
mod gemma3n;
mod generic;
mod glm;
mod intern;
mod kanana;
mod library;
mod minicpm;
mod molmo;
mod moonvit;
mod openvla;
mod other;
mod pixtral;
mod qformer;
mod qwen;
mod radio;
mod siglip;
mod single;
mod speech;
mod step;

pub(crate) use siglip::text_blocks;

use super::text::Text;
use crate::Result;
use crate::arch::{Config, Outside, Place, Weight};

/// Makes a tower's parameters from the whole file and the tower's part.
type Reader = fn(&Text, &Config) -> Result<Vec<Weight>>;

/// The towers of a row's classes: the part of the file that describes each ("" for the file itself), and its reader.
type Row = (&'static [&'static str], &'static [(&'static str, Reader)]);

/// All classes whose towers are read, with the parts that describe them. Parts are looked for in the file, then in
/// its `thinker_config`.
const ROWS: &[Row] = &[
    (
        &[
            "Qwen3VLForConditionalGeneration",
            "Qwen3VLMoeForConditionalGeneration",
            "Qwen3_5ForConditionalGeneration",
            "Qwen3_5MoeForConditionalGeneration",
            "Qwen4ExpForConditionalGeneration",
            "Cosmos3ForConditionalGeneration",
            "CohereCompassForConditionalGeneration",
            "InternS2PreviewForConditionalGeneration",
            "InternS2MobiusForConditionalGeneration",
        ],
        &[("vision_config", qwen::qwen3_vl)],
    ),
    (&["CLIPModel"], &[("vision_config", siglip::clip_embedding)]),
    (&["SiglipModel"], &[("vision_config", siglip::siglip_embedding)]),
    (&["ColModernVBertForRetrieval"], &[("", siglip::col_modern_vbert)]),
    (
        &["LlamaNemotronVLModel", "LlamaNemotronVLForSequenceClassification"],
        &[("vision_config", siglip::llama_nemotron_vl)],
    ),
    (
        &["Qwen3OmniMoeForConditionalGeneration"],
        &[
            ("vision_config", qwen::qwen3_vl),
            ("audio_config", audio::qwen3_audio),
        ],
    ),
    (
        &["Qwen3ASRForConditionalGeneration", "Qwen3ASRRealtimeGeneration"],
        &[("audio_config", audio::qwen3_audio)],
    ),
    (
        &["Qwen2VLForConditionalGeneration"],
        &[("vision_config", qwen::qwen2_vl)],
    ),
    (
        &[
            "Qwen2_5_VLForConditionalGeneration",
            "OpenCUAForConditionalGeneration",
        ],
        &[("vision_config", qwen::qwen2_5_vl)],
    ),
    (
        &["HCXVisionV2ForCausalLM"],
        &[("vision_config", qwen::hyperclovax)],
    ),
    (
        &["OpenPanguVLForConditionalGeneration"],
        &[("vision_config", qwen::openpangu)],
    ),
    (
        &["BailingMoeV3VLForConditionalGeneration"],
        &[("vision_config", qwen::bailing)],
    ),
    (&["Emu3ForConditionalGeneration"], &[("vq_config", generic::emu3)]),
    (
        &["HunYuanVLForConditionalGeneration"],
        &[("vision_config", generic::hunyuan_vl)],
    ),
    (
        &["VibeVoiceAsrForConditionalGeneration"],
        &[
            ("acoustic_tokenizer_encoder_config", generic::vibevoice_acoustic),
            ("semantic_tokenizer_encoder_config", generic::vibevoice_semantic),
        ],
    ),
    (
        &["MiMoV2OmniForCausalLM"],
        &[
            ("vision_config", qwen::mimo),
            ("audio_config", speech::mimo_audio),
        ],
    ),
    (
        &["LlavaOnevision2ForConditionalGeneration"],
        &[("vision_config", qwen::llava_onevision2)],
    ),
    (
        &["KananaVForConditionalGeneration"],
        &[("vision_config", kanana::kanana)],
    ),
    (
        &["DeepseekOCRForCausalLM", "UnlimitedOCRForCausalLM"],
        &[("vision_config", deepencoder::ocr)],
    ),
    (
        &["DeepseekOCR2ForCausalLM"],
        &[("vision_config", deepencoder::ocr2)],
    ),
    (
        &["DeepseekV4ForConditionalGeneration"],
        &[("", other::deepseek_v4)],
    ),
    (
        &["DeepseekV41ForCausalLM"],
        &[("vision_config", other::deepseek_v41)],
    ),
    (
        &["IsaacForConditionalGeneration"],
        &[("vision_config", siglip::isaac)],
    ),
    (
        &["Granite4VisionForConditionalGeneration"],
        &[("vision_config", siglip::granite4_vision)],
    ),
    (
        &["Ovis2_5", "Ovis2_6ForCausalLM", "Ovis2_6_MoeForCausalLM"],
        &[("vit_config", siglip::ovis2_5)],
    ),
    (&["OpenVLAForActionPrediction"], &[("", openvla::openvla)]),
    (
        &[
            "NemotronH_Nano_VL_V2",
            "NemotronH_Nano_Omni_Reasoning_V3",
            "NemotronH_Super_Omni_Reasoning_V3",
            "NemotronH_Omni_Reasoning_V3",
        ],
        &[
            ("vision_config", radio::nano_nemotron),
            ("sound_config", radio::parakeet),
        ],
    ),
    (
        &["Llama_Nemotron_Nano_VL"],
        &[("vision_config", radio::llama_nemotron)],
    ),
    (
        &["NemotronParseForConditionalGeneration"],
        &[("encoder", radio::nemotron_parse)],
    ),
    (
        &["Gemma3nForConditionalGeneration"],
        &[
            ("vision_config", gemma3n::vision),
            ("audio_config", gemma3n::audio),
        ],
    ),
    (
        &["Gemma4UnifiedForConditionalGeneration"],
        &[
            ("vision_config", other::gemma4_unified),
            ("audio_config", other::gemma4_unified_audio),
        ],
    ),
    (
        &["FunAudioChatForConditionalGeneration"],
        &[("audio_config", speech::funaudiochat)],
    ),
    (
        &["MossTranscribeDiarizeForConditionalGeneration"],
        &[("audio_config", speech::moss_transcribe)],
    ),
    (&["MossAudioModel"], &[("audio_config", speech::moss_audio)]),
    (
        &["MiDashengLMModel"],
        &[("audio_encoder_config", speech::midasheng)],
    ),
    (&["MoonshotKimiaForCausalLM"], &[("", speech::kimi_audio)]),
    (
        &["FunASRForConditionalGeneration"],
        &[("audio_encoder_conf", speech::funasr)],
    ),
    (
        &["FireRedASR2ForConditionalGeneration"],
        &[("audio_encoder_conf", speech::fireredasr2)],
    ),
    (
        &["CohereAsrForConditionalGeneration"],
        &[("encoder", speech::cohere_asr)],
    ),
    (
        &["Qwen2_5OmniForConditionalGeneration", "Qwen2_5OmniModel"],
        &[
            ("vision_config", qwen::qwen2_5_vl),
            ("audio_config", audio::qwen2_5_omni),
        ],
    ),
    (
        &["Qwen2AudioForConditionalGeneration"],
        &[("audio_config", audio::qwen2_audio)],
    ),
    (
        &["AudioFlamingo3ForConditionalGeneration"],
        &[("audio_config", audio::audioflamingo3)],
    ),
    (&["UltravoxModel"], &[("audio_config", audio::ultravox)]),
    (
        &["VoxtralForConditionalGeneration", "VoxtralRealtimeGeneration"],
        &[("audio_config", audio::voxtral)],
    ),
    (
        &["GlmAsrForConditionalGeneration"],
        &[("audio_config", audio::glm_asr)],
    ),
    (
        &[
            "GraniteSpeechForConditionalGeneration",
            "GraniteSpeechPlusForConditionalGeneration",
        ],
        &[("encoder_config", audio::granite_speech)],
    ),
    (
        &["Llama4ForConditionalGeneration"],
        &[("vision_config", other::llama4)],
    ),
    (
        &["Gemma4ForConditionalGeneration", "EmbeddingGemma2Model"],
        &[("vision_config", other::gemma4), ("audio_config", audio::gemma4)],
    ),
    (
        &["DiffusionGemmaForBlockDiffusion"],
        &[("vision_config", other::gemma4)],
    ),
    (
        &["MiniMaxM3SparseForConditionalGeneration"],
        &[("vision_config", other::minimax_m3)],
    ),
    (
        &[
            "KimiK25ForConditionalGeneration",
            "KimiK3ForConditionalGeneration",
        ],
        &[("vision_config", moonvit::moonvit_3d)],
    ),
    (
        &["KimiVLForConditionalGeneration"],
        &[("vision_config", single::kimi_vl)],
    ),
    (
        &["Gemma3ForConditionalGeneration"],
        &[("vision_config", siglip::gemma3)],
    ),
    (
        &["PaliGemmaForConditionalGeneration"],
        &[("vision_config", siglip::paligemma)],
    ),
    (
        &["PaddleOCRVLForConditionalGeneration"],
        &[("vision_config", siglip::paddleocr)],
    ),
    (
        &[
            "Mistral3ForConditionalGeneration",
            "LightOnOCRForConditionalGeneration",
        ],
        &[("vision_config", pixtral::mistral3)],
    ),
    (
        &["PixtralForConditionalGeneration"],
        &[("vision_config", pixtral::pixtral)],
    ),
    (
        &[
            "LlavaForConditionalGeneration",
            "LlavaNextForConditionalGeneration",
            "LlavaNextVideoForConditionalGeneration",
        ],
        &[("vision_config", siglip::llava)],
    ),
    (
        &["LlavaOnevisionForConditionalGeneration"],
        &[("vision_config", siglip::llava_onevision)],
    ),
    (
        &["RForConditionalGeneration", "BeeForConditionalGeneration"],
        &[("vision_config", siglip::onevision)],
    ),
    (
        &["DeepseekVLV2ForCausalLM"],
        &[("vision_config", single::deepseek_vl2)],
    ),
    (
        &["BagelForConditionalGeneration"],
        &[("vit_config", siglip::bagel)],
    ),
    (
        &["Eagle2_5_VLForConditionalGeneration"],
        &[("vision_config", siglip::eagle2_5)],
    ),
    (
        &["Lfm2VlForConditionalGeneration"],
        &[("vision_config", siglip::lfm2_vl)],
    ),
    (&["Phi4ForCausalLMV"], &[("vision_config", siglip::phi4_siglip)]),
    (
        &["Cosmos3EdgeForConditionalGeneration"],
        &[("vision_config", siglip::cosmos3_edge)],
    ),
    (
        &[
            "KeyeForConditionalGeneration",
            "KeyeVL1_5ForConditionalGeneration",
        ],
        &[("vision_config", siglip::keye)],
    ),
    (&["Ovis"], &[("visual_tokenizer_config", siglip::ovis)]),
    (
        &["Cohere2VisionForConditionalGeneration"],
        &[("vision_config", siglip::cohere2_vision)],
    ),
    (
        &[
            "Idefics3ForConditionalGeneration",
            "SmolVLMForConditionalGeneration",
        ],
        &[("vision_config", siglip::idefics3)],
    ),
    (
        &[
            "InternVLChatModel",
            "SkyworkR1VChatModel",
            "H2OVLChatModel",
            "QianfanOCRForConditionalGeneration",
        ],
        &[("vision_config", intern::internvl_chat)],
    ),
    (&["NVLM_D"], &[("vision_config", intern::nvlm_d)]),
    (
        &[
            "InternVLForConditionalGeneration",
            "InternS1ForConditionalGeneration",
        ],
        &[("vision_config", intern::internvl)],
    ),
    (&["MiniCPMV"], &[("vision_config", minicpm::vision)]),
    (
        &["MiniCPMO"],
        &[
            ("vision_config", minicpm::vision),
            ("audio_config", minicpm::audio),
        ],
    ),
    (
        &[
            "MiniCPMV4_6ForConditionalGeneration",
            "MiniCPMV4_7ForConditionalGeneration",
        ],
        &[("vision_config", minicpm::merging)],
    ),
    (&["MolmoForCausalLM"], &[("", molmo::molmo)]),
    (
        &["Molmo2ForConditionalGeneration"],
        &[("vit_config", molmo::molmo2)],
    ),
    (
        &["Moondream3ForCausalLM", "HfMoondream"],
        &[("", molmo::moondream3)],
    ),
    (
        &[
            "Glm4vForConditionalGeneration",
            "Glm4vMoeForConditionalGeneration",
            "GlmOcrForConditionalGeneration",
            "Glm5NextForConditionalGeneration",
        ],
        &[("vision_config", glm::glm4v)],
    ),
    (&["GLM4VForCausalLM"], &[("vision_config", glm::glm4v_9b)]),
    (
        &["Ernie4_5_VLMoeForConditionalGeneration"],
        &[("vision_config", glm::ernie_vl)],
    ),
    (
        &["Step3VLForConditionalGeneration"],
        &[("vision_config", step::step3)],
    ),
    (
        &[
            "StepVLForConditionalGeneration",
            "Step3p7ForConditionalGeneration",
        ],
        &[("vision_config", step::step_vl)],
    ),
    (
        &["AriaForConditionalGeneration"],
        &[("vision_config", single::aria)],
    ),
    (&["DotsOCRForCausalLM"], &[("vision_config", single::dots_ocr)]),
    (
        &["Exaone4_5_ForConditionalGeneration"],
        &[("vision_config", single::exaone4_5)],
    ),
    (
        &["MuseGlimmerForConditionalGeneration"],
        &[("vision_config", single::muse_glimmer)],
    ),
    (
        &["Blip2ForConditionalGeneration"],
        &[("vision_config", single::blip2)],
    ),
    (&["Phi3VForCausalLM"], &[("", single::phi3v)]),
    (&["Phi4MMForCausalLM"], &[("", single::phi4mm)]),
];

/// Classes whose towers the engine builds with `--language-model-only` too (vLLM 0.32.0: their model files mark no
/// module as a tower, nor does the generic backend find one in them).
const BUILT_ALWAYS: [&str; 6] = [
    "ColModernVBertForRetrieval",
    "Emu3ForConditionalGeneration",
    "FunASRForConditionalGeneration",
    "Gemma4UnifiedForConditionalGeneration",
    "HunYuanVLForConditionalGeneration",
    "VibeVoiceAsrForConditionalGeneration",
];

/// Parts of a file that describe a tower.
const PARTS: [&str; 8] = [
    "vision_config",
    "audio_config",
    "vit_config",
    "encoder_config",
    "visual_tokenizer_config",
    "audio_encoder_config",
    "sound_config",
    "speech_config",
];

/// The parts of a class that are read.
fn parts(class: &str) -> &'static [(&'static str, Reader)] {
    ROWS.iter()
        .find(|(classes, _)| classes.contains(&class))
        .map_or(&[], |(_, parts)| parts)
}

/// A part of the file, or of its `thinker_config` or `vlm_config`.
fn part(file: &Config, key: &str) -> Result<Option<Config>> {
    if key.is_empty() {
        return Ok(Some(file.clone()));
    }
    match file.sub(key)? {
        Some(part) => Ok(Some(part)),
        None => match file.sub("thinker_config")?.or(file.sub("vlm_config")?) {
            Some(inner) => inner.sub(key),
            None => Ok(None),
        },
    }
}

/// The part of a file that describes a tower whose parameters are not counted, if there is one.
pub(crate) fn unread(class: &str, file: &Config) -> Option<&'static str> {
    // The generic backend counts both parts of this class to its language model; Whisper's encoder is part of the
    // file itself; Phi-4's parts are read from the file.
    if matches!(
        class,
        "Phi4MultimodalForCausalLM" | "WhisperForConditionalGeneration"
    ) {
        return None;
    }
    let read = parts(class);
    if read.iter().any(|(key, _)| key.is_empty()) {
        return None;
    }
    PARTS.into_iter().find(|key| {
        part(file, key).is_ok_and(|part| part.is_some()) && !read.iter().any(|(have, _)| have == key)
    })
}

/// The towers of a wrapper class, in the tower's own part of `t.top`.
///
/// # Errors
/// If a size in the tower's configuration is missing or out of range.
pub(crate) fn read(class: &str, t: &Text) -> Result<Vec<Outside>> {
    let mut all = Vec::new();
    for (key, reader) in parts(class) {
        if let Some(part) = part(&t.top, key)? {
            all.push(Outside {
                place: Place::Every,
                tower: !BUILT_ALWAYS.contains(&class),
                weights: reader(t, &part)?,
            });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tower_that_is_not_counted_is_named() {
        let file = |text: &str| Config::parse(text.as_bytes()).unwrap();
        let both = file(r#"{"vision_config": {}, "audio_config": {}}"#);
        assert_eq!(
            unread("Qwen2VLForConditionalGeneration", &both),
            Some("audio_config")
        );
        assert_eq!(
            unread("IsaacForConditionalGeneration", &both),
            Some("audio_config")
        );
        assert_eq!(unread("Phi4MultimodalForCausalLM", &both), None);
        assert_eq!(unread("LlamaForCausalLM", &file("{}")), None);
    }
}
