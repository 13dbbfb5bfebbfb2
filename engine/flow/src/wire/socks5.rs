//! The server side of SOCKS version 5 (RFC 1928) with CONNECT and, where users are configured, user name and
//! password (RFC 1929).
//!
//! A client that may not go on gets the reply that its RFC has for that, or an empty one where its bytes are no
//! SOCKS at all. Every message is at most 513 bytes, so it is simply parsed anew whenever more has arrived.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::address::{self, BadAddress};
use super::reader::Reader;
use super::{Answer, Body, Failure, Progress, Request};
use crate::close::CloseReason;
use crate::users::Users;
use crate::verify::{Standing, Verdict};

/// The version octet of greeting, request and reply (RFC 1928, section 3).
pub const VERSION: u8 = 5;

/// The longest message of this handshake, user name and password with all they may have (RFC 1929, section 2).
pub const MAX_MESSAGE_BYTES: usize = 3 + 2 * crate::users::MAX_CREDENTIAL_BYTES;

/// The version octet of the user name/password messages (RFC 1929, section 2).
const PASSWORD_VERSION: u8 = 1;
const METHOD_NONE: u8 = 0;
const METHOD_PASSWORD: u8 = 2;
const COMMAND_CONNECT: u8 = 1;
const ADDRESS_IPV4: u8 = 1;
const ADDRESS_IPV6: u8 = 4;

const NO_ACCEPTABLE_METHOD: &[u8] = &[VERSION, 0xff];
/// RFC 1929 has one word for every reason.
const PASSWORD_REFUSED: &[u8] = &[PASSWORD_VERSION, 1];

/// The reply field of a reply that is no success (RFC 1928, section 6).
#[derive(Clone, Copy)]
enum Code {
    General = 1,
    NotAllowed = 2,
    NetworkUnreachable = 3,
    HostUnreachable = 4,
    Refused = 5,
    CommandUnsupported = 7,
    AddressUnsupported = 8,
}

/// Where a SOCKS5 handshake stands.
#[derive(Debug, Default)]
pub enum Handshake {
    /// The greeting with the client's methods is awaited.
    #[default]
    Greeting,
    /// The user name and password are awaited, or what is to be thought of them.
    Password(Standing),
    /// The request is awaited, of this user where users are asked for.
    Request(Option<Arc<str>>),
}

impl Handshake {
    /// See [`handshake::Handshake::advance`](super::handshake::Handshake::advance).
    pub fn advance(&mut self, input: &[u8], users: Option<&Users>) -> Progress {
        let progress = match self {
            Handshake::Greeting => self.read_greeting(input, users),
            Handshake::Password(standing) => {
                let standing = *standing;
                self.read_password(input, users, standing)
            }
            Handshake::Request(user) => read_request(input, user),
        };
        progress.unwrap_or_else(Progress::incomplete)
    }

    /// See [`handshake::Handshake::handle_verdict`](super::handshake::Handshake::handle_verdict).
    pub fn handle_verdict(&mut self, verdict: Verdict) {
        if let Handshake::Password(standing) = self {
            *standing = Standing::Judged(verdict);
        }
    }

    /// `None` while it is incomplete, here and below.
    fn read_greeting(&mut self, input: &[u8], users: Option<&Users>) -> Option<Progress> {
        let mut reader = Reader::new(input);
        if reader.byte()? != VERSION {
            return Some(Progress::refuse(&[][..], CloseReason::ClientProtocol));
        }
        let methods = reader.counted()?;
        let (method, next, reply): (_, _, &'static [u8]) = match users {
            None => (METHOD_NONE, Handshake::Request(None), &[VERSION, METHOD_NONE]),
            Some(_) => (METHOD_PASSWORD, Handshake::Password(Standing::Unknown), &[VERSION, METHOD_PASSWORD]),
        };
        if !methods.contains(&method) {
            return Some(Progress::refuse(NO_ACCEPTABLE_METHOD, CloseReason::ClientAuthentication));
        }
        *self = next;
        Some(Progress::reply(reader.consumed(input), reply))
    }

    fn read_password(&mut self, input: &[u8], users: Option<&Users>, standing: Standing) -> Option<Progress> {
        let mut reader = Reader::new(input);
        if reader.byte()? != PASSWORD_VERSION {
            return Some(Progress::refuse(&[][..], CloseReason::ClientProtocol));
        }
        let name = reader.counted()?;
        let password = reader.counted()?;
        let verdict = users.map_or(Ok(Verdict::Wrong), |users| standing.judge(users, name, password));
        match verdict {
            Ok(Verdict::Right) => {}
            Ok(Verdict::Wrong) => {
                return Some(Progress::refuse(PASSWORD_REFUSED, CloseReason::ClientAuthentication));
            }
            Ok(Verdict::Overloaded) => {
                return Some(Progress::refuse(PASSWORD_REFUSED, CloseReason::TooManyLogins));
            }
            Err(login) => return Some(Progress::verify(login)),
        }
        // Configured names are text.
        *self = Handshake::Request(std::str::from_utf8(name).ok().map(Arc::from));
        Some(Progress::reply(reader.consumed(input), &[PASSWORD_VERSION, 0]))
    }
}

fn read_request(input: &[u8], user: &mut Option<Arc<str>>) -> Option<Progress> {
    let mut reader = Reader::new(input);
    if reader.byte()? != VERSION {
        return Some(Progress::refuse(&[][..], CloseReason::ClientProtocol));
    }
    if reader.byte()? != COMMAND_CONNECT {
        return Some(refuse(Code::CommandUnsupported, CloseReason::ClientUnsupported));
    }
    // The reserved octet: nothing depends on it, and some clients send what happens to lie there.
    reader.byte()?;
    let destination = address::read(&mut reader)?;
    Some(match destination {
        Ok(destination) => {
            let request = Request {
                destination,
                user: user.take(),
                preface: Vec::new(),
                body: Body::Unlimited,
                answer: Answer::Socks5,
            };
            Progress::request(reader.consumed(input), request)
        }
        Err(BadAddress::Type) => refuse(Code::AddressUnsupported, CloseReason::ClientUnsupported),
        Err(BadAddress::Unreachable) => refuse(Code::General, CloseReason::ClientProtocol),
    })
}

/// Of an IPv6 address (RFC 1928, section 6).
const LONGEST_REPLY_BYTES: usize = 22;

/// The reply to a CONNECT that succeeded, with the address we dialled from, or zeros when it is not known. `reply` is empty memory for it.
pub(super) fn success(local: Option<SocketAddr>, mut reply: Vec<u8>) -> Cow<'static, [u8]> {
    let local = local.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));
    reply.reserve(LONGEST_REPLY_BYTES);
    reply.extend([VERSION, 0, 0]);
    match local.ip() {
        IpAddr::V4(address) => {
            reply.push(ADDRESS_IPV4);
            reply.extend(address.octets());
        }
        IpAddr::V6(address) => {
            reply.push(ADDRESS_IPV6);
            reply.extend(address.octets());
        }
    }
    reply.extend(local.port().to_be_bytes());
    reply.into()
}

/// The reply to a CONNECT that failed.
pub(super) fn failure(failure: Failure) -> Cow<'static, [u8]> {
    reply(match failure {
        Failure::Refused => Code::Refused,
        Failure::TimedOut | Failure::HostUnreachable | Failure::NotResolved => Code::HostUnreachable,
        Failure::NetworkUnreachable => Code::NetworkUnreachable,
        Failure::NotAllowed | Failure::Rejected => Code::NotAllowed,
        Failure::NoTarget | Failure::OutOfResources | Failure::General => Code::General,
    })
}

fn refuse(code: Code, reason: CloseReason) -> Progress {
    Progress::refuse(reply(code), reason)
}

fn reply(code: Code) -> Cow<'static, [u8]> {
    vec![VERSION, code as u8, 0, ADDRESS_IPV4, 0, 0, 0, 0, 0, 0].into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Destination;
    use crate::wire::Step;

    const CONNECT: &[u8] = &[5, 1, 0, 3, 9, b'a', b'.', b'e', b'x', b'a', b'm', b'p', b'l', b'e', 1, 0xbb];

    fn ann() -> Users {
        let mut users = Users::default();
        users.insert(b"ann", b"secret");
        users
    }

    fn refused(reply: &'static [u8], reason: CloseReason) -> Step {
        Step::Refuse { reply: reply.into(), reason }
    }

    fn request(input: &[u8]) -> Step {
        Handshake::Request(None).advance(input, None).step
    }

    fn password(name: &[u8], password: &[u8]) -> Vec<u8> {
        [&[1, name.len() as u8], name, &[password.len() as u8], password].concat()
    }

    #[test]
    fn without_users_the_method_is_none() {
        let mut handshake = Handshake::default();
        let progress = handshake.advance(&[5, 2, 2, 0, 5, 1], None);
        assert_eq!(progress, Progress::reply(4, &[5, 0]));
        assert!(matches!(handshake, Handshake::Request(None)));
    }

    #[test]
    fn without_an_acceptable_method_the_answer_is_ff() {
        let none = refused(&[5, 0xff], CloseReason::ClientAuthentication);
        assert_eq!(Handshake::default().advance(&[5, 0], None).step, none);
        assert_eq!(Handshake::default().advance(&[5, 2, 1, 2], None).step, none);
        assert_eq!(Handshake::default().advance(&[5, 2, 0, 1], Some(&ann())).step, none);
        assert_eq!(Handshake::default().advance(&[5, 1, 0], Some(&Users::default())).step, none);
    }

    #[test]
    fn another_version_in_the_greeting_ends_the_session_at_its_first_byte() {
        for version in [0, 4, 6, b'G'] {
            let step = Handshake::default().advance(&[version], None).step;
            assert_eq!(step, refused(&[], CloseReason::ClientProtocol), "{version}");
        }
    }

    #[test]
    fn users_pass_with_their_password_alone() {
        let users = ann();
        let mut handshake = Handshake::default();
        assert_eq!(handshake.advance(&[5, 2, 0, 2], Some(&users)), Progress::reply(4, &[5, 2]));
        let right = password(b"ann", b"secret");
        assert_eq!(handshake.advance(&right, Some(&users)), Progress::reply(right.len(), &[1, 0]));
        assert!(matches!(handshake, Handshake::Request(Some(user)) if &*user == "ann"));

        let wrong = refused(&[1, 1], CloseReason::ClientAuthentication);
        for (name, word) in [(&b"ann"[..], &b"Secret"[..]), (b"bob", b"secret"), (b"", b"secret"), (b"", b"")]
        {
            let mut handshake = Handshake::Password(Standing::Unknown);
            assert_eq!(handshake.advance(&password(name, word), Some(&users)).step, wrong, "{name:?}");
        }
    }

    #[test]
    fn a_password_that_is_known_by_its_hash_is_asked_for_and_then_read_again() {
        let mut users = Users::default();
        users.insert_hashed(b"ann", "#secret");
        let message = password(b"ann", b"secret");
        let verdicts = [
            (Verdict::Right, Progress::reply(message.len(), &[1, 0])),
            (Verdict::Wrong, Progress::refuse(&[1, 1][..], CloseReason::ClientAuthentication)),
            (Verdict::Overloaded, Progress::refuse(&[1, 1][..], CloseReason::TooManyLogins)),
        ];
        for (verdict, expected) in verdicts {
            let mut handshake = Handshake::Password(Standing::Unknown);
            let asked = handshake.advance(&message, Some(&users));
            assert!(asked.consumed == 0 && matches!(asked.step, Step::Verify(_)), "{asked:?}");
            handshake.handle_verdict(verdict);
            assert_eq!(handshake.advance(&message, Some(&users)), expected);
        }
    }

    #[test]
    fn user_and_password_of_255_bytes_pass() {
        let (name, word) = ([b'n'; 255], [b'p'; 255]);
        let mut users = Users::default();
        users.insert(&name, &word);
        let message = password(&name, &word);
        assert_eq!(message.len(), MAX_MESSAGE_BYTES);
        let mut handshake = Handshake::Password(Standing::Unknown);
        let short = &message[..message.len() - 1];
        assert_eq!(handshake.advance(short, Some(&users)), Progress::incomplete());
        assert_eq!(handshake.advance(&message, Some(&users)), Progress::reply(message.len(), &[1, 0]));
    }

    #[test]
    fn connect_before_authentication_ends_the_session() {
        let users = ann();
        let mut handshake = Handshake::default();
        handshake.advance(&[5, 1, 2], Some(&users));
        assert_eq!(handshake.advance(CONNECT, Some(&users)).step, refused(&[], CloseReason::ClientProtocol));
    }

    #[test]
    fn all_three_address_types_are_understood() {
        let cases: [(&[u8], &str); 4] = [
            (&[5, 1, 0, 1, 192, 0, 2, 1, 0, 80], "192.0.2.1:80"),
            (&[5, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 80], "[::1]:80"),
            (CONNECT, "a.example:443"),
            (b"\x05\x01\x00\x03\x09127.0.0.1\x00\x50", "127.0.0.1:80"),
        ];
        for (message, destination) in cases {
            let input = [message, b"payload"].concat();
            let progress = Handshake::Request(None).advance(&input, None);
            assert_eq!(progress.consumed, message.len());
            let Step::Request(request) = progress.step else { panic!("{destination}: no request") };
            assert_eq!(request.destination.to_string(), destination);
            assert_eq!(
                (request.preface.as_slice(), request.body, request.answer),
                (&b""[..], Body::Unlimited, Answer::Socks5)
            );
        }
    }

    #[test]
    fn a_name_that_is_an_address_becomes_one() {
        let Step::Request(request) = request(b"\x05\x01\x00\x03\x03::1\x00\x50") else {
            panic!("no request")
        };
        assert_eq!(request.destination, Destination::Address("[::1]:80".parse().unwrap()));
    }

    #[test]
    fn bad_requests_get_the_reply_that_says_why() {
        fn reply(code: u8, reason: CloseReason) -> Step {
            Step::Refuse { reply: vec![5, code, 0, 1, 0, 0, 0, 0, 0, 0].into(), reason }
        }
        assert_eq!(request(&[4, 1, 0, 1]), refused(&[], CloseReason::ClientProtocol));
        for command in [0, 2, 3, 0xff] {
            assert_eq!(request(&[5, command]), reply(7, CloseReason::ClientUnsupported), "{command}");
        }
        for kind in [0, 2, 5, 0xff] {
            assert_eq!(request(&[5, 1, 0, kind]), reply(8, CloseReason::ClientUnsupported), "{kind}");
        }
        let hosts = [&b""[..], b"a\0b", b"\0", b"a b", b"a/b", "\u{e9}".as_bytes(), b"a@b", b"a:80"];
        for host in hosts {
            let message = [&[5, 1, 0, 3, host.len() as u8], host, &[0, 80]].concat();
            assert_eq!(request(&message), reply(1, CloseReason::ClientProtocol), "{host:?}");
        }
        assert_eq!(request(&[5, 1, 0, 1, 192, 0, 2, 1, 0, 0]), reply(1, CloseReason::ClientProtocol));
    }

    #[test]
    fn the_reserved_octet_does_not_matter() {
        assert!(matches!(request(&[5, 1, 0x77, 1, 192, 0, 2, 1, 0, 80]), Step::Request(_)));
    }

    #[test]
    fn success_tells_the_address_we_dialled_from() {
        let reply = |local: Option<&str>| {
            Answer::Socks5.success(local.map(|text| text.parse().unwrap()), &mut Vec::new())
        };
        assert_eq!(*reply(None), [5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(*reply(Some("192.0.2.1:258")), [5, 0, 0, 1, 192, 0, 2, 1, 1, 2]);
        assert_eq!(
            *reply(Some("[2001:db8::1]:80")),
            [5, 0, 0, 4, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 80]
        );
    }

    #[test]
    fn failures_have_the_codes_of_the_rfc() {
        let codes = [
            (Failure::Refused, 5),
            (Failure::TimedOut, 4),
            (Failure::HostUnreachable, 4),
            (Failure::NetworkUnreachable, 3),
            (Failure::NotAllowed, 2),
            (Failure::NotResolved, 4),
            (Failure::Rejected, 2),
            (Failure::NoTarget, 1),
            (Failure::OutOfResources, 1),
            (Failure::General, 1),
        ];
        for (failure, code) in codes {
            assert_eq!(*Answer::Socks5.failure(failure), [5, code, 0, 1, 0, 0, 0, 0, 0, 0], "{failure:?}");
        }
    }
}
