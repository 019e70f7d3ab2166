//! S3-FIFO: a small queue that filters one-hit wonders, a main queue with second chances, a ghost queue.

use super::ghost::GhostList;
use super::list::{Links, List};
use super::{Access, Capacity, EvictionPolicy};

/// The small queue holds a tenth of the entries, the main queue the rest, the ghost as many keys as the main
/// queue has entries. New keys enter the small queue, keys known to the ghost the main queue. Leaving the small
/// queue, an entry used more than once moves to the main queue, others go and leave their key in the ghost; in
/// the main queue a used entry goes back to the end with one use less. Uses are counted up to 3.
///
/// The paper evicts from the main queue when it is full and from the small queue otherwise; the same is done here
/// once per victim, so moves between the queues never evict twice.
#[derive(Debug, Clone)]
pub struct S3Fifo {
    links: Links,
    small: List,
    main: List,
    in_main: Vec<bool>,
    uses: Vec<u8>,
    keys: Vec<u64>,
    ghost: GhostList,
    main_max: usize,
}

impl EvictionPolicy for S3Fifo {
    type Config = ();

    fn new(capacity: Capacity, (): ()) -> Self {
        let entries = capacity.get();
        let main_max = entries - (entries / 10).max(1);
        Self {
            links: Links::new(entries),
            small: List::EMPTY,
            main: List::EMPTY,
            in_main: vec![false; entries],
            uses: vec![0; entries],
            keys: vec![0; entries],
            ghost: GhostList::new(main_max),
            main_max,
        }
    }

    fn on_insert(&mut self, entry: u32, access: &Access) {
        let at = entry as usize;
        self.keys[at] = access.key;
        self.uses[at] = 0;
        self.in_main[at] = self.ghost.remove(access.key);
        let queue = if self.in_main[at] {
            &mut self.main
        } else {
            &mut self.small
        };
        queue.push_back(&mut self.links, entry);
    }

    fn on_hit(&mut self, entry: u32, _: &Access) {
        let uses = &mut self.uses[entry as usize];
        *uses = (*uses + 1).min(3);
    }

    fn on_remove(&mut self, entry: u32) {
        let queue = if self.in_main[entry as usize] {
            &mut self.main
        } else {
            &mut self.small
        };
        queue.remove(&mut self.links, entry);
    }

    fn pop_victim(&mut self, _: &Access) -> Option<u32> {
        loop {
            if self.main.len() > self.main_max || self.small.len() == 0 {
                let entry = self.main.pop_front(&mut self.links)?;
                if self.uses[entry as usize] == 0 {
                    return Some(entry);
                }
                self.uses[entry as usize] -= 1;
                self.main.push_back(&mut self.links, entry);
            } else {
                let entry = self.small.pop_front(&mut self.links)?;
                let at = entry as usize;
                if self.uses[at] <= 1 {
                    self.ghost.push(self.keys[at]);
                    return Some(entry);
                }
                self.uses[at] = 0;
                self.in_main[at] = true;
                self.main.push_back(&mut self.links, entry);
            }
        }
    }
}
