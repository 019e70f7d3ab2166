//! Requests that wait.

use std::collections::{BTreeSet, VecDeque};

use super::Policy;

/// Waiting requests in the order in which they are tried.
#[derive(Debug, Clone)]
pub(super) enum Waiting {
    Fcfs(VecDeque<u32>),
    /// (priority, arrival number, request)
    Priority(BTreeSet<(i64, u32, u32)>),
}

impl Waiting {
    pub(super) fn new(policy: Policy) -> Self {
        match policy {
            Policy::Fcfs => Self::Fcfs(VecDeque::new()),
            Policy::Priority => Self::Priority(BTreeSet::new()),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Fcfs(q) => q.len(),
            Self::Priority(q) => q.len(),
        }
    }

    pub(super) fn add(&mut self, request: u32, priority: i64, arrival: u32) {
        match self {
            Self::Fcfs(q) => q.push_back(request),
            Self::Priority(q) => {
                q.insert((priority, arrival, request));
            }
        }
    }

    /// Puts a preempted request back: first in line, unless priorities say otherwise.
    pub(super) fn put_back(&mut self, request: u32, priority: i64, arrival: u32) {
        match self {
            Self::Fcfs(q) => q.push_front(request),
            Self::Priority(q) => {
                q.insert((priority, arrival, request));
            }
        }
    }

    pub(super) fn first(&self) -> Option<u32> {
        match self {
            Self::Fcfs(q) => q.front().copied(),
            Self::Priority(q) => q.first().map(|&(_, _, request)| request),
        }
    }

    pub(super) fn pop_first(&mut self) {
        match self {
            Self::Fcfs(q) => {
                q.pop_front();
            }
            Self::Priority(q) => {
                q.pop_first();
            }
        }
    }
}
