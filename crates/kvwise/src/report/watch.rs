//! The live view: drawn on a terminal, or printed once.

use std::fmt::Write as _;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Sparkline};

use crate::usecase::watch::{EngineState, Target, generated, prompted};

/// Rows that one engine needs.
const ENGINE_ROWS: u16 = 10;
/// Columns of two figures side by side; what is left of the width is for the pictures.
const FIGURES_WIDTH: u16 = 52;

fn percent(v: Option<f64>) -> String {
    v.map_or_else(|| "–".to_owned(), |v| format!("{:.1} %", v * 100.0))
}

fn plain(v: Option<f64>) -> String {
    v.map_or_else(|| "–".to_owned(), |v| format!("{v:.0}"))
}

fn millis(v: Option<f64>) -> String {
    v.map_or_else(|| "–".to_owned(), |v| format!("{:.0} ms", v * 1000.0))
}

/// The figures of one engine, as `(name, value)`.
fn figures(e: &EngineState) -> Vec<(&'static str, String)> {
    let now = e.now();
    vec![
        ("usage", percent(now.usage)),
        ("running", plain(now.running)),
        ("waiting", plain(now.waiting)),
        ("hit rate", percent(e.hit_rate())),
        ("generated/s", plain(generated(e))),
        ("prompt/s", plain(prompted(e))),
        ("preemptions/min", plain(e.preemptions())),
        ("ttft p50", millis(e.quantile("ttft_s", 0.5))),
        ("ttft p99", millis(e.quantile("ttft_s", 0.99))),
        ("itl p50", millis(e.quantile("itl_s", 0.5))),
        ("itl p99", millis(e.quantile("itl_s", 0.99))),
    ]
}

/// One print of everything, for scripts.
pub fn once(targets: &[Target]) -> String {
    let mut out = String::new();
    for target in targets {
        if let Some(error) = &target.error {
            let _ = writeln!(out, "{}: {error}", target.name);
        }
        for engine in target.engines.values() {
            let _ = writeln!(out, "{} ({})", engine.name, target.name);
            if let Some(c) = engine.capacity_tokens {
                let _ = writeln!(out, "  {:16} {c:.0} tokens", "pool");
            }
            for (name, value) in figures(engine) {
                let _ = writeln!(out, "  {name:16} {value}");
            }
            for trouble in engine.troubles() {
                let _ = writeln!(out, "  ! {trouble}");
            }
        }
    }
    out
}

/// Draws everything; `first` is the first engine shown where not all fit.
pub fn draw(frame: &mut Frame<'_>, targets: &[Target], first: usize) {
    let area = frame.area();
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)]).areas(area);
    let engines: Vec<(&Target, Option<&EngineState>)> = targets
        .iter()
        .flat_map(|t| {
            let failed = t.error.is_some() && t.engines.is_empty();
            t.engines
                .values()
                .map(move |e| (t, Some(e)))
                .chain(failed.then_some((t, None)))
        })
        .collect();
    let title = format!(" kvwise watch   {} engine(s)", engines.len());
    frame.render_widget(
        Paragraph::new(title).style(Style::default().add_modifier(Modifier::BOLD)),
        head,
    );
    frame.render_widget(
        Paragraph::new(" q quit   up/down scroll   rates over the last minute"),
        foot,
    );
    let fit = usize::from((body.height / ENGINE_ROWS).max(1));
    let first = first.min(engines.len().saturating_sub(fit));
    let mut y = body.y;
    for (target, engine) in engines.iter().skip(first) {
        let height = ENGINE_ROWS.min(body.bottom().saturating_sub(y));
        if height < 3 {
            break;
        }
        let area = Rect::new(body.x, y, body.width, height);
        if let Some(engine) = engine {
            draw_engine(frame, area, target, engine);
        } else {
            let text = target.error.clone().unwrap_or_default();
            let block = Block::default()
                .borders(Borders::ALL)
                .title(format!(" {} ", target.name));
            frame.render_widget(
                Paragraph::new(text)
                    .style(Style::default().fg(Color::Red))
                    .block(block),
                area,
            );
        }
        y += height;
    }
}

fn draw_engine(frame: &mut Frame<'_>, area: Rect, target: &Target, engine: &EngineState) {
    let title = format!(" {} ({}) ", engine.name, target.name);
    let block = Block::default().borders(Borders::ALL).title(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    // what is wrong has the whole width; more than two sentences would push the figures out
    let mut wrong: Vec<Line<'_>> = Vec::new();
    if let Some(error) = &target.error {
        wrong.push(Line::styled(error.clone(), Style::default().fg(Color::Red)));
    }
    for trouble in engine.troubles() {
        wrong.push(Line::styled(
            format!("! {trouble}"),
            Style::default().fg(Color::Yellow),
        ));
    }
    wrong.truncate(2);
    let said = u16::try_from(wrong.len()).unwrap_or(2);
    let [top, rest] = Layout::vertical([Constraint::Length(said), Constraint::Min(0)]).areas(inner);
    frame.render_widget(Paragraph::new(wrong), top);
    let [left, right] =
        Layout::horizontal([Constraint::Length(FIGURES_WIDTH), Constraint::Min(0)]).areas(rest);
    // on a narrow terminal one below the other: figures that do not fit are lost, cut ones mislead
    let abreast = if left.width < FIGURES_WIDTH { 1 } else { 2 };
    let lines: Vec<Line<'_>> = figures(engine)
        .chunks(abreast)
        .map(|pair| {
            let mut spans = Vec::new();
            for (name, value) in pair {
                spans.push(Span::styled(
                    format!("{name:>15} "),
                    Style::default().fg(Color::DarkGray),
                ));
                spans.push(Span::raw(format!("{value:<10}")));
            }
            Line::from(spans)
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), left);
    let [usage_area, queue_area] =
        Layout::vertical([Constraint::Percentage(60), Constraint::Percentage(40)]).areas(right);
    // the newest points at the right edge
    let width = usize::from(right.width);
    let history: Vec<_> = engine.history.iter().rev().take(width).rev().collect();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to small positive numbers"
    )]
    let whole = |v: Option<f64>, scale: f64| (v.unwrap_or(0.0) * scale).clamp(0.0, 1e9) as u64;
    // a short history stands at the right edge too, where the next point will come
    let filled = |points: Vec<u64>| -> Vec<u64> {
        let missing = width.saturating_sub(points.len());
        std::iter::repeat_n(0, missing).chain(points).collect()
    };
    let usage = filled(history.iter().map(|m| whole(m.usage, 1000.0)).collect());
    frame.render_widget(
        Sparkline::default()
            .block(Block::default().title("KV usage, up to 100 %"))
            .max(1000)
            .style(Style::default().fg(Color::Blue))
            .data(&usage),
        usage_area,
    );
    let waiting = filled(history.iter().map(|m| whole(m.waiting, 1.0)).collect());
    frame.render_widget(
        Sparkline::default()
            .block(Block::default().title("waiting"))
            .style(Style::default().fg(Color::Yellow))
            .data(&waiting),
        queue_area,
    );
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kvwise_io::prometheus::engine::{EngineKey, EngineKind};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::usecase::watch::Moment;

    /// The screen as text, one line a row.
    fn screen(width: u16, height: u16) -> String {
        let mut target = Target::new("http://127.0.0.1:8000", Duration::from_secs(1)).expect("a target");
        let mut engine = EngineState::default();
        "vllm tiny 0".clone_into(&mut engine.name);
        engine.history.push_back(Moment {
            t_s: 1.0,
            usage: Some(0.425),
            running: Some(123_456.0),
            waiting: Some(78.0),
            ..Moment::default()
        });
        let key = EngineKey {
            engine: EngineKind::Vllm,
            model: "tiny".to_owned(),
            rank: "0".to_owned(),
        };
        target.engines.insert(key, engine);
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal
            .draw(|frame| draw(frame, std::slice::from_ref(&target), 0))
            .expect("drawn");
        terminal.backend().to_string()
    }

    #[test]
    fn every_figure_is_whole_on_terminals_of_any_size() {
        for (width, height) in [(160, 50), (80, 24), (56, 12), (40, 12)] {
            let text = screen(width, height);
            for figure in ["usage 42.5 %", "running 123456", "waiting 78", "hit rate –"] {
                assert!(
                    text.contains(figure),
                    "{width} x {height}: no {figure} in\n{text}"
                );
            }
        }
        // nothing fits, and nothing fails
        screen(10, 3);
        screen(1, 1);
    }
}
