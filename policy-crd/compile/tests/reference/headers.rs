//! How hosts, headers and query parameters are read.
//!
//! Source: DESIGN §5.8 (host) and §5.9: "an allow needs exactly one occurrence; `Absent` and denies consider every
//! occurrence, `_` beside `-`, and decoded forms. Ambiguity fails the allow and matches the deny."

use super::paths::{decoded, full_match};
use super::selectors::text;
use super::verdict::Polarity;
use serde_json::Value;

/// "Host: lower case, without port and trailing dot."
pub(crate) fn host(given: &str) -> String {
    let lower = given.to_ascii_lowercase();
    let bare = match lower.rsplit_once(':') {
        // `[::1]` has colons and no port.
        Some((bare, port)) if port.bytes().all(|c| c.is_ascii_digit()) => bare,
        _ => &lower,
    };
    bare.strip_suffix('.').unwrap_or(bare).to_owned()
}

/// One item of `headers` against the fields of a request.
pub(crate) fn header(condition: &Value, fields: &[(String, String)], polarity: Polarity) -> bool {
    let name = text(&condition["name"]);
    let folded = |name: &str| name.to_ascii_lowercase().replace('_', "-");
    let same = |given: &str| given.eq_ignore_ascii_case(name);
    let alike = |given: &str| folded(given) == folded(name);
    occurrences(condition, fields, same, alike, polarity)
}

/// One item of `queryParams` against the query of a request.
pub(crate) fn query(condition: &Value, query: &str, polarity: Polarity) -> bool {
    let name = text(&condition["name"]);
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name.to_owned(), value.to_owned())
    };
    let pairs: Vec<(String, String)> = query.split('&').filter(|part| !part.is_empty()).map(pair).collect();
    let folded = |name: &str| plain(name).replace('_', "-");
    occurrences(condition, &pairs, |given| given == name, |given| folded(given) == folded(name), polarity)
}

/// A value of a query as a form reads it: `+` is a space, escapes are decoded.
fn plain(text: &str) -> String {
    decoded(&text.replace('+', " "))
}

/// `same` is the name to everybody; `alike` is the name to some.
fn occurrences(
    condition: &Value,
    fields: &[(String, String)],
    same: impl Fn(&str) -> bool,
    alike: impl Fn(&str) -> bool,
    polarity: Polarity,
) -> bool {
    let certain: Vec<&str> =
        fields.iter().filter(|(name, _)| same(name)).map(|(_, value)| value.as_str()).collect();
    let possible: Vec<&str> =
        fields.iter().filter(|(name, _)| alike(name)).map(|(_, value)| value.as_str()).collect();
    let satisfies = |value: &str| match text(&condition["type"]) {
        "Exact" => condition["value"] == value,
        "RegularExpression" => full_match(text(&condition["value"]), value),
        "Present" => true,
        other => panic!("no type {other}"),
    };
    let absent = condition["type"] == "Absent";
    match polarity {
        // Nobody may find it.
        Polarity::Allow if absent => possible.is_empty(),
        // Everybody must find the same one.
        Polarity::Allow => matches!((&certain[..], &possible[..]), ([value], [_]) if satisfies(value)),
        // Somebody finds none.
        Polarity::Deny if absent => certain.is_empty(),
        // Somebody finds one that satisfies.
        Polarity::Deny => possible.iter().any(|value| {
            // One field with commas is several to some (RFC 9110 §5.3).
            let members = value.split(',').map(str::trim).chain([*value]);
            members.into_iter().any(|value| satisfies(value) || satisfies(&plain(value)))
        }),
    }
}
