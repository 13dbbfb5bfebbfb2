//! An hour's worth of traffic, compressed: hundreds of sessions at once through the real binary, on both engines, each
//! with a script drawn from a seed: chunks of all sizes, pauses, bulk and ping-pong by turns, slow readers, small
//! buffers, half-closes, resets. Every byte is checked by its place.
//!
//! `SOAK_SECONDS` (20 if nothing is said) is the length on each engine, `SOAK_SEED` the seed; without it each run has
//! a new one, which failures name. `SOAK_SESSION` plays the script of one session alone, again and again, in
//! `SOAK_SLOTS` places at once.
#![cfg(target_os = "linux")]
// All of this crate is tests, helpers included, and the lint's exception covers functions marked as such alone.
#![allow(clippy::unwrap_used)]

#[allow(
    dead_code,
    unused_imports,
    reason = "what the end-to-end scenarios need beyond this is not used here"
)]
#[path = "../e2e/harness/mod.rs"]
mod harness;

mod judge;
mod operator;
mod peer;
mod script;
mod shake;
mod socket;
mod stream;
mod world;
mod worlds;
