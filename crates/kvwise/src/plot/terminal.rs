//! Charts of characters.

use std::fmt::Write as _;

use super::{LineChart, short};

/// Width of the numbers left of the y axis.
const MARGIN: usize = 8;

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positions inside the canvas"
)]
pub(super) fn line_chart(chart: &LineChart, width: usize, height: usize) -> String {
    let mut out = format!("{}\n", truncated(&chart.title, width));
    let Some((low, high)) = chart.x_range() else {
        out.push_str("(no points)\n");
        return out;
    };
    let columns = width.saturating_sub(MARGIN + 1).max(8);
    let (dots_x, dots_y) = (columns * 2, height.max(2) * 4);
    let scale = |x: f64| if chart.x_log { x.ln() } else { x };
    let (from, to) = (scale(low), scale(high));
    let mut canvas = vec![vec![0u8; columns]; height.max(2)];
    let mut dot = |x: usize, y: usize| {
        // bits of a braille character: dots 1-3 and 7 in the left column, 4-6 and 8 in the right
        const BITS: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
        canvas[y / 4][x / 2] |= BITS[y % 4][x % 2];
    };
    for series in &chart.series {
        let mut previous: Option<(f64, f64)> = None;
        for &(x, y) in &series.points {
            let px = (scale(x) - from) / (to - from) * (dots_x - 1) as f64;
            let py = (1.0 - (y / chart.y_max).clamp(0.0, 1.0)) * (dots_y - 1) as f64;
            let (qx, qy) = previous.replace((px, py)).unwrap_or((px, py));
            let steps = (px - qx).abs().max((py - qy).abs()).ceil().max(1.0);
            for k in 0..=(steps as usize) {
                let t = k as f64 / steps;
                let (x, y) = (qx + t * (px - qx), qy + t * (py - qy));
                dot(
                    (x.round() as usize).min(dots_x - 1),
                    (y.round() as usize).min(dots_y - 1),
                );
            }
        }
    }
    let rows = canvas.len();
    for (row, line) in canvas.iter().enumerate() {
        let label = if row == 0 || row == rows - 1 || row == rows / 2 {
            let y = chart.y_max * (1.0 - row as f64 / (rows - 1) as f64);
            if chart.y_max <= 1.0 {
                format!("{:.0} %", 100.0 * y)
            } else {
                short(y)
            }
        } else {
            String::new()
        };
        let text: String = line
            .iter()
            .map(|&bits| {
                if bits == 0 {
                    ' '
                } else {
                    char::from_u32(0x2800 + u32::from(bits)).unwrap_or(' ')
                }
            })
            .collect();
        let _ = writeln!(out, "{label:>MARGIN$}│{}", text.trim_end());
    }
    let _ = writeln!(out, "{:>MARGIN$}└{}", "", "─".repeat(columns));
    let middle = if chart.x_log {
        (low * high).sqrt()
    } else {
        f64::midpoint(low, high)
    };
    let (left, right) = (short(low), short(high));
    let center = format!("{} {}", short(middle), chart.x_label);
    let gap = columns.saturating_sub(left.len() + right.len());
    let _ = writeln!(out, "{:>MARGIN$} {left}{}{right}", "", centered(&center, gap));
    out
}

fn centered(text: &str, width: usize) -> String {
    let text = truncated(text, width.saturating_sub(2));
    format!("{text:^width$}")
}

fn truncated(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let cut: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{cut}…")
}

/// Horizontal bars: a label, a bar, the count; `width` characters wide.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a bar is at most as long as the line"
)]
pub fn histogram(rows: &[(String, u64)], width: usize) -> String {
    let label = rows.iter().map(|(l, _)| l.chars().count()).max().unwrap_or(0);
    let most = rows.iter().map(|&(_, n)| n).max().unwrap_or(0).max(1);
    let number = most.to_string().len();
    let room = width.saturating_sub(label + number + 2).max(4);
    let mut out = String::new();
    for (name, count) in rows {
        let eighths = (*count as f64 / most as f64 * (room * 8) as f64).round() as usize;
        let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
        let bar = format!("{}{rest}", "█".repeat(eighths / 8));
        let _ = writeln!(out, "{name:>label$} {count:>number$} {bar}");
    }
    out
}
