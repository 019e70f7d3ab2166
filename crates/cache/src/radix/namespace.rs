//! Namespaces: equal tokens under different keys never share a node.

use std::collections::HashMap;

use crate::error::{Error, Result};

/// A number standing for one (extra key, cache salt) pair; the tree only compares it.
///
/// Embedders that have few namespaces number them themselves; [`Namespaces`] does it for strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Namespace(pub u32);

impl Namespace {
    /// The namespace of requests without extra key and salt.
    pub const DEFAULT: Self = Self(0);
}

/// Numbers (extra key, cache salt) pairs in the order of first use, as SGLang's `RadixKey` tells them apart:
/// no extra key and an empty one differ, no salt and an empty one do not
/// (SGLang 0.5.23, `sglang/srt/mem_cache/radix_cache.py`).
///
/// ```
/// use kvwise_cache::radix::{Namespace, Namespaces};
/// let mut names = Namespaces::default();
/// assert_eq!(names.intern(None, None)?, Namespace::DEFAULT);
/// let adapter = names.intern(Some("lora-7"), None)?;
/// assert_ne!(adapter, Namespace::DEFAULT);
/// assert_eq!(names.intern(Some("lora-7"), Some(""))?, adapter);
/// # Ok::<(), kvwise_cache::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Namespaces {
    known: HashMap<Pair, Namespace>,
}

/// Extra key and salt.
type Pair = (Option<Box<str>>, Option<Box<str>>);

impl Namespaces {
    /// The namespace of this pair, numbered on first use.
    ///
    /// # Errors
    /// If 2^32 - 1 pairs are in use.
    pub fn intern(&mut self, extra_key: Option<&str>, cache_salt: Option<&str>) -> Result<Namespace> {
        let cache_salt = cache_salt.filter(|salt| !salt.is_empty());
        if extra_key.is_none() && cache_salt.is_none() {
            return Ok(Namespace::DEFAULT);
        }
        let pair = (extra_key.map(Box::from), cache_salt.map(Box::from));
        if let Some(&known) = self.known.get(&pair) {
            return Ok(known);
        }
        let number = u32::try_from(self.known.len() + 1)
            .map_err(|_| Error::overflow("more than 2^32 - 1 cache namespaces"))?;
        self.known.insert(pair, Namespace(number));
        Ok(Namespace(number))
    }
}
