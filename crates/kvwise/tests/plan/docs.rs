//! The README and the book show real output: every block that begins with `$ kvwise` is run and compared.
//! `UPDATE_DOCS=1 cargo test -p kvwise --test plan docs` writes the present output into them.

use std::fs;
use std::path::{Path, PathBuf};

use super::kvwise_table;

/// Markdown files of the repository that may hold examples.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut pages = vec![root.join("README.md")];
    let mut folders = vec![root.join("docs/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages
}

/// Every path that the code map names, and whether a file or folder of the sources ends so.
#[test]
fn the_code_map_names_only_what_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let map = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let mut there = vec![String::new()];
    let mut folders = vec![root.join("crates"), root.join("data"), root.join("python")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            there.push(format!("/{}", path.strip_prefix(&root).unwrap().display()));
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            }
        }
    }
    // Words in back quotes with a slash or an ending; X stands for any command.
    let named: Vec<&str> = map
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.contains(".rs") || word.starts_with("crates/") || word.contains(".jsonl"))
        .filter(|word| !word.contains("X."))
        .collect();
    assert!(named.len() > 60, "{named:?}");
    let gone: Vec<&str> = named
        .into_iter()
        .filter(|name| !there.iter().any(|path| path.ends_with(&format!("/{name}"))))
        .collect();
    assert!(
        gone.is_empty(),
        "ARCHITECTURE.md names what is not there: {gone:?}"
    );
}

/// The page with the output of each example replaced by what the program prints now, and how many there are.
fn refreshed(text: &str) -> (String, usize) {
    let mut out = String::new();
    let mut examples = 0;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        if line != "```console" {
            continue;
        }
        let Some(command) = lines.next() else { break };
        out.push_str(command);
        out.push('\n');
        let Some(words) = command.strip_prefix("$ kvwise ") else {
            continue;
        };
        // quotes as a shell needs them around JSON; no argument of an example has blanks
        let words: Vec<&str> = words
            .split_whitespace()
            .map(|word| word.trim_matches('\''))
            .collect();
        let output = kvwise_table(&words);
        out.push_str(&String::from_utf8(output.stdout).unwrap());
        out.push_str(&String::from_utf8(output.stderr).unwrap());
        examples += 1;
        for old in lines.by_ref() {
            if old == "```" {
                out.push_str("```\n");
                break;
            }
        }
    }
    (out, examples)
}

#[test]
fn examples_in_the_documentation_show_what_the_program_prints() {
    let mut examples = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let (now, count) = refreshed(&text);
        examples += count;
        if std::env::var_os("UPDATE_DOCS").is_some() {
            fs::write(&page, &now).unwrap();
        } else {
            assert!(
                now == text,
                "{}: an example is out of date; run with UPDATE_DOCS=1",
                page.display()
            );
        }
    }
    assert!(examples >= 4, "only {examples} examples were found");
}

#[test]
fn the_summary_names_every_page_and_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src");
    let summary = fs::read_to_string(root.join("SUMMARY.md")).unwrap();
    for page in pages() {
        let Ok(name) = page.strip_prefix(&root) else {
            continue;
        };
        let name = name.to_str().unwrap();
        assert!(
            name == "SUMMARY.md" || summary.contains(&format!("({name})")),
            "{name} is not in SUMMARY.md"
        );
    }
    for link in summary
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
    {
        assert!(
            root.join(link).is_file(),
            "SUMMARY.md names {link}, which is not there"
        );
    }
}
