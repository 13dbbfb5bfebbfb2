//! Sets of host names, exact or with everything below them: hundreds of thousands in one table, asked by the labels of a
//! name.

use smallvec::SmallVec;

use crate::wire::MAX_HOST_BYTES;

/// Odd, with its bits well mixed (the golden ratio, as Fibonacci hashing has it).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// The most names of one set: positions are 32 bits wide, and this many take some hundred megabytes.
pub const MAX_NAMES: usize = 4_000_000;

/// A name as it is asked for: in lower case, without a final dot, with the hash of each of its ends.
#[derive(Clone, Debug)]
pub struct Name {
    bytes: SmallVec<[u8; 64]>,
    /// Those that begin at a label, the shortest first.
    ends: SmallVec<[End; 8]>,
    /// The filter bits of all ends.
    mask: u64,
}

#[derive(Clone, Copy, Debug)]
struct End {
    at: u8,
    hash: u64,
}

impl Name {
    /// Takes a name over as a client wrote it; what is longer than any name matches nothing.
    pub fn new(text: &str) -> Name {
        let text = text.strip_suffix('.').unwrap_or(text).as_bytes();
        let text = if text.len() > MAX_HOST_BYTES { &[] } else { text };
        let bytes: SmallVec<[u8; 64]> = text.iter().map(u8::to_ascii_lowercase).collect();
        let mut ends = SmallVec::new();
        let mut mask = 0;
        let mut state = 0;
        for (at, byte) in bytes.iter().enumerate().rev() {
            state = step(state, *byte);
            if at == 0 || bytes[at - 1] == b'.' {
                let hash = finish(state);
                ends.push(End { at: at as u8, hash });
                mask |= filter_bit(hash);
            }
        }
        Name { bytes, ends, mask }
    }

    /// Its bytes, in lower case.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads from the end of a name to its beginning.
fn step(state: u64, byte: u8) -> u64 {
    (state.rotate_left(5) ^ u64::from(byte)).wrapping_mul(MULTIPLIER)
}

fn finish(state: u64) -> u64 {
    state ^ (state >> 32)
}

fn filter_bit(hash: u64) -> u64 {
    1 << (hash >> 58)
}

/// What of a name's surroundings is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// The name alone.
    Itself,
    /// What is below it, and not the name.
    Below,
    /// Both.
    Whole,
}

impl Reach {
    const fn bits(self) -> u8 {
        match self {
            Reach::Itself => 1,
            Reach::Below => 2,
            Reach::Whole => 3,
        }
    }

    const fn from_bits(bits: u8) -> Reach {
        match bits {
            1 => Reach::Itself,
            2 => Reach::Below,
            _ => Reach::Whole,
        }
    }
}

/// Why a text is no name that a set may have. Its text follows the name in a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// Letters that names on the wire do not have.
    #[error("has letters that names on the wire do not have: write it in its ASCII form (xn--…)")]
    NotAscii,
    /// Not a name at all.
    #[error("is no host name")]
    Malformed,
    /// The set is full.
    #[error("is one name too many: {MAX_NAMES} are the most")]
    TooMany,
}

/// A set of names that grows; [`Builder::build`] makes it one that can be asked.
#[derive(Debug, Default)]
pub struct Builder {
    arena: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u32,
    bytes: u8,
    reach: u8,
}

impl Builder {
    /// Adds a name.
    ///
    /// # Errors
    /// [`BadName`] says why it is none.
    pub fn add(&mut self, name: &str, reach: Reach) -> Result<(), BadName> {
        if !name.is_ascii() {
            return Err(BadName::NotAscii);
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_sound = |label: &str| {
            let mut bytes = label.bytes();
            !label.is_empty() && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        if name.len() >= MAX_HOST_BYTES || !name.split('.').all(is_sound) {
            return Err(BadName::Malformed);
        }
        if self.entries.len() == MAX_NAMES {
            return Err(BadName::TooMany);
        }
        let start = self.arena.len() as u32;
        self.arena.extend(name.bytes().map(|byte| byte.to_ascii_lowercase()));
        self.entries.push(Entry { start, bytes: name.len() as u8, reach: reach.bits() });
        Ok(())
    }

    /// How many were added.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The set. What was added twice is in it once.
    pub fn build(self) -> NameSet {
        let Builder { mut arena, entries } = self;
        arena.shrink_to_fit();
        let slots = match entries.len() {
            0 => 0,
            count => (count * 4 / 3 + 1).next_power_of_two(),
        };
        let mut set = NameSet {
            arena: arena.into(),
            entries: Vec::with_capacity(entries.len()),
            slots: vec![Slot::default(); slots].into(),
            filter: 0,
        };
        for entry in entries {
            set.insert(entry);
        }
        set.entries.shrink_to_fit();
        set
    }
}

/// A set of names. Open addressing over one array: a question costs one look a label.
#[derive(Clone, Debug, Default)]
pub struct NameSet {
    arena: Box<[u8]>,
    entries: Vec<Entry>,
    /// Their number is a power of two, and at least a quarter of them are empty.
    slots: Box<[Slot]>,
    /// The filter bits of all names: most questions to a small set end here.
    filter: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    tag: u32,
    /// From 1; 0 where nothing is.
    entry: u32,
}

impl NameSet {
    /// How many names there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a name is in the set, or below one that reaches so far.
    pub fn contains(&self, name: &Name) -> bool {
        self.find(name).is_some()
    }

    /// The name in the set by which this one is in it.
    pub fn find(&self, name: &Name) -> Option<&str> {
        if self.filter & name.mask == 0 {
            return None;
        }
        name.ends.iter().find_map(|end| {
            let wanted = if end.at == 0 { Reach::Itself } else { Reach::Below };
            let entry = self.look_up(end.hash, &name.bytes[usize::from(end.at)..])?;
            let entry = &self.entries[entry];
            (entry.reach & wanted.bits() != 0).then(|| self.text(entry))
        })
    }

    /// Every name, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Reach)> {
        self.entries.iter().map(|entry| (self.text(entry), Reach::from_bits(entry.reach)))
    }

    fn text(&self, entry: &Entry) -> &str {
        // Only ASCII was taken in.
        std::str::from_utf8(self.bytes(entry)).unwrap_or_default()
    }

    fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.arena[entry.start as usize..][..usize::from(entry.bytes)]
    }

    fn look_up(&self, hash: u64, bytes: &[u8]) -> Option<usize> {
        let tag = hash as u32;
        if self.filter & filter_bit(hash) == 0 {
            return None;
        }
        let mut at = self.home(hash);
        loop {
            let slot = self.slots[at];
            let entry = slot.entry.checked_sub(1)? as usize;
            if slot.tag == tag && self.bytes(&self.entries[entry]) == bytes {
                return Some(entry);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    fn home(&self, hash: u64) -> usize {
        (hash.wrapping_mul(MULTIPLIER) >> 24) as usize & (self.slots.len() - 1)
    }

    fn insert(&mut self, entry: Entry) {
        let state = self.bytes(&entry).iter().rev().fold(0, |state, byte| step(state, *byte));
        let hash = finish(state);
        if let Some(known) = self.look_up(hash, self.bytes(&entry)) {
            self.entries[known].reach |= entry.reach;
            return;
        }
        let mut at = self.home(hash);
        while self.slots[at].entry != 0 {
            at = (at + 1) & (self.slots.len() - 1);
        }
        self.entries.push(entry);
        self.slots[at] = Slot { tag: hash as u32, entry: self.entries.len() as u32 };
        self.filter |= filter_bit(hash);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(names: &[(&str, Reach)]) -> NameSet {
        let mut builder = Builder::default();
        for (name, reach) in names {
            builder.add(name, *reach).unwrap();
        }
        builder.build()
    }

    #[test]
    fn names_match_at_labels_alone_and_in_any_case() {
        let set =
            set(&[("a.Example", Reach::Itself), ("b.example.", Reach::Whole), ("c.example", Reach::Below)]);
        let is_in = |name: &str| set.contains(&Name::new(name));
        assert!(is_in("a.example") && is_in("A.EXAMPLE."));
        assert!(!is_in("x.a.example") && !is_in("aa.example"));
        assert!(is_in("b.example") && is_in("x.y.B.example") && !is_in("xb.example"));
        assert!(!is_in("c.example") && is_in("x.c.example"));
        assert!(!is_in("example") && !is_in("") && !is_in("."));
        assert_eq!(set.find(&Name::new("x.c.example")), Some("c.example"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let mut builder = Builder::default();
        for bad in ["", ".", "a..b", ".a", "a b", "a/b", "a:80", "*.a", &"a".repeat(300)] {
            assert_eq!(builder.add(bad, Reach::Whole), Err(BadName::Malformed), "{bad}");
        }
        assert_eq!(builder.add("münchen.example", Reach::Whole), Err(BadName::NotAscii));
        assert!(builder.is_empty() && !builder.build().contains(&Name::new("a")));
    }

    #[test]
    fn what_is_added_twice_reaches_as_far_as_both() {
        let set = set(&[("a.example", Reach::Itself), ("A.example", Reach::Below)]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [("a.example", Reach::Whole)]);
    }

    fn is_in_naively(set: &[(String, Reach)], name: &str) -> bool {
        set.iter().any(|(entry, reach)| {
            let below = name.strip_suffix(entry.as_str()).is_some_and(|rest| rest.ends_with('.'));
            match reach {
                Reach::Itself => name == entry,
                Reach::Below => below,
                Reach::Whole => name == entry || below,
            }
        })
    }

    proptest! {
        #[test]
        fn a_set_says_what_a_naive_search_says(
            entries in prop::collection::vec(
                ("[ab]{1,2}(\\.[ab]{1,2}){0,3}", prop::sample::select(&[Reach::Itself, Reach::Below, Reach::Whole])),
                0..40,
            ),
            names in prop::collection::vec("[ab]{1,2}(\\.[ab]{1,2}){0,5}", 1..20),
        ) {
            let mut builder = Builder::default();
            for (name, reach) in &entries {
                builder.add(name, *reach).unwrap();
            }
            let set = builder.build();
            for name in names {
                prop_assert_eq!(set.contains(&Name::new(&name)), is_in_naively(&entries, &name), "{}", name);
            }
        }
    }
}
