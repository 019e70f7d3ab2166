use super::*;

#[test]
fn versions_parse_with_and_without_suffixes() {
    for (text, version) in [
        ("0.32.0", Version::new(0, 32, 0)),
        ("v0.20", Version::new(0, 20, 0)),
        ("0.32.1rc1", Version::new(0, 32, 1)),
        ("0.11.0+cu128", Version::new(0, 11, 0)),
        ("latest", Version::NEWEST),
    ] {
        assert_eq!(Version::parse(text).unwrap(), version, "{text}");
    }
    for text in ["", "32", "0.x", "zero", "0.99999999999"] {
        assert!(Version::parse(text).is_err(), "{text}");
    }
}

#[test]
fn changes_are_in_the_order_of_the_releases_and_have_a_source() {
    let mut last = Version::new(0, 0, 0);
    for (since, what, source) in Rules::changes() {
        assert!(since >= last, "{since} after {last}");
        last = since;
        assert!(
            since <= Version::NEWEST && !what.is_empty() && source.len() > 20,
            "{since} {what}"
        );
    }
    let at = |minor| Rules::of(Version::new(0, minor, 0));
    let sampler = [6, 8, 11, 19, 32].map(|minor| at(minor).sampler_decibytes_per_logit);
    assert_eq!(sampler, [386, 140, 386, 120, 120]);
    assert!((at(19).gpu_memory_utilization - 0.9).abs() < 1e-9);
    assert!((at(20).gpu_memory_utilization - 0.92).abs() < 1e-9);
    assert!(!at(13).async_by_default && at(14).async_by_default);
    assert!(!at(9).groups_windows && at(10).groups_windows);
    let states = [(11, 0), (11, 1), (27, 1), (28, 0)]
        .map(|(minor, patch)| Rules::of(Version::new(0, minor, patch)).state_caching);
    assert_eq!(
        states,
        [
            StateCaching::Never,
            StateCaching::OnRequest,
            StateCaching::OnRequest,
            StateCaching::AsOthers
        ]
    );
    let freed = [22, 23, 24, 32].map(|minor| at(minor).freed_blocks);
    assert_eq!(
        freed,
        [
            FreedBlocks::AllLast,
            FreedBlocks::WindowsUnnamedFirst,
            FreedBlocks::UnnamedFirst,
            FreedBlocks::UnnamedFirst
        ]
    );
    let retention = [22, 23, 24, 28, 29].map(|minor| at(minor).retention);
    assert_eq!(
        retention,
        [
            RetentionRule::None,
            RetentionRule::Windows,
            RetentionRule::WindowsAndStates,
            RetentionRule::WindowsAndStates,
            RetentionRule::ZeroByDefault
        ]
    );
    let junctions = [23, 24, 26].map(|minor| at(minor).junctions);
    assert_eq!(
        junctions,
        [
            JunctionRule::None,
            JunctionRule::EndsChunk,
            JunctionRule::IsRetained
        ]
    );
}

#[test]
fn gpus_before_ampere_keep_the_v0_engine_until_it_was_removed() {
    let volta = Gpu::new("v100", 7, 0, 32 << 30);
    let rules = |minor| Rules::on(Version::new(0, minor, 0), &volta);
    // The log of 0.8.5 on a V100 profiles 32,768 tokens in one step.
    assert_eq!(
        rules(8).batch_defaults(&volta, 32_768).max_num_batched_tokens,
        32_768
    );
    assert!(rules(8).v0(&volta) && !rules(11).v0(&volta));
    assert_eq!(rules(8).sampler_decibytes_per_logit, SORTING_SAMPLER);
    assert_eq!(
        rules(11).batch_defaults(&volta, 32_768).max_num_batched_tokens,
        2048
    );
    let ampere = Gpu::new("a10", 8, 6, 24 << 30);
    assert_eq!(
        Rules::on(Version::new(0, 8, 0), &ampere),
        Rules::of(Version::new(0, 8, 0))
    );
}

#[test]
fn steps_grow_with_releases_and_memory() {
    let defaults = |minor, name: &str, gib: u64, length| {
        let major = if name == "h100" { 9 } else { 8 };
        let d =
            Rules::of(Version::new(0, minor, 0)).batch_defaults(&Gpu::new(name, major, 0, gib << 30), length);
        (d.max_num_batched_tokens, d.max_num_seqs)
    };
    assert_eq!(defaults(6, "rtx-3090", 24, 20_000), (20_000, 256));
    assert_eq!(defaults(6, "rtx-3090", 24, 131_072), (512, 256));
    assert_eq!(defaults(7, "rtx-3090", 24, 131_072), (2048, 256));
    assert_eq!(defaults(8, "h100", 80, 131_072), (8192, 1024));
    assert_eq!(defaults(8, "a100-80gb", 80, 131_072), (2048, 1024));
    assert_eq!(defaults(11, "h100", 80, 131_072), (8192, 1024));
    assert_eq!(defaults(11, "a100-80gb", 80, 131_072), (2048, 256));
    assert_eq!(defaults(27, "b200", 178, 131_072), (8192, 1024));
    assert_eq!(defaults(28, "b200", 178, 131_072), (16_384, 1024));
    let a100 =
        Rules::of(Version::new(0, 8, 5)).batch_defaults(&Gpu::new("a100-80gb", 8, 0, 80 << 30), 131_072);
    assert_eq!((a100.max_num_batched_tokens, a100.max_num_seqs), (8192, 1024));
    assert_eq!(defaults(32, "b200", 178, 131_072), (16_384, 1024));
}

#[test]
fn a_newer_version_has_the_newest_known_rules() {
    let future = Version::new(0, 99, 0);
    assert!(future.is_newer_than_known());
    assert_eq!(Rules::of(future), Rules::of(Version::NEWEST));
    assert!(!Version::new(0, 32, 7).is_newer_than_known());
    assert_eq!(
        Rules::of(Version::new(0, 19, 0)).tokens,
        TokensRule::BlocksOverGroups
    );
}
