//! What must be true of a session once both of its ends are over.

use std::cell::Cell;
use std::fmt;

use crate::peer::{ReadState, Tally, Writing};
use crate::script::{Direction, How, Leave, Script, Side, Temper};

/// A session, as both of its ends report it.
pub(crate) struct Live {
    pub(crate) number: u64,
    pub(crate) script: Script,
    pub(crate) client: Tally,
    pub(crate) upstream: Tally,
    /// Whether it has reached our upstream.
    pub(crate) is_attached: Cell<bool>,
    /// Whether the end before its time came as written.
    pub(crate) has_aborted: Cell<bool>,
}

/// One direction of a session.
struct Lane<'a> {
    direction: Direction,
    source_side: Side,
    source: &'a Tally,
    sink: &'a Tally,
    bytes: u64,
}

impl Live {
    pub(crate) fn new(number: u64, script: Script) -> Live {
        Live {
            number,
            script,
            client: Tally::new(),
            upstream: Tally::new(),
            is_attached: Cell::new(false),
            has_aborted: Cell::new(false),
        }
    }

    pub(crate) fn tally(&self, side: Side) -> &Tally {
        match side {
            Side::Client => &self.client,
            Side::Upstream => &self.upstream,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.client.is_over.get() && self.upstream.is_over.get()
    }

    /// Turned away with nothing moved: all a daemon without descriptors can do.
    pub(crate) fn is_refused(&self) -> bool {
        !self.is_attached.get() && self.client.received.get() == 0
    }

    /// What is wrong with how it went, if anything is.
    pub(crate) fn judge(&self) -> Result<(), String> {
        let up = Lane {
            direction: Direction::Up,
            source_side: Side::Client,
            source: &self.client,
            sink: &self.upstream,
            bytes: self.script.client.bytes,
        };
        let down = Lane {
            direction: Direction::Down,
            source_side: Side::Upstream,
            source: &self.upstream,
            sink: &self.client,
            bytes: self.script.upstream.bytes,
        };
        match self.script.temper {
            Temper::Orderly => {
                up.judge_orderly(Leave::Last)?;
                down.judge_orderly(self.script.leave)
            }
            Temper::Rough(abort) => {
                if !self.has_aborted.get() && (self.is_attached.get() || abort.by == Side::Client) {
                    return Err("it ended before the end that its script has".to_owned());
                }
                up.judge_rough(self)?;
                down.judge_rough(self)
            }
        }
    }
}

impl Lane<'_> {
    fn judge_orderly(&self, leave: Leave) -> Result<(), String> {
        let reading = match leave {
            Leave::Last => ReadState::Ended,
            Leave::AtOnce => ReadState::Open,
        };
        let is_right = self.source.sent.get() == self.bytes
            && self.source.writing.get() == Writing::Ended
            && self.source.broken.get().is_none()
            && self.sink.received.get() == self.bytes
            && self.sink.reading.get() == reading;
        if is_right {
            Ok(())
        } else {
            Err(format!("{:?} was to bring {} bytes and an end", self.direction, self.bytes))
        }
    }

    fn judge_rough(&self, live: &Live) -> Result<(), String> {
        let Temper::Rough(abort) = live.script.temper else { return Ok(()) };
        let (sent, received) = (self.source.sent.get(), self.sink.received.get());
        if received > sent {
            return Err(format!("{:?} brought {received} bytes of {sent}", self.direction));
        }
        let is_clean_end = self.sink.reading.get() == ReadState::Ended && self.sink.broken.get().is_none();
        if !is_clean_end {
            return Ok(());
        }
        let may_look_clean = abort.by == self.source_side
            && match abort.how {
                How::Close => true,
                How::Reset => !live.script.route.passes_resets(),
            };
        match self.source.writing.get() {
            Writing::Ended if received == sent => Ok(()),
            Writing::Ended if !live.script.route.passes_resets() => Ok(()),
            Writing::Ended => {
                Err(format!("{:?} ended in order after {received} of {sent} bytes", self.direction))
            }
            Writing::Left | Writing::Shaking | Writing::Move(_) if may_look_clean => Ok(()),
            Writing::Left | Writing::Shaking | Writing::Move(_) => {
                Err(format!("{:?} ended in order, but its source did not", self.direction))
            }
        }
    }
}

impl fmt::Display for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "session {} of {:?}, {:?}", self.number, self.script.route, self.script.temper)?;
        writeln!(f, "    client: {}", self.client)?;
        writeln!(f, "    upstream: attached {}, {}", self.is_attached.get(), self.upstream)?;
        writeln!(f, "    {:?}, {:?}", self.script.handshake, self.script.leave)?;
        for (side, part) in [("client", &self.script.client), ("upstream", &self.script.upstream)] {
            let moves = format!("{:?}", part.moves);
            let shown = moves.get(..2000).unwrap_or(&moves);
            writeln!(
                f,
                "    {side}'s part: {} bytes, buffers {:?}/{:?}, readings {:?}, moves {shown}",
                part.bytes, part.send_buffer_bytes, part.receive_buffer_bytes, part.readings
            )?;
        }
        Ok(())
    }
}
