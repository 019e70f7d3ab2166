//! What besides tokens distinguishes keys and values.

/// One distinguishing fact of a block, in the order in which vLLM lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtraKey<'a> {
    /// The LoRA adapter; in every block.
    Lora {
        /// Its name.
        name: &'a str,
        /// Its path, so that a name pointed at another adapter does not reuse old blocks.
        path: &'a str,
    },
    /// A multimodal item that overlaps the block.
    Multimodal {
        /// Its content's identifier.
        identifier: &'a str,
        /// Its first token relative to the block's; negative if it began earlier.
        offset: i64,
    },
    /// A salt; only in the block that starts the sequence, the chain carries it on.
    CacheSalt(&'a str),
    /// SHA-256 of the block's prompt embeddings.
    PromptEmbeds(&'a [u8]),
}

/// A LoRA adapter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lora {
    /// Its name.
    pub name: String,
    /// Its path.
    pub path: String,
}

/// A multimodal item in a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MultimodalItem {
    /// Identifies its content.
    pub identifier: String,
    /// Its first token's position.
    pub offset: usize,
    /// Its tokens.
    pub length: usize,
}

/// Everything but tokens that distinguishes a request's blocks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestKeys {
    /// The adapter, if any.
    pub lora: Option<Lora>,
    /// Multimodal items by position; they do not overlap.
    pub multimodal: Vec<MultimodalItem>,
    /// The salt; an empty one counts as none.
    pub cache_salt: Option<String>,
}

impl RequestKeys {
    /// Replaces `out` by the keys of the block of tokens `start..end`.
    pub fn of_block<'a>(&'a self, start: usize, end: usize, out: &mut Vec<ExtraKey<'a>>) {
        out.clear();
        if let Some(lora) = &self.lora {
            out.push(ExtraKey::Lora {
                name: &lora.name,
                path: &lora.path,
            });
        }
        let first = self.multimodal.partition_point(|m| m.offset + m.length <= start);
        for item in self.multimodal[first..].iter().take_while(|m| m.offset < end) {
            out.push(ExtraKey::Multimodal {
                identifier: &item.identifier,
                offset: signed(item.offset) - signed(start),
            });
        }
        if start == 0
            && let Some(salt) = self.cache_salt.as_deref().filter(|s| !s.is_empty())
        {
            out.push(ExtraKey::CacheSalt(salt));
        }
    }
}

fn signed(position: usize) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}
