//! `hosts` and `queryParams` of an alternative, and `serverNames`, into conditions.
//!
//! Knows nothing of the rest of the alternative. `None` means that something in it is in doubt; the problem is
//! reported.

use crate::report::Report;
use crate::values;
use sluice_crd::{HeaderMatch as ParamGiven, HostMatch as HostGiven, HostMatchType};
use sluice_policy::host::host as canonical;
use sluice_policy::{HostMatch, NameMatch, QueryMatch};
use std::net::Ipv4Addr;

/// The longest host that DNS has (RFC 1035 §2.3.4), without its trailing dot.
const MAX_NAME: usize = 253;
/// The longest label of one.
const MAX_LABEL: usize = 63;

/// Lowers `hosts`. An empty list names none, which nobody can mean.
pub(crate) fn hosts(given: &[HostGiven], path: &str, report: &mut Report<'_>) -> Option<Vec<HostMatch>> {
    if given.is_empty() {
        report.error(path, "an empty list names no host", "remove it to mean every host");
        return None;
    }
    let mut out = Some(Vec::with_capacity(given.len()));
    for (index, given) in given.iter().enumerate() {
        match (one(given, &format!("{path}[{index}].value"), report), &mut out) {
            (Some(host), Some(out)) => out.push(host),
            _ => out = None,
        }
    }
    out
}

fn one(given: &HostGiven, path: &str, report: &mut Report<'_>) -> Option<HostMatch> {
    let value = given.value.as_str();
    if given.kind == HostMatchType::RegularExpression {
        return values::regex(value, path, report).map(HostMatch::Regex);
    }
    if value.len() <= MAX_NAME && canonical(value).as_deref() == Some(value) {
        return Some(HostMatch::Name(NameMatch::Exact(value.into())));
    }
    let reason = format!("\"{}\" is no host as hosts are compared", value.escape_debug());
    let remedy = match canonical(value).filter(|_| value.len() <= MAX_NAME) {
        Some(meant) => format!("write `{meant}`: in lower case, without port and trailing dot"),
        None => "write a host name or an address, or type: RegularExpression".to_owned(),
    };
    report.error(path, reason, remedy);
    None
}

/// Lowers `serverNames`: alternatives, so that one in doubt leaves open what all of them match.
pub(crate) fn server_names(given: &[String], path: &str, report: &mut Report<'_>) -> Option<Vec<NameMatch>> {
    if given.is_empty() {
        let remedy = "write the names that clients ask for, as api.example.com or *.example.com";
        report.error(path, "no server name is given", remedy);
        return None;
    }
    let mut out = Some(Vec::with_capacity(given.len()));
    for (index, given) in given.iter().enumerate() {
        match (server_name(given, &format!("{path}[{index}]"), report), &mut out) {
            (Some(name), Some(out)) => out.push(name),
            _ => out = None,
        }
    }
    out
}

fn server_name(given: &str, path: &str, report: &mut Report<'_>) -> Option<NameMatch> {
    let suffix = given.strip_prefix("*.");
    let name = suffix.unwrap_or(given);
    if !is_server_name(name) {
        let meant = given.trim_end_matches('.').to_ascii_lowercase();
        let remedy = if is_server_name(meant.strip_prefix("*.").unwrap_or(&meant)) {
            format!("write `{meant}`: in lower case, without a trailing dot")
        } else if given == "*" {
            "name the servers, or leave `rules` out to let every connection through".to_owned()
        } else {
            "write a name, or *. and what it ends with; other letters than a-z as xn--".to_owned()
        };
        let reason = format!("\"{}\" is no server name", given.escape_debug());
        report.error(path, reason, remedy);
        return None;
    }
    if name.parse::<Ipv4Addr>().is_ok() {
        let reason = "no client asks for an address by this (RFC 6066 §3): it matches nothing";
        report.warn(path, reason, "write the server's name, or the address as ipBlock");
    }
    Some(match suffix {
        Some(suffix) => NameMatch::Under(suffix.into()),
        None => NameMatch::Exact(name.into()),
    })
}

/// A name as it is compared: labels of lower-case letters, digits, `-` and `_`.
pub(crate) fn is_server_name(name: &str) -> bool {
    let label = |label: &str| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= MAX_NAME && name.split('.').all(label)
}

/// Lowers one item of `queryParams`.
pub(crate) fn param(given: &ParamGiven, path: &str, report: &mut Report<'_>) -> Option<QueryMatch> {
    if given.name.is_empty() {
        let remedy = "write it decoded, as it stands before the =";
        report.error(&format!("{path}.name"), "the parameter has no name", remedy);
        return None;
    }
    let test = values::test(given, path, report)?;
    Some(QueryMatch { name: given.name.as_str().into(), test })
}
