//! Level three: the bytes of K and V, addressed by the slots that the levels above hand out.
//!
//! ```
//! use kvwise_cache::store::{KvDtype, KvLayout, KvStore, KvStoreConfig};
//!
//! let mut store = KvStore::new(KvStoreConfig {
//!     layers: 1,
//!     capacity_tokens: 8,
//!     page_size: 4,
//!     heads: 2,
//!     key_dim: 2,
//!     value_dim: 2,
//!     dtype: KvDtype::F16,
//!     layout: KvLayout::Hnd,
//! })?;
//! // K and V of two tokens, each head by head
//! store.write(0, &[5, 9], &[1., 2., 3., 4., 5., 6., 7., 8.], &[-1.; 8])?;
//!
//! let mut keys = [0.; 8];
//! store.gather_keys(0, &[9, 5], &mut keys)?;
//! assert_eq!(keys, [5., 6., 7., 8., 1., 2., 3., 4.]);
//! # Ok::<(), kvwise_cache::Error>(())
//! ```
//!
//! **Layouts.** One buffer for K and one for V in each layer, over pages 0 to `capacity / page` (page 0 is the
//! dummy that padded tokens write to, so real slots start at `page_size`; with pages of one token at 1):
//! - [`KvLayout::Nhd`]: `[slot][head][dim]`, a token's heads together (SGLang's `MHATokenToKVPool`, vLLM's NHD);
//! - [`KvLayout::Hnd`]: `[page][head][slot in page][dim]`, a head's tokens of one page together (FlashInfer, vLLM's
//!   HND);
//! - [`KvLayout::Mla`]: one latent vector a token instead of K and V per head; values are its first `value_dim`
//!   numbers (`kv_lora_rank`), so V takes no bytes (DeepSeek's multi-head latent attention).
//!
//! **Costs.** `write`, `gather` and `copy` are O(numbers moved) and allocate nothing; [`KvStore::new`] allocates
//! `layers * (capacity + page_size) * bytes_per_token_per_layer` bytes, all of it at once.
//!
//! **Not modelled.** Quantisation scales (divide before `write`, multiply after `gather`), packed 4-bit formats, GPU
//! memory. [`KvStore::layer_bytes`] and [`KvStore::strides_bytes`] give what an exporter (`DLPack`) needs.

mod element;
mod kv_store;

pub use element::KvDtype;
pub use kv_store::{KvLayout, KvStore, KvStoreConfig, Plane};
