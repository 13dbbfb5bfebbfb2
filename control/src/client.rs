//! Asks a running daemon through its admin endpoint.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cli::AdminArgument;
use crate::model::BindAddress;
use crate::paths;

/// How long a daemon may take to answer; a reload waits for name servers.
const PATIENCE: Duration = Duration::from_secs(15);

/// More than any status of ten thousand targets.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// The text of a successful answer.
///
/// # Errors
/// Why there is none, for people.
pub(crate) async fn ask(admin: &AdminArgument, method: Method, path: &str) -> Result<String, String> {
    let address = admin.admin.clone().unwrap_or_else(paths::default_admin);
    let exchange = async {
        match &address {
            BindAddress::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
                exchange(stream, admin, method, path).await
            }
            BindAddress::DualStack(port) => {
                let local = (std::net::Ipv6Addr::LOCALHOST, *port);
                let stream = TcpStream::connect(local).await.map_err(|error| error.to_string())?;
                exchange(stream, admin, method, path).await
            }
            BindAddress::Unix(path_of_socket) => exchange_unix(path_of_socket, admin, method, path).await,
        }
    };
    match timeout(PATIENCE, exchange).await {
        Ok(Ok((status, text))) if status.is_success() => Ok(text),
        Ok(Ok((status, text))) => match text.trim_end() {
            "" => Err(format!("the daemon at {address} answers {status}")),
            text => Err(text.to_owned()),
        },
        Ok(Err(error)) => {
            Err(format!("the daemon at {address} cannot be asked: {error}; is it running? (--admin)"))
        }
        Err(_) => Err(format!("the daemon at {address} does not answer within {PATIENCE:?}")),
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    admin: &AdminArgument,
    method: Method,
    path: &str,
) -> Result<(StatusCode, String), String> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    if let Some(token) = &admin.token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let bytes = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
    Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(unix)]
async fn exchange_unix(
    socket: &std::path::Path,
    admin: &AdminArgument,
    method: Method,
    path: &str,
) -> Result<(StatusCode, String), String> {
    let stream = tokio::net::UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
    exchange(stream, admin, method, path).await
}

#[cfg(not(unix))]
async fn exchange_unix(
    _socket: &std::path::Path,
    _admin: &AdminArgument,
    _method: Method,
    _path: &str,
) -> Result<(StatusCode, String), String> {
    Err("Unix sockets are not to be had here".to_owned())
}
