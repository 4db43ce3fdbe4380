//! What a request over HTTP/2 costs the proxy, on both of its paths in one run, taken in turn: CPU time of the one
//! thread that it has here, by the kernel's count. `cargo bench -p sluice-proxy --bench http2`

#[path = "../tests/common/mod.rs"]
mod common;

use bytes::Bytes;
use common::{CLIENT, World, shop};
use http::{HeaderMap, HeaderValue, Request, Response};
use sluice_proxy::proxy::Http2;
use sluice_proxy::telemetry::sampler::Sampler;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

const CONNECTIONS: usize = 8;
const STREAMS: usize = 32;
const ROUND: Duration = Duration::from_secs(2);
const ROUNDS: usize = 3;

/// Nanoseconds that this thread has run.
fn thread_time(thread: &str) -> u64 {
    let stat = std::fs::read_to_string(format!("{thread}/schedstat")).expect("procfs");
    stat.split(' ').next().and_then(|ran| ran.parse().ok()).expect("a number")
}

fn this_thread() -> String {
    let link = std::fs::read_link("/proc/thread-self").expect("procfs");
    format!("/proc/{}", link.display())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Answers everything with a few bytes, and trailers where it was gRPC.
async fn serve(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).expect("an option");
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(stream).await.expect("a handshake");
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let grpc = request.headers().contains_key("te");
                let mut response = Response::new(());
                response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
                let mut body = respond.send_response(response, false).expect("sent");
                body.send_data(Bytes::from_static(b"\0\0\0\0\x05hello"), !grpc).expect("sent");
                if grpc {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("0"));
                    body.send_trailers(trailers).expect("sent");
                }
            }
        });
    }
}

fn request(grpc: bool) -> Request<()> {
    let mut request = if grpc {
        Request::post("http://cart/shop.v1.Cart/GetCart").body(()).expect("a request")
    } else {
        Request::get("http://cart/api/items").body(()).expect("a request")
    };
    let headers = request.headers_mut();
    headers.insert("user-agent", HeaderValue::from_static("bench/1.0"));
    if grpc {
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
    }
    request
}

/// Asks as fast as answers come; returns how many there were.
async fn load(world: SocketAddr, grpc: bool, until: Instant) -> u64 {
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(CLIENT, 0)).expect("loopback");
        socket.set_nodelay(true).expect("an option");
        let stream = socket.connect(world).await.expect("the proxy listens");
        let (send, connection) = h2::client::handshake(stream).await.expect("a handshake");
        tokio::spawn(async move { drop(connection.await) });
        for _ in 0..STREAMS {
            let send = send.clone();
            streams.push(tokio::spawn(async move {
                let mut count = 0;
                while Instant::now() < until {
                    let mut ready = send.clone().ready().await.expect("the connection lives");
                    let (answer, mut body) = ready.send_request(request(grpc), !grpc).expect("sent");
                    if grpc {
                        body.send_data(Bytes::from_static(b"\0\0\0\0\x05hello"), true).expect("sent");
                    }
                    let answer = answer.await.expect("an answer");
                    assert_eq!(answer.status(), 200);
                    let mut body = answer.into_body();
                    while let Some(data) = body.data().await {
                        body.flow_control().release_capacity(data.expect("data").len()).expect("capacity");
                    }
                    body.trailers().await.expect("the end");
                    count += 1;
                }
                count
            }));
        }
    }
    let mut all = 0;
    for stream in streams {
        all += stream.await.expect("no panic");
    }
    all
}

/// A proxy on a thread of its own: where it listens, and where its time is counted.
fn proxy(server: SocketAddr, http2: Http2) -> (SocketAddr, String) {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let mut world = World::on(&shop(), server, Sampler::OFF, http2).await;
            tell.send((world.at, this_thread())).expect("the bench listens");
            while world.records.recv().await.is_some() {}
        });
    });
    told.recv().expect("a proxy")
}

fn main() {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let listener = TcpListener::bind("127.0.0.3:0").await.expect("a free port");
            tell.send(listener.local_addr().expect("bound")).expect("the bench listens");
            serve(listener).await;
        });
    });
    let server = told.recv().expect("a server");
    let proxies =
        [Http2::Relayed, Http2::Rewritten].map(|http2| (format!("{http2:?}"), proxy(server, http2)));
    println!("CPU-µs per request (requests/s), {CONNECTIONS} connections of {STREAMS} streams");
    for (what, grpc) in [("h2", false), ("gRPC unary", true)] {
        for round in 0..ROUNDS {
            for (name, (at, thread)) in &proxies {
                let before = thread_time(thread);
                let count = runtime().block_on(load(*at, grpc, Instant::now() + ROUND));
                let spent = Duration::from_nanos(thread_time(thread) - before);
                let each = spent.as_secs_f64() * 1e6 / count as f64;
                println!(
                    "{what:<10} {round} {name:<9} {each:6.2} ({:.0})",
                    count as f64 / ROUND.as_secs_f64()
                );
            }
        }
    }
}
