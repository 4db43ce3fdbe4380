//! An HTTP client that keeps to one connection: HTTP/1.1 keep-alive one after the other, or HTTP/2 with many
//! streams at once.
//!
//! Sends paths as they are given, dots and escapes and all. Knows nothing of policies. Called by `sluice-peer`
//! and by tests.

use crate::peer::CLIENT_DEADLINE;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Which HTTP to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1, one request after the other.
    Http1,
    /// HTTP/2 with prior knowledge, all requests at once.
    Http2,
}

/// A request to be sent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// `GET` unless given.
    #[serde(default)]
    pub method: String,
    /// The path with its query, as it shall go out.
    pub path: String,
    /// The host; the target's address unless given.
    #[serde(default)]
    pub host: Option<String>,
    /// Header fields, in order; a name may come twice.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The body.
    #[serde(default)]
    pub body: String,
}

impl Ask {
    /// A request without headers.
    #[must_use]
    pub fn new(method: &str, path: &str) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), ..Self::default() }
    }

    /// The same with a header field more.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// What came back.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// The place of its request in the list.
    pub index: usize,
    /// The status; 0 where there was none.
    pub status: u16,
    /// Header fields; the last of each name.
    pub headers: BTreeMap<String, String>,
    /// Trailer fields.
    pub trailers: BTreeMap<String, String>,
    /// The body as text.
    pub body: String,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Answer {
    fn failed(index: usize, error: &anyhow::Error) -> Self {
        Self { index, error: Some(format!("{error:#}")), ..Self::default() }
    }

    /// The body as JSON; null where it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// Connects, in the namespace of the calling thread, and sends the requests on that one connection.
///
/// # Errors
/// When the connection or the protocol's handshake fails. A request that gets no answer is an [`Answer`] with
/// an error.
pub async fn ask(target: SocketAddr, version: Version, asks: &[Ask]) -> Result<Vec<Answer>> {
    ask_within(target, version, asks, CLIENT_DEADLINE).await
}

/// The same; the connection must come about within the deadline.
///
/// # Errors
/// As [`ask`].
pub async fn ask_within(
    target: SocketAddr,
    version: Version,
    asks: &[Ask],
    deadline: Duration,
) -> Result<Vec<Answer>> {
    ask_on(connect(target, deadline).await?, target, version, asks).await
}

async fn connect(target: SocketAddr, deadline: Duration) -> Result<TcpStream> {
    timeout(deadline, TcpStream::connect(target))
        .await
        .with_context(|| format!("no connection to {target} within {deadline:?}"))?
        .with_context(|| format!("cannot connect to {target}"))
}

/// Sends the requests on a connection that is open.
///
/// # Errors
/// When the protocol's handshake fails.
pub async fn ask_on(
    stream: TcpStream,
    target: SocketAddr,
    version: Version,
    asks: &[Ask],
) -> Result<Vec<Answer>> {
    stream.set_nodelay(true)?;
    let requests: Vec<Result<Request<Full<Bytes>>>> =
        asks.iter().map(|ask| request(ask, target, version)).collect();
    match version {
        Version::Http1 => http1_in_turn(TokioIo::new(stream), requests).await,
        Version::Http2 => http2_at_once(TokioIo::new(stream), requests).await,
    }
}

/// An HTTP/1.1 connection that requests go over one after the other.
#[derive(Debug)]
pub struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    target: SocketAddr,
    driver: tokio::task::JoinHandle<()>,
}

impl Connection {
    /// Opens one, in the namespace of the calling thread.
    ///
    /// # Errors
    /// When it does not come about.
    pub async fn open(target: SocketAddr) -> Result<Self> {
        let stream = connect(target, CLIENT_DEADLINE).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, target, driver })
    }

    /// Whether it takes another request. After an answer with `Connection: close` it does not.
    pub async fn is_open(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// When there is none.
    pub async fn send(&mut self, ask: &Ask) -> Result<Answer> {
        let request = request(ask, self.target, Version::Http1)?;
        self.sender.ready().await.context("the connection was closed")?;
        let sent = timeout(CLIENT_DEADLINE, self.sender.send_request(request)).await;
        finish(sent.context("no answer in time"), 0).await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn http1_in_turn(
    io: TokioIo<TcpStream>,
    requests: Vec<Result<Request<Full<Bytes>>>>,
) -> Result<Vec<Answer>> {
    let (mut sender, connection) = http1::Builder::new().handshake(io).await?;
    let driver = tokio::spawn(connection);
    let mut answers = Vec::with_capacity(requests.len());
    for (index, request) in requests.into_iter().enumerate() {
        let answer = match (request, sender.ready().await) {
            (Err(error), _) => Err(error),
            (_, Err(error)) => Err(error).context("the connection was closed"),
            (Ok(request), Ok(())) => {
                let sent = timeout(CLIENT_DEADLINE, sender.send_request(request)).await;
                finish(sent.context("no answer in time"), index).await
            }
        };
        answers.push(answer.unwrap_or_else(|error| Answer::failed(index, &error)));
    }
    drop(sender);
    driver.abort();
    Ok(answers)
}

async fn http2_at_once(
    io: TokioIo<TcpStream>,
    requests: Vec<Result<Request<Full<Bytes>>>>,
) -> Result<Vec<Answer>> {
    let handshake = http2::Builder::new(TokioExecutor::new()).handshake(io);
    let (sender, connection) = timeout(CLIENT_DEADLINE, handshake).await.context("no HTTP/2 handshake")??;
    let driver = tokio::spawn(connection);
    let streams = requests.into_iter().enumerate().map(|(index, request)| {
        let mut sender = sender.clone();
        async move {
            let answer = async {
                let request = request?;
                let sent = timeout(CLIENT_DEADLINE, sender.send_request(request)).await;
                finish(sent.context("no answer in time"), index).await
            };
            answer.await.unwrap_or_else(|error| Answer::failed(index, &error))
        }
    });
    let answers = join_all(streams).await;
    drop(sender);
    driver.abort();
    Ok(answers)
}

async fn finish(sent: Result<hyper::Result<Response<Incoming>>>, index: usize) -> Result<Answer> {
    let (parts, body) = sent?.context("no answer")?.into_parts();
    let body = timeout(CLIENT_DEADLINE, body.collect()).await.context("the body did not end in time")?;
    let body = body.context("the body broke off")?;
    let trailers = body.trailers().map(fields).unwrap_or_default();
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    Ok(Answer {
        index,
        status: parts.status.as_u16(),
        headers: fields(&parts.headers),
        trailers,
        body,
        error: None,
    })
}

fn fields(map: &http::HeaderMap) -> BTreeMap<String, String> {
    map.iter()
        .map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect()
}

fn request(ask: &Ask, target: SocketAddr, version: Version) -> Result<Request<Full<Bytes>>> {
    let host = ask.host.clone().unwrap_or_else(|| target.to_string());
    let method = if ask.method.is_empty() { "GET" } else { &ask.method };
    let uri = match version {
        Version::Http1 => ask.path.clone(),
        Version::Http2 => format!("http://{host}{}", ask.path),
    };
    let mut request = Request::builder().method(method).uri(&uri);
    if version == Version::Http1 {
        request = request.header(http::header::HOST, &host);
    }
    let Some(headers) = request.headers_mut() else { bail!("{method} {uri} is no request") };
    for (name, value) in &ask.headers {
        let name: HeaderName = name.parse().with_context(|| format!("header {name}"))?;
        headers.append(name, HeaderValue::from_str(value).context("header value")?);
    }
    request.body(Full::new(Bytes::from(ask.body.clone()))).with_context(|| format!("{method} {uri}"))
}
