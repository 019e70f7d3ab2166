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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_break_at_spaces_and_stay_within_the_terminal() {
        let mut out = String::new();
        wrap(&mut out, &"words and more ".repeat(20), "  ");
        assert!(out.lines().all(|line| line.chars().count() <= usize::from(WIDTH)));
        assert!(out.lines().nth(1).unwrap().starts_with("  "));
    }
}
