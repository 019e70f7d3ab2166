//! Classes that the engine refuses, and the words it refuses them with.

use crate::arch::Model;

/// Why an engine would not start a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// The class it was asked for.
    pub architecture: String,
    /// The reason in the engine's terms, with the field and its value where the file is at fault.
    pub reason: String,
    /// Whether it is the file that is refused, and not its class.
    pub of_file: bool,
    /// What to change in the file.
    pub fix: Option<String>,
    /// The model as the rest of the file describes it, where layers can be read from it all the same.
    pub model: Option<Box<Model>>,
}

/// Class and the last version that had it (vLLM 0.32.0, `_PREVIOUSLY_SUPPORTED_MODELS` in
/// `vllm/model_executor/models/registry.py`).
const REMOVED: &[(&str, &str)] = &[
    ("AquilaForCausalLM", "0.24.0"),
    ("AquilaModel", "0.24.0"),
    ("ArcticForCausalLM", "0.28.0"),
    ("AyaVisionForConditionalGeneration", "0.24.0"),
    ("BaiChuanForCausalLM", "0.23.0"),
    ("BaichuanForCausalLM", "0.23.0"),
    ("BambaForCausalLM", "0.23.0"),
    ("ChameleonForConditionalGeneration", "0.28.0"),
    ("Cheers", "0.28.0"),
    ("CheersForConditionalGeneration", "0.28.0"),
    ("DonutForConditionalGeneration", "0.10.2"),
    ("Dots1ForCausalLM", "0.23.0"),
    ("ErnieForSequenceClassification", "0.23.0"),
    ("ErnieForTokenClassification", "0.23.0"),
    ("ErnieModel", "0.23.0"),
    ("Fairseq2LlamaForCausalLM", "0.28.0"),
    ("FireRedLIDForConditionalGeneration", "0.28.0"),
    ("FuyuForCausalLM", "0.25.0"),
    ("GritLM", "0.28.0"),
    ("Grok1ForCausalLM", "0.24.0"),
    ("Grok1ModelForCausalLM", "0.24.0"),
    ("HCXVisionForCausalLM", "0.28.0"),
    ("InternLM2VEForCausalLM", "0.23.0"),
    ("InternLMForCausalLM", "0.23.0"),
    ("JAISLMHeadModel", "0.22.0"),
    ("MPTForCausalLM", "0.28.0"),
    ("MantisForConditionalGeneration", "0.24.0"),
    ("MiniMaxForCausalLM", "0.23.0"),
    ("MiniMaxM1ForCausalLM", "0.23.0"),
    ("MiniMaxText01ForCausalLM", "0.23.0"),
    ("MiniMaxVL01ForConditionalGeneration", "0.23.0"),
    ("MllamaForConditionalGeneration", "0.10.2"),
    ("MotifForCausalLM", "0.10.2"),
    ("MptForCausalLM", "0.28.0"),
    ("MusicFlamingoForConditionalGeneration", "0.24.0"),
    ("OuroForCausalLM", "0.26.0"),
    ("PersimmonForCausalLM", "0.25.0"),
    ("Phi3SmallForCausalLM", "0.9.2"),
    ("Phi4FlashForCausalLM", "0.10.2"),
    ("Phi4MultimodalForCausalLM", "0.12.0"),
    ("Plamo2ForCausalLM", "0.26.0"),
    ("PrithviGeoSpatialMAE", "0.28.0"),
    ("QWenLMHeadModel", "0.23.0"),
    ("QwenVLForConditionalGeneration", "0.23.0"),
    ("RWForCausalLM", "0.28.0"),
    ("StableLMEpochForCausalLM", "0.28.0"),
    ("Tarsier2ForConditionalGeneration", "0.23.0"),
    ("TarsierForConditionalGeneration", "0.24.0"),
    ("TeleChatForCausalLM", "0.25.0"),
    ("XverseForCausalLM", "0.23.0"),
];

/// Classes that moved to a plug-in (vLLM 0.32.0, `_OOT_SUPPORTED_MODELS`).
const PLUGIN: &[(&str, &str)] = &[
    ("BartModel", "https://github.com/vllm-project/bart-plugin"),
    (
        "BartForConditionalGeneration",
        "https://github.com/vllm-project/bart-plugin",
    ),
    (
        "Florence2ForConditionalGeneration",
        "https://github.com/vllm-project/bart-plugin",
    ),
    (
        "MBartForConditionalGeneration",
        "https://github.com/vllm-project/bart-plugin",
    ),
    (
        "Nemotron3_5AsrForRNNT",
        "https://github.com/Sohaib-Ahmed21/vllm-nemotron-asr-plugin",
    ),
];

/// Classes for which vLLM 0.32.0 turns to its generic backend, which then cannot run them, and why.
const NOT_DISPATCHED: &[(&str, &str)] = &[
    (
        "BambaForCausalLM",
        "layer 0 (linear_attention) does not go through the Transformers attention interface",
    ),
    ("BartForCausalLM", "its decoder takes no position_ids"),
    (
        "BartForConditionalGeneration",
        "its decoder takes no position_ids",
    ),
    ("BigBirdPegasusForCausalLM", "its decoder takes no position_ids"),
    (
        "BigBirdPegasusForConditionalGeneration",
        "its decoder takes no position_ids",
    ),
    ("BlenderbotForCausalLM", "its decoder takes no position_ids"),
    (
        "BlenderbotForConditionalGeneration",
        "its decoder takes no position_ids",
    ),
    ("BlenderbotSmallForCausalLM", "its decoder takes no position_ids"),
    (
        "BlenderbotSmallForConditionalGeneration",
        "its decoder takes no position_ids",
    ),
    (
        "DiffLlamaForCausalLM",
        "layer 0 does not go through the Transformers attention interface",
    ),
    (
        "IdeficsForVisionText2Text",
        "layer 0 dispatches attention from more than one module",
    ),
    (
        "LongT5ForConditionalGeneration",
        "its decoder takes no position_ids",
    ),
    (
        "M2M100ForConditionalGeneration",
        "its decoder takes no position_ids",
    ),
    ("MBartForCausalLM", "its decoder takes no position_ids"),
    ("MT5ForConditionalGeneration", "its decoder takes no position_ids"),
    ("MarianForCausalLM", "its decoder takes no position_ids"),
    ("MarianMTModel", "its decoder takes no position_ids"),
    (
        "MiniMaxForCausalLM",
        "layer 1 (linear_attention) does not go through the Transformers attention interface",
    ),
    (
        "MoonshineForConditionalGeneration",
        "layer 0 dispatches attention from more than one module",
    ),
    (
        "NllbMoeForConditionalGeneration",
        "its decoder takes no position_ids",
    ),
    ("PLBartForCausalLM", "its decoder takes no position_ids"),
    (
        "PLBartForConditionalGeneration",
        "its decoder takes no position_ids",
    ),
    ("PegasusForCausalLM", "its decoder takes no position_ids"),
    (
        "PegasusForConditionalGeneration",
        "its decoder takes no position_ids",
    ),
    (
        "RecurrentGemmaForCausalLM",
        "layer 0 does not go through the Transformers attention interface",
    ),
    ("SeamlessM4TForSpeechToText", "its decoder takes no position_ids"),
    ("SeamlessM4TForTextToText", "its decoder takes no position_ids"),
    (
        "SeamlessM4Tv2ForSpeechToText",
        "its decoder takes no position_ids",
    ),
    ("SeamlessM4Tv2ForTextToText", "its decoder takes no position_ids"),
    (
        "Speech2TextForConditionalGeneration",
        "its decoder takes no position_ids",
    ),
    (
        "SwitchTransformersForConditionalGeneration",
        "its decoder takes no position_ids",
    ),
    ("T5ForConditionalGeneration", "its decoder takes no position_ids"),
    (
        "UMT5ForConditionalGeneration",
        "its decoder takes no position_ids",
    ),
    (
        "UdopForConditionalGeneration",
        "its decoder takes no position_ids",
    ),
    (
        "WhisperForCausalLM",
        "layer 0 dispatches attention from more than one module",
    ),
    (
        "ZambaForCausalLM",
        "layer 0 (linear_attention) does not go through the Transformers attention interface",
    ),
    ("xLSTMForCausalLM", "its decoder takes no position_ids"),
];

/// Classes that neither vLLM 0.32.0's registry nor its generic Transformers backend takes.
const UNKNOWN: &[&str] = &[
    "BigBirdForCausalLM",
    "BlipForConditionalGeneration",
    "CodeGenForCausalLM",
    "CpmAntForCausalLM",
    "FSMTForConditionalGeneration",
    "GPTNeoForCausalLM",
    "GPTNeoXJapaneseForCausalLM",
    "LEDForConditionalGeneration",
    "MegatronBertForCausalLM",
    "MiniMaxM3ForCausalLM",
    "MvpForCausalLM",
    "MvpForConditionalGeneration",
    "OpenAIGPTLMHeadModel",
    "ProphetNetForCausalLM",
    "ProphetNetForConditionalGeneration",
    "ReformerModelWithLMHead",
    "RemBertForCausalLM",
    "RoFormerForCausalLM",
    "RwkvForCausalLM",
    "SpeechT5ForSpeechToText",
    "Step3p7FlashForCausalLM",
    "TrOCRForCausalLM",
    "XGLMForCausalLM",
    "XLMWithLMHeadModel",
    "XLNetLMHeadModel",
];

/// Classes that vLLM 0.32.0 takes and cannot build, whatever the machine, and the error it stops with.
const BROKEN: &[(&str, &str)] = &[
    (
        "BltForCausalLM",
        "'BltConfig' object has no attribute 'num_hidden_layers'",
    ),
    ("GitForCausalLM", "KeyError: 'vllm'"),
    (
        "InternS1ProForConditionalGeneration",
        "'InternS1ProForConditionalGeneration' object has no attribute 'model_config'",
    ),
    (
        "PI0ForConditionalGeneration",
        "'PI0Config' object has no attribute 'num_hidden_layers'",
    ),
];

/// Why vLLM 0.32.0 refuses a class; `None` if it is not known to, and only has no reader here.
pub(crate) fn reason(class: &str) -> Option<String> {
    if let Some((_, why)) = NOT_DISPATCHED.iter().find(|(name, _)| *name == class) {
        return Some(format!(
            "the generic Transformers backend, which vLLM uses for {class}, cannot run it: {why}"
        ));
    }
    if let Some((_, version)) = REMOVED.iter().find(|(name, _)| *name == class) {
        return Some(format!(
            "Model architecture {class} was supported in vLLM until v{version}, and is not supported anymore"
        ));
    }
    if let Some((_, url)) = PLUGIN.iter().find(|(name, _)| *name == class) {
        return Some(format!(
            "Model architecture {class} is not supported in-tree anymore; the plug-in {url} has it"
        ));
    }
    if let Some((_, error)) = BROKEN.iter().find(|(name, _)| *name == class) {
        return Some(format!("vLLM 0.32.0 stops while it builds {class}: {error}"));
    }
    UNKNOWN
        .contains(&class)
        .then(|| format!("Model architectures ['{class}'] are not supported for now"))
}
