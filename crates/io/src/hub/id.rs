//! Names of models on the hub.

use std::fmt;

/// Longest part of a name (`huggingface_hub` 1.x, `utils/_validators.py`).
const MAX_PART_CHARS: usize = 96;

/// A name like `Qwen/Qwen3-32B`; a few old models have no organisation (`gpt2`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoId(String);

impl RepoId {
    /// Reads a name by the hub's rules: one or two parts of ASCII letters, digits, `-`, `_` and `.`, which neither
    /// begin nor end with `-` or `.`, without `--` or `..`, not ending in `.git`. `None` if it breaks one.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let sound = |part: &&str| {
            !part.is_empty()
                && part.len() <= MAX_PART_CHARS
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                && !part.contains("--")
                && !part.contains("..")
        };
        (parts.len() <= 2 && parts.iter().all(sound) && text.strip_suffix(".git").is_none())
            .then(|| Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has an organisation.
    pub fn has_organisation(&self) -> bool {
        self.0.contains('/')
    }

    /// The name of its folder in a hub cache: `models--Qwen--Qwen3-32B`.
    pub fn folder(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_hubs_rules() {
        for good in ["gpt2", "Qwen/Qwen3-32B", "a/b.c_d", "01-ai/Yi-1.5-9B"] {
            assert_eq!(RepoId::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "", "/", "a/", "/b", "a/b/c", "../x", "a/..", "a--b/c", "a/b..c", "-a/b", "a/b.", "a b/c",
            "a/b.git", "ä/b", "a/b?c",
        ] {
            assert_eq!(RepoId::parse(bad), None, "{bad}");
        }
        assert_eq!(RepoId::parse(&format!("a/{}", "x".repeat(97))), None);
    }

    #[test]
    fn the_cache_folder_is_named_as_the_hub_names_it() {
        assert_eq!(
            RepoId::parse("Qwen/Qwen3-32B").unwrap().folder(),
            "models--Qwen--Qwen3-32B"
        );
        assert_eq!(RepoId::parse("gpt2").unwrap().folder(), "models--gpt2");
    }
}
