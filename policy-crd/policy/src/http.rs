//! Conditions on what is said: HTTP and gRPC requests, TLS server names.
//!
//! Each answers two questions that are not each other's opposite. For an allow everything must be known and
//! unambiguous; for a deny one suspicious reading is enough. Knows nothing of sockets, of hyper or of who asks.

use crate::grpc::GrpcMatch;
use crate::header::HeaderMatch;
use crate::host::{HostMatch, NameMatch};
use crate::miss::{Miss, depth};
use crate::path;
use crate::query::QueryMatch;
use crate::regex::Regex;
use crate::request::Request;
use std::fmt;
use std::sync::Arc;

/// The conditions of one rule; any of them is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Conditions {
    /// `rules.http`.
    pub http: Vec<HttpMatch>,
    /// `rules.grpc`.
    pub grpc: Vec<GrpcMatch>,
    /// `rules.tls.serverNames`.
    pub tls: Vec<NameMatch>,
}

/// One item of `rules.http`: its parts are `ANDed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HttpMatch {
    /// Any of these; none named means any but CONNECT.
    pub methods: Vec<MethodMatch>,
    /// The path.
    pub path: Option<PathMatch>,
    /// Any of these; none named means any.
    pub hosts: Vec<HostMatch>,
    /// All of these.
    pub headers: Vec<HeaderMatch>,
    /// All of these.
    pub query: Vec<QueryMatch>,
    /// The upgrades let through, in lower case; with none named an allow takes no request that asks for one, and a
    /// deny takes requests whatever they ask for. With some named a deny takes those alone that ask for one of them.
    pub upgrades: Vec<Arc<str>>,
}

/// A method condition. Methods are case-sensitive (RFC 9110 §9.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MethodMatch {
    /// This method.
    Exact(Arc<str>),
    /// The whole method matches.
    Regex(Regex),
}

impl MethodMatch {
    fn matches(&self, method: &str) -> bool {
        match self {
            Self::Exact(named) => &**named == method,
            Self::Regex(regex) => regex.is_match(method.as_bytes()),
        }
    }
}

impl From<&str> for MethodMatch {
    fn from(method: &str) -> Self {
        Self::Exact(method.into())
    }
}

impl fmt::Display for MethodMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(method) => f.write_str(method),
            Self::Regex(regex) => write!(f, "/{}/", regex.source()),
        }
    }
}

/// A path condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathMatch {
    /// The whole path.
    Exact(Arc<str>),
    /// The path, or anything below it, by segment. Stored without its trailing slash; `/` is the empty string.
    Prefix(Arc<str>),
    /// The whole path matches.
    Regex(Regex),
    /// The path and, where there is one, `?` and the query match as a whole: Cilium's `path`.
    Target(Regex),
}

impl PathMatch {
    /// `Exact`, as the API writes it; spelt as the strict reading spells it, so that `/%7euser` is `/~user`.
    #[must_use]
    pub fn exact(value: &str) -> Self {
        Self::Exact(path::pattern(value).into())
    }

    /// `PathPrefix`, as the API writes it; spelt as the strict reading spells it.
    #[must_use]
    pub fn prefix(value: &str) -> Self {
        let value = path::pattern(value);
        Self::Prefix(value.strip_suffix('/').unwrap_or(&value).into())
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(value) => path == &**value,
            Self::Prefix(value) => {
                path.strip_prefix(&**value).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(regex) | Self::Target(regex) => regex.is_match(path.as_bytes()),
        }
    }

    /// Whether a deny takes this reading: a text whatever its case, and with or without a slash at its end, since many
    /// routers tell neither apart. Of a reading that is not so its lower case is a reading too, and the same without
    /// that slash: whoever files denies files them so. A regular expression is tried on each as it is written.
    fn takes(&self, reading: &str) -> bool {
        match self {
            Self::Exact(value) => {
                let shorter = value.strip_suffix('/').filter(|shorter| !shorter.is_empty());
                reading.eq_ignore_ascii_case(value)
                    || shorter.is_some_and(|shorter| reading.eq_ignore_ascii_case(shorter))
            }
            Self::Prefix(value) => {
                let (head, rest) = reading.as_bytes().split_at_checked(value.len()).unwrap_or_default();
                head.eq_ignore_ascii_case(value.as_bytes()) && matches!(rest.first(), None | Some(b'/'))
            }
            Self::Regex(_) | Self::Target(_) => self.matches(reading),
        }
    }

    fn matches_strictly(&self, request: &Request<'_>) -> bool {
        match (request.path.strict(), self, request.query) {
            (None, _, _) => false,
            (Some(strict), Self::Target(regex), Some(query)) => {
                joined(strict, query, |target| regex.is_match(target))
            }
            (Some(strict), _, _) => self.matches(strict),
        }
    }

    /// Whether a deny takes the request, by any reading of any path that it may have to a server.
    fn denies(&self, request: &Request<'_>) -> bool {
        if let (Self::Target(regex), Some(query)) = (self, request.query) {
            // With and without the query: a reading may end before it.
            return request.any_path(|reading| {
                regex.is_match(reading.as_bytes()) || joined(reading, query, |target| regex.is_match(target))
            });
        }
        if matches!(self, Self::Regex(_) | Self::Target(_)) {
            return request.any_path(|reading| self.takes(reading));
        }
        // A deny that is written with escapes means what they stand for, too: servers decode them.
        let plain = match self {
            Self::Exact(value) if value.contains('%') => Some(Self::Exact(path::decode_once(value).into())),
            Self::Prefix(value) if value.contains('%') => Some(Self::Prefix(path::decode_once(value).into())),
            _ => None,
        };
        request.any_path_in_any_case(|reading| {
            self.takes(reading) || plain.as_ref().is_some_and(|plain| plain.takes(reading))
        })
    }
}

/// A target of up to so many bytes is put together without an allocation.
const SHORT_TARGET: usize = 1024;

/// Hands on the target of a path and a query.
fn joined<T>(path: &str, query: &str, hand: impl FnOnce(&[u8]) -> T) -> T {
    let (mid, len) = (path.len() + 1, path.len() + 1 + query.len());
    let mut short = [0; SHORT_TARGET];
    match short.get_mut(..len) {
        Some(target) => {
            target[..path.len()].copy_from_slice(path.as_bytes());
            target[path.len()] = b'?';
            target[mid..].copy_from_slice(query.as_bytes());
            hand(target)
        }
        None => hand(format!("{path}?{query}").as_bytes()),
    }
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(value) => write!(f, "Exact {value}"),
            Self::Prefix(value) if value.is_empty() => write!(f, "PathPrefix /"),
            Self::Prefix(value) => write!(f, "PathPrefix {value}"),
            Self::Regex(regex) => write!(f, "RegularExpression {}", regex.source()),
            Self::Target(regex) => write!(f, "RegularExpression {} with the query", regex.source()),
        }
    }
}

impl HttpMatch {
    /// CONNECT is meant only where it is named, whatever a regular expression says. Where a request asks for another
    /// method in a header or a parameter that servers obey, that one must be allowed too.
    fn allows_method(&self, request: &Request<'_>) -> bool {
        let named = |method: &str| match method {
            "CONNECT" => self.methods.iter().any(|m| matches!(m, MethodMatch::Exact(m) if &**m == "CONNECT")),
            _ => self.methods.is_empty() || self.methods.iter().any(|named| named.matches(method)),
        };
        let overrides = || request.method_overrides().all(|method| named(&method.to_ascii_uppercase()));
        named(request.effective_method()) && (self.methods.is_empty() || overrides())
    }

    fn allows_path(&self, request: &Request<'_>) -> bool {
        self.path.as_ref().is_none_or(|wanted| wanted.matches_strictly(request))
    }

    fn allows_host(&self, request: &Request<'_>) -> bool {
        self.hosts.is_empty()
            || request.host.is_some_and(|sent| self.hosts.iter().any(|host| host.allows(sent)))
    }

    fn allows_upgrade(&self, request: &Request<'_>) -> bool {
        request.upgrade.is_none_or(|token| self.names_upgrade(token))
    }

    fn names_upgrade(&self, token: &str) -> bool {
        self.upgrades.iter().any(|named| named.eq_ignore_ascii_case(token))
    }

    /// Whether one of those that are offered is named: `h2c, websocket/13` offers two (RFC 9110 §7.8).
    fn names_an_upgrade(&self, offered: &str) -> bool {
        let protocol = |offer: &str| {
            let name = offer.split_once('/').map_or(offer, |(name, _)| name);
            self.names_upgrade(name.trim_matches([' ', '\t']))
        };
        offered.split(',').any(protocol)
    }

    pub(crate) fn allows(&self, request: &Request<'_>) -> bool {
        self.allows_method(request)
            && self.allows_path(request)
            && self.allows_host(request)
            && self.allows_upgrade(request)
            && self.headers.iter().all(|header| header.allows(request).is_ok())
            && self.query.iter().all(|query| query.allows(request).is_ok())
    }

    /// What an item that does not allow failed on. The host and the path first: on the right path a wrong method is
    /// nearer than anything on the wrong one.
    pub(crate) fn miss(&self, request: &Request<'_>) -> Option<Miss> {
        if !self.allows_host(request) {
            let expected = self.hosts.iter().map(|host| host.to_string().into()).collect();
            return Some(Miss::Host { got: request.host.map(Into::into), expected });
        }
        if !self.allows_path(request) {
            return Some(match (request.path.strict(), &self.path) {
                (Some(strict), Some(path)) => Miss::Path { got: strict.into(), expected: path.to_string() },
                _ => Miss::AmbiguousPath { got: request.path.raw().into() },
            });
        }
        if !self.allows_method(request) {
            let expected = self.methods.iter().map(|method| method.to_string().into()).collect();
            // What is asked for beside the method is not a method that was sent; it is what was missed.
            let sent = self.methods.iter().any(|named| named.matches(request.effective_method()));
            let asked = request.method_overrides().next().filter(|_| sent);
            let got = asked.map_or_else(|| request.method.into(), |method| method.into_owned().into());
            return Some(Miss::Method { got, expected });
        }
        if let Some(token) = request.upgrade.filter(|token| !self.names_upgrade(token)) {
            return Some(Miss::Upgrade { got: token.into(), expected: self.upgrades.clone() });
        }
        let header = self.headers.iter().find_map(|header| {
            let found = header.allows(request).err()?;
            Some(Miss::Header { name: header.name.clone(), expected: header.test.to_string(), found })
        });
        header.or_else(|| {
            self.query.iter().find_map(|query| {
                let found = query.allows(request).err()?;
                Some(Miss::Query { name: query.name.clone(), expected: query.test.to_string(), found })
            })
        })
    }

    /// The depth of [`miss`](Self::miss), which makes no texts.
    fn miss_depth(&self, request: &Request<'_>) -> Option<u8> {
        if !self.allows_host(request) {
            Some(depth::HOST)
        } else if !self.allows_path(request) {
            Some(if request.path.strict().is_some() { depth::PATH } else { depth::AMBIGUOUS_PATH })
        } else if !self.allows_method(request) {
            Some(depth::METHOD)
        } else if !self.allows_upgrade(request) {
            Some(depth::UPGRADE)
        } else if !self.headers.iter().all(|header| header.allows(request).is_ok()) {
            Some(depth::HEADER)
        } else {
            self.query.iter().any(|query| query.allows(request).is_err()).then_some(depth::QUERY)
        }
    }

    pub(crate) fn denies(&self, request: &Request<'_>) -> bool {
        // The path last: a request can make its readings dear.
        self.denies_method(request)
            && self.denies_host(request)
            && self.denies_upgrade(request)
            && self.headers.iter().all(|header| header.denies(request))
            && self.query.iter().all(|query| query.denies(request))
            && self.path.as_ref().is_none_or(|path| path.denies(request))
    }

    /// What an item that does not deny was spared by: on the right path a method is nearer than anything else.
    pub(crate) fn deny_miss(&self, request: &Request<'_>) -> Option<Miss> {
        let hosts = || self.hosts.iter().map(|host| host.to_string().into()).collect();
        if !self.denies_host(request) {
            return Some(Miss::Host { got: request.host.map(Into::into), expected: hosts() });
        }
        if let Some(path) = self.path.as_ref().filter(|path| !path.denies(request)) {
            let got = request.path.strict().unwrap_or(request.path.raw());
            return Some(Miss::Path { got: got.into(), expected: path.to_string() });
        }
        if !self.denies_method(request) {
            let expected = self.methods.iter().map(|method| method.to_string().into()).collect();
            return Some(Miss::Method { got: request.method.into(), expected });
        }
        if !self.denies_upgrade(request) {
            let got = request.upgrade.unwrap_or("nothing").into();
            return Some(Miss::Upgrade { got, expected: self.upgrades.clone() });
        }
        let header = self.headers.iter().find(|header| !header.denies(request)).map(|header| {
            let found = header.allows(request).err().unwrap_or("different");
            Miss::Header { name: header.name.clone(), expected: header.test.to_string(), found }
        });
        header.or_else(|| {
            self.query.iter().find(|query| !query.denies(request)).map(|query| {
                let found = query.allows(request).err().unwrap_or("different");
                Miss::Query { name: query.name.clone(), expected: query.test.to_string(), found }
            })
        })
    }

    fn denies_host(&self, request: &Request<'_>) -> bool {
        self.hosts.is_empty() || self.hosts.iter().any(|host| host.denies(request.host))
    }

    fn denies_upgrade(&self, request: &Request<'_>) -> bool {
        self.upgrades.is_empty() || request.upgrade.is_some_and(|offered| self.names_an_upgrade(offered))
    }

    /// Whether a deny takes the method, in any spelling: some servers fold its case, and some take it from a header.
    fn denies_method(&self, request: &Request<'_>) -> bool {
        let sent = [request.method, request.effective_method()].map(std::borrow::Cow::Borrowed);
        self.methods.is_empty()
            || sent.into_iter().chain(request.method_overrides()).any(|method| {
                self.methods.iter().any(|named| match named {
                    MethodMatch::Exact(named) => named.eq_ignore_ascii_case(&method),
                    MethodMatch::Regex(_) => {
                        named.matches(&method) || named.matches(&method.to_ascii_uppercase())
                    }
                })
            })
    }
}

/// The miss that came furthest, the first of equals.
fn nearest(misses: impl Iterator<Item = Miss>) -> Option<Miss> {
    misses.reduce(|best, miss| if miss.depth() > best.depth() { miss } else { best })
}

impl Conditions {
    /// Whether an allow with these conditions grants the request.
    #[must_use]
    pub fn allows(&self, request: &Request<'_>) -> bool {
        self.http.iter().any(|item| item.allows(request)) || self.grpc.iter().any(|item| item.allows(request))
    }

    /// What the item that came furthest failed on; `None` if one of them grants the request.
    #[must_use]
    pub fn nearest_miss(&self, request: &Request<'_>) -> Option<Miss> {
        if self.allows(request) {
            return None;
        }
        let http = self.http.iter().filter_map(|item| item.miss(request));
        let grpc = self.grpc.iter().filter_map(|item| item.miss(request));
        Some(nearest(http.chain(grpc)).unwrap_or_else(|| self.no_request()))
    }

    /// The depth of [`nearest_miss`](Self::nearest_miss), which makes no texts.
    pub(crate) fn miss_depth(&self, request: &Request<'_>) -> Option<u8> {
        if self.allows(request) {
            return None;
        }
        let http = self.http.iter().filter_map(|item| item.miss_depth(request));
        let grpc = self.grpc.iter().filter_map(|item| item.miss_depth(request));
        Some(http.chain(grpc).max().unwrap_or_else(|| self.no_request().depth()))
    }

    /// What a TLS connection failed on; `None` if its server name is granted.
    #[must_use]
    pub fn nearest_miss_tls(&self, server_name: Option<&str>) -> Option<Miss> {
        (!self.allows_tls(server_name)).then(|| self.server_name_miss(server_name))
    }

    /// Whether a deny with these conditions takes the request.
    #[must_use]
    pub fn denies(&self, request: &Request<'_>) -> bool {
        self.http.iter().any(|item| item.denies(request)) || self.grpc.iter().any(|item| item.denies(request))
    }

    /// What the item that came nearest to denying was spared by; `None` if one of them takes the request.
    #[must_use]
    pub fn deny_miss(&self, request: &Request<'_>) -> Option<Miss> {
        if self.denies(request) {
            return None;
        }
        let http = self.http.iter().filter_map(|item| item.deny_miss(request));
        let grpc = self.grpc.iter().filter_map(|item| item.deny_miss(request));
        Some(nearest(http.chain(grpc)).unwrap_or_else(|| self.no_request()))
    }

    /// What a deny that spares a TLS connection was spared by.
    #[must_use]
    pub fn deny_miss_tls(&self, server_name: Option<&str>) -> Option<Miss> {
        (!self.denies_tls(server_name)).then(|| self.server_name_miss(server_name))
    }

    /// Why conditions without one on requests are not met by any.
    fn no_request(&self) -> Miss {
        if self.tls.is_empty() { Miss::NoCondition } else { Miss::NotTls }
    }

    fn server_name_miss(&self, server_name: Option<&str>) -> Miss {
        let expected = self.tls.iter().map(|name| name.to_string().into()).collect();
        Miss::ServerName { got: server_name.map(Into::into), expected }
    }

    /// Whether an allow with these conditions grants a TLS connection to this server name.
    #[must_use]
    pub fn allows_tls(&self, server_name: Option<&str>) -> bool {
        server_name.is_some_and(|name| self.tls.iter().any(|wanted| wanted.matches(name)))
    }

    /// Whether a deny with these conditions takes a TLS connection: requests inside it cannot be known.
    #[must_use]
    pub fn denies_tls(&self, server_name: Option<&str>) -> bool {
        !self.http.is_empty()
            || !self.grpc.is_empty()
            || server_name.is_none_or(|name| self.tls.iter().any(|wanted| wanted.matches(name)))
    }
}
