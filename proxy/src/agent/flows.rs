//! What the kernel tells of flows, as flow records.
//!
//! The kernel says what happened and which row decided; why, with the rule that came nearest, the policy engine is
//! asked, with the very question that the row answers. Where it would have decided otherwise, that is an error, and is
//! told as one. A flow that goes to the proxy has no record here: the worker tells what becomes of it.
//!
//! No verdict depends on any of it. The ring, the queue to the engine and the reports are bounded and lossy; the
//! kernel counts what it could not tell.

use crate::record::{End, Record};
use sluice_policy::{
    Connection, Decision, Direction, Endpoint, Facts, Protocol, RowAction, SideVerdict, Snapshot, Source,
    Verdict, Workload,
};
use sluice_redirect::{Counter, EventVerdict, Events, FlowEvent, Node, Peer};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// Records of one batch.
const BATCH: usize = 256;
/// Batches that wait for the engine: more than the ring holds.
const BATCHES: usize = 64;
/// How soon the ring is tried again: another process, which hands the node over, may be reading it.
const RETRY: Duration = Duration::from_secs(2);
/// Snapshots kept: events of the one before may still be on their way when another is in force.
const SNAPSHOTS: usize = 2;

/// The snapshots that events may be of, the newest last.
#[derive(Clone, Debug, Default)]
pub(super) struct Known(Arc<Mutex<VecDeque<Arc<Snapshot>>>>);

impl Known {
    /// To be told before the snapshot is in force.
    pub(super) fn learn(&self, snapshot: &Arc<Snapshot>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= SNAPSHOTS {
            all.pop_front();
        }
        all.push_back(snapshot.clone());
    }

    /// The one that an event is of, and whether its numbers are that one's; else the newest.
    fn of(&self, event: &FlowEvent) -> (Option<Arc<Snapshot>>, bool) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let exact = all.iter().rev().find(|snapshot| Some(snapshot.generation) == event.generation);
        (exact.or_else(|| all.back()).cloned(), exact.is_some())
    }
}

/// Reads the ring and makes records, for as long as the agent lives.
#[derive(Debug)]
pub(super) struct Flows {
    /// What the snapshots say.
    pub(super) known: Known,
    /// Batches of records.
    pub(super) records: mpsc::Receiver<Vec<Record>>,
    dropped: Arc<AtomicU64>,
}

impl Flows {
    /// Starts to read.
    pub(super) fn follow(node: Arc<Mutex<Option<Node>>>) -> Self {
        let (known, dropped) = (Known::default(), Arc::<AtomicU64>::default());
        let (sender, records) = mpsc::channel(BATCHES);
        tokio::spawn(read(node, known.clone(), sender, dropped.clone()));
        Self { known, records, dropped }
    }

    /// Records that the engine was too slow for, since it was last asked.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }
}

async fn read(
    node: Arc<Mutex<Option<Node>>>,
    known: Known,
    out: mpsc::Sender<Vec<Record>>,
    dropped: Arc<AtomicU64>,
) {
    let mut told = false;
    let mut events = loop {
        let opening = node.clone();
        let opened = tokio::task::spawn_blocking(move || open(&opening)).await;
        match opened.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(Some(events)) => break events,
            Ok(None) => return,
            Err(error) if !told => tracing::warn!(%error, "the kernel's flow events are not read yet"),
            Err(_) => {}
        }
        told = true;
        tokio::time::sleep(RETRY).await;
    };
    loop {
        let Ok(mut ready) = events.readable_mut().await else { return };
        // Another agent has the node now, whose numbers say nothing here: the rest is for it.
        if node.try_lock().is_ok_and(|node| node.is_none()) {
            return;
        }
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && let Some(event) = ready.get_inner_mut().next()
        {
            let (snapshot, exact) = known.of(&event);
            batch.extend(record(&event, snapshot.as_deref(), exact));
        }
        if batch.len() < BATCH {
            ready.clear_ready();
        }
        drop(ready);
        let records = batch.len() as u64;
        if records > 0 && out.try_send(batch).is_err() {
            dropped.fetch_add(records, Ordering::Relaxed);
        }
        // One thread does everything: a ring that is never empty must not keep it.
        tokio::task::yield_now().await;
    }
}

/// `None` where the node has been let go.
fn open(node: &Mutex<Option<Node>>) -> Result<Option<AsyncFd<Events>>, String> {
    let node = node.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(node) = node.as_ref() else { return Ok(None) };
    let events = node.events().map_err(|error| error.to_string())?;
    #[expect(
        deprecated,
        reason = "the other one is unsafe; the ring owns the descriptor, and never changes it"
    )]
    let registered = AsyncFd::with_interest(events, tokio::io::Interest::READABLE);
    registered.map(Some).map_err(|error| error.to_string())
}

/// The record of an event. `exact`: the snapshot is the one that its numbers are of.
fn record(event: &FlowEvent, snapshot: Option<&Snapshot>, exact: bool) -> Option<Record> {
    if event.verdict == EventVerdict::ToProxy {
        return None;
    }
    let time = event.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let end = |address: Option<IpAddr>, port| {
        let workload = address.and_then(|address| workload(snapshot?, address));
        address
            .map_or_else(End::default, |address| End::new((address, port).into(), workload.map(Arc::as_ref)))
    };
    let has_ports = event.row_protocol().has_ports();
    let port = |port| if has_ports { port } else { 0 };
    let mut record = Record {
        start_unix_ns: time,
        end_unix_ns: time,
        source: end(event.source, port(event.source_port)),
        destination: end(event.destination, port(event.destination_port)),
        protocol: protocol(event.protocol),
        direction: event.direction.as_str().to_owned(),
        generation: event.generation.unwrap_or_default(),
        at_ingress: event.direction == Direction::Ingress,
        ..Record::default()
    };
    verdict(event).clone_into(&mut record.verdict);
    if let Some(origin) = &event.origin {
        record.policy = origin.policy.origin.to_string();
        record.rule = origin.rule.as_deref().unwrap_or_default().to_owned();
    }
    event.reason.as_str().clone_into(&mut record.reason);
    if !by_policy(event.reason) {
        reason(event.reason).clone_into(&mut record.reason);
        event.reason.as_str().clone_into(&mut record.error);
    } else if let Some(judged) = snapshot.and_then(|snapshot| judge(event, snapshot, exact)) {
        explain(&mut record, event, &judged, exact);
    }
    Some(record)
}

/// Writes what the engine says into the record, if it says what happened.
fn explain(record: &mut Record, event: &FlowEvent, judged: &Verdict, exact: bool) {
    let side = match event.direction {
        Direction::Ingress => &judged.ingress,
        Direction::Egress => &judged.egress,
    };
    let happened = match event.verdict {
        EventVerdict::Deny | EventVerdict::Cut => Decision::Deny,
        _ => Decision::Allow,
    };
    // A flow that is read from now on is cut, and could be opened again.
    if event.verdict == EventVerdict::Cut {
        "cut".clone_into(&mut record.error);
        if side.decision != happened {
            return;
        }
    }
    if side.decision == happened {
        let error = std::mem::take(&mut record.error);
        record.judged(judged);
        verdict(event).clone_into(&mut record.verdict);
        if judged.outcome() == sluice_policy::Outcome::Audit {
            "audit".clone_into(&mut record.verdict);
        }
        record.error = error;
        return;
    }
    // Of another process's time, or of a snapshot that is past, nothing follows from it.
    if exact {
        "the policy engine decides otherwise".clone_into(&mut record.error);
        tracing::error!(
            ?event,
            engine = ?side,
            "a row of the kernel and the policy engine disagree: report this, it is a bug"
        );
    }
}

/// What the policies say of the flow, at both ends as far as they are here. The end that the event is of is asked what
/// its row was asked, where that is known. `None` where the question makes no sense.
fn judge(event: &FlowEvent, snapshot: &Snapshot, exact: bool) -> Option<Verdict> {
    let (source, destination) = (event.source?, event.destination?);
    let protocol = event.row_protocol();
    let mut verdict = snapshot.judge(source, destination, protocol, event.number, Facts::Connection);
    let Some(endpoint) = event.endpoint.as_deref().filter(|_| exact) else { return Some(verdict) };
    let side = match event.peer {
        Peer::Class(peer) => {
            let connection = Connection::new(peer, protocol, event.number);
            snapshot.profile(endpoint.profile)?.side(event.direction).judge(&connection, Facts::Connection)
        }
        // The engine finds the class of its address itself.
        Peer::Host(_) => return Some(host(snapshot, (source, destination), protocol, event.number)),
        Peer::Service => service(snapshot, endpoint, (destination, protocol, event.number))?,
    };
    match event.direction {
        Direction::Ingress => verdict.ingress = side,
        Direction::Egress => verdict.egress = side,
    }
    Some(verdict)
}

/// What the policies say of what the node itself sends.
fn host(snapshot: &Snapshot, (from, to): (IpAddr, IpAddr), protocol: Protocol, number: u16) -> Verdict {
    snapshot.judge(Source::Host(from), to, protocol, number, Facts::Connection)
}

/// What an endpoint's egress says of a port of a Service.
fn service(snapshot: &Snapshot, endpoint: &Endpoint, asked: (IpAddr, Protocol, u16)) -> Option<SideVerdict> {
    let row = snapshot.service_row(endpoint.profile, asked)?;
    let choice = snapshot.choose(endpoint, asked, Facts::Connection)?;
    match (row.action, choice.refused) {
        (RowAction::Deny, Some((_, refused))) => Some(refused),
        (RowAction::Deny, None) => {
            Some(SideVerdict::plain(Decision::Deny, sluice_policy::Reason::DefaultDeny))
        }
        _ => Some(SideVerdict::unjudged()),
    }
}

fn workload(snapshot: &Snapshot, address: IpAddr) -> Option<&Arc<Workload>> {
    let local = snapshot.endpoint_at(address).map(|endpoint| &endpoint.workload);
    local.or_else(|| snapshot.workloads.get(&address))
}

const fn verdict(event: &FlowEvent) -> &'static str {
    match event.verdict {
        EventVerdict::Allow | EventVerdict::ToProxy => "allow",
        EventVerdict::Audit => "audit",
        EventVerdict::Deny | EventVerdict::Cut => "deny",
    }
}

/// Whether policies decided, so that the engine can say why.
const fn by_policy(reason: Counter) -> bool {
    matches!(
        reason,
        Counter::Allowed
            | Counter::Audited
            | Counter::FailOpen
            | Counter::Unremembered
            | Counter::Denied
            | Counter::NoRow
            | Counter::Cut
    )
}

/// The reason's token of what no policy decided; the kernel's own word where there is none.
const fn reason(reason: Counter) -> &'static str {
    match reason {
        Counter::FlowTable | Counter::FlowQuota | Counter::OpenRate => "limit",
        Counter::Spoofed | Counter::SpoofedMac | Counter::NoEndpoint => "identity_missing",
        Counter::Fragment
        | Counter::FragmentOverlap
        | Counter::Extension
        | Counter::NotIp
        | Counter::Vlan
        | Counter::Malformed
        | Counter::BadAddress
        | Counter::SourceRoute
        | Counter::Encapsulated => "parse_error",
        other => other.as_str(),
    }
}

/// As records name it: the name, or the number of what has none here; empty where it was not read.
fn protocol(number: u8) -> String {
    match number {
        0 => "",
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        58 => "icmpv6",
        132 => "sctp",
        other => return other.to_string(),
    }
    .to_owned()
}
