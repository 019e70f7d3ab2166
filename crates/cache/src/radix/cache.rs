//! The three parts put together as SGLang's scheduler uses them: one request from lookup to release.
//!
//! [`RadixCache`] follows `UnifiedRadixCache` with a single full-attention component (SGLang 0.5.23,
//! `sglang/srt/mem_cache/unified_radix_cache.py`): the tree decides, the cache moves slots between the tree, the
//! request's row and the allocator.

use std::hash::Hash;

use super::allocator::SlotAllocator;
use super::namespace::Namespace;
use super::observer::TreeObserver;
use super::policy::TreePolicy;
use super::rows::{Row, RowTable};
use super::tree::{Insert, LockReceipt, Match, NodeId, RadixTree};
use crate::error::{Error, Result};

/// Sizes and policy of a [`RadixCache`].
#[derive(Debug, Clone, Copy)]
pub struct RadixCacheConfig {
    /// Tokens in the KV pool (`max_total_num_tokens`), a multiple of the page size.
    pub capacity_tokens: usize,
    /// Tokens per page (1 unless an attention backend wants more).
    pub page_size: usize,
    /// Which leaf is evicted first.
    pub policy: TreePolicy,
    /// Requests that may hold KV at once (`max_running_requests`).
    pub max_requests: usize,
    /// Longest sequence, prompt and output, in tokens.
    pub max_context_tokens: usize,
    /// Whether prefixes are kept at all (`--disable-radix-cache` clears it).
    pub enabled: bool,
}

/// What one running request holds; made by [`RadixCache::lookup`], consumed by `finish`, `retract` or `abandon`.
#[derive(Debug)]
#[must_use = "the matched prefix stays locked until the request is finished, retracted or abandoned"]
pub struct RequestKv {
    namespace: Namespace,
    priority: i64,
    row: Option<Row>,
    lock: Option<LockReceipt>,
    node: NodeId,
    prefix_len: usize,
    protected_len: usize,
    inserted_len: usize,
    owned_len: usize,
}

impl RequestKv {
    /// Tokens found in the cache when the request was looked up.
    pub fn prefix_len(&self) -> usize {
        self.prefix_len
    }

    /// Tokens of the row that belong to the tree.
    pub fn protected_len(&self) -> usize {
        self.protected_len
    }

    /// Tokens that have a slot.
    pub fn owned_len(&self) -> usize {
        self.owned_len
    }

    /// The request's row, once [`RadixCache::start`] gave it one.
    pub fn row(&self) -> Option<Row> {
        self.row
    }
}

/// Tree, allocator and rows of one KV pool.
#[derive(Debug, Clone)]
pub struct RadixCache<T, O = ()> {
    tree: RadixTree<T, O>,
    slots: SlotAllocator,
    rows: RowTable,
    enabled: bool,
}

impl<T: Copy + Eq + Hash> RadixCache<T> {
    /// An empty cache.
    ///
    /// # Errors
    /// If a size is 0, contradicts another or is too large.
    pub fn new(config: RadixCacheConfig) -> Result<Self> {
        Self::with_observer(config, ())
    }
}

impl<T: Copy + Eq + Hash, O: TreeObserver<T>> RadixCache<T, O> {
    /// An empty cache whose tree tells `observer` what enters and leaves it (an [`EventLog`](super::EventLog)).
    ///
    /// # Errors
    /// As [`RadixCache::new`].
    pub fn with_observer(config: RadixCacheConfig, observer: O) -> Result<Self> {
        let slots = SlotAllocator::new(config.capacity_tokens, config.page_size)?;
        let rows = RowTable::new(config.max_requests, config.max_context_tokens)?;
        let room = if config.enabled { config.capacity_tokens } else { 0 };
        let tree = RadixTree::with_observer(config.page_size, config.policy, room, observer)?;
        Ok(Self {
            tree,
            slots,
            rows,
            enabled: config.enabled,
        })
    }

    /// The tree (level one).
    pub fn tree(&self) -> &RadixTree<T, O> {
        &self.tree
    }

    /// The observer of the tree, to change (to take events).
    pub fn observer_mut(&mut self) -> &mut O {
        self.tree.observer_mut()
    }

    /// The rows (level two).
    pub fn rows(&self) -> &RowTable {
        &self.rows
    }

    /// The slots of the pool (level three's address space).
    pub fn slots(&self) -> &SlotAllocator {
        &self.slots
    }

    /// Tokens that can be had without touching a running request: free ones and evictable ones.
    pub fn obtainable_tokens(&self) -> usize {
        self.slots.available_tokens() + self.tree.evictable_tokens()
    }

    /// Finds and locks the cached prefix of a prompt, all but its last token, which is always computed.
    ///
    /// # Errors
    /// Never in practice: the node was found a moment ago.
    pub fn lookup(&mut self, namespace: Namespace, prompt: &[T], priority: i64) -> Result<RequestKv> {
        let Match { len, node } = if self.enabled {
            self.tree
                .match_prefix(namespace, &prompt[..prompt.len().saturating_sub(1)])
        } else {
            Match {
                len: 0,
                node: self.tree.root(),
            }
        };
        Ok(RequestKv {
            namespace,
            priority,
            row: None,
            lock: Some(self.tree.lock(node)?),
            node,
            prefix_len: len,
            protected_len: len,
            inserted_len: 0,
            owned_len: len,
        })
    }

    /// The cached part of a key, all of it looked up; what is found counts as used now.
    pub fn touch(&mut self, namespace: Namespace, key: &[T]) -> Match {
        if self.enabled {
            self.tree.match_prefix(namespace, key)
        } else {
            Match {
                len: 0,
                node: self.tree.root(),
            }
        }
    }

    /// Gives a looked-up request a row that starts with the cached prefix.
    ///
    /// # Errors
    /// If no row is free, or the prefix is longer than a row.
    pub fn start(&mut self, request: &mut RequestKv) -> Result<()> {
        if request.row.is_some() {
            return Err(Error::invalid("the request has a row already"));
        }
        let len = request.protected_len;
        if len > self.rows.width() {
            return Err(Error::exhausted(format!(
                "the cached prefix is {len} tokens long, a row holds {}",
                self.rows.width()
            )));
        }
        let row = self.rows.alloc()?;
        self.tree
            .path_slots(request.node, 0, &mut self.rows.get_mut(row)?[..len])?;
        request.row = Some(row);
        Ok(())
    }

    /// Gives tokens up to position `end` a slot, evicting as SGLang does: one page more than needed is made
    /// free where pages are larger than a token. Returns the new slots. `evicted` hears of each victim's slots.
    ///
    /// # Errors
    /// If the pool cannot hold them even after evicting all that is not locked (the caller then retracts a
    /// request), or the row is too short. Evictions made on the way stay made.
    pub fn extend(
        &mut self,
        request: &mut RequestKv,
        end: usize,
        evicted: impl FnMut(&[u32]),
    ) -> Result<&[u32]> {
        let (_, missing) = self.missing(request, end)?;
        if missing > 0 {
            let page = self.slots.page_size();
            self.make_room(if page == 1 { missing } else { missing + page }, evicted);
        }
        self.grow(request, end)
    }

    /// As [`RadixCache::extend`], but evicts nothing: for callers that have made room for several requests at once.
    ///
    /// # Errors
    /// If too few slots are free, or the row is too short.
    pub fn grow(&mut self, request: &mut RequestKv, end: usize) -> Result<&[u32]> {
        let (row, missing) = self.missing(request, end)?;
        if missing == 0 {
            return Ok(&[]);
        }
        let from = request.owned_len;
        let slots = self.rows.get_mut(row)?;
        let last = from.checked_sub(1).map(|at| slots[at]);
        self.slots.extend(from, last, &mut slots[from..end])?;
        request.owned_len = end;
        Ok(&self.rows.get(row)?[from..end])
    }

    /// The row of a started request, and how many of its tokens up to position `end` have no slot.
    fn missing(&self, request: &RequestKv, end: usize) -> Result<(Row, usize)> {
        let row = request
            .row
            .ok_or_else(|| Error::invalid("the request has not been started"))?;
        if end > self.rows.width() {
            return Err(Error::exhausted(format!(
                "{end} tokens do not fit a row of {}",
                self.rows.width()
            )));
        }
        Ok((row, end.saturating_sub(request.owned_len)))
    }

    /// Evicts until `tokens` are free or nothing is left to evict; says whether they are free.
    pub fn make_room(&mut self, tokens: usize, mut evicted: impl FnMut(&[u32])) -> bool {
        let Self { tree, slots, .. } = self;
        while slots.available_tokens() < tokens {
            let victim = tree.evict_one(|run| {
                evicted(run);
                slots.free(run);
            });
            if victim.is_none() {
                return false;
            }
        }
        true
    }

    /// Publishes the computed tokens of a request: they go in the tree, the row is rewritten to the tree's slots,
    /// slots of what was in the tree already are freed, and the lock moves down to the new end.
    ///
    /// `tokens` are the request's tokens that have KV; `prompt_len` of them are the prompt. If they go beyond
    /// the prompt, the tree is cut at its end, so that the output can be evicted without the prompt, whose
    /// priority is raised by one.
    ///
    /// # Errors
    /// If more tokens are published than have slots, or fewer than were published before.
    pub fn checkpoint(&mut self, request: &mut RequestKv, tokens: &[T], prompt_len: usize) -> Result<()> {
        let row = request
            .row
            .ok_or_else(|| Error::invalid("the request has not been started"))?;
        if tokens.len() > request.owned_len {
            return Err(Error::invalid(format!(
                "{} tokens are published, but {} have slots",
                tokens.len(),
                request.owned_len
            )));
        }
        if !self.enabled || tokens.is_empty() {
            return Ok(());
        }
        let page = self.tree.page_size();
        let len = tokens.len() - tokens.len() % page;
        if len < request.protected_len {
            return Err(Error::invalid(format!(
                "{len} tokens are published, but {} already belong to the tree",
                request.protected_len
            )));
        }
        let Self {
            tree, slots, rows, ..
        } = self;
        let own = &rows.get(row)?[..len];
        let inserted = tree.insert(
            Insert {
                namespace: request.namespace,
                key: tokens,
                slots: own,
                priority: request.priority,
                owned_by_tree: request.protected_len,
                already_counted: request.inserted_len,
            },
            |run| slots.free(run),
        )?;
        request.inserted_len = request.inserted_len.max(len);
        let prompt = prompt_len - prompt_len % page;
        if prompt > 0 && prompt < len {
            tree.insert(
                Insert {
                    namespace: request.namespace,
                    key: &tokens[..prompt],
                    slots: own,
                    priority: request.priority.saturating_add(1),
                    owned_by_tree: prompt,
                    already_counted: prompt,
                },
                |_| unreachable!("the whole prompt is declared the tree's own"),
            )?;
        }
        let from = request.protected_len;
        tree.path_slots(inserted.node, from, &mut rows.get_mut(row)?[from..len])?;
        if let Some(lock) = request.lock.take() {
            tree.unlock(lock)?;
        }
        request.lock = Some(tree.lock(inserted.node)?);
        request.node = inserted.node;
        request.protected_len = len;
        Ok(())
    }

    /// Publishes a finished request and releases what the tree did not take: the partial last page and the row.
    ///
    /// # Errors
    /// As [`RadixCache::checkpoint`].
    pub fn finish(&mut self, mut request: RequestKv, tokens: &[T], prompt_len: usize) -> Result<()> {
        self.checkpoint(&mut request, tokens, prompt_len)?;
        self.retract(request)
    }

    /// Releases a request without publishing: its unpublished slots are freed, what it published before stays
    /// in the tree and becomes evictable. SGLang does so when it retracts or aborts a request.
    ///
    /// # Errors
    /// If the request belongs to another cache.
    pub fn retract(&mut self, request: RequestKv) -> Result<()> {
        if let Some(row) = request.row {
            self.slots
                .free(&self.rows.get(row)?[request.protected_len..request.owned_len]);
        }
        if let Some(lock) = request.lock {
            self.tree.unlock(lock)?;
        }
        match request.row {
            Some(row) => self.rows.free(row),
            None => Ok(()),
        }
    }

    /// Frees everything; requests and receipts from before are stale.
    pub fn clear(&mut self) {
        self.tree.clear();
        self.slots.clear();
        self.rows.clear();
    }
}
