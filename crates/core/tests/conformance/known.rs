//! What is not equal to vLLM, and why.

const KNOWN: &str = include_str!("../golden/known_differences.tsv");

/// One line of `known_differences.tsv`.
pub struct Known {
    /// Configuration name; `*` at the end matches the rest.
    pub config: &'static str,
    /// Setting label as in the table, or `*`.
    pub setting: &'static str,
    /// `kv` or `weights`.
    pub part: &'static str,
    pub reason: &'static str,
}

impl Known {
    pub fn all() -> Vec<Self> {
        KNOWN
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| {
                let cells: Vec<&str> = line.split('\t').collect();
                let [config, setting, part, reason] = cells[..] else {
                    panic!("known_differences.tsv: expected 4 cells in {line:?}");
                };
                Self {
                    config,
                    setting,
                    part,
                    reason,
                }
            })
            .collect()
    }

    pub fn covers(&self, config: &str, setting: &str, part: &str) -> bool {
        let name = match self.config.strip_suffix('*') {
            Some(prefix) => config.starts_with(prefix),
            None => config == self.config,
        };
        name && self.part == part && (self.setting == "*" || self.setting == setting)
    }
}
