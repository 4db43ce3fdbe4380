//! What the worker knows: the snapshot in force, indexed, and the flows that are open under it.
//!
//! A swap replaces the snapshot and judges every open flow again; a flow registers before it is judged, so none
//! slips between. Knows nothing of sockets or of HTTP connections: a flow is closed by its token.

use crate::judge::{self, Leg};
use arc_swap::ArcSwap;
use sluice_policy::{Decision, Snapshot, Verdict, Workload};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio_util::sync::CancellationToken;

/// The snapshot in force, with the questions that the request path asks of it.
#[derive(Debug, Default)]
pub struct View {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
}

impl View {
    /// Whether the address is an endpoint's of this node.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.snapshot.endpoint_at(address).is_some()
    }

    /// Who has the address.
    #[must_use]
    pub fn workload(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        let local = self.snapshot.endpoint_at(address).map(|endpoint| &endpoint.workload);
        local.or_else(|| self.snapshot.workloads.get(&address))
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
    pub fn judge(&self, view: &View, leg: &Leg) -> Verdict {
        match self {
            Self::Raw => judge::unknown(view, leg),
            Self::Tls(name) => judge::tls(view, leg, name.as_deref()),
            Self::Request(said) => said.judge(view, leg).0,
        }
    }
}

/// One open tunnel or request.
#[derive(Debug)]
pub struct Flow {
    leg: Leg,
    said: Said,
    revoked: OnceLock<Verdict>,
    token: CancellationToken,
}

impl Flow {
    /// Ends when the flow has lost its permission, with the verdict that took it.
    pub async fn revoked(&self) -> &Verdict {
        self.token.cancelled().await;
        // The verdict is set before the token is cancelled, and only by `swap`.
        self.revoked.get_or_init(|| judge::refuse(sluice_policy::Reason::DefaultDeny))
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

/// Shards of the table of open flows: one lock would be every core's.
const SHARDS: usize = 16;

/// The snapshot in force and the open flows.
#[derive(Debug, Default)]
pub struct State {
    view: ArcSwap<View>,
    next: AtomicU64,
    flows: [Mutex<HashMap<u64, Arc<Flow>>>; SHARDS],
}

impl State {
    /// The snapshot in force now. One load per request: what it decides, it decides by one snapshot.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    fn shard(&self, id: u64) -> MutexGuard<'_, HashMap<u64, Arc<Flow>>> {
        let index = usize::try_from(id).unwrap_or(0) % SHARDS;
        // A panic elsewhere leaves the map whole: each change is one call.
        self.flows[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a flow. Do it before loading the view that judges it: then either the judge sees the new snapshot,
    /// or the swap sees the flow.
    #[must_use]
    pub fn open(self: &Arc<Self>, leg: Leg, said: Said) -> OpenFlow {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let flow = Arc::new(Flow { leg, said, revoked: OnceLock::new(), token: CancellationToken::new() });
        self.shard(id).insert(id, flow.clone());
        OpenFlow { id, flow, state: self.clone() }
    }

    /// Puts a snapshot in force and judges every open flow by it. When this returns, each flow that the snapshot
    /// denies has been told to end. Returns how many.
    pub fn swap(&self, snapshot: Arc<Snapshot>) -> usize {
        let view = Arc::new(View { snapshot });
        self.view.store(view.clone());
        let mut cut = 0;
        for index in 0..SHARDS {
            let flows: Vec<Arc<Flow>> = self.shard(index as u64).values().cloned().collect();
            for flow in flows {
                let verdict = flow.said.judge(&view, &flow.leg);
                if verdict.decision() == Decision::Deny && flow.revoked.set(verdict).is_ok() {
                    flow.token.cancel();
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
