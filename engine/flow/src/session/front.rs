//! What stands in front of a session: a proxy that says whose connection it is, and the saying of it to whom we connect.

use std::net::SocketAddr;
use std::rc::Rc;

use super::{Command, Diversion, Session, Stage};
use crate::close::CloseReason;
use crate::dial::AttemptId;
use crate::limits::Full;
use crate::pump::{Closing, Ending};
use crate::record::ClientAddr;
use crate::snapshot::{Listener, Protocol, TargetIndex};
use crate::time::Instant;
use crate::wire::handshake::Handshake;
use crate::wire::peek::Peek;
use crate::wire::proxy_protocol::{self, Ends, Header, Version};
use crate::wire::{Answer, Body, Destination, Request};

/// What is known of the client's connection beside its address.
#[derive(Debug, Default)]
pub(super) struct Front {
    /// Where the client connected.
    local: Local,
    /// What the connection is called in PROXY headers.
    unique_id: Option<Box<[u8]>>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Local {
    #[default]
    Unasked,
    Known(Option<SocketAddr>),
}

impl Session {
    /// Takes in a client whose connection has just come; see [`Session::new`].
    pub(super) fn receive_client(&mut self, now: Instant) {
        let view = Rc::clone(&self.view);
        let listener = view.snapshot().listener(self.listener);
        match &listener.trusted {
            None => self.welcome(listener, now),
            Some(trusted) if self.client.is_trusted(trusted) => {
                if let Some(setup) = &mut self.setup {
                    setup.stage = Stage::Announcing { deadline: now + listener.timeouts.handshake };
                }
            }
            // Whatever it says would be its own word.
            Some(_) => self.turn_away(listener, now),
        }
    }

    /// Reads who the client is, as a proxy in front says it.
    pub(super) fn read_announcement(&mut self, now: Instant) {
        let view = Rc::clone(&self.view);
        let Some(setup) = &mut self.setup else { return };
        match proxy_protocol::read(&setup.early) {
            Ok(None) => {}
            Ok(Some((consumed, header))) => {
                setup.early.drain(..consumed);
                setup.front.unique_id = header.unique_id;
                if let Some(ends) = header.ends {
                    self.client = ClientAddr::Ip(ends.source);
                    setup.front.local = Local::Known(Some(ends.destination));
                }
                self.welcome(view.snapshot().listener(self.listener), now);
            }
            Err(error) => {
                tracing::debug!(client = %self.client, %error, "a session is refused");
                self.close(Closing::plain(CloseReason::ClientProtocol));
            }
        }
    }

    /// Serves a client whose address is known now, if it may be served; the time of its handshake runs since it was
    /// accepted.
    fn welcome(&mut self, listener: &Listener, now: Instant) {
        if listener.access.as_ref().is_some_and(|access| !access.admits(&self.client)) {
            self.turn_away(listener, now);
            return;
        }
        if let Some(limits) = &listener.limits {
            self.is_limited = true;
            if let Err(full) = limits.enter(&self.client, listener.counters.sum(|cell| &cell.active), now) {
                if let Some(others) = limits.sources.gate.pass(now) {
                    let name = &*listener.name;
                    tracing::warn!(listener = name, client = %self.client, ?full, others, "clients are turned away");
                }
                let reason = match full {
                    Full::Listener | Full::Source => CloseReason::TooManySessions,
                    Full::ListenerRate | Full::SourceRate => CloseReason::TooManyNew,
                };
                self.close(Closing { reason, client: Ending::Reset, upstream: Ending::Plain });
                return;
            }
            self.pacing = limits.pacing(&self.client);
        }
        let Some(setup) = &mut self.setup else { return };
        match Handshake::new(listener.protocol) {
            Some(wire) => {
                let deadline = self.accepted_at + listener.timeouts.handshake;
                setup.stage = Stage::Handshake { wire, deadline };
                if !setup.early.is_empty() {
                    self.advance_handshake(now);
                }
            }
            None if listener.protocol == Protocol::Shadowsocks => self.begin_accept(listener, now),
            None if listener.protocol == Protocol::Redirect => {
                setup.commands.push_back(Command::NameDestination(Diversion::Redirect));
            }
            None if listener.protocol == Protocol::Tproxy => {
                setup.commands.push_back(Command::NameDestination(Diversion::Tproxy));
            }
            None => match listener.peek {
                Some(timeout) => {
                    setup.stage = Stage::Peeking { peek: Peek::default(), deadline: now + timeout };
                    self.look(now);
                }
                None => self.set_out(now),
            },
        }
    }

    fn turn_away(&mut self, listener: &Listener, now: Instant) {
        if let Some(others) = listener.gate.pass(now) {
            let name = &*listener.name;
            tracing::warn!(listener = name, client = %self.client, others, "clients may not come from there");
        }
        self.close(Closing {
            reason: CloseReason::ClientNotAllowed,
            client: Ending::Reset,
            upstream: Ending::Plain,
        });
    }

    /// Where the client connected, as [`Command::NameLocal`] asked; `None` on a Unix socket.
    pub fn handle_local(&mut self, local: Option<SocketAddr>) {
        if let Some(setup) = &mut self.setup {
            setup.front.local = Local::Known(local);
        }
    }

    /// Where the client was going, as [`Command::NameDestination`] asked; `None` when it was going here. A connection that
    /// leads back to the listener would be made by itself again and again.
    pub fn handle_destination(&mut self, destination: Option<SocketAddr>, now: Instant) {
        let view = Rc::clone(&self.view);
        let listener = view.snapshot().listener(self.listener);
        let Some(setup) = &mut self.setup else { return };
        if !matches!(setup.stage, Stage::Reaching) {
            return;
        }
        let is_own = |address: &SocketAddr| {
            listener.protocol == Protocol::Tproxy && listener.ports.contains(&address.port())
        };
        let Some(address) = destination.filter(|address| !is_own(address)) else {
            tracing::debug!(client = %self.client, "a session is refused: it was going to the listener itself");
            self.close(Closing {
                reason: CloseReason::ClientProtocol,
                client: Ending::Reset,
                upstream: Ending::Plain,
            });
            return;
        };
        setup.front.local = Local::Known(Some(address));
        self.begin(
            Request {
                destination: Destination::Address(address),
                preface: Vec::new(),
                body: Body::Unlimited,
                answer: Answer::None,
                user: None,
            },
            now,
        );
    }

    /// Asks for what will have to be said to an upstream.
    pub(super) fn prepare_to_announce(&mut self, upstream: TargetIndex) {
        let Some(setup) = &mut self.setup else { return };
        if let (Some(_), Local::Unasked) =
            (self.view.snapshot().target(upstream).send_proxy, setup.front.local)
        {
            setup.commands.push_back(Command::NameLocal);
        }
    }

    /// Says ahead of everything else on an attempt's connection whose it is, where the upstream wants to know.
    pub(super) fn announce(&mut self, index: usize, connection: AttemptId, upstream: TargetIndex) {
        let Some(version) = self.view.snapshot().target(upstream).send_proxy else { return };
        let Some(setup) = &mut self.setup else { return };
        let ends = match (&self.client, setup.front.local) {
            (ClientAddr::Ip(source), Local::Known(Some(destination))) => {
                Some(Ends { source: *source, destination })
            }
            (ClientAddr::Ip(_) | ClientAddr::Unix, Local::Known(_) | Local::Unasked) => None,
        };
        let unique_id = match version {
            Version::V1 => None,
            // The same to every upstream, and that of a proxy in front where it gave one.
            Version::V2 => Some(setup.front.unique_id.get_or_insert_with(|| self.view.draw_name()).clone()),
        };
        let mut header = Vec::new();
        proxy_protocol::write(version, &Header { ends, unique_id }, &mut header);
        let header = setup.attempts[index].sealed(header);
        setup.commands.push_back(Command::SendAhead(connection, header));
    }
}
