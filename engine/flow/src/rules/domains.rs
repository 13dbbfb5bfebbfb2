//! What a name may be like: one of a set, below one of a set, or like a pattern.

use aho_corasick::AhoCorasick;
use regex::bytes::{RegexSet, RegexSetBuilder};

use super::names::{Builder, Name, NameSet};

/// The most memory that the expressions of one condition may take when they are compiled. Their time is linear in the
/// length of a name whatever they are.
const MAX_REGEX_BYTES: usize = 4 << 20;

/// Names by what they are or are like; one match is enough.
#[derive(Clone, Debug, Default)]
pub struct Domains {
    names: NameSet,
    /// What stands anywhere in a name.
    keywords: Option<AhoCorasick>,
    regexes: Option<RegexSet>,
    keyword_texts: Box<[String]>,
}

/// Why patterns cannot be used. Its text follows the pattern in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// Not a regular expression, or one too large.
    #[error("is no regular expression that can be used: {0}")]
    Regex(String),
    /// A keyword that is empty, or too many of them.
    #[error("cannot be looked for: {0}")]
    Keyword(String),
}

impl Domains {
    /// Names together with keywords and regular expressions; those are looked for in names of lower case.
    ///
    /// # Errors
    /// [`BadPattern`] says what is wrong with one of them.
    pub fn new(names: Builder, keywords: &[String], regexes: &[String]) -> Result<Domains, BadPattern> {
        let keyword_texts: Box<[String]> = keywords.iter().map(|word| word.to_ascii_lowercase()).collect();
        if keyword_texts.iter().any(String::is_empty) {
            return Err(BadPattern::Keyword("it is empty".to_owned()));
        }
        let keywords = match keyword_texts.is_empty() {
            true => None,
            false => Some(
                AhoCorasick::new(keyword_texts.iter())
                    .map_err(|error| BadPattern::Keyword(error.to_string()))?,
            ),
        };
        let regexes = match regexes.is_empty() {
            true => None,
            false => Some(
                RegexSetBuilder::new(regexes)
                    .unicode(false)
                    .case_insensitive(true)
                    .size_limit(MAX_REGEX_BYTES)
                    .dfa_size_limit(MAX_REGEX_BYTES)
                    .build()
                    .map_err(|error| BadPattern::Regex(last_line(&error.to_string())))?,
            ),
        };
        Ok(Domains { names: names.build(), keywords, regexes, keyword_texts })
    }

    /// Whether a name is one of these.
    pub fn contains(&self, name: &Name) -> bool {
        self.names.contains(name)
            || self.keywords.as_ref().is_some_and(|words| words.is_match(name.as_bytes()))
            || self.regexes.as_ref().is_some_and(|regexes| regexes.is_match(name.as_bytes()))
    }

    /// The names themselves.
    pub fn names(&self) -> &NameSet {
        &self.names
    }

    /// What stands anywhere in a name.
    pub fn keywords(&self) -> &[String] {
        &self.keyword_texts
    }

    /// The regular expressions.
    pub fn regexes(&self) -> &[String] {
        self.regexes.as_ref().map_or(&[], RegexSet::patterns)
    }
}

/// Errors of the compiler show the expression first.
fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(keywords: &[&str], regexes: &[&str]) -> Result<Domains, BadPattern> {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Domains::new(Builder::default(), &texts(keywords), &texts(regexes))
    }

    #[test]
    fn keywords_stand_anywhere_and_expressions_are_searched() {
        let set = domains(&["Tracker"], &[r"^ads?\d*\.", r"\.evil$"]).unwrap();
        for inside in ["my-TRACKER.example", "ad7.example", "ADS.example", "x.evil"] {
            assert!(set.contains(&Name::new(inside)), "{inside}");
        }
        for outside in ["example", "bads.example", "evil.example", ""] {
            assert!(!set.contains(&Name::new(outside)), "{outside}");
        }
    }

    #[test]
    fn what_is_no_pattern_or_too_large_a_one_is_refused() {
        assert!(matches!(domains(&[], &["a("]), Err(BadPattern::Regex(_))));
        assert!(matches!(domains(&[], &["(a{1000}){1000}"]), Err(BadPattern::Regex(_))));
        assert!(matches!(domains(&[""], &[]), Err(BadPattern::Keyword(_))));
    }
}
