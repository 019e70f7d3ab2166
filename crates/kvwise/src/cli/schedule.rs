//! Orders of SGLang's waiting queue by their names on a command line.

use clap::ValueEnum;
use kvwise_sim::sched::sglang::step::SchedulePolicy;

/// `--schedule-policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScheduleName {
    /// First come, first served.
    Fcfs,
    /// Longest prefix match first.
    Lpm,
    /// Longest output first.
    Lof,
    /// Depth first through the tree, the branch with most waiting requests first.
    DfsWeight,
    /// Highest response ratio next.
    Hrrn,
    /// Fewest uncached tokens first.
    ShortestPrefillFirst,
}

impl From<ScheduleName> for SchedulePolicy {
    fn from(name: ScheduleName) -> Self {
        match name {
            ScheduleName::Fcfs => Self::Fcfs,
            ScheduleName::Lpm => Self::Lpm,
            ScheduleName::Lof => Self::Lof,
            ScheduleName::DfsWeight => Self::DfsWeight,
            ScheduleName::Hrrn => Self::Hrrn,
            ScheduleName::ShortestPrefillFirst => Self::ShortestPrefillFirst,
        }
    }
}
