//! Checks of conditions: methods, paths, regular expressions, gRPC names, names that only the client says.
//!
//! Each looks at one alternative as it is written. Knows nothing of pods and of verdicts.

use super::codes;
use super::finding::Findings;
use super::views::{Effect, HttpView, PolicyView, RegexOf, RegexView, RuleView};
use crate::peers::is_v4;
use sluice_crd::Severity;
use sluice_policy::{Direction, Kind, Prefix};

/// Runs the checks of this file.
pub(super) fn check(policies: &[PolicyView<'_>], findings: &mut Findings) {
    for policy in policies {
        for rule in &policy.rules {
            head(policy, rule, findings);
            grpc(policy, rule, findings);
            client_says(policy, rule, findings);
            for item in &rule.http {
                trailing_slash(policy, item, findings);
                for regex in &item.regexes {
                    anchors(policy, regex, findings);
                    host_dot(policy, regex, findings);
                }
            }
        }
    }
}

/// HEAD is not implied by GET, nor GET by HEAD.
fn head(policy: &PolicyView<'_>, rule: &RuleView<'_>, findings: &mut Findings) {
    let names = |item: &HttpView<'_>, method: &str| item.methods.iter().any(|(_, given)| *given == method);
    let all = |item: &HttpView<'_>| item.methods.is_empty() && !policy.source.has(&item.methods_path);
    for item in &rule.http {
        for (one, other) in [("GET", "HEAD"), ("HEAD", "GET")] {
            let elsewhere = rule.http.iter().any(|item| names(item, other) || all(item));
            if !names(item, one) || elsewhere {
                continue;
            }
            let (severity, reason) = match rule.effect {
                Effect::Deny => {
                    (Severity::Warning, format!("{other} is not denied with {one}, and may pass"))
                }
                Effect::Allow | Effect::Pass => {
                    (codes::HEAD.severity, format!("{other} is not allowed with {one}, and is refused"))
                }
            };
            let remedy = format!("add {other}, unless it is meant so");
            findings.add_as(severity, &codes::HEAD, policy.source, &item.methods_path, reason, remedy);
        }
    }
}

fn trailing_slash(policy: &PolicyView<'_>, item: &HttpView<'_>, findings: &mut Findings) {
    if let Some((path, text)) = &item.exact_path
        && let Some(bare) = text.strip_suffix('/').filter(|bare| !bare.is_empty())
    {
        let reason = format!("{bare} without the slash is another path, and so is what lies below");
        let remedy = format!("write PathPrefix {bare} for both and what lies below");
        findings.add(&codes::TRAILING_SLASH, policy.source, path, reason, remedy);
    }
}

/// Whether a byte of a regular expression stands for itself.
fn is_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'~' | b'%' | b':' | b'@' | b'=')
}

/// What somebody who takes a regular expression for a search would not expect of it.
fn expectation(regex: &RegexView<'_>, by_regex_alone: bool) -> Option<(String, String)> {
    let text = regex.text;
    let begins = text.starts_with('^');
    let ends = text.ends_with('$') && !text.ends_with("\\$");
    // Every path begins with /, so that one which does, too, says how it begins.
    let whole = regex.of == RegexOf::Path && text.starts_with('/');
    if begins != ends && !whole {
        let (one, other) = if begins { ("^", "ends") } else { ("$", "begins") };
        let bare = text.strip_prefix('^').unwrap_or(text);
        let bare = if ends { bare.strip_suffix('$').unwrap_or(bare) } else { bare };
        let wider = if begins { format!("{bare}.*") } else { format!(".*{bare}") };
        let reason =
            format!("it is a full match, with or without `{one}`: it says how the value {other}, too");
        return Some((reason, format!("write `{wider}` if more may follow there, else leave `{one}` out")));
    }
    if regex.of != RegexOf::Path {
        return None;
    }
    let literal = |text: &str| !text.is_empty() && text.bytes().all(is_literal);
    if text.bytes().next().is_some_and(|first| is_literal(first) && first != b'/') {
        let reason = "it is a full match, and every path begins with /: nothing matches it";
        return Some((reason.to_owned(), format!("write `/{text}`, or `.*{text}.*` for every path with it")));
    }
    if let Some(tail) = text.strip_prefix(".*").filter(|tail| literal(tail)) {
        let reason = format!("it is a full match: the path must end with {tail}");
        return Some((reason, format!("write `.*{tail}.*` if more may follow")));
    }
    if !by_regex_alone && literal(text) {
        let reason = "it is a full match: it matches this path alone";
        return Some((reason.to_owned(), format!("write type: Exact, or PathPrefix, or `{text}.*`")));
    }
    None
}

fn anchors(policy: &PolicyView<'_>, regex: &RegexView<'_>, findings: &mut Findings) {
    // Cilium has no other way to write a path than as a regular expression.
    let cilium =
        matches!(policy.origin.kind, Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy);
    if let Some((reason, remedy)) = expectation(regex, cilium) {
        findings.add(&codes::ANCHORS, policy.source, &regex.path, reason, remedy);
    }
}

/// Whether there is a dot between letters that was meant as one, and is none.
fn has_loose_dot(text: &str) -> bool {
    let mut class = false;
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let next = bytes.get(at + 1);
        match bytes[at] {
            b'\\' => at += 1,
            b'[' => class = true,
            b']' => class = false,
            b'.' if !class => {
                let before = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b')');
                if before && next.is_some_and(u8::is_ascii_alphanumeric) {
                    return true;
                }
            }
            _ => {}
        }
        at += 1;
    }
    false
}

fn host_dot(policy: &PolicyView<'_>, regex: &RegexView<'_>, findings: &mut Findings) {
    if regex.of == RegexOf::Host && has_loose_dot(regex.text) {
        let reason = "`.` matches any character: other hosts match, too";
        findings.add(&codes::HOST_DOT, policy.source, &regex.path, reason, "write `\\.` for a dot");
    }
}

/// Services and methods are in upper camel case by protobuf's style guide, and names are case-sensitive.
fn grpc(policy: &PolicyView<'_>, rule: &RuleView<'_>, findings: &mut Findings) {
    for item in &rule.grpc {
        let service = (format!("{}.service", item.path), item.service.rsplit('.').next().unwrap_or_default());
        let names = std::iter::once(&service).chain(&item.methods);
        for (path, name) in names.filter(|(_, name)| name.starts_with(|c: char| c.is_ascii_lowercase())) {
            let (first, rest) = name.split_at(1);
            let reason = format!("names are case-sensitive, and `{name}` begins in lower case");
            let remedy = format!("did you mean `{}{rest}`?", first.to_ascii_uppercase());
            findings.add(&codes::GRPC_CASE, policy.source, path, reason, remedy);
        }
    }
}

/// A host or a server name says whom the client asks for, not who answers.
fn client_says(policy: &PolicyView<'_>, rule: &RuleView<'_>, findings: &mut Findings) {
    if rule.direction != Direction::Egress || rule.effect == Effect::Deny {
        return;
    }
    let wide = rule.everybody
        || rule
            .peers
            .iter()
            .any(|peer| peer.world || peer.cidr.as_ref().is_some_and(|(_, cidr)| is_everything(*cidr)));
    let hosts = rule.http.iter().filter_map(|item| item.hosts.as_ref());
    for path in hosts.chain(&rule.server_names).filter(|_| wide) {
        let reason = "the client says this name, to whatever address it likes: anybody may answer";
        let remedy = "name the addresses in `to` as well, as narrow an ipBlock as there is";
        findings.add(&codes::CLIENT_SAYS, policy.source, path, reason, remedy);
    }
}

/// Every address of a family.
fn is_everything(prefix: Prefix) -> bool {
    prefix.mapped_len() == 0 || is_v4(prefix) && prefix.mapped_len() == 96
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_expressions_that_look_like_searches() {
        let told = |of, text| expectation(&RegexView { path: String::new(), of, text }, false).is_some();
        for text in ["^/api", "api$", "foo", ".*admin", "/exactly"] {
            assert!(told(RegexOf::Path, text), "{text}");
        }
        for text in
            ["^/api$", "/api/.*", ".*\\.png", "(/a|/b)", "/v[0-9]+/x", ".*admin.*", "/cost\\$", ".*", "/api$"]
        {
            assert!(!told(RegexOf::Path, text), "{text}");
        }
        assert!(!told(RegexOf::Other, "foo"));
        assert!(told(RegexOf::Other, "^foo"));
    }

    #[test]
    fn loose_dots() {
        for text in ["api.example.com", "(a|b).example\\.com"] {
            assert!(has_loose_dot(text), "{text}");
        }
        for text in ["api\\.example\\.com", ".*\\.example\\.com", "[a.b]+", "api.*"] {
            assert!(!has_loose_dot(text), "{text}");
        }
    }
}
