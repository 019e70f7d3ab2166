//! Event batches: `[timestamp, [events], data_parallel_rank]` in msgpack.
//!
//! Events are maps with a `type` (vLLM 0.32.0 `vllm/distributed/kv_events.py`; SGLang 0.5.23
//! `srt/disaggregation/kv_events.py`), or arrays that begin with the type's name (vLLM up to 0.2x). Token ids are not
//! kept: block hashes are enough, and they are keyed by the caller.

use std::hash::{BuildHasher, Hasher};

use kvwise_core::{Error, Result};

use super::msgpack::{self, Value};

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvEvent {
    /// Blocks whose content can be found from now on.
    Stored {
        /// Keyed hashes.
        blocks: Vec<u64>,
        /// Tokens of a block.
        block_tokens: i64,
        /// Whether they are in GPU memory (offloading tiers publish as well).
        on_gpu: bool,
    },
    /// Blocks whose content is gone.
    Removed {
        /// Keyed hashes.
        blocks: Vec<u64>,
        /// Whether they were in GPU memory.
        on_gpu: bool,
    },
    /// Everything is gone.
    Cleared,
}

/// A batch: the events of one engine step.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The engine's wall clock, seconds since 1970.
    pub time_s: f64,
    /// In order.
    pub events: Vec<KvEvent>,
    /// Data-parallel rank, if told.
    pub rank: Option<i64>,
    /// Events of kinds that are not known.
    pub unknown: usize,
}

/// Reads a batch; `key` hashes block hashes and group numbers into identities.
///
/// # Errors
/// If the payload is not msgpack or has another shape.
pub fn read(payload: &[u8], key: &impl BuildHasher) -> Result<Batch> {
    let wrong = || Error::input("KV events: the payload is not a batch [time, events, ...]");
    let value = msgpack::read(payload)?;
    let parts = value.as_array().ok_or_else(wrong)?;
    let (Some(time_s), Some(list)) = (
        parts.first().and_then(Value::as_f64),
        parts.get(1).and_then(Value::as_array),
    ) else {
        return Err(wrong());
    };
    let mut batch = Batch {
        time_s,
        events: Vec::with_capacity(list.len()),
        rank: parts
            .get(2)
            .and_then(Value::as_int)
            .and_then(|r| i64::try_from(r).ok()),
        unknown: 0,
    };
    for item in list {
        match event(item, key) {
            Some(event) => batch.events.push(event),
            None => batch.unknown += 1,
        }
    }
    Ok(batch)
}

fn event(item: &Value<'_>, key: &impl BuildHasher) -> Option<KvEvent> {
    // positions of the older array form: type, hashes, parent, token ids, block size, LoRA id, medium
    let field = |name: &str, position: usize| match item {
        Value::Array(items) => items.get(position),
        map => map.get(name),
    };
    let kind = field("type", 0)?.as_str()?;
    let on_gpu = |position: usize| {
        field("medium", position)
            .and_then(Value::as_str)
            .is_none_or(|m| m.eq_ignore_ascii_case("gpu"))
    };
    let group = item.get("group_idx").and_then(Value::as_int).unwrap_or(0);
    let blocks = || {
        field("block_hashes", 1)?
            .as_array()?
            .iter()
            .map(|h| identity(h, group, key))
            .collect::<Option<Vec<u64>>>()
    };
    Some(match kind {
        "BlockStored" => KvEvent::Stored {
            blocks: blocks()?,
            block_tokens: i64::try_from(field("block_size", 4)?.as_int()?).ok()?,
            on_gpu: on_gpu(6),
        },
        "BlockRemoved" => KvEvent::Removed {
            blocks: blocks()?,
            on_gpu: on_gpu(2),
        },
        "AllBlocksCleared" => KvEvent::Cleared,
        _ => return None,
    })
}

fn identity(hash: &Value<'_>, group: i128, key: &impl BuildHasher) -> Option<u64> {
    let mut hasher = key.build_hasher();
    match hash {
        Value::Int(i) => hasher.write_i128(*i),
        Value::Bytes(bytes) => hasher.write(bytes),
        Value::Str(text) => hasher.write(text.as_bytes()),
        _ => return None,
    }
    hasher.write_i128(group);
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::RandomState;

    #[test]
    fn batches_of_todays_and_older_engines_are_read() {
        let key = RandomState::new();
        // python, vLLM 0.32.0: msgspec.msgpack.encode(KVEventBatch(ts=1.5, events=[BlockStored(block_hashes=[7, -8],
        //   parent_block_hash=None, token_ids=[1], block_size=16, lora_id=None, medium="GPU", lora_name=None),
        //   BlockRemoved(block_hashes=[7], medium="CPU"), AllBlocksCleared()], data_parallel_rank=2))
        let maps = b"\x93\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00\x93\x88\xa4type\xabBlockStored\xacblock_hashes\x92\x07\xf8\
            \xb1parent_block_hash\xc0\xa9token_ids\x91\x01\xaablock_size\x10\xa7lora_id\xc0\xa6medium\xa3GPU\
            \xa9lora_name\xc0\x83\xa4type\xacBlockRemoved\xacblock_hashes\x91\x07\xa6medium\xa3CPU\
            \x81\xa4type\xb0AllBlocksCleared\x02";
        let batch = read(maps, &key).expect("valid");
        assert_eq!((batch.rank, batch.unknown, batch.events.len()), (Some(2), 0, 3));
        let KvEvent::Stored {
            blocks,
            block_tokens,
            on_gpu,
        } = &batch.events[0]
        else {
            panic!("stored first")
        };
        assert_eq!((blocks.len(), *block_tokens, *on_gpu), (2, 16, true));
        assert_eq!(
            batch.events[1],
            KvEvent::Removed {
                blocks: vec![blocks[0]],
                on_gpu: false
            }
        );
        // the positional form of vLLM 0.9 to 0.1x
        let arrays =
            b"\x92\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00\x92\x96\xabBlockStored\x91\x07\xc0\x91\x01\x10\xc0\
            \x92\xacBlockRemoved\x91\x07";
        let old = read(arrays, &key).expect("valid");
        assert_eq!(
            old.events[1],
            KvEvent::Removed {
                blocks: vec![blocks[0]],
                on_gpu: true
            }
        );
    }

    #[test]
    fn unknown_events_are_counted_and_other_payloads_refused() {
        let key = RandomState::new();
        let batch = read(b"\x92\x01\x91\x81\xa4type\xa3New", &key).expect("valid");
        assert_eq!((batch.events.len(), batch.unknown), (0, 1));
        assert!(read(b"\x01", &key).is_err());
        assert!(read(b"garbage", &key).is_err());
    }
}
