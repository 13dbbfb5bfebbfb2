//! Checks that ask a question in HTTP/1.1, over TLS where the URL says so.

use std::sync::Arc;

use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::reach::{Io, reach};
use super::{Prober, Stage, Stages};
use crate::model::{HttpCheck, Trust};

pub(super) async fn probe(prober: &mut Prober, check: &HttpCheck, stages: &mut Stages) -> Result<(), String> {
    let stream = open(prober, check, stages).await?;
    let status = ask(stream, check).await?.status().as_u16();
    stages.mark(Stage::FirstByte);
    if check.expect.iter().any(|range| range.contains(&status)) {
        Ok(())
    } else {
        Err(format!("HTTP status {status} is not among those expected"))
    }
}

/// A connection that can be asked, encrypted where the check says so.
pub(super) async fn open(
    prober: &mut Prober,
    check: &HttpCheck,
    stages: &mut Stages,
) -> Result<Box<dyn Io>, String> {
    let reached = reach(prober, Some(&check.destination), stages).await?;
    let Some(trust) = &check.tls else { return Ok(reached.stream) };
    let connector = TlsConnector::from(client_config(trust)?);
    let encrypted = connector.connect(trust.server_name.clone(), reached.stream).await;
    let encrypted = encrypted.map_err(|error| format!("TLS: {error}"))?;
    stages.mark(Stage::Tls);
    Ok(Box::new(encrypted))
}

/// The head of the answer. Its body is not read: the connection is closed.
async fn ask(stream: Box<dyn Io>, check: &HttpCheck) -> Result<Response<Incoming>, String> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("HTTP: {error}"))?;
    let mut answer = std::pin::pin!(sender.send_request(request(check)?));
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // It may end with the very bytes that are the answer.
        _ = connection => answer.await,
    };
    answer.map_err(|error| format!("HTTP: {error}"))
}

/// What is asked.
pub(super) fn request(check: &HttpCheck) -> Result<Request<Empty<Bytes>>, String> {
    let request = Request::builder()
        .method(check.method.as_str())
        .uri(&check.path)
        .header(HOST, &check.authority)
        .header(USER_AGENT, concat!("ringweir/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    request.map_err(|error| format!("HTTP: {error}"))
}

fn client_config(trust: &Trust) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    if trust.roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    for root in trust.roots.iter() {
        roots.add(root.clone()).map_err(|error| format!("TLS: {error}"))?;
    }
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use ringweir_flow::wire::Destination;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

    use super::*;
    use crate::model::{Check, CheckKind, Endpoint, ResolverSettings, Upstream};
    use crate::resolve::Names;

    /// Serves `app.example` over TLS and answers 204; returns its address and its certificate.
    async fn server() -> (SocketAddr, CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed(["app.example".to_owned()]).unwrap();
        let certificate: CertificateDer<'static> = made.cert.into();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
                let _ = stream.shutdown().await;
            }
        });
        (address, certificate)
    }

    async fn ask(
        address: SocketAddr,
        name: &str,
        roots: Vec<CertificateDer<'static>>,
    ) -> super::super::Report {
        let settings = ResolverSettings { servers: Vec::new(), timeout: Duration::from_secs(1) };
        let server_name = ServerName::try_from(name.to_owned()).unwrap();
        let http = HttpCheck {
            destination: Destination::from_host(name.as_bytes(), 443).unwrap(),
            authority: name.to_owned(),
            path: "/".to_owned(),
            method: "HEAD".to_owned(),
            expect: vec![204..=204],
            tls: Some(Trust { server_name, roots: roots.into() }),
        };
        let check = Check { kind: CheckKind::Http(http), ..Check::connect() };
        let upstream = Upstream { check: Some(Arc::new(check)), ..Upstream::to(Endpoint::Address(address)) };
        Prober::once("app".into(), upstream, Arc::new(Names::new(&settings).unwrap())).probe().await
    }

    #[tokio::test]
    async fn a_certificate_is_verified_against_those_that_are_trusted() {
        let (address, certificate) = server().await;
        let well = ask(address, "app.example", vec![certificate.clone()]).await;
        assert_eq!(well.error, None);
        let stages: Vec<_> = well.stages.iter().map(|time| time.stage).collect();
        assert_eq!(stages, [Stage::Connect, Stage::Tls, Stage::FirstByte]);
        let unknown = ask(address, "app.example", Vec::new()).await;
        assert!(unknown.error.as_deref().is_some_and(|error| error.starts_with("TLS: ")), "{unknown:?}");
        let other = ask(address, "other.example", vec![certificate]).await;
        assert!(other.error.as_deref().is_some_and(|error| error.starts_with("TLS: ")), "{other:?}");
    }
}
