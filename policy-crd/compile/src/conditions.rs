//! `rules` of a rule into conditions on a request.
//!
//! Knows nothing of peers or ports. Says apart what is whole and what lost a limit, for a deny may lose one and
//! an allow may not.

use crate::hosts;
use crate::report::Report;
use sluice_crd::limits::{MAX_HEADERS, MAX_MATCHES, MAX_METHODS, MAX_PROTOCOLS, MAX_REGEXES, MAX_VALUE};
use sluice_crd::{
    Category, GrpcProtocol, GrpcRule, HeaderMatch as HeaderGiven, HeaderMatchType, HttpRule, Part,
    RuleObject, StringMatch, StringMatchType,
};
use sluice_policy::{Conditions, GrpcMatch, HeaderMatch, HeaderTest, HttpMatch, PathMatch, Regex};
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

/// Lowers `rules`.
pub(crate) fn lower(rule: &RuleObject, report: &mut Report<'_>) -> Lowered {
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
    if !rules.tls.is_absent() {
        report.not_built(&format!("{path}.tls"));
        doubt.bad = true;
    }
    if rules.http.is_absent() && rules.grpc.is_absent() && rules.tls.is_absent() && !doubt.bad {
        report.error(&path, "rules without http or grpc", "remove `rules`, or write what must be said");
        return Lowered::Bad;
    }
    let mut conditions = Conditions::default();
    each(&rules.http, &format!("{path}.http"), &mut doubt, report, |item, path, doubt, report| {
        conditions.http.push(http(item, path, doubt, report));
    });
    each(&rules.grpc, &format!("{path}.grpc"), &mut doubt, report, |item, path, doubt, report| {
        conditions.grpc.extend(grpc(item, path, doubt, report));
    });
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
    if exceeds(items.len(), MAX_MATCHES, path, report) {
        doubt.bad = true;
        return;
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

/// Whether a list is too long; the problem is told.
fn exceeds(len: usize, most: usize, path: &str, report: &mut Report<'_>) -> bool {
    if len > most {
        report.error(path, format!("{len} items, at most {most} are taken"), "write several rules");
    }
    len > most
}

/// Whether a text is too long; the problem is told.
pub(crate) fn too_long(text: &str, path: &str, report: &mut Report<'_>) -> bool {
    let len = text.len();
    if len > MAX_VALUE {
        report.error(path, format!("{len} bytes, at most {MAX_VALUE} are taken"), "write less");
    }
    len > MAX_VALUE
}

fn http(item: &HttpRule, path: &str, doubt: &mut Doubt, report: &mut Report<'_>) -> HttpMatch {
    if item.upgrades.is_some() {
        report.not_built(&format!("{path}.upgrades"));
        doubt.widened = true;
    }
    let methods = methods(item.methods.as_deref(), &format!("{path}.methods"), doubt, report);
    if methods.iter().any(|method| &**method == "CONNECT") {
        report.not_built(&format!("{path}.methods"));
        doubt.widened = true;
    }
    let path_match = item.path.as_ref().and_then(|given| {
        let lowered = path_condition(given, &format!("{path}.path"), report);
        doubt.widened |= lowered.is_none();
        lowered
    });
    let hosts = item.hosts.as_deref().and_then(|given| {
        let lowered = hosts::hosts(given, &format!("{path}.hosts"), report);
        doubt.widened |= lowered.is_none();
        lowered
    });
    let headers = all_of(item.headers.as_deref(), &format!("{path}.headers"), doubt, report, header);
    let query =
        all_of(item.query_params.as_deref(), &format!("{path}.queryParams"), doubt, report, hosts::param);
    HttpMatch {
        methods: methods.iter().map(|method| (&**method).into()).collect(),
        path: path_match,
        hosts: hosts.unwrap_or_default(),
        headers,
        query,
        upgrades: Vec::new(),
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
    if exceeds(given.len(), MAX_HEADERS, path, report) {
        doubt.widened = true;
        return Vec::new();
    }
    let mut out = Vec::with_capacity(given.len());
    for (index, given) in given.iter().enumerate() {
        match lower(given, &format!("{path}[{index}]"), report) {
            Some(condition) => out.push(condition),
            None => doubt.widened = true,
        }
    }
    out
}

/// A token by RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn methods(
    given: Option<&[String]>,
    path: &str,
    doubt: &mut Doubt,
    report: &mut Report<'_>,
) -> Vec<Arc<str>> {
    let Some(given) = given else { return Vec::new() };
    let mut sound = !given.is_empty() && !exceeds(given.len(), MAX_METHODS, path, report);
    if given.is_empty() {
        report.error(path, "an empty list names no method", "remove it to mean every method");
    }
    for (index, method) in given.iter().take(MAX_METHODS).enumerate() {
        let path = format!("{path}[{index}]");
        if too_long(method, &path, report) {
            sound = false;
        } else if !is_token(method) {
            report.error(&path, format!("\"{}\" is no method", method.escape_debug()), "write one, as GET");
            sound = false;
        } else if method.chars().any(|c| c.is_ascii_lowercase()) {
            let remedy = format!("did you mean `{}`?", method.to_ascii_uppercase());
            let reason = "methods are case-sensitive, and those in use are upper-case";
            report.warn_of(Category::MethodCase, &path, reason, remedy);
        }
    }
    doubt.widened |= !sound;
    // In doubt every method is meant: only a deny is left to read it.
    if sound { given.iter().map(|method| method.as_str().into()).collect() } else { Vec::new() }
}

fn path_condition(given: &StringMatch, path: &str, report: &mut Report<'_>) -> Option<PathMatch> {
    let at = format!("{path}.value");
    let value = given.value.as_str();
    if given.kind == StringMatchType::RegularExpression {
        return regex(value, &at, report).map(PathMatch::Regex);
    }
    if too_long(value, &at, report) {
        return None;
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

pub(crate) fn regex(value: &str, path: &str, report: &mut Report<'_>) -> Option<Regex> {
    report.regexes += 1;
    if report.regexes > MAX_REGEXES {
        let reason = format!("more than {MAX_REGEXES} regular expressions in one policy");
        report.error(path, reason, "write several policies, or Exact and PathPrefix");
        return None;
    }
    match Regex::new(value) {
        Ok(regex) => Some(regex),
        Err(reason) => {
            // The parser draws its message over several lines; what is wrong stands on the last.
            let reason = match (reason.split_once("regex parse error:"), reason.rsplit_once("error: ")) {
                (Some((head, _)), Some((_, what))) => format!("{head}{what}"),
                _ => reason.lines().map(str::trim).collect::<Vec<_>>().join(" "),
            };
            report.error(path, reason, "write it as RE2 does: no look-around, no back-references");
            None
        }
    }
}

/// Where that is written which a header's name does not say, if it is one of those: HTTP/1 has the host in a header
/// and HTTP/2 in a pseudo-header, and a condition must mean the same in both.
fn not_a_header(name: &str) -> Option<&'static str> {
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
    if !is_token(&given.name) {
        let reason = format!("\"{}\" is no header name", given.name.escape_debug());
        report.error(&format!("{path}.name"), reason, "write one, as x-tenant");
        return None;
    }
    let at = format!("{path}.value");
    let value = given.value.as_deref().unwrap_or_default();
    if too_long(&given.name, &format!("{path}.name"), report) || too_long(value, &at, report) {
        return None;
    }
    let test = match (given.kind, &given.value) {
        (HeaderMatchType::Exact, Some(value)) => HeaderTest::Exact(value.as_str().into()),
        (HeaderMatchType::RegularExpression, Some(value)) => HeaderTest::Regex(regex(value, &at, report)?),
        (HeaderMatchType::Present, None) => HeaderTest::Present,
        (HeaderMatchType::Absent, None) => HeaderTest::Absent,
        (HeaderMatchType::Present | HeaderMatchType::Absent, Some(_)) => {
            report.error(&at, "Present and Absent take no value", "remove it, or write type: Exact");
            return None;
        }
        (HeaderMatchType::Exact | HeaderMatchType::RegularExpression, None) => {
            report.error(&at, "there is no value to compare with", "write `value`, or type: Present");
            return None;
        }
    };
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
    if too_long(&item.service, &format!("{path}.service"), report) {
        doubt.bad = true;
        return None;
    }
    let mut methods = Vec::new();
    if let Some(given) = &item.methods {
        let at = format!("{path}.methods");
        let few = !exceeds(given.len(), MAX_METHODS, &at, report);
        let fits = |method: &String| word(method) && method.len() <= MAX_VALUE;
        let sound = few && !given.is_empty() && given.iter().all(fits);
        if sound {
            methods = given.iter().map(|method| method.as_str().into()).collect();
        } else {
            if few {
                report.error(&at, "no list of method names", "write them as GetCart; remove it to mean all");
            }
            doubt.widened = true;
        }
    }
    let protocols = match &item.protocols {
        None => vec![sluice_policy::GrpcProtocol::Grpc],
        Some(given) if given.is_empty() || given.len() > MAX_PROTOCOLS => {
            let reason = format!("{} protocols, from 1 to {MAX_PROTOCOLS} are taken", given.len());
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
