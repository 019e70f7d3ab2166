//! Amounts of cache as people give them.

use kvwise_core::{Error, Result};

/// An amount of cache in the unit that the user gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Room {
    /// Blocks.
    Blocks(u64),
    /// Tokens, rounded down to blocks.
    Tokens(u64),
    /// Bytes, rounded down to blocks; needs the bytes of a token.
    Bytes(u64),
}

impl Room {
    /// Reads `5000` (blocks), `80000tokens`, `40GiB`, `40GB`.
    ///
    /// # Errors
    /// If the text is not a positive whole number with one of these units.
    pub fn parse(text: &str) -> Result<Self> {
        let digits = text.len()
            - text
                .trim_start_matches(|c: char| c.is_ascii_digit() || c == '_' || c == '.')
                .len();
        let (number, unit) = text.split_at(digits);
        let number = number.replace('_', "");
        let wrong = || {
            Error::input(format!("\"{text}\" is not an amount of cache"))
                .hint("say 5000 (blocks), 80000tokens, 40GiB or 40GB")
        };
        let whole = || number.parse::<u64>().map_err(|_| wrong());
        let scale = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "blocks" | "block" => return Ok(Self::Blocks(whole()?)),
            "tokens" | "token" | "tok" => return Ok(Self::Tokens(whole()?)),
            "mib" => 1u64 << 20,
            "gib" => 1 << 30,
            "tib" => 1 << 40,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(wrong()),
        };
        let (int, fraction) = number.split_once('.').unwrap_or((&number, ""));
        let int: u64 = int.parse().map_err(|_| wrong())?;
        if fraction.len() > 6 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let millionths: u64 = format!("{fraction:0<6}").parse().map_err(|_| wrong())?;
        // at most 10^6 * 2^40, which fits
        let part = millionths * scale / 1_000_000;
        int.checked_mul(scale)
            .and_then(|b| b.checked_add(part))
            .map(Self::Bytes)
            .ok_or_else(|| Error::overflow(text))
    }

    pub(super) fn blocks(self, block_tokens: u32, kv_bytes_per_token: Option<u64>) -> Result<u64> {
        let block = u64::from(block_tokens);
        match self {
            Self::Blocks(blocks) => Ok(blocks),
            Self::Tokens(tokens) => Ok(tokens / block),
            Self::Bytes(bytes) => {
                let per_token = kv_bytes_per_token.filter(|&b| b > 0).ok_or_else(|| {
                    Error::input("a capacity is given in bytes, but the bytes of a token are not known")
                        .hint("add --kv-bytes-per-token N (kv_cache.bytes_per_token of `kvwise plan MODEL --format json`)")
                })?;
                let per_block = per_token
                    .checked_mul(block)
                    .ok_or_else(|| Error::overflow("the bytes of a block"))?;
                Ok(bytes / per_block)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_read_in_blocks_tokens_and_bytes() {
        for (text, room) in [
            ("5000", Room::Blocks(5000)),
            ("80_000tokens", Room::Tokens(80_000)),
            ("1.5GiB", Room::Bytes(3 << 29)),
            ("2 GB", Room::Bytes(2_000_000_000)),
        ] {
            assert_eq!(Room::parse(text).unwrap(), room, "{text}");
        }
        for text in [
            "",
            "GiB",
            "-5",
            "1.5",
            "5 apples",
            "99999999999999999999",
            "99999999999GiB",
            "1.2.3GiB",
        ] {
            assert!(Room::parse(text).is_err(), "{text}");
        }
        assert!(Room::Bytes(1 << 30).blocks(16, None).is_err());
        assert_eq!(Room::Bytes(1 << 30).blocks(16, Some(1024)).unwrap(), 65_536);
    }
}
