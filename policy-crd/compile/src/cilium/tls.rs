//! What an item of `toPorts` says of TLS: server names into conditions, everything else told.
//!
//! Nothing is decrypted here. Knows nothing of peers or ports.

use crate::hosts::is_server_name;
use crate::report::Report;
use sluice_crd::limits::MAX_SERVER_NAMES;
use sluice_crd::{Category, CiliumPortRule, Part};
use sluice_policy::NameMatch;

/// Whether connections are limited to server names.
pub(super) fn is_given(item: &CiliumPortRule) -> bool {
    !item.server_names.is_absent()
}

/// Lowers `serverNames`, none where they are not limited. `None`: in doubt, and told.
pub(super) fn lower(item: &CiliumPortRule, report: &mut Report<'_>) -> Option<Vec<NameMatch>> {
    let mut sound = supported(item, report);
    let path = format!("{}.serverNames", item.path);
    let items = match &item.server_names {
        Part::Absent => return sound.then(Vec::new),
        Part::Bad | Part::Flawed(_) => return None,
        Part::Whole(items) => items,
    };
    if items.is_empty() || items.len() > MAX_SERVER_NAMES {
        let reason = format!("{} names, from 1 to {MAX_SERVER_NAMES} are taken", items.len());
        report.error(&path, reason, "remove the list to mean any, or write several items of toPorts");
        return None;
    }
    if super::http::is_given(item) {
        let reason = "requests inside TLS are not known, for nothing is decrypted here";
        report.error(&path, reason, "write rules.http and serverNames in items of their own");
        sound = false;
    }
    let mut out = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let lowered = match item {
            Part::Whole(text) => name(text, &format!("{path}[{index}]"), report),
            Part::Absent | Part::Bad | Part::Flawed(_) => None,
        };
        match lowered {
            Some(name) => out.push(name),
            None => sound = false,
        }
    }
    sound.then_some(out)
}

/// Whether the item asks for nothing that is not done here.
fn supported(item: &CiliumPortRule, report: &mut Report<'_>) -> bool {
    let decrypted = ("TLS is not intercepted here", "remove it; serverNames are judged without it");
    let given = [
        ("terminatingTLS", decrypted, !item.terminating_tls.is_absent()),
        ("originatingTLS", decrypted, !item.originating_tls.is_absent()),
        (
            "listener",
            ("listeners of Envoy are not there", "remove it; rules.http are judged without it"),
            !item.listener.is_absent(),
        ),
    ];
    let mut sound = true;
    for (field, (reason, remedy), _) in given.into_iter().filter(|(.., given)| *given) {
        report.error_of(Category::Unsupported, &format!("{}.{field}", item.path), reason, remedy);
        sound = false;
    }
    sound
}

/// A name, `*.` for one label before it, `**.` for one or more. Names have no case.
fn name(text: &str, path: &str, report: &mut Report<'_>) -> Option<NameMatch> {
    let lower = text.to_ascii_lowercase();
    let (form, rest): (fn(std::sync::Arc<str>) -> NameMatch, &str) = match lower.split_once("*.") {
        Some(("", rest)) => (NameMatch::Label, rest),
        Some(("*", rest)) => (NameMatch::Under, rest),
        _ => (NameMatch::Exact, &lower),
    };
    let rest = rest.strip_suffix('.').unwrap_or(rest);
    if !is_server_name(rest) {
        let reason = format!("\"{}\" is no server name", text.escape_debug());
        let remedy = "write a name, `*.` and a name for one label before it, or `**.` for one or more";
        report.error(path, reason, remedy);
        return None;
    }
    Some(form(rest.into()))
}
