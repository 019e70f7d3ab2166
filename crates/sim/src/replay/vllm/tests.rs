//! Replays against recorded ones.
