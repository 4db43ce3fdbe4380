//! Whether conditions take everything that an alternative of another rule takes.
//!
//! Says yes only where it is certain, by comparing what is written: alternatives one by one, expressions by their
//! text. Knows nothing of peers, ports and order.

use sluice_policy::{Conditions, GrpcMatch, HostMatch, HttpMatch, MethodMatch, NameMatch, PathMatch, Rule};

/// One alternative of a rule.
#[derive(Clone, Copy)]
pub(super) enum Item<'c> {
    /// A rule without conditions.
    Everything,
    Http(&'c HttpMatch),
    Grpc(&'c GrpcMatch),
    Tls(&'c NameMatch),
}

/// How conditions are asked: a deny takes every reading of a request, an allow the strict one alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Allow,
    Deny,
}

/// The alternatives of a rule, each with its place below the rule's.
pub(super) fn items(rule: &Rule) -> Vec<(String, Item<'_>)> {
    let Some(conditions) = rule.conditions.as_deref() else { return vec![(String::new(), Item::Everything)] };
    let Conditions { http, grpc, tls } = conditions;
    let at = |field: &str, index: usize| format!("rules.{field}[{index}]");
    let mut out: Vec<(String, Item<'_>)> = Vec::new();
    out.extend(http.iter().enumerate().map(|(index, item)| (at("http", index), Item::Http(item))));
    out.extend(grpc.iter().enumerate().map(|(index, item)| (at("grpc", index), Item::Grpc(item))));
    out.extend(tls.iter().enumerate().map(|(index, item)| (at("tls.serverNames", index), Item::Tls(item))));
    out
}

/// Whether the conditions, none at all or any of these, take the whole alternative. `inner` says how that is asked.
pub(super) fn covers(outer: Option<&Conditions>, how: How, item: Item<'_>, inner: How) -> bool {
    let Some(outer) = outer else { return true };
    // A deny takes more than is written, which an allow does not.
    if (how, inner) == (How::Allow, How::Deny) {
        return false;
    }
    match item {
        Item::Everything => false,
        Item::Http(item) => outer.http.iter().any(|given| http(given, how, item)),
        Item::Grpc(item) => {
            outer.grpc.iter().any(|given| grpc(given, how, item))
                || outer.http.iter().any(|given| http_of_grpc(given, how, item))
        }
        Item::Tls(name) => outer.tls.iter().any(|given| names(given, name)),
    }
}

fn http(outer: &HttpMatch, how: How, inner: &HttpMatch) -> bool {
    let upgrades = match how {
        How::Allow => inner.upgrades.iter().all(|token| outer.upgrades.contains(token)),
        // Named, a deny takes only requests that ask for one of them.
        How::Deny => outer.upgrades.is_empty(),
    };
    methods(outer, how, inner)
        && path(outer.path.as_ref(), inner.path.as_ref())
        && hosts(&outer.hosts, &inner.hosts)
        && outer.headers.iter().all(|header| inner.headers.contains(header))
        && outer.query.iter().all(|query| inner.query.contains(query))
        && upgrades
}

fn methods(outer: &HttpMatch, how: How, inner: &HttpMatch) -> bool {
    let connect = |method: &MethodMatch| matches!(method, MethodMatch::Exact(name) if &**name == "CONNECT");
    if outer.methods.is_empty() {
        return how == How::Deny || !inner.methods.iter().any(connect);
    }
    let named = |wanted: &MethodMatch| {
        outer.methods.iter().any(|given| match (given, wanted) {
            (MethodMatch::Regex(given), MethodMatch::Exact(wanted)) => {
                &**wanted != "CONNECT" && given.is_match(wanted.as_bytes())
            }
            _ => given == wanted,
        })
    };
    !inner.methods.is_empty() && inner.methods.iter().all(named)
}

/// Whether a regular expression is written so that it matches every path.
fn is_any(source: &str) -> bool {
    matches!(source, ".*" | "/.*" | "^.*$" | "^/.*$" | ".+" | "(.*)")
}

fn path(outer: Option<&PathMatch>, inner: Option<&PathMatch>) -> bool {
    let below = |prefix: &str, path: &str| {
        path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match (outer, inner) {
        (None, _) => true,
        (Some(PathMatch::Prefix(outer)), None) => outer.is_empty(),
        (Some(PathMatch::Regex(outer) | PathMatch::Target(outer)), None) => is_any(outer.source()),
        (Some(PathMatch::Exact(_)), None) => false,
        (Some(outer), Some(inner)) => match (outer, inner) {
            (PathMatch::Prefix(outer), PathMatch::Prefix(inner) | PathMatch::Exact(inner)) => {
                below(outer, inner)
            }
            (PathMatch::Prefix(outer), PathMatch::Regex(_) | PathMatch::Target(_)) => outer.is_empty(),
            (PathMatch::Exact(outer), PathMatch::Exact(inner)) => outer == inner,
            (PathMatch::Exact(_), _) => false,
            (PathMatch::Regex(outer), PathMatch::Exact(inner)) => outer.is_match(inner.as_bytes()),
            (PathMatch::Regex(outer), PathMatch::Regex(inner))
            | (PathMatch::Target(outer), PathMatch::Target(inner)) => {
                outer == inner || is_any(outer.source())
            }
            (PathMatch::Regex(outer) | PathMatch::Target(outer), _) => is_any(outer.source()),
        },
    }
}

fn hosts(outer: &[HostMatch], inner: &[HostMatch]) -> bool {
    let named = |wanted: &HostMatch| {
        outer.iter().any(|given| match (given, wanted) {
            (HostMatch::Name(given), HostMatch::Name(wanted)) => names(given, wanted),
            (HostMatch::Regex(given), HostMatch::Name(NameMatch::Exact(wanted))) => {
                given.is_match(wanted.as_bytes())
            }
            _ => given == wanted,
        })
    };
    outer.is_empty() || !inner.is_empty() && inner.iter().all(named)
}

fn names(outer: &NameMatch, inner: &NameMatch) -> bool {
    match inner {
        NameMatch::Exact(name) => outer.matches(name),
        _ => outer == inner,
    }
}

fn grpc(outer: &GrpcMatch, how: How, inner: &GrpcMatch) -> bool {
    let methods = outer.methods.is_empty()
        || !inner.methods.is_empty() && inner.methods.iter().all(|method| outer.methods.contains(method));
    let carried =
        how == How::Deny || inner.protocols.iter().all(|protocol| outer.protocols.contains(protocol));
    outer.service == inner.service && methods && carried
}

/// An http alternative matches a gRPC call by its path.
fn http_of_grpc(outer: &HttpMatch, how: How, inner: &GrpcMatch) -> bool {
    let post = HttpMatch { methods: vec!["POST".into()], ..HttpMatch::default() };
    let wanted: Vec<PathMatch> = match inner.methods.is_empty() {
        true => vec![PathMatch::Prefix(format!("/{}", inner.service).into())],
        false => {
            let path = |method: &_| PathMatch::Exact(format!("/{}/{method}", inner.service).into());
            inner.methods.iter().map(path).collect()
        }
    };
    methods(outer, how, &post)
        && wanted.iter().all(|wanted| path(outer.path.as_ref(), Some(wanted)))
        && outer.hosts.is_empty()
        && outer.headers.is_empty()
        && outer.query.is_empty()
        && (how == How::Allow || outer.upgrades.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_policy::Regex;

    fn item(methods: &[&str], path: Option<PathMatch>) -> HttpMatch {
        HttpMatch { methods: methods.iter().map(|m| (*m).into()).collect(), path, ..HttpMatch::default() }
    }

    fn takes(outer: &HttpMatch, inner: &HttpMatch) -> bool {
        let outer = Conditions { http: vec![outer.clone()], ..Conditions::default() };
        covers(Some(&outer), How::Allow, Item::Http(inner), How::Allow)
    }

    #[test]
    fn what_is_wider_covers() {
        let regex = |source: &str| Some(PathMatch::Regex(Regex::new(source).unwrap()));
        let (prefix, exact) = (|path| Some(PathMatch::prefix(path)), |path| Some(PathMatch::exact(path)));
        let any = item(&[], None);
        for (outer, inner, expected) in [
            (&any, &item(&["GET"], exact("/a")), true),
            (&any, &item(&["CONNECT"], None), false),
            (&item(&["GET"], None), &item(&["GET"], prefix("/a")), true),
            (&item(&["GET"], None), &any, false),
            (&item(&["GET"], None), &item(&["GET", "HEAD"], None), false),
            (&item(&[], prefix("/a")), &item(&[], exact("/a/b")), true),
            (&item(&[], prefix("/a")), &item(&[], exact("/ab")), false),
            (&item(&[], exact("/a")), &item(&[], prefix("/a")), false),
            (&item(&[], regex("/a.*")), &item(&[], exact("/ab")), true),
            (&item(&[], regex("/a.*")), &item(&[], prefix("/a")), false),
            (&item(&[], regex(".*")), &item(&[], prefix("/a")), true),
            (&item(&[], regex("/a.*")), &item(&[], regex("/a.*")), true),
        ] {
            assert_eq!(takes(outer, inner), expected, "{outer:?} {inner:?}");
        }
    }

    #[test]
    fn a_path_covers_the_calls_that_it_names() {
        let by_path = |path| Conditions { http: vec![item(&["POST"], Some(path))], ..Conditions::default() };
        let call = GrpcMatch::grpc("a.B", ["C".into()]);
        let takes = |outer: &Conditions| covers(Some(outer), How::Allow, Item::Grpc(&call), How::Allow);
        assert!(takes(&by_path(PathMatch::exact("/a.B/C"))));
        assert!(takes(&by_path(PathMatch::prefix("/a.B"))));
        assert!(!takes(&by_path(PathMatch::exact("/a.B/D"))));
    }

    #[test]
    fn no_allow_with_conditions_covers_a_deny() {
        let any = item(&[], None);
        let outer = Conditions { http: vec![any.clone()], ..Conditions::default() };
        assert!(!covers(Some(&outer), How::Allow, Item::Http(&any), How::Deny));
        assert!(covers(Some(&outer), How::Deny, Item::Http(&any), How::Deny));
        assert!(covers(None, How::Allow, Item::Http(&any), How::Deny));
    }
}
