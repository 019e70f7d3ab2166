//! One metrics page over HTTP, with every limit that a hostile or broken server needs.

use std::io::Read;
use std::time::Duration;

use kvwise_core::{Error, Result};

/// Largest page that is read, after decompression. vLLM's pages are about 60 kB for each engine.
pub const MAX_PAGE_BYTES: u64 = 64 << 20;

/// Fetches pages; one for each target, since it keeps the connection open.
#[derive(Debug, Clone)]
pub struct Scraper {
    agent: ureq::Agent,
    url: String,
    max_bytes: u64,
}

impl Scraper {
    /// A scraper of `url`, which may lack the scheme (`http` then) and the path (`/metrics` then).
    ///
    /// # Errors
    /// If the URL has another scheme than http and https, or no host.
    pub fn new(url: &str, timeout: Duration) -> Result<Self> {
        Ok(Self {
            // compressing a page costs the server more than sending it
            agent: configured(timeout)
                .accept_encoding("identity")
                .build()
                .new_agent(),
            url: metrics_url(url)?,
            max_bytes: MAX_PAGE_BYTES,
        })
    }

    /// The same scraper with another size limit.
    #[must_use]
    pub fn with_max_bytes(mut self, max_bytes: u64) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// The URL asked, completed.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Fetches the page once.
    ///
    /// # Errors
    /// If the host is not reached in time, answers with another status than 200, with more than the limit, or with
    /// something that is not text.
    pub fn fetch(&self) -> Result<String> {
        let bytes = get(&self.agent, &self.url, self.max_bytes)?;
        let bytes = gunzip_if_needed(bytes, self.max_bytes).map_err(|e| e.at(&self.url))?;
        String::from_utf8(bytes)
            .map_err(|_| Error::input(format!("{}: the answer is not text but binary data", self.url)))
    }
}

/// An HTTP client that goes straight to its target (as Prometheus' own scrapes do) and gives up after `timeout`.
pub(crate) fn agent(timeout: Duration) -> ureq::Agent {
    configured(timeout).build().new_agent()
}

fn configured(timeout: Duration) -> ureq::config::ConfigBuilder<ureq::typestate::AgentScope> {
    ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .max_redirects(3)
        .proxy(None)
        .user_agent("kvwise")
}

/// A GET whose answer must be a 200 of at most `max_bytes`.
pub(crate) fn get(agent: &ureq::Agent, url: &str, max_bytes: u64) -> Result<Vec<u8>> {
    let unreachable = |e: ureq::Error| {
        let message = match e {
            ureq::Error::Timeout(_) => format!("{url}: no answer in time"),
            ureq::Error::HostNotFound => format!("{url}: no such host"),
            ureq::Error::ConnectionFailed => format!("{url}: connection refused"),
            ureq::Error::Io(io) => format!("{url}: {io}"),
            other => format!("{url}: {other}"),
        };
        Error::io(message).hint("is the server up, and is this its port?")
    };
    let mut response = agent.get(url).call().map_err(unreachable)?;
    let status = response.status().as_u16();
    if status != 200 {
        let error = Error::io(format!("{url}: answered with HTTP status {status}"));
        return Err(match status {
            401 | 403 => {
                error.hint("the server wants credentials; scrape it through its Prometheus with --prometheus")
            }
            404 => error.hint(
                "give the full URL of the metrics page; llama.cpp needs --metrics, SGLang --enable-metrics",
            ),
            _ => error,
        });
    }
    // the length that the server claims is only a hint, and no reason to take much memory
    let claimed = response.body().content_length().unwrap_or(0).min(1 << 20);
    let mut bytes = Vec::with_capacity(usize::try_from(claimed).unwrap_or(0) + 1);
    response
        .body_mut()
        .as_reader()
        .take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(format!("{url}: the answer broke off: {e}")))?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::input(format!(
            "{url}: the answer is longer than {max_bytes} bytes"
        )));
    }
    Ok(bytes)
}

/// Some servers send a compressed file without saying so.
fn gunzip_if_needed(bytes: Vec<u8>, max_bytes: u64) -> Result<Vec<u8>> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut out = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes.as_slice())
        .take(max_bytes.saturating_add(1))
        .read_to_end(&mut out)
        .map_err(|e| Error::input(format!("broken gzip data: {e}")))?;
    if out.len() as u64 > max_bytes {
        return Err(Error::input(format!(
            "the answer unpacks to more than {max_bytes} bytes"
        )));
    }
    Ok(out)
}

/// Completes a URL: `localhost:8000` means `http://localhost:8000/metrics`.
///
/// # Errors
/// If there is no host, or the scheme is neither http nor https.
pub fn metrics_url(url: &str) -> Result<String> {
    let (base, path) = split_url(url)?;
    Ok(match path {
        "" | "/" => format!("{base}/metrics"),
        path => format!("{base}{path}"),
    })
}

/// Scheme with authority, and the rest.
pub(crate) fn split_url(url: &str) -> Result<(String, &str)> {
    let bad = |why: &str| Error::input(format!("{url}: {why}")).hint("a server is given as http://HOST:PORT");
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
        None => ("http".to_owned(), url),
    };
    if scheme != "http" && scheme != "https" {
        return Err(bad("only http and https can be scraped"));
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || authority.contains(char::is_whitespace) {
        return Err(bad("no host in the URL"));
    }
    Ok((format!("{scheme}://{authority}"), path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    /// Answers one connection with `head` and then `body` again and again, as often as `times`.
    fn serve(head: &'static str, body: Vec<u8>, times: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        std::thread::spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else {
                return;
            };
            let mut buffer = [0; 1024];
            let _ = stream.read(&mut buffer);
            let _ = stream.write_all(head.as_bytes());
            for _ in 0..times {
                if stream.write_all(&body).is_err() {
                    return;
                }
            }
        });
        format!("http://{address}")
    }

    fn fetch(url: &str) -> Result<String> {
        Scraper::new(url, Duration::from_secs(5))?
            .with_max_bytes(100_000)
            .fetch()
    }

    #[test]
    fn urls_are_completed_or_refused() {
        assert_eq!(
            metrics_url("localhost:8000").expect("ok"),
            "http://localhost:8000/metrics"
        );
        assert_eq!(metrics_url("https://h/").expect("ok"), "https://h/metrics");
        assert_eq!(
            metrics_url("http://h:1/inner/metrics").expect("ok"),
            "http://h:1/inner/metrics"
        );
        assert!(metrics_url("ftp://h").is_err());
        assert!(metrics_url("http://").is_err());
    }

    #[test]
    fn a_page_arrives_also_gzipped_with_and_without_saying_so() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"a 1\n").expect("in memory");
        let packed = gz.finish().expect("in memory");
        let plain = serve(
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n",
            b"a 1\n".to_vec(),
            1,
        );
        assert_eq!(fetch(&plain).expect("page"), "a 1\n");
        let said = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n";
        assert_eq!(fetch(&serve(said, packed.clone(), 1)).expect("page"), "a 1\n");
        let unsaid = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
        assert_eq!(fetch(&serve(unsaid, packed, 1)).expect("page"), "a 1\n");
    }

    #[test]
    fn an_endless_body_is_cut_and_refused() {
        let url = serve(
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
            vec![b'x'; 4096],
            usize::MAX,
        );
        let error = fetch(&url).expect_err("must fail");
        assert!(error.to_string().contains("longer than 100000 bytes"), "{error}");
    }

    #[test]
    fn a_small_gzip_that_unpacks_to_much_is_refused() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gz.write_all(&vec![0; 10_000_000]).expect("in memory");
        let bomb = gz.finish().expect("in memory");
        assert!(bomb.len() < 100_000);
        let unsaid = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
        let error = fetch(&serve(unsaid, bomb, 1)).expect_err("must fail");
        assert!(error.to_string().contains("unpacks to more"), "{error}");
    }

    #[test]
    fn binary_data_error_statuses_and_silence_are_told_apart() {
        let binary = serve(
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
            vec![0xff, 0xfe],
            1,
        );
        assert!(
            fetch(&binary)
                .expect_err("must fail")
                .to_string()
                .contains("binary")
        );
        let missing = serve(
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            Vec::new(),
            0,
        );
        assert!(
            fetch(&missing)
                .expect_err("must fail")
                .to_string()
                .contains("404")
        );
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let silent = Scraper::new(&format!("http://{address}"), Duration::from_millis(100)).expect("url");
        assert!(
            silent
                .fetch()
                .expect_err("must fail")
                .to_string()
                .contains("no answer in time")
        );
        drop(listener);
        assert!(silent.fetch().is_err());
    }
}
