//! A weighted draw.

use super::MANY;
use crate::snapshot::{Evenness, Group};

/// How often a draw is rejected before the members are gone through.
const REJECTIONS: usize = 64;

/// Draws one of the members for which `may` holds, each with a chance in proportion to its weight.
pub(super) fn pick(group: &Group, rng: &mut fastrand::Rng, may: impl Fn(usize) -> bool) -> Option<usize> {
    let members = &group.members[..];
    if members.len() > MANY {
        // A heavy member is rejected less often: the shares are exact, and few draws are enough.
        for _ in 0..REJECTIONS {
            let index = rng.usize(..members.len());
            let is_taken = match group.evenness {
                Evenness::Even => true,
                Evenness::Uneven(heaviest) => rng.u32(..heaviest) < members[index].weight,
            };
            if is_taken && may(index) {
                return Some(index);
            }
        }
    }
    let candidates = || members.iter().enumerate().filter(|(index, _)| may(*index));
    let total: u64 = candidates().map(|(_, member)| u64::from(member.weight)).sum();
    if total == 0 {
        return None;
    }
    let mut ticket = rng.u64(0..total);
    for (index, member) in candidates() {
        let weight = u64::from(member.weight);
        if ticket < weight {
            return Some(index);
        }
        ticket -= weight;
    }
    unreachable!("the ticket is below the sum of the weights")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pick::tests::world;
    use crate::snapshot::Policy;

    #[test]
    fn shares_follow_weights_and_the_excluded_get_none() {
        let (_, group) = world(Policy::Random, &[1, 3, 7]);
        let mut rng = fastrand::Rng::with_seed(7);
        let mut counts = [0u32; 3];
        for _ in 0..40_000 {
            counts[pick(&group, &mut rng, |index| index != 2).unwrap()] += 1;
        }
        assert_eq!(counts[2], 0);
        // 10,000 of 40,000 expected; five standard deviations of a binomial are 433.
        assert!(counts[0].abs_diff(10_000) < 433, "{counts:?}");
        assert_eq!(pick(&group, &mut rng, |_| false), None);
    }
}
