//! Recording, end to end, against servers made in the test: no real engine, no network but the loopback.

mod attach;
mod damage;
mod exporter;
mod fake_engine;
mod kill;
mod kv_events;
mod probe;
