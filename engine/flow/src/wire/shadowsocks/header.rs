//! What stands ahead of the payload: the headers of SIP022, and identity headers.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes256};

use super::cipher::{Key, MAX_KEY_BYTES, Method, Salt};
use crate::wire::Destination;
use crate::wire::address;
use crate::wire::reader::Reader;

/// What a stream is, in its header (SIP022, section 3.1.3).
pub(super) const CLIENT_STREAM: u8 = 0;
pub(super) const SERVER_STREAM: u8 = 1;

/// The type, the time, and the length of what follows.
pub(super) const REQUEST_HEADER_BYTES: usize = 1 + 8 + 2;

/// How much padding a request carries at most where it carries no payload.
pub(super) const MAX_PADDING_BYTES: u16 = 900;

/// How far the clock of a peer may be off, in seconds.
pub(super) const MAX_SKEW_S: u64 = 30;

/// An identity header: one block of AES.
pub(super) const IDENTITY_BYTES: usize = 16;

const IDENTITY_CONTEXT: &str = "shadowsocks 2022 identity subkey";

/// What the second header of a request holds.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) destination: Destination,
    pub(super) payload: &'a [u8],
}

/// Reads the second header of a request (SIP022, section 3.1.3): it must be complete, and hold padding or payload.
pub(super) fn read_request(header: &[u8]) -> Option<Request<'_>> {
    let mut reader = Reader::new(header);
    let destination = address::read(&mut reader)?.ok()?;
    let padding = reader.counted16()?;
    let payload = &header[reader.consumed(header)..];
    (!padding.is_empty() || !payload.is_empty()).then_some(Request { destination, payload })
}

/// What names a key in an identity header.
pub(super) fn key_name(key: &Key) -> [u8; IDENTITY_BYTES] {
    let mut name = [0; IDENTITY_BYTES];
    name.copy_from_slice(&blake3::hash(key.bytes()).as_bytes()[..IDENTITY_BYTES]);
    name
}

/// The block cipher of the identity headers that a key seals in the stream of a salt.
enum Block {
    Aes128(Aes128),
    Aes256(Aes256),
}

impl Block {
    /// `None` for methods that have no identity headers.
    fn new(method: Method, key: &Key, salt: &Salt) -> Option<Block> {
        let mut hasher = blake3::Hasher::new_derive_key(IDENTITY_CONTEXT);
        hasher.update(key.bytes()).update(salt.bytes());
        let mut subkey = [0; MAX_KEY_BYTES];
        let subkey = &mut subkey[..method.key_bytes()];
        hasher.finalize_xof().fill(subkey);
        match method {
            Method::Blake3Aes128Gcm => Aes128::new_from_slice(subkey).ok().map(Block::Aes128),
            Method::Blake3Aes256Gcm => Aes256::new_from_slice(subkey).ok().map(Block::Aes256),
            Method::Aes128Gcm
            | Method::Aes256Gcm
            | Method::ChaCha20Poly1305
            | Method::Blake3ChaCha20Poly1305 => None,
        }
    }
}

/// The identity header that `key` seals to name the key after it.
pub(super) fn seal_identity(
    method: Method,
    key: &Key,
    salt: &Salt,
    name: [u8; IDENTITY_BYTES],
) -> Option<[u8; IDENTITY_BYTES]> {
    let mut block = Array::from(name);
    match Block::new(method, key, salt)? {
        Block::Aes128(cipher) => cipher.encrypt_block(&mut block),
        Block::Aes256(cipher) => cipher.encrypt_block(&mut block),
    }
    Some(block.into())
}

/// The name of the key that an identity header names.
pub(super) fn open_identity(
    method: Method,
    key: &Key,
    salt: &Salt,
    sealed: [u8; IDENTITY_BYTES],
) -> Option<[u8; IDENTITY_BYTES]> {
    let mut block = Array::from(sealed);
    match Block::new(method, key, salt)? {
        Block::Aes128(cipher) => cipher.decrypt_block(&mut block),
        Block::Aes256(cipher) => cipher.decrypt_block(&mut block),
    }
    Some(block.into())
}
