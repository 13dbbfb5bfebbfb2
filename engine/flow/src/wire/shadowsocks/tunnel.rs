//! A connection between a client and a server of Shadowsocks, as one of them holds it.

use std::iter;
use std::mem;

use super::client::{Answering, Greeting};
use super::server::AnswerHead;
use super::stream::{Feed, Forged, Opener, Sealer};

/// Seals what goes out and opens what comes in.
#[derive(Debug)]
pub struct Tunnel {
    sealer: Sealer,
    prologue: Prologue,
    incoming: Incoming,
}

/// What goes ahead of the first payload.
#[derive(Debug)]
enum Prologue {
    Request(Box<Greeting>),
    Answer(Box<AnswerHead>),
    Said,
}

#[derive(Debug)]
enum Incoming {
    /// The server's salt and header have not come.
    Answering(Box<Answering>),
    Open(Opener),
}

impl Tunnel {
    pub(super) fn of_client(sealer: Sealer, greeting: Greeting, answering: Answering) -> Tunnel {
        let prologue = Prologue::Request(Box::new(greeting));
        Tunnel { sealer, prologue, incoming: Incoming::Answering(Box::new(answering)) }
    }

    pub(super) fn of_server(sealer: Sealer, head: AnswerHead, opener: Opener) -> Tunnel {
        Tunnel { sealer, prologue: Prologue::Answer(Box::new(head)), incoming: Incoming::Open(opener) }
    }

    /// Whether the other side knows of this one: a client has said where it wants to go.
    pub fn has_greeted(&self) -> bool {
        match self.prologue {
            Prologue::Request(_) => false,
            Prologue::Answer(_) | Prologue::Said => true,
        }
    }

    /// Whether everything that came was whole: an end of the stream is an end of what was said.
    pub fn is_between_chunks(&self) -> bool {
        match &self.incoming {
            Incoming::Answering(answering) => answering.is_silent(),
            Incoming::Open(opener) => opener.is_between_chunks(),
        }
    }

    /// Appends to `out` what makes the other side read `payload`. Of a client's first, that is its request too, even
    /// without payload.
    pub fn seal<'a>(
        &mut self,
        payload: impl IntoIterator<Item = &'a [u8], IntoIter: Clone>,
        out: &mut Vec<u8>,
    ) {
        let mut feed = Feed::new(payload.into_iter());
        match mem::replace(&mut self.prologue, Prologue::Said) {
            Prologue::Said => {}
            Prologue::Request(greeting) => greeting.seal(&mut self.sealer, &mut feed, out),
            Prologue::Answer(head) if feed.left() > 0 => head.seal(&mut self.sealer, &mut feed, out),
            silent @ Prologue::Answer(_) => self.prologue = silent,
        }
        self.sealer.seal(&mut feed, out);
    }

    /// Appends to `out` the payload of what came.
    ///
    /// # Errors
    /// [`Forged`] when it does not come from somebody who has the key. What is appended then is genuine, and the tunnel
    /// is of no more use.
    pub fn open<'a>(
        &mut self,
        pieces: impl IntoIterator<Item = &'a [u8], IntoIter: Clone>,
        out: &mut Vec<u8>,
    ) -> Result<(), Forged> {
        let mut pieces = pieces.into_iter();
        match &mut self.incoming {
            Incoming::Open(opener) => opener.open(pieces, out),
            Incoming::Answering(answering) => {
                for piece in pieces.by_ref() {
                    if let Some((mut opener, rest)) = answering.read(piece)? {
                        let opened = opener.open(iter::once(rest).chain(pieces), out);
                        self.incoming = Incoming::Open(opener);
                        return opened;
                    }
                }
                Ok(())
            }
        }
    }
}
