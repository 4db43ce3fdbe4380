//! Verdicts as people and programs read them.
//!
//! Knows nothing of how they were reached.

use crate::trace::{self, NoteView, Shown, StageView};
use serde::Serialize;
use sluice_compile::query::{Behind, Judged, Query, Said};
use sluice_policy::trace::{Trace, Traced};
use sluice_policy::verdict::AuditFinding;
use sluice_policy::{NearestMiss, SideVerdict, Verdict};
use std::fmt::Write as _;
use std::net::SocketAddr;

/// The whole answer.
#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    #[serde(flatten)]
    whole: Side,
    egress: Side,
    ingress: Side,
    /// Who stands behind a Service's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<ServiceView>,
}

/// A Service that was asked for by its address.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceView {
    name: String,
    /// The backend whose verdict this is.
    judged_as: Option<String>,
    backends: Vec<BackendView>,
}

#[derive(Debug, Serialize)]
struct BackendView {
    address: String,
    pod: Option<String>,
    verdict: &'static str,
    policy: Option<String>,
    rule: Option<String>,
}

impl ServiceView {
    fn new(behind: &Behind) -> Self {
        let backend = |judged: &Judged| {
            let side = judged.verdict.deciding();
            BackendView {
                address: address(judged),
                pod: pod(judged),
                verdict: side.outcome().as_str(),
                policy: side.origin().map(ToString::to_string),
                rule: side.rule.as_ref().map(ToString::to_string),
            }
        };
        Self {
            name: behind.service.clone(),
            judged_as: behind.deciding().map(address),
            backends: behind.backends.iter().map(backend).collect(),
        }
    }
}

fn address(judged: &Judged) -> String {
    SocketAddr::new(judged.backend.address, judged.backend.port).to_string()
}

fn pod(judged: &Judged) -> Option<String> {
    judged.workload.as_ref().map(|workload| format!("{}/{}", workload.namespace, workload.pod))
}

/// One side of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Side {
    verdict: &'static str,
    reason: &'static str,
    policy: Option<String>,
    rule: Option<String>,
    nearest_miss: Option<String>,
    nearest_miss_policy: Option<String>,
    nearest_miss_rule: Option<String>,
    /// What audited policies would deny, each alone and all together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    would_deny: Vec<Finding>,
    /// Enforcing denies, and would not with the audited policies.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    would_allow: bool,
    /// Who the other end was taken for, if a trace is asked for and anything is judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    /// What must be known of policies that select the pod, if a trace is asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<NoteView>,
    /// Stage by stage, if asked for; empty where nothing is judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<Vec<StageView>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    reason: &'static str,
    policy: Option<String>,
    rule: Option<String>,
    nearest_miss: Option<String>,
    /// Only all audited policies together deny.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    together: bool,
}

impl Answer {
    pub(crate) fn new(verdict: &Verdict) -> Self {
        Self {
            whole: Side::new(verdict.deciding()),
            egress: Side::new(&verdict.egress),
            ingress: Side::new(&verdict.ingress),
            service: None,
        }
    }

    /// With whom a Service's address stands for.
    pub(crate) fn behind(mut self, behind: Option<&Behind>) -> Self {
        self.service = behind.map(ServiceView::new);
        self
    }

    /// With what the walk saw.
    pub(crate) fn traced(query: &Query, traced: &Traced, shown: &Shown<'_>) -> Self {
        let mut answer = Self::new(&traced.verdict);
        answer.egress.notes = trace::notes(&query.from, shown);
        answer.ingress.notes = trace::notes(&query.to, shown);
        answer.egress.add(traced.egress.as_ref(), shown);
        answer.ingress.add(traced.ingress.as_ref(), shown);
        answer
    }
}

impl Side {
    fn new(side: &SideVerdict) -> Self {
        let miss = side.nearest_miss.as_ref();
        let mut would_deny: Vec<Finding> =
            side.audit.would_deny.iter().map(|f| Finding::new(f, false)).collect();
        if would_deny.is_empty() {
            would_deny.extend(side.audit.together_deny.iter().map(|f| Finding::new(f, true)));
        }
        Self {
            verdict: side.outcome().as_str(),
            reason: side.reason.as_str(),
            policy: side.origin().map(ToString::to_string),
            rule: side.rule.as_ref().map(ToString::to_string),
            nearest_miss: miss.map(ToString::to_string),
            nearest_miss_policy: miss.map(|miss| miss.policy.origin.to_string()),
            nearest_miss_rule: miss.map(|miss| miss.rule.to_string()),
            would_deny,
            would_allow: side.audit.would_allow,
            peer: None,
            notes: Vec::new(),
            trace: None,
        }
    }

    fn add(&mut self, trace: Option<&Trace>, shown: &Shown<'_>) {
        let view = trace.map(|trace| trace::view(trace, shown));
        let (peer, stages) = view.map(|view| (view.peer, view.stages)).unzip();
        self.peer = peer;
        self.trace = Some(stages.unwrap_or_default());
    }
}

impl Finding {
    fn new(finding: &AuditFinding, together: bool) -> Self {
        Self {
            reason: finding.reason.as_str(),
            policy: finding.policy.as_ref().map(|policy| policy.origin.to_string()),
            rule: finding.rule.as_ref().map(ToString::to_string),
            nearest_miss: finding.nearest_miss.as_ref().map(ToString::to_string),
            together,
        }
    }
}

/// Most backends that are shown to people.
const SHOWN_BACKENDS: usize = 16;

/// Who stands behind a Service's address, for people.
pub(crate) fn behind_text(behind: &Behind) -> String {
    let mut out = format!("  service  {}", behind.service);
    if behind.backends.is_empty() {
        out.push_str(": nobody stands behind this address and port\n");
        return out;
    }
    out.push('\n');
    for (at, judged) in behind.backends.iter().enumerate().take(SHOWN_BACKENDS) {
        let side = judged.verdict.deciding();
        let pod = pod(judged).unwrap_or_default();
        let mark = if behind.decides == Some(at) { "  (decides)" } else { "" };
        let _ = writeln!(out, "           {:<6} {} {pod}{mark}", side.outcome().as_str(), address(judged));
    }
    if let Some(more) = behind.backends.len().checked_sub(SHOWN_BACKENDS).filter(|more| *more > 0) {
        let _ = writeln!(out, "           and {more} more");
    }
    out
}

/// The answer for people.
pub(crate) fn text(query: &Query, verdict: &Verdict, judged_by_request: bool) -> String {
    let mut out = format!("{}  {} -> {}{}\n", verdict.outcome().as_str(), query.from, query.to, said(query));
    for (name, side) in [("egress", &verdict.egress), ("ingress", &verdict.ingress)] {
        let decided = match (side.origin(), &side.rule) {
            (Some(policy), Some(rule)) => format!("  {policy} rule {rule}"),
            (Some(policy), None) => format!("  {policy}"),
            (None, _) => String::new(),
        };
        let _ = writeln!(out, "  {name:<8} {:<6} {}{decided}", side.outcome().as_str(), side.reason.as_str());
        if let Some(miss) = &side.nearest_miss {
            let _ = writeln!(out, "           nearest miss: {}", miss_text(miss));
        }
        let together = side.audit.together_deny.iter().filter(|_| side.audit.would_deny.is_empty());
        for finding in side.audit.would_deny.iter().chain(together) {
            let _ = writeln!(out, "           would deny: {}", finding_text(finding));
        }
        if side.audit.would_allow {
            let _ = writeln!(out, "           would allow, were the audited policies enforced");
        }
    }
    if judged_by_request {
        out.push_str(
            "  The connection is let through; each request on it is judged: ask with --http, --grpc or --tls.\n",
        );
    }
    out
}

/// What the walk saw on both sides, for people.
pub(crate) fn trace_text(query: &Query, traced: &Traced, shown: &Shown<'_>) -> String {
    let Verdict { egress, ingress } = &traced.verdict;
    [("egress", &query.from, egress, &traced.egress), ("ingress", &query.to, ingress, &traced.ingress)]
        .map(|(direction, who, side, trace)| {
            let view = trace.as_ref().map(|trace| trace::view(trace, shown));
            format!("\n{}", trace::text(direction, who, side, view.as_ref(), &trace::notes(who, shown)))
        })
        .concat()
}

fn miss_text(miss: &NearestMiss) -> String {
    format!("{} rule {}: {miss}", miss.policy.origin, miss.rule)
}

fn finding_text(finding: &AuditFinding) -> String {
    let mut out = finding.reason.as_str().to_owned();
    if let Some(policy) = &finding.policy {
        let _ = write!(out, " by {}", policy.origin);
    }
    if let Some(rule) = &finding.rule {
        let _ = write!(out, " rule {rule}");
    }
    if let Some(miss) = &finding.nearest_miss {
        let _ = write!(out, " (nearest miss: {})", miss_text(miss));
    }
    out
}

fn said(query: &Query) -> String {
    use sluice_compile::query::Port;
    let port = match &query.port {
        _ if !query.protocol.has_ports() => format!(" {}", query.protocol),
        Port::Number(number) if query.to.contains("::") => format!(" port {number}/{}", query.protocol),
        Port::Number(number) => format!(":{number}/{}", query.protocol),
        Port::Named(name) => format!(":{name}/{}", query.protocol),
    };
    match &query.said {
        Said::Nothing => port,
        Said::Http { method, target, .. } => format!("{port}  {method} {target}"),
        Said::Tls { server_name: Some(name) } => format!("{port}  TLS to {name}"),
        Said::Tls { server_name: None } => format!("{port}  TLS without a readable server name"),
        Said::Grpc { service, method, .. } => format!("{port}  gRPC {service}/{method}"),
    }
}
