//! A table of text, rendered for terminals, spreadsheets, Markdown and pages.

use std::fmt::Write as _;

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people at a terminal.
    Table,
    /// For programs.
    Json,
    /// For spreadsheets.
    Csv,
    /// For notes and issues.
    Markdown,
    /// For a browser: one self-contained page.
    Html,
}

impl Format {
    /// The format asked for; by default a table on a terminal and JSON elsewhere.
    pub fn or_default(asked: Option<Self>, stdout_is_terminal: bool) -> Self {
        asked.unwrap_or(if stdout_is_terminal {
            Self::Table
        } else {
            Self::Json
        })
    }
}

/// Rows of text under named columns; numbers (columns marked so) are aligned right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sheet {
    title: String,
    columns: Vec<(String, bool)>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Sheet {
    /// An empty sheet. A column is its heading and whether it holds numbers.
    pub fn new(title: impl Into<String>, columns: &[(&str, bool)]) -> Self {
        Self {
            title: title.into(),
            columns: columns
                .iter()
                .map(|&(name, number)| (name.to_owned(), number))
                .collect(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Adds a remark below the table (left out of CSV).
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// The sheet as text. [`Format::Json`] is the caller's: a report's structure says more than its table.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Table | Format::Json => self.table(),
            Format::Csv => self.csv(),
            Format::Markdown => self.markdown(),
            Format::Html => self.html(),
        }
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table
            .load_style(presets::UTF8_HORIZONTAL_ONLY)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(self.columns.iter().map(|(name, _)| name));
        for (at, (_, number)) in self.columns.iter().enumerate() {
            if let (true, Some(column)) = (number, table.column_mut(at)) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for row in &self.rows {
            table.add_row(row);
        }
        let mut text = format!("{}\n{table}\n", self.title);
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        text
    }

    fn csv(&self) -> String {
        let heading: Vec<String> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        let mut text = String::new();
        for row in std::iter::once(&heading).chain(&self.rows) {
            let cells: Vec<String> = row.iter().map(|cell| csv_cell(cell)).collect();
            text.push_str(&cells.join(","));
            text.push('\n');
        }
        text
    }

    fn markdown(&self) -> String {
        let escape = |cell: &str| cell.replace('|', "\\|");
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("**{}**\n\n", self.title);
        text.push_str(&line(self.columns.iter().map(|(name, _)| escape(name)).collect()));
        text.push_str(&line(
            self.columns
                .iter()
                .map(|(_, number)| if *number { "---:" } else { "---" }.to_owned())
                .collect(),
        ));
        for row in &self.rows {
            text.push_str(&line(row.iter().map(|cell| escape(cell)).collect()));
        }
        for note in &self.notes {
            let _ = write!(text, "\n{note}\n");
        }
        text
    }

    fn html(&self) -> String {
        let mut text = format!(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title>\n\
             <style>body{{font:15px/1.5 system-ui,sans-serif;margin:2rem}}table{{border-collapse:collapse}}\
             th,td{{padding:.3rem .8rem;border-bottom:1px solid #ccc;text-align:left}}\
             .n{{text-align:right;font-variant-numeric:tabular-nums}}</style>\n<h1>{0}</h1>\n<table>\n",
            html_text(&self.title)
        );
        let class = |at: usize| {
            if self.columns.get(at).is_some_and(|c| c.1) {
                " class=\"n\""
            } else {
                ""
            }
        };
        text.push_str("<tr>");
        for (at, (name, _)) in self.columns.iter().enumerate() {
            let _ = write!(text, "<th{}>{}</th>", class(at), html_text(name));
        }
        text.push_str("</tr>\n");
        for row in &self.rows {
            text.push_str("<tr>");
            for (at, cell) in row.iter().enumerate() {
                let _ = write!(text, "<td{}>{}</td>", class(at), html_text(cell));
            }
            text.push_str("</tr>\n");
        }
        text.push_str("</table>\n");
        for note in &self.notes {
            let _ = writeln!(text, "<p>{}</p>", html_text(note));
        }
        text.push_str("</html>\n");
        text
    }
}

fn csv_cell(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

fn html_text(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
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
        assert_eq!(
            sheet().render(Format::Csv),
            "name,count\n\"x, \"\"y\"\" | <z>\",12\n"
        );
        let markdown = sheet().render(Format::Markdown);
        assert!(markdown.contains("| x, \"y\" \\| <z> | 12 |"), "{markdown}");
        let html = sheet().render(Format::Html);
        assert!(
            html.contains("<h1>A &amp; B</h1>") && html.contains("&lt;z&gt;"),
            "{html}"
        );
        assert!(html.contains("<td class=\"n\">12</td>"));
    }

    #[test]
    fn a_table_shows_title_rows_and_notes() {
        let text = sheet().render(Format::Table);
        assert!(
            text.starts_with("A & B\n") && text.ends_with("A note.\n") && text.contains("count"),
            "{text}"
        );
    }
}
