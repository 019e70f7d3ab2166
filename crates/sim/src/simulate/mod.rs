//! What traffic does on a deployment, in time: the engine's scheduler on a clock made by the step-time model.
//!
//! [`run`] drives the same [`Scheduler`](crate::sched::vllm::Scheduler) as the replay, but a step takes as long as
//! [`StepModel`](crate::cost::StepModel) says for what the step computed. With [`StepClock::Fixed`] it is the replay:
//! the same events in the same order (a test holds the two together).
//!
//! Models: chunked prefill, prefix caching, preemption by recompute, priorities, open and closed loops, host time a
//! step and a request. Does not model: networks between client and server, clients that hang up, speculative decoding.

mod run;
mod summary;
mod workload;

pub use run::{Deployment, HostTimes, Run, Sample, StepClock, run};
pub use summary::{Percentiles, Slo, Summary, TimeShares, summarize};
pub use workload::{Arrivals, Lengths, closed_loop, open_loop};

#[cfg(test)]
mod tests;
