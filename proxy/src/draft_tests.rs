//! Drafts: their bytes are those of the record that they mean, and no more of them wait than may.

use super::*;
use crate::fuzzing;
use crate::judge::Judged;
use crate::record::{End, Service};
use crate::state::View;
use crate::telemetry::context::Context;
use http::{HeaderName, HeaderValue};
use sluice_policy::{AuditFinding, Decision, HttpVersion, Reason};

fn view() -> Arc<View> {
    let mut snapshot = (*fuzzing::snapshot(true)).clone();
    snapshot.generation = 300;
    let state = crate::state::State::default();
    state.swap(Arc::new(snapshot));
    state.view()
}

fn leg() -> Leg {
    Leg::new(SocketAddr::new(fuzzing::CLIENT, 40_000), SocketAddr::new(fuzzing::SERVER, 8080))
}

fn said(path: &str) -> Arc<judge::Said> {
    let kind = (HeaderName::from_static("content-type"), HeaderValue::from_static("application/grpc+proto"));
    Arc::new(judge::Said {
        version: HttpVersion::Http2,
        protocol: None,
        method: "POST".to_owned(),
        path: path.to_owned(),
        query: Some("token=secret".to_owned()),
        host: Some("shop.example".to_owned()),
        headers: vec![kind],
    })
}

/// What is read of the only draft that is sent.
fn read(draft: Draft) -> Record {
    let (sink, mut reader) = Sink::new();
    sink.finish(draft);
    let record = reader.try_recv().expect("it was written");
    assert_eq!(reader.try_recv(), Err(TryRecvError::Empty));
    record
}

/// A denial with all that a verdict may say.
fn verdict(view: &View, said: &judge::Said) -> Verdict {
    let Judged { mut verdict, .. } = said.judge(view, &leg());
    assert_eq!(verdict.decision(), Decision::Deny);
    let side = &mut verdict.ingress;
    let near = side.nearest_miss.clone().expect("a rule came near");
    let finding = AuditFinding {
        policy: side.policy.clone(),
        rule: Some("audited".into()),
        reason: Reason::NoRuleMatched,
        nearest_miss: Some(near),
    };
    side.rule = Some("decided".into());
    side.audit.would_allow = true;
    side.audit.would_deny = vec![finding.clone(), finding.clone()];
    verdict.egress.audit.together_deny = Some(finding);
    verdict
}

/// The record as it would be written from the same facts, one field after the other.
fn expected(read: &Record, verdict: &Verdict) -> Record {
    let named = |workload: &Workload| (workload.namespace.to_string(), workload.pod.to_string());
    let view = view();
    let (namespace, pod) = named(view.workload(fuzzing::SERVER).expect("it is here"));
    let ip = |ip: std::net::IpAddr| ip.to_string();
    let mut record = Record {
        start_unix_ns: read.start_unix_ns,
        end_unix_ns: read.end_unix_ns,
        source: End { ip: ip(fuzzing::CLIENT), port: 40_000, ..End::default() },
        destination: End { ip: ip(fuzzing::SERVER), port: 8080, namespace, pod, ..End::default() },
        protocol: "http/2".to_owned(),
        method: "POST".to_owned(),
        path: "/shop.Cart/Add".to_owned(),
        host: "shop.example".to_owned(),
        status: 200,
        grpc_service: "shop.Cart".to_owned(),
        grpc_method: "Add".to_owned(),
        grpc_status: Some(0),
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        parent_span_id: vec![3; 8],
        trace_flags: 1,
        trace_state: "a=b".to_owned(),
        bytes_up: 5,
        bytes_down: u64::MAX,
        error: "revoked".to_owned(),
        at_ingress: true,
        generation: 300,
        ..Record::default()
    };
    record.judged(verdict);
    record
}

#[test]
fn the_bytes_are_those_of_the_record() {
    let (view, said) = (view(), said("/shop.Cart/Add"));
    let verdict = verdict(&view, &said);
    let mut draft = Draft::begin(&view, &leg(), "http/2");
    draft.describe(&said);
    draft.judged(&verdict);
    let context = Context { trace_id: [1; 16], span_id: [2; 8], flags: 1 };
    draft.spanned(&Span { context, parent: Some([3; 8]) }, "a=b");
    (draft.status, draft.grpc_status) = (200, Some(0));
    (draft.bytes_up, draft.bytes_down) = (5, u64::MAX);
    draft.error = "revoked".to_owned();
    let read = read(draft);
    assert!(read.start_unix_ns > 0 && read.end_unix_ns >= read.start_unix_ns);
    let expected = expected(&read, &verdict);
    assert!(!expected.nearest_miss.is_empty() && expected.would_deny.len() == 3, "{expected:?}");
    assert_eq!(read, expected);
}

#[test]
fn what_is_not_known_is_not_said() {
    let view = view();
    let draft = Draft::begin(&view, &leg(), "tcp");
    let read = read(draft);
    let bare = Record { protocol: "tcp".to_owned(), ..read.clone() };
    assert_eq!((read.method.as_str(), read.verdict.as_str(), read.grpc_status), ("", "", None));
    assert_eq!((bare.service, bare.trace_id.len(), bare.would_deny.len()), (None::<Service>, 0, 0));
    let mut draft = Draft::begin(&view, &leg(), "tls");
    draft.server_name(Some(&Arc::from("shop.example")));
    assert_eq!(self::read(draft).host, "shop.example");
}

/// A connection may outlive many snapshots: what one said of it is not said of it under the next.
#[test]
fn who_it_is_between_is_looked_up_again_under_another_snapshot() {
    let state = crate::state::State::default();
    let mut snapshot = (*fuzzing::snapshot(true)).clone();
    state.swap(Arc::new(snapshot.clone()));
    let mut ends = Ends::default();
    let mut begin = |leg: &Leg| read(ends.begin(&state.view(), leg, "tcp"));
    let (leg, back) = (leg(), Leg { source: leg().destination, destination: leg().source });
    for _ in 0..2 {
        let record = begin(&leg);
        assert_eq!((record.destination.pod.as_str(), record.at_ingress), ("cart", true));
    }
    let record = begin(&back);
    assert_eq!((record.source.pod.as_str(), record.at_ingress), ("cart", false));
    let mut endpoint = (*snapshot.endpoints[0]).clone();
    let workload = Workload { pod: "another".into(), ..(*endpoint.workload).clone() };
    endpoint.workload = Arc::new(workload);
    snapshot.endpoints = vec![Arc::new(endpoint)].into();
    state.swap(Arc::new(snapshot));
    assert_eq!(begin(&back).source.pod, "another");
    assert_eq!(begin(&leg).destination.pod, "another");
}

/// A client chooses what is quoted: each of it is cut.
#[test]
fn a_record_is_bounded() {
    let view = view();
    let mut draft = Draft::begin(&view, &leg(), "http/1.1");
    let long = "/ä".repeat(crate::limits::TARGET_BYTES);
    draft.describe(&said(&long));
    let read = read(draft);
    assert!(read.path.len() <= crate::limits::RECORD_VALUE_BYTES && long.starts_with(&read.path));
    assert!(read.grpc_method.len() <= crate::limits::RECORD_VALUE_BYTES && !read.grpc_method.is_empty());
}

#[test]
fn what_nobody_takes_is_dropped_and_counted() {
    let view = view();
    let (sink, mut reader) = Sink::new();
    let draft = Draft::begin(&view, &leg(), "tcp");
    let mut sent = 0;
    while reader.dropped() == 0 {
        sink.finish(draft.clone());
        sent += 1;
        assert!(sent < RECORD_BYTES, "the buffer has no end");
    }
    let taken = reader.take();
    assert!((RECORD_BYTES..RECORD_BYTES + 4096).contains(&taken.len()), "{}", taken.len());
    let message = crate::channel::FromWorker::decode(taken.as_slice()).expect("whole records");
    assert_eq!((message.records.len() + 1, reader.dropped()), (sent, 1));
    sink.finish(draft);
    assert!(reader.try_recv().is_ok(), "there is room again");
}

#[tokio::test]
async fn its_reader_hears_of_the_end() {
    let (sink, mut reader) = Sink::new();
    let other = sink.clone();
    sink.finish(Draft::begin(&view(), &leg(), "tcp"));
    drop(sink);
    let reading = tokio::spawn(async move { (reader.recv().await.is_some(), reader.recv().await.is_some()) });
    tokio::task::yield_now().await;
    drop(other);
    assert_eq!(reading.await.expect("no panic"), (true, false));
}
