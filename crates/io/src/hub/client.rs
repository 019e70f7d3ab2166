//! Requests to a hub: redirects that never carry the token elsewhere, ranges, bounded retries, capped answers.

use std::io::{ErrorKind, Read};
use std::time::Duration;

use kvwise_core::{Error, Result};
use ureq::Timeout;
use ureq::http::{HeaderMap, Response};

use super::settings::{Limits, Settings, Token};

/// Most redirects that one request follows; the hub needs one or two.
const MAX_REDIRECTS: usize = 6;

/// Why something was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// 401 or 403: credentials or a licence are missing.
    Denied(u16),
    /// 404 or 410.
    Missing(u16),
    /// 429 or 5xx, again and again.
    Busy(u16),
    /// Any other status.
    Status(u16),
    /// No connection, or it broke off.
    Unreachable,
    /// The answer is none that a hub gives.
    Nonsense,
}

/// A request that brought nothing.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub refusal: Refusal,
    /// The hub's own code (`X-Error-Code`): `GatedRepo`, `RepoNotFound`, `EntryNotFound`, ...
    pub code: Option<String>,
    /// One sentence with the address.
    pub message: String,
}

impl Failure {
    fn new(refusal: Refusal, message: String) -> Self {
        Self {
            refusal,
            code: None,
            message,
        }
    }

    /// As an error, with what to do about it where no more is known than the status.
    pub fn error(&self) -> Error {
        let error = Error::io(self.message.clone());
        match self.refusal {
            Refusal::Unreachable => error.hint(
                "check the network, HTTPS_PROXY and HF_ENDPOINT; models of the catalogue need no network",
            ),
            Refusal::Busy(_) => error.hint("try again later; with HF_TOKEN the hub allows more requests"),
            Refusal::Denied(_) => error.hint("set HF_TOKEN to a token that may read this model"),
            _ => error.hint("is HF_ENDPOINT the address of a Hugging Face hub?"),
        }
    }
}

/// The start of a file.
#[derive(Debug)]
pub(super) struct Part {
    /// Bytes from the place asked for; fewer than asked for only at the end of the file.
    pub bytes: Vec<u8>,
    /// Length of the whole file, if the server says it.
    pub total_bytes: Option<u64>,
}

/// A client of one hub.
#[derive(Debug)]
pub(super) struct Client {
    agent: ureq::Agent,
    endpoint: String,
    token: Option<Token>,
    limits: Limits,
}

impl Client {
    pub fn new(settings: &Settings) -> Result<Self> {
        let limits = settings.limits;
        if limits.attempts == 0 {
            return Err(Error::input("the hub must be asked at least once"));
        }
        let agent = ureq::Agent::config_builder()
            .timeout_resolve(Some(limits.silence))
            .timeout_connect(Some(limits.silence))
            .timeout_recv_response(Some(limits.silence))
            .timeout_per_read(Some(limits.silence))
            .timeout_recv_body(Some(limits.answer))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("kvwise/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self {
            agent,
            endpoint: settings.endpoint.clone(),
            token: settings.token.clone(),
            limits,
        })
    }

    /// The address that everything begins with.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Whether requests carry a token.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// A whole file of at most `cap` bytes; `path` begins with a slash.
    pub fn whole(&self, path: &str, cap: u64) -> Result<Vec<u8>, Failure> {
        let url = format!("{}{path}", self.endpoint);
        self.again_and_again(&url, || {
            let (mut response, at) = self.send(&url, None)?;
            let too_long = || {
                Failure::new(
                    Refusal::Nonsense,
                    format!("{url}: the answer is longer than the {cap} bytes that are read"),
                )
            };
            if length(response.headers()).is_some_and(|n| n > cap) {
                return Err(too_long().into());
            }
            let bytes = read(&mut response, cap.saturating_add(1), &at)?;
            if bytes.len() as u64 > cap {
                return Err(too_long().into());
            }
            Ok(bytes)
        })
    }

    /// `count` bytes of a file from `start`, without reading more of it than the server makes necessary: one that
    /// ignores ranges sends the file from its beginning, of which nothing is read beyond the last byte wanted.
    pub fn part(&self, path: &str, start: u64, count: u64) -> Result<Part, Failure> {
        let url = format!("{}{path}", self.endpoint);
        let end = start.saturating_add(count);
        self.again_and_again(&url, || {
            let (mut response, at) = self.send(&url, Some((start, end.saturating_sub(1))))?;
            let nonsense =
                |why: String| Attempt::from(Failure::new(Refusal::Nonsense, format!("{url}: {why}")));
            if response.headers().contains_key("content-encoding") {
                return Err(nonsense("the server compressed a part of a file".to_owned()));
            }
            if response.status().as_u16() == 200 {
                let total_bytes = length(response.headers());
                let mut bytes = read(&mut response, end, &at)?;
                let skipped = usize::try_from(start).unwrap_or(usize::MAX).min(bytes.len());
                bytes.drain(..skipped);
                return Ok(Part { bytes, total_bytes });
            }
            let said = response
                .headers()
                .get("content-range")
                .and_then(|v| v.to_str().ok())
                .unwrap_or_default()
                .to_owned();
            let Some(range) = ContentRange::parse(&said) else {
                return Err(nonsense(format!("Content-Range is \"{}\"", shown(&said))));
            };
            let sound = range.first == start
                && range.last >= range.first
                && range.last < end
                && range.total.is_none_or(|total| range.last < total);
            if !sound {
                return Err(nonsense(format!(
                    "bytes {start}-{} were asked for, Content-Range is \"{}\"",
                    end - 1,
                    shown(&said)
                )));
            }
            let expected = range.last - range.first + 1;
            let bytes = read(&mut response, expected, &at)?;
            if bytes.len() as u64 != expected {
                return Err(Failure::new(
                    Refusal::Unreachable,
                    format!(
                        "{url}: the answer broke off after {} of {expected} bytes",
                        bytes.len()
                    ),
                )
                .into());
            }
            let short = expected < count && range.total.is_none_or(|total| range.last + 1 != total);
            if short {
                return Err(nonsense(format!(
                    "{count} bytes from {start} were asked for, only {expected} came"
                )));
            }
            Ok(Part {
                bytes,
                total_bytes: range.total,
            })
        })
    }

    /// Asks until there is an answer or a reason to stop.
    fn again_and_again<T>(
        &self,
        url: &str,
        mut ask: impl FnMut() -> std::result::Result<T, Attempt>,
    ) -> Result<T, Failure> {
        let mut pause = self.limits.pause;
        for attempt in 1.. {
            let tried = match ask() {
                Ok(answer) => return Ok(answer),
                Err(tried) => tried,
            };
            if !tried.again || attempt >= self.limits.attempts {
                return Err(tried.failure);
            }
            let wait = tried.retry_after.unwrap_or(pause);
            if wait > self.limits.longest_pause {
                let mut failure = tried.failure;
                failure.message = format!(
                    "{url}: the hub is busy and asks to wait {} s, longer than the {} s that are waited",
                    wait.as_secs(),
                    self.limits.longest_pause.as_secs()
                );
                return Err(failure);
            }
            std::thread::sleep(wait);
            pause = pause.saturating_mul(2);
        }
        unreachable!("the loop counts attempts and returns at the last")
    }

    /// One request, followed through redirects; brings a 200 or 206 and the address that answered.
    fn send(
        &self,
        url: &str,
        range: Option<(u64, u64)>,
    ) -> std::result::Result<(Response<ureq::Body>, String), Attempt> {
        let mut at = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            // ureq would ask for gzip by itself; the lengths of ranges are those of the stored file
            let mut request = self.agent.get(&at).header("accept-encoding", "identity");
            if let Some(token) = &self.token
                && authority(&at) == authority(&self.endpoint)
            {
                request = request.header("authorization", token.header());
            }
            if let Some((first, last)) = range {
                request = request.header("range", format!("bytes={first}-{last}"));
            }
            let response = request.call().map_err(|e| unreachable(&at, &e))?;
            let status = response.status().as_u16();
            match status {
                200 => return Ok((response, at)),
                206 if range.is_some() => return Ok((response, at)),
                301 | 302 | 303 | 307 | 308 => {
                    let target = response.headers().get("location").and_then(|v| v.to_str().ok());
                    at = target.and_then(|t| resolve(&at, t)).ok_or_else(|| {
                        Failure::new(
                            Refusal::Nonsense,
                            format!(
                                "{at}: the redirect to \"{}\" cannot be followed",
                                shown(target.unwrap_or_default())
                            ),
                        )
                    })?;
                }
                _ => return Err(refused(url, status, response.headers())),
            }
        }
        Err(Failure::new(
            Refusal::Nonsense,
            format!("{url}: more than {MAX_REDIRECTS} redirects"),
        )
        .into())
    }
}

/// A failed attempt, whether another one may succeed, and when the server wants it.
struct Attempt {
    failure: Failure,
    again: bool,
    retry_after: Option<Duration>,
}

impl From<Failure> for Attempt {
    fn from(failure: Failure) -> Self {
        Self {
            // a connection that broke off; all else that may pass is told by the status
            again: failure.refusal == Refusal::Unreachable,
            failure,
            retry_after: None,
        }
    }
}

fn unreachable(url: &str, e: &ureq::Error) -> Attempt {
    // without a network every attempt ends like the first: the user should not wait for more of them
    let (why, again) = match e {
        ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
            ("no connection in time".to_owned(), false)
        }
        ureq::Error::Timeout(_) => ("no answer in time".to_owned(), true),
        ureq::Error::HostNotFound => ("no such host".to_owned(), false),
        ureq::Error::ConnectionFailed => ("no connection".to_owned(), false),
        // a connection that broke; a name that is not found or a port that is closed stays so
        ureq::Error::Io(io) => (
            io.to_string(),
            matches!(
                io.kind(),
                ErrorKind::ConnectionReset
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::BrokenPipe
                    | ErrorKind::UnexpectedEof
                    | ErrorKind::TimedOut
                    | ErrorKind::WouldBlock
            ),
        ),
        other => (other.to_string(), false),
    };
    Attempt {
        failure: Failure::new(Refusal::Unreachable, format!("{url}: {why}")),
        again,
        retry_after: None,
    }
}

fn refused(url: &str, status: u16, headers: &HeaderMap) -> Attempt {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(shown);
    let refusal = match status {
        401 | 403 => Refusal::Denied(status),
        404 | 410 => Refusal::Missing(status),
        408 | 429 | 500..=599 => Refusal::Busy(status),
        416 => Refusal::Nonsense,
        _ => Refusal::Status(status),
    };
    let mut message = match status {
        416 => format!("{url}: the file ends before the bytes that were asked for (HTTP status 416)"),
        _ => format!("{url}: answered with HTTP status {status}"),
    };
    if let Some(why) = text("x-error-message") {
        message.push_str(&format!(" ({})", why.trim_end_matches('.')));
    }
    Attempt {
        failure: Failure {
            refusal,
            code: text("x-error-code"),
            message,
        },
        again: matches!(refusal, Refusal::Busy(_)),
        retry_after: headers
            .get("retry-after")
            .and_then(|v| v.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs),
    }
}

/// Text from outside, short enough for a message and without control characters.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get("content-length")?.to_str().ok()?.trim().parse().ok()
}

/// At most `cap` bytes of the body; the rest stays unread and the connection is given up.
fn read(response: &mut Response<ureq::Body>, cap: u64, url: &str) -> std::result::Result<Vec<u8>, Attempt> {
    let mut bytes = Vec::new();
    response
        .body_mut()
        .as_reader()
        .take(cap)
        .read_to_end(&mut bytes)
        .map_err(|e| Failure::new(Refusal::Unreachable, format!("{url}: the answer broke off: {e}")))?;
    Ok(bytes)
}

/// Scheme, host and port, in lower case.
fn authority(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    Some(format!("{scheme}://{}", &rest[..end]).to_ascii_lowercase())
}

/// Where a redirect leads; `None` if it is no address, or leads from https to http.
fn resolve(from: &str, to: &str) -> Option<String> {
    let origin = authority(from)?;
    let target = if to.starts_with("https://") || to.starts_with("http://") {
        to.to_owned()
    } else if let Some(rest) = to.strip_prefix("//") {
        format!("{}://{rest}", origin.split_once("://")?.0)
    } else if to.starts_with('/') {
        format!("{origin}{to}")
    } else {
        return None;
    };
    let weaker = origin.starts_with("https://") && target.starts_with("http://");
    let host_is_there = authority(&target).is_some_and(|a| !a.ends_with("://"));
    (!weaker && host_is_there && !target.contains(char::is_whitespace)).then_some(target)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ContentRange {
    first: u64,
    last: u64,
    total: Option<u64>,
}

impl ContentRange {
    /// `bytes 0-99/1234` or `bytes 0-99/*`.
    fn parse(text: &str) -> Option<Self> {
        let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        Some(Self {
            first: first.trim().parse().ok()?,
            last: last.trim().parse().ok()?,
            total: match total.trim() {
                "*" => None,
                number => Some(number.parse().ok()?),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn redirects_lead_only_where_they_may() {
        let from = "https://huggingface.co/a/b/resolve/main/config.json";
        assert_eq!(
            resolve(from, "/c/b/config.json").as_deref(),
            Some("https://huggingface.co/c/b/config.json")
        );
        assert_eq!(
            resolve(from, "https://cdn.example/x?sig=1").as_deref(),
            Some("https://cdn.example/x?sig=1")
        );
        assert_eq!(
            resolve(from, "//cdn.example/x").as_deref(),
            Some("https://cdn.example/x")
        );
        for bad in [
            "http://huggingface.co/x",
            "ftp://x/y",
            "x",
            "",
            "https://",
            "https://a b/c",
        ] {
            assert_eq!(resolve(from, bad), None, "{bad}");
        }
        assert_eq!(
            resolve("http://h:1/x", "http://h:2/y").as_deref(),
            Some("http://h:2/y")
        );
    }

    #[test]
    fn the_token_belongs_to_one_scheme_host_and_port() {
        assert_eq!(
            authority("https://HuggingFace.co/x"),
            authority("https://huggingface.co")
        );
        for other in [
            "http://huggingface.co",
            "https://huggingface.co:444",
            "https://huggingface.co.evil",
        ] {
            assert_ne!(authority(other), authority("https://huggingface.co"), "{other}");
        }
    }

    #[test]
    fn content_ranges_are_read_or_refused() {
        let range = ContentRange::parse("bytes 0-99/1234").unwrap();
        assert_eq!((range.first, range.last, range.total), (0, 99, Some(1234)));
        assert_eq!(ContentRange::parse("bytes 5-9/*").unwrap().total, None);
        for bad in [
            "",
            "bytes",
            "bytes */10",
            "bytes 0-/5",
            "items 0-1/2",
            "bytes 0-1/x",
            "bytes -5--1/3",
        ] {
            assert_eq!(ContentRange::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_the_client_panic(a in ".{0,40}", b in "(https?://)?[a-z0-9./:?#@ -]{0,30}") {
            let _ = ContentRange::parse(&a);
            let _ = ContentRange::parse(&format!("bytes {b}"));
            if let Some(target) = resolve("https://huggingface.co/x", &b) {
                prop_assert!(target.starts_with("https://"), "{}", target);
            }
            let _ = resolve(&b, &a);
        }
    }
}
