//! Nothing: this package only has benchmarks.
