//! What the header of a GGUF file says, however it was read.

use std::collections::BTreeMap;

use super::ggml::GgmlType;
use crate::arch::config::MAX_DIMENSION;
use crate::{Error, Result};

/// One value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Meta {
    /// An integer of any width.
    Int(i128),
    /// A float.
    Float(f64),
    /// A flag.
    Bool(bool),
    /// Text.
    Text(String),
    /// A list of integers or flags (as 0 and 1), short enough to be kept.
    Ints(Vec<i64>),
    /// A list of anything else, or too long to be kept: its length alone.
    Long(u64),
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Name, like `blk.0.attn_q.weight`.
    pub name: String,
    /// Dimensions, innermost first.
    pub shape: Vec<u64>,
    /// Element type.
    pub kind: GgmlType,
    /// Stored bytes.
    pub bytes: u64,
}

impl Tensor {
    /// Elements.
    ///
    /// # Errors
    /// If the product leaves 64 bits.
    pub fn elements(&self) -> Result<u64> {
        self.shape
            .iter()
            .try_fold(1_u64, |product, &n| product.checked_mul(n))
            .ok_or_else(|| Error::overflow(format_args!("the size of tensor {}", self.name)))
    }
}

/// The header of one file, or of all parts of a split one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Header {
    /// Version of the format.
    pub version: u32,
    /// Values by key.
    pub metadata: BTreeMap<String, Meta>,
    /// Tensors in the order of the file.
    pub tensors: Vec<Tensor>,
}

impl Header {
    /// `general.architecture`.
    ///
    /// # Errors
    /// If it is missing or not text.
    pub fn architecture(&self) -> Result<&str> {
        match self.metadata.get("general.architecture") {
            Some(Meta::Text(name)) => Ok(name),
            Some(_) => Err(Error::input("general.architecture is not text")),
            None => Err(Error::input("the metadata has no general.architecture")
                .hint("is this a model? adapters and vocabularies are GGUF files too")),
        }
    }

    fn full(&self, key: &str) -> Result<(String, Option<&Meta>)> {
        let name = format!("{}.{key}", self.architecture()?);
        let value = self.metadata.get(&name);
        Ok((name, value))
    }

    /// A size below the architecture's name, at most 2^26.
    ///
    /// # Errors
    /// If it is there but not a sensible size.
    pub fn size(&self, key: &str) -> Result<Option<u64>> {
        let (name, value) = self.full(key)?;
        match value {
            None => Ok(None),
            Some(Meta::Int(n)) => bounded(&name, *n).map(Some),
            Some(Meta::Ints(list)) if !list.is_empty() && list.iter().all(|n| *n == list[0]) => {
                bounded(&name, i128::from(list[0])).map(Some)
            }
            Some(other) => Err(Error::input(format!(
                "{name} is {}, expected an integer",
                describe(other)
            ))),
        }
    }

    /// A size that must be there.
    ///
    /// # Errors
    /// If it is missing or not a sensible size.
    pub fn required(&self, key: &str) -> Result<u64> {
        let (name, _) = self.full(key)?;
        self.size(key)?
            .ok_or_else(|| Error::input(format!("the metadata has no {name}")))
    }

    /// A size for each layer: one for all, or a list as long as there are layers.
    ///
    /// # Errors
    /// If the list has another length or a value is out of range.
    pub fn each(&self, key: &str, layers: usize) -> Result<Option<Vec<u64>>> {
        let (name, value) = self.full(key)?;
        match value {
            None => Ok(None),
            Some(Meta::Int(n)) => Ok(Some(vec![bounded(&name, *n)?; layers])),
            Some(Meta::Bool(flag)) => Ok(Some(vec![u64::from(*flag); layers])),
            Some(Meta::Ints(list)) if list.len() >= layers => list[..layers]
                .iter()
                .map(|&n| bounded(&name, i128::from(n)))
                .collect::<Result<Vec<_>>>()
                .map(Some),
            Some(other) => Err(Error::input(format!(
                "{name} is {}, expected an integer or {layers} of them",
                describe(other)
            ))),
        }
    }

    /// A list below the architecture's name, where it is one.
    ///
    /// # Errors
    /// Only if the architecture is missing.
    pub fn list(&self, key: &str) -> Result<Option<&[i64]>> {
        Ok(match self.full(key)?.1 {
            Some(Meta::Ints(list)) => Some(list),
            _ => None,
        })
    }

    /// Tokens in the vocabulary: the tokenizer's list, else `vocab_size`.
    ///
    /// # Errors
    /// If the key is there but not a size.
    pub fn vocabulary(&self) -> Result<u64> {
        match self.metadata.get("tokenizer.ggml.tokens") {
            Some(Meta::Long(n)) => bounded("tokenizer.ggml.tokens", i128::from(*n)),
            Some(Meta::Ints(list)) => Ok(list.len() as u64),
            _ => Ok(self.size("vocab_size")?.unwrap_or(0)),
        }
    }

    /// Bytes of all tensors.
    ///
    /// # Errors
    /// If the sum leaves 64 bits.
    pub fn tensor_bytes(&self) -> Result<u64> {
        self.tensors
            .iter()
            .try_fold(0_u64, |sum, t| sum.checked_add(t.bytes))
            .ok_or_else(|| Error::overflow("the size of all tensors"))
    }
}

fn bounded(name: &str, n: i128) -> Result<u64> {
    match u64::try_from(n) {
        Ok(n) if n <= MAX_DIMENSION => Ok(n),
        _ => Err(Error::input(format!(
            "{name} is {n}, expected 0 to {MAX_DIMENSION}"
        ))),
    }
}

fn describe(value: &Meta) -> String {
    match value {
        Meta::Int(n) => n.to_string(),
        Meta::Float(x) => x.to_string(),
        Meta::Bool(b) => b.to_string(),
        Meta::Text(_) => "text".to_owned(),
        Meta::Ints(list) => format!("a list of {}", list.len()),
        Meta::Long(n) => format!("a list of {n}"),
    }
}
