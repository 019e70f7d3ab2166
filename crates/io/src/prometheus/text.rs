//! Parser of the Prometheus text exposition format (and of the parts of `OpenMetrics` that servers send with it).
//!
//! One pass over the page, nothing copied: names, label names and label values are slices of the input, unescaped
//! only where asked for. A line that cannot be read is counted and skipped, because one odd line of a proxy must not
//! hide the rest; a page without a single sample is an error.
//!
//! Budget: a vLLM line is about 85 bytes; at 200 MB/s it may cost 425 ns. Finding its end costs about 10 ns, the
//! number about 40 ns, the labels about 100 ns. `cargo bench -p kvwise-io --bench prometheus` measures it.

use std::borrow::Cow;
use std::hash::Hasher;

use kvwise_core::{Error, Result};
use rustc_hash::{FxHashMap, FxHashSet, FxHasher};

/// What a `# TYPE` line says about a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows, but for restarts.
    Counter,
    /// Goes up and down.
    Gauge,
    /// `_bucket`, `_sum`, `_count`.
    Histogram,
    /// Quantiles, `_sum`, `_count`.
    Summary,
    /// Untyped, or a type that this parser does not know.
    Unknown,
}

/// One series of a page. Labels are read through [`Page::labels`] and [`Page::label`].
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// The name, with its suffix (`_total`, `_bucket`).
    pub name: &'a str,
    /// The value; not-a-number and infinities are possible and legal.
    pub value: f64,
    labels_start: u32,
    labels_end: u32,
}

/// A label as it stands in the page; the value is still escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label<'a> {
    /// The name.
    pub name: &'a str,
    raw: &'a str,
}

impl<'a> Label<'a> {
    /// The value as it stands in the page, escapes included: enough to compare two labels.
    pub fn raw_value(&self) -> &'a str {
        self.raw
    }

    /// The value, with `\\`, `\"` and `\n` replaced by what they stand for.
    pub fn value(&self) -> Cow<'a, str> {
        if !self.raw.contains('\\') {
            return Cow::Borrowed(self.raw);
        }
        let mut out = String::with_capacity(self.raw.len());
        let mut rest = self.raw.chars();
        while let Some(c) = rest.next() {
            match c {
                '\\' => match rest.next() {
                    Some('n') => out.push('\n'),
                    Some(other @ ('\\' | '"')) => out.push(other),
                    Some(other) => {
                        out.push('\\');
                        out.push(other);
                    }
                    None => out.push('\\'),
                },
                c => out.push(c),
            }
        }
        Cow::Owned(out)
    }
}

/// A parsed page.
#[derive(Debug, Clone, Default)]
pub struct Page<'a> {
    /// Every sample in the page's order, without repeated ones.
    pub samples: Vec<Sample<'a>>,
    labels: Vec<Label<'a>>,
    kinds: FxHashMap<&'a str, MetricKind>,
    /// Samples dropped because the same name and label set came before.
    pub duplicates: usize,
    /// Lines that could not be read.
    pub bad_lines: usize,
    /// Number (from 1) and reason of the first such line.
    pub first_bad_line: Option<(usize, &'static str)>,
}

impl<'a> Page<'a> {
    /// The labels of a sample of this page.
    pub fn labels(&self, sample: &Sample<'a>) -> &[Label<'a>] {
        self.labels
            .get(sample.labels_start as usize..sample.labels_end as usize)
            .unwrap_or(&[])
    }

    /// The value of one label of a sample of this page.
    pub fn label(&self, sample: &Sample<'a>, name: &str) -> Option<Cow<'a, str>> {
        self.labels(sample)
            .iter()
            .find(|l| l.name == name)
            .map(Label::value)
    }

    /// The declared type of a family.
    pub fn kind(&self, family: &str) -> MetricKind {
        self.kinds.get(family).copied().unwrap_or(MetricKind::Unknown)
    }
}

/// Parses a page.
///
/// # Errors
/// If the text is HTML, or has no sample at all; the message says which.
pub fn parse(text: &str) -> Result<Page<'_>> {
    let mut page = Page::default();
    // a repeated series would count twice in every sum: remember what was seen by an order-independent hash
    let mut seen: FxHashSet<u64> = FxHashSet::default();
    let guess = text.len() / 90 + 1;
    page.samples.reserve(guess);
    page.labels.reserve(guess * 2);
    seen.reserve(guess);
    for (index, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        match line.as_bytes().first() {
            None => continue,
            Some(b'#') => {
                comment(line, &mut page);
                continue;
            }
            Some(_) => {}
        }
        let labels_start = page.labels.len();
        match sample(line, &mut page.labels) {
            Ok(Some((name, value))) => {
                if !seen.insert(identity(name, page.labels.get(labels_start..).unwrap_or(&[]))) {
                    page.labels.truncate(labels_start);
                    page.duplicates += 1;
                    continue;
                }
                let (Ok(start), Ok(end)) = (u32::try_from(labels_start), u32::try_from(page.labels.len()))
                else {
                    return Err(Error::input("metrics page: more than 4294967295 labels"));
                };
                page.samples.push(Sample {
                    name,
                    value,
                    labels_start: start,
                    labels_end: end,
                });
            }
            Ok(None) => {}
            Err(reason) => {
                page.labels.truncate(labels_start);
                page.bad_lines += 1;
                page.first_bad_line.get_or_insert((index + 1, reason));
            }
        }
    }
    if page.samples.is_empty() {
        return Err(no_samples(text, &page));
    }
    Ok(page)
}

fn no_samples(text: &str, page: &Page<'_>) -> Error {
    let start = text.trim_start();
    if start.starts_with('<') {
        return Error::input("an HTML page, not Prometheus metrics").hint("give the URL of /metrics itself");
    }
    if start.starts_with('{') || start.starts_with('[') {
        return Error::input("a JSON document, not Prometheus metrics")
            .hint("give the URL of /metrics itself");
    }
    match page.first_bad_line {
        Some((line, reason)) => Error::input(format!("not Prometheus metrics: line {line}: {reason}")),
        None => Error::input("a metrics page without any sample")
            .hint("vLLM: start it without --disable-log-stats; SGLang and llama.cpp: with --enable-metrics or --metrics"),
    }
}

fn identity(name: &str, labels: &[Label<'_>]) -> u64 {
    let hash = |a: &str, b: &str| {
        let mut h = FxHasher::default();
        h.write(a.as_bytes());
        h.write_u8(0xff);
        h.write(b.as_bytes());
        // FxHash is linear in its last word: without mixing, sums of label hashes would collide
        (h.finish() ^ (h.finish() >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    };
    labels
        .iter()
        .fold(hash(name, ""), |sum, l| sum.wrapping_add(hash(l.name, l.raw)))
}

fn comment<'a>(line: &'a str, page: &mut Page<'a>) {
    let Some(rest) = line.strip_prefix("# TYPE ") else {
        return;
    };
    let mut words = rest.split_ascii_whitespace();
    let (Some(name), Some(kind)) = (words.next(), words.next()) else {
        return;
    };
    let kind = match kind {
        "counter" => MetricKind::Counter,
        "gauge" => MetricKind::Gauge,
        "histogram" => MetricKind::Histogram,
        "summary" => MetricKind::Summary,
        _ => MetricKind::Unknown,
    };
    page.kinds.entry(name).or_insert(kind);
}

fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b == b':'
}

/// One sample line; `Ok(None)` for a line of blanks.
fn sample<'a>(line: &'a str, labels: &mut Vec<Label<'a>>) -> Result<Option<(&'a str, f64)>, &'static str> {
    let line = line.trim_ascii_start();
    if line.is_empty() {
        return Ok(None);
    }
    let end = line
        .bytes()
        .position(|b| !is_name_byte(b))
        .ok_or("a name without a value")?;
    let (name, mut rest) = line.split_at(end);
    if name.is_empty() || name.as_bytes().first().is_some_and(u8::is_ascii_digit) {
        return Err("a line must start with a metric name");
    }
    rest = rest.trim_ascii_start();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = label_set(inner, labels)?.trim_ascii_start();
    }
    let value = rest.split([' ', '\t']).next().unwrap_or_default();
    Ok(Some((name, number(value)?)))
}

/// Reads `a="b",c="d"}` and returns what follows the brace.
fn label_set<'a>(mut rest: &'a str, labels: &mut Vec<Label<'a>>) -> Result<&'a str, &'static str> {
    loop {
        rest = rest.trim_ascii_start();
        if let Some(after) = rest.strip_prefix('}') {
            return Ok(after);
        }
        let end = rest
            .bytes()
            .position(|b| !is_name_byte(b))
            .ok_or("a label set without a closing brace")?;
        let (name, tail) = rest.split_at(end);
        if name.is_empty() {
            return Err("a label without a name");
        }
        let tail = tail
            .trim_ascii_start()
            .strip_prefix('=')
            .ok_or("a label without an equals sign")?;
        let tail = tail
            .trim_ascii_start()
            .strip_prefix('"')
            .ok_or("a label value without quotes")?;
        let close = closing_quote(tail).ok_or("a label value without a closing quote")?;
        let (raw, tail) = tail.split_at(close);
        labels.push(Label { name, raw });
        rest = tail.strip_prefix('"').unwrap_or(tail).trim_ascii_start();
        match rest.as_bytes().first() {
            Some(b',') => rest = rest.get(1..).unwrap_or_default(),
            Some(b'}') => {}
            _ => return Err("labels must be separated by commas"),
        }
    }
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|b| {
        if escaped {
            escaped = false;
            return false;
        }
        escaped = b == b'\\';
        b == b'"'
    })
}

fn number(text: &str) -> Result<f64, &'static str> {
    match text {
        "" => Err("a sample without a value"),
        "NaN" | "nan" => Ok(f64::NAN),
        "+Inf" | "Inf" | "inf" | "+inf" => Ok(f64::INFINITY),
        "-Inf" | "-inf" => Ok(f64::NEG_INFINITY),
        _ => text.parse().map_err(|_| "a value that is not a number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(text: &str) -> Page<'_> {
        parse(text).expect("a page")
    }

    #[test]
    fn names_with_colons_labels_with_braces_and_escapes_are_kept() {
        let page = one("vllm:num_requests_running{model_name=\"a}b,\\\"c\\\\\\n\",engine=\"0\"} 3.0\n");
        assert_eq!(page.samples.len(), 1);
        let sample = &page.samples[0];
        assert_eq!(sample.name, "vllm:num_requests_running");
        assert_eq!(page.label(sample, "model_name").as_deref(), Some("a}b,\"c\\\n"));
        assert_eq!(page.label(sample, "engine").as_deref(), Some("0"));
        assert!((sample.value - 3.0).abs() < f64::EPSILON);
    }

    #[test]
    fn not_a_number_infinities_timestamps_and_exemplars_are_legal() {
        let page =
            one("a NaN\nb +Inf\nc -Inf 1395066363000\nd_bucket{le=\"1\"} 7 # {trace_id=\"x\"} 0.5\n# EOF\n");
        assert!(page.samples[0].value.is_nan());
        assert!(page.samples[1].value.is_infinite());
        assert!(page.samples[2].value.is_infinite());
        assert!((page.samples[3].value - 7.0).abs() < f64::EPSILON);
        assert_eq!(page.bad_lines, 0);
    }

    #[test]
    fn a_series_given_twice_counts_once_also_with_labels_in_another_order() {
        let page = one("m{a=\"1\",b=\"2\"} 1\nm{b=\"2\",a=\"1\"} 5\nm{a=\"2\",b=\"1\"} 9\n");
        assert_eq!(page.samples.len(), 2);
        assert_eq!(page.duplicates, 1);
    }

    #[test]
    fn bad_lines_are_counted_and_the_first_is_named() {
        let page = one("ok 1\nbroken{a=\"1 2\nok2 x\n9bad 1\n");
        assert_eq!(page.samples.len(), 1);
        assert_eq!(page.bad_lines, 3);
        assert_eq!(
            page.first_bad_line,
            Some((2, "a label value without a closing quote"))
        );
    }

    #[test]
    fn html_json_and_empty_pages_are_refused_by_name() {
        let says = |text: &str| parse(text).expect_err("must fail").to_string();
        assert!(says("<!doctype html><html></html>").contains("HTML"));
        assert!(says("{\"detail\":\"Not Found\"}").contains("JSON"));
        assert!(says("# HELP a b\n# TYPE a gauge\n").contains("without any sample"));
        assert!(says("Service Unavailable").contains("line 1"));
    }

    #[test]
    fn types_are_kept_by_family() {
        let page =
            one("# HELP a_total text\n# TYPE a_total counter\na_total 1\n# TYPE h histogram\nh_count 2\n");
        assert_eq!(page.kind("a_total"), MetricKind::Counter);
        assert_eq!(page.kind("h"), MetricKind::Histogram);
        assert_eq!(page.kind("nothing"), MetricKind::Unknown);
    }

    /// The slow twin: characters, one at a time, straight from the format's description.
    #[expect(clippy::type_complexity, reason = "a twin for a test")]
    fn naive(line: &str) -> Option<(String, Vec<(String, String)>, f64)> {
        let chars: Vec<char> = line.chars().collect();
        let mut i = 0;
        while i < chars.len() && (chars[i].is_ascii_alphanumeric() || "_:".contains(chars[i])) {
            i += 1;
        }
        let name: String = chars[..i].iter().collect();
        let mut labels = Vec::new();
        if chars.get(i) == Some(&'{') {
            i += 1;
            while chars.get(i) != Some(&'}') {
                let start = i;
                while chars.get(i) != Some(&'=') {
                    i += 1;
                }
                let label: String = chars[start..i].iter().collect();
                i += 2;
                let mut value = String::new();
                while chars[i] != '"' {
                    if chars[i] == '\\' {
                        i += 1;
                        value.push(if chars[i] == 'n' { '\n' } else { chars[i] });
                    } else {
                        value.push(chars[i]);
                    }
                    i += 1;
                }
                i += 1;
                if chars.get(i) == Some(&',') {
                    i += 1;
                }
                labels.push((label, value));
            }
            i += 1;
        }
        let value: String = chars[i..].iter().collect();
        Some((name, labels, value.trim().parse().ok()?))
    }

    fn escape(value: &str) -> String {
        value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n")
    }

    proptest! {
        #[test]
        fn the_parser_agrees_with_its_naive_twin(
            name in "[a-z_:][a-z0-9_:]{0,12}",
            labels in prop::collection::vec(("[a-z_]{1,6}", "[ -~\n]{0,12}"), 0..4),
            value in prop::num::f64::NORMAL,
        ) {
            let set: Vec<String> = labels.iter().map(|(n, v)| format!("{n}=\"{}\"", escape(v))).collect();
            let line = if set.is_empty() {
                format!("{name} {value:e}")
            } else {
                format!("{name}{{{}}} {value:e}", set.join(","))
            };
            let page = parse(&line).expect("valid");
            let sample = &page.samples[0];
            let (n, l, v) = naive(&line).expect("valid");
            prop_assert_eq!(sample.name, n);
            prop_assert_eq!(sample.value.to_bits(), v.to_bits());
            let got: Vec<(String, String)> = page
                .labels(sample)
                .iter()
                .map(|l| (l.name.to_owned(), l.value().into_owned()))
                .collect();
            prop_assert_eq!(got, l);
        }

        #[test]
        fn any_text_is_answered_without_a_panic(text in "\\PC{0,200}") {
            let _ = parse(&text);
        }
    }
}
