//! The methods, their keys, and the ciphers that come of them.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use shadowsocks_crypto::v1::openssl_bytes_to_key;
use shadowsocks_crypto::{CipherKind, v1, v2};
use zeroize::Zeroizing;

/// What authenticates each message of a stream.
pub(super) const TAG_BYTES: usize = 16;

/// The longest key, and the longest salt: they are of one length.
pub(super) const MAX_KEY_BYTES: usize = 32;

/// How a stream is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// SIP004.
    Aes128Gcm,
    /// SIP004.
    Aes256Gcm,
    /// SIP004.
    ChaCha20Poly1305,
    /// SIP022.
    Blake3Aes128Gcm,
    /// SIP022.
    Blake3Aes256Gcm,
    /// SIP022.
    Blake3ChaCha20Poly1305,
}

/// What surrounds the sealed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edition {
    /// SIP004, of 2017: a salt, and then chunks.
    Aead,
    /// SIP022, of 2022: headers with a time, bound to each other.
    Aead2022,
}

impl Method {
    /// All of them.
    pub const ALL: [Method; 6] = [
        Method::Aes128Gcm,
        Method::Aes256Gcm,
        Method::ChaCha20Poly1305,
        Method::Blake3Aes128Gcm,
        Method::Blake3Aes256Gcm,
        Method::Blake3ChaCha20Poly1305,
    ];

    /// The word used in configurations and links.
    pub const fn as_str(self) -> &'static str {
        match self {
            Method::Aes128Gcm => "aes-128-gcm",
            Method::Aes256Gcm => "aes-256-gcm",
            Method::ChaCha20Poly1305 => "chacha20-ietf-poly1305",
            Method::Blake3Aes128Gcm => "2022-blake3-aes-128-gcm",
            Method::Blake3Aes256Gcm => "2022-blake3-aes-256-gcm",
            Method::Blake3ChaCha20Poly1305 => "2022-blake3-chacha20-poly1305",
        }
    }

    /// What surrounds the sealed bytes.
    pub const fn edition(self) -> Edition {
        match self {
            Method::Aes128Gcm | Method::Aes256Gcm | Method::ChaCha20Poly1305 => Edition::Aead,
            Method::Blake3Aes128Gcm | Method::Blake3Aes256Gcm | Method::Blake3ChaCha20Poly1305 => {
                Edition::Aead2022
            }
        }
    }

    /// How long its keys are, in bytes, and its salts.
    pub const fn key_bytes(self) -> usize {
        match self {
            Method::Aes128Gcm | Method::Blake3Aes128Gcm => 16,
            Method::Aes256Gcm
            | Method::ChaCha20Poly1305
            | Method::Blake3Aes256Gcm
            | Method::Blake3ChaCha20Poly1305 => 32,
        }
    }

    /// Whether identity headers, and with them several users of one listener, exist for it: they are sealed by AES
    /// alone.
    pub const fn has_identities(self) -> bool {
        match self {
            Method::Blake3Aes128Gcm | Method::Blake3Aes256Gcm => true,
            Method::Aes128Gcm
            | Method::Aes256Gcm
            | Method::ChaCha20Poly1305
            | Method::Blake3ChaCha20Poly1305 => false,
        }
    }

    /// How much payload one chunk takes at most.
    pub(super) const fn max_payload_bytes(self) -> usize {
        match self.edition() {
            Edition::Aead => 0x3fff,
            Edition::Aead2022 => 0xffff,
        }
    }

    const fn kind(self) -> CipherKind {
        match self {
            Method::Aes128Gcm => CipherKind::AES_128_GCM,
            Method::Aes256Gcm => CipherKind::AES_256_GCM,
            Method::ChaCha20Poly1305 => CipherKind::CHACHA20_POLY1305,
            Method::Blake3Aes128Gcm => CipherKind::AEAD2022_BLAKE3_AES_128_GCM,
            Method::Blake3Aes256Gcm => CipherKind::AEAD2022_BLAKE3_AES_256_GCM,
            Method::Blake3ChaCha20Poly1305 => CipherKind::AEAD2022_BLAKE3_CHACHA20_POLY1305,
        }
    }
}

/// A key, as long as its method wants it. Wiped when dropped; its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Zeroizing<Vec<u8>>);

/// Why a text is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// A password of SIP004 has at least one byte.
    #[error("is empty")]
    Empty,
    /// SIP022 wants base64.
    #[error("is not base64, as {} wants it: openssl rand -base64 {} makes one", .0.as_str(), .0.key_bytes())]
    NotBase64(Method),
    /// Another length than the method's.
    #[error("has {found} bytes, and a key of {} has {}", .method.as_str(), .method.key_bytes())]
    Length {
        /// Whose key it was to be.
        method: Method,
        /// How long it is.
        found: usize,
    },
}

impl Key {
    /// The key that a text stands for: of SIP004, any password, as OpenSSL's EVP_BytesToKey makes one of it with MD5;
    /// of SIP022, base64 of the key itself (section 2.1).
    ///
    /// # Errors
    /// [`BadKey`] when it stands for none.
    pub fn new(method: Method, text: &str) -> Result<Key, BadKey> {
        match method.edition() {
            Edition::Aead if text.is_empty() => Err(BadKey::Empty),
            Edition::Aead => {
                let mut key = Zeroizing::new(vec![0; method.key_bytes()]);
                openssl_bytes_to_key(text.as_bytes(), &mut key);
                Ok(Key(key))
            }
            Edition::Aead2022 => {
                let key = BASE64_STANDARD.decode(text).map_err(|_| BadKey::NotBase64(method))?;
                let key = Zeroizing::new(key);
                match key.len() {
                    found if found == method.key_bytes() => Ok(Key(key)),
                    found => Err(BadKey::Length { method, found }),
                }
            }
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The salt of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Salt {
    /// What is beyond the length is 0.
    bytes: [u8; MAX_KEY_BYTES],
    length: u8,
}

impl Salt {
    /// The first bytes of these, as many as the method wants.
    ///
    /// # Panics
    /// when there are fewer.
    pub(super) fn new(method: Method, from: &[u8]) -> Salt {
        let mut bytes = [0; MAX_KEY_BYTES];
        bytes[..method.key_bytes()].copy_from_slice(&from[..method.key_bytes()]);
        Salt { bytes, length: method.key_bytes() as u8 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// Seals or opens the messages of one stream, each under the next nonce.
pub(super) enum Cipher {
    Aead(v1::Cipher),
    Aead2022(v2::tcp::TcpCipher),
}

impl Cipher {
    pub(super) fn new(method: Method, key: &Key, salt: &Salt) -> Box<Cipher> {
        // The crate panics on lengths that do not fit; a key is made to fit.
        debug_assert_eq!(key.bytes().len(), method.key_bytes());
        Box::new(match method.edition() {
            Edition::Aead => Cipher::Aead(v1::Cipher::new(method.kind(), key.bytes(), salt.bytes())),
            Edition::Aead2022 => {
                Cipher::Aead2022(v2::tcp::TcpCipher::new(method.kind(), key.bytes(), salt.bytes()))
            }
        })
    }

    /// Seals in place what stands before the last [`TAG_BYTES`] bytes, which become the tag.
    pub(super) fn seal(&mut self, message: &mut [u8]) {
        assert!(message.len() >= TAG_BYTES, "a message has room for its tag");
        match self {
            Cipher::Aead(cipher) => cipher.encrypt_packet(message),
            Cipher::Aead2022(cipher) => cipher.encrypt_packet(message),
        }
    }

    /// Opens in place what stands before the tag; says whether it is genuine.
    #[must_use]
    pub(super) fn open(&mut self, message: &mut [u8]) -> bool {
        // The crate panics on what has no room for a tag.
        message.len() >= TAG_BYTES
            && match self {
                Cipher::Aead(cipher) => cipher.decrypt_packet(message),
                Cipher::Aead2022(cipher) => cipher.decrypt_packet(message),
            }
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_become_the_keys_that_openssl_makes_of_them() {
        // openssl enc -aes-256-cbc -k foobar -nosalt -P -md md5
        let key = Key::new(Method::Aes256Gcm, "foobar").unwrap();
        let expected = "3858f62230ac3c915f300c664312c63f568378529614d22ddb49237d2f60bfdf";
        let shown: String = key.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(shown, expected);
        assert_eq!(Key::new(Method::Aes128Gcm, "foobar").unwrap().bytes(), &key.bytes()[..16]);
    }

    #[test]
    fn keys_of_2022_are_base64_of_the_right_length() {
        let sixteen = BASE64_STANDARD.encode([7; 16]);
        assert!(Key::new(Method::Blake3Aes128Gcm, &sixteen).is_ok());
        let method = Method::Blake3Aes256Gcm;
        assert_eq!(Key::new(method, &sixteen), Err(BadKey::Length { method, found: 16 }));
        assert_eq!(Key::new(method, "pass word"), Err(BadKey::NotBase64(method)));
        assert_eq!(Key::new(Method::Aes128Gcm, ""), Err(BadKey::Empty));
    }

    #[test]
    fn nothing_shorter_than_a_tag_is_opened() {
        for method in Method::ALL {
            let key = Key(Zeroizing::new(vec![1; method.key_bytes()]));
            let mut cipher = Cipher::new(method, &key, &Salt::new(method, &[2; MAX_KEY_BYTES]));
            for length in 0..TAG_BYTES {
                assert!(!cipher.open(&mut vec![0; length]));
            }
        }
    }
}
