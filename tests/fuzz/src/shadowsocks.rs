//! Shadowsocks: noise is nobody, and nothing that was tampered with is taken for genuine.

use std::sync::Arc;

use ringweir_flow::wire::Destination;
use ringweir_flow::wire::shadowsocks::{Accept, Client, Clock, Key, Method, Secret, Serial, Server, Tunnel};

use crate::cut;

const METHODS: [Method; 3] = [Method::Aes128Gcm, Method::Aes256Gcm, Method::ChaCha20Poly1305];
const SERIAL: Serial = Serial { generation: 1, worker: 0, count: 1 };

fn server(method: Method) -> Arc<Server> {
    let (key, clock) = (Key::new(method, "password").unwrap(), Arc::new(Clock::new(1_700_000_000)));
    Arc::new(Server::new(method, key, Vec::new(), Secret::new([8; 32]), clock).unwrap())
}

fn dial(method: Method) -> Tunnel {
    let clock = Arc::new(Clock::new(1_700_000_000));
    let client = Arc::new(Client::new(method, "password", Secret::new([9; 32]), clock).unwrap());
    client.tunnel(Destination::from_host(b"a.example", 443).unwrap(), SERIAL, 77)
}

/// What a server hears in these pieces, and whether it took all of them.
fn hear(method: Method, pieces: &[&[u8]]) -> (Vec<u8>, bool) {
    let mut accept = Accept::new(&server(method), SERIAL);
    let mut pieces = pieces.iter().copied();
    while let Some(piece) = pieces.next() {
        match accept.read(piece) {
            Ok(None) => {}
            Ok(Some(mut accepted)) => {
                let mut heard = std::mem::take(&mut accepted.payload);
                let is_whole = accepted.tunnel.open(pieces, &mut heard).is_ok();
                return (heard, is_whole);
            }
            Err(_) => return (Vec::new(), false),
        }
    }
    (Vec::new(), true)
}

pub(crate) fn noise(data: &[u8]) {
    let (bytes, pieces) = cut(data);
    for method in Method::ALL {
        let mut heard = Vec::new();
        let whole = dial_any(method).map(|mut tunnel| tunnel.open([bytes], &mut heard));
        let cut = dial_any(method).map(|mut tunnel| tunnel.open(pieces.iter().copied(), &mut heard));
        assert_eq!(whole, cut);
        assert!(heard.is_empty(), "noise was taken for an answer");
    }
    for method in METHODS {
        assert_eq!(hear(method, &[bytes]), hear(method, &pieces));
        assert!(hear(method, &[bytes]).0.is_empty(), "noise was taken for a request");
    }
}

/// Only methods of passwords can be dialled without a key of their own.
fn dial_any(method: Method) -> Option<Tunnel> {
    METHODS.contains(&method).then(|| dial(method))
}

/// The second to fourth byte say where and how a sound stream is damaged; what follows is its payload.
pub(crate) fn damage(data: &[u8]) {
    let Some((&[_, high, low, mask], payload)) = data.split_first_chunk::<4>() else { return };
    for method in METHODS {
        let (mut tunnel, mut said) = (dial(method), Vec::new());
        let (first, second) = payload.split_at(payload.len() / 2);
        tunnel.seal([first], &mut said);
        tunnel.seal([second], &mut said);
        let at = usize::from(u16::from_be_bytes([high, low])) % said.len();
        said[at] ^= mask;
        let framed = [&data[..1], &said].concat();
        let (bytes, pieces) = cut(&framed);
        let (heard, is_whole) = hear(method, &pieces);
        assert!(payload.starts_with(&heard), "forged plaintext came out");
        assert_eq!(is_whole, mask == 0);
        if mask == 0 {
            assert_eq!(heard, payload);
            assert_eq!(hear(method, &[bytes]), (heard, true));
        }
    }
}
