//! The `kvwise` program: see the library for its parts.

use std::process::ExitCode;

fn main() -> ExitCode {
    kvwise::cli::main()
}
