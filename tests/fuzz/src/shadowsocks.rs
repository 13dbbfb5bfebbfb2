//! Shadowsocks: noise is nobody, nothing that was tampered with is taken for genuine, and whoever has the key gets no
//! further than the specification lets him.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ringweir_flow::wire::Destination;
use ringweir_flow::wire::shadowsocks::{
    Accept, Client, Clock, Edition, Key, Method, Secret, Serial, Server, Tunnel, Unwelcome,
};
use shadowsocks_crypto::CipherKind;
use shadowsocks_crypto::v2::tcp::TcpCipher;

use crate::{Script, cut};

const NOW_S: u64 = 1_700_000_000;
const MAX_SKEW_S: u64 = 30;
const SERIAL: Serial = Serial { generation: 1, worker: 0, count: 1 };

const OWN_KEY: u8 = 1;
const USER_KEY: u8 = 2;

const SEALED_HEADER_BYTES: usize = 1 + 8 + 2 + 16;
const IDENTITY_BYTES: usize = 16;

fn text_of_key(method: Method, fill: u8) -> String {
    match method.edition() {
        Edition::Aead => "password".to_owned(),
        Edition::Aead2022 => BASE64_STANDARD.encode(vec![fill; method.key_bytes()]),
    }
}

/// A server whose one user, if it has any, has a key of their own.
fn server(method: Method, has_user: bool) -> Arc<Server> {
    let key = |fill| Key::new(method, &text_of_key(method, fill)).unwrap();
    let users = if has_user { vec![("ann".into(), key(USER_KEY))] } else { vec![] };
    let clock = Arc::new(Clock::new(NOW_S));
    Arc::new(Server::new(method, key(OWN_KEY), users, Secret::new([8; 32]), clock).unwrap())
}

fn dial(method: Method, is_user: bool) -> Tunnel {
    let keys: &[u8] = if is_user { &[OWN_KEY, USER_KEY] } else { &[OWN_KEY] };
    let keys: Vec<_> = keys.iter().map(|fill| text_of_key(method, *fill)).collect();
    let clock = Arc::new(Clock::new(NOW_S));
    let client = Arc::new(Client::new(method, &keys.join(":"), Secret::new([9; 32]), clock).unwrap());
    client.tunnel(Destination::from_host(b"a.example", 443).unwrap(), SERIAL, 77)
}

/// What a server hears in these pieces, and whether it took all of them.
fn hear(method: Method, has_user: bool, pieces: &[&[u8]]) -> (Vec<u8>, Result<(), Unwelcome>) {
    let mut accept = Accept::new(&server(method, has_user), SERIAL);
    let mut pieces = pieces.iter().copied();
    while let Some(piece) = pieces.next() {
        match accept.read(piece) {
            Ok(None) => {}
            Ok(Some(mut accepted)) => {
                assert_eq!(accepted.user.is_some(), has_user);
                let mut heard = std::mem::take(&mut accepted.payload);
                let opened = accepted.tunnel.open(pieces, &mut heard);
                return (heard, opened.map_err(|_| Unwelcome::Forged));
            }
            Err(why) => return (Vec::new(), Err(why)),
        }
    }
    (Vec::new(), Ok(()))
}

/// The pieces of a stream, of which the beginning must come at once.
fn pieces_of(method: Method, has_user: bool, seed: u8, stream: &[u8]) -> Vec<&[u8]> {
    let at_once = match method.edition() {
        Edition::Aead => 0,
        Edition::Aead2022 => {
            method.key_bytes() + usize::from(has_user) * IDENTITY_BYTES + SEALED_HEADER_BYTES
        }
    };
    let (head, rest) = stream.split_at(at_once.min(stream.len()));
    let rest = cut(seed, rest);
    if head.is_empty() { rest } else { [vec![head], rest].concat() }
}

pub(crate) fn noise(data: &[u8]) {
    let Some((&seed, bytes)) = data.split_first().filter(|(_, bytes)| !bytes.is_empty()) else { return };
    for method in Method::ALL {
        let mut heard = Vec::new();
        let whole = dial(method, false).open([bytes], &mut heard);
        let cut = dial(method, false).open(cut(seed, bytes), &mut heard);
        assert_eq!(whole, cut);
        for has_user in [false, method.has_identities()] {
            let whole = hear(method, has_user, &[bytes]);
            assert_eq!(hear(method, has_user, &pieces_of(method, has_user, seed, bytes)), whole);
            heard.extend(whole.0);
        }
        assert!(heard.is_empty(), "noise was taken for genuine");
    }
}

/// The second to fourth byte say where and how a sound stream is damaged; what follows is its payload.
pub(crate) fn damage(data: &[u8]) {
    let Some((&[seed, high, low, mask], payload)) = data.split_first_chunk::<4>() else { return };
    for method in Method::ALL {
        for has_user in [false, method.has_identities()] {
            let (mut tunnel, mut said) = (dial(method, has_user), Vec::new());
            let (first, second) = payload.split_at(payload.len() / 2);
            tunnel.seal([first], &mut said);
            tunnel.seal([second], &mut said);
            let at = usize::from(u16::from_be_bytes([high, low])) % said.len();
            said[at] ^= mask;
            let (heard, end) = hear(method, has_user, &pieces_of(method, has_user, seed, &said));
            assert!(payload.starts_with(&heard), "forged plaintext came out");
            assert_eq!(end.is_ok(), mask == 0);
            if mask == 0 {
                assert_eq!(heard, payload);
                assert_eq!(hear(method, has_user, &[&said]), (heard, end));
            }
        }
    }
}

/// One who has the key, and seals whatever he likes. Written without flow's help.
struct Sealed {
    cipher: TcpCipher,
    said: Vec<u8>,
}

impl Sealed {
    fn new(method: Method, fill: u8, ahead: &[u8]) -> Sealed {
        let kind = match method {
            Method::Blake3Aes128Gcm => CipherKind::AEAD2022_BLAKE3_AES_128_GCM,
            Method::Blake3Aes256Gcm => CipherKind::AEAD2022_BLAKE3_AES_256_GCM,
            Method::Blake3ChaCha20Poly1305 => CipherKind::AEAD2022_BLAKE3_CHACHA20_POLY1305,
            Method::Aes128Gcm | Method::Aes256Gcm | Method::ChaCha20Poly1305 => unreachable!("is SIP004"),
        };
        let key_bytes = method.key_bytes();
        let cipher = TcpCipher::new(kind, &vec![fill; key_bytes], &ahead[..key_bytes]);
        Sealed { cipher, said: ahead.to_vec() }
    }

    fn seal(&mut self, plain: &[u8]) {
        let mut sealed = plain.to_vec();
        sealed.resize(plain.len() + 16, 0);
        self.cipher.encrypt_packet(&mut sealed);
        self.said.extend(sealed);
    }

    /// Chunks to the end of the script; what they hold, as far as each says how long it is.
    fn chunks(&mut self, script: &mut Script<'_>) -> Vec<u8> {
        let (mut plain, mut is_sound) = (Vec::new(), true);
        while let Some(flags) = script.byte() {
            let length = script.byte().map_or(0, usize::from);
            let chunk = script.take(length);
            // One in four lies about its length.
            let claimed = if flags & 3 == 0 { script.u16() } else { chunk.len() as u16 };
            self.seal(&claimed.to_be_bytes());
            self.seal(chunk);
            is_sound &= usize::from(claimed) == chunk.len();
            if is_sound {
                plain.extend_from_slice(chunk);
            }
        }
        plain
    }
}

/// A type, a time and a length, each right unless a bit of `flags` says otherwise.
fn header(flags: u8, kind: u8, script: &mut Script<'_>) -> (u8, u64) {
    let kind = if flags & 8 == 0 { kind } else { script.byte().unwrap_or(7) };
    // Around the bound, and anywhere.
    let time = match flags >> 4 & 3 {
        0 | 1 => NOW_S,
        2 => NOW_S - 40 + u64::from(script.byte().unwrap_or(0) % 80),
        _ => u64::from_be_bytes(std::array::from_fn(|_| script.byte().unwrap_or(0xff))),
    };
    (kind, time)
}

fn method_of(flags: u8) -> Method {
    [Method::Blake3Aes128Gcm, Method::Blake3Aes256Gcm, Method::Blake3ChaCha20Poly1305][usize::from(flags % 3)]
}

/// Headers, requests and chunks of a client that has the key.
pub(crate) fn requests(data: &[u8]) {
    let mut script = Script::new(data);
    let (Some(seed), Some(choice), Some(flags)) = (script.byte(), script.byte(), script.byte()) else {
        return;
    };
    let method = method_of(choice);
    let has_user = method.has_identities() && choice & 64 != 0;
    // A salt and an identity header that are sound, if there are users.
    let mut greeting = Vec::new();
    dial(method, has_user).seal([], &mut greeting);
    let ahead = &greeting[..method.key_bytes() + usize::from(has_user) * IDENTITY_BYTES];
    let mut client = Sealed::new(method, if has_user { USER_KEY } else { OWN_KEY }, ahead);

    let (kind, time) = header(flags, 0, &mut script);
    let length = script.u16() % 600;
    let request = script.take(usize::from(length)).to_vec();
    let claimed = if flags & 4 == 0 { request.len() as u16 } else { script.u16() };
    client.seal(&[&[kind][..], &time.to_be_bytes(), &claimed.to_be_bytes()].concat());
    client.seal(&request);
    let beyond = client.chunks(&mut script);

    let (heard, end) = hear(method, has_user, &[&client.said]);
    let plain = [request, beyond].concat();
    assert!(plain.windows(heard.len().max(1)).any(|part| part == heard) || heard.is_empty());
    match end {
        Ok(()) | Err(Unwelcome::Request | Unwelcome::Forged) => {
            assert!(kind == 0 && time.abs_diff(NOW_S) <= MAX_SKEW_S, "{kind} {time} {end:?}");
        }
        Err(Unwelcome::Kind) => assert_ne!(kind, 0),
        Err(Unwelcome::Skewed(apart)) => assert!(apart == time.abs_diff(NOW_S) && apart > MAX_SKEW_S),
        Err(Unwelcome::Segmented | Unwelcome::Unknown | Unwelcome::Replayed) => panic!("{end:?}"),
    }
    let in_pieces = hear(method, has_user, &pieces_of(method, has_user, seed, &client.said));
    if end == Err(Unwelcome::Forged) {
        // What came ahead of it has been taken by then, or refused.
        assert!(in_pieces.1.is_err());
    } else {
        assert_eq!(in_pieces, (heard, end));
    }
}

/// Headers and chunks of a server that has the key.
pub(crate) fn answers(data: &[u8]) {
    let mut script = Script::new(data);
    let (Some(seed), Some(choice), Some(flags)) = (script.byte(), script.byte(), script.byte()) else {
        return;
    };
    let method = method_of(choice);
    let dialled = || {
        let (mut tunnel, mut greeting) = (dial(method, false), Vec::new());
        tunnel.seal([], &mut greeting);
        greeting.truncate(method.key_bytes());
        (tunnel, greeting)
    };
    let (_, mut salt) = dialled();
    if flags & 128 != 0 {
        // Of another request.
        let at = script.byte().map_or(0, usize::from) % salt.len();
        salt[at] ^= 1;
    }
    let mut server = Sealed::new(method, OWN_KEY, &vec![7; method.key_bytes()]);
    let (kind, time) = header(flags, 1, &mut script);
    let length = script.u16() % 600;
    let first = script.take(usize::from(length)).to_vec();
    let claimed = if flags & 4 == 0 { first.len() as u16 } else { script.u16() };
    server.seal(&[&[kind][..], &time.to_be_bytes(), &salt, &claimed.to_be_bytes()].concat());
    server.seal(&first);
    let is_sound = usize::from(claimed) == first.len();
    let beyond = server.chunks(&mut script);

    let open = |pieces: &[&[u8]]| {
        let mut heard = Vec::new();
        let opened = dialled().0.open(pieces.iter().copied(), &mut heard);
        (heard, opened.is_ok())
    };
    let (heard, is_whole) = open(&[&server.said]);
    let is_ours = kind == 1 && time.abs_diff(NOW_S) <= MAX_SKEW_S && flags & 128 == 0;
    if is_ours && is_sound {
        assert!([first, beyond].concat().starts_with(&heard));
    } else {
        assert!(heard.is_empty(), "heard what was said to nobody");
        assert!(is_ours || !is_whole);
    }
    assert_eq!(open(&cut(seed, &server.said)), (heard, is_whole));
}
