//! Forgiving look-up of names: case and punctuation do not matter, guesses are only ever suggestions.

/// The letters and digits of a name, in lower case: `RTX-4090` and `rtx 4090` become one.
pub fn normalise(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

/// Up to `limit` candidates that the user may have meant, best first; empty when nothing is close.
///
/// Close means: one contains the other (queries of one letter do not count), or few single-letter edits apart.
pub fn nearest<'a>(query: &str, candidates: impl IntoIterator<Item = &'a str>, limit: usize) -> Vec<&'a str> {
    let query = normalise(query);
    let mut scored: Vec<(usize, &str)> = candidates
        .into_iter()
        .filter_map(|candidate| {
            // The name without its organisation counts as well.
            let short = candidate.rsplit('/').next().unwrap_or(candidate);
            let scores = [candidate, short].map(|name| score(&query, &normalise(name)));
            scores.into_iter().flatten().min().map(|s| (s, candidate))
        })
        .collect();
    scored.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.cmp(b.1)));
    scored.dedup_by(|a, b| a.1 == b.1);
    scored.into_iter().take(limit).map(|(_, name)| name).collect()
}

/// Smaller is closer; `None` is too far to suggest.
fn score(query: &str, candidate: &str) -> Option<usize> {
    let length = query.chars().count();
    if length < 2 {
        return None;
    }
    if candidate.contains(query) || query.contains(candidate) {
        return Some(candidate.len().abs_diff(query.len()) / 4);
    }
    // Somebody who knows only the beginning of a name should still be helped.
    let beginning: String = candidate.chars().take(length).collect();
    let distance = edit_distance(query, candidate).min(edit_distance(query, &beginning) + 1);
    (distance <= ((length + 1) / 3).max(1)).then_some(distance + 10)
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_punctuation_do_not_matter() {
        assert_eq!(normalise("RTX-4090"), normalise("rtx 4090"));
    }

    #[test]
    fn a_typing_error_is_suggested_but_a_single_letter_suggests_nothing() {
        let names = ["h100", "h200", "rtx-a6000", "l40s"];
        assert_eq!(nearest("h10o", names, 3), ["h100"]);
        assert_eq!(nearest("a", names, 3), [""; 0]);
    }

    #[test]
    fn the_organisation_of_a_hub_id_may_be_missing() {
        let names = ["meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B"];
        assert_eq!(nearest("lama-3.1-8b", names, 3), ["meta-llama/Llama-3.1-8B"]);
    }

    #[test]
    fn the_beginning_of_a_name_may_be_misspelt() {
        assert_eq!(
            nearest("quen3-32", ["Qwen/Qwen3-32B", "openai/gpt-oss-20b"], 3),
            ["Qwen/Qwen3-32B"]
        );
    }

    #[test]
    fn edit_distance_counts_single_letter_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", "abc"), 0);
    }
}
