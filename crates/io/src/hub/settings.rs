//! How the hub is reached: address, token, caches, limits, from the environment variables of `huggingface_hub`.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvwise_core::{Error, Result};

/// The hub's address where nothing else is said.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Longest token file that is read, in bytes.
const MAX_TOKEN_BYTES: usize = 4096;

/// A secret that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token; surrounding white space is cut off. `None` if nothing is left.
    ///
    /// # Errors
    /// If it holds characters that cannot stand in a request.
    pub fn new(text: &str, place: &str) -> Result<Option<Self>> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::input(format!(
                "{place}: the hub token holds characters that no token has"
            ))
            .hint("write the token on one line, as the hub's settings page shows it (hf_...)"));
        }
        Ok(Some(Self(text.to_owned())))
    }

    /// The header that carries it.
    pub(super) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// Bounds on waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// To connect, and between two pieces of an answer.
    pub silence: Duration,
    /// For one whole answer.
    pub answer: Duration,
    /// First pause before asking again; each next one is twice as long.
    pub pause: Duration,
    /// Longest pause that a server may ask for (`Retry-After`).
    pub longest_pause: Duration,
    /// How often one thing is asked for.
    pub attempts: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(10),
            answer: Duration::from_secs(120),
            pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            attempts: 4,
        }
    }
}

/// How the hub is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Address without a final slash.
    pub endpoint: String,
    /// The user's token.
    pub token: Option<Token>,
    /// The hub's cache on this machine (`.../hub`).
    pub hub_cache: Option<PathBuf>,
    /// This program's cache folder.
    pub cache: Option<PathBuf>,
    /// Why the network must not be used, if so: the variable's or flag's name.
    pub offline: Option<String>,
    /// Bounds on waiting.
    pub limits: Limits,
}

impl Settings {
    /// From the environment: `HF_ENDPOINT`, `HF_TOKEN` (or `HUGGING_FACE_HUB_TOKEN`), `HF_TOKEN_PATH`, `HF_HOME`,
    /// `HF_HUB_CACHE` (or `HUGGINGFACE_HUB_CACHE`), `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`),
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_DOWNLOAD_TIMEOUT` (seconds), as `huggingface_hub` 1.x reads them;
    /// `KVWISE_CACHE`, else `XDG_CACHE_HOME/kvwise`, else `~/.cache/kvwise` for this program's cache.
    ///
    /// # Errors
    /// If a variable's value cannot be used; the message names it.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(&|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    /// As [`Settings::from_env`], with the variables looked up by `variable`.
    ///
    /// # Errors
    /// If a variable's value cannot be used.
    pub fn from_variables(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let home = ["HOME", "USERPROFILE"]
            .iter()
            .find_map(|name| variable(name))
            .map(PathBuf::from);
        let path = |name: &str| variable(name).map(|value| expand(&value, home.as_deref()));
        let text = |name: &str| -> Result<Option<String>> {
            variable(name)
                .map(|value| {
                    value
                        .into_string()
                        .map_err(|_| Error::input(format!("{name} is not readable text")))
                })
                .transpose()
        };
        let is_true = |name: &str| -> Result<bool> {
            let value = text(name)?.unwrap_or_default().to_ascii_uppercase();
            Ok(["1", "ON", "YES", "TRUE"].contains(&value.as_str()))
        };

        let base_cache = path("XDG_CACHE_HOME").or_else(|| home.as_ref().map(|h| h.join(".cache")));
        let hf_home = path("HF_HOME").or_else(|| base_cache.as_ref().map(|c| c.join("huggingface")));
        let hub_cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| hf_home.as_ref().map(|h| h.join("hub")));
        let cache = path("KVWISE_CACHE").or_else(|| base_cache.map(|c| c.join("kvwise")));

        let mut token = None;
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
            if token.is_none()
                && let Some(value) = text(name)?
            {
                token = Token::new(&value, name)?;
            }
        }
        if token.is_none() && !is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN")? {
            let file = path("HF_TOKEN_PATH").or_else(|| hf_home.map(|h| h.join("token")));
            if let Some(file) = file.filter(|f| f.is_file()) {
                let bytes = crate::model::read_capped(&file, MAX_TOKEN_BYTES)?;
                let value = String::from_utf8(bytes)
                    .map_err(|_| Error::input(format!("{}: the token is not text", file.display())))?;
                token = Token::new(&value, &file.display().to_string())?;
            }
        }

        // Only the first of the two that is set counts, as in huggingface_hub.
        let switch = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
            .into_iter()
            .find(|name| variable(name).is_some());
        let offline = match switch {
            Some(name) if is_true(name)? => Some(name.to_owned()),
            _ => None,
        };
        let mut limits = Limits::default();
        if let Some(value) = text("HF_HUB_DOWNLOAD_TIMEOUT")? {
            limits.silence = value
                .parse()
                .ok()
                .filter(|seconds| (1..=3600).contains(seconds))
                .map(Duration::from_secs)
                .ok_or_else(|| {
                    Error::input(format!(
                        "HF_HUB_DOWNLOAD_TIMEOUT is \"{value}\", expected whole seconds, 1 to 3600"
                    ))
                })?;
        }
        Ok(Self {
            endpoint: endpoint(text("HF_ENDPOINT")?.as_deref())?,
            token,
            hub_cache,
            cache,
            offline,
            limits,
        })
    }

    /// The same, but never using the network; `why` is the flag that said so.
    #[must_use]
    pub fn offline_because(mut self, why: &str) -> Self {
        self.offline.get_or_insert_with(|| why.to_owned());
        self
    }

    /// Where this program keeps what a hub answered: one folder a hub.
    pub(super) fn own_cache(&self) -> Option<PathBuf> {
        let host = self
            .endpoint
            .split_once("://")
            .map_or(self.endpoint.as_str(), |(_, rest)| rest);
        let name: String = host
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '.' || c == '-' {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        self.cache.as_ref().map(|cache| cache.join("hub").join(name))
    }

    /// The same, for who has an answer to keep.
    ///
    /// # Errors
    /// If there is no such folder.
    pub(super) fn folder_to_keep_in(&self) -> Result<PathBuf> {
        self.own_cache().ok_or_else(|| {
            Error::input(
                "there is no folder to keep what the hub answers: neither HOME nor KVWISE_CACHE is set",
            )
            .hint("set KVWISE_CACHE to a folder")
        })
    }
}

/// Checks the address; a final slash is cut off.
fn endpoint(text: Option<&str>) -> Result<String> {
    let text = text.unwrap_or(DEFAULT_ENDPOINT).trim().trim_end_matches('/');
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    let sound = host.is_some_and(|host| {
        !host.is_empty()
            && !host.starts_with('/')
            && !host.contains(|c: char| c.is_whitespace() || "@?#".contains(c))
    });
    if !sound {
        return Err(Error::input(format!(
            "HF_ENDPOINT is \"{}\", expected an address like {DEFAULT_ENDPOINT}",
            text.chars().take(80).collect::<String>()
        )));
    }
    Ok(text.to_owned())
}

/// Replaces a leading `~`.
fn expand(value: &OsString, home: Option<&Path>) -> PathBuf {
    let path = Path::new(value);
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::from_variables(&|name| {
            variables
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| OsString::from(*v))
        })
    }

    #[test]
    fn the_defaults_are_those_of_the_hubs_library() {
        let s = of(&[("HOME", "/h")]).unwrap();
        assert_eq!(s.endpoint, "https://huggingface.co");
        assert_eq!(
            s.hub_cache.as_deref(),
            Some(Path::new("/h/.cache/huggingface/hub"))
        );
        assert_eq!(
            s.own_cache().as_deref(),
            Some(Path::new("/h/.cache/kvwise/hub/huggingface.co"))
        );
        assert_eq!((s.token, s.offline), (None, None));
    }

    #[test]
    fn variables_win_in_the_librarys_order() {
        let s = of(&[
            ("HOME", "/h"),
            ("XDG_CACHE_HOME", "/x"),
            ("HF_HOME", "~/hf"),
            ("HF_ENDPOINT", "http://mirror:8080/"),
            ("HF_TOKEN", " hf_abc\n"),
        ])
        .unwrap();
        assert_eq!(s.hub_cache.as_deref(), Some(Path::new("/h/hf/hub")));
        assert_eq!(s.cache.as_deref(), Some(Path::new("/x/kvwise")));
        assert_eq!(
            s.own_cache().as_deref(),
            Some(Path::new("/x/kvwise/hub/mirror_8080"))
        );
        assert_eq!(s.token.unwrap().header(), "Bearer hf_abc");
        let s = of(&[
            ("HF_HOME", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b"),
            ("HF_HUB_CACHE", "/c"),
        ])
        .unwrap();
        assert_eq!(s.hub_cache.as_deref(), Some(Path::new("/c")));
    }

    #[test]
    fn offline_is_what_the_first_variable_set_says() {
        let offline = |vars: &[(&str, &str)]| of(vars).unwrap().offline;
        assert_eq!(
            offline(&[("HF_HUB_OFFLINE", "1")]).as_deref(),
            Some("HF_HUB_OFFLINE")
        );
        assert_eq!(
            offline(&[("TRANSFORMERS_OFFLINE", "yes")]).as_deref(),
            Some("TRANSFORMERS_OFFLINE")
        );
        assert_eq!(
            offline(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]),
            None
        );
        assert_eq!(offline(&[("HF_HUB_OFFLINE", "false")]), None);
    }

    #[test]
    fn a_token_file_is_read_and_a_broken_one_named_but_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let path = file.to_str().unwrap();
        std::fs::write(&file, "hf_file\n").unwrap();
        let s = of(&[("HF_TOKEN_PATH", path)]).unwrap();
        assert_eq!(s.token.clone().unwrap().header(), "Bearer hf_file");
        assert!(!format!("{s:?}").contains("hf_file"));
        assert_eq!(
            of(&[("HF_TOKEN_PATH", path), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")])
                .unwrap()
                .token,
            None
        );
        std::fs::write(&file, "hf_secret\nsecond line").unwrap();
        let e = of(&[("HF_TOKEN_PATH", path)]).unwrap_err().to_string();
        assert!(e.contains(path) && !e.contains("hf_secret"), "{e}");
    }

    #[test]
    fn values_that_cannot_be_used_are_named() {
        for (name, value) in [
            ("HF_ENDPOINT", "ftp://x"),
            ("HF_ENDPOINT", "https://"),
            ("HF_ENDPOINT", "https://user@host"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "soon"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "0"),
        ] {
            let e = of(&[(name, value)]).unwrap_err().to_string();
            assert!(e.contains(name), "{e}");
        }
    }
}
