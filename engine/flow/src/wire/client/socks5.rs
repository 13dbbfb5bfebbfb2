//! The client side of SOCKS version 5 (RFC 1928), with user name and password (RFC 1929).

use std::sync::Arc;

use super::{Credentials, Progress, ProxyError, Step};
use crate::wire::Destination;
use crate::wire::address;
use crate::wire::socks5::VERSION;

const PASSWORD_VERSION: u8 = 1;
const METHOD_NONE: u8 = 0;
const METHOD_PASSWORD: u8 = 2;
const METHOD_NO_ACCEPTABLE: u8 = 0xff;
const COMMAND_CONNECT: u8 = 1;
const ADDRESS_IPV4: u8 = 1;
const ADDRESS_NAME: u8 = 3;
const ADDRESS_IPV6: u8 = 4;
const SUCCEEDED: u8 = 0;

#[derive(Debug)]
pub(super) struct Handshake {
    destination: Destination,
    credentials: Option<Arc<Credentials>>,
    stage: Stage,
}

/// What the proxy is to say next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing: it has not been greeted.
    Greeting,
    Method,
    Verdict,
    Reply,
}

impl Handshake {
    pub(super) fn new(destination: Destination, credentials: Option<Arc<Credentials>>) -> Handshake {
        Handshake { destination, credentials, stage: Stage::Greeting }
    }

    /// Reads one message of the proxy's.
    pub(super) fn advance(&mut self, received: &[u8], out: &mut Vec<u8>) -> Progress {
        match self.stage {
            Stage::Greeting => {
                match self.credentials {
                    Some(_) => out.extend_from_slice(&[VERSION, 2, METHOD_NONE, METHOD_PASSWORD]),
                    None => out.extend_from_slice(&[VERSION, 1, METHOD_NONE]),
                }
                self.stage = Stage::Method;
                incomplete()
            }
            Stage::Method => self.read_method(received, out),
            Stage::Verdict => self.read_verdict(received, out),
            Stage::Reply => read_reply(received),
        }
    }

    fn read_method(&mut self, received: &[u8], out: &mut Vec<u8>) -> Progress {
        match (received, &self.credentials) {
            ([], _) | ([VERSION], _) => incomplete(),
            ([VERSION, METHOD_NONE, ..], _) => self.ask(out),
            ([VERSION, METHOD_PASSWORD, ..], Some(credentials)) => {
                out.push(PASSWORD_VERSION);
                for part in [&credentials.user, &credentials.password] {
                    // Credentials are no longer than an octet can say.
                    out.push(part.len() as u8);
                    out.extend_from_slice(part);
                }
                self.stage = Stage::Verdict;
                Progress { consumed: 2, step: Step::Incomplete }
            }
            ([VERSION, METHOD_NO_ACCEPTABLE, ..], _) => failed(ProxyError::Authentication),
            _ => failed(ProxyError::Malformed),
        }
    }

    fn read_verdict(&mut self, received: &[u8], out: &mut Vec<u8>) -> Progress {
        match received {
            [] | [PASSWORD_VERSION] => incomplete(),
            [PASSWORD_VERSION, SUCCEEDED, ..] => self.ask(out),
            [PASSWORD_VERSION, ..] => failed(ProxyError::Authentication),
            [..] => failed(ProxyError::Malformed),
        }
    }

    /// Two bytes have let us in: says where to go.
    fn ask(&mut self, out: &mut Vec<u8>) -> Progress {
        out.extend_from_slice(&[VERSION, COMMAND_CONNECT, 0]);
        address::write(&self.destination, out);
        self.stage = Stage::Reply;
        Progress { consumed: 2, step: Step::Incomplete }
    }
}

fn read_reply(received: &[u8]) -> Progress {
    let address_bytes = match received {
        [] | [VERSION] => return incomplete(),
        [VERSION, code, ..] if *code != SUCCEEDED => return failed(ProxyError::Socks5(*code)),
        [VERSION, _] | [VERSION, _, _] | [VERSION, _, _, ADDRESS_NAME] => return incomplete(),
        [VERSION, _, _, ADDRESS_IPV4, ..] => 4,
        [VERSION, _, _, ADDRESS_IPV6, ..] => 16,
        [VERSION, _, _, ADDRESS_NAME, length, ..] => 1 + usize::from(*length),
        [..] => return failed(ProxyError::Malformed),
    };
    let bytes = 4 + address_bytes + 2;
    if received.len() < bytes {
        return incomplete();
    }
    Progress { consumed: bytes, step: Step::Done }
}

fn incomplete() -> Progress {
    Progress { consumed: 0, step: Step::Incomplete }
}

fn failed(error: ProxyError) -> Progress {
    Progress { consumed: 0, step: Step::Failed(error) }
}
