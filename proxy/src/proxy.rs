//! Accepts connections, finds out what they are, and hands them to the server of their protocol.
//!
//! Everything a connection needs is in [`Proxy`]; nothing here knows of eBPF, of the agent or of the feed, so tests
//! run it on plain sockets. Called by the worker.

use crate::answer::Refusal;
use crate::detect::{self, Protocol};
use crate::dial::{Dialer, keepalive};
use crate::draft::Sink;
use crate::judge::{self, Judged, Leg};
use crate::limits::{
    ACCEPT_BACKOFF, DETECT_WINDOW, DRAIN_LULL, DRAIN_TIMEOUT, HANDED_OVER_LULL, HEAD_TIMEOUT, IDLE_TIMEOUT,
};
use crate::service::balance::Balance;
use crate::service::route::{Client, Target};
use crate::share::{Charge, Full, Place, Shares};
use crate::state::{Said, State, View};
use crate::telemetry::sampler::{Ids, Sampler};
use crate::tls::{self, Hello};
use crate::turns::{Seat, Turns};
use crate::{http1, http2, tunnel};
use bytes::BytesMut;
use sluice_policy::{Reason, Verdict};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What every connection of one thread shares. The worker has one for each of its threads, so that no other touches what a
/// request needs: of what is here only the limits, what is known of backends, and the snapshot itself are everybody's.
#[derive(Debug)]
pub struct Proxy {
    /// The snapshot in force and the open flows.
    pub state: Arc<State>,
    /// How servers are reached.
    pub dialer: Dialer,
    /// Which backends of Services are taken.
    pub balance: Arc<Balance>,
    /// Where records go.
    pub records: Sink,
    /// Which requests get a span.
    pub sampler: Sampler,
    /// Trace and span ids.
    pub ids: Ids,
    /// How HTTP/2 is served.
    pub http2: Http2,
    drain: CancellationToken,
    /// How long connections without a request stay, once it drains.
    lull: OnceLock<Duration>,
    /// That it was cancelled: asked for each request, and the token takes a lock.
    drains: AtomicBool,
    tasks: TaskTracker,
    streams: TaskTracker,
    shares: Arc<Shares>,
    turns: Arc<Turns>,
}

/// How HTTP/2 connections are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http2 {
    /// Every message is read and built anew.
    Rewritten,
    /// The client's own bytes go on, where each connection of a client has one server.
    Relayed,
}

/// One accepted connection, with what was read of it.
#[derive(Debug)]
pub struct Accepted {
    /// Its ends.
    pub client: Client,
    /// Its socket.
    pub stream: TcpStream,
    /// What the client said so far.
    pub buf: BytesMut,
    /// What it holds of its endpoint's bytes.
    pub charge: Charge,
    /// Where its tasks sit.
    pub seat: Seat,
}

impl Proxy {
    /// A proxy with an empty snapshot: it refuses everything until [`State::swap`].
    #[must_use]
    pub fn new(dialer: Dialer, records: Sink, sampler: Sampler) -> Arc<Self> {
        Self::with(dialer, records, sampler, Http2::Relayed)
    }

    /// As [`Proxy::new`], with HTTP/2 served in this way.
    #[must_use]
    pub fn with(dialer: Dialer, records: Sink, sampler: Sampler, http2: Http2) -> Arc<Self> {
        Arc::new(Self {
            state: Arc::default(),
            dialer,
            balance: Arc::default(),
            records,
            sampler,
            ids: Ids::default(),
            http2,
            drain: CancellationToken::new(),
            lull: OnceLock::new(),
            drains: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            streams: TaskTracker::new(),
            shares: Arc::default(),
            turns: Arc::default(),
        })
    }

    /// Another, for another thread: with connections, flows and records of its own, and the same limits.
    #[must_use]
    pub fn beside(&self, records: Sink) -> Arc<Self> {
        Arc::new(Self {
            state: Arc::default(),
            dialer: self.dialer,
            balance: Arc::new(self.balance.beside()),
            records,
            sampler: self.sampler,
            ids: Ids::default(),
            http2: self.http2,
            drain: CancellationToken::new(),
            lull: OnceLock::new(),
            drains: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            streams: TaskTracker::new(),
            shares: self.shares.clone(),
            turns: Arc::default(),
        })
    }

    /// Ends when the proxy is told to drain.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// Ends when the proxy drains and a client that was about to speak has had the time to.
    pub(crate) async fn drained_idle(&self) {
        self.drain.cancelled().await;
        tokio::time::sleep(self.lull.get().copied().unwrap_or(DRAIN_LULL)).await;
    }

    /// Whether the proxy drains: answers then close their connection.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.drains.load(Ordering::Acquire)
    }

    /// Accepts until the proxy drains. `redirected`: the listener's own address is never a destination, so a
    /// connection to it is a loop.
    pub async fn accept(self: Arc<Self>, listener: TcpListener, redirected: bool) {
        let own = listener.local_addr().ok().filter(|_| redirected);
        loop {
            let accepted = tokio::select! {
                // First: what waits in the queue when the drain begins was promised a connection.
                biased;
                accepted = listener.accept() => accepted,
                () = self.drain.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer, own),
                // A client that left before we looked, or no descriptors left.
                Err(_) => tokio::time::sleep(ACCEPT_BACKOFF).await,
            }
        }
    }

    /// Tells every connection to end after what it is doing, and waits for them, no longer than `limit`. Returns
    /// how many were cut.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.drains.store(true, Ordering::Release);
        // Who may take longer than a process that is stopped has another one beside it.
        let lull = if limit > DRAIN_TIMEOUT { HANDED_OVER_LULL } else { DRAIN_LULL };
        let _ = self.lull.set(lull);
        self.drain.cancel();
        self.tasks.close();
        self.streams.close();
        let all = async {
            self.tasks.wait().await;
            // Their connections are gone: what is left of them is to write their records.
            self.streams.wait().await;
        };
        let _ = tokio::time::timeout(limit, all).await;
        self.tasks.len()
    }

    /// Runs one stream of a connection beside it, on the same seat.
    pub(crate) fn spawn_stream(&self, seat: &Seat, stream: impl Future<Output = ()> + Send + 'static) {
        self.streams.spawn(seat.task(stream));
    }

    /// Whose turn it is on this proxy's thread.
    #[must_use]
    pub const fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, own: Option<SocketAddr>) {
        let Ok(local) = stream.local_addr() else { return };
        if own == Some(local) {
            reset(&stream);
            return;
        }
        let view = self.state.view();
        let client = Client::of(&view, Leg::new(peer, local));
        let place = match self.place(&view, &client.leg) {
            Ok(place) => place,
            Err(full) => return self.refuse_crowd(&stream, &client, full),
        };
        drop(view);
        let (proxy, seat) = (self.clone(), self.turns.seat(place.endpoint()));
        let charge = place.charge();
        let accepted = Accepted { client, stream, buf: BytesMut::new(), charge, seat: seat.clone() };
        // Spawned even while draining: the connection was taken from the queue. Boxed by its seat: the future of a whole
        // connection is large, most of it for the rarer protocols.
        self.tasks.spawn(seat.task(async move {
            proxy.serve(accepted).await;
            drop(place);
        }));
    }

    /// A place for one more connection.
    ///
    /// # Errors
    /// Who has none left.
    pub(crate) fn place(&self, view: &View, leg: &Leg) -> Result<Place, Full> {
        self.shares.place(view, leg)
    }

    /// How many connections an endpoint of this node has, by its first address, and how many bytes it holds beyond what
    /// each connection may.
    #[must_use]
    pub fn held(&self, endpoint: IpAddr) -> (u32, usize) {
        self.shares.of(endpoint)
    }

    /// How many HTTP/2 streams the connections of an endpoint have beyond what each may.
    #[must_use]
    pub fn streams_of(&self, endpoint: IpAddr) -> usize {
        self.shares.streams_of(endpoint)
    }

    /// Resets a connection for which there is no place.
    fn refuse_crowd(&self, stream: &TcpStream, client: &Client, full: Full) {
        reset(stream);
        let mut record = Target::direct(client.leg).record(&self.state.view(), "tcp");
        record.judged(&judge::refuse(Reason::Limit));
        full.as_str().clone_into(&mut record.error);
        self.records.finish(record);
    }

    async fn serve(self: Arc<Self>, mut accepted: Accepted) {
        let connection = |view: &View, leg: &Leg| Judged::of(judge::connection(view, leg));
        let (target, judged) = self.reach(&self.state.view(), &accepted.client, connection);
        if judged.is_denied() {
            self.refuse_connection(&accepted.stream, &target, &judged.verdict);
            return;
        }
        // Small answers must not wait for more to come.
        let _ = accepted.stream.set_nodelay(true);
        let _ = socket2::SockRef::from(&accepted.stream).set_tcp_keepalive(&keepalive());
        match self.first_words(&mut accepted, detect::detect, Protocol::Other).await {
            // Each boxed for its own size: most connections are of one kind, and wait.
            Some(Protocol::Http1) => Box::pin(http1::serve(self, accepted)).await,
            Some(Protocol::Http2) => Box::pin(http2::serve(self, accepted)).await,
            Some(Protocol::Tls) => {
                let whole =
                    |bytes: &[u8]| Some(tls::client_hello(bytes)).filter(|hello| *hello != Hello::More);
                let said = match self.first_words(&mut accepted, whole, Hello::Unreadable).await {
                    Some(Hello::Name(name)) => Said::Tls(name.map(Into::into)),
                    Some(Hello::Unreadable | Hello::More) => Said::Raw,
                    None => return,
                };
                Box::pin(tunnel::serve(&self, accepted, said, Vec::new())).await;
            }
            Some(Protocol::Other) => Box::pin(tunnel::serve(&self, accepted, Said::Raw, Vec::new())).await,
            None => {}
        }
    }

    /// Reads until `look` knows what it is. Whoever breaks off, or is too slow, has said something `unknown`; where
    /// bytes that nobody reads may pass, silence is that too. `None`: the client never said a word.
    async fn first_words<T>(
        &self,
        accepted: &mut Accepted,
        look: impl Fn(&[u8]) -> Option<T>,
        unknown: T,
    ) -> Option<T> {
        let accepted_at = Instant::now();
        let mut spoke_at = (!accepted.buf.is_empty()).then_some(accepted_at);
        loop {
            if let Some(known) = look(&accepted.buf) {
                return Some(known);
            }
            // A client that waits for its server must not be made to wait for us.
            let raw_is_fine = self.passes_raw(&accepted.client);
            let silent = spoke_at.is_none();
            let deadline = match spoke_at {
                _ if raw_is_fine => spoke_at.unwrap_or(accepted_at) + DETECT_WINDOW,
                Some(at) => at + HEAD_TIMEOUT,
                None => accepted_at + IDLE_TIMEOUT,
            };
            let read = tokio::select! {
                biased;
                read = http1::body::read_more(&mut accepted.stream, &mut accepted.buf) => read,
                () = tokio::time::sleep_until(deadline) => return (raw_is_fine || !silent).then_some(unknown),
                () = self.drained_idle(), if silent => return None,
            };
            match read {
                // Half-closed without a word, or gone: the tunnel finds out which.
                Ok(0) if raw_is_fine || !silent => return Some(unknown),
                Ok(0) | Err(_) => return None,
                Ok(_) => spoke_at = spoke_at.or_else(|| Some(Instant::now())),
            }
        }
    }

    /// Whether bytes that nobody reads may pass, to some server at least.
    #[must_use]
    pub fn passes_raw(&self, client: &Client) -> bool {
        let unknown = |view: &View, leg: &Leg| Judged::of(judge::unknown(view, leg));
        !self.reach(&self.state.view(), client, unknown).1.is_denied()
    }

    /// Whether an HTTP/2 client is told that it may ask for a WebSocket (RFC 8441 §3): where no rule lets one through, it
    /// is not. Whether its server takes one is known only when it has been asked for, for nobody is dialled before.
    #[must_use]
    pub fn offers_upgrades(&self, client: &Client) -> bool {
        let upgrades = |view: &View, leg: &Leg| match judge::upgrades(view, leg) {
            true => Judged::of(judge::connection(view, leg)),
            false => Judged::of(judge::refuse(Reason::NoRuleMatched)),
        };
        !self.reach(&self.state.view(), client, upgrades).1.is_denied()
    }

    /// Connects to a server.
    pub(crate) async fn dial(&self, target: &Target) -> Result<TcpStream, Refusal> {
        let error = match self.dialer.dial(target).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        // The kernel's alone: our own refusal to dial has no number.
        let no_port = error.raw_os_error() == Some(nix::libc::EADDRNOTAVAIL);
        if target.service.is_some() && target.reachable && !no_port {
            self.balance.refused(target.leg.destination);
        }
        Err(match error.kind() {
            io::ErrorKind::TimedOut => Refusal::Timeout,
            io::ErrorKind::AddrNotAvailable if no_port => Refusal::NoPort,
            kind => Refusal::Unreachable(kind),
        })
    }

    /// Resets a connection and records why.
    fn refuse_connection(&self, stream: &TcpStream, target: &Target, verdict: &Verdict) {
        reset(stream);
        let mut record = target.record(&self.state.view(), "tcp");
        record.judged(verdict);
        self.records.finish(record);
    }
}

/// Makes the coming close a reset: the other end must not take it for an orderly end.
pub fn reset(stream: &TcpStream) {
    // Fails on a socket that is gone already, which is what was wanted.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
