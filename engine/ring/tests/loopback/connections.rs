//! Accepting and connecting.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

use ringweir_ring::{Completion, Errno, Op, SocketAddrAny, SocketAddrUnix};
use socket2::{Domain, Socket, Type};

use crate::{assert_quiet, next, ring, small, token};

fn connect(domain: Domain, address: impl Into<SocketAddrAny>) -> (Socket, Result<(), Errno>) {
    let mut ring = ring(&small());
    let socket = Socket::new(domain, Type::STREAM, None).unwrap();
    ring.connect(token(Op::Connect, 4), socket.as_fd(), address);
    let Completion::Connected { token: of, result } = next(&mut ring) else { panic!() };
    assert_eq!(of, token(Op::Connect, 4));
    assert_quiet(&mut ring);
    (socket, result)
}

#[test]
fn connects_over_ipv4_and_ipv6() {
    for bind in ["127.0.0.1:0", "[::1]:0"] {
        // A machine may lack IPv6.
        let Ok(listener) = TcpListener::bind(bind) else { continue };
        let address: SocketAddr = listener.local_addr().unwrap();
        let (socket, result) = connect(Domain::for_address(address), address);
        assert_eq!(result, Ok(()));
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(address));
    }
}

#[test]
fn a_refused_connect_says_so() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_, result) = connect(Domain::IPV4, address);
    assert_eq!(result, Err(Errno::CONNREFUSED));
}

#[test]
fn connects_to_unix_sockets_by_path_and_by_abstract_name() {
    let path = std::env::temp_dir().join(format!("ringweir-ring-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let (_, result) = connect(Domain::UNIX, SocketAddrUnix::new(&path).unwrap());
    assert_eq!(result, Ok(()));
    listener.accept().unwrap();
    drop(listener);
    let (_, result) = connect(Domain::UNIX, SocketAddrUnix::new(&path).unwrap());
    assert_eq!(result, Err(Errno::CONNREFUSED));
    std::fs::remove_file(&path).unwrap();
    let (_, result) = connect(Domain::UNIX, SocketAddrUnix::new(&path).unwrap());
    assert_eq!(result, Err(Errno::NOENT));

    let name = format!("ringweir-ring-{}", std::process::id()).into_bytes();
    let listener = UnixListener::bind_addr(&UnixAddr::from_abstract_name(&name).unwrap()).unwrap();
    let (_, result) = connect(Domain::UNIX, SocketAddrUnix::new_abstract_name(&name).unwrap());
    assert_eq!(result, Ok(()));
    listener.accept().unwrap();
}

#[test]
fn one_accept_takes_a_hundred_clients() {
    let mut ring = ring(&small());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    ring.accept_multishot(token(Op::Accept, 8), listener.as_fd());
    let clients = std::thread::spawn(move || -> Vec<TcpStream> {
        (0..100).map(|_| TcpStream::connect(address).unwrap()).collect()
    });
    let mut accepted: Vec<_> = (0..100)
        .map(|_| {
            let Completion::Accepted { token: of, result, more: true } = next(&mut ring) else { panic!() };
            assert_eq!(of, token(Op::Accept, 8));
            TcpStream::from(result.unwrap()).peer_addr().unwrap()
        })
        .collect();
    let mut clients: Vec<_> = clients.join().unwrap().iter().map(|c| c.local_addr().unwrap()).collect();
    accepted.sort();
    clients.sort();
    assert_eq!(accepted, clients);
    assert_eq!(ring.in_flight(), 1, "the accept is still armed");
}
