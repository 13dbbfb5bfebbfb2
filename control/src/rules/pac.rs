//! The rules for browsers: a proxy auto-config file that sends to the proxy whatever the proxy is to decide, and lets go
//! direct what a rule lets go direct.
//!
//! What such a file cannot know (the user, the path of an encrypted request) is left out of a rule, and the proxy is
//! asked whenever the rest of the rule holds: it applies the rules itself, so that nothing goes where it should not.

use std::fmt::Write as _;

use ringweir_flow::rules::names::{NameSet, Reach};
use ringweir_flow::rules::{Action, Condition, Domains, Networks, Rule, Rules};
use ringweir_flow::snapshot::{ListenerIndex, Protocol, Snapshot, TargetIndex, TargetKind, Upstream};

/// The most names and networks of a file: browsers read it on one thread.
const MAX_ENTRIES: usize = 100_000;

const HELPERS: &str = r#"function within(names, host) {
  for (var reach = 1; ; reach = 2) {
    if (names[host] & reach) return true;
    var dot = host.indexOf(".");
    if (dot < 0) return false;
    host = host.substring(dot + 1);
  }
}
function address(host) {
  var parts = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(host);
  return parts ? ((+parts[1] * 256 + +parts[2]) * 256 + +parts[3]) * 256 + +parts[4] : -1;
}
function inRanges(ranges, address) {
  for (var i = 0; i < ranges.length; i++)
    if (address >= ranges[i][0] && address <= ranges[i][1]) return true;
  return false;
}
function portOf(url) {
  var parts = /^([a-z]+):\/\/(?:[^\/?#]*@)?(?:\[[^\]]*\]|[^\/?#:]*)(?::(\d+))?/i.exec(url);
  if (!parts) return -1;
  if (parts[2]) return +parts[2];
  var known = {http: 80, ws: 80, https: 443, wss: 443, ftp: 21};
  return known[parts[1].toLowerCase()] || -1;
}
"#;

/// What a file makes of a condition.
enum Said {
    /// The same.
    Exactly(String),
    /// Nothing: it holds for every session that asks by this file.
    Always,
    /// Nothing: it holds for none.
    Never,
    /// It cannot be known, for this reason.
    Unknown(&'static str),
}

/// The listener whose clients a file is for: the one that is named, or the first that is a proxy.
pub(crate) fn listener(snapshot: &Snapshot, name: Option<&str>) -> Option<ListenerIndex> {
    let is_it = |at: &usize| {
        let listener = &snapshot.listeners[*at];
        let is_proxy = directive(listener.protocol).is_some();
        is_proxy && name.is_none_or(|name| *listener.name == *name)
    };
    (0..snapshot.listeners.len()).find(is_it).and_then(|at| u32::try_from(at).ok()).map(ListenerIndex)
}

/// The word for a proxy of this kind; `None` where no browser can use it.
fn directive(protocol: Protocol) -> Option<&'static str> {
    match protocol {
        Protocol::Http | Protocol::Mixed => Some("PROXY"),
        Protocol::Socks | Protocol::Socks5 => Some("SOCKS5"),
        Protocol::Tcp | Protocol::Redirect | Protocol::Tproxy | Protocol::Shadowsocks => None,
    }
}

/// The file for the clients of a listener, who reach it at `proxy`.
pub(crate) fn generate(snapshot: &Snapshot, listener: ListenerIndex, proxy: &str) -> String {
    let settings = snapshot.listener(listener);
    let word = directive(settings.protocol).unwrap_or("PROXY");
    let mut writer = Writer { data: String::new(), body: String::new(), entries: 0 };
    let rules = snapshot.rules.as_deref().map(Rules::list).unwrap_or_default();
    let mut is_decided = false;
    for rule in rules {
        is_decided = writer.rule(snapshot, listener, rule);
        if is_decided {
            break;
        }
    }
    if !is_decided {
        let _ = writeln!(writer.body, "  return {};", leads_to(snapshot, settings.target));
    }
    let Writer { data, body, .. } = writer;
    format!(
        "// Made by ringweir from the rules of listener {name}.\n{HELPERS}{data}\
         function FindProxyForURL(url, host) {{\n  var proxy = {way};\n  \
         host = host.toLowerCase().replace(/\\.$/, \"\");\n  \
         // What addresses of IPv6 meet is the proxy's to say.\n  \
         if (host.indexOf(\":\") >= 0) return proxy;\n  \
         var ip = address(host), port = portOf(url);\n{body}}}\n",
        name = text(&settings.name),
        way = text(&format!("{word} {proxy}")),
    )
}

/// What a browser is told of a target.
fn leads_to(snapshot: &Snapshot, target: TargetIndex) -> &'static str {
    let target = snapshot.target(target);
    match &target.kind {
        // Connections that are special are the daemon's to make.
        TargetKind::Upstream(Upstream::Direct) if target.outgoing.is_none() => "\"DIRECT\"",
        TargetKind::Upstream(_) | TargetKind::Group(_) => "proxy",
    }
}

struct Writer {
    /// Sets that the function asks.
    data: String,
    body: String,
    entries: usize,
}

impl Writer {
    /// Writes a rule; says whether nothing can come after it.
    fn rule(&mut self, snapshot: &Snapshot, listener: ListenerIndex, rule: &Rule) -> bool {
        let name = text(&rule.name);
        let (mut tests, mut unknown) = (Vec::new(), Vec::new());
        for condition in &rule.conditions {
            match self.condition(condition, listener) {
                Said::Exactly(test) => tests.push(test),
                Said::Always => {}
                Said::Never => {
                    let word = condition.as_str();
                    let _ = writeln!(self.body, "  // {name} is left out: nobody here meets its {word}.");
                    return false;
                }
                Said::Unknown(why) => unknown.push(format!("{} ({why})", condition.as_str())),
            }
        }
        let way = match rule.action {
            Action::Target(target) if unknown.is_empty() => leads_to(snapshot, target),
            // Who is refused is told so by the proxy.
            Action::Target(_) | Action::Reject | Action::Drop => "proxy",
        };
        let _ = match unknown.is_empty() {
            true => writeln!(self.body, "  // {name}"),
            false => writeln!(self.body, "  // {name}, without {}: the proxy decides.", unknown.join(", ")),
        };
        let _ = match tests.is_empty() {
            true => writeln!(self.body, "  return {way};"),
            false => writeln!(self.body, "  if ({}) return {way};", tests.join(" && ")),
        };
        tests.is_empty()
    }

    fn condition(&mut self, condition: &Condition, listener: ListenerIndex) -> Said {
        match condition {
            Condition::Listener(listeners) if listeners.contains(&listener) => Said::Always,
            // Proxies do not look into what they are handed.
            Condition::Listener(_) | Condition::Sni(_) | Condition::Alpn(_) => Said::Never,
            Condition::User(_) => Said::Unknown("the user is not known"),
            Condition::Country(_) => Said::Unknown("only the proxy knows countries"),
            Condition::Source(_) | Condition::SourceCountry(_) => {
                Said::Unknown("the client's address is not known")
            }
            Condition::Host(_) => Said::Unknown("only the proxy sees the request"),
            Condition::Path(_) => Said::Unknown("only the proxy sees the request"),
            Condition::Port(ports) => {
                let tests: Vec<String> = ports
                    .iter()
                    .map(|range| format!("port >= {} && port <= {}", range.start(), range.end()))
                    .collect();
                Said::Exactly(any(tests))
            }
            Condition::Destination(networks) => self.networks(networks).map_or(TOO_MANY, Said::Exactly),
            Condition::Domain(domains) => self.domains(domains),
            Condition::List(lists) => {
                let mut tests = Vec::new();
                for list in lists.iter() {
                    let (domains, exceptions) =
                        (self.domains(list.content.domains()), self.domains(list.content.exceptions()));
                    let (Said::Exactly(domains), Said::Exactly(exceptions)) = (domains, exceptions) else {
                        return TOO_MANY;
                    };
                    let Some(networks) = self.networks(list.content.networks()) else { return TOO_MANY };
                    tests.push(format!("{domains} && !{exceptions} || {networks}"));
                }
                Said::Exactly(any(tests))
            }
        }
    }

    fn domains(&mut self, domains: &Domains) -> Said {
        let mut tests = Vec::new();
        if !domains.names().is_empty() {
            match self.names(domains.names()) {
                Some(set) => tests.push(format!("within({set}, host)")),
                None => return TOO_MANY,
            }
        }
        tests.extend(domains.keywords().iter().map(|word| format!("host.indexOf({}) >= 0", text(word))));
        for pattern in domains.regexes() {
            if !is_common(pattern) {
                return Said::Unknown("browsers know no such expression");
            }
            tests.push(format!("new RegExp({}, \"i\").test(host)", text(pattern)));
        }
        // Names alone: an address is none.
        let test = any(tests);
        Said::Exactly(format!("(ip < 0 && {test})"))
    }

    /// The variable that holds a set; `None` when it is too large.
    fn names(&mut self, names: &NameSet) -> Option<String> {
        self.take(names.len())?;
        let variable = format!("names{}", self.data.len());
        let entries: Vec<String> = names
            .iter()
            .map(|(name, reach)| {
                let bits = match reach {
                    Reach::Itself => 1,
                    Reach::Below => 2,
                    Reach::Whole => 3,
                };
                format!("{}:{bits}", text(name))
            })
            .collect();
        let _ = writeln!(self.data, "var {variable} = {{{}}};", entries.join(","));
        Some(variable)
    }

    fn networks(&mut self, networks: &Networks) -> Option<String> {
        self.take(networks.v4().len())?;
        let variable = format!("ranges{}", self.data.len());
        let ranges: Vec<String> = networks.v4().iter().map(|(from, to)| format!("[{from},{to}]")).collect();
        let _ = writeln!(self.data, "var {variable} = [{}];", ranges.join(","));
        Some(format!("(ip >= 0 && inRanges({variable}, ip))"))
    }

    fn take(&mut self, entries: usize) -> Option<()> {
        self.entries = self.entries.checked_add(entries).filter(|all| *all <= MAX_ENTRIES)?;
        Some(())
    }
}

const TOO_MANY: Said = Said::Unknown("it is too large for a browser");

/// At least one of these.
fn any(tests: Vec<String>) -> String {
    match tests.is_empty() {
        true => "false".to_owned(),
        false => format!("({})", tests.join(" || ")),
    }
}

/// Whether an expression means the same to browsers.
fn is_common(pattern: &str) -> bool {
    !["(?", "[[", "&&", "--", "~~", "\\A", "\\z", "\\p", "\\P", "\\x{", "\\u", "\\U", "\\a"]
        .iter()
        .any(|word| pattern.contains(word))
}

/// A text as JavaScript writes it, also within a comment.
fn text(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}
