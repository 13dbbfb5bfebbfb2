//! Connections that were going elsewhere: redirected or taken by the packet filter of a router, in a network of three
//! namespaces: a client, the router that the daemon runs on, and a server.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use crate::harness::client::{assert_echo, read_rest};
use crate::harness::daemon::{Daemon, Setup, check};
use crate::harness::netns::Namespace;
use crate::harness::pattern::End;
use crate::harness::server::{Server, be_patient};
use crate::harness::status::{named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};

scenarios!(Welcome:
    what_is_redirected_goes_where_it_was_going,
    what_tproxy_takes_goes_where_it_was_going,
    an_upstream_sees_the_clients_own_address,
    who_comes_to_the_listener_itself_is_refused,
    what_was_redirected_may_go_through_a_proxy,
    what_cannot_be_diverted_is_an_error,
);

/// The port that the filter takes, and the daemon's.
const TAKEN: u16 = 8080;
const OWN: u16 = 7080;

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    const BOTH: [Family; 2] = [Family::V4, Family::V6];

    fn client(self) -> IpAddr {
        self.of("10.1.0.2", "fd01::2")
    }

    fn router(self) -> IpAddr {
        self.of("10.1.0.1", "fd01::1")
    }

    fn server(self) -> IpAddr {
        self.of("203.0.113.2", "2001:db8:7::2")
    }

    fn of(self, v4: &str, v6: &str) -> IpAddr {
        match self {
            Family::V4 => v4,
            Family::V6 => v6,
        }
        .parse()
        .expect("an address")
    }
}

/// Three machines in a row.
struct Net {
    client: Namespace,
    router: Namespace,
    server: Namespace,
}

impl Net {
    /// `None`, said aloud, where such a network or its filter is not to be had.
    fn new(filter: &str) -> Option<Net> {
        let net = Net { client: Namespace::new()?, router: Namespace::new()?, server: Namespace::new()? };
        net.client.link(&net.router, "lan0", &[("10.1.0.2/24", "10.1.0.1/24"), ("fd01::2/64", "fd01::1/64")]);
        let far = [("203.0.113.2/24", "203.0.113.1/24"), ("2001:db8:7::2/64", "2001:db8:7::1/64")];
        net.server.link(&net.router, "wan0", &far);
        for (end, v4, v6) in
            [(&net.client, "10.1.0.1", "fd01::1"), (&net.server, "203.0.113.1", "2001:db8:7::1")]
        {
            end.ip(&["route", "add", "default", "via", v4]);
            end.ip(&["-6", "route", "add", "default", "via", v6]);
        }
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            net.router.enter(|| std::fs::write(format!("/proc/sys/net/{setting}"), "1")).expect("forwarding");
        }
        for family in ["-4", "-6"] {
            net.router.ip(&[family, "rule", "add", "fwmark", "1", "lookup", "100"]);
            net.router.ip(&[family, "route", "add", "local", "default", "dev", "lo", "table", "100"]);
        }
        net.router.nft(filter).then_some(net)
    }

    fn start(&self, engine: Engine, config: &str) -> Daemon {
        self.router.enter(|| Setup::new(engine).start(config))
    }

    fn connect(&self, to: IpAddr) -> TcpStream {
        self.client.enter(|| {
            let stream = TcpStream::connect((to, TAKEN)).expect("connected");
            be_patient(&stream);
            stream
        })
    }

    fn serve(&self, at: IpAddr, handler: fn(TcpStream)) -> Server {
        self.server.enter(|| Server::at(SocketAddr::new(at, TAKEN), handler))
    }
}

const REDIRECT: &str = "table inet t { chain c { type nat hook prerouting priority dstnat; \
                        iifname \"lan0\" tcp dport 8080 redirect to :7080; }; }";

const TPROXY: &str = "table inet t { chain c { type filter hook prerouting priority mangle; \
                      socket transparent 1 meta mark set 1 accept; \
                      iifname \"lan0\" meta nfproto ipv4 tcp dport 8080 tproxy ip to :7080 meta mark set 1 accept; \
                      iifname \"lan0\" meta nfproto ipv6 tcp dport 8080 tproxy ip6 to :7080 meta mark set 1 accept; }; }";

fn listener(protocol: &str, target: &str) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = [\"0.0.0.0:{OWN}\", \"[::]:{OWN}\"]\nprotocol = \"{protocol}\"\n\
         target = \"{target}\"\n"
    )
}

fn echo(stream: TcpStream) {
    let _ = std::io::copy(&mut &stream, &mut &stream);
}

/// Says who came.
fn tell(mut stream: TcpStream) {
    let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
    let _ = stream.write_all(peer.as_bytes());
}

fn goes_where_it_was_going(engine: Engine, protocol: &str, filter: &str) {
    let Some(net) = Net::new(filter) else { return };
    let daemon = net.start(engine, &listener(protocol, "direct"));
    for (number_of, family) in (1..).zip(Family::BOTH) {
        let _server = net.serve(family.server(), echo);
        assert_echo(&mut net.connect(family.server()), b"by the router");
        let committed = || number(named(&daemon.status(), "targets", "direct"), &["committed"]);
        eventually(PATIENCE, "it went through the daemon", || committed() == number_of);
    }
    // Nobody listens there: the client is told as the server would.
    let mut refused = net.connect(Family::V4.server());
    assert_eq!(read_rest(&mut refused), (Vec::new(), End::Reset));
}

fn what_is_redirected_goes_where_it_was_going(engine: Engine) {
    goes_where_it_was_going(engine, "redirect", REDIRECT);
}

fn what_tproxy_takes_goes_where_it_was_going(engine: Engine) {
    goes_where_it_was_going(engine, "tproxy", TPROXY);
}

fn an_upstream_sees_the_clients_own_address(engine: Engine) {
    for (transparent, seen) in [
        (true, Family::client as fn(Family) -> IpAddr),
        (false, |family| family.of("203.0.113.1", "2001:db8:7::1")),
    ] {
        // A killed process may leave its ring, and the listening sockets in it, for a moment.
        let Some(net) = Net::new(TPROXY) else { return };
        let upstream = format!("[upstream.out]\nkind = \"direct\"\ntransparent = {transparent}\n");
        let _daemon = net.start(engine, &(listener("tproxy", "out") + &upstream));
        for family in Family::BOTH {
            let _server = net.serve(family.server(), tell);
            let mut told = String::new();
            net.connect(family.server()).read_to_string(&mut told).expect("told");
            assert_eq!(told, seen(family).to_string());
        }
    }
}

fn who_comes_to_the_listener_itself_is_refused(engine: Engine) {
    for (protocol, filter) in [("redirect", REDIRECT), ("tproxy", TPROXY)] {
        let Some(net) = Net::new(filter) else { return };
        let daemon = net.start(engine, &listener(protocol, "direct"));
        for family in Family::BOTH {
            let mut stream =
                net.client.enter(|| TcpStream::connect((family.router(), OWN))).expect("connected");
            be_patient(&stream);
            assert_eq!(read_rest(&mut stream), (Vec::new(), End::Reset), "{protocol}");
        }
        let closed = || number(named(&daemon.status(), "listeners", "in"), &["closed", "client-protocol"]);
        eventually(PATIENCE, "it is counted", || closed() == 2);
    }
}

/// As routers do that have their clients' traffic go by a proxy.
fn what_was_redirected_may_go_through_a_proxy(engine: Engine) {
    let Some(net) = Net::new(REDIRECT) else { return };
    let proxy = net.server.enter(|| {
        let config = "[[listener]]\nname = \"in\"\nbind = \"203.0.113.2:1080\"\nprotocol = \"socks5\"\n\
                      target = \"direct\"\nallow = [\"0.0.0.0/0\"]\n";
        Daemon::start(engine, config)
    });
    let out = "[upstream.out]\nkind = \"socks5\"\naddress = \"203.0.113.2:1080\"\n";
    let _daemon = net.start(engine, &(listener("redirect", "out") + out));
    let _server = net.serve(Family::V4.server(), echo);
    assert_echo(&mut net.connect(Family::V4.server()), b"by the router and the proxy");
    let committed = || number(named(&proxy.status(), "targets", "direct"), &["committed"]);
    eventually(PATIENCE, "the proxy was asked", || committed() == 1);
}

fn what_cannot_be_diverted_is_an_error(_engine: Engine) {
    let refused = |config: &str, told: &str| {
        let done = check(config);
        assert!(done.code != 0 && done.stderr.contains(told), "{}", done.stderr);
    };
    let unix = listener("redirect", "direct").replace("\"0.0.0.0:7080\"", "\"unix:/run/x.sock\"");
    refused(&unix, "bind[0]: unix:/run/x.sock gets no connections");
    refused(&(listener("tproxy", "direct") + "users = { ann = \"secret\" }\n"), "users: has no meaning");
    let both = "[upstream.out]\nkind = \"direct\"\ntransparent = true\nsource = \"192.0.2.1\"\n";
    refused(&(listener("tproxy", "out") + both), "upstream.out.transparent");
}
