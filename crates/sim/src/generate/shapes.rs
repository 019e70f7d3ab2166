//! The shapes of traffic: who shares which start of a prompt.

use kvwise_core::{Error, Result};
use rand::RngExt;
use rand_distr::{Distribution, Exp1, LogNormal, Zipf};
use rand_pcg::Pcg64;

use super::Workload;

/// How prompts share their starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Single questions below one of several system prompts.
    SystemPrompts,
    /// Single questions below a header of worked examples (system prompts as long as documents).
    FewShot,
    /// Conversations: every turn sends the whole history again.
    Chat,
    /// Conversations of many turns in quick succession, with long answers of tools.
    Agents,
    /// A system prompt, one popular document, a question.
    Retrieval,
}

impl Shape {
    /// All shapes.
    pub const ALL: [Self; 5] = [
        Self::SystemPrompts,
        Self::FewShot,
        Self::Chat,
        Self::Agents,
        Self::Retrieval,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::SystemPrompts => "system-prompts",
            Self::FewShot => "few-shot",
            Self::Chat => "chat",
            Self::Agents => "agents",
            Self::Retrieval => "retrieval",
        }
    }
}

/// A request before it is put in order.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub arrival_s: f64,
    pub session: u32,
    pub prompt: Vec<u32>,
    pub output: Vec<u32>,
}

/// Token ids are drawn from a vocabulary of this size, that of Llama 3.
const VOCABULARY: u32 = 128_000;

/// Draws lengths and tokens.
struct Dice<'r> {
    rng: &'r mut Pcg64,
    cv: f64,
}

impl Dice<'_> {
    /// A length of at least 1 with this mean.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to a sane range"
    )]
    fn length(&mut self, mean: u32) -> usize {
        if self.cv == 0.0 {
            return mean as usize;
        }
        // log-normal with the given mean and variation
        let variance = (1.0 + self.cv * self.cv).ln();
        let normal = LogNormal::new(f64::from(mean).ln() - variance / 2.0, variance.sqrt());
        let drawn = normal.expect("checked: finite").sample(self.rng);
        drawn.round().clamp(1.0, f64::from(mean) * 100.0) as usize
    }

    fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.rng.random_range(0..VOCABULARY)).collect()
    }

    fn text(&mut self, mean: u32) -> Vec<u32> {
        let length = self.length(mean);
        self.tokens(length)
    }

    /// An index below `count` with Zipf popularity (exponent 1).
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "Zipf answers 1 to count"
    )]
    fn popular(&mut self, count: usize) -> usize {
        let zipf = Zipf::new(count as f64, 1.0).expect("checked: at least one");
        (zipf.sample(self.rng) as usize - 1).min(count - 1)
    }

    /// At least 1, geometric with this mean.
    fn turns(&mut self, mean: f64) -> u32 {
        let mut turns = 1;
        while turns < 10_000 && self.rng.random::<f64>() > 1.0 / mean.max(1.0) {
            turns += 1;
        }
        turns
    }

    fn gap(&mut self, mean: f64) -> f64 {
        let drawn: f64 = Exp1.sample(self.rng);
        drawn * mean
    }
}

/// Makes at least `workload.requests` requests, in the order of their conversations.
pub(super) fn requests(workload: &Workload, rng: &mut Pcg64) -> Result<Vec<Made>> {
    let mut dice = Dice {
        rng,
        cv: workload.length_cv,
    };
    let header_tokens = match workload.shape {
        Shape::FewShot => workload.system_tokens.saturating_add(workload.document_tokens),
        _ => workload.system_tokens,
    };
    let limit = workload.max_tokens as usize;
    let headers: Vec<Vec<u32>> = (0..workload.system_prompts)
        .map(|_| dice.text(header_tokens))
        .collect();
    let documents: Vec<Vec<u32>> = match workload.shape {
        Shape::Retrieval => (0..workload.documents)
            .map(|_| dice.text(workload.document_tokens))
            .collect(),
        _ => Vec::new(),
    };
    let (mean_turns, gap_s) = match workload.shape {
        Shape::SystemPrompts | Shape::FewShot | Shape::Retrieval => (1.0, 0.0),
        Shape::Chat => (workload.turns, workload.think_time_s),
        // agents go on by themselves: ten times the turns, a tenth of the pause
        Shape::Agents => (workload.turns * 10.0, workload.think_time_s / 10.0),
    };
    // conversations are as much rarer than requests as they have turns
    let rate = workload.rate_per_s / mean_turns.max(1.0);
    let target = workload.requests as usize;
    let mut made: Vec<Made> = Vec::with_capacity(target + 16);
    let (mut now, mut session) = (0.0, 0u32);
    // Conversations go on after the last one begins, so stop only when enough requests lie before that.
    loop {
        now = workload.arrivals.next(now, rate, dice.rng);
        if made.len() >= target && made.iter().filter(|m| m.arrival_s <= now).count() >= target {
            return Ok(made);
        }
        if made.len() > target.saturating_mul(4).saturating_add(100_000) {
            return Err(
                Error::input("conversations last so long that the trace does not settle")
                    .hint("ask for a higher rate, fewer turns or a shorter think time"),
            );
        }
        let mut prompt = headers[dice.popular(headers.len())].clone();
        if !documents.is_empty() {
            prompt.extend_from_slice(&documents[dice.popular(documents.len())]);
        }
        let mut at = now;
        for turn in 0..dice.turns(mean_turns) {
            let added = match workload.shape {
                Shape::Agents if turn > 0 => dice.text(workload.document_tokens),
                _ => dice.text(workload.user_tokens),
            };
            prompt.extend(added);
            if prompt.len() > limit && turn > 0 {
                break;
            }
            prompt.truncate(limit);
            let output = dice.text(workload.output_tokens);
            // whole milliseconds, so that every format can hold the time
            let arrival_s = (at * 1000.0).round() / 1000.0;
            made.push(Made {
                arrival_s,
                session,
                prompt: prompt.clone(),
                output: output.clone(),
            });
            prompt.extend(output);
            at += dice.gap(gap_s);
        }
        session = session
            .checked_add(1)
            .ok_or_else(|| Error::overflow("the number of conversations"))?;
    }
}
