//! Our side of a run: hundreds of sessions at once in one thread, both ends of each, and a watch over them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinSet, spawn_local};
use tokio::time::sleep;

use crate::judge::Live;
use crate::peer::{Peer, Stop};
use crate::script::{Direction, Entrance, Leave, Route, Script, Side, Temper};
use crate::shake;
use crate::socket::{Address, Listening, Socket};
use crate::stream::{Stream, mix};

/// How long one end may move nothing. Scripts pause for 1.5 s at most, so whoever is still for so long hangs, however
/// busy the machine is.
const STILL_LIMIT: Duration = Duration::from_secs(90);

/// How many sessions a report shows.
const SHOWN: usize = 5;

/// Goes ahead of a client's bytes, so that the upstream knows whose they are: the number and a check.
pub(crate) const HEADER_BYTES: usize = 16;

/// What is to be played.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// How many sessions at once.
    pub(crate) slots: usize,
    /// New sessions begin for so long.
    pub(crate) length: Duration,
    /// One script for all of them.
    pub(crate) only: Option<u64>,
    pub(crate) scarcity: Scarcity,
    /// Of the first session.
    pub(crate) first: u64,
}

/// Whether the daemon may turn sessions away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scarcity {
    Plenty,
    FewDescriptors,
}

/// Where sessions are to connect to.
#[derive(Clone, Debug)]
pub(crate) struct Entrances(pub(crate) Vec<(Entrance, Address)>);

/// What was moved through one listener.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Total {
    pub(crate) sessions: u64,
    pub(crate) refused: u64,
    pub(crate) up_sent: u64,
    pub(crate) up_received: u64,
    pub(crate) down_sent: u64,
    pub(crate) down_received: u64,
}

/// The listeners' totals, one for each entrance.
pub(crate) type Totals = Vec<(Entrance, Total)>;

pub(crate) struct World {
    plan: Plan,
    entrances: Entrances,
    /// Where `direct` is sent.
    tcp_upstream: SocketAddr,
    live: RefCell<BTreeMap<u64, Rc<Live>>>,
    next: Cell<u64>,
    totals: RefCell<Totals>,
    /// Connections to the upstream that ended before their header.
    strays: Cell<u64>,
    failures: RefCell<Vec<String>>,
    changed: Notify,
}

/// The upstreams of all routes.
pub(crate) struct Upstreams {
    pub(crate) tcp: Rc<Listening>,
    pub(crate) tcp_address: SocketAddr,
    pub(crate) unix: Rc<Listening>,
}

impl Upstreams {
    pub(crate) fn new(path: &Path) -> Upstreams {
        let (tcp, tcp_address) = Listening::tcp();
        Upstreams { tcp: Rc::new(tcp), tcp_address, unix: Rc::new(Listening::unix(path)) }
    }
}

impl World {
    pub(crate) fn new(plan: Plan, entrances: Entrances, tcp_upstream: SocketAddr) -> Rc<World> {
        let totals = entrances.0.iter().map(|(entrance, _)| (*entrance, Total::default())).collect();
        Rc::new(World {
            next: Cell::new(plan.first),
            plan,
            entrances,
            tcp_upstream,
            live: RefCell::default(),
            totals: RefCell::new(totals),
            strays: Cell::new(0),
            failures: RefCell::default(),
            changed: Notify::new(),
        })
    }

    /// Plays all sessions; then says so by `clients_done` and goes on serving until `daemon_quiet` is told (or
    /// dropped): a client may leave long before its bytes have arrived. Next session's number and totals.
    pub(crate) async fn run(
        self: Rc<World>,
        upstreams: &Upstreams,
        clients_done: impl FnOnce(),
        daemon_quiet: oneshot::Receiver<()>,
    ) -> Result<(u64, Totals), String> {
        let mut tasks = JoinSet::new();
        for listening in [&upstreams.tcp, &upstreams.unix] {
            tasks.spawn_local(Rc::clone(&self).accept(Rc::clone(listening)));
        }
        tasks.spawn_local(Rc::clone(&self).watch());
        let playing = async {
            let mut slots = JoinSet::new();
            let end = Instant::now() + self.plan.length;
            for _ in 0..self.plan.slots {
                slots.spawn_local(Rc::clone(&self).fill_slot(end));
            }
            while let Some(joined) = slots.join_next().await {
                joined.unwrap_or_else(|error| self.fail(format!("the test itself: {error}")));
            }
            clients_done();
            let _ = daemon_quiet.await;
            self.wait_until(|world| world.live.borrow().values().all(|live| !live.is_attached.get())).await;
        };
        tokio::select! {
            () = playing => self.judge_rest(),
            () = self.wait_until(|world| !world.failures.borrow().is_empty()) => {}
        }
        let failures = self.failures.borrow();
        if failures.is_empty() {
            return Ok((self.next.get(), self.totals.borrow().clone()));
        }
        let shown: String = failures.iter().take(SHOWN).flat_map(|text| [text.as_str(), "\n"]).collect();
        Err(format!("{} failures; the first:\n{shown}", failures.len()))
    }

    async fn wait_until(&self, holds: impl Fn(&World) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if holds(self) {
                return;
            }
            changed.await;
        }
    }

    fn fail(&self, text: String) {
        self.failures.borrow_mut().push(text);
        self.changed.notify_waiters();
    }

    /// A panic of ours is a failure too, not a task that is silently gone.
    fn spawn(self: &Rc<World>, task: impl Future<Output = ()> + 'static) {
        let world = Rc::clone(self);
        let handle = spawn_local(task);
        spawn_local(async move {
            if let Err(error) = handle.await {
                world.fail(format!("the test itself: {error}"));
            }
        });
    }

    async fn fill_slot(self: Rc<World>, end: Instant) {
        while Instant::now() < end {
            let number = self.next.replace(self.next.get() + 1);
            let script = Script::draw(self.plan.seed, self.plan.only.unwrap_or(number));
            let live = Rc::new(Live::new(number, script));
            self.live.borrow_mut().insert(number, Rc::clone(&live));
            let (over, waiting) = oneshot::channel();
            let world = Rc::clone(&self);
            self.spawn(async move {
                world.be_client(&live).await;
                let _ = over.send(());
            });
            let _ = waiting.await;
        }
    }

    async fn be_client(&self, live: &Live) {
        match self.enter(live).await {
            Ok(socket) => self.play(live, Side::Client, socket).await,
            // Without descriptors it is turned away in whatever way; the judge looks at it.
            Err(_) if self.plan.scarcity == Scarcity::FewDescriptors => {}
            Err(error) => self.fail(format!("{error} before the first byte of {live}")),
        }
        live.client.is_over.set(true);
        self.settle(live);
    }

    /// Connects, shakes hands, sends the header.
    async fn enter(&self, live: &Live) -> io::Result<Socket> {
        let key = live.script.entrance();
        let address =
            self.entrances.0.iter().find(|(entrance, _)| *entrance == key).map(|(_, address)| address);
        let address = address.expect("every route has its entrances");
        let socket = Socket::connect(address, &live.script.client).await?;
        live.client.ports.set(socket.ports());
        let header = header(live.number);
        match live.script.route {
            Route::TcpToTcp | Route::TcpToUnix | Route::UnixToTcp | Route::UnixToUnix => {
                socket.write_all(&header).await?;
            }
            Route::Socks => shake::socks(&socket, self.tcp_upstream, live.script.handshake, &header).await?,
            Route::Http => shake::http(&socket, self.tcp_upstream, live.script.handshake, &header).await?,
        }
        Ok(socket)
    }

    async fn accept(self: Rc<World>, listening: Rc<Listening>) {
        loop {
            match listening.accept().await {
                Ok(socket) => {
                    let world = Rc::clone(&self);
                    self.spawn(async move { world.be_upstream(socket).await });
                }
                Err(error) => self.fail(format!("our upstream cannot accept: {error}")),
            }
        }
    }

    async fn be_upstream(&self, socket: Socket) {
        let mut bytes = [0; HEADER_BYTES];
        if socket.read_exact(&mut bytes).await.is_err() {
            self.strays.set(self.strays.get() + 1);
            return;
        }
        let number = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
        let live = self.live.borrow().get(&number).map(Rc::clone);
        let Some(live) = live.filter(|_| bytes == header(number)) else {
            return self.fail(format!("a header of nobody's: {bytes:02x?}"));
        };
        if live.is_attached.replace(true) {
            return self.fail(format!("it came twice: {live}"));
        }
        live.upstream.ports.set(socket.ports());
        if let Err(error) = socket.dress(&live.script.upstream) {
            return self.fail(format!("{error} at {live}"));
        }
        self.play(&live, Side::Upstream, socket).await;
        live.upstream.is_over.set(true);
        self.settle(&live);
    }

    async fn play(&self, live: &Live, side: Side, socket: Socket) {
        let (outgoing, incoming, leave) = match side {
            Side::Client => (Direction::Up, Direction::Down, live.script.leave),
            Side::Upstream => (Direction::Down, Direction::Up, Leave::Last),
        };
        live.tally(side).moved_at.set(Instant::now());
        let peer = Peer {
            socket,
            part: live.script.part(side),
            tally: live.tally(side),
            outgoing: Stream::new(live.number, outgoing),
            incoming: Stream::new(live.number, incoming),
            abort: live.script.abort_of(side),
            rng: Rng::with_seed(mix(self.plan.seed ^ side as u64, self.plan.only.unwrap_or(live.number))),
        };
        match peer.play(leave).await {
            Ok(()) | Err(Stop::Broken) => {}
            Err(Stop::Abort(_)) => live.has_aborted.set(true),
            Err(Stop::Wrong(fault)) => self.fail(format!("{side:?} received: {fault}: {live}")),
        }
    }

    /// Judges a session when both ends are over.
    fn settle(&self, live: &Live) {
        if live.is_over() {
            self.live.borrow_mut().remove(&live.number);
            self.judge(live);
        }
        self.changed.notify_waiters();
    }

    /// Those that never reached the upstream.
    fn judge_rest(&self) {
        let rest = std::mem::take(&mut *self.live.borrow_mut());
        let mut never_arrived = 0;
        for live in rest.values() {
            if live.script.temper == Temper::Orderly && self.plan.scarcity == Scarcity::Plenty {
                self.fail(format!("it never reached the upstream: {live}"));
            }
            never_arrived += u64::from(!live.is_attached.get());
            self.judge(live);
        }
        if self.strays.get() > never_arrived {
            self.fail(format!(
                "{} connections without a header, {never_arrived} expected",
                self.strays.get()
            ));
        }
    }

    fn judge(&self, live: &Live) {
        let key = live.script.entrance();
        let mut totals = self.totals.borrow_mut();
        let (_, total) = totals.iter_mut().find(|(entrance, _)| *entrance == key).expect("it has a total");
        total.sessions += 1;
        if self.plan.scarcity == Scarcity::FewDescriptors && live.is_refused() {
            total.refused += 1;
            total.up_sent += live.client.sent.get() + HEADER_BYTES as u64;
            return;
        }
        if let Err(fault) = live.judge() {
            self.fail(format!("{fault}: {live}"));
        }
        let header = HEADER_BYTES as u64;
        total.up_sent += live.client.sent.get() + header;
        total.up_received += live.upstream.received.get() + if live.is_attached.get() { header } else { 0 };
        total.down_sent += live.upstream.sent.get();
        total.down_received += live.client.received.get();
    }

    /// Sees to it that nobody waits for ever without being told of.
    async fn watch(self: Rc<World>) {
        loop {
            sleep(Duration::from_secs(1)).await;
            let live = self.live.borrow();
            let sockets = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
            let hanging: Vec<String> = live
                .values()
                .filter(|live| is_hanging(live))
                .map(|live| format!("it hangs: {live}{}", queues(live, &sockets)))
                .collect();
            drop(live);
            for text in hanging {
                self.fail(text);
            }
        }
    }
}

fn is_hanging(live: &Live) -> bool {
    let still = |tally: &crate::peer::Tally| tally.moved_at.get().elapsed() > STILL_LIMIT;
    let is_open = !live.client.is_over.get() || live.is_attached.get() && !live.upstream.is_over.get();
    is_open && still(&live.client) && still(&live.upstream)
}

/// What the kernel holds for a session's connections, the daemon's sockets included.
fn queues(live: &Live, sockets: &str) -> String {
    let mut text = String::new();
    for (own, other) in [live.client.ports.get(), live.upstream.ports.get()].into_iter().flatten() {
        let (own, other) = (format!(":{own:04X}"), format!(":{other:04X}"));
        let is_ours = |line: &&str| {
            let fields: Vec<&str> = line.split_whitespace().take(3).collect();
            fields.len() == 3
                && (fields[1].ends_with(&own) && fields[2].ends_with(&other)
                    || fields[1].ends_with(&other) && fields[2].ends_with(&own))
        };
        for line in sockets.lines().filter(is_ours) {
            text.extend(["    kernel: ", line.get(..80).unwrap_or(line), "\n"]);
        }
    }
    text
}

fn header(number: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&mix(number, 0x5eed).to_le_bytes());
    bytes
}
