//! The control side of ringweir: from a configuration to the snapshots that workers read.

pub mod config;
pub mod model;
