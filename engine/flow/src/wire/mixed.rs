//! Several protocols on one port: the first byte decides.

use super::{Progress, http, socks4, socks5};
use crate::close::CloseReason;
use crate::users::Users;
use crate::verify::Verdict;

/// The server side of the handshakes of one port.
#[derive(Debug)]
pub enum Handshake {
    /// Nothing has arrived.
    Undecided(Spoken),
    /// It is SOCKS 4 or 4a.
    Socks4,
    /// It is SOCKS5.
    Socks5(socks5::Handshake),
    /// It is HTTP.
    Http(http::Handshake),
}

/// What a client may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// SOCKS in every version.
    Socks,
    /// SOCKS in every version, or HTTP.
    SocksOrHttp,
}

impl Handshake {
    /// See [`handshake::Handshake::advance`](super::handshake::Handshake::advance).
    pub fn advance(&mut self, input: &[u8], users: Option<&Users>) -> Progress {
        if let Handshake::Undecided(spoken) = *self {
            *self = match (input.first(), spoken) {
                (None, _) => return Progress::incomplete(),
                (Some(&socks5::VERSION), _) => Handshake::Socks5(socks5::Handshake::default()),
                (Some(&socks4::VERSION), _) => Handshake::Socks4,
                // Methods are letters in practice, and a sloppy client may send an empty line first.
                (Some(b'A'..=b'Z' | b'a'..=b'z' | b'\r' | b'\n'), Spoken::SocksOrHttp) => {
                    Handshake::Http(http::Handshake::default())
                }
                (Some(_), Spoken::Socks | Spoken::SocksOrHttp) => {
                    return Progress::refuse(&[][..], CloseReason::ClientProtocol);
                }
            };
        }
        match self {
            Handshake::Undecided(_) => Progress::incomplete(),
            Handshake::Socks4 => socks4::advance(input, users),
            Handshake::Socks5(handshake) => handshake.advance(input, users),
            Handshake::Http(handshake) => handshake.advance(input, users),
        }
    }

    /// See [`handshake::Handshake::handle_verdict`](super::handshake::Handshake::handle_verdict).
    pub fn handle_verdict(&mut self, verdict: Verdict) {
        match self {
            Handshake::Socks5(handshake) => handshake.handle_verdict(verdict),
            Handshake::Http(handshake) => handshake.handle_verdict(verdict),
            Handshake::Undecided(_) | Handshake::Socks4 => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Answer, Step};

    const SOCKS4_CONNECT: &[u8] = b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00";

    fn first(input: &[u8]) -> Step {
        Handshake::Undecided(Spoken::SocksOrHttp).advance(input, None).step
    }

    #[test]
    fn the_first_byte_decides() {
        assert_eq!(first(b""), Step::Incomplete);
        assert_eq!(first(&[5, 1, 0]), Step::Reply([5, 0][..].into()));
        let Step::Request(request) = first(SOCKS4_CONNECT) else { panic!("no request") };
        assert_eq!(request.answer, Answer::Socks4);
        for start in ["", "\r\n"] {
            let request = format!("{start}CONNECT a.example:443 HTTP/1.1\r\n\r\n");
            let Step::Request(request) = first(request.as_bytes()) else { panic!("no request") };
            assert_eq!(request.answer, Answer::HttpConnect);
        }
    }

    #[test]
    fn other_first_bytes_end_the_session_without_a_word() {
        let refused = Step::Refuse { reply: [][..].into(), reason: CloseReason::ClientProtocol };
        for byte in [0, 1, 0x16, b' ', b'{', 0x7f, 0xff] {
            assert_eq!(first(&[byte]), refused, "{byte}");
        }
        let http = Handshake::Undecided(Spoken::Socks).advance(b"CONNECT", None).step;
        assert_eq!(http, refused, "a port for SOCKS alone");
    }

    #[test]
    fn the_choice_stays_after_bytes_were_consumed() {
        let mut handshake = Handshake::Undecided(Spoken::Socks);
        assert_eq!(handshake.advance(&[5, 1, 0], None).consumed, 3);
        let connect = [5, 1, 0, 1, 192, 0, 2, 1, 0, 80];
        let progress = handshake.advance(&connect, None);
        assert_eq!(progress.consumed, connect.len());
        assert!(matches!(progress.step, Step::Request(_)), "{progress:?}");
    }
}
