//! Folders of this program in the user's home.

use std::ffi::OsString;
use std::path::PathBuf;

/// Where the user's own data lies (GPUs, calibrations): `KVWISE_CONFIG_DIR`, else `XDG_CONFIG_HOME/kvwise`, else
/// `~/.config/kvwise` (`%APPDATA%\kvwise` on Windows). `None` without a home.
pub fn config() -> Option<PathBuf> {
    config_from(&|name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

fn config_from(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| variable(name).map(PathBuf::from);
    path("KVWISE_CONFIG_DIR")
        .or_else(|| path("XDG_CONFIG_HOME").map(|p| p.join("kvwise")))
        .or_else(|| path("APPDATA").map(|p| p.join("kvwise")))
        .or_else(|| path("HOME").map(|p| p.join(".config/kvwise")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_variable_decides() {
        let of = |pairs: &'static [(&str, &str)]| {
            config_from(&|name| {
                pairs
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, v)| OsString::from(*v))
            })
        };
        assert_eq!(of(&[("HOME", "/h")]), Some(PathBuf::from("/h/.config/kvwise")));
        assert_eq!(
            of(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "/x")]),
            Some(PathBuf::from("/x/kvwise"))
        );
        assert_eq!(
            of(&[("XDG_CONFIG_HOME", "/x"), ("KVWISE_CONFIG_DIR", "/k")]),
            Some(PathBuf::from("/k"))
        );
        assert_eq!(of(&[]), None);
    }
}
