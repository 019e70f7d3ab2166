//! Rows and columns in four dresses: terminal table, CSV, Markdown, JSON comes from serde.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};

/// Widest table in columns.
pub const WIDTH: u16 = 80;

/// How cells of a column are aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table of text.
#[derive(Debug, Clone)]
pub struct Grid {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    /// A table with these columns.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        Self {
            columns: columns
                .iter()
                .map(|&(name, align)| (name.to_owned(), align))
                .collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// For a terminal, at most [`WIDTH`] columns wide; words are broken only where no column could be wider.
    pub fn text(&self) -> String {
        let out = self.arranged(&[]);
        let whole = |text: &str| text.split_whitespace().all(|word| out.contains(word));
        if self.columns.iter().all(|(name, _)| whole(name))
            && self.rows.iter().flatten().all(|cell| whole(cell))
        {
            return out;
        }
        let longest = |text: &str| {
            text.split_whitespace()
                .map(|w| w.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths = |cells: bool| -> Vec<u16> {
            (0..self.columns.len())
                .map(|i| {
                    let own = self.rows.iter().filter(|_| cells).filter_map(|row| row.get(i));
                    let words = own.map(String::as_str).chain([self.columns[i].0.as_str()]);
                    u16::try_from(words.map(longest).max().unwrap_or(0)).unwrap_or(u16::MAX)
                })
                .collect()
        };
        // All words whole, else those of the headings, else as it comes.
        [true, false]
            .map(widths)
            .into_iter()
            .find(|widths| widths.iter().map(|&w| u32::from(w) + 1).sum::<u32>() <= u32::from(WIDTH))
            .map_or(out.clone(), |widths| self.arranged(&widths))
    }

    /// The table with each column at least so wide.
    fn arranged(&self, least: &[u16]) -> String {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(WIDTH)
            .set_header(self.columns.iter().map(|(name, _)| name));
        for row in &self.rows {
            table.add_row(row);
        }
        for (i, (_, align)) in self.columns.iter().enumerate() {
            if let Some(column) = table.column_mut(i) {
                column.set_padding((0, 1));
                if let Some(&width) = least.get(i) {
                    // The bound counts the padding.
                    column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + 1)));
                }
                column.set_cell_alignment(match align {
                    Align::Left => CellAlignment::Left,
                    Align::Right => CellAlignment::Right,
                });
            }
        }
        let mut out = String::new();
        for line in table.to_string().lines() {
            let _ = writeln!(out, "{}", line.trim_end());
        }
        out
    }

    /// RFC 4180, with a header line.
    pub fn csv(&self) -> String {
        let mut out = String::new();
        csv_line(&mut out, self.columns.iter().map(|(name, _)| name.as_str()));
        for row in &self.rows {
            csv_line(&mut out, row.iter().map(String::as_str));
        }
        out
    }

    /// A table of HTML; cells of numbers have the class `n`.
    pub fn html(&self) -> String {
        let class = |at: usize| match self.columns.get(at) {
            Some((_, Align::Right)) => " class=\"n\"",
            _ => "",
        };
        let mut out = String::from("<table>\n<tr>");
        for (at, (name, _)) in self.columns.iter().enumerate() {
            let _ = write!(out, "<th{}>{}</th>", class(at), html_text(name));
        }
        out.push_str("</tr>\n");
        for row in &self.rows {
            out.push_str("<tr>");
            for (at, cell) in row.iter().enumerate() {
                let _ = write!(out, "<td{}>{}</td>", class(at), html_text(cell));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</table>\n");
        out
    }

    /// A Markdown table.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let line = |out: &mut String, cells: &mut dyn Iterator<Item = &str>| {
            for cell in cells {
                let _ = write!(out, "| {} ", cell.replace('|', "\\|").replace('\n', " "));
            }
            out.push_str("|\n");
        };
        line(&mut out, &mut self.columns.iter().map(|(name, _)| name.as_str()));
        line(
            &mut out,
            &mut self.columns.iter().map(|(_, align)| match align {
                Align::Left => ":--",
                Align::Right => "--:",
            }),
        );
        for row in &self.rows {
            line(&mut out, &mut row.iter().map(String::as_str));
        }
        out
    }
}

/// Text with the characters that mean something in HTML escaped.
pub fn html_text(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn csv_line<'a>(out: &mut String, cells: impl Iterator<Item = &'a str>) {
    for (i, cell) in cells.enumerate() {
        if i > 0 {
            out.push(',');
        }
        if cell.contains([',', '"', '\n', '\r']) {
            let _ = write!(out, "\"{}\"", cell.replace('"', "\"\""));
        } else {
            out.push_str(cell);
        }
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        let mut grid = Grid::new(&[("name", Align::Left), ("bytes", Align::Right)]);
        grid.row(["a, \"b\"".to_owned(), "12".to_owned()]);
        grid
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        assert_eq!(grid().csv(), "name,bytes\n\"a, \"\"b\"\"\",12\n");
    }

    #[test]
    fn markdown_aligns_numbers_to_the_right() {
        assert_eq!(
            grid().markdown(),
            "| name | bytes |\n| :-- | --: |\n| a, \"b\" | 12 |\n"
        );
    }

    #[test]
    fn words_stay_whole_where_they_fit() {
        let names = [
            "scenario",
            "requests",
            "reservation",
            "preemptions",
            "internal",
            "external",
            "running",
        ];
        let columns: Vec<(&str, Align)> = names.iter().map(|n| (*n, Align::Left)).collect();
        let mut grid = Grid::new(&columns);
        grid.row(["a conversation of many turns and words ".repeat(3)]);
        let text = grid.text();
        for word in names.iter().chain(&["conversation"]) {
            assert!(text.contains(word), "{word} in\n{text}");
        }
        assert!(
            text.lines()
                .all(|line| line.chars().count() <= usize::from(WIDTH))
        );
        // A word that fits nowhere is broken all the same.
        grid.row(["x".repeat(200)]);
        let text = grid.text();
        assert!(text.contains("preemptions"), "{text}");
        assert!(
            text.lines()
                .all(|line| line.chars().count() <= usize::from(WIDTH))
        );
    }

    #[test]
    fn a_table_is_never_wider_than_a_terminal() {
        let mut wide = grid();
        wide.row(["word ".repeat(60), "1".to_owned()]);
        assert!(
            wide.text()
                .lines()
                .all(|line| line.chars().count() <= usize::from(WIDTH))
        );
    }
}
