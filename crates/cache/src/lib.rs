//! KV cache structures of LLM inference engines, as a library to embed.
//!
//! An engine that serves several requests from one pool of KV memory needs the same few structures: blocks with
//! owners, names for block contents so that equal prefixes are computed once, block tables, an order of eviction. This
//! crate has them twice, as vLLM builds them (blocks named by hash chains) and as SGLang does (a radix tree over
//! tokens), with every rule that decides *which* block is reused taken from the engines' own code.
//!
//! A request's way through a block manager: look up what is cached, allocate the rest, name what gets filled, give
//! everything back.
//!
//! ```
//! use kvwise_cache::hash::fast_chain;
//! use kvwise_cache::manager::{Allocation, EngineKvCache, Hit, ManagerConfig};
//!
//! // the name of each full block of 16 tokens covers the block and all before it
//! fn names(tokens: &[u32]) -> Vec<u128> {
//!     tokens.chunks_exact(16).scan(0, |parent, block| { *parent = fast_chain(*parent, block); Some(*parent) }).collect()
//! }
//!
//! let mut cache = EngineKvCache::with_hashes(&ManagerConfig::full_attention(64, 16))?; // 64 blocks of 16 tokens
//! let mut hit = Hit::default();
//!
//! let first: Vec<u32> = (0..100).collect();
//! let keys = names(&first);
//! let slot = cache.open();
//! cache.lookup(&keys, 100, &mut hit);
//! assert_eq!(hit.num_tokens, 0); // nothing cached yet
//! assert!(cache.allocate(slot, &Allocation::new(&keys, 0, 100, 100), Some(&hit)));
//! assert_eq!(cache.blocks(slot, 0), [1, 2, 3, 4, 5, 6, 7]); // compute K and V of all 100 tokens into these
//! cache.close(slot); // nobody owns the blocks now, but their contents can still be found
//!
//! let second: Vec<u32> = (0..80).chain(500..520).collect(); // the same first 80 tokens
//! let keys = names(&second);
//! let slot = cache.open();
//! cache.lookup(&keys, 100, &mut hit);
//! assert_eq!(hit.num_tokens, 80); // five blocks need not be computed
//! assert!(cache.allocate(slot, &Allocation::new(&keys, 0, 100 - hit.num_tokens, 100), Some(&hit)));
//! assert_eq!(cache.blocks(slot, 0)[..5], [1, 2, 3, 4, 5]);
//! cache.close(slot);
//! # Ok::<(), kvwise_cache::Error>(())
//! ```
//!
//! `examples/embed_in_engine.rs` is a whole engine loop (admission, chunked prefill, decoding, preemption) over either
//! structure; `examples/paged_attention.rs` computes real attention through the paged store.
//!
//! # Which part to take
//!
//! | you want | take | as in |
//! |---|---|---|
//! | block tables with prefix caching; sliding windows, chunked attention, Mamba states beside full attention | [`manager`] | vLLM 0.32.0 |
//! | only blocks, owners and names | [`pool`] | vLLM 0.32.0 |
//! | token-exact prefix sharing, locks on what runs, priorities | [`radix`] | SGLang 0.5.23 |
//! | block names equal to those of a running vLLM (routers, KV events) | [`hash`] | vLLM 0.32.0 |
//! | bytes: K and V in pages, five number formats, three layouts | [`store`] | vLLM's and SGLang's layouts |
//! | another order of eviction, for a tier of your own | [`policy`] | the papers |
//!
//! # What the whole crate promises
//!
//! - **No clock, no IO, no threads, no unsafe code.** Time is a counter of the caller or of the structure, so equal calls
//!   give equal results on every machine. Put a lock around a structure to share it.
//! - **Nothing is allocated in steady state**, except where a module says so.
//! - **O(1) a block**, or amortised O(log leaves) a node of the tree; each module has its table of costs.
//! - **A refusal changes nothing** that the caller has to undo.
//! - **Errors are sentences** that name the field and its value ([`Error`]); a broken contract (releasing a block twice)
//!   is caught by debug assertions, and by `check` functions that walk all invariants.
//!
//! # How it is tested
//!
//! Fast structures are held to naive twins on random operations, and small cases are enumerated completely. Whole
//! replays are equal, block by block and slot by slot, to what vLLM 0.32.0's scheduler and block manager and SGLang
//! 0.5.23's radix cache did on the same traces; the repository has the scripts that drive the engines.
//!
//! # What is not modelled
//!
//! Transfers between tiers and nodes (vLLM's KV connectors, SGLang's `HiCache`), cross attention, attention sinks' own
//! blocks, circular buffers, SGLang's sliding-window and Mamba trees. Each module lists what it leaves out.
//!
//! # Dependencies
//!
//! `hashbrown`, `rustc-hash`, `sha2`, `xxhash-rust`: nothing else.

pub mod error;
pub mod hash;
pub mod manager;
pub mod policy;
pub mod pool;
pub mod radix;
pub mod store;

pub use error::{Error, ErrorKind, Result};
