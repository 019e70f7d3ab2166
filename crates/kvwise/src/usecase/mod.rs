//! The order of steps behind each command; no printing here.
