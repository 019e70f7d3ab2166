//! Recordings of a running server: a folder with `metadata.json` and `session.sqlite`.
//!
//! - [`schema`]: tables, their version, and what each column means.
//! - [`store`]: creating and opening the folder; the database is in WAL mode and committed about once a second, so a
//!   recorder that is killed loses at most the last second and the file still opens.
//! - [`counters`]: raw counters of a server that restarts made into totals that only grow.
//! - [`record`]: writing scrapes, gaps and events.
//! - [`age`]: bounded growth by thinning out what is old.
//! - [`probe`]: reading the files that the Python probe writes inside the engine's processes.
//! - [`sampling`]: when the probe recorded less than everything, and what it cost.
//! - [`series`]: reading a recording back.
//! - [`seed_files`]: the CSV files and the summary that older profiling guides describe.
//! - `parquet` (a build feature): every table as a Parquet file.
//! - [`trace`]: the requests of a recording as a trace for replay.

pub mod age;
pub mod counters;
#[cfg(feature = "parquet")]
pub mod parquet;
pub mod probe;
mod probe_events;
mod probe_records;
pub mod record;
pub mod sampling;
pub mod schema;
pub mod seed_files;
pub mod series;
pub mod store;
pub mod trace;

pub use store::Session;
