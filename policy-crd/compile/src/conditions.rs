//! `rules` of a rule into conditions on a request.
//!
//! Knows nothing of peers or ports. Says apart what is whole and what lost a limit, for a deny may lose one and
//! an allow may not.

use crate::report::Report;
use crate::{hosts, methods, values};
use sluice_crd::{
    GrpcProtocol, GrpcRule, HeaderMatch as HeaderGiven, HttpRule, Part, RuleObject, StringMatch,
    StringMatchType,
};
use sluice_policy::{Conditions, GrpcMatch, HeaderMatch, HttpMatch, PathMatch};
use std::sync::Arc;

/// Conditions, lowered.
pub(crate) enum Lowered {
    /// The rule has none.
    None,
    /// All of them.
    Whole(Arc<Conditions>),
    /// Some limit was left out: they match more than was written.
    Widened(Arc<Conditions>),
    /// An alternative could not be read: nobody knows what they match.
    Bad,
}

impl Lowered {
    /// For an allow: `Some(None)` without conditions, `None` where anything is in doubt.
    #[allow(clippy::option_option, reason = "a rule without conditions is not a rule in doubt")]
    pub(crate) fn whole(self) -> Option<Option<Arc<Conditions>>> {
        match self {
            Self::None => Some(None),
            Self::Whole(conditions) => Some(Some(conditions)),
            Self::Widened(_) | Self::Bad => None,
        }
    }

    /// For a deny: what is left of them; `None` where nothing is, which is no condition at all.
    pub(crate) fn widened(self) -> Option<Arc<Conditions>> {
        match self {
            Self::None | Self::Bad => None,
            Self::Whole(conditions) | Self::Widened(conditions) => Some(conditions),
        }
    }
}

/// What became of one alternative or one limit.
struct Doubt {
    /// A limit was left out.
    widened: bool,
    /// An alternative was.
    bad: bool,
}

/// Lowers `rules`. `grants`: of an allow or an Accept.
pub(crate) fn lower(rule: &RuleObject, grants: bool, report: &mut Report<'_>) -> Lowered {
    let path = format!("{}.rules", rule.path);
    let mut doubt = Doubt { widened: false, bad: false };
    let rules = match &rule.rules {
        Part::Absent => return Lowered::None,
        Part::Bad => return Lowered::Bad,
        Part::Flawed(rules) => {
            // An unknown kind of alternative: nobody knows what it matches.
            doubt.bad = true;
            rules
        }
        Part::Whole(rules) => rules,
    };
    if rules.http.is_absent() && rules.grpc.is_absent() && rules.tls.is_absent() && !doubt.bad {
        let reason = "rules without http, grpc or tls";
        report.error(&path, reason, "remove `rules`, or write what must be said");
        return Lowered::Bad;
    }
    let mut conditions = Conditions::default();
    each(&rules.http, &format!("{path}.http"), &mut doubt, report, |item, path, doubt, report| {
        conditions.http.push(http(item, grants, path, doubt, report));
    });
    each(&rules.grpc, &format!("{path}.grpc"), &mut doubt, report, |item, path, doubt, report| {
        conditions.grpc.extend(grpc(item, path, doubt, report));
    });
    match &rules.tls {
        Part::Absent => {}
        Part::Bad | Part::Flawed(_) => doubt.bad = true,
        Part::Whole(tls) => {
            match hosts::server_names(&tls.server_names, &format!("{path}.tls.serverNames"), report) {
                Some(names) => conditions.tls = names,
                None => doubt.bad = true,
            }
        }
    }
    match doubt {
        Doubt { bad: true, .. } => Lowered::Bad,
        Doubt { widened: true, .. } => Lowered::Widened(Arc::new(conditions)),
        Doubt { .. } => Lowered::Whole(Arc::new(conditions)),
    }
}

fn each<T>(
    list: &Part<Vec<Part<T>>>,
    path: &str,
    doubt: &mut Doubt,
    report: &mut Report<'_>,
    mut lower: impl FnMut(&T, &str, &mut Doubt, &mut Report<'_>),
) {
    let items = match list {
        Part::Absent => return,
        Part::Bad | Part::Flawed(_) => {
            doubt.bad = true;
            return;
        }
        Part::Whole(items) => items,
    };
    if items.is_empty() {
        report.error(path, "an empty list matches nothing", "remove it, or write what must be said");
        doubt.bad = true;
    }
    for (index, item) in items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match item {
            Part::Whole(item) => lower(item, &path, doubt, report),
            Part::Flawed(item) => {
                doubt.widened = true;
                lower(item, &path, doubt, report);
            }
            Part::Absent | Part::Bad => doubt.bad = true,
        }
    }
}

fn http(item: &HttpRule, grants: bool, path: &str, doubt: &mut Doubt, report: &mut Report<'_>) -> HttpMatch {
    let at = |field: &str| format!("{path}.{field}");
    let connect = methods::is_plain_connect(item, grants, path, report);
    let methods = match item.methods.as_deref() {
        Some(given) => methods::methods(given, &at("methods"), report),
        None => Some(Vec::new()),
    };
    let wanted = match &item.path {
        Some(given) => path_condition(given, &at("path"), report).map(Some),
        None => Some(None),
    };
    let hosts = match item.hosts.as_deref() {
        Some(given) => hosts::hosts(given, &at("hosts"), report),
        None => Some(Vec::new()),
    };
    let upgrades = methods::upgrades(item, path, report);
    doubt.widened |=
        !connect || methods.is_none() || wanted.is_none() || hosts.is_none() || upgrades.is_none();
    let headers = all_of(item.headers.as_deref(), &at("headers"), doubt, report, header);
    let query = all_of(item.query_params.as_deref(), &at("queryParams"), doubt, report, hosts::param);
    let named = methods.unwrap_or_default();
    HttpMatch {
        methods: named.iter().map(|method| (&**method).into()).collect(),
        // Of a deny that names CONNECT beside these nobody knows what they were to limit.
        path: wanted.flatten().filter(|_| connect),
        query: if connect { query } else { Vec::new() },
        upgrades: upgrades.filter(|_| connect).unwrap_or_default(),
        hosts: hosts.unwrap_or_default(),
        headers,
    }
}

/// Lowers conditions that must all hold: one in doubt is left out, which widens the alternative.
fn all_of<T>(
    given: Option<&[HeaderGiven]>,
    path: &str,
    doubt: &mut Doubt,
    report: &mut Report<'_>,
    mut lower: impl FnMut(&HeaderGiven, &str, &mut Report<'_>) -> Option<T>,
) -> Vec<T> {
    let given = given.unwrap_or_default();
    let mut out = Vec::with_capacity(given.len());
    for (index, given) in given.iter().enumerate() {
        match lower(given, &format!("{path}[{index}]"), report) {
            Some(condition) => out.push(condition),
            None => doubt.widened = true,
        }
    }
    out
}

fn path_condition(given: &StringMatch, path: &str, report: &mut Report<'_>) -> Option<PathMatch> {
    let at = format!("{path}.value");
    let value = given.value.as_str();
    if given.kind == StringMatchType::RegularExpression {
        return values::regex(value, &at, report).map(PathMatch::Regex);
    }
    let any = given.kind == StringMatchType::Exact && value == "*";
    if !value.starts_with('/') && !any {
        report.error(
            &at,
            format!("\"{}\" does not start with /", value.escape_debug()),
            "write the whole path",
        );
        return None;
    }
    if value.contains(['?', '#']) {
        let reason = "the query is no part of the path";
        report.error(&at, reason, "end the path before it");
        return None;
    }
    if sluice_policy::path::Path::new(value).strict().is_none() {
        let reason = format!(
            "servers read \"{}\" in different ways, so that no allow matches it",
            value.escape_debug()
        );
        report.error(&at, reason, "write it without //, ; escaped slashes and dot segments");
        return None;
    }
    Some(match given.kind {
        StringMatchType::PathPrefix => PathMatch::prefix(value),
        StringMatchType::Exact | StringMatchType::RegularExpression => PathMatch::exact(value),
    })
}

/// Where that is written which a header's name does not say, if it is one of those: HTTP/1 has the host in a header
/// and HTTP/2 in a pseudo-header, and a condition must mean the same in both.
pub(crate) fn not_a_header(name: &str) -> Option<&'static str> {
    if name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority") {
        return Some("write it under `hosts`");
    }
    name.starts_with(':').then_some("write it under `methods` or `path`")
}

fn header(given: &HeaderGiven, path: &str, report: &mut Report<'_>) -> Option<HeaderMatch> {
    if let Some(remedy) = not_a_header(&given.name) {
        let name = given.name.escape_debug();
        let reason = format!("\"{name}\" is not the same header in HTTP/1 and HTTP/2");
        report.error(&format!("{path}.name"), reason, remedy);
        return None;
    }
    if !methods::is_token(&given.name) {
        let reason = format!("\"{}\" is no header name", given.name.escape_debug());
        report.error(&format!("{path}.name"), reason, "write one, as x-tenant");
        return None;
    }
    let test = values::test(given, path, report)?;
    Some(HeaderMatch { name: given.name.to_ascii_lowercase().into(), test })
}

fn grpc(item: &GrpcRule, path: &str, doubt: &mut Doubt, report: &mut Report<'_>) -> Option<GrpcMatch> {
    let word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    if !word(&item.service) {
        let reason = format!("\"{}\" is no gRPC service", item.service.escape_debug());
        report.error(&format!("{path}.service"), reason, "write it with its package, as shop.v1.Cart");
        doubt.bad = true;
        return None;
    }
    let mut methods = Vec::new();
    if let Some(given) = &item.methods {
        if !given.is_empty() && given.iter().all(|method| word(method)) {
            methods = given.iter().map(|method| method.as_str().into()).collect();
        } else {
            let at = format!("{path}.methods");
            report.error(&at, "no list of method names", "write them as GetCart; remove it to mean all");
            doubt.widened = true;
        }
    }
    let protocols = match &item.protocols {
        None => vec![sluice_policy::GrpcProtocol::Grpc],
        Some(given) if given.is_empty() => {
            let reason = "an empty list names no protocol";
            report.error(&format!("{path}.protocols"), reason, "remove the list to mean GRPC");
            // A deny holds whatever the protocol; an allow is not granted.
            doubt.widened = true;
            vec![sluice_policy::GrpcProtocol::Grpc]
        }
        Some(given) => given.iter().map(|protocol| grpc_protocol(*protocol)).collect(),
    };
    Some(GrpcMatch { service: item.service.as_str().into(), methods, protocols })
}

const fn grpc_protocol(given: GrpcProtocol) -> sluice_policy::GrpcProtocol {
    match given {
        GrpcProtocol::GRPC => sluice_policy::GrpcProtocol::Grpc,
        GrpcProtocol::GRPCWeb => sluice_policy::GrpcProtocol::GrpcWeb,
        GrpcProtocol::Connect => sluice_policy::GrpcProtocol::Connect,
    }
}
