//! The table of wordings: first who is it, then memory, the cache and refusals, then what explains differences.

mod hints;
mod identity;
mod memory;
mod pool;

use super::Wording;

/// All wordings; the first that matches reads the line.
pub const WORDINGS: [&[Wording]; 4] = [identity::ALL, memory::ALL, pool::ALL, hints::ALL];
