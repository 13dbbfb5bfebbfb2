//! What decides whether a target may be picked: pure state machines that are told what happened and what time it is.
//!
//! | machine | told | says |
//! |---|---|---|
//! | [`Verdict`] | results of probes | up or down: `fall`, `rise`, `double_check`, and flaps damped |
//! | [`Outcomes`] | what real sessions met, by worker | failures in a row over all workers |
//! | [`Ward`] | failures in a row | who is ejected, for how long, never more than may be |
//! | [`Trial`] | the one session that is let through | whether the ejected target is sound again |
//! | [`Ramp`] | when a target returned | what share of its weight it gets (slow start) |
//! | [`Outage`] | who answers and who is silent | whether it is our own network that is down |
//! | [`Ranking`] | how quickly each answers | in what order a failover goes, with a tolerance |
//! | [`Roster`] | who is well | which `active` members of a group serve, and who is probed to take a place |
//!
//! Control runs all of them but [`Outcomes`] and [`Trial`], which sessions speak to.

mod ejection;
mod outage;
mod outcome;
mod ramp;
mod ranking;
mod roster;
mod trial;
mod verdict;

pub use ejection::{Pool, Standing, Terms, Ward};
pub use outage::{Evidence, News, Outage};
pub use outcome::{Alarm, Cause, Outcome, OutcomeCell, Outcomes, Watch};
pub use ramp::{RAMP_STEPS, Ramp};
pub use ranking::Ranking;
pub use roster::{Move, Roster, Wellness};
pub use trial::{Trial, TrialPhase};
pub use verdict::{Judgement, MAX_DAMPING, Verdict, VerdictTerms};
