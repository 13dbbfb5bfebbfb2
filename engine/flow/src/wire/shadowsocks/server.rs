//! The server side: who may come, and what its first bytes must be.

use std::collections::HashMap;
use std::fmt;
use std::iter;
use std::sync::Arc;

use super::cipher::{Cipher, Edition, Key, Method, Salt, TAG_BYTES};
use super::header::{self, CLIENT_STREAM, IDENTITY_BYTES, REQUEST_HEADER_BYTES, SERVER_STREAM};
use super::stream::{Feed, Opener, Sealer};
use super::{Clock, Own, Secret, Serial, Tunnel};
use crate::wire::reader::Reader;
use crate::wire::{Destination, address};

/// A server, as itself.
pub struct Server {
    own: Own,
    key: Key,
    /// By what identity headers name them. Without any, the key is everybody's.
    users: HashMap<[u8; IDENTITY_BYTES], (Arc<str>, Key)>,
}

impl Server {
    /// A server with a key. With users, each has a key of their own, and the server's is only what identity headers are
    /// sealed with.
    ///
    /// # Errors
    /// Why there can be no such users.
    pub fn new(
        method: Method,
        key: Key,
        users: Vec<(Arc<str>, Key)>,
        secret: Secret,
        clock: Arc<Clock>,
    ) -> Result<Server, String> {
        if !users.is_empty() && !method.has_identities() {
            return Err(format!("{} has one key for everybody: it has no identity headers", method.as_str()));
        }
        let mut named: HashMap<_, (Arc<str>, Key)> = HashMap::new();
        for (name, key) in users {
            if let Some((other, _)) = named.insert(header::key_name(&key), (Arc::clone(&name), key)) {
                return Err(format!("{other:?} and {name:?} have the same key"));
            }
        }
        Ok(Server { own: Own::new(method, secret, clock), key, users: named })
    }

    /// This server in the place of one before: of keys that both have, no stream that came to that one comes again.
    #[must_use]
    pub fn succeeding(&self, before: &Server) -> Server {
        let mut own = self.own.clone();
        if own.method == before.own.method {
            own.salts = Arc::clone(&before.own.salts);
        }
        Server { own, key: self.key.clone(), users: self.users.clone() }
    }

    /// How it seals.
    pub fn method(&self) -> Method {
        self.own.method
    }

    /// Who may come by a key of their own.
    pub fn users(&self) -> impl Iterator<Item = &Arc<str>> {
        self.users.values().map(|(name, _)| name)
    }
}

impl PartialEq for Server {
    fn eq(&self, other: &Server) -> bool {
        self.own.method == other.own.method && self.key == other.key && self.users == other.users
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("method", &self.own.method)
            .field("users", &self.users.len())
            .finish_non_exhaustive()
    }
}

/// Why somebody is no client of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwelcome {
    /// What must come at once came in pieces (section 3.1.3).
    #[error("less than a header came at once")]
    Segmented,
    /// It has not the key.
    #[error("what came was not sealed with this key")]
    Forged,
    /// It names a key that nobody has.
    #[error("no user has the key that is named")]
    Unknown,
    /// Another kind of message.
    #[error("the header is of another kind")]
    Kind,
    /// Too old, or of the future (section 3.1.3).
    #[error("the clocks are {0} s apart")]
    Skewed(u64),
    /// A stream that came before.
    #[error("this stream came before")]
    Replayed,
    /// It asks for nothing that could be reached.
    #[error("no request")]
    Request,
}

/// A client that was let in.
#[derive(Debug)]
pub struct Accepted {
    /// Where it wants to go.
    pub destination: Destination,
    /// Who it is, where the server knows several.
    pub user: Option<Arc<str>>,
    /// What it said beyond its request.
    pub payload: Vec<u8>,
    /// The connection from now on.
    pub tunnel: Tunnel,
}

/// Reads the request of a client.
#[derive(Debug)]
pub struct Accept {
    server: Arc<Server>,
    serial: Serial,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Of SIP004 the salt may come in pieces.
    Salt(Vec<u8>),
    Request(Box<Reading>),
    Over,
}

#[derive(Debug)]
struct Reading {
    salt: Salt,
    user: Option<Arc<str>>,
    key: Key,
    opener: Opener,
    plain: Vec<u8>,
    /// How much of it is the header, where it has said so itself.
    header_bytes: Option<usize>,
}

/// What is known once the beginning is read, and what came beyond it.
type Begun<'a> = (Box<Reading>, &'a [u8]);

impl Accept {
    /// Somebody has connected to `server`. The answer's salt is drawn with `serial`.
    pub fn new(server: &Arc<Server>, serial: Serial) -> Accept {
        Accept { server: Arc::clone(server), serial, stage: Stage::Salt(Vec::new()) }
    }

    /// Reads what came at once; the client when its request is complete, `None` while it is not.
    ///
    /// # Errors
    /// Why it is no client. It is to learn nothing from what is done then, least of all how much was read.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Option<Accepted>, Unwelcome> {
        let (mut reading, rest) = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Salt(heard) => match self.begin(heard, bytes)? {
                Some(begun) => begun,
                None => return Ok(None),
            },
            Stage::Request(reading) => (reading, bytes),
            Stage::Over => return Err(Unwelcome::Request),
        };
        reading.opener.open(iter::once(rest), &mut reading.plain).map_err(|_| Unwelcome::Forged)?;
        let Some((destination, payload)) = reading.request()? else {
            self.stage = Stage::Request(reading);
            return Ok(None);
        };
        let own = &self.server.own;
        // Of SIP022 that is known from the first header on.
        if reading.header_bytes.is_none() && !own.salts.admit(&reading.salt, own.clock.unix_s()) {
            return Err(Unwelcome::Replayed);
        }
        Ok(Some(self.accept(*reading, destination, payload)))
    }

    /// Reads what stands before the request; `None` while that is not complete.
    fn begin<'a>(&mut self, mut heard: Vec<u8>, bytes: &'a [u8]) -> Result<Option<Begun<'a>>, Unwelcome> {
        let method = self.server.own.method;
        match method.edition() {
            Edition::Aead => {
                let missing = method.key_bytes() - heard.len();
                let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
                heard.extend_from_slice(taken);
                if taken.len() < missing {
                    self.stage = Stage::Salt(heard);
                    return Ok(None);
                }
                let (salt, key) = (Salt::new(method, &heard), self.server.key.clone());
                let opener = Opener::new(method, Cipher::new(method, &key, &salt));
                let reading =
                    Reading { salt, user: None, key, opener, plain: Vec::new(), header_bytes: None };
                Ok(Some((Box::new(reading), rest)))
            }
            Edition::Aead2022 => self.read_header(bytes).map(Some),
        }
    }

    /// Reads the salt, the identity header where there are users, and the first header, all of which come at once.
    fn read_header<'a>(&self, bytes: &'a [u8]) -> Result<Begun<'a>, Unwelcome> {
        let Server { own, key, users } = &*self.server;
        let mut reader = Reader::new(bytes);
        let salt = reader.take(own.method.key_bytes()).ok_or(Unwelcome::Segmented)?;
        let salt = Salt::new(own.method, salt);
        let identity = match users.is_empty() {
            true => None,
            false => Some(reader.array::<IDENTITY_BYTES>().ok_or(Unwelcome::Segmented)?),
        };
        let sealed = reader.array::<{ REQUEST_HEADER_BYTES + TAG_BYTES }>();
        let mut header = sealed.ok_or(Unwelcome::Segmented)?;
        let (user, key) = match identity {
            None => (None, key),
            Some(sealed) => {
                let name = header::open_identity(own.method, key, &salt, sealed);
                let found = name.and_then(|name| users.get(&name));
                found.map(|(user, key)| (Some(Arc::clone(user)), key)).ok_or(Unwelcome::Unknown)?
            }
        };
        let mut cipher = Cipher::new(own.method, key, &salt);
        if !cipher.open(&mut header) {
            return Err(Unwelcome::Forged);
        }
        let mut fields = Reader::new(&header);
        let kind = fields.byte().ok_or(Unwelcome::Segmented)?;
        let unix_s = fields.array().map(u64::from_be_bytes).ok_or(Unwelcome::Segmented)?;
        let header_bytes = fields.port().map(usize::from).ok_or(Unwelcome::Segmented)?;
        if kind != CLIENT_STREAM {
            return Err(Unwelcome::Kind);
        }
        if !own.is_now(unix_s) {
            return Err(Unwelcome::Skewed(own.clock.unix_s().abs_diff(unix_s)));
        }
        if !own.salts.admit(&salt, own.clock.unix_s()) {
            return Err(Unwelcome::Replayed);
        }
        let opener = Opener::within(own.method, cipher, header_bytes);
        let (key, header_bytes) = (key.clone(), Some(header_bytes));
        let reading = Reading { salt, user, key, opener, plain: Vec::new(), header_bytes };
        Ok((Box::new(reading), &bytes[reader.consumed(bytes)..]))
    }

    fn accept(&self, reading: Reading, destination: Destination, payload: Vec<u8>) -> Accepted {
        let own = &self.server.own;
        let salt = own.draw_salt(self.serial);
        let sealer = Sealer::new(own.method, Cipher::new(own.method, &reading.key, &salt));
        let head = AnswerHead { server: Arc::clone(&self.server), salt, request_salt: reading.salt };
        let tunnel = Tunnel::of_server(sealer, head, reading.opener);
        Accepted { destination, user: reading.user, payload, tunnel }
    }
}

impl Reading {
    /// Where the client wants to go, and what it has said beyond; `None` while that is not complete.
    fn request(&mut self) -> Result<Option<(Destination, Vec<u8>)>, Unwelcome> {
        match self.header_bytes {
            Some(header_bytes) => {
                let Some((header, beyond)) = self.plain.split_at_checked(header_bytes) else {
                    return Ok(None);
                };
                let request = header::read_request(header).ok_or(Unwelcome::Request)?;
                Ok(Some((request.destination, [request.payload, beyond].concat())))
            }
            None => {
                let mut reader = Reader::new(&self.plain);
                match address::read(&mut reader) {
                    None => Ok(None),
                    Some(Err(_)) => Err(Unwelcome::Request),
                    Some(Ok(destination)) => {
                        let consumed = reader.consumed(&self.plain);
                        self.plain.drain(..consumed);
                        Ok(Some((destination, std::mem::take(&mut self.plain))))
                    }
                }
            }
        }
    }
}

/// What an answer begins with.
#[derive(Debug)]
pub(super) struct AnswerHead {
    server: Arc<Server>,
    salt: Salt,
    request_salt: Salt,
}

impl AnswerHead {
    /// Seals the beginning of an answer, and of SIP022 the first payload with it.
    pub(super) fn seal<'a>(
        &self,
        sealer: &mut Sealer,
        feed: &mut Feed<'a, impl Iterator<Item = &'a [u8]> + Clone>,
        out: &mut Vec<u8>,
    ) {
        let Own { method, clock, .. } = &self.server.own;
        out.extend_from_slice(self.salt.bytes());
        match method.edition() {
            Edition::Aead => {}
            Edition::Aead2022 => {
                let bytes = feed.left().min(method.max_payload_bytes());
                sealer.seal_one(out, |out| {
                    out.push(SERVER_STREAM);
                    out.extend_from_slice(&clock.unix_s().to_be_bytes());
                    out.extend_from_slice(self.request_salt.bytes());
                    out.extend_from_slice(&(bytes as u16).to_be_bytes());
                });
                sealer.seal_one(out, |out| feed.take(bytes, out));
            }
        }
    }
}
