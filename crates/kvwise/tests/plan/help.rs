//! The examples of every help text: all are read by the program's own parser, and those that need nothing but the program are run.

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::{CommandFactory, Parser};
use kvwise::cli::Cli;

/// Commands whose examples need no server, recording or trace, and no minutes.
const RUN: [&str; 9] = [
    "plan",
    "size",
    "generate",
    "lint",
    "compare",
    "models",
    "gpus",
    "demo",
    "completions",
];

/// Every line of every help text that begins with the program's name.
fn examples(command: &clap::Command, out: &mut Vec<String>) {
    for help in [command.get_after_help(), command.get_after_long_help()] {
        let text = help.map(ToString::to_string).unwrap_or_default();
        for line in text.lines() {
            if let Some(example) = line.strip_prefix("  kvwise ") {
                // What follows two blanks or a sharp explains the example, and a pipe leaves the program.
                let end = ["  ", " #", " | ", " < ", " > "]
                    .iter()
                    .filter_map(|mark| example.find(mark))
                    .min()
                    .unwrap_or(example.len());
                let example = example[..end].trim().to_owned();
                if !out.contains(&example) {
                    out.push(example);
                }
            }
        }
    }
    for sub in command.get_subcommands() {
        examples(sub, out);
    }
}

/// Words as a shell would give them; examples quote with single quotes only.
fn words(example: &str) -> Vec<String> {
    let mut all = vec!["kvwise".to_owned()];
    let mut open: Option<String> = None;
    for (i, part) in example.split('\'').enumerate() {
        if i % 2 == 1 {
            open.get_or_insert_default().push_str(part);
            continue;
        }
        let starts = part.starts_with(char::is_whitespace) || i == 0;
        for (j, word) in part.split_whitespace().enumerate() {
            if (j > 0 || starts)
                && let Some(done) = open.take()
            {
                all.push(done);
            }
            open.get_or_insert_default().push_str(word);
        }
        if part.ends_with(char::is_whitespace)
            && let Some(done) = open.take()
        {
            all.push(done);
        }
    }
    all.extend(open);
    all
}

/// The command line with the flags of every command.
fn built() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    command
}

fn all() -> Vec<String> {
    let mut out = Vec::new();
    examples(&built(), &mut out);
    out
}

#[test]
fn the_program_reads_every_example_of_its_help() {
    let all = all();
    assert!(all.len() > 90, "{} examples", all.len());
    for example in &all {
        if let Err(e) = Cli::try_parse_from(words(example)) {
            panic!("kvwise {example}\n{e}");
        }
    }
    // Every command has one.
    for command in built().get_subcommands().filter(|c| c.get_name() != "help") {
        let name = format!("{} ", command.get_name());
        assert!(
            all.iter().any(|e| format!("{e} ").starts_with(&name)),
            "kvwise {name}--help shows no example"
        );
    }
}

/// Files that examples name.
fn stage(folder: &Path) {
    let config = kvwise_core::catalogue::find("Qwen/Qwen3-8B").unwrap();
    fs::create_dir(folder.join("my-model")).unwrap();
    fs::write(folder.join("my-model/config.json"), config.config_text().unwrap()).unwrap();
    fs::write(
        folder.join("serve_command.sh"),
        "#!/bin/sh\nexec vllm serve Qwen/Qwen3-8B\n",
    )
    .unwrap();
    fs::write(
        folder.join("docker-compose.yaml"),
        "services: {a: {image: 'vllm/vllm-openai:v0.32.0', command: 'Qwen/Qwen3-8B', ipc: host}}\n",
    )
    .unwrap();
}

#[test]
fn examples_that_need_nothing_else_do_what_they_say() {
    let mut ran = 0;
    for example in all() {
        let name = example.split_whitespace().next().unwrap_or_default();
        if !RUN.contains(&name) || example.contains(".gguf") || example.contains("--detect") {
            continue;
        }
        // Each alone, so that none finds another's files.
        let folder = tempfile::tempdir().unwrap();
        stage(folder.path());
        let output = Command::new(env!("CARGO_BIN_EXE_kvwise"))
            .args(&words(&example)[1..])
            .current_dir(folder.path())
            .env_remove("KVWISE_FORMAT")
            .env("HF_HUB_OFFLINE", "1")
            .env("KVWISE_CONFIG_DIR", "/nowhere")
            .output()
            .unwrap();
        // "It does not fit" is an answer, too; nothing may be an error.
        assert!(
            output.status.code().is_some_and(|code| code < 2) && !output.stdout.is_empty(),
            "kvwise {example}: {output:?}"
        );
        ran += 1;
    }
    assert!(ran > 30, "{ran} examples were run");
}

/// The help of a command and of those below it, as a page's sections.
fn sections(command: &clap::Command, name: &str, out: &mut String) {
    let help = command.clone().bin_name(name).render_long_help().to_string();
    let lines: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    out.push_str(&format!("\n## `{name}`\n\n```text\n{}\n```\n", lines.join("\n")));
    for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
        sections(sub, &format!("{name} {}", sub.get_name()), out);
    }
}

#[test]
fn the_reference_of_commands_is_what_the_program_says() {
    let mut page = String::from(
        "# Commands\n\nEvery command with its flags and examples, as `kvwise COMMAND --help` prints them. This page is written by the \
         program:\n`KVWISE_WRITE_COMMANDS=1 cargo test -p kvwise --test plan help`.\n",
    );
    let mut root = kvwise::cli::command().term_width(100);
    root.build();
    sections(&root, "kvwise", &mut page);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src/reference/commands.md");
    if std::env::var_os("KVWISE_WRITE_COMMANDS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "{}: stale; run with KVWISE_WRITE_COMMANDS=1",
        path.display()
    );
}
