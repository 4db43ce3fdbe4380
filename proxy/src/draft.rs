//! A record while it is written: what is known is kept as it is, shared, and becomes bytes once, when it is over.
//!
//! The bytes are those of [`Record`], which is what reads them. Here is also the buffer that they wait in, which never
//! waits itself: when it is full a record is dropped and counted. No verdict depends on any of it. Called by the
//! servers of the protocols; read by the worker's reporter.

use crate::judge::{self, Leg};
use crate::limits::{RECORD_BYTES, RECORD_BYTES_OF_ONE, RECORDS_WORTH};
use crate::record::{Record, WouldDeny, bounded_str, miss_text, now_unix_ns, would_deny};
use crate::service::vip::Vip;
use crate::state::View;
use crate::telemetry::sampler::Span;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use sluice_policy::{DenyDetail, Verdict, Workload};
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::Notify;
use tokio::sync::mpsc::error::TryRecvError;

/// What happened so far to one request, tunnel or refused connection.
#[derive(Clone, Debug)]
pub struct Draft {
    start_unix_ns: u64,
    ends: Arc<[u8]>,
    service: Option<Arc<Vip>>,
    protocol: &'static str,
    generation: u64,
    said: Option<Arc<judge::Said>>,
    server_name: Option<Arc<str>>,
    verdict: Option<Verdict>,
    span: Option<(Span, String)>,
    /// The HTTP status that the client got; 0 for none.
    pub status: u32,
    /// The gRPC status that the client got.
    pub grpc_status: Option<u32>,
    /// Body or tunnel bytes from the client.
    pub bytes_up: u64,
    /// Body or tunnel bytes to the client.
    pub bytes_down: u64,
    /// What went wrong, in a word; empty if nothing did.
    pub error: String,
}

impl Draft {
    /// A record that begins now.
    #[must_use]
    pub fn begin(view: &View, leg: &Leg, protocol: &'static str) -> Self {
        Self::between(ends(view, leg), view, protocol)
    }

    fn between(ends: Arc<[u8]>, view: &View, protocol: &'static str) -> Self {
        Self {
            start_unix_ns: now_unix_ns(),
            ends,
            service: None,
            protocol,
            generation: view.snapshot.generation,
            said: None,
            server_name: None,
            verdict: None,
            span: None,
            status: 0,
            grpc_status: None,
            bytes_up: 0,
            bytes_down: 0,
            error: String::new(),
        }
    }

    /// Notes the Service.
    pub fn through(&mut self, vip: &Arc<Vip>) {
        self.service = Some(vip.clone());
    }

    /// Notes what was asked for.
    pub fn describe(&mut self, said: &Arc<judge::Said>) {
        self.said = Some(said.clone());
    }

    /// Notes which server was asked for in TLS.
    pub fn server_name(&mut self, name: Option<&Arc<str>>) {
        self.server_name = name.cloned();
    }

    /// Notes the verdict.
    pub fn judged(&mut self, verdict: &Verdict) {
        self.verdict = Some(verdict.clone());
    }

    /// Whether an answer in the server's place says to programs what was wrong with it: where the policy that let the
    /// request through tells anything of itself.
    #[must_use]
    pub fn tells(&self) -> bool {
        let policy = self.verdict.as_ref().and_then(|verdict| verdict.deciding().policy.as_ref());
        policy.is_some_and(|policy| policy.on_deny.detail >= DenyDetail::Rule)
    }

    /// Notes the span.
    pub fn spanned(&mut self, span: &Span, state: &str) {
        self.span = Some((*span, bounded_str(state).to_owned()));
    }

    /// Appends the record, that ended then, as a [`Record`] has it.
    fn encode(&self, end_unix_ns: u64, out: &mut Vec<u8>) {
        for (tag, time) in [(1, self.start_unix_ns), (2, end_unix_ns)] {
            encode_key(tag, WireType::SixtyFourBit, out);
            out.extend_from_slice(&time.to_le_bytes());
        }
        out.extend_from_slice(&self.ends);
        text(5, self.protocol, out);
        if let Some(said) = &self.said {
            text(6, bounded_str(&said.method), out);
            text(7, bounded_str(&said.path), out);
            text(8, bounded_str(said.host.as_deref().unwrap_or_default()), out);
            let called = said.path.strip_prefix('/').and_then(|path| path.split_once('/'));
            if let Some((service, method)) = called.filter(|_| said.is_grpc()) {
                text(10, bounded_str(service), out);
                text(11, bounded_str(method), out);
            }
        } else {
            text(8, bounded_str(self.server_name.as_deref().unwrap_or_default()), out);
        }
        number(9, self.status.into(), out);
        if let Some(status) = self.grpc_status {
            encode_key(12, WireType::Varint, out);
            encode_varint(status.into(), out);
        }
        if let Some(verdict) = &self.verdict {
            encode_verdict(verdict, out);
        }
        if let Some((span, state)) = &self.span {
            bytes(20, &span.context.trace_id, out);
            bytes(21, &span.context.span_id, out);
            bytes(22, span.parent.as_ref().map_or(&[], |id| &id[..]), out);
            number(23, span.context.flags.into(), out);
            text(24, state, out);
        }
        number(25, self.bytes_up, out);
        number(26, self.bytes_down, out);
        text(27, &self.error, out);
        number(29, self.generation, out);
        if let Some(vip) = &self.service {
            within(30, out, |out| {
                text(1, &vip.namespace, out);
                text(2, &vip.name, out);
                address(3, vip.address, out);
                number(4, vip.address.port().into(), out);
            });
        }
    }
}

/// Who a connection is between, as a snapshot has it, as fields of a record: looked up and written once for all requests
/// of a connection that are judged by the same snapshot.
#[derive(Debug, Default)]
pub struct Ends(Option<(Weak<View>, Leg, Arc<[u8]>)>);

impl Ends {
    /// A record that begins now.
    #[must_use]
    pub fn begin(&mut self, view: &Arc<View>, leg: &Leg, protocol: &'static str) -> Draft {
        let ends = match &self.0 {
            // It is not another's place: what refers to it keeps that, if not what was in it.
            Some((known, between, ends)) if known.as_ptr() == Arc::as_ptr(view) && between == leg => {
                ends.clone()
            }
            _ => {
                let ends = ends(view, leg);
                self.0 = Some((Arc::downgrade(view), *leg, ends.clone()));
                ends
            }
        };
        Draft::between(ends, view, protocol)
    }
}

fn ends(view: &View, leg: &Leg) -> Arc<[u8]> {
    let mut out = Vec::with_capacity(256);
    for (tag, at) in [(3, leg.source), (4, leg.destination)] {
        within(tag, &mut out, |out| end(at, view.workload(at.ip()).map(Arc::as_ref), out));
    }
    number(28, view.is_local(leg.destination.ip()).into(), &mut out);
    out.into()
}

fn encode_verdict(verdict: &Verdict, out: &mut Vec<u8>) {
    let deciding = verdict.deciding();
    text(13, verdict.outcome().as_str(), out);
    text(14, deciding.reason.as_str(), out);
    if let Some(policy) = &deciding.policy {
        within(15, out, |out| drop(write!(out, "{}", policy.origin)));
    }
    text(16, deciding.rule.as_deref().unwrap_or_default(), out);
    if deciding.nearest_miss.is_some() {
        text(17, &miss_text(deciding.nearest_miss.as_ref()), out);
    }
    for side in [&verdict.egress, &verdict.ingress] {
        let alone = side.audit.would_deny.iter().map(|finding| would_deny(finding, false));
        // Alone they would pass, together they would not: said apart, else it is the same news twice.
        let together = side.audit.together_deny.iter().filter(|_| side.audit.would_deny.is_empty());
        let all = alone.chain(together.map(|finding| would_deny(finding, true)));
        all.for_each(|found: WouldDeny| prost::encoding::message::encode(18, &found, out));
    }
    number(19, deciding.audit.would_allow.into(), out);
}

/// Bytes of a length that is written before it is known.
const LENGTH: usize = 3;

/// A field of which the length is not known before it is written. `false`: it was too long, and is not there.
fn within(tag: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> bool {
    let before = out.len();
    encode_key(tag, WireType::LengthDelimited, out);
    let at = out.len();
    out.extend_from_slice(&[0; LENGTH]);
    write(out);
    let length = out.len() - at - LENGTH;
    if length >= 1 << (7 * LENGTH) {
        out.truncate(before);
        return false;
    }
    // A varint in as many bytes as were left for it: all but the last say that more follow.
    for place in 0..LENGTH {
        let more = if place + 1 < LENGTH { 0x80 } else { 0 };
        out[at + place] = u8::try_from((length >> (7 * place)) & 0x7f).unwrap_or_default() | more;
    }
    true
}

fn bytes(tag: u32, value: &[u8], out: &mut Vec<u8>) {
    if !value.is_empty() {
        encode_key(tag, WireType::LengthDelimited, out);
        encode_varint(value.len() as u64, out);
        out.extend_from_slice(value);
    }
}

fn text(tag: u32, value: &str, out: &mut Vec<u8>) {
    bytes(tag, value.as_bytes(), out);
}

fn number(tag: u32, value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        encode_key(tag, WireType::Varint, out);
        encode_varint(value, out);
    }
}

fn address(tag: u32, address: SocketAddr, out: &mut Vec<u8>) {
    // Writing to memory cannot fail.
    within(tag, out, |out| drop(write!(out, "{}", address.ip())));
}

fn end(at: SocketAddr, workload: Option<&Workload>, out: &mut Vec<u8>) {
    address(1, at, out);
    number(2, at.port().into(), out);
    if let Some(workload) = workload {
        text(3, &workload.namespace, out);
        text(4, &workload.pod, out);
        text(5, &workload.uid, out);
    }
}

/// Records that wait, one after the other, each as a field of [`FromWorker`](crate::channel::FromWorker).
#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    count: usize,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// How many bytes may wait.
    room: usize,
    /// Of all sinks of this process.
    dropped: Arc<AtomicU64>,
    sinks: AtomicUsize,
    /// There are some, or no sink is left.
    some: Notify,
    many: Notify,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // A panic elsewhere cannot leave a record half written: nobody else's code runs while it is.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where records go.
#[derive(Debug)]
pub struct Sink(Arc<Shared>);

/// The end that reads them.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    /// Records that were taken and not read.
    taken: std::collections::VecDeque<Record>,
}

impl Clone for Sink {
    fn clone(&self) -> Self {
        self.0.sinks.fetch_add(1, Ordering::Relaxed);
        Self(self.0.clone())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if self.0.sinks.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.some.notify_one();
        }
    }
}

/// The field of the message to the agent that has the records.
const RECORDS: u32 = 2;

impl Sink {
    /// A sink and the end that reads it.
    #[must_use]
    pub fn new() -> (Self, Reader) {
        Self::one_of(1, &Arc::default())
    }

    /// One of so many, that each have their part of the room: the lock of each is its thread's and its reader's alone.
    #[must_use]
    pub fn one_of(count: usize, dropped: &Arc<AtomicU64>) -> (Self, Reader) {
        let room = (RECORD_BYTES / count.max(1)).max(RECORD_BYTES_OF_ONE);
        let (sinks, dropped) = (AtomicUsize::new(1), dropped.clone());
        let shared = Arc::new(Shared { sinks, room, dropped, ..Shared::default() });
        (Self(shared.clone()), Reader { shared, taken: std::collections::VecDeque::new() })
    }

    /// Ends the record now and writes it.
    #[expect(clippy::needless_pass_by_value, reason = "nothing may be noted after it")]
    pub fn finish(&self, draft: Draft) {
        let now = now_unix_ns().max(draft.start_unix_ns);
        let mut waiting = self.0.waiting();
        let Waiting { bytes, count } = &mut *waiting;
        let fits = bytes.len() < self.0.room && within(RECORDS, bytes, |out| draft.encode(now, out));
        if !fits {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        *count += 1;
        let count = *count;
        drop(waiting);
        if count == 1 {
            self.0.some.notify_one();
        } else if count.is_multiple_of(RECORDS_WORTH) {
            self.0.many.notify_one();
        }
    }
}

impl Reader {
    /// Waits until there are some. `false`: there will be none any more.
    pub async fn some(&self) -> bool {
        loop {
            if self.shared.waiting().count > 0 {
                return true;
            }
            if self.shared.sinks.load(Ordering::Acquire) == 0 {
                return false;
            }
            self.shared.some.notified().await;
        }
    }

    /// Waits until there are so many that they are worth taking.
    pub async fn many(&self) {
        while self.shared.waiting().count < RECORDS_WORTH {
            self.shared.many.notified().await;
        }
    }

    /// Takes all, as fields of a [`FromWorker`](crate::channel::FromWorker).
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        let mut waiting = self.shared.waiting();
        waiting.count = 0;
        // As much is going to come again.
        let room = Vec::with_capacity(waiting.bytes.len());
        std::mem::replace(&mut waiting.bytes, room)
    }

    /// How many records were dropped so far, of all threads.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// The next record, read again. `None`: there will be none any more.
    pub async fn recv(&mut self) -> Option<Record> {
        loop {
            match self.try_recv() {
                Ok(record) => return Some(record),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {}
            }
            self.some().await;
        }
    }

    /// The next record, if there is one now.
    ///
    /// # Errors
    /// If there is none, or will be none any more.
    pub fn try_recv(&mut self) -> Result<Record, TryRecvError> {
        if self.taken.is_empty() {
            // Before it is looked: whatever was written was written before its sink went.
            let over = self.shared.sinks.load(Ordering::Acquire) == 0;
            let message = crate::channel::FromWorker::decode(self.take().as_slice());
            self.taken = message.map_err(|_| TryRecvError::Disconnected)?.records.into();
            if self.taken.is_empty() && over {
                return Err(TryRecvError::Disconnected);
            }
        }
        self.taken.pop_front().ok_or(TryRecvError::Empty)
    }
}

#[cfg(test)]
#[path = "draft_tests.rs"]
mod tests;
