//! What happens when descriptors run out. The limit is the process's, so the driver gets one of its own: this test
//! binary, started again for one test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringweir_flow::snapshot::{Protocol, Upstream};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::world::{World, connect, read_exactly};

const UPSTREAM: &str = "RINGWEIR_TEST_UPSTREAM";
const MOMENT: &str = "RINGWEIR_TEST_MOMENT";

/// How many descriptors there are beyond those that are open.
const ROOM: u64 = 20;

#[test]
fn accepting_survives_a_lack_of_descriptors_and_resumes_within_a_second() {
    let (mut daemon, address) = daemon("after");
    let clients: Vec<TcpStream> = (0..60).map(|_| connect(address)).collect();
    let cpu = cpu_ticks(&daemon);
    // The span that is measured.
    std::thread::sleep(Duration::from_secs(1));
    let spent = cpu_ticks(&daemon) - cpu;
    assert!(spent <= 5, "{spent} % of a core, and nothing to do");
    drop(clients);
    let begun = Instant::now();
    while !is_echoed(address) {
        assert!(begun.elapsed() < Duration::from_secs(1), "it does not accept");
    }
    drop(daemon.stdin.take());
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn clients_beyond_the_limit_wait_and_are_served_in_turn() {
    let (mut daemon, address) = daemon("before");
    let mut clients: Vec<TcpStream> = (0..60).map(|_| connect(address)).collect();
    for client in &mut clients {
        client.write_all(b"x").unwrap();
    }
    // Whoever is served goes; nobody is turned away meanwhile.
    for mut client in clients {
        assert_eq!(read_exactly(&mut client, 1), b"x");
    }
    drop(daemon.stdin.take());
    assert!(daemon.wait().unwrap().success());
}

/// The process that the others start.
#[test]
#[ignore = "needs the environment that the others give it"]
fn daemon_process() {
    let (upstream, moment) = (std::env::var(UPSTREAM).unwrap(), std::env::var(MOMENT).unwrap());
    let mut world = World::new(Protocol::Tcp, Upstream::Tcp([upstream.parse().unwrap()].into()));
    if moment == "before" {
        lower_limit();
    }
    // One socket, so that the order of the queue is the order of service.
    let address = world.add_bind(1);
    if moment == "after" {
        lower_limit();
    }
    println!("\nserves {address}");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn lower_limit() {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(open + ROOM), maximum }).unwrap();
}

fn daemon(moment: &str) -> (Child, SocketAddr) {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "tests::descriptors::daemon_process"])
        .env(UPSTREAM, upstream.local_addr().unwrap().to_string())
        .env(MOMENT, moment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::spawn(move || {
        for stream in upstream.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    let mut lines = BufReader::new(daemon.stdout.take().unwrap()).lines().map_while(Result::ok);
    let address = lines.find_map(|line| line.strip_prefix("serves ")?.parse().ok()).unwrap();
    // The harness over there has more to say, and would fail if nobody listened.
    std::thread::spawn(move || lines.count());
    (daemon, address)
}

fn is_echoed(address: SocketAddr) -> bool {
    let Ok(mut client) = TcpStream::connect(address) else { return false };
    client.set_read_timeout(Some(Duration::from_millis(900))).unwrap();
    client.write_all(b"x").is_ok() && client.read_exact(&mut [0]).is_ok()
}

/// In hundredths of a second, all threads together (proc_pid_stat(5), fields 14 and 15).
fn cpu_ticks(daemon: &Child) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.id())).unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}
