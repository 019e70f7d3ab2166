//! The engine loop of the example as a test: whatever is shared, evicted or preempted, the outputs are the same.

#[path = "../examples/embed_in_engine.rs"]
#[expect(dead_code, reason = "the example's main is not called")]
mod example;

use example::{BlockCache, Request, Served, TreeCache, serve, traffic};

fn outputs(requests: &[Request]) -> Vec<&[u32]> {
    requests.iter().map(|r| &r.tokens[r.prompt..]).collect()
}

#[test]
fn both_caches_generate_the_same_tokens_at_every_size_of_pool() {
    let mut alone = traffic(60);
    for request in &mut alone {
        let one = std::slice::from_mut(request);
        serve(&mut BlockCache::new(40).unwrap(), one).unwrap();
    }
    let (mut preemptions, mut evicted) = (0, 0);
    for blocks in [20, 24, 40, 200] {
        let mut by_block = traffic(60);
        let counts = serve(&mut BlockCache::new(blocks).unwrap(), &mut by_block).unwrap();
        assert_eq!(outputs(&by_block), outputs(&alone), "{blocks} blocks");
        preemptions += counts.preemptions;
        evicted += counts.evicted;

        let mut by_token = traffic(60);
        let tokens = (blocks as usize - 1) * 16;
        let counts = serve(&mut TreeCache::new(tokens).unwrap(), &mut by_token).unwrap();
        assert_eq!(outputs(&by_token), outputs(&alone), "{tokens} tokens");
        preemptions += counts.preemptions;
        evicted += counts.evicted;
    }
    assert!(
        preemptions > 10 && evicted > 100,
        "the small pools were not under pressure"
    );
}

#[test]
fn a_large_pool_caches_every_system_prompt_and_evicts_nothing() {
    let Served {
        cached_tokens,
        prompt_tokens,
        preemptions,
        evicted,
    } = serve(&mut TreeCache::new(50_000).unwrap(), &mut traffic(60)).unwrap();
    assert_eq!((preemptions, evicted), (0, 0));
    assert!(
        2 * cached_tokens > prompt_tokens,
        "{cached_tokens} of {prompt_tokens}"
    );
}

#[test]
fn a_request_larger_than_the_pool_is_an_error_and_not_an_endless_loop() {
    let error = serve(&mut BlockCache::new(5).unwrap(), &mut traffic(1)).unwrap_err();
    assert!(error.to_string().contains("does not fit"), "{error}");
}
