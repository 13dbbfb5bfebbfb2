//! A driver without sockets: it carries out a session's commands by saying at once that they succeeded.

use std::rc::Rc;

use ringweir_flow::pick::Subject;
use ringweir_flow::pump::{Direction, Step};
use ringweir_flow::record::ClientAddr;
use ringweir_flow::session::{Command, Session};
use ringweir_flow::snapshot::{ListenerIndex, Protocol, TargetIndex, TargetKind, Upstream, WorkerIndex};
use ringweir_flow::time::Instant;
use ringweir_flow::view::View;

use crate::world;

/// The length of a message, in bytes.
const MESSAGE_BYTES: usize = 64;

/// What a SOCKS5 client says, without a user, to reach 192.0.2.1:80 (RFC 1928, sections 3 and 4).
pub(crate) const SOCKS5: &[&[u8]] = &[&[5, 1, 0], &[5, 1, 0, 1, 192, 0, 2, 1, 0, 80]];

/// The same by HTTP (RFC 9110, section 9.3.6), with the fields that curl sends.
pub(crate) const HTTP_CONNECT: &[&[u8]] = &[b"CONNECT 192.0.2.1:80 HTTP/1.1\r\nHost: 192.0.2.1:80\r\n\
    User-Agent: curl/8.5.0\r\nProxy-Connection: Keep-Alive\r\n\r\n"];

/// A listener of this protocol: `tcp` leads to a fixed endpoint, the others dial what they are asked for.
pub(crate) fn view(protocol: Protocol) -> Rc<View> {
    let target = match protocol {
        Protocol::Tcp => world::endpoint("out", ([192, 0, 2, 1], 80).into()),
        Protocol::Redirect
        | Protocol::Tproxy
        | Protocol::Socks
        | Protocol::Socks5
        | Protocol::Http
        | Protocol::Mixed
        | Protocol::Shadowsocks => world::target("direct", TargetKind::Upstream(Upstream::Direct)),
    };
    let snapshot = world::snapshot(world::listener(protocol, TargetIndex(0)), vec![target]);
    View::new(snapshot.into(), WorkerIndex(0), 1)
}

/// Whom members are picked for.
pub(crate) const SUBJECT: Subject<'_> =
    Subject { client: &ClientAddr::Unix, destination: None, peeked: None };

/// A session from accept to the command to pump; `said` is what its client sends, one piece a receive.
pub(crate) fn accept_to_pump(view: Rc<View>, said: &[&[u8]]) -> Session {
    let client = ClientAddr::Ip(([192, 0, 2, 2], 50_000).into());
    let mut session = Session::new(view, ListenerIndex(0), client, Instant::ZERO);
    let mut said = said.iter();
    loop {
        while let Some(command) = session.poll_command() {
            match command {
                Command::Connect { attempt, local, .. } => {
                    let local = local.then_some(([192, 0, 2, 3], 40_000).into());
                    session.handle_connected(attempt, local, Instant::ZERO);
                }
                Command::Pump(_) => {
                    assert!(session.poll_command().is_none());
                    return session;
                }
                Command::Send(..) => {}
                Command::ShutDownClient
                | Command::SendAhead(..)
                | Command::EndAhead(_)
                | Command::ReceiveAhead(_)
                | Command::Abandon(_)
                | Command::Verify(_)
                | Command::JoinLine(_)
                | Command::NameLocal
                | Command::NameDestination(_)
                | Command::Resolve(_)
                | Command::Close(_) => {
                    unreachable!("{command:?}: nothing is refused here")
                }
            }
        }
        let Some(bytes) = said.next() else { panic!("the client has said everything: {session:?}") };
        session.handle_bytes(bytes, Instant::ZERO);
    }
}

/// Asks for the receives that an open session begins with.
pub(crate) fn begin(session: &mut Session) {
    for direction in Direction::BOTH {
        let step = session.poll_step(direction);
        assert!(matches!(step, Some(Step::Receive(_))), "{step:?}");
    }
}

/// A message there and one back, each received, sent, and the next receive asked for.
pub(crate) fn ping_pong(session: &mut Session, now: Instant) {
    for direction in Direction::BOTH {
        session.handle_received(direction, MESSAGE_BYTES, now);
        assert_eq!(session.poll_step(direction), Some(Step::Send(MESSAGE_BYTES)));
        session.handle_sent(direction, MESSAGE_BYTES, now);
        assert!(session.poll_step(direction).is_some());
        assert!(session.poll_timeout().is_some());
    }
}

/// Both ends of an open session, in order; it has ended when this returns.
pub(crate) fn end(session: &mut Session) {
    for direction in Direction::BOTH {
        session.handle_ended(direction, Instant::ZERO);
        assert_eq!(session.poll_step(direction), Some(Step::ShutDown));
    }
    let command = session.poll_command();
    assert!(matches!(command, Some(Command::Close(_))), "{command:?}");
}
