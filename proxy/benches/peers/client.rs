//! The loads, and what is counted of them. The client is a thread in its own namespace; everything in it is one thread's.

use crate::http2::Request;
use crate::peer::{Kind, Peer};
use crate::usage::{Usage, resident};
use crate::world::{LOAD_CORE, World, enter, pin};
use crate::{http1, http2};
use anyhow::{Context as _, Result, ensure};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::unix::pipe::Receiver;
use tokio::task::{JoinSet, LocalSet};

/// Before anything is counted.
const WARM_UP: Duration = Duration::from_millis(200);
/// How long a proxy may take until it serves.
const READY: Duration = Duration::from_secs(10);
/// Requests a second, of all connections together.
const RATE: u32 = 4000;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scenario {
    Http1,
    Http1One,
    Http2,
    Grpc,
    Churn,
    Large,
    PacedHttp1,
    PacedGrpc,
}

impl Scenario {
    pub(crate) const ALL: [Self; 8] = [
        Self::Http1,
        Self::Http1One,
        Self::Http2,
        Self::Grpc,
        Self::Churn,
        Self::Large,
        Self::PacedHttp1,
        Self::PacedGrpc,
    ];

    /// As an argument names it.
    pub(crate) const fn key(self) -> &'static str {
        match self {
            Self::Http1 => "h1",
            Self::Http1One => "h1-one",
            Self::Http2 => "h2",
            Self::Grpc => "grpc",
            Self::Churn => "churn",
            Self::Large => "large",
            Self::PacedHttp1 => "h1-4000",
            Self::PacedGrpc => "grpc-4000",
        }
    }

    /// As the table names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1, 64 connections",
            Self::Http1One => "HTTP/1.1, one connection",
            Self::Http2 => "HTTP/2, 8 connections of 32 streams",
            Self::Grpc => "gRPC unary, 8 connections of 32 streams",
            Self::Churn => "A connection for each request, 16 at once",
            Self::Large => "HTTP/1.1, bodies of 1 MiB, 8 connections",
            Self::PacedHttp1 => "HTTP/1.1, 4,000 requests/s on 64 connections",
            Self::PacedGrpc => "gRPC unary, 4,000 requests/s on 8 connections",
        }
    }
}

/// One measurement.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    pub(crate) scenario: Scenario,
    pub(crate) time: Duration,
}

/// What came of it.
pub(crate) struct Sample {
    pub(crate) count: u64,
    pub(crate) took: Duration,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    /// Of the proxy, if there was one.
    pub(crate) usage: Option<Usage>,
    /// In MB.
    pub(crate) resident: f64,
}

/// What the connections of one measurement share.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) stop: Cell<bool>,
    counting: Cell<bool>,
    latencies: RefCell<Vec<Duration>>,
}

impl Shared {
    /// A request has its answer.
    pub(crate) fn done(&self, took: Duration) {
        if self.counting.get() {
            self.latencies.borrow_mut().push(took);
        }
    }
}

/// Set times, kept by the kernel's own timer (timerfd): the runtime's is too coarse. To the runtime it is a pipe that
/// numbers come out of.
pub(crate) struct Clock {
    timer: Receiver,
    next: Instant,
    every: Duration,
}

impl Clock {
    pub(crate) fn new(first: Duration, every: Duration) -> Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let spec = |time: Duration| -> Result<Timespec> {
            Ok(Timespec { tv_sec: i64::try_from(time.as_secs())?, tv_nsec: i64::from(time.subsec_nanos()) })
        };
        // Zero would never come.
        let value = spec(first + Duration::from_nanos(1))?;
        let spec = Itimerspec { it_interval: spec(every)?, it_value: value };
        let next = Instant::now() + first;
        rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &spec)?;
        Ok(Self { timer: Receiver::from_owned_fd_unchecked(timer)?, next, every })
    }

    /// Waits for the next time; all that have come. May be dropped and called again.
    pub(crate) async fn due(&mut self) -> Result<Vec<Instant>> {
        loop {
            self.timer.readable().await?;
            let mut count = [0; 8];
            match self.timer.try_read(&mut count) {
                Ok(_) => {
                    let times = (0..u64::from_ne_bytes(count)).map(|_| {
                        let time = self.next;
                        self.next += self.every;
                        time
                    });
                    return Ok(times.collect());
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// On a thread in the client's namespace.
pub(crate) async fn inside<T: Send + 'static>(
    world: &World,
    work: impl AsyncFnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let netns = world.client.try_clone()?;
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let run = || -> Result<T> {
            enter(&netns)?;
            pin(LOAD_CORE)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            LocalSet::new().block_on(&runtime, work())
        };
        let _ = tell.send(run());
    });
    told.await.context("the client's thread")?
}

/// Measures one peer once.
pub(crate) async fn run(world: &World, peer: &Peer, work: Work) -> Result<Sample> {
    let (pid, one, two) = (peer.pid, peer.one, peer.two);
    inside(world, async move || {
        let shared = Rc::new(Shared::default());
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        let public = http1::request("GET", "/public/item", false);
        match work.scenario {
            Scenario::Http1 | Scenario::Http1One | Scenario::Large => {
                let (connections, path) = match work.scenario {
                    Scenario::Http1 => (64, "/public/item"),
                    Scenario::Large => (8, "/public/large"),
                    _ => (1, "/public/item"),
                };
                for _ in 0..connections {
                    let request = http1::request("GET", path, false);
                    tasks.spawn_local(http1::Connection::open(one).await?.load(shared.clone(), request));
                }
            }
            Scenario::Http2 | Scenario::Grpc => {
                let grpc = work.scenario == Scenario::Grpc;
                for _ in 0..8 {
                    let request = if grpc { Request::Grpc } else { Request::Get };
                    tasks.spawn_local(http2::connect(two, request).await?.load(shared.clone(), 32));
                }
            }
            Scenario::Churn => {
                for _ in 0..16 {
                    let request = http1::request("GET", "/public/item", true);
                    tasks.spawn_local(http1::churn(one, shared.clone(), request));
                }
            }
            Scenario::PacedHttp1 => {
                for place in 0..64 {
                    let (first, every) = times(place, 64);
                    let connection = http1::Connection::open(one).await?;
                    tasks.spawn_local(connection.paced(shared.clone(), public.clone(), first, every));
                }
            }
            Scenario::PacedGrpc => {
                for place in 0..8 {
                    let (first, every) = times(place, 8);
                    let connection = http2::connect(two, Request::Grpc).await?;
                    tasks.spawn_local(connection.paced(shared.clone(), first, every));
                }
            }
        }
        count(&shared, tasks, pid, work.time).await
    })
    .await
}

/// When a connection asks first, and how often: all together in turn.
fn times(place: u32, connections: u32) -> (Duration, Duration) {
    let each = Duration::from_secs(1) / RATE;
    (each * place, each * connections)
}

async fn count(
    shared: &Shared,
    mut tasks: JoinSet<Result<()>>,
    pid: Option<u32>,
    time: Duration,
) -> Result<Sample> {
    let failed = async |tasks: &mut JoinSet<Result<()>>| match tasks.join_next().await {
        Some(Ok(Err(error))) => error,
        _ => anyhow::anyhow!("a connection's task ended"),
    };
    tokio::select! {
        () = tokio::time::sleep(WARM_UP) => {}
        error = failed(&mut tasks) => return Err(error),
    }
    let (begin, before) = (Instant::now(), pid.map(Usage::of));
    shared.counting.set(true);
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        error = failed(&mut tasks) => return Err(error),
    }
    shared.counting.set(false);
    let (took, after) = (begin.elapsed(), pid.map(Usage::of));
    let resident = pid.map_or(0.0, resident);
    shared.stop.set(true);
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let mut latencies = shared.latencies.take();
    latencies.sort_unstable();
    let count = latencies.len();
    ensure!(count > 0, "no request had an answer");
    let at = |percent: usize| latencies[(count * percent / 100).min(count - 1)];
    let usage = after.zip(before).map(|(after, before)| after - before);
    Ok(Sample { count: count as u64, took, p50: at(50), p99: at(99), usage, resident })
}

/// Waits until a peer serves, and looks that it has the policy.
pub(crate) async fn check(world: &World, peer: &Peer) -> Result<()> {
    let (one, two, judges) = (peer.one, peer.two, !matches!(peer.kind, Kind::Direct | Kind::Floor));
    inside(world, async move || {
        let begun = Instant::now();
        while let Err(error) = http1::Connection::open(one).await {
            ensure!(begun.elapsed() < READY, "it does not serve: {error:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for (method, path, allowed) in [
            ("GET", "/public/item", true),
            ("GET", "/public/large", true),
            ("POST", "/api/v1/items", true),
            ("POST", "/api/v12/items", true),
            ("DELETE", "/public/item", false),
            ("POST", "/public/item", false),
            ("GET", "/private", false),
            ("GET", "/api/v1/items", false),
            ("POST", "/api/v1/items/1", false),
            ("POST", "/api/vx/items", false),
        ] {
            let status = http1::Connection::open(one).await?.ask(&http1::request(method, path, false)).await;
            let status = status.with_context(|| format!("{method} {path}"))?;
            let right = if allowed || !judges { 200 } else { 403 };
            ensure!(status == right, "{method} {path} came to {status}");
        }
        for (request, allowed) in [
            (Request::Get, true),
            (Request::Grpc, true),
            (Request::Delete, false),
            (Request::Elsewhere, false),
        ] {
            let (passed, _) = http2::connect(two, request).await?.once().await.context("HTTP/2")?;
            ensure!(passed == (allowed || !judges), "HTTP/2: {request:?} was judged wrongly: {passed}");
        }
        Ok(())
    })
    .await
}
