//! What a session needs only until its pump runs, and where such memory waits for the next session.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::mem;
use std::net::SocketAddr;

use smallvec::SmallVec;

use super::attempt::Attempt;
use super::front::Front;
use super::line::Queueing;
use super::{Command, MAX_EARLY_BYTES, Stage};
use crate::dispatch::Dispatch;
use crate::pick::Subject;
use crate::pump::Side;
use crate::record::ClientAddr;
use crate::snapshot::TargetIndex;
use crate::time::Instant;
use crate::wire::peek::Peeked;
use crate::wire::shadowsocks::Tunnel;
use crate::wire::{Answer, Body, Request};

/// How many are kept for sessions to come: more than a turn of a worker brings.
const MAX_SPARES: usize = 256;

/// Longer memory for early bytes is not kept.
const MAX_SPARE_BYTES: usize = 4096;

#[derive(Debug)]
pub(super) struct Setup {
    pub(super) stage: Stage,
    pub(super) commands: VecDeque<Command>,
    /// From the client: what the handshake has not consumed, later what awaits the upstream.
    pub(super) early: Vec<u8>,
    /// Empty memory for what the session says.
    pub(super) words: Vec<u8>,
    pub(super) client_ended: bool,
    pub(super) front: Front,
    /// What the client said first, where that was looked at.
    pub(super) peeked: Option<Box<Peeked>>,
    /// None before it is complete, and for ever on a plain `tcp` listener.
    pub(super) request: Option<Request>,
    pub(super) dispatch: Dispatch,
    /// What is being tried.
    pub(super) attempts: SmallVec<[Attempt; 1]>,
    /// When the first target was picked.
    pub(super) picked_at: Option<Instant>,
    pub(super) next_connection: u16,
    pub(super) lookup: Lookup,
    /// What attempts that wait for the first byte have been told; none while there are none.
    pub(super) replay: Option<Replay>,
    pub(super) answered: Answered,
    pub(super) queueing: Queueing,
}

/// The addresses of the destination, which all attempts share.
#[derive(Debug)]
pub(super) enum Lookup {
    Idle,
    UnderWay,
    Done(Vec<SocketAddr>),
}

/// Whether the client was told of success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    NotYet,
    Yes,
}

/// What the client said, kept to be said again to another upstream.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) bytes: Vec<u8>,
    /// How much more of what the client sends may be forwarded.
    pub(super) allowance: u64,
}

impl Replay {
    /// Takes over what may be forwarded of what came, and returns it.
    pub(super) fn take_over(&mut self, early: &mut Vec<u8>) -> Vec<u8> {
        early.truncate(usize::try_from(self.allowance).unwrap_or(usize::MAX));
        if self.allowance != u64::MAX {
            self.allowance -= early.len() as u64;
        }
        self.bytes.extend_from_slice(early);
        mem::take(early)
    }

    /// Whether there may be more to be forwarded than can be held.
    pub(super) fn is_full(&self) -> bool {
        self.allowance > 0 && self.bytes.len() >= MAX_EARLY_BYTES
    }
}

/// Setups that no session needs any more.
#[derive(Debug, Default)]
#[expect(clippy::vec_box, reason = "sessions hold the boxes as they are")]
pub(crate) struct Spares {
    setups: RefCell<Vec<Box<Setup>>>,
    plain: RefCell<Vec<u8>>,
}

impl Spares {
    /// A setup that has seen nothing.
    pub(super) fn take(&self, stage: Stage, target: TargetIndex) -> Box<Setup> {
        let fresh = Setup {
            stage,
            commands: VecDeque::new(),
            early: Vec::new(),
            words: Vec::new(),
            client_ended: false,
            front: Front::default(),
            peeked: None,
            request: None,
            dispatch: Dispatch::new(target),
            attempts: SmallVec::new(),
            picked_at: None,
            next_connection: 0,
            lookup: Lookup::Idle,
            replay: None,
            answered: Answered::NotYet,
            queueing: Queueing::default(),
        };
        match self.setups.borrow_mut().pop() {
            Some(mut spare) => {
                let commands = mem::take(&mut spare.commands);
                let (early, words) = (mem::take(&mut spare.early), mem::take(&mut spare.words));
                *spare = Setup { commands, early, words, ..fresh };
                spare
            }
            None => Box::new(fresh),
        }
    }

    pub(super) fn give_back(&self, mut setup: Box<Setup>) {
        let mut spares = self.setups.borrow_mut();
        if spares.len() == MAX_SPARES {
            return;
        }
        // What it knew of its session goes now, not when the next one comes.
        setup.stage = Stage::Closed;
        setup.request = None;
        setup.front = Front::default();
        setup.peeked = None;
        setup.replay = None;
        setup.queueing = Queueing::default();
        setup.attempts.clear();
        setup.commands.clear();
        setup.early.clear();
        if setup.early.capacity() > MAX_SPARE_BYTES {
            setup.early = Vec::new();
        }
        spares.push(setup);
    }

    /// Empty memory for what is read of one side only to be sealed for the other.
    pub(super) fn take_plain(&self) -> Vec<u8> {
        self.plain.take()
    }

    pub(super) fn give_back_plain(&self, mut plain: Vec<u8>) {
        plain.clear();
        self.plain.replace(plain);
    }

    /// Those of the view before.
    pub(crate) fn inherit(&self) -> Spares {
        Spares { setups: RefCell::new(self.setups.take()), plain: RefCell::new(self.plain.take()) }
    }
}

/// What members are picked by.
pub(super) fn subject<'a>(
    client: &'a ClientAddr,
    request: Option<&'a Request>,
    peeked: Option<&'a Peeked>,
) -> Subject<'a> {
    Subject { client, destination: request.map(|request| &request.destination), peeked }
}

impl Setup {
    pub(super) fn answer(&self) -> Answer {
        self.request.as_ref().map_or(Answer::None, |request| request.answer)
    }

    /// What the upstream gets first, and how much may follow it.
    pub(super) fn take_first_bytes(&mut self) -> (Vec<u8>, u64) {
        let Some(request) = &mut self.request else { return (mem::take(&mut self.early), u64::MAX) };
        let mut first = mem::take(&mut request.preface);
        let mut allowance = u64::MAX;
        if let Body::Limited(bytes) = request.body {
            self.early.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
            allowance = bytes - self.early.len() as u64;
        }
        if first.is_empty() {
            return (mem::take(&mut self.early), allowance);
        }
        first.append(&mut self.early);
        (first, allowance)
    }

    /// Has the upstream that has won told what the client said, ahead of what may follow; returns how much that is.
    pub(super) fn send_first(
        &mut self,
        first: Vec<u8>,
        allowance: u64,
        tunnel: Option<&mut Tunnel>,
    ) -> (u64, u64) {
        let bytes = first.len() as u64;
        let first = match tunnel {
            None => first,
            Some(tunnel) => {
                let mut sealed = Vec::new();
                tunnel.seal([&first[..]], &mut sealed);
                self.reuse(first);
                sealed
            }
        };
        if first.is_empty() {
            self.reuse(first);
        } else {
            self.commands.push_back(Command::Send(Side::Upstream, first.into()));
        }
        (bytes, allowance)
    }

    /// Whether the client has said nothing that its upstream is to get.
    pub(super) fn is_silent(&self) -> bool {
        let has_preface = self.request.as_ref().is_some_and(|request| !request.preface.is_empty());
        let has_replay = self.replay.as_ref().is_some_and(|replay| !replay.bytes.is_empty());
        self.early.is_empty() && !has_preface && !has_replay && !self.client_ended
    }

    /// Whether more of what the client says can be held.
    pub(super) fn has_room(&self) -> bool {
        let held = self.replay.as_ref().map_or(0, |replay| replay.bytes.len()) + self.early.len();
        held < MAX_EARLY_BYTES
    }

    /// Takes memory back that was handed out, where there is none in its place.
    pub(super) fn reuse(&mut self, mut memory: Vec<u8>) {
        memory.clear();
        for place in [&mut self.early, &mut self.words] {
            if place.capacity() == 0 && memory.capacity() <= MAX_SPARE_BYTES {
                mem::swap(place, &mut memory);
            }
        }
    }
}

impl super::Session {
    /// Takes the memory of bytes that [`Command::Send`] brought and that were copied to where they are sent from.
    pub fn recycle(&mut self, bytes: Cow<'static, [u8]>) {
        if let (Some(setup), Cow::Owned(memory)) = (&mut self.setup, bytes) {
            setup.reuse(memory);
        }
    }
}
