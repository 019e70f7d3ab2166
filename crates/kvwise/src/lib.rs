//! The application: words ([`cli`]), order of steps ([`usecase`]), shape of the answers ([`report`]).

pub mod cli;
pub mod plot;
pub mod printer;
pub mod report;
pub mod usecase;
