//! What one endpoint's busy connections do to another's requests, on one thread of the worker.
//!
//! A proxy on a thread of its own, as the worker runs it; a server, a crowd of busy connections and one quiet connection
//! on others. The quiet one is timed alone, beside the crowd of another endpoint, and as one of the crowd's own endpoint,
//! which is how it would fare if nobody's turns were counted. `cargo bench -p sluice-proxy --bench fair -- [connections]`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark says what is wrong by failing")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{CART, CLIENT, shop, snapshot};
use sluice_policy::{Endpoint, Snapshot};
use sluice_proxy::dial::Dialer;
use sluice_proxy::draft::Sink;
use sluice_proxy::proxy::Proxy;
use sluice_proxy::telemetry::sampler::Sampler;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Another pod of the node.
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 22));
const CONNECTIONS: usize = 400;
const ROUNDS: usize = 3;
/// Requests of the quiet one in each phase, and the pause between them.
const REQUESTS: usize = 400;
const PAUSE: Duration = Duration::from_millis(2);
const ASK: &[u8] = b"GET /api/items HTTP/1.1\r\nHost: cart\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Runs on a thread with a runtime of its own, for ever.
fn thread<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work());
    });
}

fn snapshot_of_two() -> Arc<Snapshot> {
    let mut two = (*snapshot(1, &shop())).clone();
    let first = two.endpoints[0].clone();
    let other = Endpoint { addresses: vec![OTHER], ..(*first).clone() };
    two.endpoints = vec![first, Arc::new(other)].into();
    Arc::new(two)
}

/// Answers every request; heads come whole.
async fn server(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            let mut head = [0; 4096];
            while matches!(stream.read(&mut head).await, Ok(1..)) && stream.write_all(ANSWER).await.is_ok() {}
        });
    }
}

fn listen(address: &str) -> std::net::TcpListener {
    let listener = std::net::TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// The proxy as a thread of the worker has it; its port, on every address.
fn proxy() -> u16 {
    let (to, at) = (listen("127.0.0.3:0"), listen("0.0.0.0:0"));
    let (server_at, port) = (to.local_addr().unwrap(), at.local_addr().unwrap().port());
    thread(move || async move { server(TcpListener::from_std(to).unwrap()).await });
    std::thread::spawn(move || {
        let (sink, mut records) = Sink::new();
        let proxy = Proxy::new(Dialer::Loopback(server_at), sink, Sampler::OFF);
        proxy.state.swap(snapshot_of_two());
        let turns = proxy.turns().clone();
        let rest = move || turns.rest();
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().on_thread_park(rest).build().unwrap();
        thread(move || async move { while records.recv().await.is_some() {} });
        runtime.block_on(async {
            tokio::spawn(proxy.turns().clone().pace());
            proxy.clone().accept(TcpListener::from_std(at).unwrap(), false).await;
        });
    });
    port
}

async fn connect(to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(CLIENT, 0)).unwrap();
    let stream = socket.connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

async fn exchange(stream: &mut TcpStream) {
    stream.write_all(ASK).await.unwrap();
    let mut answer = [0; ANSWER.len()];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, ANSWER);
}

/// The quiet connection's times, in order; how many requests the crowd had answered meanwhile, and in which time.
fn phase(to: SocketAddr, crowd: Option<(IpAddr, usize)>) -> (Vec<Duration>, u64, Duration) {
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    if let Some((of, count)) = crowd {
        let (stop, served, to) = (stop.clone(), answered.clone(), SocketAddr::new(of, to.port()));
        thread(move || async move {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..count {
                let (stop, served) = (stop.clone(), served.clone());
                tasks.spawn(async move {
                    let mut stream = connect(to).await;
                    while !stop.load(Ordering::Relaxed) {
                        exchange(&mut stream).await;
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            while tasks.join_next().await.is_some() {}
        });
        // All of them are connected, and have been answered.
        while answered.load(Ordering::Relaxed) < 4 * count as u64 {
            std::thread::sleep(PAUSE);
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut times = runtime.block_on(async {
        let mut stream = connect(to).await;
        let mut times = Vec::with_capacity(REQUESTS);
        for _ in 0..REQUESTS {
            tokio::time::sleep(PAUSE).await;
            let begun = Instant::now();
            exchange(&mut stream).await;
            times.push(begun.elapsed());
        }
        times
    });
    let (begun, before) = (Instant::now(), answered.load(Ordering::Relaxed));
    if crowd.is_some() {
        std::thread::sleep(Duration::from_millis(500));
    }
    let (served, meanwhile) = (answered.load(Ordering::Relaxed) - before, begun.elapsed());
    stop.store(true, Ordering::Relaxed);
    times.sort();
    (times, served, meanwhile)
}

fn main() {
    // What `cargo bench` adds is no number.
    let count = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(CONNECTIONS);
    let port = proxy();
    let to = SocketAddr::new(CART, port);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("{count} busy connections; load {}", load.split(' ').next().unwrap_or("?"));
    println!("{:<34}{:>10}{:>10}{:>14}", "the quiet connection", "p50 us", "p99 us", "crowd's req/s");
    for _ in 0..ROUNDS {
        for (name, crowd) in [
            ("alone", None),
            ("beside another endpoint's crowd", Some((OTHER, count))),
            ("one of its own endpoint's crowd", Some((CART, count))),
        ] {
            let (times, served, meanwhile) = phase(to, crowd);
            let at = |share: usize| times[times.len() * share / 100].as_micros();
            let rate = served as f64 / meanwhile.as_secs_f64();
            println!("{name:<34}{:>10}{:>10}{rate:>14.0}", at(50), at(99));
        }
    }
}
