//! A chat server's view of the radix cache: requests with a common system prompt, pressure, and what was saved.
//!
//! ```text
//! cargo run -p kvwise-cache --example radix_cache
//! ```
#![allow(clippy::print_stdout, reason = "an example prints its result")]

use kvwise_cache::Result;
use kvwise_cache::radix::{Namespace, RadixCache, RadixCacheConfig, TreePolicy};

/// Words become token ids by first appearance; a real server has a tokenizer.
struct Vocabulary(Vec<String>);

impl Vocabulary {
    fn encode(&mut self, text: &str) -> Vec<u32> {
        text.split_whitespace()
            .map(|word| {
                let known = self.0.iter().position(|w| w == word);
                let at = known.unwrap_or_else(|| {
                    self.0.push(word.to_owned());
                    self.0.len() - 1
                });
                u32::try_from(at).expect("a few words")
            })
            .collect()
    }
}

fn main() -> Result<()> {
    let mut words = Vocabulary(Vec::new());
    let mut cache = RadixCache::new(RadixCacheConfig {
        capacity_tokens: 30,
        page_size: 1,
        policy: TreePolicy::Lru,
        max_requests: 2,
        max_context_tokens: 28,
        enabled: true,
    })?;
    let system = "You are a helpful assistant . Answer briefly .";
    let questions = [
        ("What is the capital of France ?", "Paris ."),
        ("What is the capital of Germany ?", "Berlin ."),
        ("What is the largest planet ?", "Jupiter ."),
        ("What is the capital of France ?", "Paris ."),
        ("Tell me a joke", "A token walks into a cache . It was expected ."),
        ("What is the capital of France ?", "Paris ."),
    ];
    println!(
        "{:<36} {:>6} {:>6} {:>8} {:>8}",
        "question", "prompt", "shared", "evicted", "in tree"
    );
    for (question, answer) in questions {
        let prompt = words.encode(&format!("{system} {question}"));
        let mut request = cache.lookup(Namespace::DEFAULT, &prompt, 0)?;
        let shared = request.prefix_len();
        let mut evicted = 0;
        cache.start(&mut request)?;
        cache.extend(&mut request, prompt.len(), |victim| evicted += victim.len())?;
        cache.checkpoint(&mut request, &prompt, prompt.len())?;

        let mut all = prompt.clone();
        all.extend(words.encode(answer));
        let with_kv = all.len() - 1; // the last token's K and V are never computed
        cache.extend(&mut request, with_kv, |victim| evicted += victim.len())?;
        cache.finish(request, &all[..with_kv], prompt.len())?;
        println!(
            "{question:<36} {:>6} {shared:>6} {evicted:>8} {:>8}",
            prompt.len(),
            cache.tree().total_tokens()
        );
    }
    cache.tree().check_invariants().expect("the tree is sound");
    Ok(())
}
