//! `kvwise config`: settings and saved calibrations.

use super::*;

#[test]
fn config_shows_where_each_setting_comes_from() {
    let folder = folder();
    fs::write(
        folder.path().join("config.toml"),
        "gpu = \"l4\"\nengine_version = \"0.20.0\"\nformat = \"csv\"\n",
    )
    .unwrap();
    let shown = json(&kvwise(folder.path(), &["config", "--format", "json"]));
    let setting = |name: &str| {
        shown["settings"]
            .as_array()
            .unwrap()
            .iter()
            .find(|s| s["name"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(setting("gpu")["value"], "l4");
    assert!(
        setting("gpu")["origin"]
            .as_str()
            .unwrap()
            .ends_with("config.toml")
    );
    assert_eq!(setting("engine")["origin"], "default");
    // File, then environment, then flag.
    let plan = |flags: &[&str], variable: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvwise"));
        command
            .args(["plan", "llama-3.1-8b", "--format", "json"])
            .args(flags)
            .env("KVWISE_CONFIG_DIR", folder.path())
            .env("HF_HUB_OFFLINE", "1");
        match variable {
            Some(gpu) => command.env("KVWISE_GPU", gpu),
            None => command.env_remove("KVWISE_GPU"),
        };
        json(&command.output().unwrap())
    };
    let file = plan(&[], None);
    assert_eq!(
        (&file["gpu"]["name"], &file["engine"]["version"]),
        (&"l4".into(), &"0.20.0".into())
    );
    assert_eq!(plan(&[], Some("l40s"))["gpu"]["name"], "l40s");
    assert_eq!(plan(&["--gpu", "h100"], Some("l40s"))["gpu"]["name"], "h100");
    // The format of the file holds where nothing else says one.
    let csv = kvwise(folder.path(), &["plan", "llama-3.1-8b"]);
    assert!(String::from_utf8(csv.stdout).unwrap().starts_with("name,bytes,"));
    fs::write(folder.path().join("config.toml"), "gpus = \"l4\"\n").unwrap();
    let text = error(folder.path(), &["plan", "llama-3.1-8b"]);
    assert!(
        text.contains("config.toml: \"gpus\" is not a setting") && text.contains("did you mean gpu?"),
        "{text}"
    );
}

#[test]
fn config_for_people_lists_settings_and_calibrations() {
    let folder = folder();
    verify(folder.path(), &["--log", &data("a100.log"), "--save"]);
    let output = kvwise(folder.path(), &["config", "--format", "table"]);
    let text = String::from_utf8(output.stdout)
        .unwrap()
        .replace(&folder.path().display().to_string(), "FOLDER");
    insta::assert_snapshot!(text);
}
