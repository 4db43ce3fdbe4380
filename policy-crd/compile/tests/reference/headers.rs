//! How hosts, headers and query parameters are read.
//!
//! Source: DESIGN §5.8 (host) and §5.9: "an allow needs exactly one occurrence; `Absent` and denies consider every
//! occurrence, `_` beside `-`, and decoded forms. Ambiguity fails the allow and matches the deny."

use super::paths::{decoded, full_match};
use super::selectors::text;
use super::verdict::Polarity;
use serde_json::Value;

/// "Host: lower case, without port and trailing dot."
/// `None`: what some read as one host and others as another, or as none.
pub(crate) fn host(given: &str) -> Option<String> {
    let lower = given.to_ascii_lowercase();
    let bare = match lower.rsplit_once(':') {
        // `[::1]` has colons and no port.
        Some((bare, port)) if port.bytes().all(|c| c.is_ascii_digit()) => bare,
        _ => &lower,
    };
    let name = bare.strip_suffix('.').unwrap_or(bare);
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let readable = match address {
        Some(address) => {
            !address.is_empty() && address.chars().all(|c| c.is_ascii_hexdigit() || ".:".contains(c))
        }
        None => {
            // RFC 9110 §7.2 and RFC 3986 §3.2.2, less what parsers disagree about.
            let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            !name.is_empty() && name.chars().all(plain) && !name.starts_with('.') && !name.ends_with('.')
        }
    };
    readable.then(|| name.to_owned())
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
    let folded = |name: &str| plain(name).replace('_', "-").to_ascii_lowercase();
    let alike = |given: &str| folded(given) == folded(name);
    if polarity == Polarity::Deny {
        // `;` parts parameters too, to some.
        let pairs: Vec<(String, String)> =
            query.split(['&', ';']).filter(|part| !part.is_empty()).map(pair).collect();
        return occurrences(condition, &pairs, |given| given == name, alike, polarity);
    }
    // "Ambiguity fails the allow": parted or decoded by some and not by others.
    let lower = query.to_ascii_lowercase();
    if [";", "%25", "%00", "%3b", "%26"].iter().any(|odd| lower.contains(odd)) {
        return false;
    }
    // A value is written as every client must write it: escaped. A plus is a blank to some.
    let pairs: Vec<(String, String)> = query.split('&').filter(|part| !part.is_empty()).map(pair).collect();
    let plus = pairs.iter().any(|(given, value)| given == name && value.contains('+'));
    let pairs: Vec<(String, String)> =
        pairs.into_iter().map(|(name, value)| (name, decoded(&value))).collect();
    (!plus || condition["type"] == "Absent")
        && occurrences(condition, &pairs, |given| given == name, alike, polarity)
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
            // "Denies consider every occurrence" (DESIGN §5.9), and one field whose value is a list is as many: "a
            // recipient MAY combine multiple field lines … into one field line, by appending each subsequent field line
            // value to the initial field line value in order, separated by a comma" (RFC 9110 §5.3).
            let members = value.split(',').map(str::trim).chain([*value]);
            members
                .into_iter()
                .any(|value| satisfies(value) || satisfies(&plain(value)) || satisfies(plain(value).trim()))
        }),
    }
}
