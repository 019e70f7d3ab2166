//! What traffic does on a deployment, in time: the engine's scheduler on a clock made by the step-time model.
//!
//! [`run`] drives the same [`Scheduler`](crate::sched::vllm::Scheduler) as the replay, but a step takes as long as
//! [`StepModel`](crate::cost::StepModel) says for what the step computed. With [`StepClock::Fixed`] it is the replay:
//! the same events in the same order (a test holds the two together). SGLang's scheduler
//! ([`SteppedScheduler`](crate::sched::sglang::step::SteppedScheduler)) runs on the same clock.
//!
//! Several engines stand behind a router: independent replicas each have a clock of their own, the loop always advances
//! the one that is furthest behind; data-parallel ranks that share experts step together, as long as the slowest.
//!
//! Models: chunked prefill, prefix caching, preemption by recompute, priorities, open and closed loops, sessions with
//! thinking time, routing, host time a step and a request, prefill and decode on different engines ([`Disaggregation`]),
//! tiers behind the pool ([`TierConfig`]). Does not model: networks between client and server, clients that hang up.

mod cluster;
mod engine;
mod handoff;
mod link;
mod record;
mod replica;
mod router;
mod run;
mod source;
mod summary;
mod tiers;
mod workload;
mod worst;

pub use handoff::{Disaggregation, Transfer, Transfers};
pub use link::LinkSpeed;
pub use record::{HostTimes, Record, Run, Sample};
pub use router::Routing;
pub use run::{Deployment, EngineConfig, RunEvents, StepClock, run};
pub use summary::{Percentiles, Slo, Summary, TimeShares, summarize};
pub use tiers::{TierConfig, TierPolicy, TierTotals};
pub use workload::{Arrivals, Lengths, closed_loop, open_loop, sessions};
pub use worst::{Cause, Worst, worst};

#[cfg(test)]
mod apart_tests;
#[cfg(test)]
mod law_matrix;
#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
