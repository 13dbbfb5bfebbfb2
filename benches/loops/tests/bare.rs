//! The bare loops are no floor unless they forward: every byte, both ways, and each end of a stream by itself.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "all of this crate is tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;

const BYTES: usize = 3_000_000;
const SESSIONS: usize = 20;

struct Loop(Child);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pattern(seed: usize) -> Vec<u8> {
    (0..BYTES).map(|at| (at * 31 + at / 251 + seed) as u8).collect()
}

fn forwards(kind: &str) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = server.local_addr().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_loop-bare"))
        .args(["--listen", "127.0.0.1:0", "--to", &to.to_string(), "--kind", kind])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut address = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
    let _child = Loop(child);
    // It says back what it has heard once it has heard the end.
    thread::spawn(move || {
        for stream in server.incoming() {
            thread::spawn(move || {
                let (mut stream, mut heard) = (stream.unwrap(), Vec::new());
                stream.read_to_end(&mut heard).unwrap();
                stream.write_all(&heard).unwrap();
            });
        }
    });
    let sessions: Vec<_> = (0..SESSIONS)
        .map(|seed| {
            let address = address.trim().to_owned();
            thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                let said = pattern(seed);
                stream.write_all(&said).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).unwrap();
                assert!(heard == said, "{} of {} bytes", heard.len(), said.len());
            })
        })
        .collect();
    for session in sessions {
        session.join().unwrap();
    }
}

#[test]
fn epoll() {
    forwards("epoll");
}

#[test]
fn epoll_splice() {
    forwards("epoll-splice");
}

#[test]
fn ring() {
    forwards("ring");
}

#[test]
fn ring_splice() {
    forwards("ring-splice");
}
