//! Reads typed values out of a spanned TOML tree. What does not fit is reported, and reading goes on.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Sink, did_you_mean};

/// The longest time that may be configured. Longer is a mistake, and sums stay far from overflow.
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// The shortest time that may be configured: timers tick in milliseconds.
pub(crate) const SHORTEST: Duration = Duration::from_millis(1);

/// A value with its place and path.
#[derive(Clone, Debug)]
pub(crate) struct Node<'a> {
    sink: &'a Sink<'a>,
    value: &'a DeValue<'a>,
    span: Range<usize>,
    path: String,
}

/// A table whose keys are known. Unknown ones were reported when it was opened.
#[derive(Clone, Debug)]
pub(crate) struct Table<'a> {
    sink: &'a Sink<'a>,
    entries: &'a DeTable<'a>,
    span: Range<usize>,
    path: String,
    keys: &'static [&'static str],
}

impl<'a> Node<'a> {
    /// Where the value stands.
    pub(crate) fn span(&self) -> &Range<usize> {
        &self.span
    }

    /// The key path of the value.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Reports a mistake about this value.
    pub(crate) fn report(&self, message: impl Into<String>, hint: Option<String>) {
        self.sink.report(&self.span, &self.path, message, hint);
    }

    pub(crate) fn sink(&self) -> &'a Sink<'a> {
        self.sink
    }

    pub(crate) fn string(&self) -> Option<&'a str> {
        self.value.as_str().or_else(|| self.wrong_type("a string", None))
    }

    pub(crate) fn is_string(&self) -> bool {
        self.value.is_str()
    }

    pub(crate) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    pub(crate) fn boolean(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.wrong_type("true or false", None))
    }

    /// A share of a whole, from 0 to 1.
    pub(crate) fn share(&self) -> Option<f64> {
        let written = match (self.value.as_float(), self.value.as_integer()) {
            (Some(float), _) => float.as_str().parse::<f64>().ok(),
            (None, Some(integer)) => integer.as_str().parse::<f64>().ok(),
            (None, None) => return self.wrong_type("a share from 0.0 to 1.0", None),
        };
        let share = written.filter(|share| (0.0..=1.0).contains(share));
        if share.is_none() {
            self.report("is not a share from 0.0 to 1.0", None);
        }
        share
    }

    pub(crate) fn integer(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let Some(written) = self.value.as_integer() else {
            return self.wrong_type(&format!("a number from {} to {}", range.start(), range.end()), None);
        };
        let value = i64::from_str_radix(written.as_str(), written.radix()).ok();
        let value = value.and_then(|value| u32::try_from(value).ok()).filter(|value| range.contains(value));
        if value.is_none() {
            self.report(format!("{written} is not from {} to {}", range.start(), range.end()), None);
        }
        value
    }

    pub(crate) fn duration(&self) -> Option<Duration> {
        self.duration_from(SHORTEST..=LONGEST)
    }

    /// A time between two others.
    pub(crate) fn duration_from(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        if let Some(number) = self.value.as_integer() {
            return self.wrong_type("a time as a string", Some(format!("write \"{number}s\" for seconds")));
        }
        let text = self.string()?;
        match humantime::parse_duration(text) {
            Ok(time) if range.contains(&time) => Some(time),
            Ok(_) => {
                let written = |time: &Duration| match *time {
                    LONGEST => "1 year".to_owned(),
                    time => humantime::format_duration(time).to_string(),
                };
                let (shortest, longest) = (written(range.start()), written(range.end()));
                self.report(format!("{text:?} is not from {shortest} to {longest}"), None);
                None
            }
            Err(error) => {
                let hint = "write it like \"500ms\", \"10s\", \"5m\" or \"1h\"".to_owned();
                self.report(format!("{text:?} is not a time: {error}"), Some(hint));
                None
            }
        }
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.string()?;
        let chosen = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if chosen.is_none() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let hint = did_you_mean(text, known.iter().copied())
                .unwrap_or_else(|| format!("one of {}", known.join(", ")));
            self.report(format!("{text:?} is not known here"), Some(hint));
        }
        chosen
    }

    /// Something that is written as a string.
    pub(crate) fn parsed<T, E: ToString>(&self, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let text = self.string()?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.report(format!("{text:?} {}", error.to_string()), None);
                None
            }
        }
    }

    /// The elements of a list.
    pub(crate) fn list(&self) -> Option<Vec<Node<'a>>> {
        match self.value.as_array() {
            Some(_) => Some(self.elements()),
            None => self.wrong_type("a list", None),
        }
    }

    /// The elements of a list, or a single value as a list of one.
    pub(crate) fn one_or_more(&self) -> Vec<Node<'a>> {
        if self.value.is_array() { self.elements() } else { vec![self.clone()] }
    }

    /// The value as a table with these keys.
    pub(crate) fn table(&self, keys: &'static [&'static str]) -> Option<Table<'a>> {
        let Some(entries) = self.value.as_table() else { return self.wrong_type("a table", None) };
        Some(Table::open(self.sink, entries, self.span.clone(), self.path.clone(), keys))
    }

    /// The entries of a table whose keys are names of the user's choosing, in the order of the text.
    pub(crate) fn named(&self) -> Option<Vec<(&'a str, Node<'a>)>> {
        let Some(entries) = self.value.as_table() else { return self.wrong_type("a table", None) };
        let mut named: Vec<_> = entries
            .iter()
            .map(|(key, value)| {
                let name: &str = key.get_ref();
                let node = self.child(value, &key.span(), format!("{}.{name}", self.path));
                (name, node)
            })
            .collect();
        named.sort_by_key(|(_, node)| node.span.start);
        Some(named)
    }

    fn elements(&self) -> Vec<Node<'a>> {
        let elements = self.value.as_array().into_iter().flat_map(|array| array.iter());
        let child = |(index, value): (usize, &'a Spanned<DeValue<'a>>)| {
            self.child(value, &value.span(), format!("{}[{index}]", self.path))
        };
        elements.enumerate().map(child).collect()
    }

    fn child(&self, value: &'a Spanned<DeValue<'a>>, key: &Range<usize>, path: String) -> Node<'a> {
        Node { sink: self.sink, value: value.get_ref(), span: place_of(value, key), path }
    }

    fn wrong_type<T>(&self, wanted: &str, hint: Option<String>) -> Option<T> {
        let article = if matches!(self.value, DeValue::Integer(_) | DeValue::Array(_)) { "an" } else { "a" };
        self.report(format!("wants {wanted}, not {article} {}", self.value.type_str()), hint);
        None
    }
}

impl<'a> Table<'a> {
    /// Opens a table and reports keys that are not among `keys`.
    pub(crate) fn open(
        sink: &'a Sink<'a>,
        entries: &'a DeTable<'a>,
        span: Range<usize>,
        path: String,
        keys: &'static [&'static str],
    ) -> Table<'a> {
        let table = Table { sink, entries, span, path, keys };
        for key in entries.keys() {
            let word: &str = key.get_ref();
            if !keys.contains(&word) {
                let hint = did_you_mean(word, keys.iter().copied());
                let hint = hint.unwrap_or_else(|| format!("known here: {}", keys.join(", ")));
                sink.report(&key.span(), &table.key_path(word), "there is no such key", Some(hint));
            }
        }
        table
    }

    /// The value of a key, if it is there.
    ///
    /// # Panics
    /// When `key` is not one of the table's own: no key is read that `known_keys` does not list.
    pub(crate) fn get(&self, key: &'static str) -> Option<Node<'a>> {
        assert!(self.keys.contains(&key), "{key} is not in the schema of {}", self.path);
        let (written, value) = self.entries.get_key_value(key)?;
        let span = place_of(value, &written.span());
        Some(Node { sink: self.sink, value: value.get_ref(), span, path: self.key_path(key) })
    }

    /// The value of a key that must be there.
    pub(crate) fn required(&self, key: &'static str) -> Option<Node<'a>> {
        let node = self.get(key);
        if node.is_none() {
            self.report(format!("{key:?} is missing"), None);
        }
        node
    }

    /// Reports a mistake about the table as a whole.
    pub(crate) fn report(&self, message: impl Into<String>, hint: Option<String>) {
        self.sink.report(&self.span, &self.path, message, hint);
    }

    fn key_path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// Tables made by headers have no span of their own worth showing; their key has.
fn place_of(value: &Spanned<DeValue<'_>>, key: &Range<usize>) -> Range<usize> {
    match value.get_ref() {
        DeValue::Table(_) if !value.span().is_empty() && key.is_empty() => value.span(),
        DeValue::Table(_) => key.clone(),
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_) => value.span(),
    }
}
