//! Both sides against each other, in any split; and what everybody else gets: nothing.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::header::MAX_SKEW_S;
use super::*;
use crate::wire::Destination;

const NOW_S: u64 = 1_700_000_000;

/// A server and its clients, in one room.
struct World {
    clock: Arc<Clock>,
    server: Arc<Server>,
    client: Arc<Client>,
    count: u64,
}

fn text_of_key(method: Method, fill: u8) -> String {
    match method.edition() {
        Edition::Aead => format!("password {fill}"),
        Edition::Aead2022 => BASE64_STANDARD.encode(vec![fill; method.key_bytes()]),
    }
}

fn key(method: Method, fill: u8) -> Key {
    Key::new(method, &text_of_key(method, fill)).unwrap()
}

impl World {
    fn new(method: Method) -> World {
        World::with(method, &[], &text_of_key(method, 1))
    }

    /// The server's key is number 1.
    fn with(method: Method, users: &[(&str, u8)], client: &str) -> World {
        let clock = Arc::new(Clock::new(NOW_S));
        let users = users.iter().map(|(name, fill)| (Arc::from(*name), key(method, *fill))).collect();
        let secret = |byte| Secret::new([byte; 32]);
        let server = Server::new(method, key(method, 1), users, secret(8), Arc::clone(&clock)).unwrap();
        let client = Client::new(method, client, secret(9), Arc::clone(&clock)).unwrap();
        World { clock, server: Arc::new(server), client: Arc::new(client), count: 0 }
    }

    fn serial(&mut self) -> Serial {
        self.count += 1;
        Serial { generation: 1, worker: 0, count: self.count }
    }

    fn dial(&mut self) -> Tunnel {
        let serial = self.serial();
        self.client.tunnel(destination(), serial, 77)
    }

    fn accept(&mut self) -> Accept {
        let serial = self.serial();
        Accept::new(&self.server, serial)
    }

    /// What a client says that has this payload at once.
    fn request(&mut self, payload: &[u8]) -> (Tunnel, Vec<u8>) {
        let (mut tunnel, mut said) = (self.dial(), Vec::new());
        tunnel.seal([payload], &mut said);
        (tunnel, said)
    }
}

fn destination() -> Destination {
    Destination::from_host(b"a.example", 443).unwrap()
}

fn cut<'a>(bytes: &'a [u8], cuts: &[Index], first_bytes: usize) -> Vec<&'a [u8]> {
    let first_bytes = first_bytes.min(bytes.len());
    let mut cuts: Vec<usize> =
        cuts.iter().map(|cut| first_bytes + cut.index(bytes.len() - first_bytes + 1)).collect();
    cuts.extend([0, first_bytes, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

/// Offers the pieces to a server; returns the client that it lets in and everything it said.
fn offer(accept: &mut Accept, pieces: &[&[u8]]) -> Result<Option<(Accepted, Vec<u8>)>, Unwelcome> {
    let mut pieces = pieces.iter();
    for piece in pieces.by_ref() {
        if let Some(mut accepted) = accept.read(piece)? {
            let mut payload = std::mem::take(&mut accepted.payload);
            let rest = pieces.copied();
            accepted.tunnel.open(rest, &mut payload).map_err(|_| Unwelcome::Forged)?;
            return Ok(Some((accepted, payload)));
        }
    }
    Ok(None)
}

fn methods() -> impl Strategy<Value = Method> {
    select(&Method::ALL)
}

fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let length = prop_oneof![Just(0usize), 1usize..40, 16_300usize..16_500, 65_500usize..70_000];
    let payload = (length, any::<u8>())
        .prop_map(|(length, first)| (0..length).map(|at| first.wrapping_add(at as u8)).collect());
    prop::collection::vec(payload, 0..4)
}

fn cuts() -> impl Strategy<Value = Vec<Index>> {
    prop::collection::vec(any::<Index>(), 0..6)
}

/// What a server of SIP022 must get at once.
fn at_once(method: Method) -> usize {
    method.key_bytes() + 11 + 16
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_said_is_heard_in_any_split(
        method in methods(),
        up in payloads(),
        down in payloads(),
        (up_cuts, down_cuts) in (cuts(), cuts()),
    ) {
        let mut world = World::new(method);
        let (mut client, mut said) = (world.dial(), Vec::new());
        client.seal(up.first().map(Vec::as_slice), &mut said);
        prop_assert!(client.has_greeted());
        for payload in up.iter().skip(1) {
            client.seal([&payload[..payload.len() / 2], &payload[payload.len() / 2..]], &mut said);
        }
        let pieces = cut(&said, &up_cuts, at_once(method));
        let (mut accepted, heard) = offer(&mut world.accept(), &pieces).unwrap().unwrap();
        prop_assert_eq!(&accepted.destination, &destination());
        prop_assert!(heard == up.concat());
        prop_assert!(accepted.tunnel.is_between_chunks());

        let mut answer = Vec::new();
        for payload in &down {
            accepted.tunnel.seal([&payload[..]], &mut answer);
        }
        let mut heard = Vec::new();
        for piece in cut(&answer, &down_cuts, 0) {
            client.open([piece], &mut heard).unwrap();
        }
        prop_assert!(heard == down.concat());
        prop_assert!(client.is_between_chunks());
        prop_assert_eq!(answer.is_empty(), down.concat().is_empty(), "silence stays silence");
    }

    /// One bit is wrong somewhere: nothing from there on is taken for genuine, and what was before is.
    #[test]
    fn what_was_tampered_with_is_not_taken(
        method in methods(),
        payload in prop::collection::vec(any::<u8>(), 1..300),
        (at, bit) in (any::<Index>(), 0..8u8),
        (answered, cuts) in (any::<bool>(), cuts()),
    ) {
        let mut world = World::new(method);
        let (mut client, mut said) = world.request(&payload);
        client.seal([&payload[..]], &mut said);
        let (mut accepted, _) = offer(&mut world.accept(), &[&said]).unwrap().unwrap();
        let mut answer = Vec::new();
        accepted.tunnel.seal([&payload[..]], &mut answer);
        accepted.tunnel.seal([&payload[..]], &mut answer);

        if answered {
            let at = at.index(answer.len());
            answer[at] ^= 1 << bit;
            let mut heard = Vec::new();
            let is_refused =
                cut(&answer, &cuts, 0).into_iter().any(|piece| client.open([piece], &mut heard).is_err());
            // A length that is wrong would be noticed at its own tag, so that nothing is waited for.
            prop_assert!(is_refused);
            prop_assert!([&[][..], &payload, &payload.repeat(2)].contains(&&heard[..]), "{heard:?}");
        } else {
            world.clock.set(NOW_S + 1);
            let (_, mut said) = world.request(&payload);
            let at = at.index(said.len());
            said[at] ^= 1 << bit;
            let result = offer(&mut world.accept(), &cut(&said, &cuts, at_once(method)));
            prop_assert!(matches!(result, Err(Unwelcome::Forged)), "{result:?}");
        }
    }

    #[test]
    fn noise_is_nobody_in_any_split(
        method in methods(),
        users in any::<bool>(),
        noise in prop::collection::vec(any::<u8>(), 0..1000),
        cuts in cuts(),
    ) {
        let users: &[(&str, u8)] = if users && method.has_identities() { &[("ann", 2)] } else { &[] };
        let mut world = World::with(method, users, &text_of_key(method, 1));
        let result = offer(&mut world.accept(), &cut(&noise, &cuts, 0));
        prop_assert!(!matches!(result, Ok(Some(_))));
        let mut heard = Vec::new();
        let _ = world.dial().open([&noise[..]], &mut heard);
        prop_assert_eq!(heard, b"");
    }
}

#[test]
fn the_first_flight_holds_salt_request_and_payload() {
    for method in Method::ALL {
        let mut world = World::new(method);
        let address = 1 + 1 + 9 + 2;
        let (_, said) = world.request(b"hello");
        let expected = match method.edition() {
            Edition::Aead => method.key_bytes() + 2 + 16 + address + 5 + 16,
            Edition::Aead2022 => method.key_bytes() + 11 + 16 + address + 2 + 5 + 16,
        };
        assert_eq!(said.len(), expected, "{method:?}");
        let mut silent = Vec::new();
        world.dial().seal([], &mut silent);
        let padding = match method.edition() {
            Edition::Aead => 0,
            Edition::Aead2022 => 78,
        };
        assert_eq!(silent.len(), expected - 5 + padding, "{method:?}: without payload there is padding");
        let (accepted, heard) = offer(&mut world.accept(), &[&silent]).unwrap().unwrap();
        assert_eq!((accepted.destination, heard), (destination(), vec![]));
    }
}

#[test]
fn a_stream_that_comes_again_is_refused() {
    for method in Method::ALL {
        let mut world = World::new(method);
        let (_, said) = world.request(b"hello");
        assert!(offer(&mut world.accept(), &[&said]).unwrap().is_some());
        assert_eq!(offer(&mut world.accept(), &[&said]).unwrap_err(), Unwelcome::Replayed, "{method:?}");
        let (_, another) = world.request(b"hello");
        assert!(offer(&mut world.accept(), &[&another]).unwrap().is_some());
    }
}

#[test]
fn clocks_may_be_half_a_minute_apart() {
    let method = Method::Blake3Aes256Gcm;
    for (server_s, is_welcome) in [
        (NOW_S + MAX_SKEW_S, true),
        (NOW_S - MAX_SKEW_S, true),
        (NOW_S + MAX_SKEW_S + 1, false),
        (NOW_S - MAX_SKEW_S - 1, false),
    ] {
        let mut world = World::new(method);
        let (_, said) = world.request(b"hello");
        world.clock.set(server_s);
        let result = offer(&mut world.accept(), &[&said]);
        match is_welcome {
            true => assert!(result.unwrap().is_some()),
            false => assert_eq!(result.unwrap_err(), Unwelcome::Skewed(MAX_SKEW_S + 1)),
        }
    }
}

#[test]
fn headers_of_2022_come_at_once_or_not_at_all() {
    let method = Method::Blake3Aes128Gcm;
    let mut world = World::new(method);
    let (_, said) = world.request(b"hello");
    for first_bytes in 1..at_once(method) {
        let result = offer(&mut world.accept(), &[&said[..first_bytes], &said[first_bytes..]]);
        assert_eq!(result.unwrap_err(), Unwelcome::Segmented, "{first_bytes}");
    }
    let first_bytes = at_once(method);
    assert!(offer(&mut world.accept(), &[&said[..first_bytes], &said[first_bytes..]]).unwrap().is_some());
}

#[test]
fn an_answer_to_another_request_is_refused() {
    for method in [Method::Blake3Aes128Gcm, Method::Blake3ChaCha20Poly1305] {
        let mut world = World::new(method);
        let (_, said) = world.request(b"hello");
        let (mut another, _) = world.request(b"hello");
        let (mut accepted, _) = offer(&mut world.accept(), &[&said]).unwrap().unwrap();
        let mut answer = Vec::new();
        accepted.tunnel.seal([&b"answer"[..]], &mut answer);
        assert_eq!(another.open([&answer[..]], &mut Vec::new()), Err(Forged));
    }
}

#[test]
fn what_a_client_says_is_not_taken_for_an_answer() {
    for method in [Method::Blake3Aes128Gcm, Method::Blake3Aes256Gcm] {
        let mut world = World::new(method);
        let (mut client, said) = world.request(&[0; 64]);
        assert_eq!(client.open([&said[..]], &mut Vec::new()), Err(Forged));
    }
}

#[test]
fn users_are_told_apart_by_their_keys() {
    let method = Method::Blake3Aes256Gcm;
    let text =
        |fills: &[u8]| fills.iter().map(|fill| text_of_key(method, *fill)).collect::<Vec<_>>().join(":");
    for (client, user) in [(text(&[1, 2]), Ok("ann")), (text(&[1, 3]), Ok("bob"))]
        .into_iter()
        .chain([(text(&[1, 4]), Err(Unwelcome::Unknown)), (text(&[5, 2]), Err(Unwelcome::Unknown))])
        .chain([(text(&[1]), Err(Unwelcome::Unknown))])
    {
        let mut world = World::with(method, &[("ann", 2), ("bob", 3)], &client);
        let (_, said) = world.request(&[7; 100]);
        let result = offer(&mut world.accept(), &[&said]);
        match user {
            Ok(user) => assert_eq!(result.unwrap().unwrap().0.user.as_deref(), Some(user)),
            Err(error) => assert_eq!(result.unwrap_err(), error),
        }
    }
}

#[test]
fn each_relay_has_an_identity_header_of_its_own() {
    let method = Method::Blake3Aes128Gcm;
    let text = [1, 2, 3].map(|fill| text_of_key(method, fill)).join(":");
    let mut world = World::with(method, &[("next", 2)], &text);
    let (_, said) = world.request(b"hello");
    let salt = Salt::new(method, &said);
    let named = |number: usize, by: u8| {
        let sealed = said[16 + 16 * number..][..16].try_into().unwrap();
        header::open_identity(method, &key(method, by), &salt, sealed).unwrap()
    };
    assert_eq!(named(0, 1), header::key_name(&key(method, 2)));
    assert_eq!(named(1, 2), header::key_name(&key(method, 3)));
}

#[test]
fn keys_and_users_that_cannot_be_are_refused() {
    let clock = Arc::new(Clock::new(NOW_S));
    let secret = || Secret::new([0; 32]);
    let chacha = Method::Blake3ChaCha20Poly1305;
    let two = [text_of_key(chacha, 1), text_of_key(chacha, 2)].join(":");
    assert!(Client::new(chacha, &two, secret(), Arc::clone(&clock)).is_err());
    assert!(Client::new(Method::Aes128Gcm, "pass:word", secret(), Arc::clone(&clock)).is_ok());
    let users = vec![("ann".into(), key(chacha, 2))];
    assert!(Server::new(chacha, key(chacha, 1), users, secret(), Arc::clone(&clock)).is_err());
    let aes = Method::Blake3Aes128Gcm;
    let twins = vec![("ann".into(), key(aes, 2)), ("bob".into(), key(aes, 2))];
    assert!(Server::new(aes, key(aes, 1), twins, secret(), clock).is_err());
}
