//! Handshakes, headers and looks: any split of the same bytes comes to the same.

use ringweir_flow::snapshot::{Hop, Protocol, Proxy, Towards};
use ringweir_flow::wire::client::{Introduction, MAX_ANSWER_BYTES, Step as ClientStep};
use ringweir_flow::wire::handshake::Handshake;
use ringweir_flow::wire::http::MAX_HEAD_BYTES;
use ringweir_flow::wire::peek::{MAX_PEEK_BYTES, Peek, Sight};
use ringweir_flow::wire::proxy_protocol::{self, MAX_V2_BYTES, Version};
use ringweir_flow::wire::{Destination, Step};

use crate::cut;

/// Replies, bytes consumed, and how it ended.
fn serve(protocol: Protocol, pieces: &[&[u8]]) -> (Vec<u8>, usize, Step) {
    let mut handshake = Handshake::new(protocol).unwrap();
    let (mut kept, mut replies, mut consumed) = (Vec::new(), Vec::new(), 0);
    for piece in pieces {
        kept.extend_from_slice(piece);
        loop {
            let progress = handshake.advance(&kept, None);
            assert!(progress.consumed <= kept.len(), "more consumed than given");
            kept.drain(..progress.consumed);
            consumed += progress.consumed;
            match progress.step {
                Step::Incomplete => break,
                Step::Reply(reply) => {
                    assert!(progress.consumed > 0, "a reply to nothing could go on for ever");
                    replies.extend_from_slice(&reply);
                }
                Step::Verify(_) => panic!("a login is asked for where there are no users"),
                step @ (Step::Request(_) | Step::Refuse { .. }) => return (replies, consumed, step),
            }
        }
        assert!(kept.len() < MAX_HEAD_BYTES, "{} bytes are kept", kept.len());
    }
    (replies, consumed, Step::Incomplete)
}

fn server(protocol: Protocol, data: &[u8]) {
    let Some((&seed, bytes)) = data.split_first() else { return };
    let pieces = cut(seed, bytes);
    let whole = serve(protocol, &[bytes]);
    assert_eq!(serve(protocol, &pieces), whole);
    assert_eq!(serve(protocol, &bytes.chunks(1).collect::<Vec<_>>()), whole);
}

pub(crate) fn socks5(data: &[u8]) {
    server(Protocol::Socks5, data);
}

pub(crate) fn socks(data: &[u8]) {
    server(Protocol::Socks, data);
}

pub(crate) fn http(data: &[u8]) {
    server(Protocol::Http, data);
}

pub(crate) fn mixed(data: &[u8]) {
    server(Protocol::Mixed, data);
}

/// What was said, bytes consumed, and how it ended.
fn ask(proxy: Proxy, pieces: &[&[u8]]) -> (Vec<u8>, usize, ClientStep) {
    let destination = Destination::from_host(b"a.example", 443).unwrap();
    let hop = Hop { proxy, towards: Towards::Client };
    let Some(Introduction::Handshake(mut handshake)) = Introduction::new(&hop, Some(&destination)) else {
        panic!("a proxy that is not talked to")
    };
    let (mut kept, mut said, mut consumed) = (Vec::new(), Vec::new(), 0);
    assert_eq!(handshake.advance(&kept, &mut said).step, ClientStep::Incomplete);
    for piece in pieces {
        kept.extend_from_slice(piece);
        let progress = handshake.advance(&kept, &mut said);
        assert!(progress.consumed <= kept.len(), "more consumed than given");
        kept.drain(..progress.consumed);
        consumed += progress.consumed;
        if progress.step != ClientStep::Incomplete {
            return (said, consumed, progress.step);
        }
        assert!(kept.len() < MAX_ANSWER_BYTES, "{} bytes are kept", kept.len());
    }
    (said, consumed, ClientStep::Incomplete)
}

fn client(proxy: &Proxy, data: &[u8]) {
    let Some((&seed, bytes)) = data.split_first() else { return };
    let pieces = cut(seed, bytes);
    let whole = ask(proxy.clone(), &[bytes]);
    assert_eq!(ask(proxy.clone(), &pieces), whole);
    assert_eq!(ask(proxy.clone(), &bytes.chunks(1).collect::<Vec<_>>()), whole);
}

pub(crate) fn socks5_client(data: &[u8]) {
    client(&Proxy::Socks5(None), data);
}

pub(crate) fn http_client(data: &[u8]) {
    client(&Proxy::Http(None), data);
}

pub(crate) fn proxy_protocol(data: &[u8]) {
    let read = |pieces: &[&[u8]]| {
        let mut kept = Vec::new();
        for piece in pieces {
            kept.extend_from_slice(piece);
            let read = proxy_protocol::read(&kept);
            if read != Ok(None) {
                return read.map_err(drop);
            }
            assert!(kept.len() < MAX_V2_BYTES, "{} bytes are kept", kept.len());
        }
        Ok(None)
    };
    let Some((&seed, bytes)) = data.split_first() else { return };
    let pieces = cut(seed, bytes);
    // Of several faults, the one that is seen first is told.
    let whole = read(&[bytes]);
    assert_eq!(read(&pieces), whole);
    let Ok(Some((consumed, header))) = whole else { return };
    assert!(consumed <= bytes.len(), "more consumed than given");
    if header.ends.is_some() {
        let mut written = Vec::new();
        proxy_protocol::write(Version::V2, &header, &mut written);
        let (length, again) = proxy_protocol::read(&written).unwrap().unwrap();
        assert_eq!((length, again.unique_id), (written.len(), header.unique_id));
    }
}

pub(crate) fn peek(data: &[u8]) {
    let look = |pieces: &[&[u8]]| {
        let (mut peek, mut kept) = (Peek::default(), Vec::new());
        for piece in pieces {
            kept.extend_from_slice(piece);
            match peek.look(&kept) {
                Sight::Incomplete => assert!(kept.len() < MAX_PEEK_BYTES, "{} bytes are kept", kept.len()),
                sight @ (Sight::Seen(_) | Sight::Other) => return sight,
            }
        }
        Sight::Incomplete
    };
    let Some((&seed, bytes)) = data.split_first() else { return };
    let pieces = cut(seed, bytes);
    let whole = look(&[bytes]);
    assert_eq!(look(&pieces), whole);
    assert_eq!(look(&bytes.chunks(1).collect::<Vec<_>>()), whole);
    if let Sight::Seen(peeked) = whole {
        assert!(peeked.host().is_none_or(|host| host.as_str().len() <= 255));
        for part in [peeked.cookie("id"), peeked.query("sid")].into_iter().flatten() {
            assert!(part.is_empty() || bytes.windows(part.len()).any(|window| window == part));
        }
    }
}
