//! What is wrong with a configuration: every mistake at once, each with its place and, where there is one, a hint.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where it stands.
    pub place: Place,
    /// The key it is about, as a path (`listener[0].bind`); empty when it is about the text itself.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// A place in a text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, or what stands in its place (`command line`).
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.place.file, self.place.line, self.place.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n    hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a configuration, in the order of the text; at least one mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<Diagnostic>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

/// Collects the mistakes of one text, so that reading goes on after each.
#[derive(Debug)]
pub(crate) struct Sink<'text> {
    file: &'text str,
    text: &'text str,
    found: RefCell<Vec<Diagnostic>>,
}

impl<'text> Sink<'text> {
    pub(crate) fn new(file: &'text str, text: &'text str) -> Sink<'text> {
        Sink { file, text, found: RefCell::default() }
    }

    /// Reports a mistake at a byte range of the text.
    pub(crate) fn report(
        &self,
        span: &Range<usize>,
        key: &str,
        message: impl Into<String>,
        hint: Option<String>,
    ) {
        let place = self.place(span.start);
        self.found.borrow_mut().push(Diagnostic {
            place,
            key: key.to_owned(),
            message: message.into(),
            hint,
        });
    }

    /// Reports a mistake in another file that the text refers to.
    pub(crate) fn report_at(
        &self,
        place: Place,
        key: &str,
        message: impl Into<String>,
        hint: Option<String>,
    ) {
        self.found.borrow_mut().push(Diagnostic {
            place,
            key: key.to_owned(),
            message: message.into(),
            hint,
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.borrow().is_empty()
    }

    /// What was found, in the order of the text.
    pub(crate) fn into_errors(self) -> ConfigErrors {
        let mut found = self.found.into_inner();
        found.sort_by(|a, b| a.place.cmp(&b.place));
        found.dedup();
        ConfigErrors(found)
    }

    fn place(&self, offset: usize) -> Place {
        let mut end = offset.min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        let before = &self.text[..end];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// `did you mean "x"?` for the candidate that is nearest to `word`, if one is near enough to be meant.
pub(crate) fn did_you_mean<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<String> {
    /// Below this Jaro-Winkler similarity a suggestion confuses more than it helps.
    const NEAR_ENOUGH: f64 = 0.8;
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= NEAR_ENOUGH)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| format!("did you mean {candidate:?}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let sink = Sink::new("f", "ä = 1\n  ö = 2\n");
        let place = |offset| {
            let place = sink.place(offset);
            (place.line, place.column)
        };
        assert_eq!(place(0), (1, 1));
        assert_eq!(place(3), (1, 3));
        assert_eq!(place(9), (2, 3));
        assert_eq!(place(1000), (3, 1));
    }

    #[test]
    fn only_near_words_are_suggested() {
        let words = ["listener", "upstream", "group"];
        assert_eq!(did_you_mean("listner", words).as_deref(), Some("did you mean \"listener\"?"));
        assert_eq!(did_you_mean("zzz", words), None);
    }
}
