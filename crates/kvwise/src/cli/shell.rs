//! `kvwise completions` and `kvwise man`: what a shell and a manual want.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use kvwise_core::{Error, Result};

use super::Cli;
use crate::printer::{ExitStatus, Printer};

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  kvwise completions bash > ~/.local/share/bash-completion/completions/kvwise")]
pub struct Completions {
    /// bash, zsh, fish, elvish or powershell.
    shell: Shell,
}

impl Completions {
    /// Runs the command.
    ///
    /// # Errors
    /// If stdout cannot be written.
    pub fn run(&self, printer: Printer) -> Result<ExitStatus> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "kvwise", &mut script);
        printer.data(&String::from_utf8_lossy(&script))?;
        Ok(ExitStatus::Success)
    }
}

/// Write the manual pages: the program's to stdout, or all into a folder.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise man | man -l -
  kvwise man --output-dir ~/.local/share/man/man1")]
pub struct Man {
    /// Write one page a command into this folder.
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
}

impl Man {
    /// Runs the command.
    ///
    /// # Errors
    /// If a page cannot be written.
    pub fn run(&self, printer: Printer) -> Result<ExitStatus> {
        // Built, so that subcommands know what they are called with.
        let mut command = super::command();
        command.build();
        let Some(folder) = &self.output_dir else {
            printer.data(&page(command, "kvwise")?)?;
            return Ok(ExitStatus::Success);
        };
        std::fs::create_dir_all(folder)
            .map_err(|e| Error::io(format!("{}: cannot create the folder: {e}", folder.display())))?;
        for (name, command) in pages(&command, "kvwise") {
            let file = folder.join(format!("{name}.1"));
            kvwise_io::atomic::write(&file, page(command, &name)?.as_bytes())?;
        }
        Ok(ExitStatus::Success)
    }
}

/// Date of the pages, by which `man` says how old they are.
const PAGE_DATE: &str = "2026-11-23";

/// A command and those below it, each with its page's name: `kvwise-trace-info`.
fn pages(command: &clap::Command, name: &str) -> Vec<(String, clap::Command)> {
    let mut all = vec![(name.to_owned(), command.clone())];
    for sub in command
        .get_subcommands()
        .filter(|c| !c.is_hide_set() && c.get_name() != "help")
    {
        all.extend(pages(sub, &format!("{name}-{}", sub.get_name())));
    }
    all
}

/// A command's manual page. Lines that the generator ends in blanks, and breaks beside vertical space, which formatters warn
/// of, are left out.
///
/// # Errors
/// If it cannot be made.
fn page(command: clap::Command, title: &str) -> Result<String> {
    let mut made = Vec::new();
    clap_mangen::Man::new(command)
        .title(title)
        .date(PAGE_DATE)
        .source(concat!("kvwise ", env!("CARGO_PKG_VERSION")))
        .render(&mut made)
        .map_err(|e| Error::io(format!("cannot make the manual page: {e}")))?;
    let text = String::from_utf8_lossy(&made);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    // An empty line is vertical space, too.
    let is_space = |line: Option<&&str>| line.is_some_and(|line| line.is_empty() || line.starts_with(".sp"));
    let mut page = String::with_capacity(text.len());
    for (i, line) in lines.iter().enumerate() {
        let before = i.checked_sub(1).and_then(|i| lines.get(i));
        if *line == ".br" && (is_space(before) || is_space(lines.get(i + 1))) {
            continue;
        }
        page.push_str(if line.is_empty() { ".sp" } else { line });
        page.push('\n');
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_a_title_and_a_date_and_no_breaks_beside_space() {
        let mut command = super::super::command();
        command.build();
        let all = pages(&command, "kvwise");
        assert!(
            all.iter().any(|(name, _)| name == "kvwise-trace-info"),
            "no page below a command"
        );
        for (name, command) in all {
            let called = command.get_bin_name().unwrap_or("kvwise").to_owned();
            let page = page(command, &name).unwrap();
            assert!(
                page.contains(&format!(".TH {name} 1 {PAGE_DATE} \"kvwise ")),
                "{page}"
            );
            assert_eq!(called.replace(' ', "-"), name);
            let shown = called.replace('-', "\\-");
            assert!(page.contains(&format!("\\fB{shown}\\fR")), "{page}");
            assert!(!page.contains(".br\n.sp") && !page.contains(".sp\n.br"), "{name}");
            assert!(page.lines().all(|line| line == line.trim_end()), "{name}");
        }
    }
}
