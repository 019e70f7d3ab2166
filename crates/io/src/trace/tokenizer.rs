//! Turning text into token ids, for traces that hold conversations as text.

use std::path::Path;

use kvwise_core::Result;

/// Something that turns text into token ids.
pub trait Tokenize: Sync {
    /// Appends the ids of `text`, without special tokens at its ends.
    ///
    /// # Errors
    /// If the text cannot be tokenised.
    fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<()>;
}

/// Opens a `tokenizer.json`, or the folder of a model that has one.
///
/// # Errors
/// If the file is missing or unreadable, or this build has no tokenizer (feature `tokenizer`).
pub fn open_tokenizer(path: &Path) -> Result<Box<dyn Tokenize>> {
    imp::open(path)
}

#[cfg(not(feature = "tokenizer"))]
mod imp {
    use std::path::Path;

    use kvwise_core::{Error, Result};

    pub(super) fn open(path: &Path) -> Result<Box<dyn super::Tokenize>> {
        Err(Error::unsupported(format!(
            "{}: this build has no tokenizer, so traces of text cannot be read",
            path.display()
        ))
        .hint("build it with `cargo build --release -p kvwise --features tokenizer`"))
    }
}

#[cfg(feature = "tokenizer")]
mod imp {
    use std::path::Path;

    use kvwise_core::{Error, Result};
    use tokenizers::Tokenizer;

    /// Largest `tokenizer.json` that is read; those of real models have up to 33 MB.
    const MAX_BYTES: u64 = 256 << 20;

    struct HuggingFace(Tokenizer);

    impl super::Tokenize for HuggingFace {
        fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
            let encoding = self
                .0
                .encode_fast(text, false)
                .map_err(|e| Error::input(format!("the text cannot be tokenised: {e}")))?;
            out.extend_from_slice(encoding.get_ids());
            Ok(())
        }
    }

    pub(super) fn open(path: &Path) -> Result<Box<dyn super::Tokenize>> {
        let file = if path.is_dir() {
            path.join("tokenizer.json")
        } else {
            path.to_owned()
        };
        let name = file.display();
        let size = std::fs::metadata(&file)
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => Error::not_found(format!("{name}: no such file"))
                    .hint("--tokenizer takes a tokenizer.json or a model's folder that has one"),
                _ => Error::io(format!("{name}: cannot open: {e}")),
            })?
            .len();
        if size > MAX_BYTES {
            return Err(Error::input(format!(
                "{name}: {size} bytes are no tokenizer.json, expected at most {MAX_BYTES}"
            )));
        }
        let text = std::fs::read(&file).map_err(|e| Error::io(format!("{name}: cannot read: {e}")))?;
        let mut tokenizer = Tokenizer::from_bytes(text)
            .map_err(|e| Error::input(format!("{name}: not a tokenizer.json: {e}")))?;
        // a request's tokens are counted as they are, whatever the file says about training batches
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|e| Error::input(format!("{name}: {e}")))?;
        Ok(Box::new(HuggingFace(tokenizer)))
    }
}

#[cfg(all(test, feature = "tokenizer"))]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A byte-level BPE of 300 tokens with Llama 3's pattern for words, trained on two sentences.
    fn tiny() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny_bpe.json")
    }

    #[test]
    fn ids_are_those_of_the_python_library() {
        let tokenizer = open_tokenizer(&tiny()).unwrap();
        // made with the Python package tokenizers 0.23, add_special_tokens=False
        for (text, ids) in [
            ("the cache keeps it", &[295, 267, 284, 276, 286, 83, 221, 272][..]),
            (
                "Don't  stop: 12345 Zürich 日本\n",
                &[
                    36, 79, 78, 7, 84, 221, 221, 83, 84, 79, 80, 26, 221, 17, 18, 19, 20, 21, 221, 58, 128,
                    121, 82, 73, 67, 72, 221, 163, 246, 99, 163, 251, 106, 199,
                ],
            ),
            ("", &[]),
        ] {
            let mut out = Vec::new();
            tokenizer.encode(text, &mut out).unwrap();
            assert_eq!(out, ids, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_tokenizer_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokenizer.json");
        let message = |path: &Path| match open_tokenizer(path) {
            Ok(_) => panic!("{} was read", path.display()),
            Err(e) => e.to_string(),
        };
        assert!(message(folder.path()).contains("no such file"));
        std::fs::write(&file, "{\"version\": 1}").unwrap();
        assert!(message(folder.path()).contains("not a tokenizer.json"));
    }
}
