//! Searching the built-in catalogues.

use kvwise_core::hardware::Gpu;
use kvwise_core::names::nearest;
use kvwise_core::{Error, Result, catalogue, hardware};
use kvwise_io::gpu::user;

/// GPUs whose name, title or alias contains every word, the user's own first; without words all whole GPUs (slices are
/// many, and found by their GPU's name).
///
/// # Errors
/// If none does, or the user's file of GPUs cannot be read.
pub fn gpus(words: &[String]) -> Result<Vec<&'static Gpu>> {
    let found: Vec<&Gpu> = user::all()?
        .iter()
        .chain(hardware::all())
        .filter(|gpu| !words.is_empty() || gpu.mig_profile.is_none())
        .filter(|gpu| {
            let text = format!("{} {} {}", gpu.name, gpu.title, gpu.aliases.join(" ")).to_ascii_lowercase();
            words.iter().all(|word| text.contains(&word.to_ascii_lowercase()))
        })
        .collect();
    if found.is_empty() {
        let query = words.join(" ");
        let near = nearest(&query, hardware::all().iter().map(|gpu| gpu.name.as_str()), 4);
        return Err(none("GPU", &query, &near));
    }
    Ok(found)
}

/// Models whose id or alias contains every word; all without words.
///
/// # Errors
/// If none does.
pub fn models(words: &[String]) -> Result<Vec<catalogue::Entry>> {
    let query = words.join(" ");
    let found: Vec<catalogue::Entry> = catalogue::search(&query).collect();
    if found.is_empty() {
        let entries: Vec<catalogue::Entry> = catalogue::all().collect();
        let near = nearest(&query, entries.iter().flat_map(catalogue::Entry::names), 4);
        return Err(none("model", &query, &near));
    }
    Ok(found)
}

fn none(what: &str, query: &str, near: &[&str]) -> Error {
    let error = Error::not_found(format!("no {what} in the catalogue matches \"{query}\""));
    if near.is_empty() {
        error
    } else {
        error.hint(format!("did you mean {}?", near.join(", ")))
    }
}
