//! Segmented LRU: an entry earns protection by its second use.

use super::list::{Links, List};
use super::{Access, Capacity, EvictionPolicy};
use crate::error::{Error, Result};

/// Share of the capacity that the protected segment may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlruConfig {
    protected_percent: u8,
}

impl SlruConfig {
    /// A protected segment of up to `percent` of the capacity, rounded down.
    ///
    /// # Errors
    /// If `percent` is above 100.
    pub fn new(percent: u8) -> Result<Self> {
        if percent > 100 {
            return Err(Error::invalid(format!(
                "protected share is {percent} %, expected at most 100"
            )));
        }
        Ok(Self {
            protected_percent: percent,
        })
    }
}

impl Default for SlruConfig {
    /// 80 %.
    fn default() -> Self {
        Self {
            protected_percent: 80,
        }
    }
}

/// Two LRU segments: new entries are on probation, a hit there promotes, and a protected segment over its share
/// sends its oldest entry back to the young end of probation. Victims come from probation first.
#[derive(Debug, Clone)]
pub struct Slru {
    links: Links,
    probation: List,
    protected: List,
    is_protected: Vec<bool>,
    protected_max: usize,
}

impl EvictionPolicy for Slru {
    type Config = SlruConfig;

    fn new(capacity: Capacity, config: SlruConfig) -> Self {
        Self {
            links: Links::new(capacity.get()),
            probation: List::EMPTY,
            protected: List::EMPTY,
            is_protected: vec![false; capacity.get()],
            protected_max: capacity.get() * usize::from(config.protected_percent) / 100,
        }
    }

    fn on_insert(&mut self, entry: u32, _: &Access) {
        self.is_protected[entry as usize] = false;
        self.probation.push_back(&mut self.links, entry);
    }

    fn on_hit(&mut self, entry: u32, _: &Access) {
        self.on_remove(entry);
        self.is_protected[entry as usize] = true;
        self.protected.push_back(&mut self.links, entry);
        if self.protected.len() > self.protected_max
            && let Some(oldest) = self.protected.pop_front(&mut self.links)
        {
            self.is_protected[oldest as usize] = false;
            self.probation.push_back(&mut self.links, oldest);
        }
    }

    fn on_remove(&mut self, entry: u32) {
        let segment = if self.is_protected[entry as usize] {
            &mut self.protected
        } else {
            &mut self.probation
        };
        segment.remove(&mut self.links, entry);
    }

    fn pop_victim(&mut self, _: &Access) -> Option<u32> {
        let Self {
            links,
            probation,
            protected,
            ..
        } = self;
        probation.pop_front(links).or_else(|| protected.pop_front(links))
    }
}
