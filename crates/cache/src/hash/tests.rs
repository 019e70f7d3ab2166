//! Digests against those of vLLM 0.32.0's own functions.

use super::*;

/// Lines `algorithm seed case digest...`, printed by `vllm.utils.hashing` of vLLM 0.32.0 (Python 3.11) for the inputs
/// that [`digests_equal_vllm`] builds again.
const GOLDEN: &str = include_str!("golden.txt");

fn names(hasher: &ChainHasher, tokens: &[u32], block_size: usize, keys: &RequestKeys) -> Vec<String> {
    let mut names = Vec::new();
    hasher.extend(tokens, block_size, keys, &mut names);
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn digests_equal_vllm() {
    let plain = RequestKeys::default();
    let item = |identifier: &str, offset, length| MultimodalItem {
        identifier: identifier.to_owned(),
        offset,
        length,
    };
    let keys = RequestKeys {
        lora: Some(Lora {
            name: "adapter".to_owned(),
            path: "/models/a".to_owned(),
        }),
        multimodal: vec![item("img0", 4, 8), item("img1", 14, 20)],
        cache_salt: Some("pepper".to_owned()),
    };
    let long_salt = RequestKeys {
        cache_salt: Some("s".repeat(300)),
        ..RequestKeys::default()
    };
    // The golden "keys" case puts both items in both blocks, so it is rebuilt by hand.
    let both = |hasher: &ChainHasher| {
        let tokens: Vec<u32> = (0..32).collect();
        let mut parent = None;
        let mut out = Vec::new();
        for i in [0_i64, 16] {
            let mut extra = vec![
                ExtraKey::Lora {
                    name: "adapter",
                    path: "/models/a",
                },
                ExtraKey::Multimodal {
                    identifier: "img0",
                    offset: 4 - i,
                },
                ExtraKey::Multimodal {
                    identifier: "img1",
                    offset: 14 - i,
                },
            ];
            if i == 0 {
                extra.push(ExtraKey::CacheSalt("pepper"));
            }
            let start = usize::try_from(i).unwrap();
            let name = hasher.block(parent, &tokens[start..start + 16], &extra);
            parent = Some(name);
            out.push(name.to_string());
        }
        out
    };
    let mut seen = 0;
    for line in GOLDEN.lines() {
        let mut words = line.split(' ');
        let algorithm = match words.next().unwrap() {
            "sha256" => Algorithm::Sha256,
            "sha256_cbor" => Algorithm::Sha256Cbor,
            "xxhash" => Algorithm::Xxhash,
            "xxhash_cbor" => Algorithm::XxhashCbor,
            other => panic!("unknown algorithm {other}"),
        };
        let hasher = ChainHasher::new(algorithm, words.next().unwrap());
        let case = words.next().unwrap();
        let expected: Vec<&str> = words.collect();
        let big: Vec<u32> = (0..20_000_u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        let got = match case {
            "none" => vec![hasher.none_hash().to_string()],
            "plain" => names(&hasher, &(240..288).collect::<Vec<u32>>(), 16, &plain),
            "bs1" => names(&hasher, &[5, 70_000], 1, &plain),
            "bs2" => names(&hasher, &[5, 70_000, 3, 65_535], 2, &plain),
            "bs3" => names(&hasher, &[2_147_483_647, 2_147_483_648, u32::MAX], 3, &plain),
            "big" => names(&hasher, &big, 20_000, &plain),
            "keys" => both(&hasher),
            "longsalt" => names(&hasher, &(0..16).collect::<Vec<u32>>(), 16, &long_salt),
            other => panic!("unknown case {other}"),
        };
        assert_eq!(got, expected, "{line}");
        seen += 1;
    }
    assert_eq!(seen, 64);
    // An item that ended before a block is not among its keys; one that goes on has a negative offset.
    let mut extra = Vec::new();
    keys.of_block(16, 32, &mut extra);
    let offsets: Vec<_> = extra
        .iter()
        .filter_map(|k| match k {
            ExtraKey::Multimodal { identifier, offset } => Some((*identifier, *offset)),
            _ => None,
        })
        .collect();
    assert_eq!(offsets, [("img1", -2)]);
}

#[test]
fn names_are_extended_as_tokens_are_generated() {
    let hasher = ChainHasher::new(Algorithm::Sha256Cbor, DEFAULT_SEED);
    let keys = RequestKeys::default();
    let tokens: Vec<u32> = (0..100).collect();
    let mut grown = Vec::new();
    for end in [3, 16, 17, 48, 100] {
        hasher.extend(&tokens[..end], 16, &keys, &mut grown);
        assert_eq!(grown.len(), end / 16);
    }
    let mut at_once = Vec::new();
    hasher.extend(&tokens, 16, &keys, &mut at_once);
    assert_eq!(grown, at_once);
}

#[test]
fn a_salt_an_adapter_and_an_image_each_change_every_name_after_them() {
    let hasher = ChainHasher::new(Algorithm::XxhashCbor, "0");
    let tokens: Vec<u32> = (0..64).collect();
    let plain = names(&hasher, &tokens, 16, &RequestKeys::default());
    let salted = RequestKeys {
        cache_salt: Some("s".to_owned()),
        ..RequestKeys::default()
    };
    let with_image = RequestKeys {
        multimodal: vec![MultimodalItem {
            identifier: "i".to_owned(),
            offset: 20,
            length: 4,
        }],
        ..RequestKeys::default()
    };
    let differ = |keys: &RequestKeys| -> Vec<bool> {
        names(&hasher, &tokens, 16, keys)
            .iter()
            .zip(&plain)
            .map(|(a, b)| a != b)
            .collect()
    };
    assert_eq!(differ(&salted), [true; 4]);
    assert_eq!(differ(&with_image), [false, true, true, true]);
    let empty_salt = RequestKeys {
        cache_salt: Some(String::new()),
        ..RequestKeys::default()
    };
    assert_eq!(differ(&empty_salt), [false; 4]);
}
