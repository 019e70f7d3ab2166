//! Which slot a token gets: SGLang's token and paged allocators.
//!
//! Both hand out slots from 1 on; slot (or page) 0 is the dummy that padded tokens write to. They differ in the
//! order of reuse, which decides slot numbers for the rest of a run: with pages of one token freed slots go to
//! the back of the queue, with larger pages to its front (SGLang 0.5.23,
//! `sglang/srt/mem_cache/allocator/{token,paged}.py`, with `need_sort` off).
//!
//! Not modelled: `need_sort` (the sorted staging list of disaggregated prefill and decode workers), SWA and
//! Mamba companions, page interleaving over ranks.

use std::collections::VecDeque;

use crate::error::{Error, Result};

/// Free slots of a KV pool, in SGLang's order. No operation allocates memory.
#[derive(Debug, Clone)]
pub struct SlotAllocator {
    page: usize,
    pages: usize,
    free: FreeList,
}

#[derive(Debug, Clone)]
enum FreeList {
    /// Pages of one token: taken from the front, freed to the back.
    Tokens(VecDeque<u32>),
    /// Larger pages: the front of SGLang's list is the end of this stack.
    Pages(Vec<u32>),
}

impl SlotAllocator {
    /// All slots of a pool of `capacity_tokens`, in ascending order.
    ///
    /// # Errors
    /// If the page size is 0, the capacity is no multiple of it, slot numbers would leave 31 bits, or the machine has no
    /// room for the list.
    pub fn new(capacity_tokens: usize, page_size: usize) -> Result<Self> {
        if page_size == 0 || !capacity_tokens.is_multiple_of(page_size) {
            return Err(Error::invalid(format!(
                "capacity is {capacity_tokens} tokens, expected a multiple of the page size {page_size}"
            )));
        }
        if capacity_tokens
            .checked_add(page_size)
            .is_none_or(|slots| slots > super::tree::MAX_TOKENS)
        {
            return Err(Error::overflow(format!(
                "capacity is {capacity_tokens} tokens, expected less than 2^31"
            )));
        }
        let pages = capacity_tokens / page_size;
        let (mut queue, mut stack) = (VecDeque::new(), Vec::new());
        let reserved = if page_size == 1 {
            queue.try_reserve_exact(pages)
        } else {
            stack.try_reserve_exact(pages)
        };
        reserved.map_err(|_| {
            Error::exhausted(format!(
                "this machine has no room for {pages} free pages, lower the capacity"
            ))
        })?;
        let mut allocator = Self {
            page: page_size,
            pages,
            free: if page_size == 1 {
                FreeList::Tokens(queue)
            } else {
                FreeList::Pages(stack)
            },
        };
        allocator.clear();
        Ok(allocator)
    }

    /// Frees everything.
    pub fn clear(&mut self) {
        let pages = 1..=self.pages as u32;
        match &mut self.free {
            FreeList::Tokens(queue) => {
                queue.clear();
                queue.extend(pages);
            }
            FreeList::Pages(stack) => {
                stack.clear();
                stack.extend(pages.rev());
            }
        }
    }

    /// Tokens per page.
    pub fn page_size(&self) -> usize {
        self.page
    }

    /// Tokens in the pool.
    pub fn capacity_tokens(&self) -> usize {
        self.pages * self.page
    }

    /// Free tokens, whole pages.
    pub fn available_tokens(&self) -> usize {
        self.page
            * match &self.free {
                FreeList::Tokens(queue) => queue.len(),
                FreeList::Pages(stack) => stack.len(),
            }
    }

    /// Slots for the tokens `from .. from + out.len()` of one sequence. With pages, the rest of the last page is
    /// filled first, so `last` has to be the slot of token `from - 1` unless `from` starts a page.
    ///
    /// # Errors
    /// If there are not enough free pages; nothing is taken then.
    pub fn extend(&mut self, from: usize, last: Option<u32>, out: &mut [u32]) -> Result<()> {
        let page = self.page;
        let missing = |have: usize, need: usize| {
            Error::exhausted(format!(
                "{need} pages of {page} tokens are needed, {have} are free"
            ))
        };
        match &mut self.free {
            FreeList::Tokens(queue) => {
                if out.len() > queue.len() {
                    return Err(missing(queue.len(), out.len()));
                }
                // Two copies: taking them one by one costs more than all else that a long prompt does here.
                let (front, back) = queue.as_slices();
                let (head, rest) = out.split_at_mut(out.len().min(front.len()));
                head.copy_from_slice(&front[..head.len()]);
                rest.copy_from_slice(&back[..rest.len()]);
                queue.drain(..out.len());
            }
            FreeList::Pages(stack) => {
                let in_last = (page - from % page) % page;
                let (tail, fresh) = out.split_at_mut(in_last.min(out.len()));
                let need = fresh.len().div_ceil(page);
                if need > stack.len() {
                    return Err(missing(stack.len(), need));
                }
                if !tail.is_empty() {
                    let last = last.ok_or_else(|| {
                        Error::invalid(format!(
                            "token {from} continues a page, but no last slot was given"
                        ))
                    })?;
                    for (slot, next) in tail.iter_mut().zip(last + 1..) {
                        *slot = next;
                    }
                }
                let taken = stack.drain(stack.len() - need..).rev();
                for (chunk, number) in fresh.chunks_mut(page).zip(taken) {
                    for (slot, next) in chunk.iter_mut().zip(number * page as u32..) {
                        *slot = next;
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes back the slots of a run of tokens that starts on a page boundary; a partly used last page is freed
    /// as a whole. The caller frees no slot twice: a set of free slots is not kept, as in SGLang.
    pub fn free(&mut self, run: &[u32]) {
        match &mut self.free {
            FreeList::Tokens(queue) => queue.extend(run),
            FreeList::Pages(stack) => {
                let page = self.page as u32;
                stack.extend(run.chunks(self.page).rev().map(|chunk| chunk[0] / page));
            }
        }
        debug_assert!(
            self.available_tokens() <= self.capacity_tokens(),
            "a slot was freed twice"
        );
    }

    /// The free pages in the order in which they would be taken.
    pub fn free_pages(&self) -> impl Iterator<Item = u32> + '_ {
        let (queue, stack) = match &self.free {
            FreeList::Tokens(queue) => (Some(queue), None),
            FreeList::Pages(stack) => (None, Some(stack)),
        };
        queue
            .into_iter()
            .flatten()
            .chain(stack.into_iter().flat_map(|s| s.iter().rev()))
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(allocator: &SlotAllocator) -> Vec<u32> {
        allocator.free_pages().collect()
    }

    #[test]
    fn single_slots_are_reused_first_freed_first_and_slot_0_is_never_given() {
        let mut a = SlotAllocator::new(4, 1).unwrap();
        let mut out = [0; 3];
        a.extend(0, None, &mut out).unwrap();
        assert_eq!(out, [1, 2, 3]);
        a.free(&[2, 1]);
        assert_eq!(order(&a), [4, 2, 1]);
    }

    #[test]
    fn a_freed_run_of_pages_goes_in_front_in_its_own_order() {
        let mut a = SlotAllocator::new(8, 2).unwrap();
        let mut out = [0; 7];
        a.extend(0, None, &mut out).unwrap();
        assert_eq!(out, [2, 3, 4, 5, 6, 7, 8]);
        a.free(&out[2..]); // pages 2, 3 and the half used 4
        assert_eq!(order(&a), [2, 3, 4]);
        a.free(&out[..2]);
        assert_eq!(order(&a), [1, 2, 3, 4]);
    }

    #[test]
    fn an_extension_fills_the_last_page_before_it_takes_another() {
        let mut a = SlotAllocator::new(12, 4).unwrap();
        let mut out = [0; 2];
        a.extend(0, None, &mut out).unwrap();
        assert_eq!(out, [4, 5]);
        let mut more = [0; 4];
        a.extend(2, Some(5), &mut more).unwrap();
        assert_eq!(more, [6, 7, 8, 9]);
        assert_eq!(a.available_tokens(), 4);
    }

    #[test]
    fn a_failed_extension_takes_nothing() {
        let mut a = SlotAllocator::new(8, 4).unwrap();
        let before = order(&a);
        assert!(a.extend(0, None, &mut [0; 9]).is_err());
        assert_eq!(order(&a), before);
        let mut one = SlotAllocator::new(2, 1).unwrap();
        assert!(one.extend(0, None, &mut [0; 3]).is_err());
        assert_eq!(order(&one), [1, 2]);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(SlotAllocator::new(10, 0).is_err());
        assert!(SlotAllocator::new(10, 4).is_err());
        assert!(SlotAllocator::new(1 << 40, 1).is_err());
    }
}
