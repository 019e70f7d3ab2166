//! An engine's own code, behind a script of `tests/reference` that answers jobs line by line.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

/// A script that runs.
pub struct Script {
    child: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

impl Script {
    /// Starts `tests/reference/<name>` with the Python that the environment variable names.
    pub fn start(python: &str, name: &str, arguments: &[&str]) -> Self {
        let python = std::env::var(python)
            .unwrap_or_else(|_| panic!("{python} does not name a Python with the engine"));
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/reference")
            .join(name);
        let mut child = Command::new(python)
            .arg(script)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let to = child.stdin.take().unwrap();
        let from = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, to, from }
    }

    /// What it says of one job, as a line.
    pub fn answer(&mut self, job: &Value) -> String {
        writeln!(self.to, "{job}").unwrap();
        self.from.next().expect("the script answers every job").unwrap()
    }

    /// Waits for its end, which must be a good one.
    pub fn end(mut self) {
        drop(self.to);
        assert!(self.child.wait().unwrap().success());
    }
}

/// A number from an environment variable, or the usual one.
pub fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |n| n.parse().unwrap())
}
