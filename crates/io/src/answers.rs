//! Answers of a long search, kept so that it can go on after it was stopped: a text file, one JSON line an answer.
//!
//! The first line says what the answers are about; every later one is `{"key": ..., "answer": ...}` and is written whole as
//! soon as it is known. A last line without its end, as a stop may leave it, is cut off when the file is opened again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kvwise_core::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of the file.
const SCHEMA: &str = "kvwise.answers/1";
/// Largest file that is read, in bytes: a million answers.
const MAX_BYTES: u64 = 512 << 20;

#[derive(Serialize, Deserialize)]
struct Head {
    schema: String,
    about: String,
}

#[derive(Serialize, Deserialize)]
struct Line<K, A> {
    key: K,
    answer: A,
}

/// An open file of answers.
#[derive(Debug)]
pub struct Answers<A> {
    path: PathBuf,
    known: HashMap<String, A>,
    file: Mutex<File>,
}

impl<A: Serialize + DeserializeOwned + Clone> Answers<A> {
    /// Opens the file, or starts it. `about` must say everything that the answers depend on besides their keys.
    ///
    /// # Errors
    /// If it cannot be read or written, is another kind of file, or is about something else.
    pub fn open(path: &Path, about: &str) -> Result<Self> {
        let fail = |what: &str, e: &std::io::Error| {
            Error::io(format!("{}: cannot {what} the answers: {e}", path.display()))
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| fail("open", &e))?;
        let length = file.metadata().map_err(|e| fail("read", &e))?.len();
        if length > MAX_BYTES {
            return Err(Error::input(format!(
                "{}: {length} bytes are more than answers take ({MAX_BYTES})",
                path.display()
            )));
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(|e| fail("read", &e))?;
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        let mut known = HashMap::new();
        let mut lines = text[..whole].lines();
        match lines.next() {
            None if !text.is_empty() => return Err(not_answers(path, 1)),
            None => {
                let head = Head {
                    schema: SCHEMA.to_owned(),
                    about: about.to_owned(),
                };
                file.write_all(line(&head)?.as_bytes())
                    .map_err(|e| fail("write", &e))?;
            }
            Some(first) => {
                let head: Head = serde_json::from_str(first).map_err(|_| not_answers(path, 1))?;
                if head.schema != SCHEMA {
                    return Err(not_answers(path, 1));
                }
                if head.about != about {
                    return Err(Error::input(format!(
                        "{}: these answers are about another question (model, traffic, objectives or version)",
                        path.display()
                    ))
                    .hint("name another file, or remove this one"));
                }
                for (number, text) in lines.enumerate() {
                    let read: Line<String, A> =
                        serde_json::from_str(text).map_err(|_| not_answers(path, number + 2))?;
                    known.insert(read.key, read.answer);
                }
                file.set_len(whole as u64).map_err(|e| fail("write", &e))?;
                file.seek(SeekFrom::End(0)).map_err(|e| fail("write", &e))?;
            }
        }
        Ok(Self {
            path: path.to_owned(),
            known,
            file: Mutex::new(file),
        })
    }

    /// Answers that were there when the file was opened.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The answer of an earlier run.
    pub fn get(&self, key: &str) -> Option<&A> {
        self.known.get(key)
    }

    /// Keeps an answer.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep(&self, key: &str, answer: &A) -> Result<()> {
        let text = line(&Line { key, answer })?;
        self.file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(text.as_bytes())
            .map_err(|e| Error::io(format!("{}: cannot write the answers: {e}", self.path.display())))
    }
}

fn not_answers(path: &Path, line: usize) -> Error {
    Error::input(format!(
        "{}, line {line}: not a file of answers that an earlier run left",
        path.display()
    ))
    .hint("name another file, or remove this one")
}

fn line(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map(|text| text + "\n")
        .map_err(|e| Error::input(format!("an answer cannot be written as JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn answers_are_there_again_and_a_torn_line_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let first = Answers::<f64>::open(&path, "q").unwrap();
        assert!(first.is_empty());
        first.keep("x", &1.5).unwrap();
        first.keep("y", &0.1).unwrap();
        drop(first);
        let torn = fs::read_to_string(&path).unwrap() + "{\"key\":\"z\",\"ans";
        fs::write(&path, torn).unwrap();
        let again = Answers::<f64>::open(&path, "q").unwrap();
        assert_eq!(
            (again.len(), again.get("x"), again.get("z")),
            (2, Some(&1.5), None)
        );
        again.keep("z", &9.0).unwrap();
        drop(again);
        assert_eq!(Answers::<f64>::open(&path, "q").unwrap().get("z"), Some(&9.0));
    }

    #[test]
    fn answers_about_something_else_and_other_files_are_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        Answers::<f64>::open(&path, "q").unwrap().keep("x", &1.0).unwrap();
        let e = Answers::<f64>::open(&path, "other").unwrap_err();
        assert!(e.to_string().contains("another question"), "{e}");
        for text in [
            "precious notes\n",
            "no line end",
            "{}\n",
            "{\"schema\":\"kvwise.answers/1\",\"about\":\"q\"}\n7\n",
        ] {
            fs::write(&path, text).unwrap();
            let e = Answers::<f64>::open(&path, "q").unwrap_err();
            assert!(e.to_string().contains("not a file of answers"), "{text}: {e}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
