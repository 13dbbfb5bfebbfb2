//! What a client says, what it must be told, and what its upstream must get: known before the session starts.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use ringweir_flow::close::{CloseReason, ConnectError};
use ringweir_flow::snapshot::Protocol;

use crate::peer::{MAX_PAYLOAD_BYTES, pattern};
use crate::world::{self, World};

/// The names that clients ask for.
const NAME: &str = "a.example";

pub(crate) struct Script {
    /// The handshake and the payload behind it.
    pub(crate) bytes: Vec<u8>,
    pub(crate) handshake_bytes: usize,
    /// (offset, bytes read) for a client that awaits each reply; none for one that sends ahead.
    pub(crate) gates: Vec<(usize, usize)>,
    /// What the client is told before its request is answered.
    pub(crate) talk: Vec<u8>,
    pub(crate) verdict: Verdict,
    pub(crate) destination: Option<Wish>,
}

/// Where the client wants to go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wish {
    Address(SocketAddr),
    Name(u16),
}

#[derive(Debug)]
pub(crate) enum Verdict {
    /// A request. `limit` bounds its payload.
    Request { answer: Answer, limit: usize },
    /// To be refused, with this as the last word.
    Refusal { reason: CloseReason, reply: Reply },
}

/// How the client is answered.
#[derive(Debug)]
pub(crate) enum Answer {
    Nothing,
    Socks4,
    Socks5,
    HttpConnect,
    HttpPlain(Head),
}

#[derive(Debug)]
pub(crate) enum Reply {
    Bytes(&'static [u8]),
    Status(u16),
}

/// The head that the upstream of a plain request must get.
#[derive(Debug)]
pub(crate) struct Head {
    first_line: String,
    /// All fields, in any order.
    fields: Vec<String>,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Error(ConnectError),
    NoTarget,
    Rejected,
    RuleRejected,
}

impl Script {
    pub(crate) fn new(world: &World, rng: &mut fastrand::Rng) -> Script {
        let mut script = match world.protocol {
            Protocol::Redirect | Protocol::Tproxy => unreachable!("nothing is diverted in this world"),
            Protocol::Shadowsocks => unreachable!("nothing is sealed in this world"),
            Protocol::Tcp => Script::of(Vec::new(), request(Answer::Nothing, usize::MAX)),
            Protocol::Socks5 => socks5(world, rng),
            Protocol::Http => http(world, rng),
            Protocol::Socks | Protocol::Mixed if rng.u8(..6) == 0 => socks4(world, rng),
            Protocol::Socks => socks5(world, rng),
            Protocol::Mixed if rng.bool() => socks5(world, rng),
            Protocol::Mixed => http(world, rng),
        };
        if rng.bool() {
            script.gates.clear();
        }
        script.handshake_bytes = script.bytes.len();
        let len = world::payload_bytes(rng, world.grain);
        script.bytes.extend_from_slice(pattern(rng.usize(..MAX_PAYLOAD_BYTES), len));
        script
    }

    fn of(bytes: Vec<u8>, verdict: Verdict) -> Script {
        let (talk, gates) = (Vec::new(), Vec::new());
        Script { bytes, handshake_bytes: 0, gates, talk, verdict, destination: None }
    }

    /// What the upstream may get of the payload.
    pub(crate) fn payload(&self) -> &[u8] {
        let payload = &self.bytes[self.handshake_bytes..];
        match &self.verdict {
            Verdict::Request { limit, .. } => &payload[..payload.len().min(*limit)],
            Verdict::Refusal { .. } => &[],
        }
    }

    /// Whether `said`, all that was said to the client, tells it of success.
    pub(crate) fn tells_success(&self, said: &[u8], local: Option<SocketAddr>) -> bool {
        let Verdict::Request { answer, .. } = &self.verdict else { return false };
        let Some(last) = said.strip_prefix(self.talk.as_slice()) else { return false };
        match answer {
            Answer::Nothing | Answer::HttpPlain(_) => last.is_empty(),
            Answer::HttpConnect => status(last).is_some_and(|(code, content)| code == 200 && content == b""),
            Answer::Socks4 => last == socks4_reply(0x5a, local),
            Answer::Socks5 => last == socks5_reply(0, local),
        }
    }

    /// Whether `said` tells the client of this failure.
    pub(crate) fn tells_failure(&self, said: &[u8], why: Why) -> bool {
        let Verdict::Request { answer, .. } = &self.verdict else { return false };
        let Some(last) = said.strip_prefix(self.talk.as_slice()) else { return false };
        match answer {
            Answer::Nothing => last.is_empty(),
            Answer::Socks4 => last == socks4_reply(0x5b, None),
            Answer::Socks5 => last == socks5_reply(why.socks5_code(), None),
            Answer::HttpConnect | Answer::HttpPlain(_) => {
                status(last).is_some_and(|(code, content)| code == why.http_status() && !content.is_empty())
            }
        }
    }

    /// Whether `said` ends in the refusal that this script earns.
    pub(crate) fn tells_refusal(&self, said: &[u8], because: CloseReason) -> bool {
        let Verdict::Refusal { reason, reply } = &self.verdict else { return false };
        let Some(last) = said.strip_prefix(self.talk.as_slice()) else { return false };
        because == *reason
            && match reply {
                Reply::Bytes(bytes) => last == *bytes,
                Reply::Status(code) => status(last).is_some_and(|(told, _)| told == *code),
            }
    }

    /// Whether `said` ends in what a client is told whose password nobody could look at.
    pub(crate) fn tells_overload(&self, said: &[u8]) -> bool {
        said == [5, 2, 1, 1] || status(said).is_some_and(|(told, _)| told == 503)
    }

    /// Whether the session should not have waited for more.
    pub(crate) fn is_complete(&self, fed: usize) -> bool {
        fed >= self.handshake_bytes
    }
}

impl Why {
    pub(crate) fn reason(self) -> CloseReason {
        match self {
            Why::NoTarget => CloseReason::NoTarget,
            Why::Rejected => CloseReason::Rejected,
            Why::RuleRejected => CloseReason::RuleRejected,
            Why::Error(ConnectError::TimedOut) => CloseReason::ConnectTimeout,
            Why::Error(ConnectError::NotAllowed) => CloseReason::DestinationNotAllowed,
            Why::Error(ConnectError::NotResolved) => CloseReason::ResolveFailed,
            Why::Error(ConnectError::OutOfResources) => CloseReason::OutOfResources,
            Why::Error(ConnectError::Full) => CloseReason::UpstreamFull,
            Why::Error(
                ConnectError::Refused
                | ConnectError::NetworkUnreachable
                | ConnectError::HostUnreachable
                | ConnectError::Reset
                | ConnectError::OwnEnd
                | ConnectError::Unanswered
                | ConnectError::ProxyAuthentication
                | ConnectError::ProxyRefused
                | ConnectError::ProxyBroken
                | ConnectError::Other(_),
            ) => CloseReason::ConnectFailed,
        }
    }

    /// RFC 1928, section 6.
    fn socks5_code(self) -> u8 {
        match self {
            Why::Rejected | Why::RuleRejected | Why::Error(ConnectError::NotAllowed) => 2,
            Why::Error(ConnectError::NetworkUnreachable) => 3,
            Why::Error(
                ConnectError::HostUnreachable | ConnectError::TimedOut | ConnectError::NotResolved,
            ) => 4,
            Why::Error(ConnectError::Refused) => 5,
            Why::NoTarget
            | Why::Error(
                ConnectError::OutOfResources
                | ConnectError::Full
                | ConnectError::Reset
                | ConnectError::OwnEnd
                | ConnectError::Unanswered
                | ConnectError::ProxyAuthentication
                | ConnectError::ProxyRefused
                | ConnectError::ProxyBroken
                | ConnectError::Other(_),
            ) => 1,
        }
    }

    fn http_status(self) -> u16 {
        match self {
            Why::Rejected | Why::RuleRejected | Why::Error(ConnectError::NotAllowed) => 403,
            Why::NoTarget | Why::Error(ConnectError::OutOfResources | ConnectError::Full) => 503,
            Why::Error(ConnectError::TimedOut) => 504,
            Why::Error(
                ConnectError::Refused
                | ConnectError::NetworkUnreachable
                | ConnectError::HostUnreachable
                | ConnectError::NotResolved
                | ConnectError::Reset
                | ConnectError::OwnEnd
                | ConnectError::Unanswered
                | ConnectError::ProxyAuthentication
                | ConnectError::ProxyRefused
                | ConnectError::ProxyBroken
                | ConnectError::Other(_),
            ) => 502,
        }
    }
}

impl Head {
    /// What is wrong with a head that an upstream got.
    pub(crate) fn check(&self, head: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(head);
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let first = lines.next().unwrap_or_default();
        let mut fields: Vec<&str> = lines.collect();
        let mut expected: Vec<&str> = self.fields.iter().map(String::as_str).collect();
        fields.sort_unstable();
        expected.sort_unstable();
        if first == self.first_line && fields == expected {
            return Ok(());
        }
        Err(format!("the upstream got the head {text:?}, not {:?} with {expected:?}", self.first_line))
    }
}

fn request(answer: Answer, limit: usize) -> Verdict {
    Verdict::Request { answer, limit }
}

fn refusal(reason: CloseReason, reply: Reply) -> Verdict {
    Verdict::Refusal { reason, reply }
}

/// CONNECT by SOCKS 4 where the client wants an IPv4 address, else by 4a.
fn socks4(world: &World, rng: &mut fastrand::Rng) -> Script {
    const UNKNOWN: [u8; 8] = [0, 0x5d, 0, 0, 0, 0, 0, 0];
    const FAILED: [u8; 8] = [0, 0x5b, 0, 0, 0, 0, 0, 0];
    let wish = match wish(rng) {
        Wish::Address(address) if address.is_ipv6() => Wish::Name(address.port()),
        wish @ (Wish::Address(_) | Wish::Name(_)) => wish,
    };
    let (port, ip, name) = match wish {
        Wish::Address(address) => (address.port(), address.ip(), String::new()),
        Wish::Name(port) => (port, IpAddr::from([0, 0, 0, 7]), format!("{NAME}\0")),
    };
    let IpAddr::V4(ip) = ip else { unreachable!("sorted out above") };
    let command = if rng.u8(..8) == 0 { 2 } else { 1 };
    let head = [&[4, command][..], &port.to_be_bytes(), &ip.octets()].concat();
    let bytes = [&head, &b"somebody\0"[..], name.as_bytes()].concat();
    if world.has_users {
        return Script::of(bytes, refusal(CloseReason::ClientAuthentication, Reply::Bytes(&UNKNOWN)));
    }
    if command != 1 {
        return Script::of(bytes, refusal(CloseReason::ClientUnsupported, Reply::Bytes(&FAILED)));
    }
    let mut script = Script::of(bytes, request(Answer::Socks4, usize::MAX));
    script.destination = Some(wish);
    script
}

fn socks4_reply(code: u8, bound: Option<SocketAddr>) -> Vec<u8> {
    let port = bound.map_or(0, |bound| bound.port());
    let ip = match bound {
        Some(SocketAddr::V4(address)) => address.ip().octets(),
        Some(SocketAddr::V6(_)) | None => [0; 4],
    };
    [&[0, code][..], &port.to_be_bytes(), &ip].concat()
}

fn wish(rng: &mut fastrand::Rng) -> Wish {
    let port = rng.u16(1..);
    if rng.bool() { Wish::Name(port) } else { Wish::Address(SocketAddr::new(world::address(rng), port)) }
}

/// A reply as RFC 1928, section 6 has it.
fn socks5_reply(code: u8, bound: Option<SocketAddr>) -> Vec<u8> {
    let bound = bound.unwrap_or("0.0.0.0:0".parse().unwrap());
    let mut reply = vec![5, code, 0];
    reply.extend(socks5_address(bound));
    reply
}

fn socks5_address(address: SocketAddr) -> Vec<u8> {
    let mut bytes = match address.ip() {
        IpAddr::V4(v4) => [&[1][..], &v4.octets()].concat(),
        IpAddr::V6(v6) => [&[4][..], &v6.octets()].concat(),
    };
    bytes.extend(address.port().to_be_bytes());
    bytes
}

/// The code and content of a response, if its content is as long as it says.
fn status(response: &[u8]) -> Option<(u16, &[u8])> {
    let text = std::str::from_utf8(response).ok()?;
    let (head, content) = text.split_once("\r\n\r\n")?;
    let code = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length: usize = length.map_or(Some(0), |text| text.parse().ok())?;
    (length == content.len()).then_some((code, content.as_bytes()))
}

fn socks5(world: &World, rng: &mut fastrand::Rng) -> Script {
    use CloseReason::{ClientAuthentication, ClientProtocol, ClientUnsupported};
    const WRONG: [u8; 10] = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    const GENERAL: [u8; 10] = [5, 1, 0, 1, 0, 0, 0, 0, 0, 0];
    const COMMAND: [u8; 10] = [5, 7, 0, 1, 0, 0, 0, 0, 0, 0];
    const ADDRESS: [u8; 10] = [5, 8, 0, 1, 0, 0, 0, 0, 0, 0];
    let misstep = if rng.u8(..4) == 0 { rng.u8(1..8) } else { 0 };
    if misstep == 1 {
        return Script::of(vec![9], refusal(ClientProtocol, Reply::Bytes(&[])));
    }
    if misstep == 2 {
        return Script::of(vec![5, 2, 1, 9], refusal(ClientAuthentication, Reply::Bytes(&[5, 0xff])));
    }
    let mut script = Script::of(vec![5, 3, 0, 1, 2], request(Answer::Socks5, usize::MAX));
    script.talk = vec![5, if world.has_users { 2 } else { 0 }];
    script.gates.push((script.bytes.len(), script.talk.len()));
    if world.has_users {
        if misstep == 3 {
            // A request without the authentication before it.
            script.bytes.extend(WRONG);
            script.verdict = refusal(ClientProtocol, Reply::Bytes(&[]));
            return script;
        }
        let word: &[u8] = if misstep == 4 { b"Secret" } else { b"secret" };
        script.bytes.extend([&b"\x01\x03ann\x06"[..], word].concat());
        if misstep == 4 {
            script.verdict = refusal(ClientAuthentication, Reply::Bytes(&[1, 1]));
            return script;
        }
        script.talk.extend([1, 0]);
        script.gates.push((script.bytes.len(), script.talk.len()));
    }
    let (message, verdict): (Vec<u8>, _) = match misstep {
        5 => (vec![5, 2], refusal(ClientUnsupported, Reply::Bytes(&COMMAND))),
        6 => (vec![5, 1, 0, 7], refusal(ClientUnsupported, Reply::Bytes(&ADDRESS))),
        7 => (b"\x05\x01\x00\x03\x02a\0\x00\x50".to_vec(), refusal(ClientProtocol, Reply::Bytes(&GENERAL))),
        _ => {
            let wish = wish(rng);
            script.destination = Some(wish);
            let address = match wish {
                Wish::Address(address) => socks5_address(address),
                Wish::Name(port) => [&[3, NAME.len() as u8], NAME.as_bytes(), &port.to_be_bytes()].concat(),
            };
            ([&[5, 1, 0][..], &address].concat(), request(Answer::Socks5, usize::MAX))
        }
    };
    script.bytes.extend(message);
    script.gates.push((script.bytes.len(), script.talk.len() + 10));
    script.verdict = verdict;
    script
}

fn http(world: &World, rng: &mut fastrand::Rng) -> Script {
    use CloseReason::{ClientAuthentication, ClientProtocol, ClientUnsupported};
    let refused = |text: &str, reason, code| Script::of(text.into(), refusal(reason, Reply::Status(code)));
    let misstep = if rng.u8(..4) == 0 { rng.u8(1..5) } else { 0 };
    if misstep == 1 {
        // Who may not pass is told so before anything else.
        let (reason, code) =
            if world.has_users { (ClientAuthentication, 407) } else { (ClientProtocol, 400) };
        return refused("GET / HTTP/1.1\r\nHost: a\r\n\r\n", reason, code);
    }
    if misstep == 2 {
        return refused("GET http://a/ HTTP/7.1\r\n\r\n", ClientUnsupported, 505);
    }
    if misstep == 3 {
        return refused("CONNECT a b c\r\n\r\n", ClientProtocol, 400);
    }
    if misstep == 4 && world.has_users {
        return refused("CONNECT a:1 HTTP/1.1\r\n\r\n", ClientAuthentication, 407);
    }
    let wish = wish(rng);
    let authority = match wish {
        Wish::Address(address) => address.to_string(),
        Wish::Name(port) => format!("{NAME}:{port}"),
    };
    // "ann:secret", as RFC 7617 writes it.
    let credentials = if world.has_users { "Proxy-Authorization: Basic YW5uOnNlY3JldA==\r\n" } else { "" };
    let mut script = if rng.bool() {
        let text = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{credentials}\r\n");
        Script::of(text.into(), request(Answer::HttpConnect, usize::MAX))
    } else {
        plain(&authority, credentials, world.grain * 8, rng)
    };
    script.destination = Some(wish);
    script
}

fn plain(authority: &str, credentials: &str, most: usize, rng: &mut fastrand::Rng) -> Script {
    let mut text =
        format!("POST http://{authority}/p?q=1 HTTP/1.1\r\nHost: wrong\r\nX-Kept: 1\r\n{credentials}");
    let mut fields = vec![format!("Host: {authority}"), "X-Kept: 1".to_owned()];
    let (limit, connection) = match rng.u8(..5) {
        0 => (0, "close"),
        1 | 2 => {
            let length = rng.usize(..most);
            let _ = write!(text, "Content-Length: {length}\r\n");
            fields.push(format!("Content-Length: {length}"));
            (length, "close")
        }
        3 => {
            text.push_str("Transfer-Encoding: chunked\r\n");
            fields.push("Transfer-Encoding: chunked".to_owned());
            (usize::MAX, "close")
        }
        _ => {
            text.push_str("Upgrade: websocket\r\nConnection: upgrade\r\n");
            fields.push("Upgrade: websocket".to_owned());
            (usize::MAX, "Upgrade")
        }
    };
    fields.push(format!("Connection: {connection}"));
    text.push_str("Proxy-Connection: keep-alive\r\nKeep-Alive: 5\r\n\r\n");
    let head = Head { first_line: "POST /p?q=1 HTTP/1.1".to_owned(), fields };
    Script::of(text.into(), request(Answer::HttpPlain(head), limit))
}
