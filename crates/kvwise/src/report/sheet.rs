//! A table with a title and remarks; the rows are a [`Grid`].

use std::fmt::Write as _;

use super::table::{Align, Grid, html_text};
use super::text::wrap;

/// A titled table with remarks below.
#[derive(Debug, Clone)]
pub struct Sheet {
    title: String,
    grid: Grid,
    notes: Vec<String>,
}

impl Sheet {
    /// An empty sheet. A column is its heading and whether it holds numbers.
    pub fn new(title: impl Into<String>, columns: &[(&str, bool)]) -> Self {
        let columns: Vec<(&str, Align)> = columns
            .iter()
            .map(|&(name, number)| (name, if number { Align::Right } else { Align::Left }))
            .collect();
        Self {
            title: title.into(),
            grid: Grid::new(&columns),
            notes: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: Vec<String>) {
        self.grid.row(cells);
    }

    /// Adds a remark below the table (left out of CSV).
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n\n{}", self.title, self.grid.text());
        for note in &self.notes {
            text.push('\n');
            wrap(&mut text, note, "");
        }
        text
    }

    /// For spreadsheets: the rows alone.
    pub fn csv(&self) -> String {
        self.grid.csv()
    }

    /// For documents.
    pub fn markdown(&self) -> String {
        let mut text = format!("**{}**\n\n{}", self.title, self.grid.markdown());
        for note in &self.notes {
            let _ = write!(text, "\n{note}\n");
        }
        text
    }

    /// For a browser: one self-contained page.
    pub fn html(&self) -> String {
        let mut text = format!(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title>\n\
             <style>body{{font:15px/1.5 system-ui,sans-serif;margin:2rem}}table{{border-collapse:collapse}}\
             th,td{{padding:.3rem .8rem;border-bottom:1px solid #ccc;text-align:left}}\
             .n{{text-align:right;font-variant-numeric:tabular-nums}}</style>\n<h1>{0}</h1>\n",
            html_text(&self.title)
        );
        text.push_str(&self.grid.html());
        for note in &self.notes {
            let _ = writeln!(text, "<p>{}</p>", html_text(note));
        }
        text.push_str("</html>\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet() -> Sheet {
        let mut sheet = Sheet::new("A & B", &[("name", false), ("count", true)]);
        sheet.row(vec!["x, \"y\" | <z>".to_owned(), "12".to_owned()]);
        sheet.note("A note.");
        sheet
    }

    #[test]
    fn each_format_escapes_what_would_break_it() {
        assert_eq!(sheet().csv(), "name,count\n\"x, \"\"y\"\" | <z>\",12\n");
        let markdown = sheet().markdown();
        assert!(markdown.contains("| x, \"y\" \\| <z> | 12 |"), "{markdown}");
        let html = sheet().html();
        assert!(
            html.contains("<h1>A &amp; B</h1>") && html.contains("&lt;z&gt;"),
            "{html}"
        );
        assert!(html.contains("<td class=\"n\">12</td>"));
    }

    #[test]
    fn a_table_shows_title_rows_and_notes() {
        let text = sheet().text();
        assert!(
            text.starts_with("A & B\n") && text.ends_with("A note.\n") && text.contains("count"),
            "{text}"
        );
    }
}
