//! The two ends of a session, and the two ways that bytes flow between them.

/// One end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Who connected to the listener.
    Client,
    /// Who was dialled.
    Upstream,
}

impl Side {
    /// The other end.
    pub const fn other(self) -> Side {
        match self {
            Side::Client => Side::Upstream,
            Side::Upstream => Side::Client,
        }
    }
}

/// Which way bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the upstream.
    Up,
    /// From the upstream to the client.
    Down,
}

impl Direction {
    /// Both.
    pub const BOTH: [Direction; 2] = [Direction::Up, Direction::Down];

    /// The opposite one.
    pub const fn other(self) -> Direction {
        match self {
            Direction::Up => Direction::Down,
            Direction::Down => Direction::Up,
        }
    }

    /// Where its bytes come from.
    pub const fn source(self) -> Side {
        match self {
            Direction::Up => Side::Client,
            Direction::Down => Side::Upstream,
        }
    }

    /// Where its bytes go.
    pub const fn sink(self) -> Side {
        self.source().other()
    }

    /// The direction whose bytes come from `side`.
    pub const fn from(side: Side) -> Direction {
        match side {
            Side::Client => Direction::Up,
            Side::Upstream => Direction::Down,
        }
    }
}
