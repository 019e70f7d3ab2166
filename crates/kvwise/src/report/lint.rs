//! Findings on how an engine is started.

use serde::Serialize;

use super::quote;
use super::table::{Align, Grid};
use super::text::wrap;

/// Version of [`Lint`].
pub const SCHEMA: &str = "kvwise.lint/1";

/// How bad a finding is, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The engine would not start, or not as meant.
    Error,
    /// Dangerous, or without the effect that was meant.
    Warning,
    /// Could be shorter or better.
    Info,
}

impl Level {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad.
    pub level: Level,
    /// Its kind, for filters.
    pub code: &'static str,
    /// The flag or word.
    pub flag: Option<String>,
    /// What is the matter.
    pub message: String,
    /// What to do.
    pub fix: Option<String>,
}

impl Finding {
    /// A finding on a flag.
    pub fn new(
        level: Level,
        code: &'static str,
        flag: &str,
        message: impl Into<String>,
        fix: Option<String>,
    ) -> Self {
        Self {
            level,
            code,
            flag: Some(flag.to_owned()),
            message: message.into(),
            fix,
        }
    }
}

/// What a flag means for memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FlagPart {
    /// The flag as written.
    pub flag: String,
    /// Its value.
    pub value: String,
    /// What it does to memory.
    pub means: Option<String>,
    /// What the plan would be without it.
    pub effect: Option<String>,
}

/// One server that is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerPart {
    /// Where it was found.
    pub place: String,
    /// `vllm` or `sglang`.
    pub engine: &'static str,
    /// Version by which it was judged.
    pub engine_version: String,
    /// The model.
    pub model: Option<String>,
    /// What the plan says, where a GPU is known.
    pub verdict: Option<String>,
    /// Findings, the worst first.
    pub findings: Vec<Finding>,
    /// What the flags mean.
    pub flags: Vec<FlagPart>,
}

/// All findings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lint {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// What was read.
    pub source: String,
    /// Findings of level error.
    pub errors: usize,
    /// Findings of level warning.
    pub warnings: usize,
    /// Servers in it.
    pub servers: Vec<ServerPart>,
}

impl Lint {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for server in &self.servers {
            let model = server.model.as_deref().unwrap_or("no model");
            wrap(
                &mut out,
                &quote::comment(&format!(
                    "{}: {} {}, {model}",
                    server.place, server.engine, server.engine_version
                )),
                "  ",
            );
            if let Some(verdict) = &server.verdict {
                wrap(&mut out, &format!("  plan: {verdict}"), "    ");
            }
            for finding in &server.findings {
                let line = format!(
                    "  {}[{}]: {}",
                    finding.level.name(),
                    finding.code,
                    finding.message
                );
                wrap(&mut out, &quote::comment(&line), "    ");
                if let Some(fix) = &finding.fix {
                    wrap(&mut out, &quote::comment(&format!("    -> {fix}")), "       ");
                }
            }
            if !server.flags.is_empty() {
                out.push('\n');
                let mut grid = Grid::new(&[
                    ("flag", Align::Left),
                    ("value", Align::Left),
                    ("what it means for memory", Align::Left),
                ]);
                for flag in &server.flags {
                    let parts: Vec<&str> = flag
                        .means
                        .iter()
                        .chain(&flag.effect)
                        .map(String::as_str)
                        .collect();
                    grid.row([flag.flag.clone(), quote::comment(&flag.value), parts.join("; ")]);
                }
                out.push_str(&grid.text());
            }
            out.push('\n');
        }
        out.push_str(&format!(
            "{}, {}\n",
            counted(self.errors, "error"),
            counted(self.warnings, "warning")
        ));
        out
    }

    /// One row a finding.
    pub fn grid(&self) -> Grid {
        let mut grid = Grid::new(&[
            ("place", Align::Left),
            ("level", Align::Left),
            ("code", Align::Left),
            ("flag", Align::Left),
            ("message", Align::Left),
            ("fix", Align::Left),
        ]);
        for server in &self.servers {
            for f in &server.findings {
                grid.row([
                    server.place.clone(),
                    f.level.name().to_owned(),
                    f.code.to_owned(),
                    f.flag.clone().unwrap_or_default(),
                    f.message.clone(),
                    f.fix.clone().unwrap_or_default(),
                ]);
            }
        }
        grid
    }
}

fn counted(n: usize, noun: &str) -> String {
    match n {
        0 => format!("no {noun}s"),
        1 => format!("1 {noun}"),
        n => format!("{n} {noun}s"),
    }
}
