//! Conditions in Cilium's words, as a rule of `L7NetworkPolicy` says them, with a loss for what it says otherwise.
//!
//! Only allows have conditions in Cilium's policies. Knows nothing of peers or ports.

use super::Told;
use super::language::Language;
use super::loss::LossKind::{Dropped, Narrowed, Widened};
use sluice_crd::{
    HeaderMatch, HeaderMatchType, HostMatch, HostMatchType, HttpRule, L7Rules, StringMatch, StringMatchType,
    TlsRules,
};
use sluice_policy::host::host as canonical;
use sluice_policy::path::Path;
use sluice_policy::{
    Conditions, HeaderTest, HostMatch as Host, HttpMatch, MethodMatch, NameMatch, PathMatch, Regex,
};
use std::sync::Arc;

/// The methods of RFC 9110 §9 and RFC 5789 but CONNECT, which a regular expression never means here: what stands for an
/// expression that matches methods without end.
const METHODS: [&str; 8] = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

/// `rules` of these conditions. `None`: nothing of them can be said, and that is told.
pub(super) fn rules(conditions: &Conditions, path: &str, told: &mut Told<'_>) -> Option<L7Rules> {
    let path = format!("{path}.rules");
    let numbered = conditions.http.iter().enumerate();
    let http: Vec<HttpRule> =
        numbered.filter_map(|(at, item)| http(item, &format!("{path}.http[{at}]"), told)).collect();
    if !conditions.grpc.is_empty() {
        told.tell(Dropped, &path, "calls of gRPC are not carried over", "write them under rules.grpc");
    }
    let names: Vec<String> = conditions.tls.iter().map(|name| server_name(name, &path, told)).collect();
    let tls = (!names.is_empty()).then_some(TlsRules { server_names: names });
    let http = (!http.is_empty()).then_some(http);
    (http.is_some() || tls.is_some()).then_some(L7Rules { http, grpc: None, tls })
}

fn server_name(name: &NameMatch, path: &str, told: &mut Told<'_>) -> String {
    if let NameMatch::Label(suffix) = name {
        let reason = format!("`*.{suffix}` is one label in Cilium and any number of them here");
        told.tell(Widened, path, reason, "name the servers one by one if it must be one label");
    }
    match name {
        NameMatch::Exact(name) => name.to_string(),
        NameMatch::Under(suffix) | NameMatch::Label(suffix) => format!("*.{suffix}"),
    }
}

/// One alternative. `None`: it can never match, or cannot be said; told.
fn http(item: &HttpMatch, at: &str, told: &mut Told<'_>) -> Option<HttpRule> {
    let methods = methods(&item.methods, &format!("{at}.method"), told)?;
    let path = match &item.path {
        Some(path) => Some(path_match(path, &format!("{at}.path"), told)?),
        None => None,
    };
    let hosts = hosts(&item.hosts, &format!("{at}.host"), told)?;
    let mut headers = Vec::new();
    for header in &item.headers {
        if &*header.name == "host" || header.name.starts_with(':') {
            let reason = format!("`{}` is no header: the alternative is left out", header.name);
            told.tell(Dropped, &format!("{at}.headers"), reason, "say it under methods, path or hosts");
            return None;
        }
        headers.push(field(&header.name, &header.test));
    }
    let query: Vec<HeaderMatch> = item.query.iter().map(|query| field(&query.name, &query.test)).collect();
    let upgrades: Vec<String> = item.upgrades.iter().map(ToString::to_string).collect();
    Some(HttpRule {
        methods,
        path,
        hosts,
        headers: (!headers.is_empty()).then_some(headers),
        query_params: (!query.is_empty()).then_some(query),
        upgrades: (!upgrades.is_empty()).then_some(upgrades),
    })
}

fn field(name: &str, test: &HeaderTest) -> HeaderMatch {
    let (kind, value) = match test {
        HeaderTest::Exact(value) => (HeaderMatchType::Exact, Some(value.to_string())),
        HeaderTest::Regex(regex) => (HeaderMatchType::RegularExpression, Some(regex.source().to_owned())),
        HeaderTest::Present => (HeaderMatchType::Present, None),
        HeaderTest::Absent => (HeaderMatchType::Absent, None),
    };
    HeaderMatch { name: name.to_owned(), kind, value }
}

/// The methods by name. `None`: no method is meant. `Some(None)`: any.
#[allow(clippy::option_option, reason = "any method is not the same as none")]
fn methods(given: &[MethodMatch], at: &str, told: &mut Told<'_>) -> Option<Option<Vec<String>>> {
    if given.is_empty() {
        return Some(None);
    }
    let mut out: Vec<String> = Vec::new();
    for method in given {
        match method {
            MethodMatch::Exact(method) => out.push(method.to_string()),
            MethodMatch::Regex(regex) => {
                let language = Language::new(regex.source());
                if language.is_everything() {
                    return Some(None);
                }
                out.extend(by_name(regex, &language, at, told));
            }
        }
    }
    // In the order written, each once.
    let mut seen = std::collections::HashSet::new();
    out.retain(|method| seen.insert(method.clone()));
    if out.is_empty() {
        told.tell(
            Dropped,
            at,
            "no method matches this: the alternative is left out",
            "write a method, as GET",
        );
        return None;
    }
    Some(Some(out))
}

/// The methods that an expression matches. CONNECT is meant where it stands alone, never by an expression.
fn by_name(regex: &Regex, language: &Language, at: &str, told: &mut Told<'_>) -> Vec<String> {
    if let Some(texts) = language.texts() {
        return texts.into_iter().filter(|text| is_token(text) && text != "CONNECT").collect();
    }
    let source = regex.source();
    let reason = format!("methods go by name: `{source}` becomes those of RFC 9110 and PATCH that match it");
    told.tell(Narrowed, at, reason, "add the others that you use");
    let matched = METHODS.iter().filter(|method| regex.is_match(method.as_bytes()));
    matched.map(ToString::to_string).collect()
}

/// A token by RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// The path. In Cilium the expression sees the query, here it does not.
fn path_match(path: &PathMatch, at: &str, told: &mut Told<'_>) -> Option<StringMatch> {
    let of = |kind, value: &str| Some(StringMatch { kind, value: value.to_owned() });
    let regex = match path {
        PathMatch::Exact(value) => return of(StringMatchType::Exact, value),
        PathMatch::Prefix(value) if value.is_empty() => return of(StringMatchType::PathPrefix, "/"),
        PathMatch::Prefix(value) => return of(StringMatchType::PathPrefix, value),
        PathMatch::Regex(regex) => return of(StringMatchType::RegularExpression, regex.source()),
        PathMatch::Target(regex) => regex,
    };
    let language = Language::new(regex.source());
    if language.must_have('?') {
        let reason = "this matches a query, which is no part of the path here: the alternative is left out";
        told.tell(Dropped, at, reason, "write the path, and the query under queryParams");
        return None;
    }
    if !language.ends_before('?') && !language.is_everything() {
        if language.may_have(|c| c == '?') {
            let reason = "in Cilium this can also match by what is in the query; here it sees the path alone";
            told.tell(Narrowed, at, reason, "say what the query must be under queryParams");
        }
        let reason = "in Cilium this refuses a path that is followed by a query; here the query is no part of the path, and any is let through";
        told.tell(Widened, at, reason, "nothing, unless a query must be refused");
    }
    match language.text().filter(|text| Path::new(text).strict() == Some(text)) {
        Some(text) => of(StringMatchType::Exact, &text),
        None => of(StringMatchType::RegularExpression, regex.source()),
    }
}

/// The hosts. `None`: none can be meant. `Some(None)`: any. In Cilium the expression sees the port and the case.
#[allow(clippy::option_option, reason = "any host is not the same as none")]
fn hosts(given: &[Host], at: &str, told: &mut Told<'_>) -> Option<Option<Vec<HostMatch>>> {
    if given.is_empty() {
        return Some(None);
    }
    let mut out = Vec::new();
    let regex = |source: String| HostMatch { kind: HostMatchType::RegularExpression, value: source };
    for host in given {
        match host {
            Host::Name(NameMatch::Exact(name)) => {
                out.push(HostMatch { kind: HostMatchType::Exact, value: name.to_string() });
            }
            Host::Name(NameMatch::Under(suffix)) => out.push(regex(format!(r".+\.{}", escaped(suffix)))),
            Host::Name(NameMatch::Label(suffix)) => out.push(regex(format!(r"[^.]+\.{}", escaped(suffix)))),
            Host::Regex(given) => out.push(regex(given.source().to_owned())),
            Host::Authority(given) => authority(given, at, &mut out, told),
        }
    }
    if out.is_empty() {
        told.tell(Dropped, at, "no host matches this: the alternative is left out", "write a host name");
        return None;
    }
    Some(Some(out))
}

fn authority(regex: &Regex, at: &str, out: &mut Vec<HostMatch>, told: &mut Told<'_>) {
    let of = |kind, value: &str| HostMatch { kind, value: value.to_owned() };
    let language = Language::new(regex.source());
    if language.is_everything() {
        out.push(of(HostMatchType::RegularExpression, regex.source()));
        return;
    }
    let widened = "in Cilium this sees the host as sent; here hosts are compared in lower case, without port and trailing dot, so that any of these is let through";
    told.tell(Widened, at, widened, "nothing, unless the port or the spelling must decide");
    if let Some(texts) = language.texts() {
        let mut hosts: Vec<String> =
            texts.iter().filter_map(|text| Some(canonical(text)?.into_owned())).collect();
        hosts.sort_unstable();
        hosts.dedup();
        out.extend(hosts.iter().map(|host| of(HostMatchType::Exact, host)));
        return;
    }
    if language.may_have(|c| c == ':' || c.is_ascii_uppercase()) || language.may_end('.') {
        let narrowed = "this can match a port, upper case or a trailing dot, which is cut off before it is compared here";
        told.tell(Narrowed, at, narrowed, "write the expression for the host alone, in lower case");
    }
    out.push(of(HostMatchType::RegularExpression, regex.source()));
}

fn escaped(name: &Arc<str>) -> String {
    regex_syntax::escape(name)
}
