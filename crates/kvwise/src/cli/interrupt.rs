//! What an interrupt does to commands that write for long.

use kvwise_core::{Error, Result};
use kvwise_io::atomic::remove_unfinished;

/// The exit status of a process that an interrupt ended, as shells count it.
const INTERRUPTED: i32 = 130;

/// Lets an interrupt (or a termination request) take the unfinished output away and end the program.
///
/// # Errors
/// If the handler cannot be installed.
pub fn leave_nothing_behind() -> Result<()> {
    ctrlc::set_handler(|| {
        remove_unfinished();
        std::process::exit(INTERRUPTED);
    })
    .map_err(|e| Error::io(format!("cannot handle interrupts: {e}")))
}
