//! End to end: the real binary with real sockets. Every scenario runs on both engines, as `theme::io_uring::name`
//! and `theme::tokio::name`. Where the machine refuses io_uring its variants skip aloud.
#![cfg(target_os = "linux")]
// All of this crate is tests, helpers included, and the lint's exception covers functions marked as such alone.
#![allow(clippy::unwrap_used)]

mod harness;

mod admin;
mod attempts;
mod checks;
mod cli;
mod curl;
mod diverted;
mod engines;
mod events;
mod exhaustion;
mod faults;
mod fleet;
mod health;
mod histograms;
mod http;
mod lifecycle;
mod limits;
mod names;
mod outage;
mod passive;
mod peek;
mod plugins;
mod policies;
mod proxies;
mod proxy_protocol;
mod relay;
mod reload;
mod reset;
mod retire;
mod rules;
mod shadowsocks;
mod shares;
mod sockets;
mod socks;
mod splicing;
mod users;
