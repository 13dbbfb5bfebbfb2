//! Every key that the configuration has. A table is opened with its list, and reading a key that is not in it panics
//! in the first test, so that this is the whole truth.

pub(crate) const ROOT: &[&str] = &[
    "engine",
    "admin",
    "log",
    "timeouts",
    "histograms",
    "health",
    "state",
    "resolver",
    "listener",
    "rule",
    "list",
    "country",
    "upstream",
    "group",
    "check",
];
pub(crate) const ENGINE: &[&str] = &["kind", "workers", "splice", "pipes", "busy_poll"];
pub(crate) const ADMIN: &[&str] = &["listen", "metrics", "token", "token_file"];
pub(crate) const LOG: &[&str] = &["level", "format", "sessions"];
pub(crate) const TIMEOUTS: &[&str] = &["handshake", "connect", "idle", "half_close", "drain"];
pub(crate) const HEALTH: &[&str] = &["excuse_outages"];
pub(crate) const STATE: &[&str] = &["file"];
pub(crate) const HISTOGRAMS: &[&str] = &["file", "interval"];
pub(crate) const RESOLVER: &[&str] = &["servers", "timeout"];
pub(crate) const LISTENER: &[&str] = &[
    "name",
    "bind",
    "protocol",
    "target",
    "users",
    "users_file",
    "allow",
    "deny",
    "allow_local",
    "max_sessions",
    "max_sessions_per_source",
    "max_new_per_second",
    "max_new_per_second_per_source",
    "rate_up",
    "rate_down",
    "rate_up_per_source",
    "rate_down_per_source",
    "timeouts",
    "interface",
    "keepalive",
    "mptcp",
    "fast_open",
    "defer_accept",
    "backlog",
    "proxy_protocol",
    "peek",
    "method",
    "password",
    "password_file",
    "plugin",
    "plugin_opts",
];
pub(crate) const PEEK: &[&str] = &["timeout"];
pub(crate) const HASH_KEY: &[&str] = &["cookie", "query"];
pub(crate) const RULE: &[&str] = &[
    "name",
    "listener",
    "user",
    "source",
    "destination",
    "port",
    "domain",
    "domain_suffix",
    "domain_keyword",
    "domain_regex",
    "sni",
    "alpn",
    "host",
    "path",
    "list",
    "country",
    "source_country",
    "target",
    "action",
];
pub(crate) const COUNTRY: &[&str] = &["file"];
pub(crate) const LIST: &[&str] = &["file", "format"];
pub(crate) const PROXY_PROTOCOL: &[&str] = &["trusted"];
pub(crate) const LISTENER_TIMEOUTS: &[&str] = &["handshake", "connect", "idle", "half_close"];
pub(crate) const UPSTREAM: &[&str] = &[
    "kind",
    "passive",
    "disabled",
    "address",
    "weight",
    "check",
    "source",
    "transparent",
    "interface",
    "mark",
    "keepalive",
    "mptcp",
    "user",
    "method",
    "password",
    "password_file",
    "plugin",
    "plugin_opts",
    "via",
    "send_proxy",
    "max_sessions",
    "queue",
    "queue_timeout",
];
pub(crate) const KEEPALIVE: &[&str] = &["idle", "interval", "count"];
pub(crate) const GROUP: &[&str] = &[
    "policy",
    "members",
    "weight",
    "attempts",
    "attempt_timeout",
    "check",
    "commit",
    "stagger",
    "parallel",
    "key",
    "sticky",
    "remember",
    "passive",
    "slow_start",
    "active",
    "on_down",
    "order",
    "tolerance",
];
pub(crate) const ON_DOWN: &[&str] = &["close"];
pub(crate) const MEMBER: &[&str] = &["target", "weight", "backup"];
pub(crate) const STICKY: &[&str] = &["key", "ttl", "size"];
pub(crate) const REMEMBER: &[&str] = &["ttl", "size"];
pub(crate) const UPSTREAM_PASSIVE: &[&str] = &["failures", "eject", "max_eject"];
pub(crate) const GROUP_PASSIVE: &[&str] = &["failures", "eject", "max_eject", "max_ejected"];
pub(crate) const CHECK: &[&str] = &[
    "kind",
    "schedule",
    "timeout",
    "fall",
    "rise",
    "double_check",
    "url",
    "method",
    "status",
    "ca_file",
    "send",
    "expect",
    "command",
];

/// Every key path that a configuration may have, with `*` where a name of the user's choosing stands.
pub fn known_keys() -> Vec<String> {
    let sections = [
        ("engine", ENGINE),
        ("admin", ADMIN),
        ("log", LOG),
        ("timeouts", TIMEOUTS),
        ("histograms", HISTOGRAMS),
        ("health", HEALTH),
        ("state", STATE),
        ("resolver", RESOLVER),
        ("listener", LISTENER),
        ("listener.timeouts", LISTENER_TIMEOUTS),
        ("listener.keepalive", KEEPALIVE),
        ("listener.proxy_protocol", PROXY_PROTOCOL),
        ("listener.peek", PEEK),
        ("rule", RULE),
        ("list.*", LIST),
        ("country", COUNTRY),
        ("upstream.*", UPSTREAM),
        ("upstream.*.keepalive", KEEPALIVE),
        ("upstream.*.passive", UPSTREAM_PASSIVE),
        ("group.*", GROUP),
        ("group.*.members", MEMBER),
        ("group.*.key", HASH_KEY),
        ("group.*.sticky", STICKY),
        ("group.*.sticky.key", HASH_KEY),
        ("group.*.remember", REMEMBER),
        ("group.*.passive", GROUP_PASSIVE),
        ("group.*.on_down", ON_DOWN),
        ("check.*", CHECK),
    ];
    let below = |(section, keys): (&str, &[&str])| {
        keys.iter().map(|key| format!("{section}.{key}")).collect::<Vec<_>>()
    };
    sections.into_iter().flat_map(below).collect()
}
