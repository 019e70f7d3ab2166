//! Canonical CBOR (RFC 8949) of what vLLM hashes.

use super::ExtraKey;

/// The encoding of a string.
pub(super) fn string(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_text(&mut out, text);
    out
}

/// The encoding of a block: an array of parent's digest, array of tokens, array of extra keys or null.
pub(super) fn block(parent: &[u8], tokens: &[u32], extra: &[ExtraKey<'_>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + 5 * tokens.len());
    head(&mut out, 4, 3);
    put_bytes(&mut out, parent);
    head(&mut out, 4, tokens.len() as u64);
    for &token in tokens {
        head(&mut out, 0, u64::from(token));
    }
    if extra.is_empty() {
        out.push(0xf6);
        return out;
    }
    head(&mut out, 4, extra.len() as u64);
    for key in extra {
        match *key {
            ExtraKey::Lora { name, path } => {
                head(&mut out, 4, 3);
                put_text(&mut out, "lora");
                put_text(&mut out, name);
                put_text(&mut out, path);
            }
            ExtraKey::Multimodal { identifier, offset } => {
                head(&mut out, 4, 3);
                put_text(&mut out, "mm");
                put_text(&mut out, identifier);
                put_int(&mut out, offset);
            }
            ExtraKey::CacheSalt(salt) => {
                head(&mut out, 4, 2);
                put_text(&mut out, "cache_salt");
                put_text(&mut out, salt);
            }
            ExtraKey::PromptEmbeds(digest) => {
                head(&mut out, 4, 2);
                put_text(&mut out, "prompt_embeds");
                put_bytes(&mut out, digest);
            }
        }
    }
    out
}

/// Major type and argument in the shortest form.
fn head(out: &mut Vec<u8>, major: u8, argument: u64) {
    let major = major << 5;
    let bytes = argument.to_be_bytes();
    match argument {
        0..=23 => out.push(major | bytes[7]),
        24..=0xff => out.extend([major | 0x18, bytes[7]]),
        0x100..=0xffff => {
            out.push(major | 0x19);
            out.extend(&bytes[6..]);
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major | 0x1a);
            out.extend(&bytes[4..]);
        }
        _ => {
            out.push(major | 0x1b);
            out.extend(bytes);
        }
    }
}

fn put_int(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        head(out, 1, !value as u64);
    } else {
        head(out, 0, value as u64);
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    head(out, 2, bytes.len() as u64);
    out.extend(bytes);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    head(out, 3, text.len() as u64);
    out.extend(text.as_bytes());
}
