//! What the kernel makes of the options, asked by getsockopt(2).
#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use ringweir_flow::outgoing::{Keepalive, Outgoing, StreamProtocol};
use socket2::{SockRef, Socket};

use super::*;

const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;

const KEEPALIVE: Keepalive =
    Keepalive { idle: Duration::from_secs(33), interval: Some(Duration::from_secs(7)), count: Some(4) };

fn listen(options: &Listening) -> (Socket, SocketAddr) {
    let socket = options.open(SocketAddr::from((HOME, 0))).unwrap();
    socket.bind(&SocketAddr::from((HOME, 0)).into()).unwrap();
    options.listen(&socket).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

fn assert_keepalive(socket: &Socket) {
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE.idle);
    assert_eq!(Some(socket.tcp_keepalive_interval().unwrap()), KEEPALIVE.interval);
    assert_eq!(Some(socket.tcp_keepalive_retries().unwrap()), KEEPALIVE.count);
}

#[test]
fn accepted_sockets_inherit_nodelay_and_keepalive() {
    let options = Listening { keepalive: Some(KEEPALIVE), ..Listening::default() };
    let (listener, address) = listen(&options);
    let _client = TcpStream::connect(address).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    assert!(accepted.tcp_nodelay().unwrap());
    assert_keepalive(&accepted);
}

#[test]
fn sockets_of_mptcp_listeners_inherit_as_well() {
    let options =
        Listening { keepalive: Some(KEEPALIVE), protocol: StreamProtocol::Mptcp, ..Listening::default() };
    let outgoing = Outgoing { protocol: StreamProtocol::Mptcp, ..Outgoing::default() };
    if let Err(error) = try_out(&outgoing) {
        eprintln!("SKIPPED: {error}");
        return;
    }
    let (listener, address) = listen(&options);
    let client = open(address, &outgoing, None).unwrap();
    client.set_nonblocking(false).unwrap();
    client.connect(&address.into()).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    assert_eq!(accepted.protocol().unwrap(), Some(Protocol::MPTCP), "both ends speak it");
    assert!(accepted.tcp_nodelay().unwrap());
    assert_keepalive(&accepted);
    (&client).write_all(b"over a subflow").unwrap();
    let mut bytes = [0; 14];
    accepted.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"over a subflow");
}

#[test]
fn a_source_has_no_port_before_the_connect() {
    let listener = TcpListener::bind((HOME, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let source = IpAddr::from([127, 0, 0, 9]);
    let outgoing = Outgoing { sources: vec![source], keepalive: Some(KEEPALIVE), ..Outgoing::default() };
    let socket = open(address, &outgoing, Some(source)).unwrap();
    assert_eq!(socket.local_addr().unwrap().as_socket(), Some(SocketAddr::new(source, 0)));
    assert!(getsockopt(&socket, sockopt::IpBindAddressNoPort).unwrap());
    assert!(socket.tcp_nodelay().unwrap() && socket.nonblocking().unwrap());
    assert_keepalive(&socket);
    let _ = socket.connect(&address.into());
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip(), source);
}

#[test]
fn what_is_refused_is_named() {
    let away = IpAddr::from([192, 0, 2, 77]);
    let to = SocketAddr::from((HOME, 9));
    let outgoing = Outgoing { sources: vec![away], ..Outgoing::default() };
    assert_eq!(open(to, &outgoing, Some(away)).unwrap_err().option, SocketOption::Source);
    let outgoing = Outgoing { interface: Some("no-such-if".into()), ..Outgoing::default() };
    assert_eq!(open(to, &outgoing, None).unwrap_err().option, SocketOption::Interface);
    let listening = Listening { backlog: Some(u32::MAX), ..Listening::default() };
    let socket = listening.open(to).unwrap();
    let error = listening.listen(&socket).unwrap_err();
    assert!(error.to_string().starts_with("backlog: ") && error.to_string().contains("somaxconn"), "{error}");
}

#[test]
fn a_mark_is_set_or_refused_by_name() {
    let outgoing = Outgoing { mark: Some(0x77), ..Outgoing::default() };
    match open(SocketAddr::from((HOME, 9)), &outgoing, None) {
        Ok(socket) => assert_eq!(socket.mark().unwrap(), 0x77),
        Err(error) => {
            assert!(error.to_string().starts_with("mark: ") && error.to_string().contains("CAP_NET"))
        }
    }
}

#[test]
fn deferred_clients_are_accepted_once_they_speak() {
    let options = Listening { defer_accept: Some(Duration::from_secs(100)), ..Listening::default() };
    let (listener, address) = listen(&options);
    listener.set_nonblocking(true).unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    // The handshake is complete at the client, and its last packet has arrived: loopback delivers at once.
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    client.write_all(b"!").unwrap();
    let (accepted, _) = listener.accept().unwrap();
    assert_eq!(SockRef::from(&accepted).peer_addr().unwrap().as_socket(), client.local_addr().ok());
}

#[test]
fn fast_open_is_refused_where_the_system_would_ignore_it() {
    let setting = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fastopen").unwrap();
    let serves = setting.trim().parse::<u32>().unwrap() & 2 != 0;
    let options = Listening { fast_open: Some(16), ..Listening::default() };
    match options.open(SocketAddr::from((HOME, 0))) {
        Ok(_) => assert!(serves),
        Err(error) => {
            assert!(!serves && error.option == SocketOption::FastOpen, "{error}");
            assert!(error.to_string().contains("net.ipv4.tcp_fastopen"), "{error}");
        }
    }
}
