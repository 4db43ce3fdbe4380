//! A record as an OpenTelemetry span, by the semantic conventions for HTTP, RPC and security rules.
//!
//! Pure. One span per traversal; its resource is the workload that was observed, never the proxy.

use crate::record::{End, Record};
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use std::collections::BTreeMap;

/// The methods that the conventions know; others are `_OTHER`, so that nobody makes names at will.
const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"];

/// The gRPC statuses, by number.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The statuses that are a server's fault (RPC conventions, server spans).
const GRPC_SERVER_ERRORS: [u32; 6] = [2, 4, 12, 13, 14, 15];

/// Whether the record has a span.
#[must_use]
pub fn has_span(record: &Record) -> bool {
    record.trace_id.len() == 16 && record.span_id.len() == 8
}

/// The spans of these records, by observed workload.
#[must_use]
pub fn resource_spans(records: &[Record], node: &[(String, String)]) -> Vec<ResourceSpans> {
    let mut by_workload: BTreeMap<(&str, &str, &str), Vec<Span>> = BTreeMap::new();
    for record in records.iter().filter(|record| has_span(record)) {
        let End { namespace, pod, uid, .. } = observed(record);
        by_workload.entry((namespace, pod, uid)).or_default().push(span(record));
    }
    by_workload
        .into_iter()
        .map(|(workload, spans)| ResourceSpans {
            resource: Some(resource(workload, node)),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: "sluice-proxy".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    ..InstrumentationScope::default()
                }),
                spans,
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        })
        .collect()
}

/// The local end: the server where it is an endpoint of this node, else the client.
fn observed(record: &Record) -> &End {
    if record.at_ingress { &record.destination } else { &record.source }
}

fn resource((namespace, pod, uid): (&str, &str, &str), node: &[(String, String)]) -> Resource {
    let mut attributes = Attributes::default();
    for (key, value) in node.iter().filter(|(key, _)| key != "service.name") {
        attributes.text(key, value);
    }
    attributes.text("service.name", pod);
    attributes.text("service.namespace", namespace);
    attributes.text("k8s.namespace.name", namespace);
    attributes.text("k8s.pod.name", pod);
    attributes.text("k8s.pod.uid", uid);
    Resource { attributes: attributes.0, ..Resource::default() }
}

fn span(record: &Record) -> Span {
    let grpc = !record.grpc_service.is_empty();
    let known = METHODS.contains(&record.method.as_str());
    let method = if known { record.method.as_str() } else { "_OTHER" };
    let rpc = format!("{}/{}", record.grpc_service, record.grpc_method);
    let name = match (grpc, known) {
        (true, _) => rpc.clone(),
        // No route is known, so the name is the method alone.
        (false, true) => method.to_owned(),
        (false, false) => "HTTP".to_owned(),
    };
    let mut attributes = Attributes::default();
    http(record, method, &mut attributes);
    if grpc {
        attributes.text("rpc.system.name", "grpc");
        attributes.text("rpc.method", &rpc);
        let status = record.grpc_status.and_then(|status| GRPC.get(status as usize)).copied();
        attributes.text("rpc.response.status_code", status.unwrap_or_default());
        attributes.text("rpc.status_code", status.unwrap_or_default());
    }
    attributes.text("security_rule.name", &record.rule);
    attributes.text("security_rule.ruleset.name", &record.policy);
    if let Some(service) = &record.service {
        // `k8s.service.name` is an attribute of a resource that is a Service; this is one that a request went through.
        attributes.text("sluice.service.name", &service.name);
        attributes.text("sluice.service.namespace", &service.namespace);
        attributes.text("sluice.service.address", &service.ip);
        attributes.number("sluice.service.port", service.port);
        attributes.text("sluice.backend.pod.name", &record.destination.pod);
        attributes.text("sluice.backend.namespace", &record.destination.namespace);
    }
    attributes.text("sluice.verdict", &record.verdict);
    attributes.text("sluice.verdict.reason", &record.reason);
    attributes.text("sluice.verdict.nearest_miss", &record.nearest_miss);
    let error = error_type(record, grpc);
    attributes.text("error.type", &error);
    Span {
        trace_id: record.trace_id.clone(),
        span_id: record.span_id.clone(),
        parent_span_id: record.parent_span_id.clone(),
        trace_state: record.trace_state.clone(),
        flags: record.trace_flags,
        name,
        kind: if record.at_ingress { SpanKind::Server } else { SpanKind::Client }.into(),
        start_time_unix_nano: record.start_unix_ns,
        end_time_unix_nano: record.end_unix_ns,
        attributes: attributes.0,
        status: (!error.is_empty()).then(|| Status { code: StatusCode::Error.into(), ..Status::default() }),
        ..Span::default()
    }
}

fn http(record: &Record, method: &str, attributes: &mut Attributes) {
    attributes.text("http.request.method", method);
    if method != record.method {
        attributes.text("http.request.method_original", &record.method);
    }
    attributes.text("url.scheme", "http");
    attributes.text("url.path", &record.path);
    attributes.number("http.response.status_code", record.status);
    let host = record.host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let host = host.map_or(record.host.as_str(), |(host, _)| host);
    // Who was asked for: the Service, not the backend that it came to.
    let asked = record.service.as_ref().map(|service| (&service.ip, service.port));
    let (ip, port) = asked.unwrap_or((&record.destination.ip, record.destination.port));
    attributes.text("server.address", if host.is_empty() { ip } else { host });
    attributes.number("server.port", port);
    attributes.text("client.address", &record.source.ip);
    attributes.number("client.port", record.source.port);
    // The peer of the observed end: of a server its client, of a client the server that was chosen.
    let peer = if record.at_ingress { &record.source } else { &record.destination };
    attributes.text("network.peer.address", &peer.ip);
    attributes.number("network.peer.port", peer.port);
    attributes.text("network.protocol.name", "http");
    attributes.text("network.protocol.version", record.protocol.strip_prefix("http/").unwrap_or_default());
}

/// Empty where nothing failed. A server's span takes no client's fault for an error; a client's does.
fn error_type(record: &Record, grpc: bool) -> String {
    if !record.error.is_empty() {
        return record.error.clone();
    }
    if let Some(status) = record.grpc_status.filter(|_| grpc) {
        let failed = if record.at_ingress { GRPC_SERVER_ERRORS.contains(&status) } else { status != 0 };
        let name = GRPC.get(status as usize).copied().unwrap_or("UNKNOWN");
        return if failed { name.to_owned() } else { String::new() };
    }
    let failed = record.status >= if record.at_ingress { 500 } else { 400 };
    if failed { record.status.to_string() } else { String::new() }
}

/// Attributes; what is empty is left out.
#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.push(key, any_value::Value::StringValue(value.to_owned()));
        }
    }

    fn number(&mut self, key: &str, value: u32) {
        if value != 0 {
            self.push(key, any_value::Value::IntValue(i64::from(value)));
        }
    }

    fn push(&mut self, key: &str, value: any_value::Value) {
        let value = Some(AnyValue { value: Some(value) });
        self.0.push(KeyValue { key: key.to_owned(), value, ..KeyValue::default() });
    }
}
