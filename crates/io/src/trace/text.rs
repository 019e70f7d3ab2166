//! Traces of text: ShareGPT conversations and OpenAI chat requests, as a JSON array or one object a line.
//!
//! Each message is tokenised by itself and the messages are joined, so that a turn's prompt begins with the exact tokens
//! of the turns before it. The markers that a model's chat template puts around messages are not added: prompts are
//! shorter than on the wire by a few tokens a message, the same in all requests.
//!
//! - **ShareGPT** (`{"id", "conversations": [{"from": "human"|"gpt"|"system", "value"}]}`): every answer is a request
//!   whose prompt is the conversation up to it. There are no times.
//! - **OpenAI** (`{"messages": [{"role", "content"}], "max_tokens"}`, or with those in `body`, as in batch files): one
//!   request an object; if the last message is the assistant's, it is the output. `usage.completion_tokens` of a
//!   recorded answer and `max_tokens` give the length otherwise. `timestamp` (seconds) is the arrival if it is there.

use std::borrow::Cow;

use kvwise_core::{Error, Result};
use kvwise_sim::trace::{IdMeaning, NewRequest, PromptIds, Trace, TraceBuilder, TraceFormat};
use serde::Deserialize;

use super::{CHECK_EVERY, EXAMPLES, Loaded, Progress, ReadOptions, Source, Tokenize, check_memory, finish};

#[derive(Deserialize)]
struct ShareGpt<'a> {
    #[serde(borrow, alias = "conversation", alias = "items")]
    conversations: Vec<Turn<'a>>,
}

#[derive(Deserialize)]
struct Turn<'a> {
    #[serde(borrow, alias = "role")]
    from: Cow<'a, str>,
    #[serde(borrow, alias = "content")]
    value: Cow<'a, str>,
}

#[derive(Deserialize)]
struct OpenAi<'a> {
    #[serde(borrow)]
    custom_id: Option<Cow<'a, str>>,
    timestamp: Option<f64>,
    #[serde(borrow)]
    body: Option<Body<'a>>,
    response: Option<Response>,
    usage: Option<Usage>,
    #[serde(borrow, flatten)]
    inline: Body<'a>,
}

#[derive(Deserialize, Default)]
struct Body<'a> {
    #[serde(borrow, default)]
    messages: Vec<Message<'a>>,
    #[serde(borrow)]
    prompt: Option<Cow<'a, str>>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    content: Option<MessageContent<'a>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum MessageContent<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Parts(#[serde(borrow)] Vec<Part<'a>>),
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Response {
    body: Option<ResponseBody>,
}

#[derive(Deserialize)]
struct ResponseBody {
    usage: Option<Usage>,
}

#[derive(Deserialize, Clone, Copy)]
struct Usage {
    completion_tokens: Option<u64>,
}

/// Reads a trace of text.
pub(super) fn read(mut source: Source, options: &ReadOptions<'_>, format: TraceFormat) -> Result<Loaded> {
    let mut reader = Reader::new(&source.name, options, format)?;
    let mut builder = TraceBuilder::new(source.name.clone(), 16, IdMeaning::Content).format(format);
    let (mut skipped, mut examples) = (0, Vec::new());
    let (mut object, mut number) = (Vec::new(), 0u64);
    while let Some(line) = source.next_object(&mut object, options.max_line_bytes)? {
        number += 1;
        if let Err(e) = reader.object(&object, format, &mut builder) {
            let e = e.at(format_args!("{}: line {line}, entry {number}", source.name));
            if !options.skip_bad {
                return Err(e.hint("to leave out unreadable entries, add --skip-bad"));
            }
            skipped += 1;
            if examples.len() < EXAMPLES {
                examples.push(e.to_string());
            }
        }
        if number.is_multiple_of(CHECK_EVERY as u64) {
            check_memory(&builder, options, &source.name)?;
            if let Some(progress) = options.progress {
                progress(Progress {
                    read_bytes: source.bytes_read(),
                    total_bytes: source.total_bytes,
                    requests: builder.len() as u64,
                });
            }
        }
        if options.limit.is_some_and(|limit| builder.len() >= limit) {
            break;
        }
    }
    let mut loaded = finish(builder, options, skipped, examples, &source.name)?;
    if let Some(limit) = options.limit.and_then(|l| u32::try_from(l).ok())
        && limit < loaded.trace.request_count()
    {
        loaded.trace = loaded.trace.select(&(0..limit).collect::<Vec<u32>>());
    }
    Ok(loaded)
}

/// The requests in about the first `budget` bytes of text, how many bytes that was, and whether the file ended. What
/// cannot be read is passed over.
pub(super) fn sample(
    source: &mut Source,
    options: &ReadOptions<'_>,
    format: TraceFormat,
    budget: u64,
) -> Result<(Trace, u64, bool)> {
    let mut reader = Reader::new(&source.name, options, format)?;
    let mut builder = TraceBuilder::new(source.name.clone(), 16, IdMeaning::Content).format(format);
    let (mut object, mut text_bytes, mut whole) = (Vec::new(), 0, false);
    while text_bytes < budget {
        match source.next_object(&mut object, options.max_line_bytes) {
            Ok(Some(_)) => {}
            Ok(None) => {
                whole = true;
                break;
            }
            Err(_) => break,
        }
        // an object is followed by a comma or an end of line
        text_bytes += object.len() as u64 + 1;
        let _ = reader.object(&object, format, &mut builder);
    }
    Ok((builder.finish(), text_bytes, whole))
}

struct Reader<'a> {
    tokenizer: &'a dyn Tokenize,
    prompt: Vec<u32>,
    output: Vec<u32>,
}

impl<'a> Reader<'a> {
    fn new(name: &str, options: &ReadOptions<'a>, format: TraceFormat) -> Result<Self> {
        let Some(tokenizer) = options.tokenizer else {
            return Err(Error::input(format!(
                "{name}: {format} is text, and how long it is depends on the model's tokenizer"
            ))
            .hint("name the model's tokenizer.json with --tokenizer FILE"));
        };
        Ok(Self {
            tokenizer,
            prompt: Vec::new(),
            output: Vec::new(),
        })
    }

    fn object(&mut self, object: &[u8], format: TraceFormat, builder: &mut TraceBuilder) -> Result<()> {
        match format {
            TraceFormat::ShareGpt => self.sharegpt(object, builder),
            _ => self.openai(object, builder),
        }
    }

    fn sharegpt(&mut self, object: &[u8], builder: &mut TraceBuilder) -> Result<()> {
        let entry: ShareGpt<'_> = parse(object)?;
        self.prompt.clear();
        let before = builder.len();
        for turn in &entry.conversations {
            self.output.clear();
            self.tokenizer.encode(&turn.value, &mut self.output)?;
            let answers = match turn.from.as_ref() {
                "gpt" | "assistant" | "chatgpt" | "bing" | "bard" => true,
                "human" | "user" | "system" | "tool" => false,
                other => {
                    return Err(Error::input(format!(
                        "a turn is from \"{other}\", expected human, gpt or system"
                    )));
                }
            };
            // an answer before any question, or an empty one, is no request
            if answers && !self.prompt.is_empty() && !self.output.is_empty() {
                builder.push(&NewRequest {
                    prompt: PromptIds::Tokens(&self.prompt),
                    output_tokens: Some(&self.output),
                    ..NewRequest::default()
                })?;
            }
            self.prompt.extend_from_slice(&self.output);
        }
        if builder.len() == before {
            return Err(Error::input("the conversation has no question with an answer"));
        }
        Ok(())
    }

    fn openai(&mut self, object: &[u8], builder: &mut TraceBuilder) -> Result<()> {
        let entry: OpenAi<'_> = parse(object)?;
        let body = entry.body.as_ref().unwrap_or(&entry.inline);
        self.prompt.clear();
        self.output.clear();
        if body.messages.is_empty() {
            let text = body
                .prompt
                .as_ref()
                .ok_or_else(|| Error::input("neither field \"messages\" nor \"prompt\" is there"))?;
            self.tokenizer.encode(text, &mut self.prompt)?;
        }
        let answered = body.messages.len() > 1 && body.messages.last().is_some_and(|m| m.role == "assistant");
        let (question, answer) = body
            .messages
            .split_at(body.messages.len() - usize::from(answered));
        for message in question {
            encode_message(self.tokenizer, message, &mut self.prompt)?;
        }
        for message in answer {
            encode_message(self.tokenizer, message, &mut self.output)?;
        }
        let answered = !self.output.is_empty();
        let used = entry
            .usage
            .or_else(|| entry.response.as_ref()?.body.as_ref()?.usage)
            .and_then(|u| u.completion_tokens);
        let output_len = used.or(body.max_completion_tokens).or(body.max_tokens);
        if !answered && output_len.is_none() {
            return Err(Error::input(
                "how long the answer is, is not said: no assistant's message at the end, no usage, no \"max_tokens\"",
            ));
        }
        let id = entry
            .custom_id
            .as_ref()
            .map(|id| serde_json::Value::from(id.as_ref()).to_string());
        builder.push(&NewRequest {
            arrival: entry.timestamp,
            output_len: if answered { None } else { output_len },
            prompt: PromptIds::Tokens(&self.prompt),
            output_tokens: answered.then_some(&self.output[..]),
            id_json: id.as_deref(),
            ..NewRequest::default()
        })
    }
}

fn encode_message(tokenizer: &dyn Tokenize, message: &Message<'_>, out: &mut Vec<u32>) -> Result<()> {
    match &message.content {
        None => Ok(()), // a call of a tool
        Some(MessageContent::Text(text)) => tokenizer.encode(text, out),
        Some(MessageContent::Parts(parts)) => parts.iter().try_for_each(|part| match &part.text {
            Some(text) => tokenizer.encode(text, out),
            None => Err(Error::unsupported(format!(
                "a message has a part of type \"{}\", and how many tokens that is depends on the model",
                part.kind
            ))),
        }),
    }
}

fn parse<'a, T: Deserialize<'a>>(object: &'a [u8]) -> Result<T> {
    serde_json::from_slice(object).map_err(|e| Error::input(e.to_string()))
}

#[cfg(test)]
mod tests {
    use kvwise_sim::trace::Prompt;

    use super::*;

    /// Words as tokens: their length and first letter.
    struct Words;

    impl Tokenize for Words {
        fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
            out.extend(
                text.split_whitespace()
                    .map(|w| 256 * u32::try_from(w.len()).unwrap() + u32::from(w.as_bytes()[0])),
            );
            Ok(())
        }
    }

    fn load(text: &str, format: Option<TraceFormat>, skip_bad: bool) -> Result<Loaded> {
        let source = Source::from_reader("t", Box::new(std::io::Cursor::new(text.to_owned())), None)?;
        let options = ReadOptions {
            format,
            skip_bad,
            tokenizer: Some(&Words),
            ..ReadOptions::default()
        };
        super::super::open_source(source, &options)
    }

    const CHATS: &str = r#"[
  {"id": "a", "conversations": [
    {"from": "system", "value": "be kind"},
    {"from": "human", "value": "what { is \"this\" }"},
    {"from": "gpt", "value": "a brace"},
    {"from": "human", "value": "thanks"},
    {"from": "gpt", "value": "you are welcome"}]},
  {"id": "b", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
]"#;

    #[test]
    fn every_answer_of_a_conversation_is_a_request_that_begins_with_the_one_before() {
        let trace = load(CHATS, None, false).unwrap().trace;
        assert_eq!(trace.format(), TraceFormat::ShareGpt);
        assert_eq!(trace.input_lens(), [7, 10, 1]);
        assert_eq!(trace.output_lens(), [2, 3, 1]);
        let [Prompt::Tokens(first), Prompt::Tokens(second)] = [trace.prompt(0), trace.prompt(1)] else {
            panic!("no tokens")
        };
        assert_eq!(&second[..7], first);
        assert_eq!(&second[7..9], trace.output_tokens(0).unwrap());
    }

    #[test]
    fn openai_requests_take_their_length_from_answer_usage_or_limit() {
        let lines = r#"{"custom_id": "x", "body": {"messages": [{"role": "user", "content": "one two"}], "max_tokens": 9}}
{"custom_id": "y", "messages": [{"role": "user", "content": [{"type": "text", "text": "one"}]}, {"role": "assistant", "content": "a b c"}]}
{"custom_id": "z", "prompt": "one two three", "usage": {"completion_tokens": 4}, "max_tokens": 50}
"#;
        let trace = load(lines, None, false).unwrap().trace;
        assert_eq!(trace.format(), TraceFormat::OpenAi);
        assert_eq!(trace.input_lens(), [2, 1, 3]);
        assert_eq!(trace.output_lens(), [9, 3, 4]);
        assert_eq!(trace.id(1), "y");
    }

    #[test]
    fn unreadable_entries_are_named_by_line_or_left_out() {
        let bad = CHATS.replace(
            "\"gpt\", \"value\": \"hello\"",
            "\"martian\", \"value\": \"hello\"",
        );
        let message = load(&bad, None, false).unwrap_err().to_string();
        assert!(
            message.contains("line 8") && message.contains("martian"),
            "{message}"
        );
        let loaded = load(&bad, None, true).unwrap();
        assert_eq!((loaded.trace.len(), loaded.skipped), (2, 1));
        for (text, word) in [
            (r#"{"messages": [{"role": "user", "content": "a"}]}"#, "how long"),
            (
                r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}], "max_tokens": 3}"#,
                "image_url",
            ),
            (r#"{"messages": [], "max_tokens": 3}"#, "messages"),
            (
                r#"{"messages": [{"role": "user", "content": "a"}], "max_tokens": -3}"#,
                "-3",
            ),
            (
                r#"{"messages": [{"role": "user", "content": "a"}], "max_tokens": 3"#,
                "not closed",
            ),
        ] {
            let message = load(text, Some(TraceFormat::OpenAi), false)
                .unwrap_err()
                .to_string();
            assert!(message.contains(word), "{text}: {message}");
        }
    }

    #[test]
    fn without_a_tokenizer_text_is_refused_with_the_flag_to_give() {
        let source = Source::from_reader("t", Box::new(CHATS.as_bytes()), None).unwrap();
        let error = super::super::open_source(source, &ReadOptions::default()).unwrap_err();
        assert!(error.to_string().contains("tokenizer"), "{error}");
    }
}
