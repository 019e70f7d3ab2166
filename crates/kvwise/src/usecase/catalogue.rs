//! Searching the built-in catalogues.

use std::collections::BTreeSet;

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
        let meant = if near.is_empty() {
            names_of_nearest_words(words, &entries)
        } else {
            near.into_iter().map(str::to_owned).collect()
        };
        let meant: Vec<&str> = meant.iter().map(String::as_str).collect();
        return Err(none("model", &query, &meant));
    }
    Ok(found)
}

/// The first models that contain each word, or for words that none contains the nearest word of a name.
fn names_of_nearest_words(words: &[String], entries: &[catalogue::Entry]) -> Vec<String> {
    let parts: BTreeSet<String> = entries
        .iter()
        .flat_map(catalogue::Entry::names)
        .flat_map(|name| name.split(['/', '-', '_', '.']))
        .filter(|part| part.len() > 2)
        .map(str::to_lowercase)
        .collect();
    let mut corrected = Vec::new();
    for word in words.iter().flat_map(|word| word.split_whitespace()) {
        if catalogue::search(word).next().is_some() {
            corrected.push(word.to_owned());
            continue;
        }
        // Of several that are as near, the one that most names have is likely meant.
        let near = nearest(word, parts.iter().map(String::as_str), 5);
        let Some(meant) = near
            .into_iter()
            .max_by_key(|part| catalogue::search(part).count())
        else {
            return Vec::new();
        };
        corrected.push(meant.to_owned());
    }
    let query = corrected.join(" ");
    let found = catalogue::search(&query).take(4);
    found.map(|entry| entry.id.to_owned()).collect()
}

fn none(what: &str, query: &str, near: &[&str]) -> Error {
    let error = Error::not_found(format!("no {what} in the catalogue matches \"{query}\""));
    if near.is_empty() {
        error
    } else {
        error.hint(format!("did you mean {}?", near.join(", ")))
    }
}
