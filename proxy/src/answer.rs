//! The one module that words a refusal, for HTTP/1, HTTP/2 and gRPC.
//!
//! Knows nothing of connections: it gives bytes or header blocks. An answer names the kind of the reason; of a policy
//! it names what the policy that refused says in its `denyDetail`, and by default nothing.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use sluice_policy::{Decision, DenyDetail, Miss, NearestMiss, Policy, Reason, SideVerdict, Verdict};
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

/// RFC 9209.
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// Longest detail in an answer, in bytes: it stands in a header field of gRPC, and clients bound those.
const MAX_DETAIL: usize = 1024;

/// A denial and what is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The kind of the reason.
    pub reason: Reason,
    /// What the policy lets be told beyond it; empty for nothing. Printable ASCII.
    detail: String,
}

impl Denial {
    /// What a verdict comes to: of a denial for want of an allow, what the policy says that isolates.
    #[must_use]
    pub fn of(verdict: &Verdict) -> Self {
        let side = verdict.deciding();
        let detail = side.policy.as_ref().filter(|_| side.decision == Decision::Deny);
        Self { reason: side.reason, detail: detail.map_or_else(String::new, |by| detail_of(side, by)) }
    }
}

fn detail_of(side: &SideVerdict, policy: &Arc<Policy>) -> String {
    let asked = policy.on_deny.detail;
    let mut text = String::new();
    if asked >= DenyDetail::Rule {
        text = format!(" by {}", policy.origin);
        if let Some(rule) = &side.rule {
            let _ = write!(text, ", rule {rule}");
        }
    }
    // The rule that came nearest may be another policy's, which has a say of its own.
    let told = |near: &&NearestMiss| near.policy.on_deny.detail == DenyDetail::NearestMiss;
    if asked == DenyDetail::NearestMiss
        && let Some(near) = side.nearest_miss.as_ref().filter(told)
    {
        text.push_str("; nearest is ");
        if near.policy.origin != policy.origin {
            let _ = write!(text, "{}, ", near.policy.origin);
        }
        let _ = write!(text, "rule {}: {}", near.rule, without_values(&near.miss));
    }
    plain(&text)
}

/// A miss as a stranger may read it: a header or a parameter that is compared with a value is often a credential,
/// and nobody who has not sent it shall learn it.
fn without_values(miss: &Miss) -> String {
    match miss {
        Miss::Header { name, found, .. } => format!("header {name} is {found}"),
        Miss::Query { name, found, .. } => format!("query parameter {name} is {found}"),
        other => other.to_string(),
    }
}

/// Bounded, printable ASCII: a miss repeats bytes of the request.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(MAX_DETAIL));
    for c in text.chars() {
        let shown = if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
        if out.len() == MAX_DETAIL {
            out.push_str("...");
            break;
        }
        out.push(shown);
    }
    out
}

/// Why a request is not forwarded, or has no answer of the server's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The verdict.
    Denied(Denial),
    /// Not HTTP as everybody reads it.
    Malformed(&'static str),
    /// The target is too long.
    TargetTooLong,
    /// The head is too large.
    HeadTooLarge,
    /// The head did not come in time.
    HeadTimeout,
    /// The body stopped coming.
    BodyTimeout,
    /// The endpoint holds as many bytes as it may.
    Crowded,
    /// The server could not be reached, for such a reason.
    Unreachable(io::ErrorKind),
    /// The client has a connection to this server from every port that there is (`EADDRNOTAVAIL`).
    NoPort,
    /// The server had the whole request, and has not answered in time.
    Late,
    /// The server did not accept the connection in time.
    Timeout,
    /// The server's answer is no HTTP, or none came.
    BadAnswer(&'static str),
    /// The server takes no extended CONNECT.
    NoUpgrade,
}

/// gRPC status codes that a refusal uses.
const GRPC_PERMISSION_DENIED: u32 = 7;
const GRPC_UNIMPLEMENTED: u32 = 12;
const GRPC_INTERNAL: u32 = 13;
const GRPC_UNAVAILABLE: u32 = 14;

impl Refusal {
    /// The HTTP status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Denied(_) => StatusCode::FORBIDDEN,
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::HeadTimeout | Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Crowded | Self::Unreachable(_) | Self::NoPort => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout | Self::Late => StatusCode::GATEWAY_TIMEOUT,
            Self::BadAnswer(_) => StatusCode::BAD_GATEWAY,
            // RFC 9220 §3, of what a server does not support.
            Self::NoUpgrade => StatusCode::NOT_IMPLEMENTED,
        }
    }

    /// The gRPC status.
    #[must_use]
    pub const fn grpc_status(&self) -> u32 {
        match self {
            Self::Denied(_) => GRPC_PERMISSION_DENIED,
            Self::Crowded
            | Self::Unreachable(_)
            | Self::NoPort
            | Self::Timeout
            | Self::Late
            | Self::BadAnswer(_) => GRPC_UNAVAILABLE,
            Self::Malformed(_)
            | Self::TargetTooLong
            | Self::HeadTooLarge
            | Self::HeadTimeout
            | Self::BodyTimeout => GRPC_INTERNAL,
            Self::NoUpgrade => GRPC_UNIMPLEMENTED,
        }
    }

    /// The kind of the error, for records; empty for a denial, which is no error.
    #[must_use]
    pub const fn error(&self) -> &'static str {
        match self {
            Self::Denied(_) => "",
            Self::Malformed(_) => "malformed_request",
            Self::TargetTooLong => "target_too_long",
            Self::HeadTooLarge => "head_too_large",
            Self::HeadTimeout => "head_timeout",
            Self::BodyTimeout => "body_timeout",
            Self::Crowded => "endpoint_bytes",
            Self::Unreachable(_) => "unreachable",
            Self::NoPort => "no_ports",
            Self::Late => "answer_timeout",
            Self::Timeout => "timeout",
            Self::BadAnswer(_) => "bad_answer",
            Self::NoUpgrade => "no_extended_connect",
        }
    }

    /// What was wrong with the server, or on the way to it, as `Proxy-Status` has it (RFC 9209 §2.3); of anything else
    /// nothing.
    fn proxy_status(&self) -> Option<&'static str> {
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
        Some(match self {
            Self::Unreachable(ConnectionRefused) => "connection_refused",
            Self::Unreachable(HostUnreachable | NetworkUnreachable) => "destination_ip_unroutable",
            Self::Unreachable(_) => "destination_unavailable",
            Self::NoPort => "connection_limit_reached",
            Self::Timeout => "connection_timeout",
            Self::Late => "http_response_timeout",
            Self::BadAnswer("none came") => "connection_terminated",
            Self::BadAnswer(_) => "http_protocol_error",
            Self::NoUpgrade => "http_upgrade_failed",
            _ => return None,
        })
    }

    /// The field of an answer that says so, where it is to be `told`.
    fn told(&self, told: bool) -> Option<String> {
        let error = self.proxy_status().filter(|_| told)?;
        Some(format!("sluice; error={error}"))
    }

    /// One line for people.
    fn text(&self) -> String {
        match self {
            Self::Denied(Denial { reason, detail }) => format!("access denied: {}{detail}", reason.as_str()),
            Self::Malformed(what) => format!("bad request: {what}"),
            Self::TargetTooLong => "bad request: the target is too long".to_owned(),
            Self::HeadTooLarge => "bad request: the header section is too large".to_owned(),
            Self::HeadTimeout => "bad request: the header section did not come in time".to_owned(),
            Self::BodyTimeout => "bad request: the body did not come in time".to_owned(),
            Self::Crowded => "too much of the workload's traffic waits to be sent".to_owned(),
            Self::Unreachable(_) => "the server could not be reached".to_owned(),
            Self::NoPort => "every port to the server is in use".to_owned(),
            Self::Late => "the server did not answer in time".to_owned(),
            Self::Timeout => "the server did not accept the connection in time".to_owned(),
            Self::BadAnswer(what) => format!("bad answer of the server: {what}"),
            Self::NoUpgrade => "the server takes no extended CONNECT (RFC 8441)".to_owned(),
        }
    }

    /// The whole HTTP/1 answer. `to_head`: the request was HEAD, so the body is not sent. `told`: programs may read in a
    /// field what was wrong with the server.
    #[must_use]
    pub fn http1(&self, close: bool, to_head: bool, told: bool) -> Bytes {
        let status = self.status();
        let body = self.text() + "\n";
        let connection = if close { "connection: close\r\n" } else { "" };
        let told = self
            .told(told)
            .map_or_else(String::new, |value| format!("{}: {value}\r\n", PROXY_STATUS.as_str()));
        let head = format!(
            "HTTP/1.1 {} {}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n{told}{connection}\r\n",
            status.as_str(),
            status.canonical_reason().unwrap_or_default(),
            body.len(),
        );
        Bytes::from(if to_head { head } else { head + &body })
    }

    /// The HTTP/2 answer, and its body if it has one. gRPC gets trailers alone, under HTTP 200.
    #[must_use]
    pub fn http2(&self, grpc: bool, to_head: bool, told: bool) -> (Response<()>, Option<Bytes>) {
        let mut response = Response::new(());
        let headers = response.headers_mut();
        if let Some(value) = self.told(told).and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(PROXY_STATUS, value);
        }
        if grpc {
            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
            headers.extend(self.grpc_trailers());
            return (response, None);
        }
        let body = self.text() + "\n";
        headers.insert("content-type", HeaderValue::from_static("text/plain"));
        headers.insert("content-length", HeaderValue::from(body.len()));
        *response.status_mut() = self.status();
        (response, (!to_head).then(|| Bytes::from(body)))
    }

    /// The gRPC status as trailers: for a stream that is closed while it runs, too.
    #[must_use]
    pub fn grpc_trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::with_capacity(2);
        trailers.insert("grpc-status", HeaderValue::from(self.grpc_status()));
        // Of what "Status-Message" has encoded (gRPC over HTTP/2), our texts have the percent sign alone.
        if let Ok(message) = HeaderValue::from_str(&self.text().replace('%', "%25")) {
            trailers.insert("grpc-message", message);
        }
        trailers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_policy::{Audit, Kind, Mode, OnDeny, Origin, PolicyId};

    fn policy(name: &str, detail: DenyDetail) -> Arc<Policy> {
        let origin = Origin { kind: Kind::L7NetworkPolicy, namespace: "shop".into(), name: name.into() };
        let on_deny = OnDeny { detail, ..OnDeny::default() };
        Arc::new(Policy { id: PolicyId(0), origin, mode: Mode::Enforce, on_deny })
    }

    fn denied(by: DenyDetail, near: DenyDetail, miss: Miss) -> Verdict {
        let near = NearestMiss { policy: policy("near", near), rule: "frontend".into(), miss };
        let side = SideVerdict {
            decision: Decision::Deny,
            reason: Reason::DefaultDeny,
            policy: Some(policy("by", by)),
            rule: None,
            nearest_miss: Some(near),
            audit: Audit::default(),
        };
        Verdict { egress: SideVerdict::unjudged(), ingress: side }
    }

    #[test]
    fn each_policy_is_told_of_as_far_as_it_says_itself() {
        use DenyDetail::{NearestMiss, None, Rule};
        let by = " by L7NetworkPolicy/shop/by";
        let near = "; nearest is L7NetworkPolicy/shop/near, rule frontend: peer not selected";
        for (asked, other, expected) in [
            (None, NearestMiss, String::new()),
            (Rule, NearestMiss, by.to_owned()),
            (NearestMiss, None, by.to_owned()),
            (NearestMiss, Rule, by.to_owned()),
            (NearestMiss, NearestMiss, format!("{by}{near}")),
        ] {
            let denial = Denial::of(&denied(asked, other, Miss::Peer));
            assert_eq!(denial.detail, expected, "{asked:?} {other:?}");
        }
    }

    #[test]
    fn a_deny_rule_is_named() {
        let mut verdict = denied(DenyDetail::Rule, DenyDetail::None, Miss::Peer);
        verdict.ingress.rule = Some("no-admin".into());
        verdict.ingress.reason = Reason::DenyRule;
        let body = String::from_utf8_lossy(&Refusal::Denied(Denial::of(&verdict)).http1(false, false, true))
            .into_owned();
        assert!(
            body.ends_with("access denied: deny_rule by L7NetworkPolicy/shop/by, rule no-admin\n"),
            "{body}"
        );
    }

    #[test]
    fn what_a_header_is_compared_with_is_told_to_nobody() {
        let all = DenyDetail::NearestMiss;
        for miss in [
            Miss::Header { name: "x-key".into(), expected: "Exact s3cret".into(), found: "another value" },
            Miss::Query { name: "key".into(), expected: "Exact s3cret".into(), found: "another value" },
        ] {
            let detail = Denial::of(&denied(all, all, miss)).detail;
            assert!(detail.contains("key is another value") && !detail.contains("s3cret"), "{detail}");
        }
    }

    #[test]
    fn what_a_request_says_stays_one_short_line() {
        let all = DenyDetail::NearestMiss;
        let got = format!("/a\r\nset-cookie: a=b\u{1b}é{}", "x".repeat(100_000));
        let denial = Denial::of(&denied(all, all, Miss::AmbiguousPath { got: got.into() }));
        assert!(
            denial.detail.len() <= MAX_DETAIL + 3 && denial.detail.ends_with("..."),
            "{}",
            denial.detail.len()
        );
        assert!(denial.detail.bytes().all(|b| b.is_ascii_graphic() || b == b' '), "{}", denial.detail);
        let trailers = Refusal::Denied(denial).grpc_trailers();
        assert!(trailers.contains_key("grpc-message"), "{trailers:?}");
    }

    #[test]
    fn an_allow_tells_nothing() {
        let mut verdict = denied(DenyDetail::NearestMiss, DenyDetail::NearestMiss, Miss::Peer);
        verdict.ingress.decision = Decision::Allow;
        assert_eq!(Denial::of(&verdict).detail, "");
    }
}
