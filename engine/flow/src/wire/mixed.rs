//! SOCKS5 and HTTP on one port: the first byte decides.

use super::{Progress, http, socks5};
use crate::close::CloseReason;
use crate::users::Users;

/// The first byte of SOCKS version 4.
const SOCKS4: u8 = 4;

/// "Request rejected or failed", from the SOCKS 4 protocol memo: a client that speaks it learns at once that it is
/// not understood here.
const SOCKS4_REJECTED: [u8; 8] = [0, 0x5b, 0, 0, 0, 0, 0, 0];

/// The server side of either handshake.
#[derive(Debug, Default)]
pub enum Handshake {
    /// Nothing has arrived.
    #[default]
    Undecided,
    /// It is SOCKS5.
    Socks5(socks5::Handshake),
    /// It is HTTP.
    Http(http::Handshake),
}

impl Handshake {
    /// See [`handshake::Handshake::advance`](super::handshake::Handshake::advance).
    pub fn advance(&mut self, input: &[u8], users: Option<&Users>) -> Progress {
        if let Handshake::Undecided = self {
            *self = match input.first() {
                None => return Progress::incomplete(),
                Some(&socks5::VERSION) => Handshake::Socks5(socks5::Handshake::default()),
                Some(&SOCKS4) => {
                    return Progress::refuse(&SOCKS4_REJECTED[..], CloseReason::ClientUnsupported);
                }
                // Methods are letters in practice, and a sloppy client may send an empty line first.
                Some(b'A'..=b'Z' | b'a'..=b'z' | b'\r' | b'\n') => {
                    Handshake::Http(http::Handshake::default())
                }
                Some(_) => return Progress::refuse(&[][..], CloseReason::ClientProtocol),
            };
        }
        match self {
            Handshake::Undecided => Progress::incomplete(),
            Handshake::Socks5(handshake) => handshake.advance(input, users),
            Handshake::Http(handshake) => handshake.advance(input, users),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Answer, Step};

    fn first(input: &[u8]) -> Step {
        Handshake::default().advance(input, None).step
    }

    #[test]
    fn the_first_byte_decides() {
        assert_eq!(first(b""), Step::Incomplete);
        assert_eq!(first(&[5, 1, 0]), Step::Reply([5, 0][..].into()));
        for start in ["", "\r\n"] {
            let request = format!("{start}CONNECT a.example:443 HTTP/1.1\r\n\r\n");
            let Step::Request(request) = first(request.as_bytes()) else { panic!("no request") };
            assert_eq!(request.answer, Answer::HttpConnect);
        }
    }

    #[test]
    fn socks4_is_told_that_it_is_rejected() {
        let reply = [0, 0x5b, 0, 0, 0, 0, 0, 0][..].into();
        assert_eq!(
            first(b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00"),
            Step::Refuse { reply, reason: CloseReason::ClientUnsupported }
        );
    }

    #[test]
    fn other_first_bytes_end_the_session_without_a_word() {
        for byte in [0, 1, 0x16, b' ', b'{', 0x7f, 0xff] {
            let refused = Step::Refuse { reply: [][..].into(), reason: CloseReason::ClientProtocol };
            assert_eq!(first(&[byte]), refused, "{byte}");
        }
    }

    #[test]
    fn the_choice_stays_after_bytes_were_consumed() {
        let mut handshake = Handshake::default();
        assert_eq!(handshake.advance(&[5, 1, 0], None).consumed, 3);
        let connect = [5, 1, 0, 1, 192, 0, 2, 1, 0, 80];
        let progress = handshake.advance(&connect, None);
        assert_eq!(progress.consumed, connect.len());
        assert!(matches!(progress.step, Step::Request(_)), "{progress:?}");
    }
}
