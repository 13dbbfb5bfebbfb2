//! What is accepted, what the upstream gets, and what is refused with which answer.

use super::*;
use crate::close::CloseReason;
use crate::wire::{Failure, Step};

fn advance(input: &[u8], users: Option<&Users>) -> Progress {
    Handshake::default().advance(input, users)
}

fn request(input: &str) -> Request {
    let progress = advance(input.as_bytes(), None);
    let Step::Request(request) = progress.step else { panic!("no request: {input:?}: {progress:?}") };
    request
}

/// What the upstream gets for `GET http://a.example/ HTTP/1.1` with these header lines, without the first two
/// lines and the closing one.
fn forwarded(fields: &str) -> String {
    let request = request(&format!("GET http://a.example/ HTTP/1.1\r\n{fields}\r\n"));
    let head = String::from_utf8(request.preface).unwrap();
    let fields = head.strip_prefix("GET / HTTP/1.1\r\nHost: a.example\r\n").unwrap();
    fields.strip_suffix("Connection: close\r\n\r\n").unwrap().to_owned()
}

fn first_line(request: &Request) -> &str {
    std::str::from_utf8(&request.preface).unwrap().split("\r\n").next().unwrap()
}

/// Status and reason of a refusal; its text has the length that it says, and it ends the connection.
fn refusal(input: &[u8], users: Option<&Users>) -> (u16, CloseReason, String) {
    let progress = advance(input, users);
    let text = String::from_utf8_lossy(input).into_owned();
    let Step::Refuse { reply, reason } = progress.step else { panic!("not refused: {text:?}: {progress:?}") };
    let (status, fields, body) = read_response(&reply);
    assert!(fields.contains("Connection: close\r\n"), "{fields}");
    (status, reason, fields + &body)
}

fn read_response(reply: &[u8]) -> (u16, String, String) {
    let text = std::str::from_utf8(reply).unwrap();
    let (fields, body) = text.split_once("\r\n\r\n").unwrap();
    let mut headers = [httparse::EMPTY_HEADER; 8];
    let mut parsed = httparse::Response::new(&mut headers);
    assert!(parsed.parse(reply).unwrap().is_complete());
    let length = parsed.headers.iter().find(|header| header.name == "Content-Length").unwrap();
    assert_eq!(length.value, body.len().to_string().as_bytes());
    (parsed.code.unwrap(), format!("{fields}\r\n"), body.to_owned())
}

fn status(input: &str) -> u16 {
    refusal(input.as_bytes(), None).0
}

fn get(fields: &str) -> String {
    format!("GET http://a.example/ HTTP/1.1\r\n{fields}\r\n\r\n")
}

#[test]
fn connect_opens_a_tunnel_for_everything_that_follows() {
    let head = "CONNECT a.example:443 HTTP/1.1\r\nUser-Agent: x\r\n\r\n";
    let progress = advance(format!("{head}payload").as_bytes(), None);
    assert_eq!(progress.consumed, head.len());
    let Step::Request(request) = progress.step else { panic!("no request") };
    assert_eq!(request.destination.to_string(), "a.example:443");
    assert_eq!(
        (request.preface.len(), request.body, request.answer),
        (0, Body::Unlimited, Answer::HttpConnect)
    );
    assert_eq!(
        &*request.answer.success(None, &mut Vec::new()),
        b"HTTP/1.1 200 Connection established\r\n\r\n"
    );
}

#[test]
fn connect_takes_names_and_both_kinds_of_addresses() {
    for authority in ["a.example:443", "192.0.2.1:80", "[2001:db8::1]:65535"] {
        for version in ["1.0", "1.1"] {
            let request = request(&format!("CONNECT {authority} HTTP/{version}\r\n\r\n"));
            assert_eq!(request.destination.to_string(), authority);
        }
    }
}

#[test]
fn connect_without_a_sound_authority_is_refused() {
    let bad = [
        "a.example",
        "a.example:",
        ":443",
        "a.example:0",
        "a.example:65536",
        "a.example:+80",
        "a.example:x",
        "a.example:443/",
        "http://a.example:443",
        "http://a.example/",
        "/",
        "*",
        "ann@a.example:443",
        "::1:443",
        "[::1]",
        "[::1]443",
        "[::1:443",
        "[a.example]:443",
        "[192.0.2.1]:443",
        "a]:443",
        "a\\b:443",
    ];
    for authority in bad {
        assert_eq!(status(&format!("CONNECT {authority} HTTP/1.1\r\n\r\n")), 400, "{authority}");
    }
}

#[test]
fn connect_with_content_is_refused() {
    assert_eq!(status("CONNECT a.example:443 HTTP/1.1\r\nContent-Length: 1\r\n\r\n"), 400);
    assert_eq!(status("CONNECT a.example:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
    request("CONNECT a.example:443 HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
}

#[test]
fn whole_uris_become_paths() {
    let cases = [
        ("GET", "http://a.example", "GET / HTTP/1.1", "a.example:80"),
        ("GET", "http://a.example/", "GET / HTTP/1.1", "a.example:80"),
        ("GET", "HTTP://a.example:8080/p/q?r=s", "GET /p/q?r=s HTTP/1.1", "a.example:8080"),
        ("GET", "http://a.example?r=/s", "GET /?r=/s HTTP/1.1", "a.example:80"),
        ("GET", "http://a.example/p?r#/f?g", "GET /p?r HTTP/1.1", "a.example:80"),
        ("GET", "http://a.example#f", "GET / HTTP/1.1", "a.example:80"),
        (
            "GET",
            "http://a.example/?u=http://b.example/@",
            "GET /?u=http://b.example/@ HTTP/1.1",
            "a.example:80",
        ),
        ("GET", "http://[::1]:81//p", "GET //p HTTP/1.1", "[::1]:81"),
        ("POST", "http://192.0.2.1:/p", "POST /p HTTP/1.1", "192.0.2.1:80"),
        ("OPTIONS", "http://a.example", "OPTIONS * HTTP/1.1", "a.example:80"),
        ("OPTIONS", "http://a.example/", "OPTIONS / HTTP/1.1", "a.example:80"),
        ("OPTIONS", "http://a.example?r", "OPTIONS /?r HTTP/1.1", "a.example:80"),
    ];
    for (method, uri, line, destination) in cases {
        let request = request(&format!("{method} {uri} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert_eq!(first_line(&request), line, "{uri}");
        assert_eq!(request.destination.to_string(), destination, "{uri}");
        assert_eq!((request.body, request.answer), (Body::Limited(0), Answer::HttpPlain));
        assert!(request.answer.success(None, &mut Vec::new()).is_empty());
    }
}

#[test]
fn the_host_field_says_what_the_uri_says() {
    for (uri, host) in
        [("a.example", "a.example"), ("a.example:80", "a.example:80"), ("[::1]:081", "[::1]:81")]
    {
        for field in ["", "Host: evil.example\r\n", "hOST: \r\n"] {
            let request = request(&format!("GET http://{uri}/ HTTP/1.1\r\n{field}A: b\r\n\r\n"));
            let expected = format!("GET / HTTP/1.1\r\nHost: {host}\r\nA: b\r\nConnection: close\r\n\r\n");
            assert_eq!(request.preface, expected.as_bytes());
        }
    }
    assert_eq!(status(&get("Host: a.example\r\nHost: a.example")), 400);
}

#[test]
fn the_clients_version_is_kept() {
    let request = request("GET http://a.example/ HTTP/1.0\r\n\r\n");
    assert_eq!(request.preface, b"GET / HTTP/1.0\r\nHost: a.example\r\nConnection: close\r\n\r\n");
}

#[test]
fn end_to_end_fields_pass_unchanged_and_in_order() {
    let fields =
        "Cookie: a=b; c=d\r\nAuthorization: Basic eDp5\r\nX-A: 1\r\nx-a: 2\r\nEmpty: \r\nTrailer: X-T\r\n";
    assert_eq!(forwarded(fields), fields);
    let odd = request("GET http://a.example/ HTTP/1.1\r\nX: \u{e9}\r\n\r\n");
    assert!(odd.preface.windows(5).any(|window| window == "X: \u{e9}".as_bytes()));
}

#[test]
fn hop_by_hop_fields_stay_here() {
    let fields = "Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nProxy-Authenticate: x\r\n\
         Keep-Alive: timeout=5\r\nConnection: keep-alive, X-Mine\r\nx-mine: 1\r\nconnection: ,X-Too,\r\nX-Too: 2\r\n\
         Upgrade: websocket\r\nTE: gzip\r\nKept: yes\r\n";
    assert_eq!(forwarded(fields), "Kept: yes\r\n");
}

#[test]
fn trailers_are_still_welcome() {
    let request = request(&get("TE: gzip;q=0.5, trailers\r\nConnection: TE"));
    let head = std::str::from_utf8(&request.preface).unwrap();
    assert!(head.ends_with("\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n"), "{head}");
}

#[test]
fn a_client_cannot_have_the_framing_taken_away() {
    assert_eq!(
        forwarded("Content-Length: 5\r\nConnection: Content-Length, Host, Transfer-Encoding\r\n"),
        "Content-Length: 5\r\n"
    );
    assert_eq!(
        forwarded("Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding\r\n"),
        "Transfer-Encoding: chunked\r\n"
    );
    let options = vec!["a"; 33].join(",");
    assert_eq!(status(&get(&format!("Connection: {options}"))), 400);
}

#[test]
fn upgrades_keep_their_connection() {
    let fields = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k";
    let upgrade = request(&get(fields));
    assert_eq!(upgrade.body, Body::Unlimited);
    assert_eq!(
        String::from_utf8(upgrade.preface).unwrap(),
        "GET / HTTP/1.1\r\nHost: a.example\r\nSec-WebSocket-Key: k\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\n\r\n"
    );
    let old = request(&get(fields).replace("HTTP/1.1", "HTTP/1.0"));
    assert_eq!(old.body, Body::Limited(0));
    assert_eq!(
        forwarded("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"),
        ""
    );
}

#[test]
fn the_body_is_as_long_as_its_framing_says() {
    let body = |fields: &str| request(&get(fields)).body;
    assert_eq!(body("A: b"), Body::Limited(0));
    assert_eq!(body("Content-Length: 12"), Body::Limited(12));
    assert_eq!(body("Content-Length: 012"), Body::Limited(12));
    assert_eq!(body("Content-Length: 12, 12\r\ncontent-length: 12"), Body::Limited(12));
    assert_eq!(body("Content-Length: 18446744073709551615"), Body::Limited(u64::MAX));
    assert_eq!(body("Transfer-Encoding: chunked"), Body::Unlimited);
    assert_eq!(body("Transfer-Encoding: gzip\r\nTransfer-Encoding: Chunked"), Body::Unlimited);
    assert_eq!(forwarded("Content-Length: 012, 12\r\n"), "Content-Length: 12\r\n");
}

#[test]
fn framing_that_can_be_read_in_two_ways_is_refused() {
    let bad = [
        "Content-Length: 1\r\nContent-Length: 2",
        "Content-Length: 1, 2",
        "Content-Length: 1,",
        "Content-Length: ",
        "Content-Length: +1",
        "Content-Length: -1",
        "Content-Length: 1 2",
        "Content-Length: 0x1",
        "Content-Length: 18446744073709551616",
        "Content-Length: 1\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: ",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: \"x\", chunked",
        "Transfer-Encoding : chunked",
        "Content-Length : 1",
        "A: b\r\n folded",
        "A: b\r\n\tfolded",
        " A: b",
        "A b: c",
        ": c",
        "A: b\rc",
        "A: b\0c",
        "A",
    ];
    for fields in bad {
        assert_eq!(status(&get(fields)), 400, "{fields:?}");
    }
    assert_eq!(status("POST http://a.example/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
}

#[test]
fn requests_for_an_origin_server_learn_that_this_is_a_proxy() {
    for target in ["/", "/http://a.example/", "*", "a.example", "http:/a.example", "//a.example/"] {
        let (status, reason, text) =
            refusal(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(), None);
        assert_eq!((status, reason), (400, CloseReason::ClientProtocol), "{target}");
        assert!(text.contains("this is a proxy"), "{text}");
    }
}

#[test]
fn other_schemes_are_sent_to_connect() {
    for uri in ["https://a.example/", "ftp://a.example/", "ws://a.example/"] {
        let (status, reason, text) = refusal(format!("GET {uri} HTTP/1.1\r\n\r\n").as_bytes(), None);
        assert_eq!((status, reason), (400, CloseReason::ClientUnsupported), "{uri}");
        assert!(text.contains("CONNECT"), "{text}");
    }
}

#[test]
fn uris_with_a_bad_authority_are_refused() {
    for uri in [
        "http://",
        "http:///p",
        "http://ann:pw@a.example/",
        "http://@a/",
        "http://a:b/",
        "http://a:0/",
        "http://:80/",
        "http://::1/",
        "http://[a]/",
        "http://a\\b/",
        "http://[::1%25eth0]/",
    ] {
        assert_eq!(status(&format!("GET {uri} HTTP/1.1\r\n\r\n")), 400, "{uri}");
    }
}

#[test]
fn other_versions_are_named() {
    for line in ["PRI * HTTP/2.0", "GET http://a.example/ HTTP/1.2", "GET http://a.example/ HTTP/0.9"] {
        let (status, reason, _) = refusal(format!("{line}\r\n\r\n").as_bytes(), None);
        assert_eq!((status, reason), (505, CloseReason::ClientUnsupported), "{line}");
    }
    assert_eq!(status("GET http://a.example/ FTP/1.1\r\n\r\n"), 400);
    assert_eq!(status("GET http://a.example/\r\n\r\n"), 400);
}

#[test]
fn what_cannot_be_http_is_refused_at_its_first_byte() {
    for byte in [0, 5, 0x16, b' ', b'{', b'"', 0x7f, 0xff] {
        let (status, reason, _) = refusal(&[byte], None);
        assert_eq!((status, reason), (400, CloseReason::ClientProtocol), "{byte}");
    }
}

#[test]
fn a_few_empty_lines_before_the_request_do_no_harm() {
    for leading in ["\r\n", "\n", "\r\n\r\n\n"] {
        let input = format!("{leading}CONNECT a.example:443 HTTP/1.1\r\n\r\n");
        assert_eq!(advance(input.as_bytes(), None).consumed, input.len());
    }
    assert_eq!(advance(&[b'\n'; MAX_LEADING_BYTES], None), Progress::incomplete());
    assert_eq!(refusal(&[b'\n'; MAX_LEADING_BYTES + 1], None).0, 400);
}

#[test]
fn bare_line_feeds_end_lines_too() {
    let input = "GET http://a.example/ HTTP/1.1\nA: b\n\npayload";
    let progress = advance(input.as_bytes(), None);
    assert_eq!(progress.consumed, input.len() - "payload".len());
    let Step::Request(request) = progress.step else { panic!("no request") };
    assert_eq!(request.preface, b"GET / HTTP/1.1\r\nHost: a.example\r\nA: b\r\nConnection: close\r\n\r\n");
}

#[test]
fn heads_are_taken_up_to_their_bound_and_not_beyond() {
    let padded = |bytes: usize| {
        let (start, end) = ("GET http://a.example/ HTTP/1.1\r\nA: ", "\r\n\r\n");
        format!("{start}{}{end}", "b".repeat(bytes - start.len() - end.len()))
    };
    let largest = padded(MAX_HEAD_BYTES) + "payload";
    assert_eq!(advance(largest.as_bytes(), None).consumed, MAX_HEAD_BYTES);
    let larger = padded(MAX_HEAD_BYTES + 1);
    assert_eq!(refusal(larger.as_bytes(), None).0, 431);
    assert_eq!(refusal(&larger.as_bytes()[..MAX_HEAD_BYTES], None).0, 431);
    assert_eq!(advance(&larger.as_bytes()[..MAX_HEAD_BYTES - 1], None), Progress::incomplete());
}

#[test]
fn fields_are_taken_up_to_their_bound_and_not_beyond() {
    let many = |count: usize| get(vec!["A: b"; count].join("\r\n").as_str());
    request(&many(MAX_HEADERS));
    assert_eq!(status(&many(MAX_HEADERS + 1)), 431);
}

#[test]
fn a_head_that_comes_byte_by_byte_is_searched_once() {
    let input = vec![b'G'; MAX_HEAD_BYTES - 1];
    let mut handshake = Handshake::default();
    for end in 1..=input.len() {
        assert_eq!(handshake.advance(&input[..end], None), Progress::incomplete());
        assert!(
            end - handshake.searched <= 2,
            "{} of {end} bytes would be searched again",
            end - handshake.searched
        );
    }
}

#[test]
fn users_pass_with_their_password_alone() {
    let mut users = Users::default();
    users.insert(b"ann", b"se:cret");
    users.insert(b"", b"");
    let connect = |fields: &str| format!("CONNECT a.example:443 HTTP/1.1\r\n{fields}\r\n");
    let basic = |text: &str| format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode(text));
    for fields in [basic("ann:se:cret"), basic("ann:se:cret").replace("Basic ", "bASIC   "), basic(":")] {
        let progress = advance(connect(&fields).as_bytes(), Some(&users));
        assert!(matches!(progress.step, Step::Request(_)), "{fields}: {progress:?}");
    }
    let bad = [
        String::new(),
        basic("ann:secret"),
        basic("bob:se:cret"),
        basic("ann"),
        basic(""),
        basic("ann:se:cret ").to_string(),
        basic("ann:se:cret") + &basic("ann:se:cret"),
        basic("ann:se:cret").replace("Proxy-", ""),
        basic("ann:se:cret").replace("Basic", "Bearer"),
        basic("ann:se:cret").replace("Basic ", "Basic"),
        "Proxy-Authorization: Basic\r\n".into(),
        "Proxy-Authorization: \r\n".into(),
        "Proxy-Authorization: Basic \u{e9}===\r\n".into(),
        "Proxy-Authorization: Basic YW5uOnNlOmNyZXQ\r\n".into(),
    ];
    for fields in bad {
        let (status, reason, text) = refusal(connect(&fields).as_bytes(), Some(&users));
        assert_eq!((status, reason), (407, CloseReason::ClientAuthentication), "{fields}");
        assert!(text.contains("Proxy-Authenticate: Basic realm=\"ringweir\"\r\n"), "{text}");
    }
}

#[test]
fn strangers_do_not_learn_what_this_is() {
    let (status, _, _) = refusal(b"GET / HTTP/1.1\r\n\r\n", Some(&Users::default()));
    assert_eq!(status, 407);
}

#[test]
fn failures_have_the_status_that_fits() {
    let statuses = [
        (Failure::Refused, 502),
        (Failure::TimedOut, 504),
        (Failure::NetworkUnreachable, 502),
        (Failure::HostUnreachable, 502),
        (Failure::NotAllowed, 403),
        (Failure::NotResolved, 502),
        (Failure::NoTarget, 503),
        (Failure::Rejected, 403),
        (Failure::OutOfResources, 503),
        (Failure::General, 502),
    ];
    for (failure, status) in statuses {
        for answer in [Answer::HttpConnect, Answer::HttpPlain] {
            let (found, fields, body) = read_response(&answer.failure(failure));
            assert_eq!(found, status, "{failure:?}");
            assert!(fields.contains("Connection: close\r\n"), "{fields}");
            assert!(body.len() > 1, "{failure:?} has a text");
        }
    }
}

#[test]
fn debug_output_keeps_the_head_to_itself() {
    let shown = format!("{:?}", request(&get("Cookie: hidden")));
    assert!(shown.contains("preface_bytes") && !shown.contains("hidden"), "{shown}");
}

#[test]
fn a_password_that_is_known_by_its_hash_is_asked_for_and_then_read_again() {
    let mut users = Users::default();
    users.insert_hashed(b"ann", "#secret");
    let basic = BASE64_STANDARD.encode("ann:secret");
    let input = format!("CONNECT a.example:443 HTTP/1.1\r\nProxy-Authorization: Basic {basic}\r\n\r\n");
    for verdict in [Verdict::Right, Verdict::Wrong, Verdict::Overloaded] {
        let mut handshake = Handshake::default();
        let asked = handshake.advance(input.as_bytes(), Some(&users));
        assert!(asked.consumed == 0 && matches!(asked.step, Step::Verify(_)), "{asked:?}");
        handshake.handle_verdict(verdict);
        let progress = handshake.advance(input.as_bytes(), Some(&users));
        let refused = match progress.step {
            Step::Request(request) => {
                assert_eq!((progress.consumed, request.user.as_deref()), (input.len(), Some("ann")));
                None
            }
            Step::Refuse { reply, reason } => Some((reply[9..12].to_vec(), reason)),
            Step::Incomplete | Step::Reply(_) | Step::Verify(_) => panic!("{verdict:?}"),
        };
        let expected = match verdict {
            Verdict::Right => None,
            Verdict::Wrong => Some((b"407".to_vec(), CloseReason::ClientAuthentication)),
            Verdict::Overloaded => Some((b"503".to_vec(), CloseReason::TooManyLogins)),
        };
        assert_eq!(refused, expected);
    }
}
