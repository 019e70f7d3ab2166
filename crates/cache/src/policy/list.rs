//! Doubly linked lists of entries in two flat arrays; an entry is in at most one list.

const NIL: u32 = u32::MAX;

/// Links of all entries; the lists themselves are [`List`]s.
#[derive(Debug, Clone)]
pub(super) struct Links {
    /// Towards the front.
    before: Vec<u32>,
    /// Towards the back.
    after: Vec<u32>,
}

/// Front is the next to go, back the newest.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    front: u32,
    back: u32,
    len: usize,
}

impl Links {
    pub(super) fn new(entries: usize) -> Self {
        Self {
            before: vec![NIL; entries],
            after: vec![NIL; entries],
        }
    }

    /// The neighbour towards the back, if there is one.
    pub(super) fn after(&self, entry: u32) -> Option<u32> {
        some(self.after[entry as usize])
    }
}

fn some(entry: u32) -> Option<u32> {
    (entry != NIL).then_some(entry)
}

impl List {
    pub(super) const EMPTY: Self = Self {
        front: NIL,
        back: NIL,
        len: 0,
    };

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn front(&self) -> Option<u32> {
        some(self.front)
    }

    pub(super) fn push_back(&mut self, links: &mut Links, entry: u32) {
        links.before[entry as usize] = self.back;
        links.after[entry as usize] = NIL;
        match some(self.back) {
            Some(back) => links.after[back as usize] = entry,
            None => self.front = entry,
        }
        self.back = entry;
        self.len += 1;
    }

    pub(super) fn remove(&mut self, links: &mut Links, entry: u32) {
        let (before, after) = (links.before[entry as usize], links.after[entry as usize]);
        match some(before) {
            Some(before) => links.after[before as usize] = after,
            None => self.front = after,
        }
        match some(after) {
            Some(after) => links.before[after as usize] = before,
            None => self.back = before,
        }
        self.len -= 1;
    }

    pub(super) fn pop_front(&mut self, links: &mut Links) -> Option<u32> {
        let entry = self.front()?;
        self.remove(links, entry);
        Some(entry)
    }
}
