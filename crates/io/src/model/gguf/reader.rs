//! One file's header, read value by value under caps: no length of the file is believed before it is bounded.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use kvwise_core::engine::llamacpp::{GgmlType, Header, Meta, Tensor};
use kvwise_core::{Error, Result};

/// Largest header that is read; the largest vocabularies take some ten MiB.
pub const MAX_HEADER_BYTES: u64 = 512 << 20;
/// Most metadata values.
const MAX_VALUES: u64 = 1 << 16;
/// Most tensors; the largest published models have some thousands a file.
const MAX_TENSORS: u64 = 1 << 20;
/// Longest key or tensor name.
const MAX_NAME_BYTES: u64 = 1 << 10;
/// Longest text value that is kept; longer ones (chat templates, licences) are passed over.
const MAX_KEPT_TEXT: u64 = 1 << 12;
/// Longest list of integers that is kept.
const MAX_KEPT_LIST: u64 = 1 << 12;
/// Dimensions of a tensor (`GGML_MAX_DIMS`).
const MAX_DIMENSIONS: u32 = 4;

/// Reads a header from `source`, the beginning of a file of `file_bytes`.
///
/// # Errors
/// If it is no GGUF file, is cut off, or claims what the format does not allow.
pub fn read_header(source: &mut impl Read, file_bytes: u64) -> Result<Header> {
    let mut r = Reader {
        source,
        read: 0,
        limit: file_bytes.min(MAX_HEADER_BYTES),
        file_bytes,
        big_endian: false,
        short_lengths: false,
    };
    let magic: [u8; 4] = r.bytes("the magic")?;
    if &magic != b"GGUF" {
        return Err(Error::input("not a GGUF file: it does not begin with GGUF"));
    }
    let version = r.u32("the version")?;
    // A version in the other byte order has its value in the upper half.
    let version = if version.trailing_zeros() >= 16 {
        r.big_endian = true;
        version.swap_bytes()
    } else {
        version
    };
    if !(1..=3).contains(&version) {
        return Err(Error::unsupported(format!(
            "GGUF version {version} is not read, only 1 to 3"
        )));
    }
    r.short_lengths = version == 1;
    let tensors = r.length("the number of tensors", MAX_TENSORS)?;
    let values = r.length("the number of metadata values", MAX_VALUES)?;
    let mut metadata = BTreeMap::new();
    for i in 0..values {
        let key = r.name(&format!("key {i} of the metadata"))?;
        let kind = r.u32(&key)?;
        let value = r.value(&key, kind)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(Error::input(format!("the metadata has {key} twice")));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Meta::Int(n)) => u64::try_from(*n)
            .ok()
            .filter(|n| n.is_power_of_two() && *n <= 1 << 20)
            .ok_or_else(|| Error::input(format!("general.alignment is {n}, expected a power of two")))?,
        Some(_) => return Err(Error::input("general.alignment is not an integer")),
    };
    let mut infos: Vec<(Tensor, u64)> = Vec::new();
    let mut names = HashSet::new();
    for i in 0..tensors {
        let (tensor, offset) = r.tensor(i)?;
        if !names.insert(tensor.name.clone()) {
            return Err(Error::input(format!("the file has tensor {} twice", tensor.name)));
        }
        if !offset.is_multiple_of(alignment) {
            return Err(Error::input(format!(
                "tensor {} begins at {offset}, which is not a multiple of {alignment}",
                tensor.name
            )));
        }
        infos.push((tensor, offset));
    }
    let data_at = r
        .read
        .checked_next_multiple_of(alignment)
        .ok_or_else(|| Error::overflow("the size of the header"))?;
    let room = file_bytes.saturating_sub(data_at);
    for (tensor, offset) in &infos {
        let end = offset
            .checked_add(tensor.bytes)
            .ok_or_else(|| Error::overflow(format_args!("the end of tensor {}", tensor.name)))?;
        if end > room {
            return Err(Error::input(format!(
                "the GGUF file is cut off: tensor {} ends at byte {end} of the data, which has {room}",
                tensor.name
            ))
            .hint("was the download complete?"));
        }
    }
    Ok(Header {
        version,
        metadata,
        tensors: infos.into_iter().map(|(tensor, _)| tensor).collect(),
    })
}

struct Reader<'a, R> {
    source: &'a mut R,
    read: u64,
    limit: u64,
    file_bytes: u64,
    big_endian: bool,
    short_lengths: bool,
}

impl<R: Read> Reader<'_, R> {
    fn take(&mut self, what: &str, n: u64) -> Result<()> {
        self.read = self
            .read
            .checked_add(n)
            .ok_or_else(|| Error::overflow(format_args!("the size of {what}")))?;
        if self.read > self.file_bytes {
            return Err(Error::input(format!(
                "the GGUF file is cut off in the header, at {what}: it has {} bytes, {} are needed",
                self.file_bytes, self.read
            ))
            .hint("was the download complete?"));
        }
        if self.read > self.limit {
            return Err(Error::input(format!(
                "the header is longer than the {} MiB that are read, at {what}",
                MAX_HEADER_BYTES >> 20
            )));
        }
        Ok(())
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        self.take(what, N as u64)?;
        let mut out = [0; N];
        self.fill(what, &mut out)?;
        Ok(out)
    }

    fn fill(&mut self, what: &str, out: &mut [u8]) -> Result<()> {
        self.source
            .read_exact(out)
            .map_err(|e| Error::io(format!("cannot read {what}: {e}")))
    }

    fn skip(&mut self, what: &str, n: u64) -> Result<()> {
        self.take(what, n)?;
        let copied = std::io::copy(&mut self.source.by_ref().take(n), &mut std::io::sink())
            .map_err(|e| Error::io(format!("cannot read {what}: {e}")))?;
        if copied == n {
            Ok(())
        } else {
            Err(Error::io(format!("cannot read {what}: the file ended early")))
        }
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        let b = self.bytes(what)?;
        Ok(if self.big_endian {
            u32::from_be_bytes(b)
        } else {
            u32::from_le_bytes(b)
        })
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        let b = self.bytes(what)?;
        Ok(if self.big_endian {
            u64::from_be_bytes(b)
        } else {
            u64::from_le_bytes(b)
        })
    }

    /// A count or length, 32 bits wide in version 1.
    fn length(&mut self, what: &str, most: u64) -> Result<u64> {
        let n = if self.short_lengths {
            u64::from(self.u32(what)?)
        } else {
            self.u64(what)?
        };
        if n > most {
            return Err(Error::input(format!(
                "{what} is {n}, more than the {most} that are read"
            )));
        }
        Ok(n)
    }

    fn text(&mut self, what: &str, n: u64) -> Result<String> {
        self.take(what, n)?;
        let mut out = vec![0; usize::try_from(n).map_err(|_| Error::overflow(what))?];
        self.fill(what, &mut out)?;
        String::from_utf8(out).map_err(|_| Error::input(format!("{what} is not UTF-8")))
    }

    fn name(&mut self, what: &str) -> Result<String> {
        let n = self.length(&format!("the length of {what}"), MAX_NAME_BYTES)?;
        let name = self.text(what, n)?;
        if name.is_empty() {
            return Err(Error::input(format!("{what} is empty")));
        }
        Ok(name)
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Meta> {
        match kind {
            8 => {
                let n = self.length(&format!("the length of {key}"), MAX_HEADER_BYTES)?;
                if n > MAX_KEPT_TEXT {
                    self.skip(key, n)?;
                    return Ok(Meta::Long(n));
                }
                Ok(Meta::Text(self.text(key, n)?))
            }
            9 => self.list(key),
            _ => self.scalar(key, kind),
        }
    }

    fn scalar(&mut self, key: &str, kind: u32) -> Result<Meta> {
        let be = self.big_endian;
        Ok(match kind {
            0 => Meta::Int(i128::from(self.bytes::<1>(key)?[0])),
            1 => Meta::Int(i128::from(i8::from_ne_bytes(self.bytes(key)?))),
            2 => {
                let b = self.bytes(key)?;
                Meta::Int(i128::from(if be {
                    u16::from_be_bytes(b)
                } else {
                    u16::from_le_bytes(b)
                }))
            }
            3 => {
                let b = self.bytes(key)?;
                Meta::Int(i128::from(if be {
                    i16::from_be_bytes(b)
                } else {
                    i16::from_le_bytes(b)
                }))
            }
            4 => Meta::Int(i128::from(self.u32(key)?)),
            5 => Meta::Int(i128::from(self.u32(key)?.cast_signed())),
            6 => Meta::Float(f64::from(f32::from_bits(self.u32(key)?))),
            7 => match self.bytes::<1>(key)?[0] {
                0 => Meta::Bool(false),
                1 => Meta::Bool(true),
                other => {
                    return Err(Error::input(format!(
                        "{key} is a flag of value {other}, expected 0 or 1"
                    )));
                }
            },
            10 => Meta::Int(i128::from(self.u64(key)?)),
            11 => Meta::Int(i128::from(self.u64(key)?.cast_signed())),
            12 => Meta::Float(f64::from_bits(self.u64(key)?)),
            other => {
                return Err(Error::input(format!(
                    "{key} is of type {other}, which GGUF does not have"
                )));
            }
        })
    }

    fn list(&mut self, key: &str) -> Result<Meta> {
        let kind = self.u32(key)?;
        let n = self.length(&format!("the length of {key}"), MAX_HEADER_BYTES)?;
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..n {
                    let bytes = self.length(&format!("the length of a text of {key}"), MAX_HEADER_BYTES)?;
                    self.skip(key, bytes)?;
                }
                return Ok(Meta::Long(n));
            }
            9 => {
                return Err(Error::unsupported(format!(
                    "{key} is a list of lists, which is not read"
                )));
            }
            other => {
                return Err(Error::input(format!(
                    "{key} is a list of type {other}, which GGUF does not have"
                )));
            }
        };
        let integers = !matches!(kind, 6 | 12);
        if n > MAX_KEPT_LIST || !integers {
            // At most the header's cap times 8, far inside of 64 bits.
            self.skip(key, n * width)?;
            return Ok(Meta::Long(n));
        }
        let mut out = Vec::new();
        for _ in 0..n {
            out.push(match self.scalar(key, kind)? {
                Meta::Int(n) => i64::try_from(n)
                    .map_err(|_| Error::input(format!("{key} has the value {n}, which is too large")))?,
                Meta::Bool(flag) => i64::from(flag),
                _ => 0,
            });
        }
        Ok(Meta::Ints(out))
    }

    fn tensor(&mut self, i: u64) -> Result<(Tensor, u64)> {
        let name = self.name(&format!("the name of tensor {i}"))?;
        let dimensions = self.u32(&name)?;
        if dimensions == 0 || dimensions > MAX_DIMENSIONS {
            return Err(Error::input(format!(
                "tensor {name} has {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}"
            )));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(if self.short_lengths {
                u64::from(self.u32(&name)?)
            } else {
                self.u64(&name)?
            });
        }
        let id = self.u32(&name)?;
        let offset = self.u64(&name)?;
        let kind = GgmlType::by_id(id).ok_or_else(|| {
            Error::unsupported(format!(
                "tensor {name} is of ggml type {id}, which is not known here"
            ))
        })?;
        let rows = shape[1..]
            .iter()
            .try_fold(1_u64, |product, &n| product.checked_mul(n));
        if shape[0] % kind.block != 0 {
            return Err(Error::input(format!(
                "tensor {name} has rows of {} elements, which are no whole blocks of {} ({})",
                shape[0], kind.block, kind.name
            )));
        }
        let bytes = kind
            .row_bytes(shape[0])
            .zip(rows)
            .and_then(|(row, rows)| row.checked_mul(rows))
            .ok_or_else(|| Error::overflow(format_args!("the size of tensor {name}")))?;
        Ok((
            Tensor {
                name,
                shape,
                kind,
                bytes,
            },
            offset,
        ))
    }
}
