//! `rules` of an item of `toPorts` into conditions on a request.
//!
//! Path, method and host are regular expressions that match as a whole, the path with its query; a header is there,
//! or has a value. What would change the request instead of judging it is told. Knows nothing of peers or ports.

use crate::conditions::not_a_header;
use crate::methods::is_token;
use crate::report::Report;
use crate::values::regex;
use sluice_crd::limits::{MAX_FIELD_NAME, MAX_HEADERS, MAX_MATCHES, MAX_METHODS, MAX_VALUE};
use sluice_crd::{Category, CiliumHeaderMatch, CiliumHttpRule, CiliumL7Rules, CiliumPortRule, Part};
use sluice_policy::{HeaderMatch, HeaderTest, HostMatch, HttpMatch, MethodMatch, PathMatch};

/// What Cilium's proxy lets be upgraded; it has no field for it.
const UPGRADE: &str = "websocket";

/// Whether requests are limited here. To Cilium an empty list limits nothing.
pub(super) fn is_given(item: &CiliumPortRule) -> bool {
    match item.rules.value().map(|rules| &rules.http) {
        Some(Part::Flawed(items) | Part::Whole(items)) => !items.is_empty(),
        Some(Part::Bad) => true,
        Some(Part::Absent) | None => false,
    }
}

/// Lowers `rules`: alternatives, none where requests are not limited. `None`: in doubt, and told.
pub(super) fn lower(item: &CiliumPortRule, report: &mut Report<'_>) -> Option<Vec<HttpMatch>> {
    let path = format!("{}.rules", item.path);
    let rules = match &item.rules {
        Part::Absent => return Some(Vec::new()),
        Part::Bad | Part::Flawed(_) => return None,
        Part::Whole(rules) => rules,
    };
    let other = others(rules, &path, report);
    let at = format!("{path}.http");
    let items = match &rules.http {
        Part::Absent => return other.then(Vec::new),
        Part::Bad | Part::Flawed(_) => return None,
        Part::Whole(items) => items,
    };
    if items.is_empty() {
        report.warn(&at, "an empty list limits no request", "remove it, or write what must be said");
    }
    if exceeds(items.len(), MAX_MATCHES, &at, report) {
        return None;
    }
    let mut out = Some(Vec::with_capacity(items.len()));
    for (index, item) in items.iter().enumerate() {
        let lowered = match item {
            Part::Whole(item) => alternative(item, &format!("{at}[{index}]"), report),
            Part::Absent | Part::Bad | Part::Flawed(_) => None,
        };
        match (lowered, &mut out) {
            (Some(lowered), Some(out)) => out.push(lowered),
            // One doubtful alternative makes the rule doubtful; the others are still looked through for problems.
            _ => out = None,
        }
    }
    out.filter(|_| other)
}

/// Whether no other protocol is asked for. Empty lists ask for nothing.
fn others(rules: &CiliumL7Rules, path: &str, report: &mut Report<'_>) -> bool {
    let CiliumL7Rules { http: _, dns, kafka, l7proto, l7 } = rules;
    let given = [
        ("dns", "DNS is not read here", is_written(dns)),
        ("kafka", "Kafka is not read here", is_written(kafka)),
        ("l7proto", "protocols of plugins are not read here", !l7proto.is_absent()),
        ("l7", "protocols of plugins are not read here", is_written(l7)),
    ];
    let mut sound = true;
    for (field, reason, _) in given.into_iter().filter(|(.., given)| *given) {
        report.error_of(
            Category::Unsupported,
            &format!("{path}.{field}"),
            reason,
            "remove it; http alone is judged",
        );
        sound = false;
    }
    sound
}

/// Whether a list has anything in it, readable or not.
fn is_written<T>(list: &Part<Vec<T>>) -> bool {
    match list {
        Part::Absent => false,
        Part::Bad => true,
        Part::Flawed(items) | Part::Whole(items) => !items.is_empty(),
    }
}

/// Whether a list is too long; the problem is told. The same bounds hold as for our own kinds, whose reader has them.
fn exceeds(len: usize, most: usize, path: &str, report: &mut Report<'_>) -> bool {
    if len > most {
        report.error(path, format!("{len} items, at most {most} are taken"), "write several rules");
    }
    len > most
}

/// Whether a text is too long; the problem is told.
fn too_long(text: &str, most: usize, path: &str, report: &mut Report<'_>) -> bool {
    let len = text.len();
    if len > most {
        report.error(path, format!("{len} bytes, at most {most} are taken"), "write less");
    }
    len > most
}

fn alternative(item: &CiliumHttpRule, path: &str, report: &mut Report<'_>) -> Option<HttpMatch> {
    let method = written(item.method.as_ref()).map(|text| methods(text, &format!("{path}.method"), report));
    let target = written(item.path.as_ref()).map(|text| regex(text, &format!("{path}.path"), report));
    let host = written(item.host.as_ref()).map(|text| regex(text, &format!("{path}.host"), report));
    let headers =
        all_of(item.headers.as_deref(), &format!("{path}.headers"), report, |given, path, report| {
            header(given, path, report)
        });
    let matches = item.header_matches.as_deref();
    let matches = all_of(matches, &format!("{path}.headerMatches"), report, header_match);
    let mut headers = headers?;
    headers.extend(matches?);
    Some(HttpMatch {
        methods: method.map_or(Some(Vec::new()), |methods| methods)?,
        path: target.map_or(Some(None), |regex| regex.map(|regex| Some(PathMatch::Target(regex))))?,
        hosts: host.map_or(Some(Vec::new()), |regex| regex.map(|regex| vec![HostMatch::Authority(regex)]))?,
        headers,
        query: Vec::new(),
        upgrades: vec![UPGRADE.into()],
    })
}

/// To Cilium an empty text is none.
fn written(text: Option<&String>) -> Option<&str> {
    text.map(String::as_str).filter(|text| !text.is_empty())
}

/// A regular expression of methods; where it only lists some, these.
fn methods(text: &str, path: &str, report: &mut Report<'_>) -> Option<Vec<MethodMatch>> {
    let listed = listed(text);
    if listed.as_ref().is_some_and(|methods| methods.contains(&"CONNECT")) {
        let remedy = "tunnels are opened by an L7NetworkPolicy that names CONNECT and its hosts";
        report.error_of(
            Category::Unsupported,
            path,
            "CONNECT opens a tunnel, in which no request is judged",
            remedy,
        );
        return None;
    }
    match listed {
        Some(methods) => {
            for method in methods.iter().filter(|method| method.bytes().any(|b| b.is_ascii_lowercase())) {
                let reason = "methods are case-sensitive, and those in use are upper-case";
                report.warn_of(
                    Category::MethodCase,
                    path,
                    reason,
                    format!("did you mean `{}`?", method.to_ascii_uppercase()),
                );
            }
            Some(methods.into_iter().map(MethodMatch::from).collect())
        }
        None => regex(text, path, report).map(|regex| vec![MethodMatch::Regex(regex)]),
    }
}

/// The words of an expression that is nothing but a list of them: `GET`, `^(GET|HEAD)$`.
fn listed(text: &str) -> Option<Vec<&str>> {
    let bare = text.strip_prefix('^').unwrap_or(text);
    let bare = bare.strip_suffix('$').unwrap_or(bare);
    let inner = bare.strip_prefix("(?:").or_else(|| bare.strip_prefix('('));
    let inner = inner.map_or(Some(bare), |inner| inner.strip_suffix(')'))?;
    let words: Vec<&str> = inner.split('|').collect();
    let plain = |word: &&str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    // `^GET|HEAD$` is anchored as a whole already: a match is of the whole method.
    (words.len() <= MAX_METHODS && words.iter().all(plain)).then_some(words)
}

/// Lowers conditions that must all hold. `None`: one is in doubt.
fn all_of<T>(
    given: Option<&[T]>,
    path: &str,
    report: &mut Report<'_>,
    mut lower: impl FnMut(&T, &str, &mut Report<'_>) -> Option<Option<HeaderMatch>>,
) -> Option<Vec<HeaderMatch>> {
    let given = given.unwrap_or_default();
    if exceeds(given.len(), MAX_HEADERS, path, report) {
        return None;
    }
    let mut out = Some(Vec::with_capacity(given.len()));
    for (index, given) in given.iter().enumerate() {
        match (lower(given, &format!("{path}[{index}]"), report), &mut out) {
            (Some(condition), Some(out)) => out.extend(condition),
            _ => out = None,
        }
    }
    out
}

/// The name of a header, in lower case.
fn header_name(name: &str, path: &str, report: &mut Report<'_>) -> Option<String> {
    if let Some(remedy) = not_a_header(name) {
        let reason = format!("\"{}\" is not the same header in HTTP/1 and HTTP/2", name.escape_debug());
        report.error(path, reason, remedy.replace("hosts", "host").replace("methods", "method"));
        return None;
    }
    if !is_token(name) {
        let reason = format!("\"{}\" is no header name", name.escape_debug());
        report.error(path, reason, "write `Name`, or `Name: value` with a blank after the colon");
        return None;
    }
    (!too_long(name, MAX_FIELD_NAME, path, report)).then(|| name.to_ascii_lowercase())
}

fn condition(name: String, value: Option<&str>) -> HeaderMatch {
    let test = value.map_or(HeaderTest::Present, |value| HeaderTest::Exact(value.into()));
    HeaderMatch { name: name.into(), test }
}

/// `Name: value` or `Name`. As Cilium reads it, the first blank ends the name, and the rest is the value.
#[allow(clippy::option_option, reason = "the form of every header condition here")]
fn header(given: &str, path: &str, report: &mut Report<'_>) -> Option<Option<HeaderMatch>> {
    let Some((name, value)) = given.split_once(' ') else {
        return header_name(given, path, report).map(|name| Some(condition(name, None)));
    };
    let name = header_name(name.trim_end_matches(':'), path, report)?;
    // No header has such a value: blanks around it are no part of it (RFC 9110 §5.5).
    if value.is_empty() || value.trim() != value {
        let reason = format!("\"{}\" is the value of no header", value.escape_debug());
        report.error(path, reason, "write `Name: value` with one blank, or `Name` for any value");
        return None;
    }
    (!too_long(value, MAX_VALUE, path, report)).then(|| Some(condition(name, Some(value))))
}

/// One of `headerMatches`. `Some(None)`: it limits nothing.
#[allow(clippy::option_option, reason = "a condition that limits nothing is not one in doubt")]
fn header_match(
    given: &CiliumHeaderMatch,
    path: &str,
    report: &mut Report<'_>,
) -> Option<Option<HeaderMatch>> {
    let name = header_name(&given.name, &format!("{path}.name"), report);
    let value = written(given.value.as_ref());
    let long = value.is_some_and(|value| too_long(value, MAX_VALUE, &format!("{path}.value"), report));
    if given.secret.is_some() {
        let reason = "secrets are not read here, so that the value is not known";
        report.error_of(
            Category::Unsupported,
            &format!("{path}.secret"),
            reason,
            "write `value`, if it is no secret",
        );
        return None;
    }
    let at = format!("{path}.mismatch");
    match given.mismatch.as_deref() {
        None | Some("") => {}
        Some("LOG") => {
            let reason = "with LOG the header limits no request, and a mismatch is not noted here";
            report.warn(&at, reason, "remove `mismatch` to refuse requests without it");
            return name.filter(|_| !long).map(|_| None);
        }
        Some("ADD" | "DELETE" | "REPLACE") => {
            let reason = "headers of a request are never changed here";
            report.error_of(
                Category::Unsupported,
                &at,
                reason,
                "remove `mismatch`: then a request without the value is refused",
            );
            return None;
        }
        Some(other) => {
            let reason = format!("\"{}\" is no action", other.escape_debug());
            report.error(&at, reason, "remove it: then a request without the value is refused");
            return None;
        }
    }
    name.filter(|_| !long).map(|name| Some(condition(name, value)))
}
