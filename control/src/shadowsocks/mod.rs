//! Shadowsocks servers as they are handed around: links (SIP002), documents (SIP008), and what `ringweir import` and
//! `ringweir share` make of them.

mod documents;
mod import;
mod links;
mod share;
mod tables;

use std::fmt;

use ringweir_flow::wire::Destination;
use ringweir_flow::wire::shadowsocks::{Client, Edition, Method, Secret};
use zeroize::Zeroizing;

pub use self::import::convert;
pub(crate) use self::import::run as import;
pub(crate) use self::share::run as share;
use crate::clock;

/// The longest word that is shown as a method: what is longer may be anything, a password included.
const MAX_SHOWN_METHOD_BYTES: usize = 32;

/// A server, as its clients know it. Its `Debug` shows nothing of the password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Server {
    method: Method,
    password: Zeroizing<String>,
    address: Destination,
    plugin: Option<Plugin>,
    /// What people call it.
    tag: Option<String>,
}

/// What its traffic goes through besides (SIP003).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plugin {
    name: String,
    options: Option<String>,
}

/// What is wrong with a link or with an entry of a document. Nothing of a password is shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// Another scheme, or none.
    #[error("is no link of Shadowsocks: it does not begin with ss://")]
    Scheme,
    /// Nobody writes such links.
    #[error("is longer than {} bytes", links::MAX_LINK_BYTES)]
    Length,
    /// What stands before the host cannot be decoded.
    #[error("the part before the host is neither base64 nor percent-encoded text")]
    UserInfo,
    /// It can, and is no method with a password.
    #[error("the part before the host has no colon between method and password")]
    Colon,
    /// A method that ringweir does not speak, as far as it may be shown.
    #[error("the method {0} is not spoken here, only {known}", known = known_methods())]
    Method(String),
    /// No password of that method.
    #[error("the password {0}")]
    Password(String),
    /// Neither a name nor an address.
    #[error("the host is neither a name nor an address")]
    Host,
    /// Not 1 to 65535.
    #[error("the port is no number from 1 to 65535")]
    Port,
    /// Not what SIP003 says.
    #[error("the plugin is not percent-encoded as NAME;OPTIONS")]
    Plugin,
    /// Not percent-encoded UTF-8.
    #[error("the tag is not percent-encoded text")]
    Tag,
    /// A document leaves out what a server has.
    #[error("{0:?} is missing, or is of the wrong type")]
    Field(&'static str),
}

impl Server {
    /// Puts a server together of what was read; an empty plugin, options or tag is none.
    fn new(method: &str, password: &str, host: &str, port: u16) -> Result<Server, Fault> {
        let method = self::method(method)?;
        let password = normalized(method, password);
        // Whether it is a key is all that is asked of this client.
        Client::new(method, &password, Secret::new([0; 32]), clock::wall()).map_err(Fault::Password)?;
        if port == 0 {
            return Err(Fault::Port);
        }
        let address = Destination::from_host(host.as_bytes(), port).map_err(|_| Fault::Host)?;
        Ok(Server { method, password, address, plugin: None, tag: None })
    }

    fn with_plugin(mut self, name: &str, options: &str) -> Server {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        self.plugin = text(name).map(|name| Plugin { name, options: text(options) });
        self
    }

    fn with_tag(mut self, tag: &str) -> Server {
        self.tag = Some(tag.to_owned()).filter(|tag| !tag.is_empty());
        self
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({} at {}, {:?}, {:?})", self.method.as_str(), self.address, self.plugin, self.tag)
    }
}

fn method(word: &str) -> Result<Method, Fault> {
    let known = Method::ALL.into_iter().find(|method| method.as_str().eq_ignore_ascii_case(word));
    known.ok_or_else(|| {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let may_show = word.len() <= MAX_SHOWN_METHOD_BYTES && word.bytes().all(is_word);
        Fault::Method(if may_show { format!("{word:?}") } else { "(not shown)".to_owned() })
    })
}

fn known_methods() -> String {
    Method::ALL.map(Method::as_str).join(", ")
}

/// Keys of SIP022 come without their padding, and in the alphabet of URLs, as links have it.
fn normalized(method: Method, password: &str) -> Zeroizing<String> {
    let key = |key: &str| {
        let mut key = key.trim_end_matches('=').replace('-', "+").replace('_', "/");
        while !key.is_empty() && !key.len().is_multiple_of(4) {
            key.push('=');
        }
        key
    };
    Zeroizing::new(match method.edition() {
        Edition::Aead => password.to_owned(),
        Edition::Aead2022 => password.split(':').map(key).collect::<Vec<_>>().join(":"),
    })
}
