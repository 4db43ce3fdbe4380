//! `hosts` and `queryParams` of an alternative into conditions.
//!
//! Knows nothing of the rest of the alternative. `None` means that something in it is in doubt; the problem is
//! reported.

use crate::conditions::{regex, too_long};
use crate::report::Report;
use sluice_crd::limits::{MAX_HOST, MAX_HOSTS};
use sluice_crd::{HeaderMatch as ParamGiven, HeaderMatchType, HostMatch as HostGiven, HostMatchType};
use sluice_policy::host::host as canonical;
use sluice_policy::{HeaderTest, HostMatch, NameMatch, QueryMatch};

/// Lowers `hosts`. An empty list names none, which nobody can mean.
pub(crate) fn hosts(given: &[HostGiven], path: &str, report: &mut Report<'_>) -> Option<Vec<HostMatch>> {
    if given.is_empty() || given.len() > MAX_HOSTS {
        let reason = format!("{} hosts, from 1 to {MAX_HOSTS} are taken", given.len());
        report.error(path, reason, "remove the list to mean every host, or write several alternatives");
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
        return regex(value, path, report).map(HostMatch::Regex);
    }
    if value.len() <= MAX_HOST && canonical(value).as_deref() == Some(value) {
        return Some(HostMatch::Name(NameMatch::Exact(value.into())));
    }
    let reason = format!("\"{}\" is no host as hosts are compared", value.escape_debug());
    let remedy = match canonical(value).filter(|_| value.len() <= MAX_HOST) {
        Some(meant) => format!("write `{meant}`: in lower case, without port and trailing dot"),
        None => "write a host name or an address, or type: RegularExpression".to_owned(),
    };
    report.error(path, reason, remedy);
    None
}

/// Lowers one item of `queryParams`.
pub(crate) fn param(given: &ParamGiven, path: &str, report: &mut Report<'_>) -> Option<QueryMatch> {
    let (name_at, at) = (format!("{path}.name"), format!("{path}.value"));
    let value = given.value.as_deref().unwrap_or_default();
    if too_long(&given.name, &name_at, report) || too_long(value, &at, report) {
        return None;
    }
    if given.name.is_empty() {
        report.error(&name_at, "the parameter has no name", "write it decoded, as it stands before the =");
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
    Some(QueryMatch { name: given.name.as_str().into(), test })
}
