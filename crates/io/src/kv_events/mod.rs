//! KV cache events as vLLM and SGLang publish them: exact content of the prefix cache, evictions and reuse.
//!
//! - [`zmtp`]: the part of ZeroMQ's wire protocol (ZMTP 3.0, NULL mechanism) that a subscriber needs. Own code: the
//!   ZeroMQ crates bind a C library or bring an async runtime, for two frame types and one handshake.
//! - [`msgpack`]: reading msgpack values, with limits.
//! - [`batch`]: event batches of both engines (maps with a `type`, and the older positional form).
//! - [`content`]: what is cached now, for how long, and what had to be computed again after it was evicted.
//! - [`subscribe`]: a subscription that reconnects and asks for missed batches.

pub mod batch;
pub mod content;
pub mod msgpack;
pub mod subscribe;
pub mod zmtp;
