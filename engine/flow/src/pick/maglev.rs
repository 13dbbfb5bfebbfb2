//! Consistent hashing as Maglev does it (Eisenbud et al., NSDI 2016, section 3.4): every member fills its share of one
//! table in an order of its own, so that daemons which know the same members agree without a word, and the loss of one
//! moves little but its share. Weights as in Envoy: a heavier member takes more turns.

use crate::snapshot::Member;

/// The size of the table, a prime; that of the paper's larger one. Members are some hundred times fewer, so shares
/// differ by less than one in a hundred.
const TABLE_SIZE: usize = 65_537;

/// How often a key is hashed anew while it meets members that may not be picked, before they are gone through.
const REHASHES: u64 = 32;

/// A table for the members of one group.
#[derive(Debug)]
pub struct Maglev(Box<[u16]>);

impl Maglev {
    /// The table for members of these names and weights, of which there are 1 to 65,535.
    pub fn new<'a>(members: impl IntoIterator<Item = (&'a str, u32)>) -> Maglev {
        let mut turns: Vec<Turn> =
            members.into_iter().map(|(name, weight)| Turn::new(name, weight)).collect();
        let mut table = vec![u16::MAX; TABLE_SIZE];
        let heaviest = turns.iter().map(|turn| turn.weight).max().unwrap_or(0);
        let mut filled = 0;
        while filled < TABLE_SIZE && heaviest > 0 {
            for (member, turn) in (0..u16::MAX).zip(&mut turns) {
                turn.credit += turn.weight;
                if turn.credit < heaviest || filled == TABLE_SIZE {
                    continue;
                }
                turn.credit -= heaviest;
                while table[turn.at] != u16::MAX {
                    turn.advance();
                }
                table[turn.at] = member;
                filled += 1;
            }
        }
        Maglev(table.into())
    }

    /// The member for a key, among those for which `may` holds.
    pub(super) fn pick(&self, key: u64, members: &[Member], may: impl Fn(usize) -> bool) -> Option<usize> {
        for round in 0..REHASHES {
            let hash = mix(key ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let member = usize::from(self.0[(hash % TABLE_SIZE as u64) as usize]);
            if member < members.len() && may(member) {
                return Some(member);
            }
        }
        let start = (mix(key) % members.len().max(1) as u64) as usize;
        (start..members.len()).chain(0..start).find(|member| may(*member))
    }
}

/// Where a member stands in its own order of the table.
struct Turn {
    at: usize,
    skip: usize,
    weight: u64,
    credit: u64,
}

impl Turn {
    fn new(name: &str, weight: u32) -> Turn {
        let hash = hash(name.as_bytes());
        let at = (hash % TABLE_SIZE as u64) as usize;
        let skip = (mix(hash ^ 0x5bd1_e995) % (TABLE_SIZE as u64 - 1)) as usize + 1;
        Turn { at, skip, weight: u64::from(weight), credit: 0 }
    }

    fn advance(&mut self) {
        self.at = (self.at + self.skip) % TABLE_SIZE;
    }
}

/// FNV-1a of 64 bits: the same on every machine and in every version of this program, which the standard library's
/// hashers do not promise.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// Spreads every bit over all (the finisher of MurmurHash3).
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::TargetIndex;

    fn members(count: usize) -> Vec<Member> {
        (0..count as u32).map(|index| Member::primary(TargetIndex(index), 1)).collect()
    }

    fn table(weights: &[u32]) -> Maglev {
        let names: Vec<String> = (0..weights.len()).map(|index| format!("member-{index}")).collect();
        Maglev::new(names.iter().map(String::as_str).zip(weights.iter().copied()))
    }

    fn shares(table: &Maglev, count: usize) -> Vec<usize> {
        let mut shares = vec![0; count];
        for member in &table.0 {
            shares[usize::from(*member)] += 1;
        }
        shares
    }

    #[test]
    fn shares_are_even_within_one_in_a_hundred() {
        for count in [1, 2, 3, 10, 100] {
            let fair = TABLE_SIZE as f64 / count as f64;
            for share in shares(&table(&vec![1; count]), count) {
                assert!((share as f64 / fair - 1.0).abs() < 0.01, "{share} of {fair} among {count}");
            }
        }
    }

    #[test]
    fn weights_are_honoured() {
        let weights = [1, 2, 3, 10];
        let total: u32 = weights.iter().sum();
        for (share, weight) in shares(&table(&weights), 4).into_iter().zip(weights) {
            let fair = TABLE_SIZE as f64 * f64::from(weight) / f64::from(total);
            assert!((share as f64 / fair - 1.0).abs() < 0.01, "{share} of {fair}");
        }
    }

    #[test]
    fn a_member_that_comes_takes_little_more_than_its_share_from_the_others() {
        let (before, after) = (table(&[1; 10]), table(&[1; 11]));
        let moved = before.0.iter().zip(&after.0).filter(|(old, new)| old != new && **new != 10).count();
        // The paper finds some per mille for tables a hundred times as large as the number of members.
        assert!(moved < TABLE_SIZE / 50, "{moved} moved between members that stayed");
    }

    proptest! {
        #[test]
        fn the_loss_of_a_member_moves_its_keys_alone(
            count in 2usize..40,
            lost in any::<prop::sample::Index>(),
            keys in prop::collection::vec(any::<u64>(), 1..200),
        ) {
            let (table, members) = (table(&vec![1; count]), members(count));
            let lost = lost.index(count);
            for key in keys {
                let before = table.pick(key, &members, |_| true).unwrap();
                let after = table.pick(key, &members, |member| member != lost).unwrap();
                prop_assert!(after != lost);
                prop_assert!(before == lost || after == before);
            }
        }

        #[test]
        fn somebody_is_found_as_long_as_there_is_one(count in 1usize..300, key in any::<u64>(), only in any::<prop::sample::Index>()) {
            let (table, members, only) = (table(&vec![1; count]), members(count), only.index(count));
            prop_assert_eq!(table.pick(key, &members, |member| member == only), Some(only));
            prop_assert_eq!(table.pick(key, &members, |_| false), None);
        }
    }
}
