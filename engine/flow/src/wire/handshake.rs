//! One handshake for every protocol a listener may speak.

use super::mixed::{self, Spoken};
use super::{Progress, http, socks5};
use crate::snapshot::Protocol;
use crate::users::Users;
use crate::verify::Verdict;

/// The server side of a handshake.
#[derive(Debug)]
pub enum Handshake {
    /// SOCKS version 5.
    Socks5(socks5::Handshake),
    /// HTTP proxy.
    Http(http::Handshake),
    /// SOCKS of any version, or that or HTTP; the first byte decides.
    Mixed(mixed::Handshake),
}

impl Handshake {
    /// The handshake of `protocol`; `None` for those that have none in the open.
    pub fn new(protocol: Protocol) -> Option<Handshake> {
        match protocol {
            Protocol::Tcp | Protocol::Redirect | Protocol::Tproxy | Protocol::Shadowsocks => None,
            Protocol::Socks5 => Some(Handshake::Socks5(socks5::Handshake::default())),
            Protocol::Http => Some(Handshake::Http(http::Handshake::default())),
            Protocol::Socks => Some(Handshake::Mixed(mixed::Handshake::Undecided(Spoken::Socks))),
            Protocol::Mixed => Some(Handshake::Mixed(mixed::Handshake::Undecided(Spoken::SocksOrHttp))),
        }
    }

    /// Takes all bytes that the client has sent and that were not consumed yet. `users` are those who may pass;
    /// `None` lets everybody. Not to be called again after [`Step::Request`](super::Step::Request) or
    /// [`Step::Refuse`](super::Step::Refuse).
    pub fn advance(&mut self, input: &[u8], users: Option<&Users>) -> Progress {
        match self {
            Handshake::Socks5(handshake) => handshake.advance(input, users),
            Handshake::Http(handshake) => handshake.advance(input, users),
            Handshake::Mixed(handshake) => handshake.advance(input, users),
        }
    }

    /// What came of asking for the login of [`Step::Verify`](super::Step::Verify).
    pub fn handle_verdict(&mut self, verdict: Verdict) {
        match self {
            Handshake::Socks5(handshake) => handshake.handle_verdict(verdict),
            Handshake::Http(handshake) => handshake.handle_verdict(verdict),
            Handshake::Mixed(handshake) => handshake.handle_verdict(verdict),
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use proptest::prelude::*;
    use proptest::sample::{Index, select, subsequence};

    use super::*;
    use crate::close::CloseReason;
    use crate::wire::{Answer, Body, Step, socks4};

    /// What became of a handshake.
    #[derive(Debug, PartialEq)]
    struct Run {
        replies: Vec<u8>,
        consumed: usize,
        step: Step,
    }

    /// Plays the session: keeps what is not consumed and offers it again with each piece that follows.
    fn drive<'a>(
        protocol: Protocol,
        users: Option<&Users>,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Run {
        let mut handshake = Handshake::new(protocol).unwrap();
        let (mut kept, mut replies, mut consumed) = (Vec::new(), Vec::new(), 0);
        for piece in pieces {
            kept.extend_from_slice(piece);
            loop {
                let progress = handshake.advance(&kept, users);
                assert!(progress.consumed <= kept.len());
                kept.drain(..progress.consumed);
                consumed += progress.consumed;
                match progress.step {
                    Step::Incomplete => break,
                    Step::Reply(reply) => {
                        assert!(progress.consumed > 0, "a reply to nothing could go on for ever");
                        replies.extend_from_slice(&reply);
                    }
                    Step::Verify(_) => panic!("nobody here is known by a hash"),
                    Step::Request(_) | Step::Refuse { .. } => {
                        return Run { replies, consumed, step: progress.step };
                    }
                }
            }
            assert!(kept.len() < http::MAX_HEAD_BYTES, "{protocol:?} keeps {} bytes", kept.len());
            let socks_bytes = socks4::MAX_MESSAGE_BYTES.max(socks5::MAX_MESSAGE_BYTES);
            if matches!(protocol, Protocol::Socks5 | Protocol::Socks) {
                assert!(kept.len() < socks_bytes, "{protocol:?} keeps {} bytes", kept.len());
            }
        }
        Run { replies, consumed, step: Step::Incomplete }
    }

    fn pieces<'a>(input: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
        cuts.extend([0, input.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect()
    }

    fn cuts() -> impl Strategy<Value = Vec<Index>> {
        prop::collection::vec(any::<Index>(), 0..8)
    }

    fn ann() -> Users {
        let mut users = Users::default();
        users.insert(b"ann", b"secret");
        users
    }

    fn socks5_connect(destination: &[u8]) -> Vec<u8> {
        [&[5, 1, 0], destination, &[0x1f, 0x90]].concat()
    }

    /// A whole handshake that leads to a request, of a client that wants port 8080.
    fn valid() -> impl Strategy<Value = (Protocol, Option<Users>, Vec<u8>)> {
        let socks5 = (any::<bool>(), socks5_destination()).prop_map(|(login, destination)| {
            let connect = socks5_connect(&destination);
            match login {
                true => (Some(ann()), [b"\x05\x02\x00\x02\x01\x03ann\x06secret", &connect[..]].concat()),
                false => (None, [&[5, 1, 0], &connect[..]].concat()),
            }
        });
        let socks5 = (select(&[Protocol::Socks5, Protocol::Socks, Protocol::Mixed]), socks5);
        let socks4 = (select(&[Protocol::Socks, Protocol::Mixed]), socks4_request());
        let http = (any::<bool>(), any::<bool>(), fields()).prop_map(|(login, tunnel, fields)| {
            let line: &[u8] = match tunnel {
                true => b"CONNECT a.example:8080 HTTP/1.1\r\n",
                false => b"GET http://a.example:8080/p?q#f HTTP/1.1\r\n",
            };
            let basic = base64::prelude::BASE64_STANDARD.encode("ann:secret");
            let login = login.then(|| (ann(), format!("Proxy-Authorization: Basic {basic}\r\n")));
            let (users, credentials) =
                login.map_or((None, String::new()), |(users, line)| (Some(users), line));
            (users, [line, credentials.as_bytes(), &fields, b"\r\n"].concat())
        });
        let http = (select(&[Protocol::Http, Protocol::Mixed]), http);
        prop_oneof![
            socks5.prop_map(|(protocol, (users, bytes))| (protocol, users, bytes)),
            http.prop_map(|(protocol, (users, bytes))| (protocol, users, bytes)),
            socks4.prop_map(|(protocol, bytes)| (protocol, None, bytes)),
        ]
    }

    fn socks4_request() -> impl Strategy<Value = Vec<u8>> {
        let user = prop::collection::vec(1..=0xffu8, 0..=socks4::MAX_USER_BYTES);
        let destination = prop_oneof![
            (1..=0xffu8, any::<[u8; 3]>()).prop_map(|(first, rest)| ([&[first][..], &rest].concat(), vec![])),
            (1..=0xffu8, "[a-z0-9.-]{1,255}")
                .prop_map(|(last, name)| (vec![0, 0, 0, last], [name.as_bytes(), b"\0"].concat())),
        ];
        (user, destination).prop_map(|(user, (address, name))| {
            [&[4, 1, 0x1f, 0x90][..], &address, &user, b"\0", &name].concat()
        })
    }

    fn socks5_destination() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(|address| [&[1], &address[..]].concat()),
            any::<[u8; 16]>().prop_map(|address| [&[4], &address[..]].concat()),
            "[a-z0-9.-]{1,255}".prop_map(|name| [&[3, name.len() as u8], name.as_bytes()].concat()),
        ]
    }

    /// Header lines that no rule of ours refuses, hop-by-hop ones among them, with values of any byte that may be.
    fn fields() -> impl Strategy<Value = Vec<u8>> {
        const SPECIAL: &[&str] = &[
            "Connection: keep-alive, X-Named\r\n",
            "connection: X-OTHER\r\n",
            "X-Named: 1\r\n",
            "x-other: 2\r\n",
            "Proxy-Connection: keep-alive\r\n",
            "Proxy-Authenticate: Basic\r\n",
            "Keep-Alive: timeout=5\r\n",
            "Host: elsewhere.example\r\n",
            "TE: trailers, gzip\r\n",
            "Upgrade: websocket, h2c\r\n",
            "Connection: upgrade\r\n",
            "HTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        ];
        let value = prop::collection::vec(prop_oneof![Just(b'\t'), b' '..=0x7e, 0x80..=0xffu8], 0..20);
        let other = ("X-[A-Za-z0-9_]{1,8}", value)
            .prop_map(|(name, value)| [name.as_bytes(), b":", &value, b"\r\n"].concat());
        let others = prop::collection::vec(other, 0..5);
        (subsequence(SPECIAL, 0..=SPECIAL.len()).prop_shuffle(), others)
            .prop_map(|(special, others)| [special.concat().into_bytes(), others.concat()].concat())
    }

    /// Bytes that come closer to a handshake than noise does.
    fn nearly() -> impl Strategy<Value = Vec<u8>> {
        const PARTS: &[&[u8]] = &[
            b"GET ",
            b"CONNECT ",
            b"OPTIONS ",
            b"PRI * ",
            b"http://",
            b"https://",
            b"a.example",
            b"[::1]",
            b":443",
            b"@",
            b"/",
            b"?",
            b"#",
            b" HTTP/1.1\r\n",
            b" HTTP/1.0\n",
            b" HTTP/2.0\r\n",
            b"Host: ",
            b"Upgrade: ",
            b"Content-Length: ",
            b"Transfer-Encoding: ",
            b"Connection: ",
            b"TE: ",
            b"chunked",
            b"5",
            b",",
            b" ",
            b"\r\n",
            b"\r\n\r\n",
            b"\n",
            b"\r",
            b"\0",
            b"\xff",
            b"\x05\x01\x00",
            b"\x05\x01\x02",
            b"\x05\x01\x00\x01",
            b"\x05\x01\x00\x03\x01a",
            b"\x01\x03ann\x06secret",
            b"\x04",
            b"\x04\x01\x1f\x90",
            b"\0\0\0\x01",
        ];
        prop::collection::vec(select(PARTS), 0..24).prop_map(|parts| parts.concat())
    }

    fn protocols() -> impl Strategy<Value = Protocol> {
        select(&[Protocol::Socks5, Protocol::Socks, Protocol::Http, Protocol::Mixed])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn any_split_of_a_handshake_leads_to_the_same_request(
            (protocol, users, handshake) in valid(),
            payload in prop::collection::vec(any::<u8>(), 0..20),
            cuts in cuts(),
        ) {
            let input = [&handshake[..], &payload].concat();
            let whole = drive(protocol, users.as_ref(), [&input[..]]);
            prop_assert_eq!(whole.consumed, handshake.len());
            let Step::Request(request) = &whole.step else { panic!("no request: {whole:?}") };
            prop_assert_eq!(request.destination.port(), 8080);
            prop_assert_eq!(&drive(protocol, users.as_ref(), pieces(&input, &cuts)), &whole);
            prop_assert_eq!(&drive(protocol, users.as_ref(), input.chunks(1)), &whole);
        }

        #[test]
        fn no_prefix_of_a_handshake_is_a_request((protocol, users, handshake) in valid(), end in any::<Index>()) {
            let prefix = &handshake[..end.index(handshake.len())];
            prop_assert_eq!(drive(protocol, users.as_ref(), [prefix]).step, Step::Incomplete);
        }

        #[test]
        fn a_handshake_without_the_password_never_leads_to_a_request((protocol, users, handshake) in valid()) {
            let mut others = Users::default();
            others.insert(b"ann", b"another");
            let run = drive(protocol, Some(&others), [&handshake[..]]);
            let Step::Refuse { reason, .. } = &run.step else { panic!("not refused: {run:?}") };
            let greeted_without = users.is_none() && !run.replies.is_empty();
            prop_assert_eq!(*reason, CloseReason::ClientAuthentication);
            prop_assert!(!greeted_without, "a client without a password gets no further than its greeting");
        }

        #[test]
        fn damaged_handshakes_end_alike_in_any_split(
            protocol in protocols(),
            login in any::<bool>(),
            (_, _, mut input) in valid(),
            damage in prop::collection::vec((any::<Index>(), any::<u8>()), 1..4),
            cuts in cuts(),
        ) {
            for (at, byte) in damage {
                let at = at.index(input.len());
                input[at] = byte;
            }
            let users = login.then(ann);
            let whole = drive(protocol, users.as_ref(), [&input[..]]);
            prop_assert_eq!(&drive(protocol, users.as_ref(), pieces(&input, &cuts)), &whole);
            prop_assert_eq!(&drive(protocol, users.as_ref(), input.chunks(1)), &whole);
        }

        #[test]
        fn near_misses_end_alike_in_any_split(
            protocol in protocols(),
            login in any::<bool>(),
            input in nearly(),
            cuts in cuts(),
        ) {
            let users = login.then(ann);
            let whole = drive(protocol, users.as_ref(), [&input[..]]);
            prop_assert_eq!(&drive(protocol, users.as_ref(), pieces(&input, &cuts)), &whole);
        }

        #[test]
        fn noise_never_panics_nor_grows(
            protocol in protocols(),
            login in any::<bool>(),
            start in nearly(),
            noise in prop::collection::vec(any::<u8>(), 0..800),
            filler in any::<u8>(),
        ) {
            let users = login.then(ann);
            drive(protocol, users.as_ref(), [&noise[..]]);
            drive(protocol, users.as_ref(), [&start[..], &noise]);
            let long = [&start[..], &vec![filler; http::MAX_HEAD_BYTES]].concat();
            let run = drive(protocol, users.as_ref(), long.chunks(1000));
            prop_assert_ne!(run.step, Step::Incomplete);
        }

        #[test]
        fn the_rewritten_head_is_sound_and_says_nothing_of_our_hop(
            fields in fields(),
            framing in select(&["", "Content-Length: 7\r\n", "Transfer-Encoding: chunked\r\n"]),
        ) {
            let line = b"POST http://a.example:8080/p?q#f HTTP/1.1\r\n";
            let input = [line, framing.as_bytes(), &fields, b"\r\n"].concat();
            let run = drive(Protocol::Http, None, [&input[..]]);
            let Step::Request(request) = &run.step else { panic!("no request: {run:?}") };
            prop_assert_eq!(request.answer, Answer::HttpPlain);
            check_rewritten(&request.preface, request.body, framing);
            for (option, field) in [("keep-alive, X-Named\r\n", "\nX-Named: 1"), ("X-OTHER\r\n", "\nx-other: 2")] {
                let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
                let passes = has(&input, field) && !has(&input, option);
                prop_assert_eq!(has(&request.preface, field), passes, "{}", field);
            }
        }
    }

    fn check_rewritten(head: &[u8], body: Body, framing: &str) {
        let mut headers = [httparse::EMPTY_HEADER; http::MAX_HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        assert_eq!(parsed.parse(head), Ok(httparse::Status::Complete(head.len())));
        assert_eq!((parsed.method, parsed.path, parsed.version), (Some("POST"), Some("/p?q"), Some(1)));
        let values = |name: &str| -> Vec<&[u8]> {
            let named = parsed.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
            named.map(|header| header.value).collect()
        };
        assert_eq!(values("host"), [b"a.example:8080"]);
        let gone = ["keep-alive", "proxy-connection", "proxy-authenticate", "http2-settings"];
        for name in gone {
            assert!(values(name).is_empty(), "{name}");
        }
        let upgrades = !values("upgrade").is_empty();
        let trailers = !values("te").is_empty();
        let connection = match (upgrades, trailers) {
            (false, false) => "close",
            (false, true) => "close, TE",
            (true, false) => "Upgrade",
            (true, true) => "Upgrade, TE",
        };
        assert_eq!(values("connection"), [connection.as_bytes()]);
        assert!(values("upgrade").iter().all(|value| value == b"websocket"));
        assert!(values("te").iter().all(|value| value == b"trailers"));
        let length = values("content-length");
        let coding = values("transfer-encoding");
        match framing {
            "" => assert!(length.is_empty() && coding.is_empty() && (upgrades || body == Body::Limited(0))),
            "Content-Length: 7\r\n" => {
                assert!(length == [b"7"] && coding.is_empty() && (upgrades || body == Body::Limited(7)));
            }
            _ => assert!(length.is_empty() && coding == [b"chunked"] && body == Body::Unlimited),
        }
    }

    #[test]
    fn tcp_has_no_handshake() {
        assert!(Handshake::new(Protocol::Tcp).is_none());
    }

    #[test]
    fn socks5_succeeds_byte_by_byte_and_in_one_segment_with_payload() {
        let input = [&[5, 1, 0], &socks5_connect(b"\x03\x09a.example")[..], b"payload"].concat();
        for protocol in [Protocol::Socks5, Protocol::Mixed] {
            for piece_bytes in [1, 2, input.len()] {
                let run = drive(protocol, None, input.chunks(piece_bytes));
                assert_eq!((&run.replies[..], run.consumed), (&[5, 0][..], input.len() - 7));
                let Step::Request(request) = run.step else { panic!("no request") };
                assert_eq!(request.destination.to_string(), "a.example:8080");
            }
        }
    }

    #[test]
    fn connect_in_the_place_of_a_password_is_no_request() {
        for greeting in [&[5, 1, 2][..], &[5, 2, 0, 2], &[5, 1, 0]] {
            let input = [greeting, &socks5_connect(b"\x01\xc0\x00\x02\x01")].concat();
            for protocol in [Protocol::Socks5, Protocol::Mixed] {
                let run = drive(protocol, Some(&ann()), [&input[..]]);
                assert!(matches!(run.step, Step::Refuse { .. }), "{run:?}");
            }
        }
    }
}
