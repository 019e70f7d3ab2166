//! A server with a vLLM metrics page whose numbers, faults and restarts the test decides.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the page says now.
#[derive(Debug, Clone)]
pub struct State {
    /// Tokens generated since the (simulated) process began.
    pub generation_tokens: u64,
    /// When the process began, seconds since 1970.
    pub start_s: f64,
    /// Answer with HTTP status 503.
    pub broken: bool,
}

/// A running server.
#[derive(Debug, Clone)]
pub struct FakeEngine {
    /// Its base URL.
    pub url: String,
    /// What it says.
    pub state: Arc<Mutex<State>>,
    answered: Arc<AtomicUsize>,
}

impl FakeEngine {
    /// Starts one on a free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let state = Arc::new(Mutex::new(State {
            generation_tokens: 1000,
            start_s: 1000.0,
            broken: false,
        }));
        let shared = Arc::clone(&state);
        let answered = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&answered);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let mut request = [0; 2048];
                let _ = stream.read(&mut request);
                let state = shared.lock().expect("state").clone();
                let body = page(&state);
                let head = if state.broken {
                    "503 Service Unavailable"
                } else {
                    "200 OK"
                };
                let _ = write!(
                    stream,
                    "HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { url, state, answered }
    }

    /// Requests answered so far.
    pub fn asked(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    /// Changes what it says.
    pub fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("state"));
    }
}

fn page(state: &State) -> String {
    let labels = "{engine=\"0\",model_name=\"fake\"}";
    format!(
        "process_start_time_seconds {}\n\
         vllm:kv_cache_usage_perc{labels} 0.5\n\
         vllm:num_requests_running{labels} 3\n\
         vllm:generation_tokens_total{labels} {}\n\
         vllm:cache_config_info{{engine=\"0\",num_gpu_blocks=\"101\",block_size=\"16\"}} 1\n",
        state.start_s, state.generation_tokens
    )
}
