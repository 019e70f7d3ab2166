//! A model's architecture: which caches and which weights each layer has, independent of any engine or GPU.
//!
//! [`read`](family::read) turns a `config.json` into a [`Model`]: a list of [`Layer`]s, each with the
//! [`Cache`]s it keeps per token or per request and the [`Weight`]s it holds, plus the [`Outside`] parts
//! (embeddings, head, towers). Everything is in full, unsharded dimensions; parallelism is applied by
//! [`Cache`]- and [`Weight`]-methods that take the number of ranks.

pub mod cache;
pub mod config;
mod drafter;
pub mod family;
pub mod model;
pub mod parallel;
pub mod shape;
pub mod weight;

pub use cache::{Cache, CacheKind, Heads, State};
pub use config::Config;
pub(crate) use model::Kinds;
pub use model::{AttentionScales, Layer, Model, Modules, Outside, Place, Pooling, Weights};
pub use parallel::Parallel;
pub use weight::{Op, Part, Role, Shard, Split, Weight};
