//! FIFO and LRU: one queue, with and without a move on use.

use super::list::{Links, List};
use super::{Access, Capacity, EvictionPolicy};

/// First in, first out.
#[derive(Debug, Clone)]
pub struct Fifo {
    links: Links,
    queue: List,
}

impl EvictionPolicy for Fifo {
    type Config = ();

    fn new(capacity: Capacity, (): ()) -> Self {
        Self {
            links: Links::new(capacity.get()),
            queue: List::EMPTY,
        }
    }

    fn on_insert(&mut self, entry: u32, _: &Access) {
        self.queue.push_back(&mut self.links, entry);
    }

    fn on_hit(&mut self, _: u32, _: &Access) {}

    fn on_remove(&mut self, entry: u32) {
        self.queue.remove(&mut self.links, entry);
    }

    fn pop_victim(&mut self, _: &Access) -> Option<u32> {
        self.queue.pop_front(&mut self.links)
    }
}

/// Least recently used first.
#[derive(Debug, Clone)]
pub struct Lru {
    links: Links,
    queue: List,
}

impl EvictionPolicy for Lru {
    type Config = ();

    fn new(capacity: Capacity, (): ()) -> Self {
        Self {
            links: Links::new(capacity.get()),
            queue: List::EMPTY,
        }
    }

    fn on_insert(&mut self, entry: u32, _: &Access) {
        self.queue.push_back(&mut self.links, entry);
    }

    fn on_hit(&mut self, entry: u32, _: &Access) {
        self.queue.remove(&mut self.links, entry);
        self.queue.push_back(&mut self.links, entry);
    }

    fn on_remove(&mut self, entry: u32) {
        self.queue.remove(&mut self.links, entry);
    }

    fn pop_victim(&mut self, _: &Access) -> Option<u32> {
        self.queue.pop_front(&mut self.links)
    }
}
