//! Lines as they were printed: without colours, envelopes and progress bars, with the worker that wrote them.

use std::io::{self, BufRead};

use super::traffic::is_traffic;

/// Longest line that is read whole; of a longer one the rest is skipped. Engine configurations take some 20 kB.
pub const MAX_LINE_BYTES: usize = 256 << 10;

/// One printed line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Number of the line in the file, from 1.
    pub number: u64,
    /// Container in front of it (`vllm-1  | ` of docker compose, `[pod/vllm-0/server] ` of kubectl), empty if none is named.
    pub source: String,
    /// Process that printed it (`Worker_TP0`, `EngineCore_DP1`, `TP0`), empty if the line does not say.
    pub worker: String,
    /// The text without colours and envelopes; time stamps and source locations are still there.
    pub text: String,
}

/// Reads lines within limits; a carriage return ends a line too (progress bars).
pub struct Lines<'a> {
    source: &'a mut dyn BufRead,
    left: u64,
    number: u64,
    shortened: u64,
    cut: bool,
}

impl<'a> Lines<'a> {
    /// Reads at most `max_bytes` from `source`.
    pub fn new(source: &'a mut dyn BufRead, max_bytes: u64) -> Self {
        Self {
            source,
            left: max_bytes,
            number: 0,
            shortened: 0,
            cut: false,
        }
    }

    /// Lines read so far.
    pub fn count(&self) -> u64 {
        self.number
    }

    /// Lines of which only the beginning was read.
    pub fn cut_lines(&self) -> u64 {
        self.shortened
    }

    /// Whether the source was longer than allowed.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// The next line that is not empty and not about requests.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub fn next_line(&mut self) -> io::Result<Option<Line>> {
        loop {
            let Some(raw) = self.raw()? else { return Ok(None) };
            self.number += 1;
            if is_traffic(&raw) {
                continue;
            }
            let text = plain(&envelope(&String::from_utf8_lossy(&raw)));
            if !text.trim().is_empty() {
                return Ok(Some(Line {
                    number: self.number,
                    source: source(&text).to_owned(),
                    worker: worker(&text),
                    text,
                }));
            }
        }
    }

    /// Bytes up to a line end, without it; `None` at the end of the source.
    fn raw(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let (mut any, mut cut) = (false, false);
        loop {
            let buffer = match self.source.fill_buf() {
                Ok(buffer) => buffer,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            if buffer.is_empty() {
                break;
            }
            if self.left == 0 {
                self.cut = true;
                break;
            }
            any = true;
            let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            let end = memchr::memchr2(b'\n', b'\r', &buffer[..most]);
            let taken = end.unwrap_or(most);
            let room = MAX_LINE_BYTES - line.len();
            line.extend_from_slice(&buffer[..taken.min(room)]);
            cut |= taken > room;
            let consumed = taken + usize::from(end.is_some());
            self.source.consume(consumed);
            self.left -= consumed as u64;
            if end.is_some() {
                break;
            }
        }
        self.shortened += u64::from(cut);
        Ok(any.then_some(line))
    }
}

/// The text without terminal control sequences.
fn plain(text: &str) -> String {
    if !text.contains(|c: char| c.is_control()) {
        return strip_bare_colours(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            if c == '\t' || !c.is_control() {
                out.push(c);
            }
            continue;
        }
        match chars.next() {
            // CSI: parameters up to a letter or ~.
            Some('[') => {
                for c in chars.by_ref() {
                    if ('@'..='~').contains(&c) {
                        break;
                    }
                }
            }
            // OSC: a title or link, up to BEL or the string terminator.
            Some(']') => {
                while let Some(c) = chars.next() {
                    if c == '\u{7}' {
                        break;
                    }
                    if c == '\u{1b}' && chars.peek() == Some(&'\\') {
                        chars.next();
                        break;
                    }
                }
            }
            _ => {}
        }
    }
    // Terminals of which only the escape character was lost: `[0;36m`.
    strip_bare_colours(&out)
}

/// Colour codes whose escape character was lost on the way (`[1;36m`).
fn strip_bare_colours(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('[') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        let digits = tail
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b';')
            .count();
        if digits > 0 && digits <= 12 && tail.as_bytes().get(digits) == Some(&b'm') {
            rest = &tail[digits + 1..];
        } else {
            out.push('[');
            rest = tail;
        }
    }
    out.push_str(rest);
    out
}

/// Names under which log shippers put the printed line into JSON.
const ENVELOPES: [&str; 8] = [
    "log",
    "message",
    "msg",
    "MESSAGE",
    "textPayload",
    "body",
    "line",
    "@message",
];

/// The printed line inside a JSON object (Docker's json-file driver, journald, log shippers), else the text itself.
fn envelope(text: &str) -> String {
    let trimmed = text.trim_start();
    if !trimmed.starts_with("{\"") {
        return text.to_owned();
    }
    let Ok(object) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(trimmed) else {
        return text.to_owned();
    };
    ENVELOPES
        .iter()
        .find_map(|&key| object.get(key).and_then(|v| v.as_str()))
        .map_or_else(|| text.to_owned(), |inner| inner.trim_end().to_owned())
}

/// The container that a line of several is from, as docker compose and `kubectl logs --prefix` write it.
fn source(text: &str) -> &str {
    let named = |name: &str| {
        !name.is_empty()
            && name.len() <= 200
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
    };
    let before = match text.strip_prefix("[pod/") {
        Some(rest) => rest.split_once("] ").map(|(name, _)| name),
        None => (beginning(text, 210).split_once("| ")).map(|(name, _)| name.trim_end_matches(' ')),
    };
    before.filter(|name| named(name)).unwrap_or_default()
}

/// The process that printed the line: `(Worker_TP0 pid=12)` and its older forms, `[rank0]`, `[... TP0]` of `SGLang`.
fn worker(text: &str) -> String {
    // vLLM: the prefix stands before the message, so only the beginning is searched.
    let head = beginning(text, 160);
    if let Some(open) = head.find('(')
        && let Some(pid) = head[open..].find(" pid=")
    {
        let inside = &head[open + 1..open + pid];
        if !inside.contains(')') && inside.len() <= 60 {
            // `VllmWorker rank=0`, `VllmWorkerProcess`, `Worker_TP0`, `RayWorkerWrapper`
            let pid_digits: String = head[open + pid + 5..]
                .chars()
                .take_while(char::is_ascii_digit)
                .collect();
            return if inside.contains("TP")
                || inside.contains("PP")
                || inside.contains("DP")
                || inside.contains("rank=")
                || inside.starts_with("APIServer")
            {
                inside.to_owned()
            } else {
                // Workers of one kind differ by their process number only.
                format!("{inside} {pid_digits}")
            };
        }
    }
    // SGLang: `[2026-09-12 00:22:48 TP0] message`, `[... DP1 TP3 EP3]`.
    if let Some(rest) = head.trim_start().strip_prefix('[')
        && let Some(end) = rest.find(']')
    {
        let names: Vec<&str> = rest[..end]
            .split_whitespace()
            .filter(|word| {
                ["TP", "DP", "PP", "EP"].iter().any(|kind| {
                    word.strip_prefix(kind)
                        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
                })
            })
            .collect();
        return names.join(" ");
    }
    String::new()
}

/// At most `bytes` of the beginning, ending at a character.
fn beginning(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(bytes: &[u8]) -> Vec<Line> {
        let mut source = bytes;
        let mut lines = Lines::new(&mut source, 1 << 20);
        let mut out = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            out.push(line);
        }
        out
    }

    #[test]
    fn colours_envelopes_and_progress_bars_are_looked_through() {
        let text = "\u{1b}[1;36m(EngineCore_DP0 pid=7)\u{1b}[0;0m INFO one\n\
                    {\"log\":\"\\u001b[32mINFO two\\u001b[0m\\n\",\"stream\":\"stderr\"}\n\
                    Loading:  50%|#\rLoading: 100%|##\r\nINFO three\r\n\n[0;36mINFO four\n";
        let read = lines(text.as_bytes());
        let texts: Vec<&str> = read.iter().map(|l| l.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "(EngineCore_DP0 pid=7) INFO one",
                "INFO two",
                "Loading:  50%|#",
                "Loading: 100%|##",
                "INFO three",
                "INFO four"
            ]
        );
        assert_eq!(read[0].worker, "EngineCore_DP0");
    }

    #[test]
    fn the_worker_is_read_in_every_form() {
        for (text, name) in [
            ("(Worker_TP1 pid=448) INFO x", "Worker_TP1"),
            (
                "2026-08-14T14:07:20Z (Worker_DP0_EP0 pid=2) INFO x",
                "Worker_DP0_EP0",
            ),
            ("(VllmWorker rank=0 pid=3926141) ERROR x", "VllmWorker rank=0"),
            ("(VllmWorkerProcess pid=521) INFO x", "VllmWorkerProcess 521"),
            (
                "(RayWorkerWrapper pid=6, ip=10.0.0.1) INFO x",
                "RayWorkerWrapper 6",
            ),
            ("vllm-1  | (Worker_TP0 pid=9) INFO x", "Worker_TP0"),
            ("[2026-09-12 00:22:48 TP0] KV Cache is allocated.", "TP0"),
            ("[2026-09-12 00:22:48 DP1 TP3 EP3] x", "DP1 TP3 EP3"),
            ("INFO 04-24 16:33:00 [gpu_model_runner.py:1316] x", ""),
            ("[2026-09-12 00:22:48] server_args=ServerArgs()", ""),
        ] {
            assert_eq!(worker(text), name, "{text}");
        }
    }

    #[test]
    fn the_container_is_read_where_a_line_names_one() {
        for (text, name) in [
            ("vllm-1  | (Worker_TP0 pid=9) INFO x", "vllm-1"),
            ("[pod/vllm-0/server] INFO x", "vllm-0/server"),
            ("INFO 04-24 16:33:00 [x.py:1] a | b", ""),
            ("| 0  NVIDIA H100 | x", ""),
            ("[2026-09-12 00:22:48 TP0] x | y", ""),
            ("[pod/vllm-0", ""),
            ("a|b", ""),
        ] {
            assert_eq!(source(text), name, "{text}");
        }
    }

    #[test]
    fn an_endless_line_is_cut_and_counted_and_the_next_one_is_still_read() {
        let mut bytes = vec![b'x'; MAX_LINE_BYTES * 2 + 17];
        bytes.extend_from_slice(b"\nnext\n");
        let mut source = &bytes[..];
        let mut lines = Lines::new(&mut source, u64::MAX);
        assert_eq!(lines.next_line().unwrap().unwrap().text.len(), MAX_LINE_BYTES);
        assert_eq!(lines.next_line().unwrap().unwrap().text, "next");
        assert_eq!((lines.cut_lines(), lines.is_cut()), (1, false));
    }

    #[test]
    fn reading_stops_at_the_limit_and_says_so() {
        let bytes = b"one\ntwo\nthree\n";
        let mut source = &bytes[..];
        let mut lines = Lines::new(&mut source, 6);
        assert_eq!(lines.next_line().unwrap().unwrap().text, "one");
        assert_eq!(lines.next_line().unwrap().unwrap().text, "tw");
        assert!(lines.next_line().unwrap().is_none());
        assert!(lines.is_cut());
    }

    proptest! {
        #[test]
        fn any_bytes_become_lines_without_control_characters(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            for line in lines(&bytes) {
                prop_assert!(line.text.chars().all(|c| c == '\t' || !c.is_control()), "{:?}", line.text);
            }
        }
    }
}
