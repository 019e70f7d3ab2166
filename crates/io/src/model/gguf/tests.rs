//! Files made here byte by byte: good ones in every version and byte order, and hostile ones.

use std::io::Cursor;
use std::path::Path;

use kvwise_core::engine::llamacpp::{Header, Hparams, Meta, Weights};
use kvwise_core::{ErrorKind, Result};
use proptest::prelude::*;

use super::*;

/// A value to write.
#[derive(Clone)]
enum V {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(&'static str),
    Texts(Vec<&'static str>),
    Ints(Vec<i32>),
    Flags(Vec<bool>),
    Raw(u32, Vec<u8>),
}

struct Writer {
    out: Vec<u8>,
    version: u32,
    big: bool,
}

impl Writer {
    fn u32(&mut self, n: u32) {
        let bytes = if self.big {
            n.to_be_bytes()
        } else {
            n.to_le_bytes()
        };
        self.out.extend(bytes);
    }
    fn u64(&mut self, n: u64) {
        let bytes = if self.big {
            n.to_be_bytes()
        } else {
            n.to_le_bytes()
        };
        self.out.extend(bytes);
    }
    fn length(&mut self, n: u64) {
        if self.version == 1 {
            self.u32(u32::try_from(n).unwrap());
        } else {
            self.u64(n);
        }
    }
    fn text(&mut self, s: &str) {
        self.length(s.len() as u64);
        self.out.extend(s.as_bytes());
    }
    fn value(&mut self, v: &V) {
        match v {
            V::U32(n) => {
                self.u32(4);
                self.u32(*n);
            }
            V::F32(x) => {
                self.u32(6);
                self.u32(x.to_bits());
            }
            V::Bool(b) => {
                self.u32(7);
                self.out.push(u8::from(*b));
            }
            V::Text(s) => {
                self.u32(8);
                self.text(s);
            }
            V::Texts(list) => {
                self.u32(9);
                self.u32(8);
                self.length(list.len() as u64);
                for s in list {
                    self.text(s);
                }
            }
            V::Ints(list) => {
                self.u32(9);
                self.u32(5);
                self.length(list.len() as u64);
                for n in list {
                    self.u32(n.cast_unsigned());
                }
            }
            V::Flags(list) => {
                self.u32(9);
                self.u32(7);
                self.length(list.len() as u64);
                for b in list {
                    self.out.push(u8::from(*b));
                }
            }
            V::Raw(kind, bytes) => {
                self.u32(*kind);
                self.out.extend(bytes);
            }
        }
    }
}

type T<'a> = (&'a str, Vec<u64>, u32);

/// A whole file, with as many zeros for data as the tensors need.
fn file(version: u32, big: bool, values: &[(&str, V)], tensors: &[T]) -> Vec<u8> {
    let mut w = Writer {
        out: b"GGUF".to_vec(),
        version,
        big,
    };
    w.u32(version);
    w.length(tensors.len() as u64);
    w.length(values.len() as u64);
    for (key, value) in values {
        w.text(key);
        w.value(value);
    }
    let mut offset = 0_u64;
    for (name, shape, kind) in tensors {
        w.text(name);
        w.u32(u32::try_from(shape.len()).unwrap());
        for &n in shape {
            w.length(n);
        }
        w.u32(*kind);
        w.u64(offset);
        let (block, bytes) = match kind {
            0 => (1, 4),
            1 => (1, 2),
            8 => (32, 34),
            14 => (256, 210),
            _ => (32, 18),
        };
        let size = shape.iter().product::<u64>() / block * bytes;
        offset = (offset + size).next_multiple_of(32);
    }
    let data = (w.out.len() as u64).next_multiple_of(32) + offset;
    w.out.resize(usize::try_from(data).unwrap(), 0);
    w.out
}

fn parse(bytes: &[u8]) -> Result<Header> {
    read_header(&mut Cursor::new(bytes), bytes.len() as u64)
}

fn llama() -> (Vec<(&'static str, V)>, Vec<T<'static>>) {
    (
        vec![
            ("general.architecture", V::Text("llama")),
            ("general.name", V::Text("Tiny")),
            ("llama.block_count", V::U32(2)),
            ("llama.context_length", V::U32(4096)),
            ("llama.embedding_length", V::U32(64)),
            ("llama.feed_forward_length", V::U32(128)),
            ("llama.attention.head_count", V::U32(4)),
            ("llama.attention.head_count_kv", V::U32(2)),
            ("llama.rope.freq_base", V::F32(1e4)),
            ("tokenizer.ggml.add_bos_token", V::Bool(true)),
            ("tokenizer.ggml.tokens", V::Texts(vec!["a", "b", "c"])),
        ],
        vec![
            ("token_embd.weight", vec![64, 3], 0),
            ("blk.0.attn_q.weight", vec![64, 64], 8),
            ("blk.1.attn_q.weight", vec![64, 64], 1),
            ("output_norm.weight", vec![64], 0),
        ],
    )
}

#[test]
fn every_version_in_either_byte_order_reads_the_same() {
    let (values, tensors) = llama();
    let expected = parse(&file(3, false, &values, &tensors)).unwrap();
    assert_eq!(expected.vocabulary().unwrap(), 3);
    assert_eq!(expected.tensors[1].bytes, 64 * 64 / 32 * 34);
    for (version, big) in [(1, false), (2, false), (2, true), (3, true), (1, true)] {
        let got = parse(&file(version, big, &values, &tensors)).unwrap();
        assert_eq!(
            got.metadata, expected.metadata,
            "version {version}, big endian {big}"
        );
        assert_eq!(got.tensors, expected.tensors);
        assert_eq!(got.version, version);
    }
}

#[test]
fn a_tied_embedding_is_copied_for_the_output_and_counted_once_in_the_file() {
    let (values, tensors) = llama();
    let header = parse(&file(3, false, &values, &tensors)).unwrap();
    let model = Hparams::read(&header).unwrap();
    let weights = Weights::of_file(&header, &model).unwrap();
    assert_eq!(weights.input, 64 * 3 * 4);
    assert_eq!(weights.layers, [4352, 8192]);
    assert_eq!(weights.output, 256 + 64 * 3 * 4);
    assert_eq!(weights.file, 768 + 4352 + 8192 + 256);
    assert_eq!(weights.params.0, 192 + 4096 + 4096 + 64);
}

#[test]
fn lists_of_integers_and_flags_are_kept_and_long_ones_counted() {
    let values = [
        ("general.architecture", V::Text("x")),
        ("x.pattern", V::Flags(vec![true, false, true])),
        ("x.heads", V::Ints(vec![-1, 8])),
        ("x.long", V::Ints(vec![7; 5000])),
    ];
    let header = parse(&file(3, false, &values, &[])).unwrap();
    assert_eq!(header.metadata["x.pattern"], Meta::Ints(vec![1, 0, 1]));
    assert_eq!(header.metadata["x.heads"], Meta::Ints(vec![-1, 8]));
    assert_eq!(header.metadata["x.long"], Meta::Long(5000));
}

/// A file that llama.cpp itself wrote (build b11549, `llama_model_save_to_file` of a model of one layer).
#[test]
fn a_file_written_by_llama_cpp_is_read_as_its_own_tools_read_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama.gguf");
    let header = read(&path).unwrap();
    // gguf-py 0.19 counts 34 tensors of 42,456 bytes in it.
    assert_eq!(header.tensors.len(), 34);
    assert_eq!(header.tensor_bytes().unwrap(), 42_456);
    let model = Hparams::read(&header).unwrap();
    assert_eq!(
        (model.layers.len(), model.embedding, model.context_length),
        (1, 32, 512)
    );
    let weights = Weights::of_file(&header, &model).unwrap();
    assert_eq!((weights.input, weights.output), (2048, 2048 + 128));
    // The rotation's frequencies are not the input's: llama.cpp keeps them with the first layer.
    assert_eq!(weights.layers, [42_456 - 2048 - 2048 - 128]);
}

/// `bytes` must be refused with a sentence that contains `text`.
fn refused(bytes: &[u8], text: &str) {
    let e = parse(bytes).unwrap_err();
    assert!(e.to_string().contains(text), "expected \"{text}\" in {e}");
}

#[test]
fn hostile_headers_are_refused_with_a_sentence_and_without_believing_their_lengths() {
    refused(b"", "cut off");
    refused(b"GGML\x03\0\0\0", "does not begin with GGUF");
    refused(b"GGUF\x09\0\0\0", "version 9");
    let arch = ("general.architecture", V::Text("x"));
    let head = |tensors: u64, values: u64| {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend(tensors.to_le_bytes());
        out.extend(values.to_le_bytes());
        out
    };
    refused(&head(u64::MAX, 0), "the number of tensors");
    refused(&head(0, u64::MAX), "the number of metadata values");
    refused(&head(1, 0), "cut off");
    let mut key = head(0, 1);
    key.extend(u64::MAX.to_le_bytes());
    refused(&key, "the length of key 0");
    let list = |kind: u32, n: u64| {
        let mut raw = kind.to_le_bytes().to_vec();
        raw.extend(n.to_le_bytes());
        file(3, false, &[("a", V::Raw(9, raw))], &[])
    };
    refused(&list(4, u64::MAX), "the length of a");
    refused(&list(4, 1 << 28), "cut off");
    refused(&list(8, 1 << 28), "cut off");
    refused(&list(9, 1), "list of lists");
    refused(&list(77, 1), "list of type 77");
    refused(&file(3, false, &[("a", V::Raw(13, vec![]))], &[]), "type 13");
    refused(
        &file(3, false, &[("a", V::Raw(7, vec![2]))], &[]),
        "a flag of value 2",
    );
    refused(&file(3, false, &[arch.clone(), arch.clone()], &[]), "twice");
    refused(
        &file(3, false, &[("general.alignment", V::U32(0))], &[]),
        "general.alignment is 0",
    );
    refused(
        &file(3, false, &[("general.alignment", V::U32(33))], &[]),
        "general.alignment is 33",
    );
    refused(&file(3, false, &[], &[("t", vec![1; 5], 0)]), "5 dimensions");
    refused(&file(3, false, &[], &[("t", vec![33], 8)]), "whole blocks");
    refused(
        &file(3, false, &[], &[("t", vec![32], 0), ("t", vec![32], 0)]),
        "twice",
    );
    refused(&file(3, false, &[], &[("t", vec![4], 99)]), "ggml type 99");
}

#[test]
fn a_tensor_larger_than_64_bits_or_than_the_file_is_refused() {
    let mut w = Writer {
        out: b"GGUF".to_vec(),
        version: 3,
        big: false,
    };
    w.u32(3);
    w.u64(1);
    w.u64(0);
    w.text("huge");
    w.u32(4);
    for _ in 0..4 {
        w.u64(1 << 40);
    }
    w.u32(0);
    w.u64(0);
    let e = parse(&w.out).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Overflow, "{e}");
    let (values, tensors) = llama();
    let whole = file(3, false, &values, &tensors);
    refused(&whole[..whole.len() - 64], "cut off");
}

#[test]
fn a_header_that_ends_anywhere_is_cut_off() {
    let (values, tensors) = llama();
    for version in [1, 3] {
        let whole = file(version, version == 1, &values, &tensors);
        for end in 0..whole.len() {
            let e = parse(&whole[..end]).unwrap_err().to_string();
            assert!(e.contains("cut off"), "{end}: {e}");
        }
        assert!(parse(&whole).is_ok());
    }
    // The magic in the other order is no file of either order.
    refused(b"FUGG\x03\0\0\0", "does not begin with GGUF");
    refused(b"GGUF\0\0\0\0", "version 0");
}

#[test]
fn parts_are_read_together_from_whichever_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (mut values, tensors) = llama();
    values.push(("split.count", V::U32(2)));
    values.push(("split.tensors.count", V::U32(4)));
    let name = |n: u32| dir.path().join(format!("tiny-{n:05}-of-00002.gguf"));
    std::fs::write(name(1), file(3, false, &values, &tensors[..2])).unwrap();
    let e = read(&name(1)).unwrap_err().to_string();
    assert!(e.contains("1 of the 2 parts are missing"), "{e}");
    let rest = [("split.count", V::U32(2))];
    std::fs::write(name(2), file(3, false, &rest, &tensors[2..])).unwrap();
    let from_first = read(&name(1)).unwrap();
    assert_eq!(from_first.tensors.len(), 4);
    assert_eq!(read(&name(2)).unwrap(), from_first);
    std::fs::write(name(2), file(3, false, &rest, &tensors[..2])).unwrap();
    assert!(read(&name(1)).unwrap_err().to_string().contains("earlier part"));
    for (other, text) in [
        (("split.count", V::U32(3)), "split.count is 3"),
        (("split.no", V::U32(0)), "split.no is 0"),
        (
            ("general.architecture", V::Text("qwen2")),
            "another than in the first part",
        ),
    ] {
        std::fs::write(name(2), file(3, false, &[other], &tensors[2..])).unwrap();
        let e = read(&name(1)).unwrap_err().to_string();
        assert!(e.contains(text), "{e}");
    }
    let odd = dir.path().join("odd.gguf");
    std::fs::copy(name(1), &odd).unwrap();
    assert!(read(&odd).unwrap_err().to_string().contains("not named like"));
    assert!(read(Path::new("/nowhere.gguf")).is_err());
}

proptest! {
    /// Any change of a byte, and any cut, is an answer or an error, never a panic.
    #[test]
    fn damaged_files_never_panic(at in 0_usize..4000, byte: u8, cut in 0_usize..4000) {
        let (values, tensors) = llama();
        let mut bytes = file(3, false, &values, &tensors);
        let i = at % bytes.len();
        bytes[i] = byte;
        bytes.truncate(bytes.len() - cut % bytes.len());
        if let Ok(header) = parse(&bytes)
            && let Ok(model) = Hparams::read(&header)
        {
            let _ = Weights::of_file(&header, &model);
        }
    }

    /// What is written is what is read.
    #[test]
    fn numbers_and_shapes_survive(n: u32, x in -1e30_f32..1e30, flag: bool, rows in 1_u64..9, big: bool) {
        let values = [("a", V::U32(n)), ("b", V::F32(x)), ("c", V::Bool(flag))];
        let header = parse(&file(3, big, &values, &[("t", vec![256, rows], 14)])).unwrap();
        prop_assert_eq!(&header.metadata["a"], &Meta::Int(i128::from(n)));
        prop_assert_eq!(&header.metadata["b"], &Meta::Float(f64::from(x)));
        prop_assert_eq!(&header.metadata["c"], &Meta::Bool(flag));
        prop_assert_eq!(header.tensors[0].bytes, rows * 210);
    }
}
