//! The client side of an HTTP/1.1 CONNECT (RFC 9110, section 9.3.6), with Basic credentials (RFC 7617).

use std::fmt::Write as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

use super::{Credentials, Progress, ProxyError, Step};
use crate::wire::Destination;

/// The most header fields of an answer; more than any proxy sends.
const MAX_FIELDS: usize = 64;

#[derive(Debug)]
pub(super) struct Handshake {
    /// What is to be asked, until it is.
    question: Option<(Destination, Option<Arc<Credentials>>)>,
}

impl Handshake {
    pub(super) fn new(destination: Destination, credentials: Option<Arc<Credentials>>) -> Handshake {
        Handshake { question: Some((destination, credentials)) }
    }

    /// Says what is to be said, once.
    pub(super) fn ask(&mut self, out: &mut Vec<u8>) {
        let Some((destination, credentials)) = self.question.take() else { return };
        let mut head = format!("CONNECT {destination} HTTP/1.1\r\nHost: {destination}\r\n");
        if let Some(credentials) = credentials {
            let both = Zeroizing::new([&credentials.user[..], b":", &credentials.password[..]].concat());
            let encoded = Zeroizing::new(BASE64_STANDARD.encode(&*both));
            // Writing to a string does not fail.
            let _ = write!(head, "Proxy-Authorization: Basic {}\r\n", *encoded);
        }
        head.push_str("\r\n");
        out.extend_from_slice(head.as_bytes());
    }

    /// Reads one head of the proxy's.
    pub(super) fn advance(&mut self, received: &[u8]) -> Progress {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut answer = httparse::Response::new(&mut fields);
        match answer.parse(received) {
            Ok(httparse::Status::Partial) => Progress { consumed: 0, step: Step::Incomplete },
            Ok(httparse::Status::Complete(consumed)) => match answer.code {
                // The answer is still to come.
                Some(100..=199) => Progress { consumed, step: Step::Incomplete },
                // No success of CONNECT has a body, whatever its head says (RFC 9110, section 9.3.6).
                Some(200..=299) => Progress { consumed, step: Step::Done },
                Some(407) => Progress { consumed, step: Step::Failed(ProxyError::Authentication) },
                Some(status) => Progress { consumed, step: Step::Failed(ProxyError::Http(status)) },
                None => Progress { consumed, step: Step::Failed(ProxyError::Malformed) },
            },
            Err(_) => Progress { consumed: 0, step: Step::Failed(ProxyError::Malformed) },
        }
    }
}
