//! Which members of a group serve when only `active` of them are to, and who of the rest takes a place.

use std::sync::Arc;

/// How a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wellness {
    /// It may be picked.
    Well,
    /// It may not.
    Ill,
}

/// What the group is to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// Probe this spare now, and tell [`Roster::handle_probed`].
    Probe(Arc<str>),
    /// The spare serves from now on in the place of the other, if there was one.
    Replaced {
        /// Who has lost its place; `None` when one was free.
        out: Option<Arc<str>>,
        /// Who has got it.
        by: Arc<str>,
    },
}

/// The members of a group that serve, and the reserve.
///
/// The first `active` as written serve at first. One that is ill is replaced by a spare that is well, drawn at random
/// and probed first; a spare that fails its probe is passed over until it is reported well anew. With no spare left the
/// place is kept: a roster never gets shorter. Who was replaced waits in the reserve when it is well again.
#[derive(Debug)]
pub struct Roster {
    active: usize,
    members: Vec<Seat>,
    /// Who is being probed, to take whose place.
    probing: Option<Probing>,
}

#[derive(Debug)]
struct Seat {
    name: Arc<str>,
    role: Role,
    wellness: Wellness,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Serving,
    Spare,
    /// A spare that has failed its probe.
    PassedOver,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Probing {
    spare: Arc<str>,
    out: Option<Arc<str>>,
}

impl Roster {
    /// The members as written; all count as well.
    pub fn new(members: impl IntoIterator<Item = Arc<str>>, active: usize) -> Roster {
        let seat = |(index, name)| Seat {
            name,
            role: if index < active { Role::Serving } else { Role::Spare },
            wellness: Wellness::Well,
        };
        Roster { active, members: members.into_iter().enumerate().map(seat).collect(), probing: None }
    }

    /// The roster of the same group with other members; those that stay keep their places.
    pub fn succeeded_by(&self, members: impl IntoIterator<Item = Arc<str>>, active: usize) -> Roster {
        let mut next = Roster::new(members, active);
        let mut left = active;
        for seat in &mut next.members {
            let old = self.members.iter().find(|old| old.name == seat.name);
            seat.wellness = old.map_or(Wellness::Well, |old| old.wellness);
            let serves = old.is_some_and(|old| old.role == Role::Serving) && left > 0;
            left -= usize::from(serves);
            seat.role = if serves { Role::Serving } else { Role::Spare };
        }
        for seat in next.members.iter_mut().filter(|seat| seat.role == Role::Spare).take(left) {
            seat.role = Role::Serving;
        }
        next
    }

    /// Whether a member serves.
    pub fn serves(&self, name: &str) -> bool {
        self.members.iter().any(|seat| &*seat.name == name && seat.role == Role::Serving)
    }

    /// Who serves, as written.
    pub fn serving(&self) -> impl Iterator<Item = &Arc<str>> {
        self.members.iter().filter(|seat| seat.role == Role::Serving).map(|seat| &seat.name)
    }

    /// Who waits, as written.
    pub fn reserve(&self) -> impl Iterator<Item = &Arc<str>> {
        self.members.iter().filter(|seat| seat.role != Role::Serving).map(|seat| &seat.name)
    }

    /// How a member is from now on.
    pub fn handle_wellness(&mut self, name: &str, wellness: Wellness) {
        let Some(seat) = self.members.iter_mut().find(|seat| &*seat.name == name) else { return };
        if seat.role == Role::PassedOver && seat.wellness == Wellness::Ill && wellness == Wellness::Well {
            seat.role = Role::Spare;
        }
        seat.wellness = wellness;
    }

    /// How every member is of whom anything is known.
    pub fn handle_all(&mut self, wellness: impl Fn(&str) -> Option<Wellness>) {
        let changed: Vec<_> = self
            .members
            .iter()
            .filter_map(|seat| Some((Arc::clone(&seat.name), wellness(&seat.name)?, seat.wellness)))
            .filter(|(_, now, before)| now != before)
            .map(|(name, now, _)| (name, now))
            .collect();
        for (name, wellness) in changed {
            self.handle_wellness(&name, wellness);
        }
    }

    /// The next thing to do, if there is any.
    pub fn poll(&mut self, rng: &mut fastrand::Rng) -> Option<Move> {
        if self.probing.is_some() {
            return None;
        }
        let free = self.active.saturating_sub(self.serving().count());
        let ill =
            self.members.iter().find(|seat| seat.role == Role::Serving && seat.wellness == Wellness::Ill);
        if free == 0 && ill.is_none() {
            return None;
        }
        let out = if free > 0 { None } else { ill.map(|seat| Arc::clone(&seat.name)) };
        let is_fit = |seat: &&Seat| seat.role == Role::Spare && seat.wellness == Wellness::Well;
        let fit: Vec<_> = self.members.iter().filter(is_fit).collect();
        let spare = Arc::clone(&fit.get(rng.usize(0..fit.len().max(1)))?.name);
        self.probing = Some(Probing { spare: Arc::clone(&spare), out });
        Some(Move::Probe(spare))
    }

    /// What the probe of a spare came to.
    pub fn handle_probed(&mut self, spare: &str, wellness: Wellness) -> Option<Move> {
        let Probing { spare, out } = self.probing.take_if(|probing| &*probing.spare == spare)?;
        let at = self.members.iter().position(|seat| seat.name == spare && seat.role == Role::Spare)?;
        if wellness == Wellness::Ill {
            self.members[at].role = Role::PassedOver;
            return None;
        }
        if let Some(out) = &out {
            let place = self.members.iter_mut().find(|seat| seat.name == *out)?;
            // It has come back while its successor was being probed.
            if place.wellness == Wellness::Well {
                return None;
            }
            place.role = Role::Spare;
        }
        self.members[at].role = Role::Serving;
        Some(Move::Replaced { out, by: spare })
    }

    /// Those that were passed over get another chance; to be called now and then.
    pub fn forgive(&mut self) {
        for seat in self.members.iter_mut().filter(|seat| seat.role == Role::PassedOver) {
            seat.role = Role::Spare;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(count: usize) -> Vec<Arc<str>> {
        (0..count).map(|index| format!("t{index}").into()).collect()
    }

    fn serving(roster: &Roster) -> Vec<&str> {
        roster.serving().map(|name| &**name).collect()
    }

    #[test]
    fn an_ill_member_is_replaced_by_a_spare_that_passed_its_probe() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut roster = Roster::new(names(3), 2);
        assert_eq!((roster.poll(&mut rng), serving(&roster)), (None, vec!["t0", "t1"]));
        roster.handle_wellness("t0", Wellness::Ill);
        assert_eq!(roster.poll(&mut rng), Some(Move::Probe("t2".into())));
        assert_eq!(roster.poll(&mut rng), None, "one at a time");
        assert_eq!(serving(&roster), ["t0", "t1"], "not before it is probed");
        let replaced = Move::Replaced { out: Some("t0".into()), by: "t2".into() };
        assert_eq!(roster.handle_probed("t2", Wellness::Well), Some(replaced));
        assert_eq!(serving(&roster), ["t1", "t2"]);
        roster.handle_wellness("t0", Wellness::Well);
        assert_eq!((roster.poll(&mut rng), serving(&roster)), (None, vec!["t1", "t2"]), "it waits");
    }

    #[test]
    fn with_no_spare_that_works_the_places_are_kept() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut roster = Roster::new(names(3), 2);
        roster.handle_wellness("t0", Wellness::Ill);
        roster.poll(&mut rng);
        assert_eq!(roster.handle_probed("t2", Wellness::Ill), None);
        assert_eq!((roster.poll(&mut rng), serving(&roster)), (None, vec!["t0", "t1"]));
        roster.forgive();
        assert_eq!(roster.poll(&mut rng), Some(Move::Probe("t2".into())));
    }

    #[test]
    fn who_comes_back_while_the_spare_is_probed_keeps_its_place() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut roster = Roster::new(names(2), 1);
        roster.handle_wellness("t0", Wellness::Ill);
        roster.poll(&mut rng);
        roster.handle_wellness("t0", Wellness::Well);
        assert_eq!(roster.handle_probed("t1", Wellness::Well), None);
        assert_eq!(serving(&roster), ["t0"]);
    }

    proptest! {
        #[test]
        fn a_roster_is_never_short_and_no_ill_member_is_brought_in(
            count in 1usize..10, active in 1usize..10, seed in any::<u64>(),
            events in prop::collection::vec((0usize..10, any::<bool>(), any::<bool>()), 0..200)
        ) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut roster = Roster::new(names(count), active);
            for (member, is_well, passes) in events {
                let wellness = |is_well| if is_well { Wellness::Well } else { Wellness::Ill };
                roster.handle_wellness(&format!("t{}", member % count), wellness(is_well));
                while let Some(Move::Probe(spare)) = roster.poll(&mut rng) {
                    let moved = roster.handle_probed(&spare, wellness(passes));
                    prop_assert_eq!(moved.is_some(), passes);
                    prop_assert_eq!(roster.serves(&spare), passes);
                }
                prop_assert_eq!(roster.serving().count(), active.min(count));
            }
        }
    }
}
