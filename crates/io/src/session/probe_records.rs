//! What each record of the probe becomes in the database. The records are described where they are made:
//! `python/kvwise_probe/kvwise_probe/vllm_hooks.py`.

use kvwise_core::Result;
use rusqlite::{Transaction, params};
use serde_json::Value;

use super::store::sql;

/// The process whose file is read.
pub(super) struct Process {
    /// Row id.
    pub id: i64,
    /// Its monotonic clock when the file was begun, nanoseconds.
    pub mono_ns: i64,
    /// The wall clock then, nanoseconds since 1970.
    pub unix_ns: i64,
    /// Whether it said that it ended.
    pub ended: bool,
}

impl Process {
    /// Monotonic nanoseconds of the process to microseconds since 1970.
    pub(super) fn time_us(&self, value: Option<&Value>) -> Option<i64> {
        let mono = value?.as_i64()?;
        Some((self.unix_ns.checked_add(mono.checked_sub(self.mono_ns)?)?).div_euclid(1000))
    }
}

/// Stores one record; `false` if it is not one that this program knows.
pub(super) fn store(tx: &Transaction<'_>, process: &mut Process, record: &[Value]) -> Result<bool> {
    let Some(kind) = record.first().and_then(Value::as_str) else {
        return Ok(false);
    };
    let Some(t_us) = process.time_us(record.get(1)) else {
        return Ok(false);
    };
    let id = process.id;
    let int = |i: usize| record.get(i).and_then(Value::as_i64);
    let text = |i: usize| record.get(i).and_then(Value::as_str);
    let list = |i: usize| record.get(i).and_then(Value::as_array);
    let run = |sql_text: &str, values: &[&dyn rusqlite::ToSql]| -> Result<bool> {
        tx.prepare_cached(sql_text)
            .and_then(|mut s| s.execute(values))
            .map(|_| true)
            .map_err(sql)
    };
    match kind {
        "s" => {
            let Some(step) = int(2) else { return Ok(false) };
            run(
                "INSERT INTO step VALUES (?1, ?2, 0, 1, ?3, ?4, ?4, ?5, ?5, ?6, ?7, ?7, ?8, ?9, ?9, ?10)",
                &[
                    &id,
                    &t_us,
                    &step,
                    &int(3),
                    &int(4),
                    &int(5),
                    &int(6),
                    &int(7),
                    &int(8),
                    &int(9),
                ],
            )
        }
        "a" | "f" | "t" | "e" | "c" => {
            let kind = match kind {
                "a" => "alloc",
                "f" => "free",
                "t" => "hit",
                "e" => "evict",
                _ => "clear",
            };
            let blocks = match record.get(3) {
                None => "[]".to_owned(),
                Some(Value::String(_)) => match numbers(record.get(3), 8) {
                    Some(list) => format!("{list:?}").replace(' ', ""),
                    None => return Ok(false),
                },
                Some(list) => list.to_string(),
            };
            let Some(pool) = int(2) else { return Ok(false) };
            run(
                "INSERT INTO block_event VALUES (?, ?, ?, ?, ?)",
                &[&id, &pool, &t_us, &kind, &blocks],
            )
        }
        "x" => {
            let (Some(pool), Some(blocks)) = (int(2), numbers(record.get(3), 8)) else {
                return Ok(false);
            };
            let columns =
                [(4, 16), (5, 16), (6, 8), (7, 8)].map(|(i, digits)| numbers(record.get(i), digits));
            for (i, block) in blocks.iter().enumerate() {
                let at = |c: usize| columns[c].as_ref().and_then(|l| l.get(i)).copied();
                let (Some(life), Some(idle)) = (at(0), at(1)) else {
                    return Ok(false);
                };
                run(
                    "INSERT INTO eviction VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    &[
                        &id,
                        &pool,
                        &t_us,
                        &block,
                        &life,
                        &idle,
                        &at(2).unwrap_or(0),
                        &at(3).unwrap_or(0),
                    ],
                )?;
            }
            Ok(true)
        }
        "q" => {
            let (Some(request), Some(step), Some(prompt)) = (int(2), int(3), int(4)) else {
                return Ok(false);
            };
            run(
                "INSERT OR IGNORE INTO request (process_id, request, arrival_us, arrival_step, prompt_tokens, max_tokens, \
                 priority) VALUES (?, ?, ?, ?, ?, ?, ?)",
                &[
                    &id,
                    &request,
                    &t_us,
                    &step,
                    &prompt,
                    &int(5),
                    &int(6).unwrap_or(0),
                ],
            )
        }
        "r" => {
            let hashes = text(7).and_then(decode_hashes);
            run(
                "UPDATE request SET finish_us = ?3, output_tokens = ?4, preemptions = ?5, reason = ?6, \
                 hash_block_tokens = ?7, hash_ids = ?8 WHERE process_id = ?1 AND request = ?2",
                &[&id, &int(2), &t_us, &int(3), &int(4), &text(5), &int(6), &hashes],
            )
        }
        "h" => run(
            "INSERT INTO admission VALUES (?, ?, ?, ?, ?, ?, ?)",
            &[
                &id,
                &t_us,
                &int(3).unwrap_or(-1),
                &int(2).unwrap_or(-1),
                &int(4).unwrap_or(0),
                &int(5).unwrap_or(0),
                &int(6).unwrap_or(0),
            ],
        ),
        "v" => run(
            "INSERT INTO preemption VALUES (?, ?, ?, ?, ?)",
            &[
                &id,
                &t_us,
                &int(3).unwrap_or(-1),
                &int(2).unwrap_or(-1),
                &int(4).unwrap_or(-1),
            ],
        ),
        "p" => {
            let (Some(pool), Some(blocks)) = (int(2), int(3)) else {
                return Ok(false);
            };
            run(
                "INSERT OR REPLACE INTO pool VALUES (?, ?, ?, ?, ?, ?)",
                &[&id, &pool, &t_us, &blocks, &int(4).unwrap_or(0), &int(5)],
            )
        }
        "B" => {
            let Some(every) = int(2) else { return Ok(false) };
            run(
                "INSERT INTO sampling VALUES (?, ?, ?, ?, ?)",
                &[&id, &t_us, &every, &int(3).unwrap_or(-1), &int(4).unwrap_or(0)],
            )
        }
        "T" => totals(tx, id, t_us, record.get(2)),
        "g" => run(
            "INSERT INTO graph_capture VALUES (?, ?, ?, ?, ?, ?, ?)",
            &[
                &id,
                &t_us,
                &text(2).unwrap_or(""),
                &int(3),
                &int(4),
                &flag(record.get(5)),
                &flag(record.get(6)),
            ],
        ),
        "G" => {
            for row in list(2).into_iter().flatten() {
                let at = |i: usize| row.get(i).and_then(Value::as_i64);
                // NULL in a primary key would be another row each time: piecewise graphs have no request count
                run(
                    "INSERT OR REPLACE INTO graph_use VALUES (?, ?, ?, ?, ?, ?, ?)",
                    &[
                        &id,
                        &row.get(0).and_then(Value::as_str).unwrap_or(""),
                        &at(1).unwrap_or(-1),
                        &at(2).unwrap_or(-1),
                        &flag(row.get(3)).unwrap_or(false),
                        &flag(row.get(4)).unwrap_or(false),
                        &at(5).unwrap_or(0),
                    ],
                )?;
            }
            Ok(true)
        }
        "d" => run(
            "INSERT INTO graph_timeline VALUES (?, ?, ?, ?)",
            &[&id, &t_us, &text(2).unwrap_or(""), &int(3).unwrap_or(0)],
        ),
        "m" => run(
            "INSERT INTO memory VALUES (?, ?, ?, ?)",
            &[&id, &t_us, &text(2).unwrap_or(""), &int(3).unwrap_or(0)],
        ),
        "S" => run(
            "INSERT INTO settings VALUES (?, ?, ?)",
            &[
                &id,
                &t_us,
                &record.get(2).map(Value::to_string).unwrap_or_default(),
            ],
        ),
        "n" => run(
            "INSERT INTO note VALUES (?, ?, ?, ?)",
            &[&id, &t_us, &text(2).unwrap_or(""), &text(3).unwrap_or("")],
        ),
        "end" => {
            process.ended = true;
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn flag(value: Option<&Value>) -> Option<bool> {
    match value? {
        Value::Bool(b) => Some(*b),
        Value::Number(n) => Some(n.as_i64() != Some(0)),
        _ => None,
    }
}

fn totals(tx: &Transaction<'_>, id: i64, t_us: i64, values: Option<&Value>) -> Result<bool> {
    let Some(Value::Object(values)) = values else {
        return Ok(false);
    };
    let get = |key: &str| values.get(key).and_then(Value::as_i64).unwrap_or(0);
    tx.prepare_cached(
        "INSERT OR REPLACE INTO probe_total VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .and_then(|mut s| {
        s.execute(params![
            id,
            t_us,
            get("allocated_blocks"),
            get("freed_blocks"),
            get("hit_blocks"),
            get("evicted_blocks"),
            get("query_tokens"),
            get("hit_tokens"),
            get("resumed_query_tokens"),
            get("resumed_hit_tokens"),
            get("preemptions"),
            get("finished_requests"),
            get("steps"),
            get("lost_records"),
            get("errors"),
            get("hook_ns"),
            get("writer_ns"),
            get("step_ns")
        ])
    })
    .map(|_| true)
    .map_err(sql)
}

/// Numbers as a JSON list, or as hexadecimal text of so many digits each, lowest byte first.
fn numbers(value: Option<&Value>, digits: usize) -> Option<Vec<i64>> {
    match value? {
        Value::Array(list) => list.iter().map(Value::as_i64).collect(),
        Value::String(text) if text.len().is_multiple_of(digits) => text
            .as_bytes()
            .chunks_exact(digits)
            .map(|one| {
                let mut number = 0_u64;
                for byte in one.chunks_exact(2).rev() {
                    for digit in byte {
                        number = number << 4 | u64::from(char::from(*digit).to_digit(16)?);
                    }
                }
                i64::try_from(number).ok()
            })
            .collect(),
        _ => None,
    }
}

/// Base64 of six bytes for each block, as a JSON list of integers.
fn decode_hashes(text: &str) -> Option<String> {
    let bytes = base64(text)?;
    let ids: Vec<u64> = bytes
        .chunks_exact(6)
        .map(|c| c.iter().fold(0, |id, b| id << 8 | u64::from(*b)))
        .collect();
    serde_json::to_string(&ids).ok()
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| {
        Some(match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        })
    };
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    // six-byte hashes fill whole groups of four digits: there is no padding
    if !text.len().is_multiple_of(4) {
        return None;
    }
    for group in text.as_bytes().chunks_exact(4) {
        let mut bits = 0u32;
        for c in group {
            bits = bits << 6 | u32::from(digit(*c)?);
        }
        out.extend_from_slice(bits.to_be_bytes().get(1..)?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_come_back_as_the_integers_they_were() {
        // python: base64.b64encode(bytes([0,0,0,0,0,1]) + bytes([255]*6))
        assert_eq!(
            decode_hashes("AAAAAAAB////////").as_deref(),
            Some("[1,281474976710655]")
        );
        assert_eq!(decode_hashes(""), Some("[]".to_owned()));
        assert_eq!(decode_hashes("AA=="), None);
    }

    #[test]
    fn numbers_come_as_lists_or_as_hexadecimal_text() {
        let numbers = |text: &str| numbers(Some(&Value::from(text)), 8);
        assert_eq!(numbers("01000000ff000000"), Some(vec![1, 255]));
        assert_eq!(numbers(""), Some(Vec::new()));
        for wrong in ["0100000", "0100000g", "+1000000", "éé0000"] {
            assert_eq!(numbers(wrong), None, "{wrong}");
        }
        assert_eq!(
            super::numbers(Some(&Value::from("ffffffffffffffff")), 16),
            None,
            "no lifetime is that long"
        );
        assert_eq!(
            super::numbers(Some(&serde_json::json!([1, 2])), 8),
            Some(vec![1, 2])
        );
        assert_eq!(super::numbers(Some(&serde_json::json!([1, "a"])), 8), None);
    }
}
