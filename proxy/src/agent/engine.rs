//! Puts snapshots in force: the worker first, then the rows, then the ack.
//!
//! Why this order lets no packet escape. Let `old` and `new` be two snapshots; at every moment a packet passes only
//! if one of the two lets it, and once the ack is out only if `new` does:
//! - Between the worker's swap and the rows, the kernel still decides by `old` what is direct, what is refused and
//!   what goes to the proxy. Direct flows that `new` restricts pass a moment longer, by `old`. What goes to the proxy
//!   is judged by `new`, in whole: the worker needs no row to judge a connection, so a flow that `new` would send
//!   direct is judged as well, and allowed if `new` allows it.
//! - When the rows change, what they newly hand to the proxy finds `new` there. The other order would judge it by
//!   `old`, whose worker may not know the endpoint or may allow more. What they newly refuse is cut by the kernel,
//!   and its proxied connections were judged again in the swap.
//! - An endpoint that `new` adds has no hooks before the rows are there, and the worker knows it by then. One that
//!   `new` drops is refused by the worker at once, before its rows go.
//! - If the rows cannot be changed, `old`'s stay, and the ack says so. If the worker is gone, the rows change without
//!   it: nobody accepts, so what goes to the proxy is refused, and a new worker accepts nothing before it has `new`.

use super::child::Event;
use super::findings::Findings;
use super::flows::Flows;
use super::links::Links;
use super::records::Records;
use super::store::Store;
use crate::channel::{FromWorker, Swapped, ToWorker};
use bytes::Bytes;
use sluice_policy::Snapshot;
use sluice_redirect::{Applied, Node};
use sluice_wire::{REPORT_PERIOD, pb};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, MissedTickBehavior};

/// How long the rows wait for a worker to swap. One that is being started must not hold up L3/L4.
const WORKER_PATIENCE: Duration = Duration::from_secs(2);

/// How soon rows are tried again that failed, or lacked an endpoint, and how late at most: a pod's veth may come after
/// its snapshot, but one that never comes must not keep the node busy.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// How often the node's devices are looked at. Until a CNI plugin tells us, this is how long a new veth of a known pod
/// may be without its hooks.
const LOOK: Duration = Duration::from_millis(200);

/// How often the flow table is walked: what its endpoints have of it is held against them by numbers that are no older
/// than some of these, and what is over frees its place this late.
const SWEEP: Duration = Duration::from_secs(2);

/// How often the node is looked at for what somebody changed: within seconds everything is as it was left.
const VERIFY: Duration = Duration::from_secs(2);

/// Places of the queue to control that reports leave free: a flood of them must not cost an ack, without which
/// nobody would know that a snapshot is in force.
const FOR_ACKS: usize = 4;

/// The slack for a worker that is told to drain, beyond its own bound.
const DRAIN_SLACK: Duration = Duration::from_secs(2);

/// What is to be in force, and how far it is.
struct Target {
    sequence: u64,
    snapshot: Arc<Snapshot>,
    bytes: Bytes,
    swapped: bool,
    applied: Option<Applied>,
    /// When the rows are to be done, whatever the worker says.
    due: Option<Instant>,
    /// The wait before the next try.
    retry: Duration,
    /// The last ack, so that the same news is not told twice.
    told: Option<pb::Ack>,
}

impl Target {
    /// Rows are tried again, later each time.
    fn again(&mut self) {
        self.due = Some(Instant::now() + self.retry);
        self.retry = (self.retry * 2).min(RETRY.1);
    }
}

/// See the module.
pub(super) struct Engine {
    node: Arc<Mutex<Option<Node>>>,
    store: Option<Store>,
    records: Records,
    flows: Flows,
    outgoing: mpsc::Sender<pb::FromNode>,
    generation: Arc<AtomicU64>,
    worker: Option<watch::Sender<ToWorker>>,
    target: Option<Target>,
    links: Links,
    findings: Findings,
    sequence: u64,
    draining: bool,
    drained: bool,
    /// Another agent is taking the node over: the rows are its own to change. Looked at by whoever holds the node, so
    /// that what was asked for before and begins after changes none.
    frozen: Arc<AtomicBool>,
    /// Told when the first snapshot is in force and the worker serves.
    serving: Option<oneshot::Sender<()>>,
}

impl Engine {
    pub(super) fn new(
        node: Node,
        store: Option<Store>,
        records: Records,
        outgoing: mpsc::Sender<pb::FromNode>,
        generation: Arc<AtomicU64>,
    ) -> io::Result<Self> {
        let node = Arc::new(Mutex::new(Some(node)));
        Ok(Self {
            flows: Flows::follow(node.clone()),
            node,
            store,
            records,
            outgoing,
            generation,
            worker: None,
            target: None,
            links: Links::look()?,
            findings: Findings::default(),
            sequence: 0,
            draining: false,
            drained: false,
            frozen: Arc::default(),
            serving: None,
        })
    }

    /// Starts with the snapshot that was handed over, or with the one on disk, if there is one.
    pub(super) async fn start(&mut self, handed: Option<Bytes>) {
        let handed = handed.and_then(|bytes| {
            // Another version's: what is on disk or comes from control does as well.
            let decoded = sluice_wire::from_bytes(&bytes);
            decoded.inspect_err(|error| tracing::warn!(%error, "cannot read the snapshot handed over")).ok()
        });
        if let Some(snapshot) = handed.or_else(|| self.store.as_ref().and_then(Store::load)) {
            tracing::info!(generation = snapshot.generation, "starting with the last snapshot");
            self.aim(snapshot).await;
        }
    }

    /// Ends once the first snapshot is in force and the worker serves by it; at once where there is none to wait for.
    pub(super) fn serving(&mut self) -> oneshot::Receiver<()> {
        let (told, serving) = oneshot::channel();
        if self.target.is_some() {
            self.serving = Some(told);
        } else {
            let _ = told.send(());
        }
        serving
    }

    /// What the worker judges by.
    pub(super) fn snapshot(&self) -> Option<Bytes> {
        self.target.as_ref().map(|target| target.bytes.clone())
    }

    /// Leaves the rows alone from now on. What is being written is written to its end.
    pub(super) async fn freeze(&mut self) {
        self.frozen.store(true, Ordering::SeqCst);
        let node = self.node.clone();
        let waited =
            tokio::task::spawn_blocking(move || drop(node.lock().unwrap_or_else(PoisonError::into_inner)));
        let _ = waited.await;
    }

    /// Nobody took over: what the other may have written is written again.
    pub(super) fn thaw(&mut self) {
        self.frozen.store(false, Ordering::SeqCst);
        if let Some(target) = &mut self.target {
            target.due = Some(Instant::now());
        }
    }

    /// Lets go of the node, which another agent has now. The worker goes on by what control says; nobody else is told
    /// anything.
    pub(super) async fn retire(&mut self) {
        let node = self.node.clone();
        let taken = move || drop(node.lock().unwrap_or_else(PoisonError::into_inner).take());
        let _ = tokio::task::spawn_blocking(taken).await;
    }

    /// Puts every snapshot of the feed in force, until the worker has drained.
    pub(super) async fn run(
        &mut self,
        events: &mut mpsc::Receiver<Event>,
        snapshots: &mut mpsc::Receiver<Snapshot>,
    ) -> anyhow::Result<()> {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut verify = tokio::time::interval(VERIFY);
        verify.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = tokio::time::interval(REPORT_PERIOD);
        count.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.drained {
            let due = self.target.as_ref().and_then(|target| target.due);
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.hear(event).await,
                    None => anyhow::bail!("nobody watches the worker any more: restart the proxy"),
                },
                Some(snapshot) = snapshots.recv() => self.aim(snapshot).await,
                Some(records) = self.flows.records.recv() => {
                    let reported = self.records.write(records, self.flows.dropped());
                    self.report(reported);
                }
                () = sleep_until(due), if due.is_some() => self.apply_rows().await,
                _ = verify.tick() => self.verify().await,
                _ = look.tick() => if self.links.changed() && self.target.as_ref().is_some_and(|t| t.applied.is_some()) {
                    self.apply_rows().await;
                },
                _ = sweep.tick() => self.sweep_flows().await,
                _ = count.tick() => self.count().await,
            }
        }
        Ok(())
    }

    /// Begins to put a snapshot in force.
    async fn aim(&mut self, snapshot: Snapshot) {
        self.sequence += 1;
        let snapshot = Arc::new(snapshot);
        self.flows.known.learn(&snapshot);
        let encoded = snapshot.clone();
        let bytes = tokio::task::spawn_blocking(move || Bytes::from(sluice_wire::to_bytes(&encoded))).await;
        let Ok(bytes) = bytes else {
            tracing::error!(generation = snapshot.generation, "cannot encode the snapshot");
            return;
        };
        self.target = Some(Target {
            sequence: self.sequence,
            snapshot,
            bytes,
            swapped: false,
            applied: None,
            due: Some(Instant::now() + if self.worker.is_some() { WORKER_PATIENCE } else { Duration::ZERO }),
            retry: RETRY.0,
            told: None,
        });
        self.tell_worker();
    }

    fn tell_worker(&self) {
        if let (Some(worker), Some(target)) = (&self.worker, &self.target) {
            worker.send_modify(|order| {
                order.sequence = target.sequence;
                order.snapshot = Some(target.bytes.clone());
            });
        }
    }

    async fn hear(&mut self, event: Event) {
        match event {
            Event::Up(worker) => {
                self.worker = Some(worker);
                if let Some(target) = &mut self.target {
                    target.swapped = false;
                }
                self.tell_worker();
            }
            Event::Down => {
                self.worker = None;
                self.drained = self.draining;
                if let Some(target) = &mut self.target {
                    target.swapped = false;
                }
            }
            Event::Says(message) => self.listen(message).await,
        }
    }

    async fn listen(&mut self, message: FromWorker) {
        self.drained |= message.drained;
        let reported = self.records.take(message.records, message.dropped);
        self.report(reported);
        if let Some(swapped) = message.swapped {
            self.swapped(&swapped).await;
        }
    }

    fn report(&self, reported: Option<pb::FromNode>) {
        // Lossy by design: no verdict depends on a report. Acks are not, so reports leave them room.
        if let Some(report) = reported
            && self.outgoing.capacity() > FOR_ACKS
        {
            let _ = self.outgoing.try_send(report);
        }
    }

    async fn swapped(&mut self, swapped: &Swapped) {
        let Some(target) = self.target.as_mut().filter(|target| target.sequence == swapped.sequence) else {
            return; // of a snapshot that a newer one has overtaken
        };
        if !swapped.refused.is_empty() {
            // The agent decoded the same bytes: a build would have to disagree with itself.
            tracing::error!(
                generation = target.snapshot.generation,
                reason = swapped.refused,
                "the worker refuses"
            );
            return;
        }
        target.swapped = true;
        tracing::debug!(generation = target.snapshot.generation, cut = swapped.cut, "the worker has swapped");
        if target.applied.is_none() {
            self.apply_rows().await;
        } else {
            self.acknowledge();
        }
    }

    /// Rows and hooks. Repeated while an endpoint is missing.
    async fn apply_rows(&mut self) {
        let Some(target) = &mut self.target else { return };
        target.due = None;
        if self.frozen.load(Ordering::SeqCst) {
            return;
        }
        let (node, snapshot, frozen) = (self.node.clone(), target.snapshot.clone(), self.frozen.clone());
        let what = format!("the rows of generation {} are written", snapshot.generation);
        let work = tokio::task::spawn_blocking(move || {
            let mut node = node.lock().unwrap_or_else(PoisonError::into_inner);
            let node = node.as_mut().filter(|_| !frozen.load(Ordering::SeqCst));
            node.map(|node| node.apply(&snapshot).map_err(|error| error.to_string()))
        });
        let result = match self.busy(&what, work).await {
            Ok(Some(result)) => result,
            Ok(None) => return,
            Err(error) => Err(error.to_string()),
        };
        let Some(target) = &mut self.target else { return };
        match result {
            Ok(applied) => {
                let first = target.applied.is_none();
                if !applied.missing.is_empty() || !applied.problems.is_empty() {
                    target.again();
                }
                let known = target.applied.as_ref().map_or(&[][..], |before| &before.problems);
                for problem in applied.problems.iter().filter(|problem| !known.contains(problem)) {
                    tracing::warn!(problem, "left over from before; it denies, and is tried again");
                }
                target.applied = Some(applied);
                if first {
                    self.in_force();
                }
                self.acknowledge();
            }
            Err(reason) => {
                target.again();
                let generation = target.snapshot.generation;
                let ack = pb::Ack { generation, rejected: reason, ..pb::Ack::default() };
                self.tell(ack);
            }
        }
    }

    /// Walks the flow table.
    async fn sweep_flows(&self) {
        let node = self.node.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut node = node.lock().unwrap_or_else(PoisonError::into_inner);
            node.as_mut().map(Node::sweep)
        })
        .await;
        match done {
            Ok(Some(Ok(swept))) => {
                tracing::trace!(flows = swept.flows, removed = swept.removed, "walked the flow table");
            }
            // The kernel goes on, and soon holds nobody's number against it.
            Ok(Some(Err(error))) => tracing::error!(%error, "cannot walk the flow table"),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the walk over the flow table ended"),
        }
    }

    /// Puts right what somebody changed on the node, and says what that was. What stays is told once.
    async fn verify(&mut self) {
        let node = self.node.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut node = node.lock().unwrap_or_else(PoisonError::into_inner);
            node.as_mut().map(Node::verify).unwrap_or_default()
        });
        let Ok(found) = done.await else { return };
        let news = self.findings.look(found, Instant::now());
        // What is in force is so only as far as the node is as it must be.
        if news.stays {
            self.acknowledge();
        }
        if news.any {
            self.count().await;
        }
    }

    /// Reports what is known of the kernel; by it control knows that this node lives. Nothing waits for control: while
    /// it does not read, reports are dropped, and the next one says the same and more.
    async fn count(&mut self) {
        let node = self.node.clone();
        let done = tokio::task::spawn_blocking(move || {
            let node = node.lock().unwrap_or_else(PoisonError::into_inner);
            let read = |node: &Node| node.counters().map(|counters| (counters, node.fill()));
            node.as_ref().map(|node| read(node).map_err(|error| error.to_string()))
        });
        // Another agent has the node, and speaks for it.
        let Ok(Some(read)) = done.await else { return };
        let trouble = match read {
            Ok((counters, fill)) => {
                self.findings.read(&counters, &fill);
                String::new()
            }
            Err(error) => {
                tracing::error!(error, "cannot read what the kernel counts");
                format!("what the kernel counts cannot be read: {error}")
            }
        };
        self.report_kernel(trouble);
    }

    fn report_kernel(&self, trouble: String) {
        let generation = self.generation.load(Ordering::Relaxed);
        self.report(Some(self.findings.report(generation, trouble, Instant::now())));
    }

    /// Waits for what may take long on a large node, and says meanwhile that this one lives.
    async fn busy<T>(&self, what: &str, mut work: JoinHandle<T>) -> Result<T, JoinError> {
        let begin = Instant::now();
        loop {
            match tokio::time::timeout(REPORT_PERIOD, &mut work).await {
                Ok(done) => return done,
                Err(_) => self.report_kernel(format!("busy for {} s: {what}", begin.elapsed().as_secs())),
            }
        }
    }

    /// Writes down what is in force.
    fn in_force(&mut self) {
        let Some(target) = &self.target else { return };
        self.generation.store(target.snapshot.generation, Ordering::Relaxed);
        if let Some(store) = self.store.clone() {
            let bytes = target.bytes.clone();
            tokio::task::spawn_blocking(move || {
                if let Err(error) = store.save(&bytes) {
                    tracing::error!(%error, "cannot keep the snapshot on disk; a restart waits for control");
                }
            });
        }
    }

    /// Says that the snapshot is in force, once everything is.
    fn acknowledge(&mut self) {
        let Some(Target { snapshot, applied: Some(applied), swapped: true, .. }) = &self.target else {
            return;
        };
        if let Some(serving) = self.serving.take() {
            let _ = serving.send(());
        }
        let ack = pb::Ack {
            generation: snapshot.generation,
            applied: true,
            rejected: String::new(),
            attached: applied.attached.iter().map(|attached| attached.endpoint.clone()).collect(),
            missing: applied
                .missing
                .iter()
                .map(|missing| pb::MissingEndpoint {
                    endpoint: missing.endpoint.clone(),
                    reason: missing.why.clone(),
                })
                .collect(),
            drift: self.findings.stays(),
        };
        self.tell(ack);
    }

    fn tell(&mut self, ack: pb::Ack) {
        let Some(target) = &mut self.target else { return };
        if target.told.as_ref() == Some(&ack) {
            return;
        }
        if ack.applied {
            let (attached, missing) = (ack.attached.len(), ack.missing.len());
            tracing::info!(
                generation = ack.generation,
                attached,
                missing,
                drift = ack.drift.len(),
                "in force"
            );
            for missing in &ack.missing {
                tracing::warn!(endpoint = missing.endpoint, reason = missing.reason, "not enforced");
            }
        } else {
            tracing::error!(generation = ack.generation, reason = ack.rejected, "not in force");
        }
        // If control is away, it hears when it is back: it sends its newest snapshot then.
        let _ = self.outgoing.try_send(sluice_wire::ack(ack.clone()));
        target.told = Some(ack);
    }

    /// Lets the worker finish what it is doing, no longer than `limit`. What is open meanwhile goes on by the newest
    /// snapshot.
    pub(super) async fn drain(
        &mut self,
        events: &mut mpsc::Receiver<Event>,
        snapshots: &mut mpsc::Receiver<Snapshot>,
        limit: Duration,
    ) {
        self.draining = true;
        match &self.worker {
            Some(worker) => worker.send_modify(|order| {
                order.drain = true;
                order.patience = limit.as_millis().try_into().unwrap_or(u64::MAX);
            }),
            None => return,
        }
        if tokio::time::timeout(limit + DRAIN_SLACK, self.run(events, snapshots)).await.is_err() {
            tracing::warn!("the worker did not drain in time; what is open is cut");
        }
    }

    /// Puts the node down; what is pinned goes on enforcing.
    pub(super) async fn release(&mut self) -> anyhow::Result<()> {
        self.records.close().await;
        let node = self.node.clone();
        tokio::task::spawn_blocking(move || {
            let node = node.lock().unwrap_or_else(PoisonError::into_inner).take();
            node.map_or(Ok(()), Node::release)
        })
        .await??;
        Ok(())
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
