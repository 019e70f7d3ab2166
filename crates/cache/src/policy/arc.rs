//! ARC: recency and frequency lists whose balance follows the hits in their ghosts.

use super::ghost::GhostList;
use super::list::{Links, List};
use super::{Access, Capacity, EvictionPolicy};

/// Adaptive replacement cache. `recent` (T1) holds entries used once, `frequent` (T2) those used again; their ghosts
/// (B1, B2) remember what left them. A miss on a ghost moves the target size of `recent` towards that side, by
/// the ratio of the ghosts' lengths (integer division), at least 1.
#[derive(Debug, Clone)]
pub struct Arc {
    links: Links,
    recent: List,
    frequent: List,
    is_frequent: Vec<bool>,
    keys: Vec<u64>,
    recent_ghost: GhostList,
    frequent_ghost: GhostList,
    /// Target size of `recent` (p).
    target: usize,
    capacity: usize,
    /// The key for which a victim was taken last, if it was a ghost: it enters `frequent`.
    returning: Option<u64>,
}

/// Where a missing key was remembered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ghost {
    None,
    Recent,
    Frequent,
}

impl Arc {
    /// Adapts the target to a miss and forgets the key's ghost.
    fn learn(&mut self, key: u64) -> Ghost {
        let (recent, frequent) = (self.recent_ghost.len(), self.frequent_ghost.len());
        if self.recent_ghost.remove(key) {
            self.target = self.capacity.min(self.target + (frequent / recent).max(1));
            Ghost::Recent
        } else if self.frequent_ghost.remove(key) {
            self.target = self.target.saturating_sub((recent / frequent).max(1));
            Ghost::Frequent
        } else {
            Ghost::None
        }
    }

    /// The paper's REPLACE.
    fn replace(&mut self, ghost: Ghost) -> Option<u32> {
        let recent = self.recent.len();
        let from_recent =
            recent > 0 && (recent > self.target || (ghost == Ghost::Frequent && recent == self.target));
        if from_recent || self.frequent.len() == 0 {
            let entry = self.recent.pop_front(&mut self.links)?;
            self.recent_ghost.push(self.keys[entry as usize]);
            Some(entry)
        } else {
            let entry = self.frequent.pop_front(&mut self.links)?;
            self.frequent_ghost.push(self.keys[entry as usize]);
            Some(entry)
        }
    }
}

impl EvictionPolicy for Arc {
    type Config = ();

    fn new(capacity: Capacity, (): ()) -> Self {
        let entries = capacity.get();
        Self {
            links: Links::new(entries),
            recent: List::EMPTY,
            frequent: List::EMPTY,
            is_frequent: vec![false; entries],
            keys: vec![0; entries],
            recent_ghost: GhostList::new(entries),
            // both frequent lists together may remember two capacities, less what `recent` and its ghost hold
            frequent_ghost: GhostList::new(2 * entries),
            target: 0,
            capacity: entries,
            returning: None,
        }
    }

    fn on_insert(&mut self, entry: u32, access: &Access) {
        let at = entry as usize;
        self.keys[at] = access.key;
        let returns = match self.returning.take() {
            Some(key) => key == access.key,
            None => self.learn(access.key) != Ghost::None,
        };
        self.is_frequent[at] = returns;
        let list = if returns {
            &mut self.frequent
        } else {
            &mut self.recent
        };
        list.push_back(&mut self.links, entry);
    }

    fn on_hit(&mut self, entry: u32, _: &Access) {
        self.on_remove(entry);
        self.is_frequent[entry as usize] = true;
        self.frequent.push_back(&mut self.links, entry);
    }

    fn on_remove(&mut self, entry: u32) {
        let list = if self.is_frequent[entry as usize] {
            &mut self.frequent
        } else {
            &mut self.recent
        };
        list.remove(&mut self.links, entry);
    }

    fn pop_victim(&mut self, incoming: &Access) -> Option<u32> {
        let ghost = self.learn(incoming.key);
        if ghost != Ghost::None {
            self.returning = Some(incoming.key);
            return self.replace(ghost);
        }
        self.returning = None;
        if self.recent.len() + self.recent_ghost.len() >= self.capacity {
            if self.recent.len() < self.capacity {
                self.recent_ghost.pop_oldest();
                return self.replace(ghost);
            }
            // `recent` fills the cache alone: its oldest entry leaves no ghost
            return self.recent.pop_front(&mut self.links);
        }
        let remembered = self.recent.len() + self.frequent.len();
        if remembered + self.recent_ghost.len() + self.frequent_ghost.len() >= 2 * self.capacity {
            self.frequent_ghost.pop_oldest();
        }
        self.replace(ghost)
    }
}
