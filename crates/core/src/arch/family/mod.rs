//! One description of each architecture: from its configuration to a [`Model`](super::Model).
