//! The sans-IO heart of ringweir: everything that decides, nothing that touches a socket or a clock.
//!
//! A driver (the io_uring engine, the tokio fallback, or the seeded simulation in `tests/sim`) feeds a
//! [`Session`](session::Session) with what happened and carries out the commands it answers with:
//!
//! ```text
//! a byte:     listener -> handshake -> pick -> connect -> pump -> account
//! ```
//!
//! Time is an argument ([`time::Instant`]), randomness comes from a seeded generator in the [`view::View`], and
//! addresses are plain data. So every schedule of short reads, resets and late events can be replayed exactly.

pub mod access;
pub mod account;
pub mod affinity;
pub mod capacity;
pub mod close;
pub mod dial;
pub mod dispatch;
pub mod health;
pub mod histogram;
pub mod limits;
pub mod outgoing;
pub mod pace;
pub mod pick;
pub mod pump;
pub mod reach;
pub mod record;
pub mod resolve;
pub mod retire;
pub mod rules;
pub mod session;
pub mod side;
pub mod snapshot;
pub mod time;
pub mod users;
pub mod verify;
pub mod view;
pub mod way;
pub mod wire;
