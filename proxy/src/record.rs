//! The flow record: what happened to one request, tunnel or refused connection, with its verdict.
//!
//! A fixed struct. The worker writes its bytes without making one ([`draft`](crate::draft)); the agent reads them, and
//! fills one of what the kernel decides. Knows nothing of who reads it; no verdict depends on it.

use crate::limits::RECORD_VALUE_BYTES;
use sluice_policy::{AuditFinding, NearestMiss, Policy, Verdict, Workload};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// One record. The numbers are its format between worker and agent, which are always the same build.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    /// When it began, nanoseconds since 1970.
    #[prost(fixed64, tag = "1")]
    pub start_unix_ns: u64,
    /// When it ended.
    #[prost(fixed64, tag = "2")]
    pub end_unix_ns: u64,
    /// The client.
    #[prost(message, required, tag = "3")]
    pub source: End,
    /// The original destination; of a Service, the backend that was chosen, or that denies.
    #[prost(message, required, tag = "4")]
    pub destination: End,
    /// `http/1.1`, `http/2` or `tcp`; of what the kernel decides `tcp`, `udp`, `sctp`, `icmp`, `icmpv6` or the number.
    #[prost(string, tag = "5")]
    pub protocol: String,
    /// The method; empty for a connection.
    #[prost(string, tag = "6")]
    pub method: String,
    /// The path without the query.
    #[prost(string, tag = "7")]
    pub path: String,
    /// `Host` or `:authority`.
    #[prost(string, tag = "8")]
    pub host: String,
    /// The HTTP status that the client got; 0 for none.
    #[prost(uint32, tag = "9")]
    pub status: u32,
    /// The gRPC service, if the request is gRPC.
    #[prost(string, tag = "10")]
    pub grpc_service: String,
    /// The gRPC method.
    #[prost(string, tag = "11")]
    pub grpc_method: String,
    /// The gRPC status that the client got.
    #[prost(uint32, optional, tag = "12")]
    pub grpc_status: Option<u32>,
    /// `allow`, `deny` or `audit`.
    #[prost(string, tag = "13")]
    pub verdict: String,
    /// The reason's token.
    #[prost(string, tag = "14")]
    pub reason: String,
    /// The policy that decided, as `Kind/namespace/name`.
    #[prost(string, tag = "15")]
    pub policy: String,
    /// Its rule.
    #[prost(string, tag = "16")]
    pub rule: String,
    /// What came nearest to allowing, and what it failed on.
    #[prost(string, tag = "17")]
    pub nearest_miss: String,
    /// What audited policies would have denied.
    #[prost(message, repeated, tag = "18")]
    pub would_deny: Vec<WouldDeny>,
    /// Enforcing denied, and the audited policies would have allowed.
    #[prost(bool, tag = "19")]
    pub would_allow: bool,
    /// 16 bytes; empty where no span is recorded.
    #[prost(bytes = "vec", tag = "20")]
    pub trace_id: Vec<u8>,
    /// 8 bytes.
    #[prost(bytes = "vec", tag = "21")]
    pub span_id: Vec<u8>,
    /// 8 bytes; empty for a root span.
    #[prost(bytes = "vec", tag = "22")]
    pub parent_span_id: Vec<u8>,
    /// The W3C flags.
    #[prost(uint32, tag = "23")]
    pub trace_flags: u32,
    /// The client's `tracestate`, as it came.
    #[prost(string, tag = "24")]
    pub trace_state: String,
    /// Body or tunnel bytes from the client.
    #[prost(uint64, tag = "25")]
    pub bytes_up: u64,
    /// Body or tunnel bytes to the client.
    #[prost(uint64, tag = "26")]
    pub bytes_down: u64,
    /// What went wrong, in a word; empty if nothing did.
    #[prost(string, tag = "27")]
    pub error: String,
    /// The destination is an endpoint of this node: judged at ingress as well.
    #[prost(bool, tag = "28")]
    pub at_ingress: bool,
    /// The generation that judged.
    #[prost(uint64, tag = "29")]
    pub generation: u64,
    /// The Service that was asked for, if the original destination was one's address.
    #[prost(message, optional, tag = "30")]
    pub service: Option<Service>,
    /// Of what the kernel decides: which end decided, `ingress` or `egress`. Else empty.
    #[prost(string, tag = "31")]
    pub direction: String,
}

/// A Service that a flow went through.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Service {
    /// Its namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The address of it that the client connected to.
    #[prost(string, tag = "3")]
    pub ip: String,
    /// The Service's port.
    #[prost(uint32, tag = "4")]
    pub port: u32,
}

/// One end of a flow.
#[derive(Clone, PartialEq, prost::Message)]
pub struct End {
    /// The address.
    #[prost(string, tag = "1")]
    pub ip: String,
    /// The port.
    #[prost(uint32, tag = "2")]
    pub port: u32,
    /// The pod's namespace; empty where the address is no pod's.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// The pod's name.
    #[prost(string, tag = "4")]
    pub pod: String,
    /// The pod's UID.
    #[prost(string, tag = "5")]
    pub uid: String,
}

/// What an audited policy would have denied.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WouldDeny {
    /// The policy.
    #[prost(string, tag = "1")]
    pub policy: String,
    /// Its rule.
    #[prost(string, tag = "2")]
    pub rule: String,
    /// The reason's token.
    #[prost(string, tag = "3")]
    pub reason: String,
    /// The nearest miss it would report.
    #[prost(string, tag = "4")]
    pub nearest_miss: String,
    /// Only all audited policies promoted together would deny.
    #[prost(bool, tag = "5")]
    pub together: bool,
}

/// Nanoseconds since 1970.
#[must_use]
pub fn now_unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The value, cut to what a record may carry.
#[must_use]
pub fn bounded_str(value: &str) -> &str {
    let mut end = value.len().min(RECORD_VALUE_BYTES);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    &value[..end]
}

fn bounded(value: &str) -> String {
    bounded_str(value).to_owned()
}

impl Record {
    /// Writes the verdict down.
    pub fn judged(&mut self, verdict: &Verdict) {
        let deciding = verdict.deciding();
        verdict.outcome().as_str().clone_into(&mut self.verdict);
        deciding.reason.as_str().clone_into(&mut self.reason);
        self.policy = policy_name(deciding.policy.as_deref());
        self.rule = deciding.rule.as_deref().unwrap_or_default().to_owned();
        self.nearest_miss = miss_text(deciding.nearest_miss.as_ref());
        self.would_allow = deciding.audit.would_allow;
        self.would_deny.clear();
        for side in [&verdict.egress, &verdict.ingress] {
            self.would_deny.extend(side.audit.would_deny.iter().map(|finding| would_deny(finding, false)));
            // Alone they would pass, together they would not: said apart, else it is the same news twice.
            if side.audit.would_deny.is_empty() {
                self.would_deny
                    .extend(side.audit.together_deny.iter().map(|finding| would_deny(finding, true)));
            }
        }
    }

    /// The record as one line of JSON.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let end = |end: &End| {
            serde_json::json!({
                "ip": end.ip, "port": end.port, "namespace": end.namespace, "pod": end.pod,
            })
        };
        let service = self.service.as_ref().map(|service| {
            serde_json::json!({
                "namespace": service.namespace, "name": service.name, "ip": service.ip, "port": service.port,
            })
        });
        let would_deny: Vec<_> = self.would_deny.iter().map(WouldDeny::to_json).collect();
        serde_json::json!({
            "startUnixNs": self.start_unix_ns,
            "endUnixNs": self.end_unix_ns,
            "source": end(&self.source),
            "destination": end(&self.destination),
            "service": service,
            "protocol": self.protocol,
            "method": self.method,
            "path": self.path,
            "host": self.host,
            "status": self.status,
            "grpcService": self.grpc_service,
            "grpcMethod": self.grpc_method,
            "grpcStatus": self.grpc_status,
            "verdict": self.verdict,
            "reason": self.reason,
            "policy": self.policy,
            "rule": self.rule,
            "nearestMiss": self.nearest_miss,
            "wouldDeny": would_deny,
            "wouldAllow": self.would_allow,
            "traceId": hex(&self.trace_id),
            "spanId": hex(&self.span_id),
            "bytesUp": self.bytes_up,
            "bytesDown": self.bytes_down,
            "error": self.error,
            "generation": self.generation,
            "direction": self.direction,
        })
    }
}

impl End {
    /// One end, by the name of who has its address.
    #[must_use]
    pub fn new(address: SocketAddr, workload: Option<&Workload>) -> Self {
        let name = |part: fn(&Workload) -> &Arc<str>| {
            workload.map_or_else(String::new, |workload| part(workload).to_string())
        };
        Self {
            ip: address.ip().to_string(),
            port: u32::from(address.port()),
            namespace: name(|workload| &workload.namespace),
            pod: name(|workload| &workload.pod),
            uid: name(|workload| &workload.uid),
        }
    }
}

impl WouldDeny {
    fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "policy": self.policy, "rule": self.rule, "reason": self.reason,
            "nearestMiss": self.nearest_miss, "together": self.together,
        })
    }
}

pub(crate) fn would_deny(finding: &AuditFinding, together: bool) -> WouldDeny {
    WouldDeny {
        policy: policy_name(finding.policy.as_deref()),
        rule: finding.rule.as_deref().unwrap_or_default().to_owned(),
        reason: finding.reason.as_str().to_owned(),
        nearest_miss: miss_text(finding.nearest_miss.as_ref()),
        together,
    }
}

fn policy_name(policy: Option<&Policy>) -> String {
    policy.map_or_else(String::new, |policy| policy.origin.to_string())
}

pub(crate) fn miss_text(miss: Option<&NearestMiss>) -> String {
    // A miss quotes what was sent: bounded like any other value.
    miss.map_or_else(String::new, |miss| bounded(&miss.to_string()))
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
