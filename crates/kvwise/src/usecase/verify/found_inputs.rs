//! What a log shows of images, video and audio.

use kvwise_core::engine::vllm;
use kvwise_io::log::{Boot, Value, python};
use serde_json::json;

use super::found::Found;

/// Deepest nesting of a printed dictionary that is read.
const MOST_LEVELS: usize = 4;

/// A value that Python printed, as JSON.
fn as_json(value: &Value, levels: usize) -> serde_json::Value {
    match value {
        Value::Other(text) if levels > 0 && text.starts_with('{') => python::pairs(text)
            .into_iter()
            .map(|(key, value)| (key, as_json(&value, levels - 1)))
            .collect(),
        _ => json!(value),
    }
}

/// The object in a flag, however it was printed: a dictionary, or a string that holds JSON or `image=2,video=0`.
fn object(value: &Value) -> Option<serde_json::Value> {
    let (Value::Other(text) | Value::Text(text)) = value else {
        return None;
    };
    let read = as_json(&Value::Other(text.trim().to_owned()), MOST_LEVELS);
    let pairs = || as_json(&Value::Other(format!("{{{}}}", text.trim())), 1);
    let object = if read.is_object() { read } else { pairs() };
    (object.as_object())
        .is_some_and(|map| !map.is_empty())
        .then_some(object)
}

/// Limits of images and videos, and options of their processor.
pub(super) fn multimodal(boot: &Boot, found: &mut Found) {
    for name in ["limit_mm_per_prompt", "mm_processor_kwargs"] {
        let Some(value) = boot.setting(name).and_then(object) else {
            continue;
        };
        let text = value.to_string();
        let limits = name == "limit_mm_per_prompt";
        let (ours, theirs) = if limits {
            (Some(text.as_str()), None)
        } else {
            (None, Some(text.as_str()))
        };
        if vllm::Multimodal::read(ours, theirs, false).is_err() {
            found.warnings.push(format!(
                "the log's {name} is not understood and left out: {}",
                text.chars().take(120).collect::<String>()
            ));
            continue;
        }
        let d = &mut found.deployment;
        *(if limits {
            &mut d.limit_mm_per_prompt
        } else {
            &mut d.mm_processor_kwargs
        }) = Some(text);
        found.note(name, "in the log");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_images_and_options_of_their_processor_are_read_as_they_are_printed() {
        let read = |name: &str, value: Value| {
            let mut boot = Boot::default();
            boot.flags.insert(name.to_owned(), value);
            let mut found = Found::default();
            multimodal(&boot, &mut found);
            let d = found.deployment;
            (
                d.limit_mm_per_prompt.or(d.mm_processor_kwargs),
                found.warnings.len(),
            )
        };
        for (limits, json) in [
            ("{'image': 0, 'video': 0}", r#"{"image":0,"video":0}"#),
            ("{\"image\": 4}", r#"{"image":4}"#),
            ("image=2,video=0", r#"{"image":2,"video":0}"#),
            (
                "{'video': {'count': 1, 'num_frames': 32}}",
                r#"{"video":{"count":1,"num_frames":32}}"#,
            ),
        ] {
            for value in [Value::Other(limits.to_owned()), Value::Text(limits.to_owned())] {
                let (text, warnings) = read("limit_mm_per_prompt", value);
                assert_eq!((text.as_deref(), warnings), (Some(json), 0), "{limits}");
            }
        }
        let (text, _) = read(
            "mm_processor_kwargs",
            Value::Other("{'size': {'longest_edge': 1048576}, 'use_fast': True}".to_owned()),
        );
        assert_eq!(
            text.as_deref(),
            Some(r#"{"size":{"longest_edge":1048576},"use_fast":true}"#)
        );
        for nothing in [Value::Other("{}".to_owned()), Value::Int(3), Value::None] {
            assert_eq!(read("limit_mm_per_prompt", nothing), (None, 0));
        }
        let odd = Value::Other("{'image': ImageDummyOptions(count=1)}".to_owned());
        assert_eq!(read("limit_mm_per_prompt", odd), (None, 1));
    }
}
