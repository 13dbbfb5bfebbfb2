//! Which clients a listener serves, by where they come from; and how often the log is told of those that it does not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::record::ClientAddr;
use crate::rules::Networks;
use crate::time::Instant;

/// How often the log is told of refused clients: any of them could fill it.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// The networks that clients of a listener may, and may not, come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Those that may connect; `None` for all.
    pub allow: Option<Networks>,
    /// Those that may not, whatever `allow` says.
    pub deny: Networks,
}

impl Access {
    /// Whether the client is served. Clients on a Unix socket, which its permissions guard, always are.
    pub fn admits(&self, client: &ClientAddr) -> bool {
        match client {
            ClientAddr::Unix => true,
            ClientAddr::Ip(address) => {
                let is_in = |networks: &Networks| networks.contains(address.ip());
                !is_in(&self.deny) && self.allow.as_ref().is_none_or(is_in)
            }
        }
    }
}

/// Lets one line a second through to the log, and counts the others. Shared by all workers.
#[derive(Debug, Default)]
pub struct Gate {
    opens_at_us: AtomicU64,
    held: AtomicU64,
}

impl Gate {
    /// Whether a line may be written now; the number of those that were held back since the last.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let opens_at = self.opens_at_us.load(Ordering::Relaxed);
        let next = (now + TOLD_EVERY).as_micros();
        let replace = || {
            self.opens_at_us.compare_exchange(opens_at, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        if now.as_micros() >= opens_at && replace() {
            return Some(self.held.swap(0, Ordering::Relaxed));
        }
        self.held.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::*;

    fn networks(texts: &[&str]) -> Networks {
        texts.iter().map(|text| text.parse::<IpNet>().unwrap()).collect()
    }

    fn client(address: &str) -> ClientAddr {
        ClientAddr::Ip(address.parse().unwrap())
    }

    #[test]
    fn who_is_denied_is_denied_though_allowed() {
        let access = Access { allow: Some(networks(&["10.0.0.0/8"])), deny: networks(&["10.9.0.0/16"]) };
        assert!(access.admits(&client("10.1.0.1:1")) && access.admits(&client("[::ffff:10.1.0.1]:1")));
        for refused in ["10.9.0.1:1", "[::ffff:10.9.0.1]:1", "192.0.2.1:1", "[2001:db8::1]:1"] {
            assert!(!access.admits(&client(refused)), "{refused}");
        }
        assert!(access.admits(&ClientAddr::Unix));
    }

    #[test]
    fn without_a_list_of_those_allowed_everybody_else_may_come() {
        let access = Access { allow: None, deny: networks(&["2001:db8::/32"]) };
        assert!(access.admits(&client("192.0.2.1:1")) && access.admits(&client("[2001:db9::1]:1")));
        assert!(!access.admits(&client("[2001:db8::1]:1")));
        assert!(!Access { allow: Some(networks(&[])), ..access }.admits(&client("192.0.2.1:1")));
    }

    #[test]
    fn the_log_gets_a_line_a_second_and_the_number_of_the_others() {
        let gate = Gate::default();
        let at = |millis| Instant::ZERO + Duration::from_millis(millis);
        let told = [0, 1, 999, 1_000, 1_001, 2_500].map(|millis| gate.pass(at(millis)));
        assert_eq!(told, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
