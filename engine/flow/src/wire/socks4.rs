//! The server side of SOCKS version 4 and 4a, CONNECT (the memos "SOCKS: A protocol for TCP proxy across firewalls"
//! and "SOCKS 4A" by Y.-D. Lee, which no RFC replaces).
//!
//! The protocol knows a user's name and no password, so a listener that asks for users refuses whoever speaks it. There
//! is one message each way; the client's is parsed anew whenever more has arrived.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::reader::{Endless, Reader};
use super::{Answer, Body, Destination, MAX_HOST_BYTES, Progress, Request};
use crate::close::CloseReason;
use crate::users::{MAX_CREDENTIAL_BYTES, Users};

/// The version octet of the request.
pub const VERSION: u8 = 4;

/// The longest user id that is read. The memo has no bound; this is what SOCKS5 takes.
pub const MAX_USER_BYTES: usize = MAX_CREDENTIAL_BYTES;

/// The longest request: fixed part, user id and name with a NUL behind each.
pub const MAX_MESSAGE_BYTES: usize = 8 + (MAX_USER_BYTES + 1) + (MAX_HOST_BYTES + 1);

const COMMAND_CONNECT: u8 = 1;

/// The reply code. 0x5C, that there is no identd at the client, is never ours to say: none is asked.
#[derive(Clone, Copy)]
enum Code {
    Granted = 0x5a,
    Failed = 0x5b,
    /// The client is not shown to be who it says.
    NotAuthenticated = 0x5d,
}

/// Reads the request. See [`handshake::Handshake::advance`](super::handshake::Handshake::advance).
pub fn advance(input: &[u8], users: Option<&Users>) -> Progress {
    read_request(input, users).unwrap_or_else(Progress::incomplete)
}

/// `None` while it is incomplete.
fn read_request(input: &[u8], users: Option<&Users>) -> Option<Progress> {
    let mut reader = Reader::new(input);
    if reader.byte()? != VERSION {
        return Some(Progress::refuse(&[][..], CloseReason::ClientProtocol));
    }
    if users.is_some() {
        return Some(refuse(Code::NotAuthenticated, CloseReason::ClientAuthentication));
    }
    if reader.byte()? != COMMAND_CONNECT {
        return Some(refuse(Code::Failed, CloseReason::ClientUnsupported));
    }
    let port = reader.port()?;
    let address = Ipv4Addr::from(reader.array::<4>()?);
    let Ok(_user) = reader.terminated(MAX_USER_BYTES)? else {
        return Some(refuse(Code::Failed, CloseReason::ClientProtocol));
    };
    let destination = match address.octets() {
        // An address that cannot be: 4a, the name follows.
        [0, 0, 0, 1..=255] => match reader.terminated(MAX_HOST_BYTES)? {
            Ok(name) => Destination::from_host(name, port).ok(),
            Err(Endless) => None,
        },
        _ => Some(Destination::Address(SocketAddr::new(IpAddr::V4(address), port))),
    };
    Some(match destination {
        Some(destination) if port != 0 => {
            let request = Request {
                destination,
                user: None,
                preface: Vec::new(),
                body: Body::Unlimited,
                answer: Answer::Socks4,
            };
            Progress::request(reader.consumed(input), request)
        }
        Some(_) | None => refuse(Code::Failed, CloseReason::ClientProtocol),
    })
}

/// The reply to a CONNECT that succeeded, with the address we dialled from; zeros where it is not known or no IPv4 one.
/// `memory` is empty memory for it.
pub(super) fn success(local: Option<SocketAddr>, mut memory: Vec<u8>) -> Cow<'static, [u8]> {
    let port = local.map_or(0, |local| local.port());
    let address = match local.map(|local| local.ip().to_canonical()) {
        Some(IpAddr::V4(address)) => address,
        Some(IpAddr::V6(_)) | None => Ipv4Addr::UNSPECIFIED,
    };
    memory.extend([0, Code::Granted as u8]);
    memory.extend(port.to_be_bytes());
    memory.extend(address.octets());
    memory.into()
}

/// The reply to a CONNECT that failed: the protocol has one word for every reason.
pub(super) fn failure() -> Cow<'static, [u8]> {
    reply(Code::Failed)
}

fn refuse(code: Code, reason: CloseReason) -> Progress {
    Progress::refuse(reply(code), reason)
}

fn reply(code: Code) -> Cow<'static, [u8]> {
    vec![0, code as u8, 0, 0, 0, 0, 0, 0].into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Failure, Step};

    fn message(head: &[u8], user: &[u8], name: &[u8]) -> Vec<u8> {
        [head, user, b"\0", name].concat()
    }

    fn refused(code: u8, reason: CloseReason) -> Step {
        Step::Refuse { reply: vec![0, code, 0, 0, 0, 0, 0, 0].into(), reason }
    }

    #[test]
    fn addresses_and_names_are_understood_and_the_payload_is_left() {
        let cases: [(&[u8], &[u8], &str); 4] = [
            (&[4, 1, 0, 80, 192, 0, 2, 1], b"", "192.0.2.1:80"),
            (&[4, 1, 0, 80, 0, 0, 0, 0], b"", "0.0.0.0:80"),
            (&[4, 1, 1, 0xbb, 0, 0, 0, 1], b"a.example\0", "a.example:443"),
            (&[4, 1, 0, 80, 0, 0, 0, 9], b"127.0.0.1\0", "127.0.0.1:80"),
        ];
        for (head, name, destination) in cases {
            for user in [&b""[..], b"ann", &[b'u'; MAX_USER_BYTES]] {
                let message = message(head, user, name);
                let progress = advance(&[&message[..], b"payload"].concat(), None);
                assert_eq!(progress.consumed, message.len());
                let Step::Request(request) = progress.step else { panic!("{destination}: no request") };
                assert_eq!(request.destination.to_string(), destination);
                assert_eq!((request.body, request.answer), (Body::Unlimited, Answer::Socks4));
            }
        }
    }

    #[test]
    fn a_listener_with_users_refuses_since_nobody_can_be_authenticated() {
        let refusal = refused(0x5d, CloseReason::ClientAuthentication);
        let message = message(&[4, 1, 0, 80, 192, 0, 2, 1], b"ann", b"");
        assert_eq!(advance(&message, Some(&Users::default())).step, refusal);
    }

    #[test]
    fn what_is_no_connect_is_refused() {
        for command in [0, 2, 3, 0xff] {
            assert_eq!(advance(&[4, command], None).step, refused(0x5b, CloseReason::ClientUnsupported));
        }
        let bad = refused(0x5b, CloseReason::ClientProtocol);
        let by_name = [4, 1, 0, 80, 0, 0, 0, 1];
        for name in [&b"\0"[..], b"a b\0", b"a:80\0", &[b'a'; MAX_HOST_BYTES + 1]] {
            assert_eq!(advance(&message(&by_name, b"", name), None).step, bad, "{name:?}");
        }
        assert_eq!(advance(&message(&[4, 1, 0, 0, 192, 0, 2, 1], b"", b""), None).step, bad);
        let endless = [&[4, 1, 0, 80, 192, 0, 2, 1][..], &[b'u'; MAX_USER_BYTES + 1]].concat();
        assert_eq!(advance(&endless, None).step, bad);
        assert_eq!(advance(&endless[..endless.len() - 1], None), Progress::incomplete());
    }

    #[test]
    fn the_replies_are_those_of_the_memo() {
        let success = |local: Option<&str>| {
            Answer::Socks4.success(local.map(|text| text.parse().unwrap()), &mut Vec::new())
        };
        assert_eq!(*success(None), [0, 0x5a, 0, 0, 0, 0, 0, 0]);
        assert_eq!(*success(Some("192.0.2.1:258")), [0, 0x5a, 1, 2, 192, 0, 2, 1]);
        assert_eq!(*success(Some("[2001:db8::1]:80")), [0, 0x5a, 0, 80, 0, 0, 0, 0]);
        assert_eq!(*Answer::Socks4.failure(Failure::Refused), [0, 0x5b, 0, 0, 0, 0, 0, 0]);
    }
}
