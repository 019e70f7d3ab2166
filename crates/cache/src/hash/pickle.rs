//! Python's pickle, protocol 5, of exactly what vLLM hashes: a string, and (bytes, tuple of ints, tuple or None).
//!
//! Source of the format: `CPython` 3.11, `Modules/_pickle.c` and `Lib/pickletools.py`.

use super::ExtraKey;

const FRAME_TARGET: usize = 64 * 1024;
const FRAME_MIN: usize = 4;

/// A pickler for one value: opcodes in frames, and the memo that Python keeps of every string, bytes and tuple.
struct Pickler {
    out: Vec<u8>,
    frame: Vec<u8>,
    memoized: u32,
    /// Memo index of tags that were written: Python's constants are one object each.
    tags: Vec<(&'static str, u32)>,
}

/// The pickle of a string.
pub(super) fn string(text: &str) -> Vec<u8> {
    let mut p = Pickler::new();
    p.text(text);
    p.finish()
}

/// The pickle of a block: parent's digest, tokens, extra keys.
pub(super) fn block(parent: &[u8], tokens: &[u32], extra: &[ExtraKey<'_>]) -> Vec<u8> {
    let mut p = Pickler::new();
    p.frame.reserve(64 + 5 * tokens.len());
    p.bytes(parent);
    p.tuple(tokens.len(), |p, i| p.int(i64::from(tokens[i])));
    if extra.is_empty() {
        p.frame.push(b'N');
        p.boundary();
    } else {
        p.tuple(extra.len(), |p, i| p.extra_key(&extra[i]));
    }
    p.end_tuple(3);
    p.finish()
}

impl Pickler {
    fn new() -> Self {
        Self {
            out: vec![0x80, 5],
            frame: Vec::new(),
            memoized: 0,
            tags: Vec::new(),
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.frame.push(b'.');
        self.commit();
        self.out
    }

    /// Ends a frame that is long enough; Python checks this after every value.
    fn boundary(&mut self) {
        if self.frame.len() >= FRAME_TARGET {
            self.commit();
        }
    }

    fn commit(&mut self) {
        if self.frame.len() >= FRAME_MIN {
            self.out.push(0x95);
            self.out.extend((self.frame.len() as u64).to_le_bytes());
        }
        self.out.append(&mut self.frame);
    }

    fn memoize(&mut self) -> u32 {
        self.frame.push(0x94);
        self.memoized += 1;
        self.memoized - 1
    }

    fn int(&mut self, value: i64) {
        if let Ok(byte) = u8::try_from(value) {
            self.frame.extend([b'K', byte]);
        } else if let Ok(short) = u16::try_from(value) {
            self.frame.push(b'M');
            self.frame.extend(short.to_le_bytes());
        } else if let Ok(int) = i32::try_from(value) {
            self.frame.push(b'J');
            self.frame.extend(int.to_le_bytes());
        } else {
            // Two's complement, as few bytes as keep the sign.
            let bytes = value.to_le_bytes();
            let mut len = 8;
            while len > 1 && {
                let (last, before) = (bytes[len - 1], bytes[len - 2]);
                (last == 0 && before < 0x80) || (last == 0xff && before >= 0x80)
            } {
                len -= 1;
            }
            self.frame.extend([0x8a, len as u8]);
            self.frame.extend(&bytes[..len]);
        }
        self.boundary();
    }

    /// Opcode and length of a counted value; long ones stand outside of frames.
    fn counted(&mut self, short: u8, medium: u8, long: u8, data: &[u8]) {
        let mut header = Vec::with_capacity(9);
        if let Ok(len) = u8::try_from(data.len()) {
            header.extend([short, len]);
        } else if let Ok(len) = u32::try_from(data.len()) {
            header.push(medium);
            header.extend(len.to_le_bytes());
        } else {
            header.push(long);
            header.extend((data.len() as u64).to_le_bytes());
        }
        if data.len() < FRAME_TARGET {
            self.frame.extend(header);
            self.frame.extend(data);
        } else {
            self.commit();
            self.out.extend(header);
            self.out.extend(data);
        }
    }

    fn text(&mut self, text: &str) -> u32 {
        self.counted(0x8c, b'X', 0x8d, text.as_bytes());
        let index = self.memoize();
        self.boundary();
        index
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.counted(b'C', b'B', 0x8e, bytes);
        self.memoize();
        self.boundary();
    }

    /// A constant: written once, then referred to.
    fn tag(&mut self, tag: &'static str) {
        if let Some(&(_, index)) = self.tags.iter().find(|(t, _)| *t == tag) {
            if let Ok(byte) = u8::try_from(index) {
                self.frame.extend([b'h', byte]);
            } else {
                self.frame.push(b'j');
                self.frame.extend(index.to_le_bytes());
            }
            self.boundary();
            return;
        }
        let index = self.text(tag);
        self.tags.push((tag, index));
    }

    fn tuple(&mut self, len: usize, mut item: impl FnMut(&mut Self, usize)) {
        if len == 0 {
            self.frame.push(b')');
            self.boundary();
            return;
        }
        if len > 3 {
            self.frame.push(b'(');
        }
        for i in 0..len {
            item(self, i);
        }
        self.end_tuple(len);
    }

    fn end_tuple(&mut self, len: usize) {
        self.frame.push(match len {
            1 => 0x85,
            2 => 0x86,
            3 => 0x87,
            _ => b't',
        });
        self.memoize();
        self.boundary();
    }

    fn extra_key(&mut self, key: &ExtraKey<'_>) {
        match *key {
            ExtraKey::Lora { name, path } => {
                self.tag("lora");
                self.text(name);
                self.text(path);
                self.end_tuple(3);
            }
            ExtraKey::Multimodal { identifier, offset } => {
                self.tag("mm");
                self.text(identifier);
                self.int(offset);
                self.end_tuple(3);
            }
            ExtraKey::CacheSalt(salt) => {
                self.tag("cache_salt");
                self.text(salt);
                self.end_tuple(2);
            }
            ExtraKey::PromptEmbeds(digest) => {
                self.tag("prompt_embeds");
                self.bytes(digest);
                self.end_tuple(2);
            }
        }
    }
}
