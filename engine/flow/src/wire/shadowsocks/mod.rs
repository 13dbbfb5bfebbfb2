//! Shadowsocks over TCP, both sides: SIP004 (AEAD ciphers) and SIP022 (the 2022 edition, "section" below) with its
//! identity headers.
//!
//! A [`Tunnel`] stands for one connection once both know each other: it seals what goes there and opens what comes.
//! That of a client exists before anything is said; that of a server is what [`Accept`] makes of a request.

mod cipher;
mod client;
mod header;
mod salts;
mod server;
mod stream;
mod tunnel;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroizing;

use self::cipher::Salt;
pub use self::cipher::{BadKey, Edition, Key, Method};
pub use self::client::Client;
use self::salts::Salts;
pub use self::server::{Accept, Accepted, Server, Unwelcome};
pub use self::stream::Forged;
pub use self::tunnel::Tunnel;

/// The wall clock, which headers of SIP022 tell. Whoever has one sets it, about once a second.
#[derive(Debug)]
pub struct Clock(AtomicU64);

impl Clock {
    /// A clock that shows `unix_s` seconds since 1970.
    pub const fn new(unix_s: u64) -> Clock {
        Clock(AtomicU64::new(unix_s))
    }

    /// Sets it.
    pub fn set(&self, unix_s: u64) {
        self.0.store(unix_s, Ordering::Relaxed);
    }

    /// Seconds since 1970.
    pub fn unix_s(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Numbers what a process draws; no two are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial {
    /// Of the snapshot.
    pub generation: u64,
    /// Of the worker.
    pub worker: u64,
    /// Within these.
    pub count: u64,
}

/// What is random in salts: 32 bytes from the system. Wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    /// Takes over random bytes.
    pub fn new(bytes: [u8; 32]) -> Secret {
        Secret(Zeroizing::new(bytes))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What an endpoint of either side has of its own.
#[derive(Clone, Debug)]
struct Own {
    method: Method,
    secret: Secret,
    clock: Arc<Clock>,
    /// Those of the streams that came.
    salts: Arc<Salts>,
}

impl Own {
    fn new(method: Method, secret: Secret, clock: Arc<Clock>) -> Own {
        Own { method, secret, clock, salts: Arc::new(Salts::new(method.edition())) }
    }

    /// The salt of a stream of ours: nobody can tell it from random, and none comes twice.
    fn draw_salt(&self, serial: Serial) -> Salt {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret.0);
        for number in [serial.generation, serial.worker, serial.count] {
            hasher.update(&number.to_le_bytes());
        }
        Salt::new(self.method, hasher.finalize().as_bytes())
    }

    /// Whether a time in a header is ours, as far as clocks go.
    fn is_now(&self, unix_s: u64) -> bool {
        self.clock.unix_s().abs_diff(unix_s) <= header::MAX_SKEW_S
    }
}

#[cfg(test)]
mod tests;
