//! Draws that cost the same for any number of members.

/// How often one is drawn before the members are gone through: with half of them down, one pick in 65,536 does that.
const DRAWS: usize = 16;

/// One of `count` members for which `may` holds, each with the same chance.
pub(super) fn draw(count: usize, rng: &mut fastrand::Rng, may: impl Fn(usize) -> bool) -> Option<usize> {
    if count == 0 {
        return None;
    }
    for _ in 0..DRAWS {
        let index = rng.usize(..count);
        if may(index) {
            return Some(index);
        }
    }
    let start = rng.usize(..count);
    (start..count).chain(0..start).find(|index| may(*index))
}

/// Two different ones, where there are two.
pub(super) fn draw_two(
    count: usize,
    rng: &mut fastrand::Rng,
    may: impl Fn(usize) -> bool,
) -> Option<(usize, Option<usize>)> {
    let first = draw(count, rng, &may)?;
    Some((first, draw(count, rng, |index| index != first && may(index))))
}
