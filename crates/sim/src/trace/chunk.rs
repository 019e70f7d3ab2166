//! Any trace with content as paths of blocks of a chosen size, kept apart where caches must not share.

use std::borrow::Cow;

use rustc_hash::FxHashMap;

use super::{BlockPaths, Content, PathInterner, Prompt, Run, Span, Trace};
use kvwise_core::{Error, Result};

impl Trace {
    /// The prompts as paths of blocks of `block_tokens` tokens (`None`: the trace's own block, or 16 for tokens).
    ///
    /// Requests with different cache salts, extra keys or adapters share no block, as in the engines. The last,
    /// partial block of a prompt is a block of its own where the trace knows its content. Borrowed where the trace keeps
    /// such paths already.
    ///
    /// # Errors
    /// If the trace has no content, or names blocks of another size.
    pub fn to_blocks(&self, block_tokens: Option<u32>) -> Result<Cow<'_, BlockPaths>> {
        match &self.content {
            Content::None => Err(Error::input(format!(
                "{}: the trace has lengths only, no tokens and no hash ids, so nothing is known about shared prefixes",
                self.name
            ))
            .hint("take a trace with hash_ids or tokens, or generate one with `kvwise trace generate`")),
            Content::Tokens(_) => {
                let block = block_tokens.unwrap_or(16);
                if block == 0 {
                    return Err(Error::input("the block size is 0, expected at least 1 token"));
                }
                self.chunk_tokens(block).map(Cow::Owned)
            }
            Content::Blocks(paths) => {
                if let Some(asked) = block_tokens.filter(|&asked| asked != paths.block_tokens) {
                    return Err(Error::input(format!(
                        "{}: a hash id stands for {} tokens, so blocks of {asked} tokens cannot be told apart",
                        self.name, paths.block_tokens
                    ))
                    .hint(format!("leave the block size out or say {}", paths.block_tokens)));
                }
                if self.has_isolation_keys() { self.isolate(paths).map(Cow::Owned) } else { Ok(Cow::Borrowed(paths)) }
            }
        }
    }

    /// A number for the combination of salt, extra key and adapter of each request.
    fn scopes(&self) -> impl FnMut(usize) -> u32 + '_ {
        let mut numbers: FxHashMap<(u32, u32, u32), u32> = FxHashMap::default();
        move |index| {
            let key = (
                self.cache_salts.number(index),
                self.extra_keys.number(index),
                self.loras.number(index),
            );
            let next = u32::try_from(numbers.len()).expect("no more scopes than requests");
            *numbers.entry(key).or_insert(next)
        }
    }

    fn chunk_tokens(&self, block: u32) -> Result<BlockPaths> {
        let mut ids: FxHashMap<(u32, &[u32]), u64> = FxHashMap::default();
        let mut scope_of = self.scopes();
        let mut path = Vec::new();
        self.collect_paths(block, |index| {
            let Prompt::Tokens(tokens) = self.prompt(index) else {
                unreachable!("the trace has tokens")
            };
            // the scope marks the first block only; through the chain it separates all that follow
            let mut scope = scope_of(index) + 1;
            path.clear();
            for chunk in tokens.chunks(block as usize) {
                let fresh = ids.len() as u64;
                path.push(*ids.entry((std::mem::take(&mut scope), chunk)).or_insert(fresh));
            }
            std::mem::take(&mut path)
        })
    }

    fn isolate(&self, paths: &BlockPaths) -> Result<BlockPaths> {
        let mut scope_of = self.scopes();
        self.collect_paths(paths.block_tokens, |index| {
            let scope = u64::from(scope_of(index) + 1) << 32;
            let mut path: Vec<u64> = paths.get(index).iter().map(u64::from).collect();
            if let Some(first) = path.first_mut() {
                *first += scope;
            }
            path
        })
    }

    fn collect_paths(
        &self,
        block_tokens: u32,
        mut path: impl FnMut(usize) -> Vec<u64>,
    ) -> Result<BlockPaths> {
        let mut interner = PathInterner::by_content();
        let (mut runs, mut spans) = (Vec::<Run>::new(), Vec::with_capacity(self.len()));
        for index in 0..self.len() {
            let start = runs.len();
            interner.intern(&path(index), &mut runs)?;
            let len = u32::try_from(runs.len() - start).expect("a path has at most 2^31 runs");
            spans.push(Span {
                start: start as u64,
                len,
            });
        }
        let (parents, raw_ids) = interner.into_tree();
        Ok(BlockPaths {
            block_tokens,
            runs,
            spans,
            parents,
            raw_ids,
        })
    }
}
