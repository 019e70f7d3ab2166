//! The textbook demonstrations of KV memory, computed with the engines' rules: how many requests fit
//! ([`capacity`]), where reserved memory goes ([`fragmentation`]), what shared prefixes save ([`sharing`]).

pub mod buddy;
pub mod capacity;
pub mod fragmentation;
pub mod sharing;
