//! The decision where a session goes, once its request is complete.

use std::rc::Rc;

use super::{Session, Stage};
use crate::close::CloseReason;
use crate::dispatch::Dispatch;
use crate::pump::{Closing, Ending};
use crate::rules::{Action, Facts, Rules};
use crate::time::Instant;
use crate::wire::peek::Peeked;
use crate::wire::{Answer, Destination, Failure, HostName, Request};

/// No answer, and no reset that would be one.
const DROPPED: Closing =
    Closing { reason: CloseReason::RuleDropped, client: Ending::Plain, upstream: Ending::Plain };

impl Session {
    /// All that a client says of where it wants to go is said: sets out for the target that the rules lead to, or ends
    /// the session where they say so.
    pub(super) fn set_out(&mut self, now: Instant) {
        let view = Rc::clone(&self.view);
        if let Some(rules) = view.snapshot().rules.as_deref() {
            match self.decide(rules) {
                Some(Action::Target(target)) => {
                    self.rule_target = Some(target);
                    if let Some(setup) = &mut self.setup {
                        setup.dispatch = Dispatch::new(target);
                    }
                }
                Some(Action::Reject) => {
                    self.tell_failure(Failure::Rejected, CloseReason::RuleRejected, now);
                    return;
                }
                Some(Action::Drop) => {
                    self.close(DROPPED);
                    return;
                }
                None => {}
            }
        }
        if let Some(setup) = &mut self.setup {
            setup.stage = Stage::Reaching;
        }
        self.advance(now);
    }

    /// What a rule says; `None` where none matches, and the session goes to its listener's target.
    fn decide(&mut self, rules: &Rules) -> Option<Action> {
        let setup = self.setup.as_ref()?;
        let request = setup.request.as_ref();
        let peeked = setup.peeked.as_deref();
        let named = peeked.and_then(Peeked::host).map(HostName::as_str);
        let (sni, alpn, host) = match peeked {
            Some(Peeked::Tls(hello)) => (named, &hello.protocols[..], None),
            Some(Peeked::Http(_)) => (None, &[][..], named),
            None => (None, &[][..], request.and_then(host_of)),
        };
        let facts = Facts {
            listener: self.listener,
            user: request.and_then(|request| request.user.as_deref()),
            client: &self.client,
            destination: request.map(|request| &request.destination),
            sni,
            alpn,
            host,
            path: peeked.and_then(Peeked::path).or_else(|| request.and_then(path_of)),
        };
        let decision = rules.decide(&facts, self.listener().target);
        rules.count(decision, self.view.worker());
        self.rule = decision.rule;
        decision.rule.map(|_| decision.action)
    }
}

/// The server that a plain HTTP request names: its `Host` is written anew from where it wants to go.
fn host_of(request: &Request) -> Option<&str> {
    match (request.answer, &request.destination) {
        (Answer::HttpPlain, Destination::Name(name, _)) => Some(name.as_str()),
        (Answer::HttpPlain, Destination::Address(_))
        | (Answer::None | Answer::Socks4 | Answer::Socks5 | Answer::HttpConnect, _) => None,
    }
}

/// The path of a plain HTTP request, which stands in the line that the upstream gets.
fn path_of(request: &Request) -> Option<&str> {
    match request.answer {
        Answer::HttpPlain => {
            let path = request.preface.split(|byte| *byte == b' ').nth(1)?;
            std::str::from_utf8(path).ok()?.split('?').next()
        }
        Answer::None | Answer::Socks4 | Answer::Socks5 | Answer::HttpConnect => None,
    }
}
