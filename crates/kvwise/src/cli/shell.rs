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
        let command = super::command();
        let page = |command: clap::Command| -> Result<Vec<u8>> {
            let mut page = Vec::new();
            clap_mangen::Man::new(command)
                .render(&mut page)
                .map_err(|e| Error::io(format!("cannot make the manual page: {e}")))?;
            Ok(page)
        };
        let Some(folder) = &self.output_dir else {
            printer.data(&String::from_utf8_lossy(&page(command)?))?;
            return Ok(ExitStatus::Success);
        };
        std::fs::create_dir_all(folder)
            .map_err(|e| Error::io(format!("{}: cannot create the folder: {e}", folder.display())))?;
        kvwise_io::atomic::write(&folder.join("kvwise.1"), &page(command.clone())?)?;
        for sub in command.get_subcommands().filter(|c| !c.is_hide_set()) {
            let name = format!("kvwise-{}", sub.get_name());
            let file = folder.join(format!("{name}.1"));
            let title = clap_mangen::Man::new(sub.clone()).title(&name);
            let mut page = Vec::new();
            title
                .render(&mut page)
                .map_err(|e| Error::io(format!("cannot make the manual page: {e}")))?;
            kvwise_io::atomic::write(&file, &page)?;
        }
        Ok(ExitStatus::Success)
    }
}
