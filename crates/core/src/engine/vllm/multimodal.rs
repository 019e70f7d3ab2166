//! What a server is told of images, video and audio, as far as memory hangs on it.
//!
//! `--limit-mm-per-prompt` bounds the inputs of a prompt: the profiling step encodes no more, and a kind of which there are
//! none needs no tower. `--mm-processor-kwargs` may make images smaller, `--skip-mm-profiling` leaves them out of the profile.
//! vLLM 0.32.0, `config/multimodal.py` and `_mark_tower_model` in `model_executor/models/interfaces.py`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Version;
use crate::{Error, Result};

/// Inputs of one kind in a prompt where the user sets no limit.
pub const UNLIMITED: u64 = 999;
/// Since this release towers none of whose inputs are allowed are not built (0.14.1 builds them, 0.15.1 does not).
const LEAVES_TOWERS: Version = Version::new(0, 15, 0);
/// No size, number of frames or of inputs is larger.
const LARGEST: u64 = 1 << 40;
/// Most kinds that limits may name.
const MOST_KINDS: usize = 32;

/// Classes whose only tower takes images (`_mark_tower_model(vllm_config, "image")` in their files).
const IMAGES_ONLY: [&str; 31] = [
    "AriaForConditionalGeneration",
    "BagelForConditionalGeneration",
    "BailingMoeV3VLForConditionalGeneration",
    "Blip2ForConditionalGeneration",
    "CLIPModel",
    "Cohere2VisionForConditionalGeneration",
    "CohereCompassForConditionalGeneration",
    "DeepseekOCR2ForCausalLM",
    "DeepseekOCRForCausalLM",
    "DeepseekVLV2ForCausalLM",
    "DotsOCRForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Granite4VisionForConditionalGeneration",
    "IsaacForConditionalGeneration",
    "KimiVLForConditionalGeneration",
    "Lfm2VlForConditionalGeneration",
    "LightOnOCRForConditionalGeneration",
    "Llama4ForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "MiniCPMV4_6ForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "MolmoForCausalLM",
    "NemotronParseForConditionalGeneration",
    "OpenCUAForConditionalGeneration",
    "PaddleOCRVLForConditionalGeneration",
    "PaliGemmaForConditionalGeneration",
    "Phi3VForCausalLM",
    "PixtralForConditionalGeneration",
    "Step3VLForConditionalGeneration",
    "Step3p7ForConditionalGeneration",
];
/// Classes with a tower for audio beside one for images and video, or for images.
const AUDIO_TOO: [&str; 9] = [
    "Gemma3nForConditionalGeneration",
    "Gemma4ForConditionalGeneration",
    "MiMoV2OmniForCausalLM",
    "MiniCPMO",
    "NemotronH_Nano_VL_V2",
    "Phi4MMForCausalLM",
    "Qwen2_5OmniForConditionalGeneration",
    "Qwen2_5OmniModel",
    "Qwen3OmniMoeForConditionalGeneration",
];

/// What `--limit-mm-per-prompt` says of one kind of input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Most inputs of a prompt.
    pub count: u64,
    /// Frames of the videos that are profiled.
    pub num_frames: Option<u64>,
    /// Width in pixels of what is profiled.
    pub width: Option<u64>,
    /// Height in pixels of what is profiled.
    pub height: Option<u64>,
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            count: UNLIMITED,
            num_frames: None,
            width: None,
            height: None,
        }
    }
}

/// The three flags together; the default says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Multimodal {
    limits: BTreeMap<String, Limit>,
    /// `--skip-mm-profiling`.
    pub skip_profiling: bool,
    /// Pixels of the largest image, by `max_pixels` or `size.longest_edge` of `--mm-processor-kwargs`.
    pub max_pixels: Option<u64>,
}

impl Multimodal {
    /// Reads the flags.
    ///
    /// # Errors
    /// If a value is neither JSON nor (for limits) `image=2,video=0`, or says what the engine would refuse.
    pub fn read(limits: Option<&str>, processor: Option<&str>, skip_profiling: bool) -> Result<Self> {
        Ok(Self {
            limits: limits.map(read_limits).transpose()?.unwrap_or_default(),
            skip_profiling,
            max_pixels: processor.map(read_pixels).transpose()?.flatten(),
        })
    }

    /// What is said of a kind of input (`image`, `video`, `audio`, ...), or the engine's default.
    pub fn limit(&self, kind: &str) -> Limit {
        self.limits.get(kind).copied().unwrap_or_default()
    }

    /// Whether prompts may bring inputs of this kind.
    pub fn takes(&self, kind: &str) -> bool {
        self.limit(kind).count > 0
    }

    /// Whether the limits leave no input at all to the towers of this class, so that the engine does not build them. Where some
    /// kinds are left, all towers are counted.
    pub fn leaves_out_towers(&self, class: &str, version: Version) -> bool {
        version >= LEAVES_TOWERS && self.bars_all(class)
    }

    /// Whether the limits leave no kind of input that this class takes.
    pub fn bars_all(&self, class: &str) -> bool {
        let kinds: &[&str] = match class {
            "KimiK25ForConditionalGeneration" => &["vision_chunk"],
            _ if IMAGES_ONLY.contains(&class) => &["image"],
            _ if AUDIO_TOO.contains(&class) => &["image", "video", "audio"],
            _ => &["image", "video"],
        };
        kinds.iter().all(|kind| !self.takes(kind))
    }

    /// The limits as the engine's JSON, `None` where none are set.
    pub fn limits_json(&self) -> Option<String> {
        if self.limits.is_empty() {
            return None;
        }
        let entry = |limit: &Limit| {
            let options = [
                ("num_frames", limit.num_frames),
                ("width", limit.width),
                ("height", limit.height),
            ];
            if options.iter().all(|(_, value)| value.is_none()) {
                return Value::from(limit.count);
            }
            let mut map = serde_json::Map::new();
            map.insert("count".to_owned(), limit.count.into());
            for (key, value) in options {
                if let Some(value) = value {
                    map.insert(key.to_owned(), value.into());
                }
            }
            Value::Object(map)
        };
        let map: serde_json::Map<String, Value> = (self.limits.iter())
            .map(|(kind, limit)| (kind.clone(), entry(limit)))
            .collect();
        Some(Value::Object(map).to_string())
    }
}

fn refused(text: &str, why: &str) -> Error {
    Error::input(format!("--limit-mm-per-prompt is {text}: {why}")).hint(
        "write JSON, as {\"image\": 2, \"video\": 0} or {\"video\": {\"count\": 1, \"num_frames\": 32}}, or image=2,video=0",
    )
}

fn read_limits(text: &str) -> Result<BTreeMap<String, Limit>> {
    let text = text.trim();
    let mut out = BTreeMap::new();
    let mut add = |kind: &str, limit: Limit| {
        let kind = kind.trim();
        if kind.is_empty()
            || !kind
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        {
            return Err(refused(
                text,
                "a kind of input is image, video, audio or another small word",
            ));
        }
        if out.len() >= MOST_KINDS {
            return Err(refused(text, "it names more kinds of input than any model takes"));
        }
        if out.insert(kind.to_owned(), limit).is_some() {
            return Err(refused(text, &format!("{kind} is there twice")));
        }
        Ok(())
    };
    if text.starts_with('{') {
        let map: serde_json::Map<String, Value> =
            serde_json::from_str(text).map_err(|e| refused(text, &format!("it is no JSON object ({e})")))?;
        for (kind, value) in &map {
            add(kind, limit_of(text, kind, value)?)?;
        }
    } else {
        for pair in text.split(',') {
            let Some((kind, count)) = pair.split_once('=') else {
                return Err(refused(text, "it is neither JSON nor kind=number"));
            };
            let count = count
                .trim()
                .parse()
                .ok()
                .filter(|n| *n <= LARGEST)
                .ok_or_else(|| refused(text, &format!("the limit of {} is no whole number", kind.trim())))?;
            add(
                kind,
                Limit {
                    count,
                    ..Limit::default()
                },
            )?;
        }
    }
    Ok(out)
}

/// One entry of the JSON object: a number, or an object with options of the profiled input.
fn limit_of(text: &str, kind: &str, value: &Value) -> Result<Limit> {
    let whole = |key: &str, value: &Value| {
        value
            .as_u64()
            .filter(|n| *n <= LARGEST)
            .ok_or_else(|| refused(text, &format!("{key} is {value} and no whole number")))
    };
    let Value::Object(options) = value else {
        return Ok(Limit {
            count: whole(kind, value)?,
            ..Limit::default()
        });
    };
    let mut limit = Limit::default();
    for (key, value) in options {
        let given = whole(&format!("{kind}.{key}"), value)?;
        if given == 0 && key != "count" {
            return Err(refused(text, &format!("{kind}.{key} is 0")));
        }
        match key.as_str() {
            "count" => limit.count = given,
            "num_frames" if kind == "video" => limit.num_frames = Some(given),
            "width" if matches!(kind, "image" | "video") => limit.width = Some(given),
            "height" if matches!(kind, "image" | "video") => limit.height = Some(given),
            // It bounds what is profiled of audio, whose towers take little.
            "length" if kind == "audio" => {}
            _ => return Err(refused(text, &format!("{kind} has no option {key}"))),
        }
    }
    Ok(limit)
}

/// Pixels of the largest image in `--mm-processor-kwargs`; other keys do not change the profile of the towers known here.
fn read_pixels(text: &str) -> Result<Option<u64>> {
    let refuse = |why: String| {
        Error::input(format!("--mm-processor-kwargs is {}: {why}", text.trim()))
            .hint("write a JSON object, as {\"max_pixels\": 1003520}")
    };
    let map: serde_json::Map<String, Value> =
        serde_json::from_str(text.trim()).map_err(|e| refuse(format!("it is no JSON object ({e})")))?;
    let scoped = map.get("images_kwargs").and_then(Value::as_object);
    for options in [scoped, Some(&map)].into_iter().flatten() {
        let edge = (options.get("size"))
            .and_then(Value::as_object)
            .and_then(|size| size.get("longest_edge"));
        if let Some(value) = options.get("max_pixels").or(edge).filter(|v| !v.is_null()) {
            return (value.as_u64())
                .filter(|n| (1..=LARGEST).contains(n))
                .map(Some)
                .ok_or_else(|| refuse(format!("the pixels of the largest image are {value}")));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(text: &str) -> Result<Multimodal> {
        Multimodal::read(Some(text), None, false)
    }

    #[test]
    fn both_spellings_of_limits_are_read_and_written_as_json() {
        for (text, json) in [
            (r#"{"image": 2, "video": 0}"#, r#"{"image":2,"video":0}"#),
            ("image=2,video=0", r#"{"image":2,"video":0}"#),
            (" image = 2 ", r#"{"image":2}"#),
            (
                r#"{"video": {"count": 1, "num_frames": 32, "width": 512}, "image": {"width": 640}}"#,
                r#"{"image":{"count":999,"width":640},"video":{"count":1,"num_frames":32,"width":512}}"#,
            ),
            (r#"{"audio": {"length": 9}}"#, r#"{"audio":999}"#),
        ] {
            let read = limits(text).unwrap();
            let written = read.limits_json().unwrap();
            let as_value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
            assert_eq!(as_value(&written), as_value(json), "{text}");
            assert_eq!(limits(&written).unwrap(), read, "{text}");
        }
        assert_eq!(limits("image=1").unwrap().limit("video").count, UNLIMITED);
        assert_eq!(Multimodal::default().limits_json(), None);
    }

    #[test]
    fn limits_that_the_engine_would_not_take_are_errors_that_name_them() {
        for (text, why) in [
            ("image", "neither JSON nor"),
            ("image=-1", "no whole number"),
            ("image=1,image=2", "twice"),
            (r#"{"image": "two"}"#, "no whole number"),
            (r#"{"image": -1}"#, "no whole number"),
            (r#"{"image": {"num_frames": 2}}"#, "no option num_frames"),
            (r#"{"video": {"width": 0}}"#, "video.width is 0"),
            (r#"{"image": 1"#, "no JSON object"),
            ("Image=1", "a kind of input"),
            ("[1]", "neither JSON nor"),
            ("", "neither JSON nor"),
            (r#"{"image": 99999999999999999999}"#, "no whole number"),
        ] {
            let message = limits(text).unwrap_err().to_string();
            assert!(
                message.contains("--limit-mm-per-prompt") && message.contains(why),
                "{text}: {message}"
            );
        }
    }

    #[test]
    fn the_largest_image_is_found_wherever_the_processor_takes_it() {
        let pixels = |text: &str| Multimodal::read(None, Some(text), false).map(|m| m.max_pixels);
        assert_eq!(pixels(r#"{"max_pixels": 1003520}"#).unwrap(), Some(1_003_520));
        assert_eq!(pixels(r#"{"size": {"longest_edge": 1000}}"#).unwrap(), Some(1000));
        assert_eq!(
            pixels(r#"{"max_pixels": 9, "images_kwargs": {"max_pixels": 8}}"#).unwrap(),
            Some(8)
        );
        assert_eq!(pixels(r#"{"num_crops": 4}"#).unwrap(), None);
        for text in [
            r#"{"max_pixels": 0}"#,
            r#"{"max_pixels": "many"}"#,
            "max_pixels=3",
            "{",
        ] {
            assert!(
                pixels(text)
                    .unwrap_err()
                    .to_string()
                    .contains("--mm-processor-kwargs")
            );
        }
    }

    #[test]
    fn towers_go_when_every_kind_that_they_take_is_barred() {
        let new = Version::new(0, 32, 0);
        let none = limits("image=0,video=0").unwrap();
        assert!(none.leaves_out_towers("Qwen3_5ForConditionalGeneration", new));
        assert!(!none.leaves_out_towers("Qwen3_5ForConditionalGeneration", Version::new(0, 14, 1)));
        assert!(!none.leaves_out_towers("Gemma4ForConditionalGeneration", new));
        let images = limits("image=0").unwrap();
        assert!(images.leaves_out_towers("Gemma3ForConditionalGeneration", new));
        assert!(!images.leaves_out_towers("Qwen3_5ForConditionalGeneration", new));
        let chunks = limits("vision_chunk=0").unwrap();
        assert!(chunks.leaves_out_towers("KimiK25ForConditionalGeneration", new));
        assert!(!Multimodal::default().leaves_out_towers("LlavaForConditionalGeneration", new));
    }
}
