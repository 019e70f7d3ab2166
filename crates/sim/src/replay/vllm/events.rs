//! The event lines, as the reference script prints them.

use std::fmt::Write as _;

use crate::sched::vllm::{Admission, BlockTables, Rejection, SchedulerEvents};
use crate::trace::Trace;

use super::Summary;

/// Turns events into JSON lines; the caller empties [`EventLines::text`] when it gets long.
pub struct EventLines<'a> {
    trace: &'a Trace,
    /// The lines so far.
    pub text: String,
}

impl<'a> EventLines<'a> {
    /// No lines yet.
    pub fn new(trace: &'a Trace) -> Self {
        Self {
            trace,
            text: String::new(),
        }
    }

    fn id(&mut self, tag: u32) {
        let id = self.trace.id(tag as usize);
        push_json_string(&mut self.text, &id);
    }

    fn blocks(&mut self, blocks: &BlockTables<'_>) {
        self.text.push('[');
        for g in 0..blocks.num_groups() {
            if g > 0 {
                self.text.push_str(", ");
            }
            self.text.push('[');
            for (i, &block) in blocks.group(g).iter().enumerate() {
                if i > 0 {
                    self.text.push_str(", ");
                }
                push_number(&mut self.text, block);
            }
            self.text.push(']');
        }
        self.text.push(']');
    }

    /// The last line.
    pub fn summary(&mut self, s: &Summary) {
        let _ = write!(
            self.text,
            "{{\"ev\": \"summary\", \"evicted_blocks\": {}, \"allocated_blocks\": {}, \"preemptions\": {}, \
             \"hit_tokens\": {}, \"query_tokens\": {}, \"requests\": {}, \"steps\": {}, \"prompt_tokens\": {}, \
             \"free_at_end\": {}, \"hit_rate\": {}",
            s.evicted_blocks,
            s.allocated_blocks,
            s.preemptions,
            s.hit_tokens,
            s.query_tokens,
            s.requests,
            s.steps,
            s.prompt_tokens,
            s.free_at_end,
            python_float(s.hit_rate),
        );
        if s.rejected > 0 {
            let _ = write!(self.text, ", \"rejected\": {}", s.rejected);
        }
        self.text.push_str("}\n");
    }
}

impl SchedulerEvents for EventLines<'_> {
    const EVICTIONS: bool = true;

    fn evicted(&mut self, step: u64, block: u32) {
        let _ = writeln!(
            self.text,
            "{{\"ev\": \"evict\", \"step\": {step}, \"block\": {block}}}"
        );
    }

    fn admitted(&mut self, step: u64, a: &Admission, blocks: &BlockTables<'_>) {
        let _ = write!(self.text, "{{\"ev\": \"admit\", \"step\": {step}, \"id\": ");
        self.id(a.tag);
        let _ = write!(
            self.text,
            ", \"hit_tokens\": {}, \"tokens\": {}, \"resumed\": {}, \"blocks\": ",
            a.hit_tokens, a.num_tokens, a.resumed
        );
        self.blocks(blocks);
        self.text.push_str("}\n");
    }

    fn preempted(&mut self, step: u64, tag: u32, computed: u32, blocks: &BlockTables<'_>) {
        let _ = write!(self.text, "{{\"ev\": \"preempt\", \"step\": {step}, \"id\": ");
        self.id(tag);
        let _ = write!(self.text, ", \"computed\": {computed}, \"blocks\": [");
        for g in 0..blocks.num_groups() {
            if g > 0 {
                self.text.push_str(", ");
            }
            let _ = write!(self.text, "{}", blocks.group(g).len());
        }
        self.text.push_str("]}\n");
    }

    fn finished(&mut self, step: u64, tag: u32, generated: u32, preemptions: u32, blocks: &BlockTables<'_>) {
        let _ = write!(self.text, "{{\"ev\": \"finish\", \"step\": {step}, \"id\": ");
        self.id(tag);
        let _ = write!(
            self.text,
            ", \"out\": {generated}, \"preemptions\": {preemptions}, \"blocks\": "
        );
        self.blocks(blocks);
        self.text.push_str("}\n");
    }

    fn rejected(&mut self, step: u64, tag: u32, reason: Rejection) {
        let _ = write!(self.text, "{{\"ev\": \"rejected\", \"step\": {step}, \"id\": ");
        self.id(tag);
        let _ = writeln!(self.text, ", \"reason\": \"{}\"}}", reason.name());
    }
}

/// Appends a decimal number; faster than the formatting machinery.
pub(in crate::replay) fn push_number(text: &mut String, number: u32) {
    let mut digits = [0_u8; 10];
    let mut at = digits.len();
    let mut n = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    text.extend(digits[at..].iter().map(|&d| char::from(d)));
}

/// Appends a string as Python's `json.dumps` writes it: everything beyond ASCII escaped.
pub fn push_json_string(text: &mut String, value: &str) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            ' '..='~' => text.push(c),
            _ => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
        }
    }
    text.push('"');
}

/// A number as Python's `repr` writes it, for the magnitudes of rates.
pub(in crate::replay) fn python_float(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-4 {
        let text = format!("{value:e}");
        let (mantissa, exponent) = text.split_once("e-").unwrap_or((&text, "0"));
        return format!("{mantissa}e-{exponent:0>2}");
    }
    format!("{value:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_written_as_python_writes_them() {
        for (value, text) in [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (0.384_545, "0.384545"),
            (0.000_1, "0.0001"),
            (0.000_05, "5e-05"),
            (0.000_012, "1.2e-05"),
            (0.000_001, "1e-06"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }

    #[test]
    fn ids_are_escaped_as_python_escapes_them() {
        let mut text = String::new();
        push_json_string(&mut text, "a\"\\\n\u{1}é😀\u{7f}");
        assert_eq!(text, "\"a\\\"\\\\\\n\\u0001\\u00e9\\ud83d\\ude00\\u007f\"");
    }
}
