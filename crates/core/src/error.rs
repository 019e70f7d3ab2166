//! The one error type of the workspace: what is wrong, where, and what to do about it.
//!
//! An [`Error`] means that the question could not be answered (bad input, an unreadable file, an overflow).
//! "The answer is no" (a model does not fit, an objective is missed) is never an error but a value.

use std::fmt;

/// Shorthand used across the workspace.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What class of mistake an [`Error`] reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A value, file or flag given by the user cannot be used.
    Input,
    /// A name (model, GPU, flag, file) is not known.
    NotFound,
    /// Reading or writing failed for reasons outside of the input's content.
    Io,
    /// A count or size left the range of its integer type.
    Overflow,
    /// The input is fine, but this version of the program cannot treat it.
    Unsupported,
}

/// Why a question could not be answered: one sentence, and hints what to do.
///
/// ```
/// use kvwise_core::error::{Error, ErrorKind};
/// let e = Error::input("config.json: num_hidden_layers is -3, expected a positive integer")
///     .hint("check the file against the model's page");
/// assert_eq!(e.kind(), ErrorKind::Input);
/// assert_eq!(e.to_string(), "config.json: num_hidden_layers is -3, expected a positive integer");
/// assert_eq!(e.hints().len(), 1);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Error(Box<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    kind: ErrorKind,
    message: String,
    hints: Vec<String>,
}

impl Error {
    /// A new error; `message` is one sentence without a final period.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            hints: Vec::new(),
        }))
    }

    /// An [`ErrorKind::Input`] error.
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Input, message)
    }

    /// An [`ErrorKind::NotFound`] error.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// An [`ErrorKind::Overflow`] error for the quantity called `what`.
    pub fn overflow(what: impl fmt::Display) -> Self {
        Self::new(
            ErrorKind::Overflow,
            format!("{what} is too large to compute: the product leaves 64 bits"),
        )
    }

    /// An [`ErrorKind::Unsupported`] error.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// An [`ErrorKind::Io`] error.
    pub fn io(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Io, message)
    }

    /// Adds a hint: what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        if !self.0.hints.contains(&hint) {
            self.0.hints.push(hint);
        }
        self
    }

    /// Puts `place` (a file, a field) in front of the message.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.message = format!("{place}: {}", self.0.message);
        self
    }

    /// The class of the mistake.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What the user can do, in the order given.
    pub fn hints(&self) -> &[String] {
        &self.0.hints
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.message)?;
        for hint in &self.0.hints {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
