//! Paragraphs for a terminal.

use super::table::WIDTH;

/// Writes a paragraph broken at spaces; lines after the first begin with `indent`.
pub fn wrap(out: &mut String, text: &str, indent: &str) {
    let width = usize::from(WIDTH);
    let mut column = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > width && !word.is_empty() {
            out.push('\n');
            out.push_str(indent);
            column = indent.len();
        } else if column > 0 || word.is_empty() {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
}

/// Writes a command of a shell; a line that goes on ends with a backslash, so that it can be copied as it is.
pub fn command(out: &mut String, words: &[String], indent: &str) {
    let width = usize::from(WIDTH) - 2;
    let mut column = 0;
    for (i, word) in words.iter().enumerate() {
        let length = word.chars().count();
        if i > 0 && column + 1 + length > width {
            out.push_str(" \\\n");
            out.push_str(indent);
            column = indent.len();
        } else if i > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_command_goes_on_behind_a_backslash_and_no_word_is_broken() {
        let words: Vec<String> = (0..30).map(|i| format!("--flag-number-{i}")).collect();
        let mut out = String::new();
        command(&mut out, &words, "    ");
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines.len() > 3 && lines.iter().all(|l| l.chars().count() <= usize::from(WIDTH)));
        assert!(lines[..lines.len() - 1].iter().all(|l| l.ends_with(" \\")));
        assert_eq!(out.replace(" \\\n   ", "").trim_end(), words.join(" "));
    }

    #[test]
    fn paragraphs_break_at_spaces_and_stay_within_the_terminal() {
        let mut out = String::new();
        wrap(&mut out, &"words and more ".repeat(20), "  ");
        assert!(out.lines().all(|line| line.chars().count() <= usize::from(WIDTH)));
        assert!(out.lines().nth(1).unwrap().starts_with("  "));
    }
}
