//! SIEVE: a FIFO queue, a visited bit, and a hand that keeps its place.

use super::list::{Links, List};
use super::{Access, Capacity, EvictionPolicy};

/// A hit only sets a bit. The hand walks from the oldest entry to the newest, clears bits, and evicts the first
/// entry without one; it goes on from there next time, and starts over at the oldest after the newest.
#[derive(Debug, Clone)]
pub struct Sieve {
    links: Links,
    queue: List,
    visited: Vec<bool>,
    hand: Option<u32>,
}

impl EvictionPolicy for Sieve {
    type Config = ();

    fn new(capacity: Capacity, (): ()) -> Self {
        Self {
            links: Links::new(capacity.get()),
            queue: List::EMPTY,
            visited: vec![false; capacity.get()],
            hand: None,
        }
    }

    fn on_insert(&mut self, entry: u32, _: &Access) {
        self.visited[entry as usize] = false;
        self.queue.push_back(&mut self.links, entry);
    }

    fn on_hit(&mut self, entry: u32, _: &Access) {
        self.visited[entry as usize] = true;
    }

    fn on_remove(&mut self, entry: u32) {
        if self.hand == Some(entry) {
            self.hand = self.links.after(entry);
        }
        self.queue.remove(&mut self.links, entry);
    }

    fn pop_victim(&mut self, _: &Access) -> Option<u32> {
        let mut at = self.hand.or(self.queue.front())?;
        while self.visited[at as usize] {
            self.visited[at as usize] = false;
            at = self.links.after(at).or(self.queue.front())?;
        }
        self.hand = self.links.after(at);
        self.queue.remove(&mut self.links, at);
        Some(at)
    }
}
