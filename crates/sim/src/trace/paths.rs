//! Requests as paths in a prefix tree of blocks, kept as runs of consecutive nodes.
//!
//! Nodes are numbered as they first appear, so the blocks that a request adds are consecutive, and a later request
//! that repeats them is one [`Run`]. Real traces need 1.0 to 1.4 runs a request where they have 24 to 1,910 blocks.
//!
//! Cost: following a known path costs two array reads a block; only where a path leaves a run is a table asked.
//! Memory: 12 bytes a distinct block, 8 a run, 16 a request.

use rustc_hash::FxHashMap;

use super::Span;
use super::size::{size_of_u64, table_bytes};
use kvwise_core::{Error, Result};

/// The parent of first blocks.
pub const ROOT: u32 = u32::MAX;

/// `len` nodes from `first` on, each the child of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First node.
    pub first: u32,
    /// How many nodes, at least 1.
    pub len: u32,
}

/// The paths of all requests of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockPaths {
    pub(crate) block_tokens: u32,
    pub(crate) runs: Vec<Run>,
    pub(crate) spans: Vec<Span>,
    /// Parent of each node, [`ROOT`] for first blocks.
    pub(crate) parents: Vec<u32>,
    /// The id that the file gives each node.
    pub(crate) raw_ids: Vec<u64>,
}

impl BlockPaths {
    /// Tokens of a block.
    pub fn block_tokens(&self) -> u32 {
        self.block_tokens
    }

    /// How many distinct blocks (nodes).
    pub fn unique_blocks(&self) -> u32 {
        u32::try_from(self.parents.len()).expect("an interner makes fewer than 2^32 nodes")
    }

    /// Parent of each node, [`ROOT`] for first blocks; a parent is always smaller than its child.
    pub fn parents(&self) -> &[u32] {
        &self.parents
    }

    /// The id that the file gives each node; different nodes may have the same id where ids name the content of
    /// one block ([`IdMeaning::Content`](super::IdMeaning::Content)) or are local to a file.
    pub fn raw_ids(&self) -> &[u64] {
        &self.raw_ids
    }

    /// How many requests.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is no request.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The path of request `index`.
    pub fn get(&self, index: usize) -> BlockPath<'_> {
        BlockPath {
            runs: &self.runs[self.spans[index].range()],
            paths: self,
        }
    }

    /// Blocks of all requests together.
    pub fn block_accesses(&self) -> u64 {
        (0..self.len()).map(|i| self.get(i).len() as u64).sum()
    }

    /// Runs of all requests together: the work of an algorithm that treats a run at once.
    pub fn run_count(&self) -> usize {
        self.spans.iter().map(|s| s.len as usize).sum()
    }
}

/// The blocks of one request.
#[derive(Debug, Clone, Copy)]
pub struct BlockPath<'a> {
    runs: &'a [Run],
    paths: &'a BlockPaths,
}

impl<'a> BlockPath<'a> {
    /// The path as runs.
    pub fn runs(&self) -> &'a [Run] {
        self.runs
    }

    /// The path node by node, from the root.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.runs.iter().flat_map(|run| run.first..run.first + run.len)
    }

    /// How many blocks.
    pub fn len(&self) -> usize {
        self.runs.iter().map(|run| run.len as usize).sum()
    }

    /// Whether there is no block (a prompt shorter than one block in a trace of full blocks).
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Tokens of a block.
    pub fn block_tokens(&self) -> u32 {
        self.paths.block_tokens
    }

    /// Nodes in the whole trace.
    pub fn tree_len(&self) -> u32 {
        self.paths.unique_blocks()
    }

    /// The ids as the file gives them.
    pub fn raw_ids(&self) -> impl Iterator<Item = u64> + use<'a> {
        let raw = &self.paths.raw_ids;
        self.iter().map(move |node| raw[node as usize])
    }
}

/// How [`PathInterner`] finds the node of an id.
#[derive(Debug, Clone)]
enum Index {
    /// An id names the whole prefix: one node an id.
    ByPrefix(IdTable),
    /// An id names the content of one block: one node a (parent, id). A node that directly follows its parent is
    /// found there and is not in the table, which so stays as small as the number of branches.
    ByContent(FxHashMap<(u32, u64), u32>),
}

/// Turns lists of ids into paths.
#[derive(Debug, Clone)]
pub struct PathInterner {
    index: Index,
    parents: Vec<u32>,
    raw_ids: Vec<u64>,
    max_nodes: u32,
}

impl PathInterner {
    /// An interner where an id names a whole prefix; an id after two different parents is then an error.
    pub fn by_prefix() -> Self {
        Self::new(Index::ByPrefix(IdTable::default()))
    }

    /// An interner where an id names the content of one block, wherever it stands.
    pub fn by_content() -> Self {
        Self::new(Index::ByContent(FxHashMap::default()))
    }

    fn new(index: Index) -> Self {
        Self {
            index,
            parents: Vec::new(),
            raw_ids: Vec::new(),
            max_nodes: u32::MAX - 1,
        }
    }

    /// Nodes so far.
    pub fn len(&self) -> usize {
        self.parents.len()
    }

    /// Whether no id was seen yet.
    pub fn is_empty(&self) -> bool {
        self.parents.is_empty()
    }

    /// Bytes of the table that finds nodes; parents and ids are the tree's.
    pub(super) fn table_bytes(&self) -> u64 {
        match &self.index {
            Index::ByPrefix(table) => {
                4 * table.dense.len() as u64
                    + table_bytes(table.sparse.len() as u64, size_of_u64::<(u64, u32)>())
            }
            Index::ByContent(table) => table_bytes(table.len() as u64, size_of_u64::<((u32, u64), u32)>()),
        }
    }

    /// Appends the path of `ids` to `runs`. After an error everything is as before.
    ///
    /// # Errors
    /// If an id that names a prefix stands after two different parents (this covers cycles and repetitions), or
    /// at 2^32 nodes.
    pub fn intern(&mut self, ids: &[u64], runs: &mut Vec<Run>) -> Result<()> {
        let (old_nodes, old_runs) = (self.parents.len(), runs.len());
        let result = self.follow(ids, runs);
        if result.is_err() {
            self.forget_from(old_nodes);
            runs.truncate(old_runs);
        }
        result
    }

    fn follow(&mut self, ids: &[u64], runs: &mut Vec<Run>) -> Result<()> {
        let mut parent = ROOT;
        let mut at = 0;
        while at < ids.len() {
            let fresh = self.add_unseen(parent, &ids[at..]);
            if fresh > 0 {
                let len = u32::try_from(fresh).expect("nodes are 32-bit");
                let first = u32::try_from(self.parents.len()).expect("nodes are 32-bit") - len;
                push_run(runs, parent, Run { first, len });
                parent = first + len - 1;
                at += fresh;
                continue;
            }
            let first = self.node_of(parent, ids, at)?;
            // As long as the following nodes continue the path, no table is needed.
            let known = &self.raw_ids[first as usize + 1..];
            let parents = &self.parents[first as usize + 1..];
            let mut len = 1u32;
            for ((&id, &raw), &node_parent) in ids[at + 1..].iter().zip(known).zip(parents) {
                if raw != id || node_parent != first + len - 1 {
                    break;
                }
                len += 1;
            }
            push_run(runs, parent, Run { first, len });
            parent = first + len - 1;
            at += len as usize;
        }
        Ok(())
    }

    /// Makes nodes of the ids that begin `ids`, the first a child of `parent`, as far as they were surely never seen
    /// there; answers how many. Most nodes of a trace are made here, in one go a request.
    fn add_unseen(&mut self, parent: u32, ids: &[u64]) -> usize {
        let made = self.parents.len();
        let room = (self.max_nodes as usize).saturating_sub(made);
        let first = u32::try_from(made).expect("nodes are 32-bit");
        let count = match &mut self.index {
            Index::ByPrefix(table) => table.insert_unseen(&ids[..ids.len().min(room)], first),
            // what follows the newest node has never been there
            Index::ByContent(_) if parent != ROOT && parent.checked_add(1) == Some(first) => {
                ids.len().min(room)
            }
            Index::ByContent(_) => 0,
        };
        if count > 0 {
            self.parents.push(parent);
            self.parents.extend((first..).take(count - 1));
            self.raw_ids.extend_from_slice(&ids[..count]);
        }
        count
    }

    /// The node of `ids[at]` after `parent`, made if it is new.
    fn node_of(&mut self, parent: u32, ids: &[u64], at: usize) -> Result<u32> {
        let id = ids[at];
        let new = u32::try_from(self.parents.len())
            .ok()
            .filter(|&n| n < self.max_nodes)
            .ok_or_else(too_many_nodes)?;
        match &mut self.index {
            Index::ByPrefix(table) => {
                if let Some(node) = table.get(id) {
                    if self.parents[node as usize] == parent {
                        return Ok(node);
                    }
                    return Err(self.contradiction(node, ids, at));
                }
                table.insert(id, new);
            }
            Index::ByContent(table) => {
                let next = parent.wrapping_add(1); // ROOT wraps to 0, whose parent is never "child of ROOT - 1"
                if parent != ROOT
                    && self.parents.get(next as usize) == Some(&parent)
                    && self.raw_ids[next as usize] == id
                {
                    return Ok(next);
                }
                if let Some(&node) = table.get(&(parent, id)) {
                    return Ok(node);
                }
                if parent == ROOT || new != next {
                    table.insert((parent, id), new);
                }
            }
        }
        self.parents.push(parent);
        self.raw_ids.push(id);
        Ok(new)
    }

    fn contradiction(&self, node: u32, ids: &[u64], at: usize) -> Error {
        let id = ids[at];
        let after = |raw: Option<u64>| raw.map_or("at the start".to_owned(), |id| format!("after id {id}"));
        let here = after(at.checked_sub(1).map(|p| ids[p]));
        let before = match self.parents[node as usize] {
            ROOT => after(None),
            parent => after(Some(self.raw_ids[parent as usize])),
        };
        let sentence = if ids[..at].contains(&id) {
            format!("hash id {id} stands twice in one request, but an id names one prefix")
        } else {
            format!(
                "hash id {id} stands {here} here but {before} in an earlier request, but an id names one whole prefix"
            )
        };
        Error::input(sentence)
            .hint("if ids name the content of single blocks, read the file with --trace-format tokens")
    }

    fn forget_from(&mut self, len: usize) {
        while self.parents.len() > len {
            let node = u32::try_from(self.parents.len() - 1).expect("nodes are 32-bit");
            let (parent, raw) = (
                self.parents.pop().unwrap_or(ROOT),
                self.raw_ids.pop().unwrap_or(0),
            );
            match &mut self.index {
                Index::ByPrefix(table) => table.remove(raw),
                Index::ByContent(table) => {
                    if table.get(&(parent, raw)) == Some(&node) {
                        table.remove(&(parent, raw));
                    }
                }
            }
        }
    }

    /// Ends a name space of ids: from here on the same ids name other prefixes. Nodes stay.
    pub fn new_scope(&mut self) {
        match &mut self.index {
            Index::ByPrefix(table) => *table = IdTable::default(),
            Index::ByContent(table) => table.retain(|&(parent, _), _| parent != ROOT),
        }
    }

    /// Appends a whole tree with its own name space of ids; answers by how much its node numbers grew.
    pub(crate) fn adopt(&mut self, parents: &[u32], raw_ids: &[u64]) -> Result<u32> {
        let shift = u32::try_from(self.parents.len())
            .ok()
            .filter(|&shift| u64::from(shift) + parents.len() as u64 <= u64::from(self.max_nodes))
            .ok_or_else(too_many_nodes)?;
        self.parents.extend(
            parents
                .iter()
                .map(|&parent| if parent == ROOT { ROOT } else { parent + shift }),
        );
        self.raw_ids.extend_from_slice(raw_ids);
        Ok(shift)
    }

    /// The tree: parents and raw ids of the nodes.
    pub(crate) fn into_tree(self) -> (Vec<u32>, Vec<u64>) {
        (self.parents, self.raw_ids)
    }
}

/// Appends a run that follows `parent`, to the last one where it continues it.
fn push_run(runs: &mut Vec<Run>, parent: u32, run: Run) {
    match runs.last_mut() {
        Some(last) if parent != ROOT && last.first + last.len == run.first => last.len += run.len,
        _ => runs.push(run),
    }
}

fn too_many_nodes() -> Error {
    Error::unsupported("the trace has more than 4,294,967,294 distinct blocks, more than 32-bit numbers hold")
}

/// Node by id: an array for ids near zero (they usually count from 0), a hash table for the rest.
#[derive(Debug, Clone, Default)]
struct IdTable {
    dense: Vec<u32>,
    sparse: FxHashMap<u64, u32>,
    /// Ids in the array, and ids in all.
    in_dense: usize,
    count: usize,
}

impl IdTable {
    /// The array may be this many times larger than the number of ids in it. (Not than that of all ids: hashes that
    /// happen to be small would make it large for nothing.)
    const SLACK: usize = 8;

    /// Whether an id belongs into the array: it would not be much larger than its contents, or is smaller than the hash
    /// table that the others need.
    fn is_dense(&self, index: usize) -> bool {
        index < Self::SLACK * (self.in_dense + 1024) || index < 2 * self.count
    }

    fn get(&self, id: u64) -> Option<u32> {
        if let Some(&node) = usize::try_from(id).ok().and_then(|i| self.dense.get(i))
            && node != ROOT
        {
            return Some(node);
        }
        if self.sparse.is_empty() {
            None
        } else {
            self.sparse.get(&id).copied()
        }
    }

    /// Gives the ids that begin `ids`, up to the first that is known, the nodes from `first` on; answers how many.
    fn insert_unseen(&mut self, ids: &[u64], first: u32) -> usize {
        for (count, (&id, node)) in ids.iter().zip(first..).enumerate() {
            if self.get(id).is_some() {
                return count;
            }
            self.insert(id, node);
        }
        ids.len()
    }

    fn insert(&mut self, id: u64, node: u32) {
        self.count += 1;
        match usize::try_from(id) {
            Ok(index) if self.is_dense(index) => {
                if index >= self.dense.len() {
                    self.dense.resize((index + 1).next_power_of_two(), ROOT);
                }
                self.in_dense += 1;
                self.dense[index] = node;
            }
            _ => {
                self.sparse.insert(id, node);
            }
        }
    }

    fn remove(&mut self, id: u64) {
        self.count = self.count.saturating_sub(1);
        if let Some(slot) = usize::try_from(id).ok().and_then(|i| self.dense.get_mut(i)) {
            self.in_dense -= usize::from(*slot != ROOT);
            *slot = ROOT;
        }
        self.sparse.remove(&id);
    }
}
