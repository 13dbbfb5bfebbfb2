//! The io_uring layer of ringweir: one [`Ring`] per worker thread, safe to use, over memory that it owns.
//!
//! - An operation is submitted with a [`Token`] that names its owner, and ends as one [`Completion`] bearing it
//!   (several for a multishot accept, the last with `more: false`). Nothing is sent to the kernel before the next
//!   [`Ring::wait`], unless the submission queue runs full.
//! - Bytes arrive in [`Chunks`]: buffers of a pool that all receives share. They are given on to [`Ring::send`], which
//!   takes them back by itself, or to [`Ring::recycle`].
//! - A descriptor given to a submission must stay open until the next `wait`: the kernel looks its number up only then.
//!   One of which nothing is in flight may be closed at any time. Closing does not end operations, [`Ring::cancel`] does.
//!
//! A turn of a worker:
//!
//! ```
//! # #[cfg(target_os = "linux")] {
//! use ringweir_ring::{Completion, Op, Ring, RingConfig, Token};
//! use std::os::fd::AsFd;
//! # use std::io::{Read, Write};
//! # let (mut peer, ours) = std::os::unix::net::UnixStream::pair()?;
//! # peer.write_all(b"weir")?;
//!
//! let mut ring = Ring::new(&RingConfig::default())?;
//! ring.receive(Token::new(Op::Receive, 0, 7, 0), ours.as_fd(), 16 << 10);
//! ring.wait(None)?;
//! while let Some(completion) = ring.next_completion() {
//!     if let Completion::Received { token, result, .. } = completion {
//!         ring.send(Token::new(Op::Send, 0, token.slot(), 0), ours.as_fd(), result?);
//!     }
//! }
//! ring.wait(None)?;
//! # let mut echo = [0; 4];
//! # peer.read_exact(&mut echo)?;
//! # assert_eq!(&echo, b"weir");
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Every unsafe line of the project is in this crate, and none of it shows: what the kernel reads or writes is owned by
//! the ring from submission to completion, the pool outlives the io_uring, and bytes are lent only while the kernel
//! does not have them.

#![cfg(target_os = "linux")]
// The one crate that may: it gives the kernel addresses and shares memory with it.
#![allow(unsafe_code)]

mod completion;
mod config;
mod inflight;
mod pool;
mod probe;
mod ring;
mod setup;
mod socket;
mod token;
mod wake;

pub use completion::{Completion, Unsent};
pub use config::{RingConfig, RingStats};
pub use pool::{Chunks, Slices};
pub use probe::Capabilities;
pub use ring::Ring;
pub use rustix::event::PollFlags as PollEvents;
pub use rustix::io::Errno;
pub use rustix::net::{SocketAddrAny, SocketAddrUnix};
pub use setup::SetupError;
pub use socket::unacknowledged_bytes;
pub use token::{MAX_GENERATIONS, MAX_LANES, MAX_SLOTS, Op, Token};
pub use wake::Waker;
