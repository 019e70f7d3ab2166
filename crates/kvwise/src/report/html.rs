//! What every HTML report shares: one file, no network, light and dark, charts that zoom (drag) and reset (double click).

use kvwise_core::{Error, Result};
use serde::Serialize;

const UPLOT_JS: &str = include_str!("../../assets/uplot/uPlot.iife.min.js");
const UPLOT_CSS: &str = include_str!("../../assets/uplot/uPlot.min.css");
const CSS: &str = include_str!("../../assets/session_report.css");

/// Text made safe inside HTML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// A whole page: `script` finds `data` as JSON in the element `report`.
///
/// # Errors
/// Never in practice: the data is plain.
pub fn document(title: &str, body: &str, data: &impl Serialize, script: &str) -> Result<String> {
    // a script element ends at the first "</": no "<" may stand in the data
    let data = serde_json::to_string(data)
        .map_err(|e| Error::io(format!("report: {e}")))?
        .replace('<', "\\u003c");
    Ok(format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>kvwise: {}</title>\
         <style>{UPLOT_CSS}\n{CSS}</style></head><body>{body}\
         <script type=\"application/json\" id=\"report\">{data}</script><script>{UPLOT_JS}</script><script>{script}</script>\
         </body></html>\n",
        escape(title)
    ))
}
