//! An HTTP server that says what it saw: HTTP/1.1 keep-alive, HTTP/2 with prior knowledge and gRPC on one port.
//!
//! The query steers it: `delay_ms` waits before the answer, `bytes` sends that many in the body. `GET /__stats`
//! over loopback answers with the ledger. Knows nothing of policies. Called by `sluice-peer` and by tests.

use crate::peer::cart::{Caller, CartService};
use crate::peer::ledger::{Counted, Ledger, canonical, is_loopback};
use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Map, Value, json};
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tonic::service::Routes;

/// Largest answer body that the query may ask for.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Longest wait that the query may ask for.
const MAX_DELAY: Duration = Duration::from_secs(60);
/// A chunk of a long answer body.
const CHUNK: usize = 16 * 1024;

type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Serves HTTP and gRPC on a listener until the task is dropped.
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve(listener: TcpListener, name: String, ledger: Arc<Ledger>) -> Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let port = listener.local_addr()?.port();
    let routes = Routes::new(CartService::server(Arc::clone(&ledger)));
    let name: Arc<str> = name.into();
    loop {
        let (stream, peer) = listener.accept().await.context("accept")?;
        stream.set_nodelay(true)?;
        let connection = ledger.connection(port, peer);
        let seen = Seen {
            caller: Caller { port, peer },
            connection,
            name: Arc::clone(&name),
            ledger: Arc::clone(&ledger),
            routes: routes.clone(),
        };
        let (io, ledger) =
            (TokioIo::new(Counted::new(stream, Arc::clone(&ledger), port, peer)), Arc::clone(&ledger));
        tokio::spawn(async move {
            let service = service_fn(|request| answer(seen.clone(), request));
            let ended = auto::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
            if let (Err(error), false) = (ended, is_loopback(peer)) {
                ledger.say(&json!({"event": "broken", "connection": connection, "error": error.to_string()}));
            }
        });
    }
}

/// What a request's handler knows beside the request.
#[derive(Clone)]
struct Seen {
    caller: Caller,
    connection: u64,
    name: Arc<str>,
    ledger: Arc<Ledger>,
    routes: Routes,
}

async fn answer(seen: Seen, mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if content_type.is_some_and(|value| value.starts_with("application/grpc")) {
        request.extensions_mut().insert(seen.caller);
        let mut routes = seen.routes;
        let response = tonic::codegen::Service::call(&mut routes, request).await;
        return response.map(|response| response.map(|body| body.map_err(Into::into).boxed_unsync()));
    }
    if request.uri().path() == "/__stats" && is_loopback(seen.caller.peer) {
        return Ok(json_response(&json!(seen.ledger.stats())));
    }
    Ok(describe(&seen, request).await)
}

/// Answers with everything that the server saw of the request.
async fn describe(seen: &Seen, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let what = json!({
        "method": parts.method.as_str(),
        "path": parts.uri.path_and_query().map_or("", |path| path.as_str()),
        "version": format!("{:?}", parts.version),
        "headers": headers_json(&parts.headers),
    });
    let count = seen.ledger.request(seen.caller.port, seen.caller.peer, &what);
    let received = body.collect().await.map(http_body_util::Collected::to_bytes);
    let query = parts.uri.query().unwrap_or_default();
    let delay = Duration::from_millis(number(query, "delay_ms") as u64).min(MAX_DELAY);
    tokio::time::sleep(delay).await;
    let Ok(received) = received else {
        return status(StatusCode::BAD_REQUEST);
    };
    let bytes = number(query, "bytes").min(MAX_BYTES);
    if bytes > 0 {
        return Response::new(long_body(bytes));
    }
    let mut answer = json!({
        "server": &*seen.name,
        "peer": canonical(seen.caller.peer),
        "count": count,
        "connection": seen.connection,
        "bodyBytes": received.len(),
    });
    if let (Value::Object(answer), Value::Object(what)) = (&mut answer, what) {
        answer.extend(what);
    }
    json_response(&answer)
}

fn long_body(bytes: usize) -> Body {
    let chunks = (0..bytes.div_ceil(CHUNK)).map(move |index| CHUNK.min(bytes - index * CHUNK));
    let frames = chunks.map(|len| Ok(http_body::Frame::data(Bytes::from(vec![b'x'; len]))));
    http_body_util::StreamBody::new(futures_util::stream::iter(frames).boxed()).boxed_unsync()
}

fn number(query: &str, name: &str) -> usize {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// Headers as JSON: a list where a name occurs more than once.
fn headers_json(headers: &HeaderMap) -> Value {
    let mut map = Map::new();
    for name in headers.keys() {
        let mut values: Vec<Value> = headers
            .get_all(name)
            .iter()
            .map(|value| Value::from(String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        let value = if values.len() == 1 { values.remove(0) } else { Value::from(values) };
        map.insert(name.as_str().to_owned(), value);
    }
    Value::Object(map)
}

fn json_response(value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(format!("{value}\n"))).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn status(code: StatusCode) -> Response<Body> {
    let mut response = json_response(&json!({"error": code.as_str()}));
    *response.status_mut() = code;
    response
}

/// Binds a listener on every address of the port, IPv4 and IPv6 in one socket.
///
/// # Errors
/// When the port is taken.
pub fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))
}
