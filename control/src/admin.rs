//! The admin endpoint: HTTP on a Unix socket that only its owner may use, and, where it is configured, on TCP.
//!
//! A page in somebody's browser must not be able to talk to it: requests with an `Origin`, and over TCP those with a
//! `Host` that is a name of somebody else's, are refused. Nothing that changes anything is a GET.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::daemon::{Event, Observation, Word};
use crate::explain::{self, Question};
use crate::histogram::Source;
use crate::model::{BindAddress, Token};
use crate::rules::pac;
use crate::{metrics, status as figures};

/// Connections at once; more wait in the accept queue.
const MAX_CONNECTIONS: usize = 64;

/// How long a connection may last: a reload waits for name servers, half a request for nobody.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);

/// What a bind of the endpoint offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Everything.
    Full,
    /// What scrapers need: nothing that changes anything.
    ReadOnly,
}

/// Whom a bind trusts.
#[derive(Clone, Debug)]
struct Gate {
    over_tcp: bool,
    token: Option<Token>,
}

/// Why the endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("the admin endpoint {address} cannot be opened: {error}")]
pub(crate) struct AdminError {
    address: BindAddress,
    error: io::Error,
}

/// Opens a bind and serves it for as long as the daemon runs.
///
/// # Errors
/// [`AdminError`] names the address.
pub(crate) fn open(
    address: &BindAddress,
    scope: Scope,
    token: Option<Token>,
    events: mpsc::Sender<Event>,
) -> Result<String, AdminError> {
    let fail = |error| AdminError { address: address.clone(), error };
    match address {
        BindAddress::Unix(path) => {
            let gate = Gate { over_tcp: false, token: None };
            open_unix(path, routes(scope, gate, events)).map_err(fail)?;
            Ok(address.to_string())
        }
        BindAddress::Tcp(_) | BindAddress::DualStack(_) => {
            let gate = Gate { over_tcp: true, token };
            let listener = open_tcp(address).map_err(fail)?;
            let bound = listener.local_addr().map_err(fail)?.to_string();
            let routes = routes(scope, gate, events);
            tokio::spawn(serve(listener, routes));
            Ok(bound)
        }
    }
}

/// Serves a bind: one request a connection, few connections at once, and none for ever.
async fn serve(mut listener: impl Listener, routes: Router) {
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let seat = Arc::clone(&seats).acquire_owned().await;
        let (stream, _) = listener.accept().await;
        let service = TowerToHyperService::new(routes.clone());
        let connection =
            http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // Whoever leaves or dawdles gets no answer; nothing else follows from it.
            let _ = timeout(CONNECTION_LIMIT, connection).await;
            drop(seat);
        });
    }
}

/// The routes of a bind.
fn routes(scope: Scope, gate: Gate, events: mpsc::Sender<Event>) -> Router {
    let read = Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route("/status", get(status))
        .route("/events", get(history))
        .route("/explain", get(explained))
        .route("/proxy.pac", get(proxy_auto_config))
        .route("/histograms", get(histograms))
        .route("/histograms.hlog", get(histogram_log))
        .route("/metrics", get(scrape));
    let all = match scope {
        Scope::ReadOnly => read,
        Scope::Full => {
            let all = read
                .route("/reload", post(reload))
                .route("/probe", post(probe))
                .route("/select", post(select));
            Word::ALL.into_iter().fold(all, |all, word| {
                let said = move |State(events), Query(query)| say(events, query, word);
                all.route(&format!("/{}", word.as_str()), post(said))
            })
        }
    };
    all.layer(middleware::from_fn_with_state(gate, guard)).with_state(events)
}

/// Refuses whom the bind does not trust, before any route is looked at.
async fn guard(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    if headers.contains_key(header::ORIGIN) {
        return (StatusCode::FORBIDDEN, "requests from web pages are refused\n").into_response();
    }
    if gate.over_tcp && !is_own_host(headers) {
        return (StatusCode::FORBIDDEN, "the Host is not this machine's\n").into_response();
    }
    if let Some(token) = &gate.token
        && !bears(headers, token)
    {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        return (StatusCode::UNAUTHORIZED, challenge, "a token is needed\n").into_response();
    }
    next.run(request).await
}

/// Whether the `Host` is an address or `localhost`: a name could be one that an attacker lets resolve to us.
fn is_own_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = host_name(host);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// The name or address of a `Host`, without the port.
fn host_name(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((literal, _port)) => literal,
        None => host.rsplit_once(':').map_or(host, |(name, _port)| name),
    }
}

fn bears(headers: &HeaderMap, token: &Token) -> bool {
    let value = headers.get(header::AUTHORIZATION).map(header::HeaderValue::as_bytes);
    value.and_then(|value| value.strip_prefix(b"Bearer ")).is_some_and(|offered| token.verify(offered))
}

async fn status(State(events): State<mpsc::Sender<Event>>) -> Response {
    match observe(&events).await {
        Some(Observation { mut status, snapshot, .. }) => {
            let measured = tokio::task::spawn_blocking(move || {
                figures::add_latencies(&mut status, &snapshot);
                status
            });
            match measured.await {
                Ok(status) => Json(status).into_response(),
                Err(_) => ending(),
            }
        }
        None => ending(),
    }
}

async fn explained(
    State(events): State<mpsc::Sender<Event>>,
    Query(question): Query<HashMap<String, String>>,
) -> Response {
    let question = match Question::from_query(question) {
        Ok(question) => question,
        Err(text) => return (StatusCode::BAD_REQUEST, text).into_response(),
    };
    match observe(&events).await {
        Some(observation) => match explain::explain(&observation.snapshot, &question) {
            Ok(explanation) => Json(explanation).into_response(),
            Err(text) => (StatusCode::NOT_FOUND, text).into_response(),
        },
        None => ending(),
    }
}

/// The rules for browsers. A wildcard address stands for the one that the browser has asked at.
async fn proxy_auto_config(
    State(events): State<mpsc::Sender<Event>>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    const CONTENT_TYPE: &str = "application/x-ns-proxy-autoconfig";
    let Some(observation) = observe(&events).await else { return ending() };
    let snapshot = &observation.snapshot;
    let Some(listener) = pac::listener(snapshot, query.get("listener").map(String::as_str)) else {
        return (StatusCode::NOT_FOUND, "there is no such listener that is a proxy\n").into_response();
    };
    let bound = snapshot.binds.iter().filter(|bind| bind.listener == listener);
    let bound = bound.filter_map(|bind| bind.address.parse::<SocketAddr>().ok()).next();
    let asked_at = headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(host_name);
    let proxy = match (query.get("proxy"), bound) {
        (Some(proxy), _) => proxy.clone(),
        (None, Some(address)) if !address.ip().is_unspecified() => address.to_string(),
        (None, Some(address)) => {
            let host = asked_at.unwrap_or("localhost");
            let brackets = if host.contains(':') { ["[", "]"] } else { ["", ""] };
            format!("{}{host}{}:{}", brackets[0], brackets[1], address.port())
        }
        (None, None) => {
            return (StatusCode::NOT_FOUND, "where is it? ask for ?proxy=HOST:PORT\n").into_response();
        }
    };
    if !proxy.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte)) {
        return (StatusCode::BAD_REQUEST, "the proxy is no HOST:PORT\n").into_response();
    }
    let text = pac::generate(snapshot, listener, &proxy);
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

async fn scrape(State(events): State<mpsc::Sender<Event>>) -> Response {
    const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match observe(&events).await {
        Some(observation) => {
            let text = metrics::encode(observation.status, observation.reloads, &observation.snapshot);
            ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
        }
        None => ending(),
    }
}

async fn history(State(events): State<mpsc::Sender<Event>>) -> Response {
    let (reply, answer) = oneshot::channel();
    if events.send(Event::ReadHistory(reply)).await.is_err() {
        return ending();
    }
    match answer.await {
        Ok(entries) => Json(entries).into_response(),
        Err(_) => ending(),
    }
}

async fn histograms(State(events): State<mpsc::Sender<Event>>) -> Response {
    match summed(&events, |source| source.to_report()).await {
        Some(report) => Json(report).into_response(),
        None => ending(),
    }
}

async fn histogram_log(State(events): State<mpsc::Sender<Event>>) -> Response {
    const CONTENT_TYPE: &str = "text/plain; charset=utf-8";
    match summed(&events, |source| source.to_log()).await {
        Some(log) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], log).into_response(),
        None => ending(),
    }
}

/// Sums histograms up on a thread where ten thousand targets keep no health check waiting, for one request after
/// another: a log of so many has tens of megabytes.
async fn summed<T: Send + 'static>(
    events: &mpsc::Sender<Event>,
    show: impl FnOnce(Source) -> T + Send + 'static,
) -> Option<T> {
    static TURN: Semaphore = Semaphore::const_new(1);
    let turn = TURN.acquire().await.ok()?;
    let (reply, answer) = oneshot::channel();
    events.send(Event::ReadHistograms(reply)).await.ok()?;
    let source = answer.await.ok()?;
    // The turn ends with the work, not with the patience of whoever asked.
    let work = move || {
        let _turn = turn;
        show(source)
    };
    tokio::task::spawn_blocking(work).await.ok()
}

async fn reload(State(events): State<mpsc::Sender<Event>>) -> Response {
    let (reply, answer) = oneshot::channel();
    ask(&events, Event::Reload(Some(reply)), answer, StatusCode::UNPROCESSABLE_ENTITY).await
}

async fn select(
    State(events): State<mpsc::Sender<Event>>,
    Query(mut query): Query<HashMap<String, String>>,
) -> Response {
    let (Some(group), Some(target)) = (query.remove("group"), query.remove("target")) else {
        return (StatusCode::BAD_REQUEST, "whom of which group? ask for ?group=NAME&target=NAME\n")
            .into_response();
    };
    let (reply, answer) = oneshot::channel();
    ask(&events, Event::Select { group, target, reply }, answer, StatusCode::NOT_FOUND).await
}

async fn probe(
    State(events): State<mpsc::Sender<Event>>,
    Query(mut query): Query<HashMap<String, String>>,
) -> Response {
    let Some(target) = query.remove("target") else {
        return (StatusCode::BAD_REQUEST, "which target? ask for ?target=NAME\n").into_response();
    };
    let (reply, answer) = oneshot::channel();
    ask(&events, Event::Probe { target, reply }, answer, StatusCode::NOT_FOUND).await
}

async fn say(events: mpsc::Sender<Event>, mut query: HashMap<String, String>, word: Word) -> Response {
    let Some(target) = query.remove("target") else {
        return (StatusCode::BAD_REQUEST, "which target? ask for ?target=NAME\n").into_response();
    };
    let (reply, answer) = oneshot::channel();
    ask(&events, Event::Say { target, word, reply }, answer, StatusCode::NOT_FOUND).await
}

async fn observe(events: &mpsc::Sender<Event>) -> Option<Observation> {
    let (reply, answer) = oneshot::channel();
    events.send(Event::Observe(reply)).await.ok()?;
    answer.await.ok()
}

async fn ask(
    events: &mpsc::Sender<Event>,
    event: Event,
    answer: oneshot::Receiver<Result<String, String>>,
    refusal: StatusCode,
) -> Response {
    if events.send(event).await.is_err() {
        return ending();
    }
    match answer.await {
        Ok(Ok(text)) => text.into_response(),
        Ok(Err(text)) => (refusal, text).into_response(),
        Err(_) => ending(),
    }
}

fn ending() -> Response {
    Response::builder()
        .status(StatusCode::SERVICE_UNAVAILABLE)
        .body(Body::from("the daemon is ending\n"))
        .unwrap_or_default()
}

fn open_tcp(address: &BindAddress) -> io::Result<tokio::net::TcpListener> {
    let listener = match address {
        BindAddress::Tcp(address) => std::net::TcpListener::bind(address)?,
        BindAddress::DualStack(port) => std::net::TcpListener::bind(("::", *port))?,
        BindAddress::Unix(_) => return Err(io::ErrorKind::Unsupported.into()),
    };
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

/// Binds with mode 0600 from the first moment: the folder of a socket that is being made is closed to others by the
/// umask, which is the process's and set back at once. Control is the only thread that makes files.
#[cfg(unix)]
fn open_unix(path: &std::path::Path, routes: Router) -> io::Result<()> {
    use rustix::fs::Mode;

    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    crate::bind::remove_stale_socket(path)?;
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = tokio::net::UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener?;
    tokio::spawn(serve(listener, routes));
    Ok(())
}

#[cfg(not(unix))]
fn open_unix(_path: &std::path::Path, _routes: Router) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::HOST, value.parse().unwrap())])
    }

    #[test]
    fn only_addresses_and_localhost_are_own_hosts() {
        for own in ["localhost", "localhost:9180", "127.0.0.1:9180", "[::1]:9180", "10.0.0.1"] {
            assert!(is_own_host(&host(own)), "{own}");
        }
        for foreign in ["evil.example", "localhost.evil.example:9180", "", "127.0.0.1.evil.example"] {
            assert!(!is_own_host(&host(foreign)), "{foreign}");
        }
        assert!(!is_own_host(&HeaderMap::new()));
    }
}
