//! The event lines: the words of the vLLM replay, with slots in place of blocks.

use std::fmt::Write as _;

use super::{Events, Summary};
use crate::replay::vllm::events::{push_number, python_float};
use crate::replay::vllm::push_json_string;
use crate::sched::sglang::step::{SlotRun, StepEvent};
use crate::trace::Trace;

/// Turns events into JSON lines; the caller empties [`EventLines::text`] when it gets long.
pub struct EventLines<'a> {
    trace: &'a Trace,
    /// The lines so far.
    pub text: String,
}

impl<'a> EventLines<'a> {
    /// No lines yet.
    pub fn new(trace: &'a Trace) -> Self {
        Self {
            trace,
            text: String::new(),
        }
    }

    fn begin(&mut self, name: &str, turn: u64) {
        let _ = write!(self.text, "{{\"ev\": \"{name}\", \"step\": {turn}");
    }

    fn of(&mut self, name: &str, turn: u64, tag: u32) {
        self.begin(name, turn);
        self.text.push_str(", \"id\": ");
        let id = self.trace.id(tag as usize);
        push_json_string(&mut self.text, &id);
    }

    fn number(&mut self, name: &str, value: u32) {
        let _ = write!(self.text, ", \"{name}\": ");
        push_number(&mut self.text, value);
    }

    fn slots(&mut self, runs: &[SlotRun]) {
        self.text.push_str(", \"slots\": [");
        for (i, run) in runs.iter().enumerate() {
            self.text.push_str(if i == 0 { "[" } else { ", [" });
            push_number(&mut self.text, run.first);
            self.text.push_str(", ");
            push_number(&mut self.text, run.count);
            self.text.push(']');
        }
        self.text.push(']');
    }

    /// The last line.
    pub fn summary(&mut self, s: &Summary) {
        let _ = writeln!(
            self.text,
            "{{\"ev\": \"summary\", \"requests\": {}, \"rejected\": {}, \"aborted\": {}, \"steps\": {}, \"prompt_tokens\": {}, \
             \"generated_tokens\": {}, \"query_tokens\": {}, \"hit_tokens\": {}, \"hit_rate\": {}, \"retractions\": {}, \
             \"preemptions\": {}, \"evicted_tokens\": {}, \"evicted_nodes\": {}, \"free_at_end\": {}, \"cached_at_end\": {}}}",
            s.requests,
            s.rejected,
            s.aborted,
            s.steps,
            s.prompt_tokens,
            s.generated_tokens,
            s.query_tokens,
            s.hit_tokens,
            python_float(s.hit_rate),
            s.retractions,
            s.preemptions,
            s.evicted_tokens,
            s.evicted_nodes,
            s.free_at_end,
            s.cached_at_end,
        );
    }
}

impl Events for EventLines<'_> {
    const WANTED: bool = true;

    fn happened(&mut self, turn: u64, event: &StepEvent) {
        match *event {
            StepEvent::Evicted { tokens, first_slot } => {
                self.begin("evict", turn);
                self.number("tokens", tokens);
                self.number("slot", first_slot);
            }
            StepEvent::Admitted {
                tag,
                hit_tokens,
                tokens,
                resumed,
            } => {
                self.of("admit", turn, tag);
                self.number("hit_tokens", hit_tokens);
                self.number("tokens", tokens);
                let _ = write!(self.text, ", \"resumed\": {resumed}");
            }
            StepEvent::Prefilled {
                tag,
                new_tokens,
                past_tokens,
                ref slots,
            } => {
                self.of("prefill", turn, tag);
                self.number("new_tokens", new_tokens);
                self.number("past_tokens", past_tokens);
                self.slots(slots);
            }
            StepEvent::Lost {
                tag,
                computed_tokens,
                generated,
                to_priority,
            } => {
                self.of(if to_priority { "preempt" } else { "retract" }, turn, tag);
                self.number("computed", computed_tokens);
                self.number("out", generated);
            }
            StepEvent::Aborted { tag, generated } => {
                self.of("abort", turn, tag);
                self.number("out", generated);
            }
            StepEvent::Rejected { tag, too_long } => {
                self.of("rejected", turn, tag);
                let reason = if too_long {
                    "prompt_too_long"
                } else {
                    "larger_than_pool"
                };
                let _ = write!(self.text, ", \"reason\": \"{reason}\"");
            }
            StepEvent::Finished {
                tag,
                generated,
                retractions,
                ref slots,
            } => {
                self.of("finish", turn, tag);
                self.number("out", generated);
                self.number("retractions", retractions);
                self.slots(slots);
            }
        }
        self.text.push_str("}\n");
    }
}
