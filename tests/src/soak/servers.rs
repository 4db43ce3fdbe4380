//! What the clients speak with: HTTP and gRPC of the peers, without a line for each request; a WebSocket and a TLS echo.
//!
//! Each runs in the thread that calls it, in a network namespace. Called by the stage.

use crate::peer::{Ledger, server};
use anyhow::{Context, Result};
use rcgen::{CertificateParams, KeyPair};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

/// HTTP/1.1 and HTTP/2.
pub const HTTP: u16 = 8080;
/// gRPC.
pub const GRPC: u16 = 9090;
/// WebSocket.
pub const WEBSOCKET: u16 = 8765;
/// TLS.
pub const TLS: u16 = 8443;
/// The names that the TLS server has.
pub const NAMES: [&str; 4] = ["always.test", "even.test", "odd.test", "never.test"];
/// What one read takes.
const BUFFER: usize = 4096;
/// The longest head of an upgrade.
const HEAD: usize = 4096;

/// Both ends' settings of TLS.
#[derive(Clone, Debug)]
pub struct Certified {
    server: Arc<ServerConfig>,
    /// The client's.
    pub client: Arc<ClientConfig>,
}

impl Certified {
    /// A certificate for [`NAMES`], and clients that trust it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make() -> Result<Self> {
        let key = KeyPair::generate()?;
        let names = NAMES.map(str::to_owned).to_vec();
        let certificate = CertificateParams::new(names)?.self_signed(&key)?;
        let der = CertificateDer::from(certificate.der().to_vec());
        let mut roots = RootCertStore::empty();
        roots.add(der.clone())?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let server = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![der], key)?;
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}

/// Serves until the thread's runtime ends. `ready` is called once all of them listen.
///
/// # Errors
/// When a port is taken.
pub async fn serve(certified: Certified, ready: impl FnOnce()) -> Result<()> {
    let at = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let ledger = Arc::new(Ledger::silent());
    let mut tasks = tokio::task::JoinSet::new();
    for port in [HTTP, GRPC] {
        tasks.spawn(server::serve(server::bind(at(port))?, "soak".to_owned(), Arc::clone(&ledger)));
    }
    let websockets = TcpListener::bind(at(WEBSOCKET)).await.context("listen")?;
    tasks.spawn(async move {
        loop {
            let (stream, _) = websockets.accept().await?;
            tokio::spawn(async move { drop(websocket(stream).await) });
        }
    });
    let tls = TcpListener::bind(at(TLS)).await.context("listen")?;
    let acceptor = TlsAcceptor::from(certified.server);
    tasks.spawn(async move {
        loop {
            let (stream, _) = tls.accept().await?;
            let acceptor = acceptor.clone();
            tokio::spawn(async move { echo(acceptor.accept(stream).await?, Vec::new()).await });
        }
    });
    ready();
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// Takes the upgrade, and sends back what comes after it. Which bytes these are is nobody's business in between.
async fn websocket(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    let end = loop {
        if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if head.len() > HEAD || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    };
    let rest = head.split_off(end);
    // The answer to the key of RFC 6455 section 1.3, which the clients here send.
    stream
        .write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        )
        .await?;
    echo(stream, rest).await
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin, first: Vec<u8>) -> std::io::Result<()> {
    stream.write_all(&first).await?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..read]).await?;
        stream.flush().await?;
    }
}
