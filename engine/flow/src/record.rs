//! A finished session, as its log line tells it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::close::{CloseReason, ConnectError};
use crate::rules::Networks;
use crate::wire::{Destination, HostName};

/// Who connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientAddr {
    /// Over TCP, from there.
    Ip(SocketAddr),
    /// Over a Unix socket.
    Unix,
}

impl ClientAddr {
    /// Whether the client comes from one of these networks, or over a Unix socket, which its permissions guard.
    pub fn is_trusted(&self, networks: &Networks) -> bool {
        match self {
            ClientAddr::Unix => true,
            ClientAddr::Ip(address) => networks.contains(address.ip()),
        }
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientAddr::Ip(address) => SocketAddr::new(address.ip().to_canonical(), address.port()).fmt(f),
            ClientAddr::Unix => f.write_str("unix"),
        }
    }
}

/// One line of the session log.
#[derive(Debug)]
pub struct Record<'session> {
    /// Who connected.
    pub client: &'session ClientAddr,
    /// Where.
    pub listener: &'session str,
    /// The upstream that was tried last, if any.
    pub target: Option<&'session str>,
    /// What the client asked for, where its protocol says so.
    pub destination: Option<&'session Destination>,
    /// The server that a client of a plain listener named, by SNI or Host, where that was looked at.
    pub name: Option<&'session HostName>,
    /// As whom the client authenticated, where the listener asks for users.
    pub user: Option<&'session str>,
    /// The rule that decided, if one did.
    pub rule: Option<&'session str>,
    /// How many upstreams were tried.
    pub attempts: u16,
    /// Why the last one that failed did.
    pub last_error: Option<ConnectError>,
    /// The attempts that did not win, in the order of their ends.
    pub lost: Vec<LostAttempt<'session>>,
    /// Bytes delivered to the upstream.
    pub bytes_up: u64,
    /// Bytes delivered to the client.
    pub bytes_down: u64,
    /// From accept to an open upstream, if it came to that.
    pub setup: Option<Duration>,
    /// From accept to the end.
    pub duration: Duration,
    /// Why it ended.
    pub reason: CloseReason,
}

/// An attempt that did not win.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostAttempt<'session> {
    /// The upstream.
    pub target: &'session str,
    /// From the pick to its end.
    pub took: Duration,
    /// What was wrong; `None` when it was given up because another won or the session ended.
    pub error: Option<ConnectError>,
}

impl fmt::Display for LostAttempt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.target)?;
        match self.error {
            Some(error) => error.fmt(f)?,
            None => f.write_str("abandoned")?,
        }
        write!(f, " after {} ms", millis(self.took))
    }
}

/// Attempts as one text, or nothing.
struct Lost<'list>(&'list [LostAttempt<'list>]);

impl fmt::Display for Lost<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, lost) in self.0.iter().enumerate() {
            write!(f, "{}{lost}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl Record<'_> {
    /// The `tracing` target of session lines, for filters.
    pub const LOG_TARGET: &'static str = "ringweir::session";

    /// Writes the line to the log.
    pub fn log(&self) {
        tracing::info!(
            target: Record::LOG_TARGET,
            client = %self.client,
            listener = self.listener,
            target_name = self.target,
            destination = self.destination.map(tracing::field::display),
            asked_name = self.name.map(tracing::field::display),
            user = self.user,
            rule = self.rule,
            attempts = self.attempts,
            error = self.last_error.map(tracing::field::display),
            lost = (!self.lost.is_empty()).then(|| tracing::field::display(Lost(&self.lost))),
            bytes_up = self.bytes_up,
            bytes_down = self.bytes_down,
            setup_ms = self.setup.map(millis),
            duration_ms = millis(self.duration),
            reason = self.reason.as_str(),
            "session"
        );
    }
}

/// Milliseconds with three decimals: a session on one machine is over in less than one.
fn millis(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}
