//! A server that behaves like the hub, or as badly as a test wants.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A commit's name.
pub(super) const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub path: String,
    pub range: Option<(u64, u64)>,
    pub authorization: Option<String>,
}

/// What is answered.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Zeros sent after the body, for files too large to keep here.
    pub zeros: u64,
    /// Content-Length, if it is not the truth.
    pub claimed: Option<u64>,
    /// Waited before the answer.
    pub late: Duration,
    /// Waited between the answer's pieces.
    pub drip: Duration,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            zeros: 0,
            claimed: None,
            late: Duration::ZERO,
            drip: Duration::ZERO,
        }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

type Handler = dyn Fn(&Asked) -> Reply + Send + Sync;

/// A running server; it ends with the test's process.
pub(super) struct TestHub {
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    sent_bytes: Arc<Mutex<u64>>,
}

impl TestHub {
    pub fn start(handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let sent_bytes = Arc::new(Mutex::new(0));
        let handler: Arc<Handler> = Arc::new(handler);
        let (log, sent) = (Arc::clone(&asked), Arc::clone(&sent_bytes));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, sent, handler) = (Arc::clone(&log), Arc::clone(&sent), Arc::clone(&handler));
                std::thread::spawn(move || {
                    // a client that went away is no trouble of the server's
                    let _ = serve(stream, &log, &sent, &*handler);
                });
            }
        });
        Self {
            url,
            asked,
            sent_bytes,
        }
    }

    /// Everything that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Body bytes that went out so far.
    pub fn sent_bytes(&self) -> u64 {
        *self.sent_bytes.lock().unwrap()
    }
}

fn serve(
    stream: TcpStream,
    log: &Mutex<Vec<Asked>>,
    sent: &Mutex<u64>,
    handler: &Handler,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut range, mut authorization) = (None, None);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        let (name, value) = line.trim().split_once(':').unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "authorization" => authorization = Some(value.trim().to_owned()),
            "range" => {
                range = value
                    .trim()
                    .strip_prefix("bytes=")
                    .and_then(|r| r.split_once('-'))
                    .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            }
            _ => {}
        }
    }
    let asked = Asked {
        path,
        range,
        authorization,
    };
    log.lock().unwrap().push(asked.clone());
    let reply = handler(&asked);
    std::thread::sleep(reply.late);
    let mut stream = stream;
    let length = reply.claimed.unwrap_or(reply.body.len() as u64 + reply.zeros);
    let mut head = format!(
        "HTTP/1.1 {} Because\r\nContent-Length: {length}\r\nConnection: close\r\n",
        reply.status
    );
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    let piece = if reply.drip.is_zero() { 1 << 16 } else { 1 };
    for bytes in reply.body.chunks(piece) {
        stream.write_all(bytes)?;
        *sent.lock().unwrap() += bytes.len() as u64;
        std::thread::sleep(reply.drip);
    }
    let zeros = [0; 1 << 14];
    let mut left = reply.zeros;
    while left > 0 {
        let n = usize::try_from(left.min(zeros.len() as u64)).unwrap();
        stream.write_all(&zeros[..n])?;
        *sent.lock().unwrap() += n as u64;
        left -= n as u64;
    }
    Ok(())
}

/// A file of a repository: its beginning, and how many zeros follow.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub start: Vec<u8>,
    pub zeros: u64,
}

/// A repository as the hub shows it.
#[derive(Debug, Clone)]
pub(super) struct Repo {
    pub id: String,
    pub files: BTreeMap<String, Stored>,
}

impl Repo {
    pub fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            files: BTreeMap::new(),
        }
    }

    /// A small Llama.
    pub fn llama(id: &str) -> Self {
        Self::new(id).file(
            "config.json",
            r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":64,"num_attention_heads":4,"num_key_value_heads":2,"num_hidden_layers":2,"intermediate_size":128,"vocab_size":100,"max_position_embeddings":4096,"torch_dtype":"bfloat16"}"#,
        )
    }

    pub fn file(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        let start = content.into();
        self.files.insert(name.to_owned(), Stored { start, zeros: 0 });
        self
    }

    /// A safetensors file of one-dimensional bf16 tensors; the tensors are not kept.
    pub fn tensors(mut self, name: &str, tensors: &[(&str, u64)]) -> Self {
        let (start, zeros) = safetensors(tensors);
        self.files.insert(name.to_owned(), Stored { start, zeros });
        self
    }

    /// The index over these files.
    pub fn index(self, map: &[(&str, &str)]) -> Self {
        let map: BTreeMap<&str, &str> = map.iter().copied().collect();
        let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
        self.file("model.safetensors.index.json", index.to_string())
    }

    /// The hub's answer.
    pub fn answer(&self, asked: &Asked) -> Reply {
        if asked
            .path
            .starts_with(&format!("/api/models/{}/revision/", self.id))
        {
            let siblings: Vec<_> = self
                .files
                .keys()
                .map(|n| serde_json::json!({"rfilename": n}))
                .collect();
            let info = serde_json::json!({"id": self.id, "sha": SHA, "siblings": siblings});
            return Reply::new(200, info.to_string()).with("Content-Type", "application/json");
        }
        let file = asked
            .path
            .strip_prefix(&format!("/{}/resolve/{SHA}/", self.id))
            .and_then(|name| self.files.get(name));
        let Some(file) = file else {
            return Reply::new(404, "Entry not found").with("X-Error-Code", "EntryNotFound");
        };
        match asked.range {
            None => {
                let mut reply = Reply::new(200, file.start.clone());
                reply.zeros = file.zeros;
                reply
            }
            Some((first, last)) => {
                let total = file.start.len() as u64 + file.zeros;
                let end = (last + 1).min(total);
                let at = |n: u64| usize::try_from(n).unwrap().min(file.start.len());
                let known = &file.start[at(first)..at(end)];
                let mut reply = Reply::new(206, known)
                    .with("Content-Range", format!("bytes {first}-{}/{total}", end - 1));
                reply.zeros = end - first - known.len() as u64;
                reply
            }
        }
    }
}

/// Beginning of a safetensors file, and how many bytes of tensors follow.
pub(super) fn safetensors(tensors: &[(&str, u64)]) -> (Vec<u8>, u64) {
    let mut at = 0;
    let members: Vec<String> = tensors
        .iter()
        .map(|(name, n)| {
            at += n * 2;
            format!(
                r#""{name}":{{"dtype":"BF16","shape":[{n}],"data_offsets":[{},{at}]}}"#,
                at - n * 2
            )
        })
        .collect();
    let header = format!("{{{}}}", members.join(","));
    let mut start = (header.len() as u64).to_le_bytes().to_vec();
    start.extend_from_slice(header.as_bytes());
    (start, at)
}
