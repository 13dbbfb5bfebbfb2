//! Something that is fetched once, by HTTP/1.1, over TLS where its URL says so.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};

use super::{Contact, Prober, Stages, http};
use crate::model::{Check, CheckKind, Endpoint, HttpCheck, Upstream};
use crate::resolve::Names;

/// The body of the answer to `request`. Redirects are not followed.
///
/// # Errors
/// Why there is none, for people: not within `limit`, or more than `max_bytes`, or another status than those expected.
pub(crate) async fn fetch(
    request: HttpCheck,
    names: Arc<Names>,
    limit: Duration,
    max_bytes: usize,
) -> Result<Vec<u8>, String> {
    let upstream = Upstream::to(Endpoint::Direct);
    let check = Check { timeout: limit, kind: CheckKind::Http(request.clone()), ..Check::connect() };
    let mut prober = Prober::new("fetch".into(), Arc::new(check), upstream, names);
    let fetched = timeout(limit, read(&mut prober, &request, max_bytes)).await;
    fetched.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
}

async fn read(prober: &mut Prober, request: &HttpCheck, max_bytes: usize) -> Result<Vec<u8>, String> {
    let contact = Contact::default();
    let mut stages = Stages { begun: Instant::now(), over: Vec::new(), contact };
    let stream = http::open(prober, request, &mut stages).await?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("HTTP: {error}"))?;
    // It ends with the answer, or with the timeout of whoever waits for that.
    let connection = tokio::spawn(connection);
    let answer = async {
        let sent = sender.send_request(http::request(request)?).await;
        let answer = sent.map_err(|error| format!("HTTP: {error}"))?;
        let status = answer.status().as_u16();
        if !request.expect.iter().any(|range| range.contains(&status)) {
            return Err(format!("HTTP status {status}"));
        }
        let body = Limited::new(answer.into_body(), max_bytes).collect().await;
        body.map(|body| body.to_bytes().to_vec()).map_err(|error| format!("HTTP: {error}"))
    };
    let answer = answer.await;
    connection.abort();
    answer
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config;
    use crate::model::ResolverSettings;

    /// Serves one answer, and fetches it.
    async fn fetched(answer: &'static str, max_bytes: usize) -> Result<Vec<u8>, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/x", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            // Whoever has answered waits for the other to go.
            let _ = stream.read(&mut [0; 1024]).await;
        });
        let settings = ResolverSettings { servers: Vec::new(), timeout: Duration::from_secs(1) };
        let names = Arc::new(Names::new(&settings).unwrap());
        fetch(config::get(&url).unwrap(), names, Duration::from_secs(1), max_bytes).await
    }

    #[tokio::test]
    async fn what_is_fetched_is_bounded_in_size_and_time() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(fetched(whole, 5).await.as_deref(), Ok(&b"hello"[..]));
        assert!(fetched(whole, 4).await.unwrap_err().contains("limit"));
        let redirect = "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(fetched(redirect, 5).await.unwrap_err(), "HTTP status 302");
        let half = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel";
        assert_eq!(fetched(half, 5).await.unwrap_err(), "no answer within 1s");
    }
}
