//! From a recording to its report: reading, measuring, judging.

pub mod blocks;
pub mod build;
pub mod compare;
pub mod gains;
pub mod rules;
