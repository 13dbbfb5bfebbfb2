//! Systems that cannot splice sockets through pipes: there is no pipe.

use std::io;
use std::sync::Arc;

use ringweir_flow::way::Refusal;

/// How many pipes there may be: none.
#[derive(Debug)]
pub(crate) struct Budget;

impl Budget {
    pub(crate) fn of_this_system() -> Budget {
        Budget
    }

    pub(crate) fn new(_: usize) -> Budget {
        Budget
    }

    pub(crate) fn pipes(&self) -> usize {
        0
    }
}

/// Where a worker gets its pipes.
#[derive(Debug)]
pub(crate) struct Pool;

impl Pool {
    pub(crate) fn new(_: Arc<Budget>) -> Pool {
        Pool
    }

    pub(crate) fn take(&mut self) -> Result<Pipe, Refusal> {
        Err(Refusal::Unsupported)
    }

    pub(crate) fn give_back(&mut self, pipe: Pipe) {
        match pipe {}
    }
}

/// There is none.
#[derive(Debug)]
pub(crate) enum Pipe {}

impl Pipe {
    pub(crate) fn is_empty(&self) -> bool {
        match *self {}
    }
}

pub(crate) fn fill<S>(pipe: &mut Pipe, _: S, _: u64) -> io::Result<usize> {
    match *pipe {}
}

pub(crate) fn drain<S>(pipe: &mut Pipe, _: S, _: usize) -> io::Result<usize> {
    match *pipe {}
}

pub(crate) fn is_unspliceable(_: &io::Error) -> bool {
    true
}
