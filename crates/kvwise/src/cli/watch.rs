//! `kvwise watch`: a live view of servers or recordings.

use std::time::{Duration, Instant};

use clap::Args;
use kvwise_core::{Error, Result};
use kvwise_io::prometheus::engine::Vocabulary;
use kvwise_io::session::store::Clock;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};

use super::duration;
use crate::printer::{ExitStatus, Printer};
use crate::report::watch as view;
use crate::usecase::watch::Target;

/// Watch servers or a recording live: usage, queue, hit rate, throughput, latencies, what is wrong now.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise watch localhost:8000
  kvwise watch http://a:8000 http://b:8000
  kvwise watch recording
  kvwise watch localhost:8000 --once      # one print, for scripts")]
pub struct WatchArgs {
    /// Servers' URLs or recordings' folders.
    #[arg(required = true, value_name = "URL|DIR")]
    targets: Vec<String>,

    /// Time between two looks.
    #[arg(long, value_parser = duration::parse, value_name = "TIME", default_value = "1s")]
    interval: Duration,

    /// Look twice, one interval apart (rates need two looks), print, and end.
    #[arg(long)]
    once: bool,
}

/// Runs the command; with `--once`, exit status 2 if nothing could be read.
///
/// # Errors
/// If a target is neither a URL nor a recording, or the terminal cannot be used.
pub fn run(args: &WatchArgs, printer: Printer) -> Result<ExitStatus> {
    let timeout = args.interval.max(Duration::from_secs(2));
    let mut targets = args
        .targets
        .iter()
        .map(|t| Target::new(t, timeout))
        .collect::<Result<Vec<_>>>()?;
    let vocabulary = Vocabulary::default();
    let clock = Clock::default();
    let now_s = || clock.now_us() as f64 / 1e6;
    if args.once || !printer.stdout_is_terminal() {
        look(&mut targets, &vocabulary, now_s());
        if targets.iter().all(|t| t.engines.is_empty()) {
            let why = targets.iter().find_map(|t| t.error.clone());
            return Err(Error::io(why.unwrap_or_else(|| "nothing to watch".to_owned())));
        }
        std::thread::sleep(args.interval);
        look(&mut targets, &vocabulary, now_s());
        printer.data(&view::once(&targets))?;
        return Ok(ExitStatus::Success);
    }
    let mut terminal = ratatui::try_init().map_err(|e| Error::io(format!("cannot use the terminal: {e}")))?;
    let result = live(&mut terminal, &mut targets, &vocabulary, args.interval, &now_s);
    ratatui::restore();
    result.map(|()| ExitStatus::Success)
}

fn look(targets: &mut [Target], vocabulary: &Vocabulary, t_s: f64) {
    // each target in its own thread: one that hangs must not freeze the view of the others
    std::thread::scope(|scope| {
        for target in targets {
            scope.spawn(move || target.look(t_s, vocabulary));
        }
    });
}

fn live(
    terminal: &mut ratatui::DefaultTerminal,
    targets: &mut [Target],
    vocabulary: &Vocabulary,
    interval: Duration,
    now_s: &dyn Fn() -> f64,
) -> Result<()> {
    let fail = |e: std::io::Error| Error::io(format!("cannot use the terminal: {e}"));
    let mut next = Instant::now();
    let mut first = 0_usize;
    loop {
        if Instant::now() >= next {
            look(targets, vocabulary, now_s());
            next = Instant::now() + interval;
        }
        terminal
            .draw(|frame| view::draw(frame, targets, first))
            .map_err(fail)?;
        let wait = next
            .saturating_duration_since(Instant::now())
            .min(Duration::from_millis(250));
        if !event::poll(wait).map_err(fail)? {
            continue;
        }
        if let Event::Key(key) = event::read().map_err(fail)? {
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                KeyCode::Down | KeyCode::Char('j') => first += 1,
                KeyCode::Up | KeyCode::Char('k') => first = first.saturating_sub(1),
                _ => {}
            }
        }
    }
}
