//! The client side: whom it asks, what it says first, and how the answer must begin.

use std::fmt;
use std::sync::Arc;

use super::cipher::{Cipher, Edition, Key, Method, Salt, TAG_BYTES};
use super::header::{
    self, CLIENT_STREAM, IDENTITY_BYTES, MAX_PADDING_BYTES, REQUEST_HEADER_BYTES, SERVER_STREAM,
};
use super::stream::{Feed, Forged, Opener, Sealer};
use super::{Clock, Own, Secret, Serial, Tunnel};
use crate::wire::{Destination, address};

/// How many keys one client names: relays upon relays are no more than a few.
const MAX_KEYS: usize = 8;

/// A server, as its clients know it.
pub struct Client {
    own: Own,
    /// Those of identity headers, and at last the one that seals.
    identities: Vec<Key>,
    key: Key,
}

impl Client {
    /// A client with the keys that a text stands for: one, or, of the methods that have identity headers, several with
    /// colons between them, the last of which is the user's.
    ///
    /// # Errors
    /// Why the text is no list of keys of `method`.
    pub fn new(method: Method, text: &str, secret: Secret, clock: Arc<Clock>) -> Result<Client, String> {
        let own = Own::new(method, secret, clock);
        let mut keys = match method.edition() {
            // A password may have any character.
            Edition::Aead => vec![Key::new(method, text).map_err(|error| error.to_string())?],
            Edition::Aead2022 => {
                let keys = text.split(':').map(|text| Key::new(method, text));
                keys.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?
            }
        };
        if keys.len() > 1 && !method.has_identities() {
            return Err(format!("has several keys, and {} has no identity headers", method.as_str()));
        }
        if keys.len() > MAX_KEYS {
            return Err(format!("has {} keys: {MAX_KEYS} are the most", keys.len()));
        }
        let Some(key) = keys.pop() else { unreachable!("a text has at least one part") };
        Ok(Client { own, identities: keys, key })
    }

    /// How it seals.
    pub fn method(&self) -> Method {
        self.own.method
    }

    /// A connection that is to lead to `destination`. `draw` is any number.
    pub fn tunnel(self: &Arc<Self>, destination: Destination, serial: Serial, draw: u16) -> Tunnel {
        let method = self.own.method;
        let salt = self.own.draw_salt(serial);
        let sealer = Sealer::new(method, Cipher::new(method, &self.key, &salt));
        let padding_bytes = 1 + draw % MAX_PADDING_BYTES;
        let greeting = Greeting { client: Arc::clone(self), salt, destination, padding_bytes };
        let answering = Answering { client: Arc::clone(self), request_salt: salt, heard: Vec::new() };
        Tunnel::of_client(sealer, greeting, answering)
    }
}

impl PartialEq for Client {
    fn eq(&self, other: &Client) -> bool {
        self.own.method == other.own.method && self.identities == other.identities && self.key == other.key
    }
}

impl Eq for Client {}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("method", &self.own.method).finish_non_exhaustive()
    }
}

/// What a client says first: everything up to its first payload is one write (section 3.1.3).
#[derive(Debug)]
pub(super) struct Greeting {
    client: Arc<Client>,
    salt: Salt,
    destination: Destination,
    /// Where there is no payload.
    padding_bytes: u16,
}

impl Greeting {
    pub(super) fn seal<'a>(
        &self,
        sealer: &mut Sealer,
        feed: &mut Feed<'a, impl Iterator<Item = &'a [u8]> + Clone>,
        out: &mut Vec<u8>,
    ) {
        let Own { method, clock, .. } = &self.client.own;
        out.extend_from_slice(self.salt.bytes());
        let mut head = Vec::new();
        address::write(&self.destination, &mut head);
        match method.edition() {
            Edition::Aead => {
                let bytes = (head.len() + feed.left()).min(method.max_payload_bytes());
                sealer.seal_chunk(bytes, out, |out| {
                    out.extend_from_slice(&head);
                    feed.take(bytes - head.len(), out);
                });
            }
            Edition::Aead2022 => {
                self.seal_identities(out);
                let padding_bytes = if feed.left() == 0 { self.padding_bytes } else { 0 };
                head.extend_from_slice(&padding_bytes.to_be_bytes());
                head.resize(head.len() + usize::from(padding_bytes), 0);
                let bytes = (head.len() + feed.left()).min(method.max_payload_bytes());
                sealer.seal_one(out, |out| {
                    out.push(CLIENT_STREAM);
                    out.extend_from_slice(&clock.unix_s().to_be_bytes());
                    out.extend_from_slice(&(bytes as u16).to_be_bytes());
                });
                sealer.seal_one(out, |out| {
                    out.extend_from_slice(&head);
                    feed.take(bytes - head.len(), out);
                });
            }
        }
    }

    fn seal_identities(&self, out: &mut Vec<u8>) {
        let Client { own, identities, key } = &*self.client;
        let named = identities.iter().skip(1).chain([key]);
        for (identity, named) in identities.iter().zip(named) {
            let name = header::key_name(named);
            // Keys are several only where there are identity headers.
            let sealed: Option<[u8; IDENTITY_BYTES]> =
                header::seal_identity(own.method, identity, &self.salt, name);
            out.extend(sealed.into_iter().flatten());
        }
    }
}

/// The beginning of an answer, as far as it has come.
#[derive(Debug)]
pub(super) struct Answering {
    client: Arc<Client>,
    request_salt: Salt,
    heard: Vec<u8>,
}

impl Answering {
    pub(super) fn is_silent(&self) -> bool {
        self.heard.is_empty()
    }

    /// Reads on; what opens the rest, and the rest of the piece, when the beginning is complete.
    pub(super) fn read<'a>(&mut self, piece: &'a [u8]) -> Result<Option<(Opener, &'a [u8])>, Forged> {
        let Own { method, .. } = self.client.own;
        let salt_bytes = method.key_bytes();
        let whole = match method.edition() {
            Edition::Aead => salt_bytes,
            Edition::Aead2022 => salt_bytes + REQUEST_HEADER_BYTES + salt_bytes + TAG_BYTES,
        };
        let missing = whole - self.heard.len();
        let (taken, rest) = piece.split_at(missing.min(piece.len()));
        self.heard.extend_from_slice(taken);
        if taken.len() < missing {
            return Ok(None);
        }
        let salt = Salt::new(method, &self.heard);
        let cipher = Cipher::new(method, &self.client.key, &salt);
        let opener = match method.edition() {
            Edition::Aead => Opener::new(method, cipher),
            Edition::Aead2022 => self.read_header(salt, cipher)?,
        };
        Ok(Some((opener, rest)))
    }

    /// The header of an answer: it must be of our request, and of now.
    fn read_header(&mut self, salt: Salt, mut cipher: Box<Cipher>) -> Result<Opener, Forged> {
        let own = &self.client.own;
        let salt_bytes = own.method.key_bytes();
        let header = &mut self.heard[salt_bytes..];
        if !cipher.open(header) {
            return Err(Forged);
        }
        let (kind, time) = (header[0], &header[1..9]);
        let (answered, length) = header[9..].split_at(salt_bytes);
        let unix_s = time.try_into().map_or(0, u64::from_be_bytes);
        let is_ours = kind == SERVER_STREAM && answered == self.request_salt.bytes() && own.is_now(unix_s);
        if !is_ours || !own.salts.admit(&salt, own.clock.unix_s()) {
            return Err(Forged);
        }
        let bytes = usize::from(u16::from_be_bytes([length[0], length[1]]));
        Ok(Opener::within(own.method, cipher, bytes))
    }
}
