//! KV events: which pages entered and left the cache, for routers that follow several servers.
//!
//! Mirrors SGLang 0.5.23 (`sglang/srt/mem_cache/events.py`, `mem_cache/utils.py`): a page's hash is the first 64 bits
//! (signed, big-endian) of SHA-256 over the whole digest of the page before it, if any, and the page's tokens as
//! 32-bit little-endian words; with a cache salt the chain starts from a digest of the salt. Extra keys do not enter
//! the hash. Pages stored one after another along a chain are one event, so are removals that follow one another
//! under equal extra keys (the rule of SGLang's Rust tree). A split is no event.
//!
//! ```
//! use kvwise_cache::radix::{CacheEvent, EventLog, Insert, Namespace, RadixTree, TreePolicy};
//!
//! let log = EventLog::new(2);
//! let mut tree = RadixTree::with_observer(2, TreePolicy::Lru, 16, log)?;
//! let insert = Insert {
//!     namespace: Namespace::DEFAULT,
//!     key: &[1u32, 2, 3, 4, 5],
//!     slots: &[2, 3, 4, 5, 6],
//!     priority: 0,
//!     owned_by_tree: 0,
//!     already_counted: 0,
//! };
//! tree.insert(insert, |_| {})?;
//! let events = tree.observer_mut().take();
//! let [CacheEvent::Stored { hashes, parent_hash: None, tokens, .. }] = &events[..] else { unreachable!() };
//! assert_eq!((hashes.len(), &tokens[..]), (2, &[1, 2, 3, 4][..]));
//! # Ok::<(), kvwise_cache::Error>(())
//! ```
//!
//! Cost: one SHA-256 block or two a page stored, cut off by a split, or removed; 32 bytes a node.
//! Not modelled: session ids, public LoRA names, other media than GPU memory, Dynamo's namespaced hashes.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::namespace::Namespace;
use super::observer::TreeObserver;

/// What happened, in SGLang's terms (`BlockStored`, `BlockRemoved`, `AllBlocksCleared`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheEvent {
    /// Pages entered the cache, each the child of the one before.
    Stored {
        /// Hash of each page.
        hashes: Vec<i64>,
        /// Hash of the page before the first one; `None` at the start of a sequence.
        parent_hash: Option<i64>,
        /// Tokens of all pages.
        tokens: Vec<u32>,
        /// Tokens per page.
        block_size: usize,
        /// Namespace of the sequence.
        namespace: Namespace,
    },
    /// Pages left the cache.
    Removed {
        /// Hash of each page.
        hashes: Vec<i64>,
    },
    /// The cache was emptied.
    Cleared,
}

type PageDigest = [u8; 32];

/// Collects [`CacheEvent`]s of a [`RadixTree`](super::RadixTree) over `u32` tokens.
#[derive(Debug, Clone)]
pub struct EventLog {
    page: usize,
    /// Where the chains of salted namespaces start.
    seeds: HashMap<Namespace, PageDigest>,
    /// Digest of the last page of each node; `None` for the root.
    last: Vec<Option<PageDigest>>,
    /// Extra keys of the namespaces that have one.
    extra_keys: HashMap<Namespace, Box<str>>,
    queue: Vec<CacheEvent>,
    /// Namespace of the last removal.
    removed_in: Namespace,
}

impl EventLog {
    /// A log for a tree of pages of `page_size` tokens.
    pub fn new(page_size: usize) -> Self {
        Self {
            page: page_size.max(1),
            seeds: HashMap::new(),
            last: vec![None],
            extra_keys: HashMap::new(),
            queue: Vec::new(),
            removed_in: Namespace::DEFAULT,
        }
    }

    /// Says what a namespace stands for; call it before the first insertion there. An empty salt is none.
    pub fn describe(&mut self, namespace: Namespace, extra_key: Option<&str>, cache_salt: Option<&str>) {
        if let Some(salt) = cache_salt.filter(|salt| !salt.is_empty()) {
            let mut digest = Sha256::new_with_prefix(b"sglang-cache-salt-v1\0");
            digest.update(salt.as_bytes());
            self.seeds.insert(namespace, digest.finalize().into());
        }
        if let Some(key) = extra_key {
            self.extra_keys.insert(namespace, Box::from(key));
        }
    }

    /// The events since the last call.
    pub fn take(&mut self) -> Vec<CacheEvent> {
        std::mem::take(&mut self.queue)
    }

    /// Where the chain of a child of `parent` starts.
    fn before(&self, parent: u32, namespace: Namespace) -> Option<PageDigest> {
        self.last[parent as usize].or_else(|| self.seeds.get(&namespace).copied())
    }

    fn set_last(&mut self, node: u32, digest: Option<PageDigest>) {
        let at = node as usize;
        if at >= self.last.len() {
            self.last.resize(at + 1, None);
        }
        self.last[at] = digest;
    }

    /// Digest of each page after `before`.
    fn chain(&self, before: Option<PageDigest>, tokens: &[u32]) -> Vec<PageDigest> {
        let mut prior = before;
        let pages = tokens.chunks(self.page).map(|page| {
            let mut digest = Sha256::new();
            if let Some(prior) = prior {
                digest.update(prior);
            }
            for token in page {
                digest.update(token.to_le_bytes());
            }
            let digest: PageDigest = digest.finalize().into();
            prior = Some(digest);
            digest
        });
        pages.collect()
    }
}

/// The first 64 bits as a signed number.
fn short(digest: &PageDigest) -> i64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest;
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl TreeObserver<u32> for EventLog {
    fn stored(&mut self, parent: u32, node: u32, namespace: Namespace, tokens: &[u32]) {
        let chain = self.chain(self.before(parent, namespace), tokens);
        self.set_last(node, chain.last().copied());
        let parent_hash = self.last[parent as usize].as_ref().map(short);
        let new = chain.iter().map(short);
        if let Some(CacheEvent::Stored {
            hashes,
            tokens: all,
            namespace: tail,
            ..
        }) = self.queue.last_mut()
            && *tail == namespace
            && parent_hash.is_some()
            && hashes.last().copied() == parent_hash
        {
            hashes.extend(new);
            all.extend_from_slice(tokens);
            return;
        }
        self.queue.push(CacheEvent::Stored {
            hashes: new.collect(),
            parent_hash,
            tokens: tokens.to_vec(),
            block_size: self.page,
            namespace,
        });
    }

    fn split(&mut self, parent: u32, front: u32, _: u32, namespace: Namespace, front_tokens: &[u32]) {
        let chain = self.chain(self.before(parent, namespace), front_tokens);
        self.set_last(front, chain.last().copied());
    }

    fn removed(&mut self, parent: u32, _: u32, namespace: Namespace, tokens: &[u32]) {
        let chain = self.chain(self.before(parent, namespace), tokens);
        let gone = chain.iter().map(short);
        let before = std::mem::replace(&mut self.removed_in, namespace);
        let same = before == namespace || self.extra_keys.get(&before) == self.extra_keys.get(&namespace);
        if let Some(CacheEvent::Removed { hashes }) = self.queue.last_mut().filter(|_| same) {
            hashes.extend(gone);
        } else {
            self.queue.push(CacheEvent::Removed {
                hashes: gone.collect(),
            });
        }
    }

    fn cleared(&mut self) {
        self.last.clear();
        self.last.push(None);
        self.queue.push(CacheEvent::Cleared);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Insert, RadixTree, TreePolicy};
    use super::*;

    fn tree(page: usize) -> RadixTree<u32, EventLog> {
        RadixTree::with_observer(page, TreePolicy::Lru, 16, EventLog::new(page)).unwrap()
    }

    fn put(tree: &mut RadixTree<u32, EventLog>, namespace: Namespace, key: &[u32]) {
        let insert = Insert {
            namespace,
            key,
            slots: key,
            priority: 0,
            owned_by_tree: key.len(),
            already_counted: 0,
        };
        tree.insert(insert, |_| {}).unwrap();
    }

    fn stored(event: &CacheEvent) -> (&[i64], Option<i64>) {
        match event {
            CacheEvent::Stored {
                hashes, parent_hash, ..
            } => (hashes, *parent_hash),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_page_is_named_by_its_tokens_and_by_all_before_it() {
        let mut tree = tree(4);
        put(&mut tree, Namespace::DEFAULT, &[1, 2, 3, 4, 1, 2, 3, 4]);
        let events = tree.observer_mut().take();
        let (hashes, parent) = stored(&events[0]);
        assert_eq!((events.len(), hashes.len(), parent), (1, 2, None));
        assert_ne!(hashes[0], hashes[1]);
        // SHA-256 of the four words 1, 2, 3, 4
        assert_eq!(
            hashes[0],
            i64::from_be_bytes([0xcf, 0x97, 0xad, 0xee, 0xdb, 0x59, 0xe0, 0x5b])
        );
    }

    #[test]
    fn a_split_is_no_event_and_later_pages_hang_on_the_right_one() {
        let mut tree = tree(2);
        put(&mut tree, Namespace::DEFAULT, &[1, 2, 3, 4]);
        let first = stored(&tree.observer_mut().take()[0]).0.to_vec();
        tree.match_prefix(Namespace::DEFAULT, &[1, 2]);
        assert!(tree.observer_mut().take().is_empty());
        put(&mut tree, Namespace::DEFAULT, &[1, 2, 9, 9]);
        let events = tree.observer_mut().take();
        assert_eq!(stored(&events[0]).1, Some(first[0]));
    }

    #[test]
    fn what_is_removed_bears_the_names_under_which_it_was_stored() {
        let mut tree = tree(2);
        put(&mut tree, Namespace::DEFAULT, &[1, 2, 3, 4, 5, 6]);
        let mut names = stored(&tree.observer_mut().take()[0]).0.to_vec();
        tree.match_prefix(Namespace::DEFAULT, &[1, 2]);
        tree.evict(6, |_| {});
        let events = tree.observer_mut().take();
        let [CacheEvent::Removed { hashes }] = &events[..] else {
            panic!("{events:?}")
        };
        let mut gone = hashes.clone();
        names.sort_unstable();
        gone.sort_unstable();
        assert_eq!(gone, names);
        tree.clear();
        assert_eq!(tree.observer_mut().take(), [CacheEvent::Cleared]);
    }

    #[test]
    fn salts_change_names_and_other_namespaces_do_not() {
        let mut tree = tree(2);
        let (salted, plain) = (Namespace(1), Namespace(2));
        tree.observer_mut().describe(salted, None, Some("pepper"));
        for namespace in [Namespace::DEFAULT, salted, plain] {
            put(&mut tree, namespace, &[1, 2]);
        }
        let events = tree.observer_mut().take();
        let names: Vec<i64> = events.iter().flat_map(|e| stored(e).0).copied().collect();
        assert_eq!(names[0], names[2]);
        assert_ne!(names[0], names[1]);
    }
}
