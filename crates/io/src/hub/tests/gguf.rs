//! GGUF files of the hub: a header by ranges, kept for the next time.

use super::*;

/// A GGUF file of a small Llama in two parts or in one, as the hub would have it; the tensors are not kept.
fn gguf(part: u32, parts: u32, tensors: &[(&str, u64)]) -> Stored {
    let mut out = Vec::new();
    let text = |out: &mut Vec<u8>, s: &str| {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    };
    let number = |out: &mut Vec<u8>, key: &str, n: u32| {
        text(out, key);
        out.extend(4_u32.to_le_bytes());
        out.extend(n.to_le_bytes());
    };
    let numbers = [
        ("llama.block_count", 1),
        ("llama.embedding_length", 64),
        ("llama.attention.head_count", 4),
        ("llama.context_length", 4096),
        ("llama.feed_forward_length", 128),
        ("llama.vocab_size", 100),
        ("split.count", parts),
        ("split.no", part),
    ];
    out.extend(b"GGUF");
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((numbers.len() as u64 + 2).to_le_bytes());
    for (key, value) in [
        ("general.architecture", "llama"),
        ("tokenizer.ggml.model", "none"),
    ] {
        text(&mut out, key);
        out.extend(8_u32.to_le_bytes());
        text(&mut out, value);
    }
    for (key, n) in numbers {
        number(&mut out, key, n);
    }
    let mut at = 0_u64;
    for (name, n) in tensors {
        text(&mut out, name);
        out.extend(1_u32.to_le_bytes());
        out.extend(n.to_le_bytes());
        out.extend(0_u32.to_le_bytes());
        out.extend(at.to_le_bytes());
        at += n * 4;
    }
    out.resize(out.len().next_multiple_of(32), 0);
    Stored {
        start: out,
        zeros: at,
    }
}

fn gguf_repo() -> Repo {
    let mut repo = Repo::new("org/name-GGUF").file("README.md", "# a model");
    for (name, stored) in [
        (
            "m-Q4_K_M.gguf",
            gguf(0, 1, &[("token_embd.weight", 1 << 28), ("blk.0.a", 1 << 28)]),
        ),
        (
            "m-F32-00001-of-00002.gguf",
            gguf(0, 2, &[("token_embd.weight", 1 << 28)]),
        ),
        ("m-F32-00002-of-00002.gguf", gguf(1, 2, &[("blk.0.a", 1 << 28)])),
        (
            "mmproj-Q4_K_M.gguf",
            Stored {
                start: b"nothing".to_vec(),
                zeros: 0,
            },
        ),
    ] {
        repo.files.insert(name.to_owned(), stored);
    }
    repo
}

#[test]
fn a_gguf_file_costs_its_header_and_the_second_time_no_network() {
    let hub = TestHub::start(|asked| gguf_repo().answer(asked));
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&hub.url, cache.path());
    let find = |name: &str| model::find_anywhere(name, None, &settings, &quiet);
    let found = find("org/name-GGUF").unwrap();
    assert_eq!(found.name, "org/name-GGUF/m-Q4_K_M.gguf");
    let header = found.gguf.unwrap();
    assert_eq!(header.tensors.iter().map(|t| t.bytes).sum::<u64>(), 2 << 30);
    assert_eq!(hub.asked().len(), 2, "{:?}", hub.asked());
    assert!(hub.sent_bytes() < 2 << 20, "{}", hub.sent_bytes());
    // The other file is not kept yet; then neither costs anything, also offline.
    let both = find("org/name-GGUF:f32").unwrap();
    assert_eq!(both.name, "org/name-GGUF/m-F32-00001-of-00002.gguf");
    assert_eq!(both.gguf.unwrap().tensors.len(), 2);
    assert_eq!(hub.asked().len(), 5, "{:?}", hub.asked());
    let offline = settings.clone().offline_because("--offline");
    for name in [
        "org/name-GGUF",
        "org/name-GGUF:Q4_K_M",
        "org/name-GGUF/m-F32-00001-of-00002.gguf",
    ] {
        let again = model::find_anywhere(name, None, &offline, &quiet).unwrap();
        assert!(
            matches!(again.place, Place::Hub(origin) if origin.taken == Taken::OwnCache),
            "{name}"
        );
    }
    assert_eq!(hub.asked().len(), 5);
    let e = model::find_anywhere("org/name-GGUF:Q9", None, &settings, &quiet).unwrap_err();
    assert!(format!("{e:?}").contains("m-Q4_K_M.gguf"), "{e:?}");
}

#[test]
fn a_gguf_file_that_is_none_or_breaks_off_is_refused() {
    for stored in [
        Stored {
            start: b"not a model".to_vec(),
            zeros: 1 << 20,
        },
        Stored {
            start: b"GGUF\x03\0\0\0".to_vec(),
            zeros: 0,
        },
    ] {
        let hub = TestHub::start(move |asked| {
            let mut repo = Repo::new("org/name-GGUF");
            repo.files.insert("m.gguf".to_owned(), stored.clone());
            repo.answer(asked)
        });
        let cache = tempfile::tempdir().unwrap();
        let settings = settings(&hub.url, cache.path());
        let e = model::find_anywhere("org/name-GGUF", None, &settings, &quiet).unwrap_err();
        assert!(e.to_string().contains("org/name-GGUF/m.gguf"), "{e}");
        assert!(hub.asked().len() < 4, "{:?}", hub.asked());
    }
    let hub = TestHub::start(|_| Reply::new(404, "no").with("X-Error-Code", "RepoNotFound"));
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&hub.url, cache.path());
    let e = model::find_anywhere("org/name-GGUF:Q4_K_M", None, &settings, &quiet).unwrap_err();
    assert!(e.to_string().contains("is not on"), "{e}");
}
