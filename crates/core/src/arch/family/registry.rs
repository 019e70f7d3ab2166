//! Which function reads which class: one row an architecture.
//!
//! Class names are those of vLLM 0.32.0 (`vllm/model_executor/models/registry.py`). Names on one row share a reader.

use super::dense::Decoder;
use super::text::Text;
use super::{
    crossing, deepseek, deepseek_v4, deepseek_v41, delta, dots3, embedder, encoder, ernie_vl, gemma, generic,
    generic_moe, glm5_next, gpt, hy_v4, hybrid, inkling, k2_horizon, kimi, llama, llama4, mamba, mimo_v2,
    minicpm, minimax, mixtral, molmo, moondream, nemotron_h, pangu, phi4_multimodal, qwen, qwen4, shared_moe,
    special, step, whisper, zamba,
};
use crate::Result;

/// How the classes of a row are read.
#[derive(Clone, Copy)]
pub(crate) enum Reader {
    /// By a function that makes the decoder.
    Own(fn(&Text) -> Result<Decoder>),
    /// The same for a class that the engine has none of its own for: its generic Transformers backend runs it.
    Generic(fn(&Text) -> Result<Decoder>),
    /// As the class of the nested language model; its name where the wrapper fixes one.
    Inner(Option<&'static str>),
}

use Reader::{Generic, Inner, Own};

/// All architectures that are read.
const ROWS: &[(&[&str], Reader)] = &[
    (
        &[
            "LlamaForCausalLM",
            "LLaMAForCausalLM",
            "InternLM3ForCausalLM",
            "IQuestCoderForCausalLM",
            "TeleChat3ForCausalLM",
            "LlamaModel",
        ],
        Own(llama::llama),
    ),
    (
        &[
            "MistralForCausalLM",
            "Ministral3ForCausalLM",
            "SolarForCausalLM",
            "ExaoneForCausalLM",
            "TeleFLMForCausalLM",
            "Phi3ForCausalLM",
            "Ernie4_5ForCausalLM",
            "Phi4MMForCausalLM",
        ],
        Own(llama::llama),
    ),
    (&["Step1ForCausalLM"], Own(llama::step1)),
    (&["InternLM2ForCausalLM"], Own(llama::plain)),
    (&["OrionForCausalLM"], Own(llama::orion)),
    (&["TeleChat2ForCausalLM"], Own(llama::telechat2)),
    (
        &["GraniteForCausalLM", "GraniteSWAForCausalLM"],
        Own(llama::granite),
    ),
    (&["Exaone4ForCausalLM"], Own(llama::exaone4)),
    (&["NemotronForCausalLM"], Own(llama::nemotron)),
    (&["StableLmForCausalLM"], Own(llama::stablelm)),
    (
        &["CohereForCausalLM", "Cohere2ForCausalLM"],
        Own(llama::cohere_dense),
    ),
    (
        &["CohereCompassForConditionalGeneration"],
        Own(llama::cohere_compass),
    ),
    (&["Glm4ForCausalLM"], Own(llama::glm4)),
    (
        &[
            "ChatGLMModel",
            "ChatGLMForConditionalGeneration",
            "GLM4VForCausalLM",
        ],
        Own(llama::chatglm),
    ),
    (&["HyperCLOVAXForCausalLM"], Own(llama::hyperclovax)),
    (&["ApertusForCausalLM"], Own(llama::apertus)),
    (
        &["MuseGlimmerForCausalLM", "MuseGlimmerForConditionalGeneration"],
        Own(llama::muse_glimmer),
    ),
    (&["Plamo3ForCausalLM"], Own(llama::plamo3)),
    (
        &[
            "PanguEmbeddedForCausalLM",
            "PanguProMoEV2ForCausalLM",
            "PanguUltraMoEForCausalLM",
        ],
        Own(pangu::pangu),
    ),
    (&["K2HorizonForCausalLM"], Own(k2_horizon::k2_horizon)),
    (&["MolmoForCausalLM"], Own(molmo::molmo)),
    (&["Molmo2ForConditionalGeneration"], Own(molmo::molmo2)),
    (
        &["Moondream3ForCausalLM", "HfMoondream"],
        Own(moondream::moondream3),
    ),
    (&["Phi4MultimodalForCausalLM"], Generic(phi4_multimodal::read)),
    (&["GPT2LMHeadModel"], Own(gpt::gpt2)),
    (&["GPTJForCausalLM"], Own(gpt::gptj)),
    (&["BloomForCausalLM"], Own(gpt::bloom)),
    (&["OPTForCausalLM"], Own(gpt::opt)),
    (&["FalconForCausalLM"], Own(gpt::falcon)),
    (
        &[
            "ArceeForCausalLM",
            "CwmForCausalLM",
            "GlmForCausalLM",
            "HeliumForCausalLM",
            "HunYuanDenseV1ForCausalLM",
            "MinistralForCausalLM",
            "NanbeigeForCausalLM",
            "SeedOssForCausalLM",
            "SmolLM3ForCausalLM",
        ],
        Generic(generic::llama_like),
    ),
    (&["Jais2ForCausalLM"], Generic(generic::jais2)),
    (
        &["OlmoForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM"],
        Generic(generic::olmo),
    ),
    (&["Starcoder2ForCausalLM"], Generic(generic::starcoder2)),
    (&["PhiForCausalLM"], Generic(generic::phi)),
    (&["GPTNeoXForCausalLM"], Generic(generic::gpt_neox)),
    (&["GPTBigCodeForCausalLM"], Generic(generic::gpt_bigcode)),
    (&["BioGptForCausalLM"], Generic(generic::biogpt)),
    (&["CTRLLMHeadModel"], Generic(generic::ctrl)),
    (&["PersimmonForCausalLM"], Generic(generic::persimmon)),
    (
        &["MoshiForCausalLM", "KyutaiSpeechToTextForConditionalGeneration"],
        Generic(generic::moshi),
    ),
    (&["BitNetForCausalLM"], Generic(generic::bitnet)),
    (&["DogeForCausalLM"], Generic(generic::doge)),
    (&["NanoChatForCausalLM"], Generic(generic::nanochat)),
    (&["VaultGemmaForCausalLM"], Generic(generic::vaultgemma)),
    (&["ModernBertDecoderForCausalLM"], Generic(generic::modernbert)),
    (&["GemmaForCausalLM"], Own(gemma::gemma1)),
    (&["Gemma2ForCausalLM"], Own(gemma::gemma2)),
    (&["Gemma3ForCausalLM", "Rnj1ForCausalLM"], Own(gemma::gemma3)),
    (&["Gemma3nForCausalLM"], Own(gemma::gemma3n)),
    (&["Gemma4ForCausalLM"], Own(gemma::gemma4)),
    (&["Gemma4UnifiedForCausalLM"], Generic(gemma::gemma4_unified)),
    (&["DiffusionGemmaForBlockDiffusion"], Own(gemma::diffusion_gemma)),
    (
        &[
            "Qwen3NextForCausalLM",
            "Qwen3_5ForCausalLM",
            "Qwen3_5MoeForCausalLM",
            "Qwen3_5ForConditionalGeneration",
            "Qwen3_5MoeForConditionalGeneration",
            "MiniCPMV4_6ForConditionalGeneration",
            "MiniCPMV4_7ForConditionalGeneration",
            "InternS2PreviewForConditionalGeneration",
        ],
        Own(delta::qwen),
    ),
    (&["InternS2MobiusForConditionalGeneration"], Own(delta::mobius)),
    (
        &[
            "Emu3ForConditionalGeneration",
            "HunYuanVLForConditionalGeneration",
        ],
        Generic(generic::llama_like),
    ),
    (
        &["VibeVoiceAsrForConditionalGeneration"],
        Inner(Some("Qwen2ForCausalLM")),
    ),
    (
        &["BailingMoeV3VLForConditionalGeneration"],
        Inner(Some("BailingMoeV3ForCausalLM")),
    ),
    (&["OlmoHybridForCausalLM"], Own(delta::olmo)),
    (&["KimiLinearForCausalLM"], Own(kimi::kimi)),
    (
        &["KimiK3ForConditionalGeneration"],
        Inner(Some("KimiLinearForCausalLM")),
    ),
    (
        &["Qwen4ExpForCausalLM", "Qwen4ExpForConditionalGeneration"],
        Own(qwen4::qwen4),
    ),
    (
        &["BailingMoeV2_5ForCausalLM", "BailingMoeV3ForCausalLM"],
        Own(delta::bailing),
    ),
    (
        &[
            "BertModel",
            "BertForMaskedLM",
            "BertForSequenceClassification",
            "BertForTokenClassification",
            "BertSpladeSparseEmbeddingModel",
            "BgeM3EmbeddingModel",
            "HF_ColBERT",
            "ColBERTJinaRobertaModel",
            "RobertaModel",
            "RobertaForMaskedLM",
            "RobertaForSequenceClassification",
            "RobertaForTokenClassification",
            "XLMRobertaModel",
            "XLMRobertaForSequenceClassification",
            "XLMRobertaForTokenClassification",
        ],
        Own(encoder::bert),
    ),
    (
        &[
            "ModernBertModel",
            "ModernBertForSequenceClassification",
            "ModernBertForTokenClassification",
            "ColBERTModernBertModel",
        ],
        Own(encoder::modern_bert),
    ),
    (
        &[
            "NomicBertModel",
            "GteModel",
            "GteNewModel",
            "GteNewForSequenceClassification",
        ],
        Own(encoder::bert_with_rope),
    ),
    (&["CLIPModel"], Own(embedder::clip)),
    (&["SiglipModel"], Own(embedder::siglip)),
    (&["EmbeddingGemma2Model"], Own(embedder::embedding_gemma2)),
    (&["ColModernVBertForRetrieval"], Own(embedder::col_modern_vbert)),
    (
        &["LlamaNemotronVLModel", "LlamaNemotronVLForSequenceClassification"],
        Own(embedder::llama_nemotron_vl),
    ),
    (&["WhisperForConditionalGeneration"], Own(whisper::whisper)),
    (
        &["NemotronParseForConditionalGeneration"],
        Own(crossing::nemotron_parse),
    ),
    (&["CohereAsrForConditionalGeneration"], Own(crossing::cohere_asr)),
    (&["HrmTextForCausalLM"], Own(special::hrm)),
    (&["IQuestLoopCoderForCausalLM"], Own(special::loopcoder)),
    (&["DeciLMForCausalLM"], Own(special::nas)),
    (&["MiniCPMForCausalLM"], Own(minicpm::minicpm)),
    (&["MiniCPM3ForCausalLM"], Own(minicpm::minicpm3)),
    (
        &["InklingForCausalLM", "InklingForConditionalGeneration"],
        Own(inkling::inkling),
    ),
    (&["JetMoeForCausalLM"], Generic(generic_moe::jetmoe)),
    (
        &[
            "MellumForCausalLM",
            "FlexOlmoForCausalLM",
            "HunYuanMoEV1ForCausalLM",
            "PhimoeForCausalLM",
        ],
        Generic(generic_moe::generic_moe),
    ),
    (&["Cohere2MoeForCausalLM"], Own(generic_moe::cohere2_moe)),
    (&["ZayaForCausalLM"], Generic(generic_moe::zaya)),
    (&["MambaForCausalLM", "FalconMambaForCausalLM"], Own(mamba::mamba)),
    (&["Mamba2ForCausalLM"], Own(mamba::mamba2)),
    (&["JambaForCausalLM"], Own(hybrid::jamba)),
    (&["FalconH1ForCausalLM"], Own(hybrid::falcon_h1)),
    (&["GraniteMoeHybridForCausalLM"], Own(hybrid::granite_hybrid)),
    (&["Zamba2ForCausalLM"], Own(zamba::zamba2)),
    (
        &["NemotronHForCausalLM", "NemotronHPuzzleForCausalLM"],
        Own(nemotron_h::nemotron_h),
    ),
    (&["Lfm2ForCausalLM", "Lfm2MoeForCausalLM"], Own(hybrid::lfm2)),
    (&["Qwen2ForCausalLM", "MiMoForCausalLM"], Own(qwen::qwen2)),
    (&["Qwen3ForCausalLM"], Own(qwen::qwen3)),
    (
        &[
            "Cohere2VisionForConditionalGeneration",
            "GraniteSpeechForConditionalGeneration",
            "GraniteSpeechPlusForConditionalGeneration",
            "Idefics3ForConditionalGeneration",
            "InternVLForConditionalGeneration",
            "InternS1ForConditionalGeneration",
            "Lfm2VlForConditionalGeneration",
            "LlavaForConditionalGeneration",
            "LlavaNextVideoForConditionalGeneration",
            "Mistral3ForConditionalGeneration",
            "PaliGemmaForConditionalGeneration",
            "SmolVLMForConditionalGeneration",
            "OpenVLAForActionPrediction",
            "PixtralForConditionalGeneration",
            "QianfanOCRForConditionalGeneration",
            "Eagle2_5_VLForConditionalGeneration",
            "HCXVisionV2ForCausalLM",
            "InternVLChatModel",
            "H2OVLChatModel",
            "LightOnOCRForConditionalGeneration",
            "Llama_Nemotron_Nano_VL",
            "NVLM_D",
            "NemotronH_Nano_VL_V2",
            "NemotronH_Nano_Omni_Reasoning_V3",
            "NemotronH_Super_Omni_Reasoning_V3",
            "NemotronH_Omni_Reasoning_V3",
            "Ovis",
            "Ovis2_5",
            "Ovis2_6ForCausalLM",
            "Ovis2_6_MoeForCausalLM",
            "SkyworkR1VChatModel",
            "StepVLForConditionalGeneration",
            "UltravoxModel",
            "VoxtralForConditionalGeneration",
        ],
        Inner(None),
    ),
    (&["VoxtralRealtimeGeneration"], Own(llama::voxtral_realtime)),
    (
        &[
            "LlavaNextForConditionalGeneration",
            "LlavaOnevisionForConditionalGeneration",
        ],
        Own(llama::with_image_newline),
    ),
    (
        &["BeeForConditionalGeneration", "RForConditionalGeneration"],
        Own(llama::with_projector),
    ),
    (
        &["Granite4VisionForConditionalGeneration"],
        Own(llama::granite4_vision),
    ),
    (&["Blip2ForConditionalGeneration"], Own(llama::with_query_tokens)),
    (&["MiniCPMV", "MiniCPMO"], Own(llama::minicpm_v)),
    (
        &["Exaone4_5_ForConditionalGeneration"],
        Inner(Some("Exaone4ForCausalLM")),
    ),
    (
        &["Gemma3ForConditionalGeneration"],
        Inner(Some("Gemma3ForCausalLM")),
    ),
    (
        &["Gemma3nForConditionalGeneration"],
        Inner(Some("Gemma3nForCausalLM")),
    ),
    (
        &["Gemma4UnifiedForConditionalGeneration"],
        Own(gemma::gemma4_unified_seeing),
    ),
    (
        &["Glm4vForConditionalGeneration", "GlmOcrForConditionalGeneration"],
        Inner(Some("Glm4ForCausalLM")),
    ),
    (
        &["Glm4vMoeForConditionalGeneration"],
        Inner(Some("Glm4MoeForCausalLM")),
    ),
    (
        &[
            "GlmAsrForConditionalGeneration",
            "KananaVForConditionalGeneration",
        ],
        Inner(Some("LlamaForCausalLM")),
    ),
    (
        &[
            "FunASRForConditionalGeneration",
            "FunAudioChatForConditionalGeneration",
            "IsaacForConditionalGeneration",
            "KeyeForConditionalGeneration",
            "KeyeVL1_5ForConditionalGeneration",
            "LlavaOnevision2ForConditionalGeneration",
            "MossAudioModel",
            "MossTranscribeDiarizeForConditionalGeneration",
        ],
        Inner(Some("Qwen3ForCausalLM")),
    ),
    (
        &["OpenPanguVLForConditionalGeneration"],
        Inner(Some("PanguEmbeddedForCausalLM")),
    ),
    (&["Phi4ForCausalLMV"], Inner(Some("Phi3ForCausalLM"))),
    (
        &["Cosmos3EdgeForConditionalGeneration"],
        Inner(Some("NemotronHForCausalLM")),
    ),
    (
        &[
            "Qwen2VLForConditionalGeneration",
            "Qwen2_5_VLForConditionalGeneration",
            "Qwen2_5OmniModel",
            "Qwen2_5OmniForConditionalGeneration",
            "AudioFlamingo3ForConditionalGeneration",
            "BagelForConditionalGeneration",
            "FireRedASR2ForConditionalGeneration",
            "DotsOCRForCausalLM",
            "MiDashengLMModel",
            "MoonshotKimiaForCausalLM",
            "OpenCUAForConditionalGeneration",
            "Qwen2AudioForConditionalGeneration",
        ],
        Inner(Some("Qwen2ForCausalLM")),
    ),
    (
        &[
            "Qwen3VLForConditionalGeneration",
            "Qwen3ASRForConditionalGeneration",
            "Qwen3ASRRealtimeGeneration",
            "Cosmos3ForConditionalGeneration",
        ],
        Inner(Some("Qwen3ForCausalLM")),
    ),
    (
        &[
            "Qwen3VLMoeForConditionalGeneration",
            "Qwen3OmniMoeForConditionalGeneration",
        ],
        Inner(Some("Qwen3MoeForCausalLM")),
    ),
    (
        &["Gemma4ForConditionalGeneration"],
        Inner(Some("Gemma4ForCausalLM")),
    ),
    (&["Phi3VForCausalLM"], Inner(Some("LlamaForCausalLM"))),
    (
        &["PaddleOCRVLForConditionalGeneration"],
        Inner(Some("Ernie4_5ForCausalLM")),
    ),
    (&["MixtralForCausalLM"], Own(mixtral::mixtral)),
    (
        &[
            "GraniteMoeForCausalLM",
            "GraniteMoeSharedForCausalLM",
            "GraniteMoeSWAForCausalLM",
        ],
        Own(mixtral::granite),
    ),
    (&["PhiMoEForCausalLM"], Own(mixtral::phimoe)),
    (&["OlmoeForCausalLM"], Own(mixtral::olmoe)),
    (&["DbrxForCausalLM"], Own(mixtral::dbrx)),
    (&["GptOssForCausalLM"], Own(mixtral::gpt_oss)),
    (&["Qwen2MoeForCausalLM"], Own(mixtral::qwen2_moe)),
    (&["Qwen3MoeForCausalLM"], Own(mixtral::qwen3_moe)),
    (&["Glm4MoeForCausalLM"], Own(shared_moe::glm4)),
    (&["SolarOpenForCausalLM"], Generic(shared_moe::solar_open)),
    (&["Ernie4_5_MoeForCausalLM"], Own(shared_moe::ernie)),
    (
        &["Ernie4_5_VLMoeForConditionalGeneration"],
        Own(ernie_vl::ernie_vl),
    ),
    (&["AfmoeForCausalLM"], Own(shared_moe::afmoe)),
    (
        &[
            "BailingMoeForCausalLM",
            "BailingMoeV2ForCausalLM",
            "SarvamMoEForCausalLM",
        ],
        Own(shared_moe::bailing),
    ),
    (&["Param2MoEForCausalLM"], Own(shared_moe::param2)),
    (&["HYV3ForCausalLM"], Own(shared_moe::hy_v3)),
    (
        &["ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM"],
        Own(shared_moe::exaone_moe),
    ),
    (&["LagunaForCausalLM"], Own(shared_moe::laguna)),
    (
        &["AriaForConditionalGeneration", "AriaTextForCausalLM"],
        Own(shared_moe::aria),
    ),
    (&["MiniMaxM2ForCausalLM"], Own(minimax::m2)),
    (
        &[
            "MiniMaxM3SparseForCausalLM",
            "MiniMaxM3SparseForConditionalGeneration",
        ],
        Own(minimax::m3),
    ),
    (
        &[
            "MiMoV2FlashForCausalLM",
            "MiMoV2ForCausalLM",
            "MiMoV2OmniForCausalLM",
        ],
        Own(mimo_v2::flash),
    ),
    (
        &["Step3TextForCausalLM", "Step3VLForConditionalGeneration"],
        Own(step::step3),
    ),
    (
        &["Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"],
        Own(step::step3p5),
    ),
    (
        &["Llama4ForCausalLM", "Llama4ForConditionalGeneration"],
        Own(llama4::llama4),
    ),
    (
        &[
            "DeepseekForCausalLM",
            "DeepseekV2ForCausalLM",
            "DeepseekV3ForCausalLM",
            "DeepseekV32ForCausalLM",
            "GlmMoeDsaForCausalLM",
            "KimiVLForConditionalGeneration",
            "KimiK25ForConditionalGeneration",
            "MistralLarge3ForCausalLM",
        ],
        Own(deepseek::v2),
    ),
    (
        &[
            "DeepseekOCRForCausalLM",
            "DeepseekOCR2ForCausalLM",
            "UnlimitedOCRForCausalLM",
        ],
        Own(deepseek::ocr),
    ),
    (
        &["DeepseekV4ForCausalLM", "DeepseekV4ForConditionalGeneration"],
        Own(deepseek_v4::v4),
    ),
    (&["DeepseekV41ForCausalLM"], Own(deepseek_v41::v41)),
    (&["DeepseekVLV2ForCausalLM"], Own(deepseek::vl2)),
    (&["HYV4ForCausalLM"], Own(hy_v4::hy_v4)),
    (&["Dots3NoteForCausalLM"], Own(dots3::dots3)),
    (
        &["Glm5NextForCausalLM", "Glm5NextForConditionalGeneration"],
        Own(glm5_next::glm5_next),
    ),
    (&["MiniMaxM3VLForCausalLM"], Generic(minimax::m3_generic)),
    (&["AXK1ForCausalLM"], Own(deepseek::axk1)),
    (&["Glm4MoeLiteForCausalLM"], Own(deepseek::glm4_lite)),
    (&["SarvamMLAForCausalLM"], Own(deepseek::sarvam)),
    (&["YoutuForCausalLM"], Generic(deepseek::dense_latent)),
    (&["AXK2ForCausalLM"], Generic(deepseek::axk2)),
    (&["Mistral4ForCausalLM"], Generic(deepseek::generic_latent)),
    (
        &["LongcatFlashForCausalLM", "LongcatFlashNgramForCausalLM"],
        Own(deepseek::longcat),
    ),
];

/// The reader of a class.
pub(crate) fn reader(class: &str) -> Option<Reader> {
    ROWS.iter()
        .find(|(classes, _)| classes.contains(&class))
        .map(|&(_, reader)| reader)
}

/// Every class that is read, in the order of the rows.
pub(crate) fn classes() -> impl Iterator<Item = &'static str> {
    ROWS.iter().flat_map(|(classes, _)| classes.iter().copied())
}
