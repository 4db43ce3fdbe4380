//! What the worker knows: the snapshot in force, indexed, and the flows that are open under it.
//!
//! A swap replaces the snapshot and judges every open flow again; a flow registers before it is judged, so none
//! slips between. Knows nothing of sockets or of HTTP connections: a flow is closed by its token.

use crate::judge::{self, Judged, Leg};
use crate::service::vip::Vip;
use arc_swap::ArcSwap;
use futures_util::task::AtomicWaker;
use sluice_policy::{Decision, Protocol, Reason, Snapshot, Verdict, Workload};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::task::Poll;
use tokio_util::sync::CancellationToken;

/// Wakes the one task that serves many flows when one of them has lost its permission.
#[derive(Debug, Default)]
pub struct Wake {
    set: AtomicBool,
    waker: AtomicWaker,
}

impl Wake {
    /// Whether a flow has lost its permission since the last call. The task is woken when the next one does.
    #[must_use]
    pub fn take(&self, cx: &std::task::Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.set.swap(false, Ordering::AcqRel)
    }

    fn wake(&self) {
        self.set.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// Whom a flow tells.
#[derive(Debug)]
enum Told {
    /// A task of its own.
    Token(CancellationToken),
    /// A task that serves others as well.
    Wake(Arc<Wake>),
}

/// The snapshot in force, with the questions that the request path asks of it.
#[derive(Debug, Default)]
pub struct View {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    /// Addresses of Services that were asked for; no more than the snapshot has.
    vips: RwLock<HashMap<SocketAddr, Arc<Vip>>>,
}

impl View {
    /// Whether the address is an endpoint's of this node.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.snapshot.endpoint_at(address).is_some()
    }

    /// Whether the address is a Service's: one look-up, where it is not.
    #[must_use]
    pub fn is_service(&self, address: SocketAddr) -> bool {
        let services = &self.snapshot.services;
        services.at(address.ip(), Protocol::Tcp, address.port()).is_some() && !self.is_local(address.ip())
    }

    /// Whoever stands behind the address, if it is a Service's. An endpoint's own address is its own, whatever a
    /// Service claims: what is sent to an endpoint is not to be led to somebody else.
    #[must_use]
    pub fn vip(&self, address: SocketAddr) -> Option<Arc<Vip>> {
        let (service, port) = self.snapshot.services.at(address.ip(), Protocol::Tcp, address.port())?;
        if self.is_local(address.ip()) {
            return None;
        }
        if let Some(vip) = self.vips.read().unwrap_or_else(PoisonError::into_inner).get(&address) {
            return Some(vip.clone());
        }
        let vip = Arc::new(Vip::new(self, address, service, port));
        self.vips.write().unwrap_or_else(PoisonError::into_inner).insert(address, vip.clone());
        Some(vip)
    }

    /// Who has the address.
    #[must_use]
    pub fn workload(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.snapshot.owner(address)
    }
}

/// What is known of an open flow, so that it can be judged again.
#[derive(Clone, Debug)]
pub enum Said {
    /// Bytes that nobody reads.
    Raw,
    /// A TLS connection, by the server name that its client asks for.
    Tls(Option<Arc<str>>),
    /// One request.
    Request(Arc<judge::Said>),
}

impl Said {
    /// Judges it by this snapshot.
    #[must_use]
    pub fn judge(&self, view: &View, leg: &Leg) -> Judged {
        match self {
            Self::Raw => Judged::of(judge::unknown(view, leg)),
            Self::Tls(name) => Judged::of(judge::tls(view, leg, name.as_deref())),
            Self::Request(said) => said.judge(view, leg),
        }
    }
}

/// One open tunnel or request.
#[derive(Debug)]
pub struct Flow {
    leg: Leg,
    said: Said,
    revoked: OnceLock<Verdict>,
    told: Told,
}

impl Flow {
    /// Ends when the flow has lost its permission, with the verdict that took it. Of the flows that share a wake only
    /// one may be waited for at a time; whoever serves several at once asks [`Flow::taken`].
    pub async fn revoked(&self) -> &Verdict {
        match &self.told {
            Told::Token(token) => token.cancelled().await,
            // Registered before it is looked: whoever takes the permission says so first, and wakes then.
            Told::Wake(wake) => {
                std::future::poll_fn(|cx| {
                    let _ = wake.take(cx);
                    if self.taken().is_some() { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
            }
        }
        // The verdict is set before the token is cancelled, and only by `swap`.
        self.revoked.get_or_init(|| judge::refuse(Reason::DefaultDeny))
    }

    /// The verdict that took the flow's permission, if one has.
    #[must_use]
    pub fn taken(&self) -> Option<&Verdict> {
        self.revoked.get()
    }

    fn tell(&self) {
        match &self.told {
            Told::Token(token) => token.cancel(),
            Told::Wake(wake) => wake.wake(),
        }
    }
}

/// An open flow; unregisters when dropped.
#[derive(Debug)]
pub struct OpenFlow {
    id: u64,
    flow: Arc<Flow>,
    state: Arc<State>,
}

impl std::ops::Deref for OpenFlow {
    type Target = Flow;

    fn deref(&self) -> &Flow {
        &self.flow
    }
}

impl Drop for OpenFlow {
    fn drop(&mut self) {
        self.state.shard(self.id).remove(&self.id);
    }
}

/// Shards of the table of open flows. A thread has a table of its own; who judges its flows again goes through one shard
/// after the other, and holds it up no longer than one takes.
const SHARDS: usize = 16;

/// Hashes the numbers of flows, which are ours and follow one another: nobody else chooses them.
#[derive(Clone, Copy, Debug, Default)]
struct Numbers(u64);

impl Hasher for Numbers {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(self.0 ^ u64::from(*byte)));
    }

    /// Fibonacci hashing: both ends of the hash differ for numbers that follow one another.
    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type Flows = HashMap<u64, Arc<Flow>, BuildHasherDefault<Numbers>>;

/// The snapshot in force and the open flows.
#[derive(Debug, Default)]
pub struct State {
    view: ArcSwap<View>,
    next: AtomicU64,
    flows: [Mutex<Flows>; SHARDS],
}

impl State {
    /// The snapshot in force now. One load per request: what it decides, it decides by one snapshot.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    fn shard(&self, id: u64) -> MutexGuard<'_, Flows> {
        let index = usize::try_from(id).unwrap_or(0) % SHARDS;
        // A panic elsewhere leaves the map whole: each change is one call.
        self.flows[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a flow. Do it before loading the view that judges it: then either the judge sees the new snapshot,
    /// or the swap sees the flow.
    #[must_use]
    pub fn open(self: &Arc<Self>, leg: Leg, said: Said) -> OpenFlow {
        self.register(leg, said, Told::Token(CancellationToken::new()))
    }

    /// Registers a flow of a task that serves many: it is woken, and asks each of them.
    #[must_use]
    pub fn open_beside(self: &Arc<Self>, leg: Leg, said: Said, wake: &Arc<Wake>) -> OpenFlow {
        self.register(leg, said, Told::Wake(wake.clone()))
    }

    fn register(self: &Arc<Self>, leg: Leg, said: Said, told: Told) -> OpenFlow {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let flow = Arc::new(Flow { leg, said, revoked: OnceLock::new(), told });
        self.shard(id).insert(id, flow.clone());
        OpenFlow { id, flow, state: self.clone() }
    }

    /// Puts a snapshot in force and judges every open flow by it. When this returns, each flow that the snapshot
    /// denies has been told to end, and each with an address whose pod has left it, whoever has it now and whatever he
    /// may do. Returns how many.
    pub fn swap(&self, snapshot: Arc<Snapshot>) -> usize {
        let view = Arc::new(View { snapshot, ..View::default() });
        let before = self.view.swap(view.clone());
        // Asked of the flows' addresses alone, of which there are few beside the cluster's.
        let left = |end: SocketAddr| view.snapshot.has_left(end.ip(), &before.snapshot);
        let mut cut = 0;
        for index in 0..SHARDS {
            let flows: Vec<Arc<Flow>> = self.shard(index as u64).values().cloned().collect();
            for flow in flows {
                let Leg { source, destination } = flow.leg;
                let verdict = match left(source) || left(destination) {
                    true => judge::refuse(Reason::IdentityMissing),
                    false => flow.said.judge(&view, &flow.leg).verdict,
                };
                if verdict.decision() == Decision::Deny && flow.revoked.set(verdict).is_ok() {
                    flow.tell();
                    cut += 1;
                }
            }
        }
        cut
    }

    /// How many flows are open.
    #[must_use]
    pub fn open_flows(&self) -> usize {
        (0..SHARDS).map(|index| self.shard(index as u64).len()).sum()
    }
}
