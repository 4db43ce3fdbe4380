//! `methods` and `upgrades` of an alternative into conditions.
//!
//! Knows nothing of the rest of the alternative. `None` means that something in it is in doubt; the problem is
//! reported.

use crate::report::Report;
use sluice_crd::{Category, HttpRule};
use std::sync::Arc;

/// The method that asks for a tunnel (RFC 9110 §9.3.6).
const CONNECT: &str = "CONNECT";
/// The one protocol that a connection may be upgraded to (RFC 6455).
const WEBSOCKET: &str = "websocket";

/// A token by RFC 9110 §5.6.2.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Lowers `methods`. An empty list names none, which nobody can mean.
pub(crate) fn methods(given: &[String], path: &str, report: &mut Report<'_>) -> Option<Vec<Arc<str>>> {
    if given.is_empty() {
        report.error(path, "an empty list names no method", "remove it to mean every method");
        return None;
    }
    let mut sound = true;
    for (index, method) in given.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if !is_token(method) {
            report.error(&path, format!("\"{}\" is no method", method.escape_debug()), "write one, as GET");
            sound = false;
        } else if method.chars().any(|c| c.is_ascii_lowercase()) {
            let remedy = format!("did you mean `{}`?", method.to_ascii_uppercase());
            let reason = "methods are case-sensitive, and those in use are upper-case";
            report.warn_of(Category::MethodCase, &path, reason, remedy);
        }
    }
    sound.then(|| given.iter().map(|method| method.as_str().into()).collect())
}

/// Whether an alternative may name CONNECT as it does; `true` for one that does not name it. Its target is a host
/// alone, so that it has neither path nor query, and what asks for a tunnel asks for no upgrade.
pub(crate) fn is_plain_connect(item: &HttpRule, grants: bool, path: &str, report: &mut Report<'_>) -> bool {
    let Some(methods) = item.methods.as_deref().filter(|m| m.iter().any(|m| m == CONNECT)) else {
        return true;
    };
    let errors = report.errors;
    if methods.len() > 1 {
        let remedy = "write an alternative of its own: methods: [CONNECT] with its hosts";
        report.error(&format!("{path}.methods"), "CONNECT stands alone", remedy);
    }
    let others = [
        ("path", item.path.is_some()),
        ("queryParams", item.query_params.is_some()),
        ("upgrades", item.upgrades.is_some()),
    ];
    for (field, _) in others.into_iter().filter(|(_, given)| *given) {
        let reason = format!("CONNECT has no {field}: its target is a host");
        report.error(&format!("{path}.{field}"), reason, "name the hosts, and remove this");
    }
    if grants && item.hosts.is_none() {
        let reason = "an allow of CONNECT opens a tunnel to whatever the server reaches";
        report.error(&format!("{path}.methods"), reason, "name the hosts that it may be to");
    }
    report.errors == errors
}

/// Lowers `upgrades`.
pub(crate) fn upgrades(item: &HttpRule, path: &str, report: &mut Report<'_>) -> Option<Vec<Arc<str>>> {
    let Some(given) = &item.upgrades else { return Some(Vec::new()) };
    let path = format!("{path}.upgrades");
    if given.is_empty() {
        let remedy = format!("remove it to let no upgrade through, or write {WEBSOCKET}");
        report.error(&path, "an empty list names no upgrade", remedy);
        return None;
    }
    let mut sound = true;
    for (index, token) in given.iter().enumerate().filter(|(_, token)| *token != WEBSOCKET) {
        let reason = format!("\"{}\" is no upgrade that can be judged", token.escape_debug());
        report.error(&format!("{path}[{index}]"), reason, format!("write {WEBSOCKET}, or remove it"));
        sound = false;
    }
    // RFC 6455 §4.1; over HTTP/2 what asks for it counts as GET too.
    if sound && item.methods.as_ref().is_some_and(|methods| !methods.iter().any(|m| m == "GET")) {
        let reason = "a WebSocket begins with GET, which `methods` does not name: none comes through by this";
        report.warn(&path, reason, "add GET to methods");
    }
    sound.then(|| vec![WEBSOCKET.into()])
}
