//! Lists of names and networks as others publish them: plain ones, and those of AdBlock Plus (gfwlist among them).
//!
//! A line of the latter is about URLs, of which a proxy sees the host alone: a line counts as far as it says something of
//! hosts, what is left is passed over and counted.

use std::net::IpAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ipnet::IpNet;

use super::domains::Domains;
use super::names::{BadName, Builder, Name, Reach};
use super::networks::Networks;

/// The longest list. The largest that are published have some ten megabytes.
pub const MAX_LIST_BYTES: usize = 64 << 20;

/// The longest line: longer than any name, network or filter.
pub const MAX_LINE_BYTES: usize = 4096;

/// The most words that are looked for anywhere in a name: the automaton grows with them.
pub const MAX_KEYWORDS: usize = 10_000;

/// The most mistakes that are told of one list.
pub const MAX_MISTAKES: usize = 20;

/// How a list is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// One name or network a line: `example.org` itself, `.example.org` with everything below it, `*.example.org` for
    /// what is below alone, `10.0.0.0/8`; `#` begins a comment.
    Plain,
    /// The filters of AdBlock Plus, as they are or in base 64.
    Abp,
}

/// What a list says.
#[derive(Clone, Debug, Default)]
pub struct List {
    domains: Domains,
    networks: Networks,
    exceptions: Domains,
    passed_over: usize,
}

/// A mistake in a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct Mistake {
    /// From 1; the line of the text that base 64 stands for, where it does.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

impl List {
    /// Reads a list.
    ///
    /// # Errors
    /// The first [`MAX_MISTAKES`] mistakes.
    pub fn read(bytes: &[u8], format: Format) -> Result<List, Vec<Mistake>> {
        if bytes.len() > MAX_LIST_BYTES {
            return Err(whole(format!("is longer than {MAX_LIST_BYTES} bytes")));
        }
        match format {
            Format::Plain => read_lines(bytes, read_plain),
            Format::Abp => {
                let decoded = unwrapped(bytes);
                let list = read_lines(decoded.as_deref().unwrap_or(bytes), read_filter)?;
                if list.is_empty() && list.passed_over > 0 {
                    return Err(whole("no line says anything of hosts: is it such a list?".to_owned()));
                }
                Ok(list)
            }
        }
    }

    /// Whether it is about a name or an address, and makes no exception of the name.
    pub fn contains(&self, name: Option<&Name>, address: Option<IpAddr>) -> bool {
        name.is_some_and(|name| self.domains.contains(name) && !self.exceptions.contains(name))
            || address.is_some_and(|address| self.networks.contains(address))
    }

    /// How many names, words and networks it has.
    pub fn len(&self) -> usize {
        self.domains.names().len() + self.domains.keywords().len() + self.networks.len()
    }

    /// Whether it is about nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many lines say nothing that could be held against a host.
    pub fn passed_over(&self) -> usize {
        self.passed_over
    }

    /// Its names and words.
    pub fn domains(&self) -> &Domains {
        &self.domains
    }

    /// Its networks.
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// The names that it is not about after all.
    pub fn exceptions(&self) -> &Domains {
        &self.exceptions
    }
}

fn whole(problem: String) -> Vec<Mistake> {
    vec![Mistake { line: 1, problem }]
}

/// What a list comes to while it is read.
#[derive(Default)]
struct Draft {
    names: Builder,
    keywords: Vec<String>,
    networks: Vec<IpNet>,
    exceptions: Builder,
    excepted_words: Vec<String>,
    passed_over: usize,
}

fn read_lines(
    bytes: &[u8],
    read: impl Fn(&str, &mut Draft) -> Result<(), String>,
) -> Result<List, Vec<Mistake>> {
    let (mut draft, mut mistakes) = (Draft::default(), Vec::new());
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let said = if line.len() > MAX_LINE_BYTES {
            Err(format!("is longer than {MAX_LINE_BYTES} bytes"))
        } else {
            match std::str::from_utf8(line) {
                Ok(line) => read(line.trim(), &mut draft),
                Err(_) => Err("is no text in UTF-8".to_owned()),
            }
        };
        if let Err(problem) = said {
            mistakes.push(Mistake { line: index + 1, problem });
            if mistakes.len() == MAX_MISTAKES {
                break;
            }
        }
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let domains = Domains::new(draft.names, &draft.keywords, &[]);
    let exceptions = Domains::new(draft.exceptions, &draft.excepted_words, &[]);
    match (domains, exceptions) {
        (Ok(domains), Ok(exceptions)) => Ok(List {
            domains,
            networks: draft.networks.into_iter().collect(),
            exceptions,
            passed_over: draft.passed_over,
        }),
        (Err(error), _) | (_, Err(error)) => Err(whole(error.to_string())),
    }
}

fn read_plain(line: &str, draft: &mut Draft) -> Result<(), String> {
    let line = line.split_once('#').map_or(line, |(entry, _)| entry.trim_end());
    if line.is_empty() {
        return Ok(());
    }
    if let Some(network) = network(line) {
        return add_network(network, draft);
    }
    let (name, reach) = match (line.strip_prefix("*."), line.strip_prefix("+.").or(line.strip_prefix('.'))) {
        (Some(below), _) => (below, Reach::Below),
        (None, Some(name)) => (name, Reach::Whole),
        (None, None) => (line, Reach::Itself),
    };
    draft.names.add(name, reach).map_err(|error| format!("{line:?} {error}"))
}

fn network(text: &str) -> Option<IpNet> {
    text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse()).ok()
}

fn add_network(network: IpNet, draft: &mut Draft) -> Result<(), String> {
    if draft.networks.len() == super::names::MAX_NAMES {
        return Err(format!("is one network too many: {} are the most", super::names::MAX_NAMES));
    }
    draft.networks.push(network);
    Ok(())
}

/// The text that base 64 stands for, if it does for such a list.
fn unwrapped(bytes: &[u8]) -> Option<Vec<u8>> {
    let packed: Vec<u8> = bytes.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let text = BASE64_STANDARD.decode(packed).ok()?;
    matches!(text.first(), Some(b'[' | b'!')).then_some(text)
}

/// Options that say nothing of where a request goes.
const HARMLESS_OPTIONS: [&str; 7] = ["third-party", "3p", "important", "all", "document", "doc", "popup"];

/// What a filter says of hosts.
enum Said<'a> {
    Nothing,
    Name(&'a str, Reach),
    Word(&'a str),
}

fn read_filter(line: &str, draft: &mut Draft) -> Result<(), String> {
    if line.is_empty() || line.starts_with('!') || line.starts_with('[') {
        return Ok(());
    }
    let (filter, is_exception) = match line.strip_prefix("@@") {
        Some(filter) => (filter, true),
        None => (line, false),
    };
    let (names, words) = match is_exception {
        true => (&mut draft.exceptions, &mut draft.excepted_words),
        false => (&mut draft.names, &mut draft.keywords),
    };
    match said_of_hosts(filter, is_exception) {
        Said::Nothing => draft.passed_over += 1,
        Said::Word(word) if words.len() < MAX_KEYWORDS => words.push(word.to_owned()),
        Said::Word(_) => return Err(format!("is one word too many: {MAX_KEYWORDS} are the most")),
        Said::Name(host, _) if !is_exception && network(host).is_some() => {
            if let Some(network) = network(host) {
                add_network(network, draft)?;
            }
        }
        Said::Name(host, reach) => match names.add(host, reach) {
            Ok(()) => {}
            Err(error @ BadName::TooMany) => return Err(error.to_string()),
            Err(BadName::NotAscii | BadName::Malformed) => draft.passed_over += 1,
        },
    }
    Ok(())
}

fn said_of_hosts(filter: &str, is_exception: bool) -> Said<'_> {
    if filter.contains("##") || filter.contains("#@#") || filter.contains("#?#") {
        return Said::Nothing;
    }
    let filter = match filter.rsplit_once('$') {
        Some((filter, options)) if options.split(',').all(|option| HARMLESS_OPTIONS.contains(&option)) => {
            filter
        }
        Some(_) => return Said::Nothing,
        None => filter,
    };
    let (rest, reach) = if let Some(rest) = filter.strip_prefix("||") {
        (rest, Reach::Whole)
    } else if let Some(rest) = filter.strip_prefix('|') {
        let rest = rest.strip_prefix("https://").or(rest.strip_prefix("http://"));
        let Some(rest) = rest else { return Said::Nothing };
        (rest, Reach::Itself)
    } else if filter.starts_with('/') {
        // An expression over URLs, or a path.
        return Said::Nothing;
    } else {
        (filter, Reach::Whole)
    };
    let rest = rest.strip_prefix("*.").or(rest.strip_prefix('.')).unwrap_or(rest);
    let (host, path) = rest.split_at(rest.find(['/', '^', '*', ':', '?', '|']).unwrap_or(rest.len()));
    // What is excepted by its path is excepted no more when the path is not seen; what is listed by it still is.
    if is_exception && !path.trim_matches(['/', '^', '*', '|']).is_empty() || path.starts_with('*') {
        return Said::Nothing;
    }
    match host.contains('.') {
        true => Said::Name(host, reach),
        // A word anywhere in the URL is there if it is in the host.
        false if path.is_empty() && reach == Reach::Whole && !filter.starts_with("||") && is_word(host) => {
            Said::Word(host)
        }
        false => Said::Nothing,
    }
}

fn is_word(text: &str) -> bool {
    text.len() > 2 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_in(list: &List, host: &str) -> bool {
        match host.parse::<IpAddr>() {
            Ok(address) => list.contains(None, Some(address)),
            Err(_) => list.contains(Some(&Name::new(host)), None),
        }
    }

    #[test]
    fn a_plain_list_has_names_ends_and_networks() {
        let text = b"\xef\xbb\xbf# comment\r\na.example # why\n.b.example\n+.c.example\n*.d.example\n\n10.0.0.0/8\n::1\n";
        let list = List::read(text, Format::Plain).unwrap();
        assert_eq!(list.len(), 6);
        for inside in
            ["A.example", "b.example", "x.b.example", "x.c.example", "x.d.example", "10.1.2.3", "::1"]
        {
            assert!(is_in(&list, inside), "{inside}");
        }
        for outside in ["x.a.example", "d.example", "11.0.0.1", "::2", "example"] {
            assert!(!is_in(&list, outside), "{outside}");
        }
    }

    #[test]
    fn mistakes_in_a_plain_list_have_their_lines_and_are_bounded() {
        let told = List::read(b"a.example\nb c\n\xff\n10.0.0.0/40\n", Format::Plain).unwrap_err();
        assert_eq!(told.iter().map(|mistake| mistake.line).collect::<Vec<_>>(), [2, 3, 4]);
        assert!(told[0].to_string().contains("line 2: \"b c\" is no host name"), "{told:?}");
        let many = List::read(&b"a b\n".repeat(1000), Format::Plain).unwrap_err();
        assert_eq!(many.len(), MAX_MISTAKES);
        let long = List::read(&vec![b'a'; MAX_LINE_BYTES + 1], Format::Plain).unwrap_err();
        assert_eq!(long[0].line, 1);
    }

    const GFW: &str = "[AutoProxy 0.2.9]\n! comment\n||a.example\n||b.example/path\n|https://c.example/\n\
        .d.example/x\ne.example\n@@||ok.a.example^\n@@||b.example/fine\n/^https?:\\/\\/x/\nsearch*cache\nforbidden\n\
        ||192.0.2.1\n||f.example^$third-party\n||g.example^$script,domain=x.example\nh.example##.ad\n";

    #[test]
    fn filters_count_as_far_as_they_say_something_of_hosts() {
        let wrapped = {
            let text = BASE64_STANDARD.encode(GFW);
            let lines: Vec<&str> =
                (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
            lines.join("\n")
        };
        for text in [GFW, &wrapped] {
            let list = List::read(text.as_bytes(), Format::Abp).unwrap();
            for inside in [
                "a.example",
                "www.a.example",
                "b.example",
                "c.example",
                "d.example",
                "x.d.example",
                "e.example",
                "my-forbidden.example",
                "192.0.2.1",
                "f.example",
            ] {
                assert!(is_in(&list, inside), "{inside}");
            }
            for outside in
                ["ok.a.example", "x.ok.a.example", "x.c.example", "g.example", "h.example", "cache.example"]
            {
                assert!(!is_in(&list, outside), "{outside}");
            }
            assert_eq!(list.passed_over(), 5, "{list:?}");
        }
    }

    #[test]
    fn what_is_no_such_list_is_refused() {
        assert!(List::read(b"<html>*</html>\n", Format::Abp).is_err());
        assert!(List::read(b"", Format::Abp).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn whatever_a_file_has_nothing_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            text in "([|@*/.$^#a-z0-9]{0,12}\n){0,10}",
        ) {
            for format in [Format::Plain, Format::Abp] {
                let _ = List::read(&bytes, format);
                let _ = List::read(text.as_bytes(), format);
            }
        }
    }
}
