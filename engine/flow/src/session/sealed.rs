//! Sessions whose bytes are sealed on one side or on both: how a client gets in by Shadowsocks, how an attempt goes
//! through it, and the translation of what is pumped.

use std::borrow::Cow;
use std::mem;
use std::net::SocketAddr;
use std::time::Duration;

use super::attempt::{Approach, Attempt};
use super::{FirstByte, Session, Stage};
use crate::close::{CloseReason, ConnectError};
use crate::dial::AttemptId;
use crate::pump::{Closing, Direction, Ending, Side};
use crate::snapshot::{Commit, Listener};
use crate::time::Instant;
use crate::wire::shadowsocks::{Accept, Accepted, Forged, Tunnel, Unwelcome};
use crate::wire::{Answer, Body, Request};

/// How long a tunnel that is open waits for the client's first word, so that our request and that word are one flight
/// (SIP022, section 3.1.3). A client that lets the server speak first waits as long.
const FIRST_WORD: Duration = Duration::from_millis(50);

/// The tunnels of a session, and what is on its way through them.
#[derive(Debug, Default)]
pub(super) struct Ciphers {
    pub(super) client: Option<Tunnel>,
    pub(super) upstream: Option<Tunnel>,
    /// By direction.
    transit: [Transit; 2],
}

/// What was translated and is being sent.
#[derive(Clone, Copy, Debug, Default)]
struct Transit {
    unsent_bytes: usize,
    /// How much payload that is.
    payload_bytes: u64,
}

impl Ciphers {
    pub(super) fn tunnel(&self, side: Side) -> Option<&Tunnel> {
        match side {
            Side::Client => self.client.as_ref(),
            Side::Upstream => self.upstream.as_ref(),
        }
    }

    /// Appends to `out` what makes the sink of a direction read what came, up to `allowance` bytes of it; returns how
    /// much payload that is. `plain` is empty memory.
    fn translate<'a>(
        &mut self,
        direction: Direction,
        pieces: impl Iterator<Item = &'a [u8]> + Clone,
        allowance: u64,
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<u64, Forged> {
        let (source, sink) = match direction {
            Direction::Up => (&mut self.client, &mut self.upstream),
            Direction::Down => (&mut self.upstream, &mut self.client),
        };
        let most = usize::try_from(allowance).unwrap_or(usize::MAX);
        let before = out.len();
        let payload_bytes = match (source, sink) {
            (Some(source), None) => {
                source.open(pieces, out)?;
                out.truncate(before.saturating_add(most));
                out.len() - before
            }
            (Some(source), Some(sink)) => {
                source.open(pieces, plain)?;
                plain.truncate(most);
                sink.seal([&plain[..]], out);
                plain.len()
            }
            (None, Some(sink)) if pieces.clone().map(<[u8]>::len).sum::<usize>() <= most => {
                let bytes = pieces.clone().map(<[u8]>::len).sum();
                sink.seal(pieces, out);
                bytes
            }
            (None, sink) => {
                pieces.for_each(|piece| plain.extend_from_slice(piece));
                plain.truncate(most);
                match sink {
                    Some(sink) => sink.seal([&plain[..]], out),
                    None => out.extend_from_slice(plain),
                }
                plain.len()
            }
        };
        let transit = &mut self.transit[direction as usize];
        transit.unsent_bytes = out.len();
        transit.payload_bytes += payload_bytes as u64;
        Ok(payload_bytes as u64)
    }

    /// What makes a client read `bytes`.
    pub(super) fn sealed_for_client(ciphers: Option<&mut Ciphers>, bytes: &[u8]) -> Vec<u8> {
        let Some(tunnel) = ciphers.and_then(|ciphers| ciphers.client.as_mut()) else { return bytes.to_vec() };
        let mut out = Vec::new();
        tunnel.seal([bytes], &mut out);
        out
    }

    /// How much payload has arrived now that `bytes` more of what was translated are sent: that of a translation counts
    /// once all of it is.
    pub(super) fn handle_sent(&mut self, direction: Direction, bytes: usize) -> u64 {
        let transit = &mut self.transit[direction as usize];
        transit.unsent_bytes = transit.unsent_bytes.saturating_sub(bytes);
        if transit.unsent_bytes == 0 { mem::take(&mut transit.payload_bytes) } else { 0 }
    }
}

impl Session {
    /// Begins to read the request of a client of Shadowsocks.
    pub(super) fn begin_accept(&mut self, listener: &Listener, now: Instant) {
        let Some(server) = &listener.shadowsocks else {
            // Control gives every such listener a server.
            return self.close(Closing::plain(CloseReason::OutOfResources));
        };
        let Some(setup) = &mut self.setup else { return };
        let accept = Box::new(Accept::new(server, self.view.next_serial()));
        let deadline = self.accepted_at + listener.timeouts.handshake;
        setup.stage = Stage::Accepting { accept, deadline };
        if !setup.early.is_empty() {
            let early = mem::take(&mut setup.early);
            self.advance_accept(&early, now);
        }
    }

    /// Reads on in the request of a client of Shadowsocks.
    pub(super) fn advance_accept(&mut self, bytes: &[u8], now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        let Stage::Accepting { accept, deadline } = &mut setup.stage else { return };
        match accept.read(bytes) {
            Ok(None) => {}
            Ok(Some(Accepted { destination, user, payload, tunnel })) => {
                self.ciphers = Some(Box::new(Ciphers { client: Some(tunnel), ..Ciphers::default() }));
                setup.early = payload;
                let request = Request {
                    destination,
                    user,
                    preface: Vec::new(),
                    body: Body::Unlimited,
                    answer: Answer::None,
                };
                self.begin(request, now);
            }
            Err(unwelcome) => {
                tracing::debug!(client = %self.client, error = %unwelcome, "a session is refused");
                let reason = match unwelcome {
                    Unwelcome::Replayed => CloseReason::ClientReplayed,
                    Unwelcome::Segmented
                    | Unwelcome::Forged
                    | Unwelcome::Unknown
                    | Unwelcome::Kind
                    | Unwelcome::Skewed(_)
                    | Unwelcome::Request => CloseReason::ClientAuthentication,
                };
                // Whoever has not the key is read from in silence until the time of the handshake is over, as somebody
                // is who says too little: neither tells the other apart (SIP022, section 3.1.3).
                setup.stage = Stage::Shunning { reason, deadline: *deadline };
            }
        }
    }

    /// What a client said, as its upstream is to read it; `None` when it was tampered with, and the session is over.
    fn opened(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let tunnel = self.ciphers.as_mut()?.client.as_mut()?;
        let mut plain = Vec::new();
        match tunnel.open([bytes], &mut plain) {
            Ok(()) => Some(plain),
            Err(Forged) => {
                self.close(forged(Side::Client));
                None
            }
        }
    }

    /// What an attempt's destination said, as it said it; `None` when it was tampered with, and the attempt is lost.
    pub(super) fn opened_ahead<'a>(
        &mut self,
        index: usize,
        bytes: &'a [u8],
        now: Instant,
    ) -> Option<Cow<'a, [u8]>> {
        let attempt = &mut self.setup.as_mut()?.attempts[index];
        let Some(tunnel) = &mut attempt.tunnel else { return Some(Cow::Borrowed(bytes)) };
        let mut plain = Vec::new();
        match tunnel.open([bytes], &mut plain) {
            Ok(()) => Some(Cow::Owned(plain)),
            Err(Forged) => {
                self.fail_attempt(index, ConnectError::ProxyBroken, now);
                self.advance(now);
                None
            }
        }
    }

    /// Keeps what a client said while its upstream is being reached, and tells those attempts that wait for it.
    pub(super) fn keep(&mut self, bytes: &[u8], now: Instant) {
        let has_tunnel = self.ciphers.is_some();
        let opened = if has_tunnel { self.opened(bytes) } else { None };
        let Some(setup) = &mut self.setup else { return };
        match &opened {
            Some(plain) => setup.early.extend_from_slice(plain),
            None if has_tunnel => return,
            None => setup.early.extend_from_slice(bytes),
        }
        if setup.replay.is_some() {
            self.extend_replay(now);
        }
        if self.setup.as_ref().is_some_and(|setup| !setup.is_silent()) {
            self.greet(now, |_| true);
        }
    }

    /// Whether an attempt's connection leads into a tunnel that is best opened together with the client's first word,
    /// which has not come.
    pub(super) fn awaits_first_word(&self, index: usize) -> bool {
        let Some(setup) = &self.setup else { return false };
        setup.attempts[index].is_mute() && setup.is_silent()
    }

    /// Waits a moment for the client's first word. Without a group that asks for more, the attempt has won with that.
    pub(super) fn wait_for_client(
        &mut self,
        index: usize,
        connection: AttemptId,
        local: Option<SocketAddr>,
        now: Instant,
    ) {
        let Some(setup) = &self.setup else { return };
        let index = match setup.attempts[index].commit {
            Commit::Connect | Commit::Handshake => self.stop_others(index, now),
            Commit::FirstByte => index,
        };
        self.answer_success(local);
        let Some(setup) = &mut self.setup else { return };
        let attempt = &mut setup.attempts[index];
        let until = (now + FIRST_WORD).min(attempt.deadline);
        attempt.approach = Approach::Waiting { connection, until };
    }

    /// Nothing more comes of a client: nobody waits for its first word any longer.
    pub(super) fn stop_waiting(&mut self) {
        let Some(setup) = &mut self.setup else { return };
        for attempt in &mut setup.attempts {
            if let Approach::Waiting { until, .. } = &mut attempt.approach {
                // The timeout is due.
                *until = Instant::ZERO;
            }
        }
    }

    /// Goes on with the attempts that have waited long enough.
    pub(super) fn greet_overdue(&mut self, now: Instant) {
        self.greet(now, |until| now >= until);
    }

    /// Goes on with those attempts that wait for the client's first word until a time of which `holds`.
    fn greet(&mut self, now: Instant, holds: impl Fn(Instant) -> bool) {
        let is_due = |attempt: &Attempt| match attempt.approach {
            Approach::Waiting { connection, until } if holds(until) => Some((connection, attempt.commit)),
            Approach::Waiting { .. }
            | Approach::Resolving
            | Approach::Dialing(_)
            | Approach::Introducing(_)
            | Approach::Listening(_) => None,
        };
        loop {
            let Some(setup) = &mut self.setup else { return };
            let due = setup.attempts.iter().enumerate().find_map(|(index, it)| Some((index, is_due(it)?)));
            let Some((index, (connection, commit))) = due else { return };
            setup.attempts[index].approach = Approach::Listening(connection);
            match commit {
                Commit::Connect | Commit::Handshake => self.commit(index, connection, None, &[], now),
                Commit::FirstByte => self.listen(index, connection, None, now),
            }
        }
    }

    /// Whether what is received is to be told by [`Session::handle_received_sealed`].
    pub fn is_sealed(&self) -> bool {
        self.ciphers.is_some()
    }

    /// The source of a direction gave these bytes, in pieces, none of them empty. What is to be sent for them is
    /// appended to `out`: [`Step::Send`](crate::pump::Step::Send) counts bytes of that from now on. It is empty, unless
    /// one receive is told of in several parts, one after the other: then it holds what the parts before became.
    pub fn handle_received_sealed<'a>(
        &mut self,
        direction: Direction,
        pieces: impl Iterator<Item = &'a [u8]> + Clone,
        out: &mut Vec<u8>,
        now: Instant,
    ) {
        if self.ended {
            // What came before in the same receive was forged.
            return;
        }
        if direction == Direction::Down && self.first_byte == FirstByte::Awaited {
            self.measure_first_byte(self.committed_at.unwrap_or(now), now);
        }
        let (Some(ciphers), Some(pumps)) = (&mut self.ciphers, &mut self.pumps) else { return };
        let mut plain = self.view.spares().take_plain();
        let allowance = pumps.allowance(direction);
        let bytes: usize = pieces.clone().map(<[u8]>::len).sum();
        let translated = ciphers.translate(direction, pieces, allowance, &mut plain, out);
        self.view.spares().give_back_plain(plain);
        match translated {
            Ok(payload_bytes) => {
                pumps.handle_translated(direction, payload_bytes, out.len(), now);
                self.charge(direction, bytes as u64, now);
            }
            Err(Forged) => {
                out.clear();
                self.close(forged(direction.source()));
            }
        }
    }

    /// Whether the end of a side's stream is the end of what was said there, or cuts it off.
    pub(super) fn is_cut_off(&self, side: Side) -> bool {
        let tunnel = self.ciphers.as_ref().and_then(|ciphers| ciphers.tunnel(side));
        tunnel.is_some_and(|tunnel| !tunnel.is_between_chunks())
    }
}

/// Nobody is to take what was delivered for whole.
const fn forged(by: Side) -> Closing {
    let reason = match by {
        Side::Client => CloseReason::ClientProtocol,
        Side::Upstream => CloseReason::UpstreamProtocol,
    };
    Closing { reason, client: Ending::Reset, upstream: Ending::Reset }
}

impl Attempt {
    /// What makes the other end of the attempt's connection read `bytes`.
    pub(super) fn sealed(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let Some(tunnel) = &mut self.tunnel else { return bytes };
        let mut out = Vec::new();
        tunnel.seal([&bytes[..]], &mut out);
        out
    }

    /// Whether whoever is at the other end has not been told yet what is wanted.
    pub(super) fn is_mute(&self) -> bool {
        self.tunnel.as_ref().is_some_and(|tunnel| !tunnel.has_greeted())
    }
}
