//! The clients of the soak: each task is one connection, and one after it where that has ended.
//!
//! A request is lost where its client has no answer and was not told that it may send it again: a connection that
//! closes under a request is a loss, one that says so before (`Connection: close`, GOAWAY) is none. Runs in the thread
//! that calls it, in a pod's network namespace. Called by the stage.

use super::servers::{GRPC, HTTP, TLS, WEBSOCKET};
use super::tally::{Came, Kind, Rule, Tally, Turn};
use crate::proto::shop::cart_client::CartClient;
use crate::proto::shop::{DeleteItemRequest, GetCartRequest, WatchCartRequest};
use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long anything may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two clients that start: the kernel bounds each endpoint's rate of new connections.
const RAMP: Duration = Duration::from_millis(4);
/// How long a stream, a WebSocket or a TLS connection lives at least, and how much longer at most.
const LIFE: (u64, u64) = (15, 30);
/// Between two messages of a gRPC stream.
const BEAT_MS: u32 = 1000;
/// After a connection did not come about.
const PAUSE: Duration = Duration::from_millis(200);
/// After the soak is over, for what is under way.
const GRACE: Duration = Duration::from_secs(2);

/// What all of them have.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Where it is counted.
    pub tally: Arc<Tally>,
    /// TLS.
    pub tls: Arc<ClientConfig>,
    /// Between two requests of a connection.
    pub pace: Duration,
}

/// Runs so many of each kind, until the soak is over.
///
/// # Errors
/// Never so far.
pub async fn run(shared: Shared, counts: Vec<(Kind, usize)>, at: impl Fn(u16) -> SocketAddr) -> Result<()> {
    let mut tasks = JoinSet::new();
    let mut number = 0;
    // In turns, so that every kind is there from the beginning.
    let most = counts.iter().map(|(_, count)| *count).max().unwrap_or(0);
    for round in 0..most {
        for (kind, _) in counts.iter().filter(|(_, count)| round < *count) {
            number += 1;
            let client = Client {
                shared: shared.clone(),
                kind: *kind,
                random: u64::wrapping_mul(number, 0x9E37_79B9_7F4A_7C15),
            };
            let target = at(match kind {
                Kind::Http1 | Kind::Http2 => HTTP,
                Kind::Unary | Kind::Stream => GRPC,
                Kind::WebSocket => WEBSOCKET,
                Kind::Tls => TLS,
            });
            tasks.spawn(client.run(target));
            sleep(RAMP).await;
        }
    }
    while !shared.tally.is_stopped() {
        sleep(PAUSE).await;
    }
    sleep(GRACE).await;
    tasks.abort_all();
    Ok(())
}

struct Client {
    shared: Shared,
    kind: Kind,
    random: u64,
}

/// An open connection, as long as it lives.
struct Open(Arc<Tally>);

impl Open {
    fn new(tally: &Arc<Tally>) -> Self {
        tally.opened(true);
        Self(Arc::clone(tally))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.opened(false);
    }
}

/// What an HTTP client asks, turn by turn.
const ASKS: [(&str, &str, Rule); 5] = [
    ("GET", "/items/1", Rule::Always),
    ("PUT", "/turn", Rule::Even),
    ("DELETE", "/items/1", Rule::Never),
    ("POST", "/turn", Rule::Odd),
    ("GET", "/items/2", Rule::Always),
];

impl Client {
    async fn run(mut self, target: SocketAddr) {
        while !self.shared.tally.is_stopped() {
            let done = match self.kind {
                Kind::Http1 => self.http1(target).await,
                Kind::Http2 => self.http2(target).await,
                Kind::Unary => self.unary(target).await,
                Kind::Stream => self.stream(target).await,
                Kind::WebSocket => self.websocket(target).await,
                Kind::Tls => self.tls(target).await,
            };
            if let Err(error) = done {
                // It was to be had in every turn.
                let lost = Came::Lost(format!("{error:#}"));
                self.enter(Rule::Always, self.shared.tally.turn(), &lost);
                sleep(PAUSE).await;
            }
        }
    }

    fn enter(&self, rule: Rule, asked: Turn, came: &Came) {
        self.shared.tally.enter(self.kind, rule, asked, came);
    }

    /// xorshift: enough to spread them.
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Half to three halves of the pace.
    async fn pause(&mut self) {
        let part = self.next() % 1000;
        sleep(self.shared.pace / 2 + self.shared.pace * u32::try_from(part).unwrap_or(0) / 1000).await;
    }

    fn life(&mut self) -> Duration {
        Duration::from_secs(LIFE.0 + self.next() % LIFE.1)
    }

    fn ask(&mut self) -> (&'static str, &'static str, Rule) {
        let turn = self.next();
        ASKS[usize::try_from(turn % 5).unwrap_or(0)]
    }

    async fn http1(&mut self, target: SocketAddr) -> Result<()> {
        let stream = connect(target).await?;
        let _open = Open::new(&self.shared.tally);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let _driver = Driver(tokio::spawn(async move { drop(connection.await) }));
        loop {
            self.pause().await;
            // It said so before, or nothing had been asked of it.
            if self.shared.tally.is_stopped() || sender.ready().await.is_err() {
                return Ok(());
            }
            let (method, path, rule) = self.ask();
            let request = request(method, path.to_owned(), target, true)?;
            let asked = self.shared.tally.turn();
            let came = match timeout(PATIENCE, sender.try_send_request(request)).await {
                Err(_) => Came::Lost("no answer".to_owned()),
                // It was not begun: hyper gives it back.
                Ok(Err(error)) if error.message().is_some() => Came::Again,
                Ok(Err(error)) => Came::Lost(format!("{:?}", error.error())),
                Ok(Ok(response)) => answer(response).await,
            };
            self.enter(rule, asked, &came);
        }
    }

    async fn http2(&mut self, target: SocketAddr) -> Result<()> {
        let stream = connect(target).await?;
        let _open = Open::new(&self.shared.tally);
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = timeout(PATIENCE, handshake).await.context("no handshake")??;
        let _driver = Driver(tokio::spawn(async move { drop(connection.await) }));
        loop {
            self.pause().await;
            if self.shared.tally.is_stopped() || sender.ready().await.is_err() {
                return Ok(());
            }
            let asks = [self.ask(), self.ask()];
            let mut over = false;
            let asked = self.shared.tally.turn();
            let both = asks.map(|(method, path, _)| {
                let mut sender = sender.clone();
                async move {
                    let request = request(method, format!("http://cart{path}"), target, false)?;
                    anyhow::Ok(match timeout(PATIENCE, sender.try_send_request(request)).await {
                        Err(_) => Came::Lost("no answer".to_owned()),
                        Ok(Err(error)) if error.message().is_some() => Came::Again,
                        Ok(Err(error)) => lost(format!("{:?}", error.error())),
                        Ok(Ok(response)) => answer(response).await,
                    })
                }
            });
            for (came, (_, _, rule)) in futures_util::future::join_all(both).await.into_iter().zip(asks) {
                let came = came?;
                over |= matches!(came, Came::Again | Came::Lost(_));
                self.enter(rule, asked, &came);
            }
            if over {
                return Ok(());
            }
        }
    }

    async fn unary(&mut self, target: SocketAddr) -> Result<()> {
        let mut client = self.channel(target).await?;
        let _open = Open::new(&self.shared.tally);
        loop {
            self.pause().await;
            if self.shared.tally.is_stopped() {
                return Ok(());
            }
            let cart = "blue".to_owned();
            let turn = self.next() % 3;
            let asked = self.shared.tally.turn();
            let call = async {
                match turn {
                    0 => (Rule::Even, client.get_cart(GetCartRequest { cart }).await.map(drop)),
                    1 => {
                        let item = "book".to_owned();
                        (Rule::Never, client.delete_item(DeleteItemRequest { cart, item }).await.map(drop))
                    }
                    _ => (Rule::Always, one_message(&mut client, cart).await),
                }
            };
            let (rule, came) = timeout(PATIENCE, call).await.context("no answer to a call")?;
            self.enter(rule, asked, &status(came));
        }
    }

    async fn stream(&mut self, target: SocketAddr) -> Result<()> {
        let count = u32::try_from(self.life().as_millis()).unwrap_or(u32::MAX) / BEAT_MS;
        let mut client = self.channel(target).await?;
        let _open = Open::new(&self.shared.tally);
        let asked = self.shared.tally.turn();
        let ask = WatchCartRequest { cart: "blue".to_owned(), count, interval_ms: BEAT_MS };
        let mut stream = match timeout(PATIENCE, client.watch_cart(ask)).await.context("no answer")? {
            Ok(stream) => stream.into_inner(),
            Err(error) => {
                self.enter(Rule::Always, asked, &status(Err(error)));
                return Ok(());
            }
        };
        let mut got = 0;
        let came = loop {
            match timeout(PATIENCE, stream.message()).await {
                Err(_) => break Came::Lost("a stream fell silent".to_owned()),
                Ok(Ok(Some(_))) => got += 1,
                Ok(Ok(None)) if got == count => break Came::Allowed,
                Ok(Ok(None)) => break Came::Lost("a stream ended before its end".to_owned()),
                Ok(Err(error)) => break Came::Lost(format!("a stream broke: {:?} {error}", error.code())),
            }
            if self.shared.tally.is_stopped() {
                return Ok(());
            }
        };
        self.enter(Rule::Always, asked, &came);
        Ok(())
    }

    async fn channel(&self, target: SocketAddr) -> Result<CartClient<Channel>> {
        let endpoint = Endpoint::from_shared(format!("http://{target}"))?.connect_timeout(PATIENCE);
        Ok(CartClient::new(endpoint.connect().await.map_err(|error| anyhow!("connect: {error:?}"))?))
    }

    async fn websocket(&mut self, target: SocketAddr) -> Result<()> {
        let mut stream = connect(target).await?;
        let _open = Open::new(&self.shared.tally);
        let asked = self.shared.tally.turn();
        let head = format!(
            "GET /echo HTTP/1.1\r\nHost: {target}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut got = Vec::new();
        while !got.ends_with(b"\r\n\r\n") {
            let read = timeout(PATIENCE, stream.read_buf(&mut got)).await.context("no upgrade")??;
            if read == 0 {
                bail!("the connection closed under an upgrade: {:?}", String::from_utf8_lossy(&got));
            }
        }
        if !got.starts_with(b"HTTP/1.1 101 ") {
            bail!("no upgrade but {:?}", String::from_utf8_lossy(&got[..got.len().min(60)]));
        }
        self.enter(Rule::Always, asked, &Came::Allowed);
        self.echoes(&mut stream, "a WebSocket").await
    }

    async fn tls(&mut self, target: SocketAddr) -> Result<()> {
        let (name, rule) = [
            ("always.test", Rule::Always),
            ("even.test", Rule::Even),
            ("odd.test", Rule::Odd),
            ("never.test", Rule::Never),
        ][usize::try_from(self.next() % 4).unwrap_or(0)];
        self.pause().await;
        let asked = self.shared.tally.turn();
        let connector = TlsConnector::from(Arc::clone(&self.shared.tls));
        let stream = connect(target).await?;
        let _open = Open::new(&self.shared.tally);
        let handshake = timeout(PATIENCE, connector.connect(ServerName::try_from(name)?, stream));
        match (handshake.await.context("no TLS handshake")?, rule) {
            (Ok(mut stream), Rule::Always) => {
                self.enter(rule, asked, &Came::Allowed);
                self.echoes(&mut stream, "TLS").await?;
            }
            (Ok(_), _) => self.enter(rule, asked, &Came::Allowed),
            (Err(error), Rule::Always) => bail!("TLS: {error}"),
            (Err(_), _) => self.enter(rule, asked, &Came::Denied),
        }
        Ok(())
    }

    /// What goes out comes back, for as long as a long connection lives.
    async fn echoes(&mut self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin), what: &str) -> Result<()> {
        let end = Instant::now() + self.life();
        let mut number = self.next();
        while Instant::now() < end && !self.shared.tally.is_stopped() {
            number = number.wrapping_add(1);
            let (sent, mut got, asked) = (number.to_be_bytes(), [0; 8], self.shared.tally.turn());
            let back = async {
                stream.write_all(&sent).await?;
                stream.flush().await?;
                stream.read_exact(&mut got).await
            };
            timeout(PATIENCE, back)
                .await
                .with_context(|| format!("{what} fell silent"))?
                .map_err(|error| anyhow!("{what} broke: {error}"))?;
            if sent != got {
                bail!("{what} brought other bytes");
            }
            self.enter(Rule::Always, asked, &Came::Allowed);
            self.pause().await;
        }
        Ok(())
    }
}

/// Ends the task of a connection with it.
struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = timeout(PATIENCE, TcpStream::connect(target)).await.context("connect: no answer")?;
    let stream = stream.map_err(|error| anyhow!("connect: {error}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn request(method: &str, uri: String, target: SocketAddr, host: bool) -> Result<Request<Full<Bytes>>> {
    let mut request = Request::builder().method(method).uri(uri);
    if host {
        request = request.header(http::header::HOST, target.to_string());
    }
    let body = if method == "GET" { Bytes::new() } else { Bytes::from_static(b"a body of some bytes") };
    Ok(request.body(Full::new(body))?)
}

async fn answer(response: Response<Incoming>) -> Came {
    let status = response.status().as_u16();
    match timeout(PATIENCE, response.into_body().collect()).await {
        Err(_) => Came::Lost("the body did not end".to_owned()),
        Ok(Err(error)) => lost(format!("the body broke off: {error:?}")),
        Ok(Ok(_)) => match status {
            200 => Came::Allowed,
            403 => Came::Denied,
            _ => Came::Lost(format!("status {status}")),
        },
    }
}

async fn one_message(client: &mut CartClient<Channel>, cart: String) -> Result<(), Status> {
    let mut stream =
        client.watch_cart(WatchCartRequest { cart, count: 1, interval_ms: 0 }).await?.into_inner();
    match (stream.message().await?, stream.message().await?) {
        (Some(_), None) => Ok(()),
        other => Err(Status::internal(format!("not one message but {other:?}"))),
    }
}

fn status(came: Result<(), Status>) -> Came {
    match came {
        Ok(()) => Came::Allowed,
        Err(status) if status.code() == Code::PermissionDenied => Came::Denied,
        Err(status) => lost(format!("{status:?}")),
    }
}

/// Lost, unless the other end said that it had not begun with it: a stream above a GOAWAY's last one, or refused
/// (RFC 9113 sections 6.8, 8.7); or it never went out.
fn lost(reason: String) -> Came {
    let refused =
        ["REFUSED_STREAM", "kind: GoAway(b\"\", NO_ERROR", "Canceled, \"connection", "Canceled, hyper"];
    if refused.iter().any(|word| reason.contains(word)) { Came::Again } else { Came::Lost(reason) }
}
