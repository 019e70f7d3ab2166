//! Formats with one JSON object a line: Mooncake, and the `tokens` format of the engines' reference scripts.

use std::borrow::Cow;

use kvwise_core::{Error, Result};
use kvwise_sim::trace::{NewRequest, PromptIds, TraceBuilder};

use rustc_hash::FxHashMap;

use super::json::{Scan, Scanner};

/// Buffers that live as long as the file, so that a line allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    ids: Vec<u64>,
    tokens: Vec<u32>,
    outputs: Vec<u32>,
}

/// What a line says; all fields optional until the line is complete.
#[derive(Debug, Default)]
struct Line<'a> {
    arrival: Option<f64>,
    input_len: Option<u64>,
    output_len: Option<u64>,
    has_ids: bool,
    has_tokens: bool,
    has_outputs: bool,
    priority: Option<i64>,
    cache_salt: Option<Cow<'a, str>>,
    extra_key: Option<Cow<'a, str>>,
    lora: Option<Cow<'a, str>>,
    id: Option<&'a str>,
}

/// Adds one line of a Mooncake trace.
pub(super) fn mooncake(
    line: &[u8],
    scratch: &mut Scratch,
    builder: &mut TraceBuilder,
    sort: bool,
) -> Result<()> {
    let mut fields = Line::default();
    scratch.ids.clear();
    let mut scanner = Scanner::new(line);
    let scan = scanner.object_of(|key, s| match key {
        b"timestamp" => once("timestamp", &mut fields.arrival, s, |s| Ok(s.number()? / 1000.0)),
        b"input_length" => once("input_length", &mut fields.input_len, s, Scanner::uint),
        b"output_length" => once("output_length", &mut fields.output_len, s, Scanner::uint),
        b"hash_ids" => {
            flag("hash_ids", &mut fields.has_ids, s)?;
            named("hash_ids", s, |s| s.uints(&mut scratch.ids))
        }
        _ => s.skip(),
    });
    scan.and_then(|()| scanner.end())
        .map_err(|e| Error::input(e.to_string()))?;
    let missing = |what: &str| Error::input(format!("field \"{what}\" is missing"));
    let arrival = fields.arrival.ok_or_else(|| missing("timestamp"))?;
    let input_len = fields.input_len.ok_or_else(|| missing("input_length"))?;
    let output_len = fields.output_len.ok_or_else(|| missing("output_length"))?;
    if !fields.has_ids {
        return Err(missing("hash_ids"));
    }
    not_before(arrival, builder, sort)?;
    builder.push(&NewRequest {
        arrival: Some(arrival),
        input_len: Some(input_len),
        output_len: Some(output_len),
        prompt: PromptIds::Blocks(&scratch.ids),
        ..NewRequest::default()
    })
}

/// Adds one line of the `tokens` format.
pub(super) fn tokens(line: &[u8], scratch: &mut Scratch, builder: &mut TraceBuilder) -> Result<()> {
    let mut fields = Line::default();
    scratch.ids.clear();
    scratch.tokens.clear();
    scratch.outputs.clear();
    let mut scanner = Scanner::new(line);
    let scan = scanner.object_of(|key, s| match key {
        b"id" => {
            let starts_well = matches!(s.peek(), Some(b'"' | b'-' | b'0'..=b'9'));
            if s.clone().null()? {
                return s.skip();
            }
            if !starts_well {
                return s.fail("field \"id\": expected a string or an integer");
            }
            once("id", &mut fields.id, s, |s| {
                let raw = s.raw()?;
                if !raw.starts_with('"') && raw.contains(['.', 'e', 'E']) {
                    return s.fail("expected a string or an integer");
                }
                Ok(raw)
            })
        }
        b"arrival" => once("arrival", &mut fields.arrival, s, Scanner::number),
        b"input_len" | b"input_length" => once(text(key), &mut fields.input_len, s, Scanner::uint),
        b"output_len" | b"output_length" => once(text(key), &mut fields.output_len, s, Scanner::uint),
        b"hash_ids" => {
            flag("hash_ids", &mut fields.has_ids, s)?;
            named("hash_ids", s, |s| s.uints(&mut scratch.ids))
        }
        b"tokens" => {
            flag("tokens", &mut fields.has_tokens, s)?;
            named("tokens", s, |s| s.uints32(&mut scratch.tokens))
        }
        b"output_tokens" => {
            if s.null()? {
                return Ok(());
            }
            flag("output_tokens", &mut fields.has_outputs, s)?;
            named("output_tokens", s, |s| s.uints32(&mut scratch.outputs))
        }
        b"priority" => once("priority", &mut fields.priority, s, Scanner::int),
        b"cache_salt" => name("cache_salt", &mut fields.cache_salt, s),
        b"extra_key" => name("extra_key", &mut fields.extra_key, s),
        b"lora" => name("lora", &mut fields.lora, s),
        _ => s.skip(),
    });
    scan.and_then(|()| scanner.end())
        .map_err(|e| Error::input(e.to_string()))?;
    let prompt = match (fields.has_tokens, fields.has_ids) {
        (true, false) => PromptIds::Tokens(&scratch.tokens),
        (false, true) => PromptIds::Blocks(&scratch.ids),
        (true, true) => {
            return Err(Error::input(
                "both \"tokens\" and \"hash_ids\" are given; keep one of them",
            ));
        }
        (false, false) => return Err(Error::input("neither field \"tokens\" nor \"hash_ids\" is there")),
    };
    let index_id;
    let id_json = match fields.id {
        Some(id) => Some(id),
        // a line without an id among lines with ids gets its number, as the reference scripts do
        None if builder.has_ids() => {
            index_id = builder.len().to_string();
            Some(index_id.as_str())
        }
        None => None,
    };
    builder.push(&NewRequest {
        // the reference scripts read a missing time as 0
        arrival: fields
            .arrival
            .or(if builder.has_arrivals() { Some(0.0) } else { None }),
        input_len: fields.input_len,
        output_len: fields.output_len,
        prompt,
        output_tokens: fields.has_outputs.then_some(&scratch.outputs[..]),
        priority: fields.priority.unwrap_or(0),
        cache_salt: fields.cache_salt.as_deref(),
        extra_key: fields.extra_key.as_deref(),
        lora: fields.lora.as_deref(),
        session: None,
        id_json,
    })
}

/// Adds one line of a Qwen-Bailian trace; `chats` maps the chats seen so far to conversations.
pub(super) fn bailian(
    line: &[u8],
    scratch: &mut Scratch,
    builder: &mut TraceBuilder,
    chats: &mut Chats,
    sort: bool,
) -> Result<()> {
    let mut fields = Line::default();
    let (mut chat, mut parent) = (None, None);
    scratch.ids.clear();
    let mut scanner = Scanner::new(line);
    let scan = scanner.object_of(|key, s| match key {
        b"chat_id" => once("chat_id", &mut chat, s, Scanner::int),
        b"parent_chat_id" => once("parent_chat_id", &mut parent, s, Scanner::int),
        b"timestamp" => once("timestamp", &mut fields.arrival, s, Scanner::number),
        b"input_length" => once("input_length", &mut fields.input_len, s, Scanner::uint),
        b"output_length" => once("output_length", &mut fields.output_len, s, Scanner::uint),
        b"hash_ids" => {
            flag("hash_ids", &mut fields.has_ids, s)?;
            named("hash_ids", s, |s| s.uints(&mut scratch.ids))
        }
        _ => s.skip(),
    });
    scan.and_then(|()| scanner.end())
        .map_err(|e| Error::input(e.to_string()))?;
    let missing = |what: &str| Error::input(format!("field \"{what}\" is missing"));
    let chat = chat.ok_or_else(|| missing("chat_id"))?;
    let arrival = fields.arrival.ok_or_else(|| missing("timestamp"))?;
    let input_len = fields.input_len.ok_or_else(|| missing("input_length"))?;
    let output_len = fields.output_len.ok_or_else(|| missing("output_length"))?;
    if !fields.has_ids {
        return Err(missing("hash_ids"));
    }
    not_before(arrival, builder, sort)?;
    // a parent that was not seen began before the trace: the conversation starts here
    let known = parent
        .filter(|&p| p >= 0)
        .and_then(|p| chats.conversations.get(&p).copied());
    let session = known.unwrap_or(chats.next);
    builder.push(&NewRequest {
        arrival: Some(arrival),
        input_len: Some(input_len),
        output_len: Some(output_len),
        prompt: PromptIds::Blocks(&scratch.ids),
        session: Some(session),
        ..NewRequest::default()
    })?;
    chats.next = chats.next.max(session + 1);
    chats.conversations.insert(chat, session);
    Ok(())
}

/// Which conversation each chat belongs to.
#[derive(Debug, Default)]
pub(super) struct Chats {
    conversations: FxHashMap<i64, u32>,
    next: u32,
}

/// Times that run backwards are refused where the file's order is the order of arrival.
pub(super) fn not_before(arrival: f64, builder: &TraceBuilder, sort: bool) -> Result<()> {
    let last = builder.last_arrival();
    // a negative time is wrong wherever it stands, which the builder says
    if !sort && arrival < last && arrival >= 0.0 {
        return Err(Error::input(format!(
            "the time {arrival} s is earlier than the line before ({last} s)"
        ))
        .hint("to sort the requests by time, add --sort"));
    }
    Ok(())
}

/// A key of ASCII for a message.
fn text(key: &[u8]) -> &str {
    std::str::from_utf8(key).unwrap_or_default()
}

/// Reads a field that may stand once.
pub(super) fn once<'a, T>(
    key: &str,
    slot: &mut Option<T>,
    s: &mut Scanner<'a>,
    read: impl FnOnce(&mut Scanner<'a>) -> Scan<T>,
) -> Scan<()> {
    if slot.is_some() {
        return s.fail(format!("field \"{key}\" stands twice"));
    }
    *slot = Some(named(key, s, read)?);
    Ok(())
}

fn flag(key: &str, seen: &mut bool, s: &Scanner<'_>) -> Scan<()> {
    if std::mem::replace(seen, true) {
        return s.fail(format!("field \"{key}\" stands twice"));
    }
    Ok(())
}

/// Puts the field's name in front of an error.
pub(super) fn named<'a, T>(
    key: &str,
    s: &mut Scanner<'a>,
    read: impl FnOnce(&mut Scanner<'a>) -> Scan<T>,
) -> Scan<T> {
    read(s).map_err(|mut e| {
        e.what = format!("field \"{key}\": {}", e.what).into();
        e
    })
}

fn name<'a>(key: &str, slot: &mut Option<Cow<'a, str>>, s: &mut Scanner<'a>) -> Scan<()> {
    if s.null()? {
        Ok(())
    } else {
        once(key, slot, s, Scanner::string)
    }
}
