//! Conditions on a request: HTTP and gRPC matches.
//!
//! Each answers two questions that are not each other's opposite. For an allow everything must be known and
//! unambiguous; for a deny one suspicious reading is enough. Knows nothing of sockets, of hyper or of who asks.

use crate::header::HeaderMatch;
use crate::miss::Miss;
use crate::path::{self, Path};
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
}

/// One item of `rules.http`: its parts are `ANDed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HttpMatch {
    /// Any of these; none named means any but CONNECT.
    pub methods: Vec<Arc<str>>,
    /// The path.
    pub path: Option<PathMatch>,
    /// All of these.
    pub headers: Vec<HeaderMatch>,
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
            Self::Regex(regex) => regex.is_match(path.as_bytes()),
        }
    }

    fn matches_any_reading(&self, path: &Path<'_>) -> bool {
        // A deny that is written with escapes means what they stand for, too: servers decode them.
        let plain = match self {
            Self::Exact(value) if value.contains('%') => Some(Self::Exact(path::decode_once(value).into())),
            Self::Prefix(value) if value.contains('%') => Some(Self::Prefix(path::decode_once(value).into())),
            _ => None,
        };
        path.any_reading(|reading| {
            self.matches(reading) || plain.as_ref().is_some_and(|plain| plain.matches(reading))
        })
    }
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(value) => write!(f, "Exact {value}"),
            Self::Prefix(value) if value.is_empty() => write!(f, "PathPrefix /"),
            Self::Prefix(value) => write!(f, "PathPrefix {value}"),
            Self::Regex(regex) => write!(f, "RegularExpression {}", regex.source()),
        }
    }
}

impl HttpMatch {
    fn allows_method(&self, method: &str) -> bool {
        self.methods.iter().any(|named| &**named == method)
            || (self.methods.is_empty() && method != "CONNECT")
    }

    fn allows_path(&self, path: &Path<'_>) -> bool {
        self.path.as_ref().is_none_or(|wanted| path.strict().is_some_and(|strict| wanted.matches(strict)))
    }

    fn allows(&self, request: &Request<'_>) -> bool {
        self.allows_method(request.method)
            && self.allows_path(&request.path)
            && self.headers.iter().all(|header| header.allows(request).is_ok())
    }

    /// What an item that does not allow failed on. The path first: on the right path a wrong method is nearer
    /// than anything on the wrong one.
    fn miss(&self, request: &Request<'_>) -> Option<Miss> {
        if !self.allows_path(&request.path) {
            return Some(match (request.path.strict(), &self.path) {
                (Some(strict), Some(path)) => Miss::Path { got: strict.into(), expected: path.to_string() },
                _ => Miss::AmbiguousPath { got: request.path.raw().into() },
            });
        }
        if !self.allows_method(request.method) {
            return Some(Miss::Method { got: request.method.into(), expected: self.methods.clone() });
        }
        self.headers.iter().find_map(|header| {
            let found = header.allows(request).err()?;
            Some(Miss::Header { name: header.name.clone(), expected: header.test.to_string(), found })
        })
    }

    fn denies(&self, request: &Request<'_>) -> bool {
        (self.methods.is_empty() || self.methods.iter().any(|m| m.eq_ignore_ascii_case(request.method)))
            && self.path.as_ref().is_none_or(|path| path.matches_any_reading(&request.path))
            && self.headers.iter().all(|header| header.denies(request))
    }
}

/// One item of `rules.grpc`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GrpcMatch {
    /// The fully qualified service, as `shop.v1.Cart`.
    pub service: Arc<str>,
    /// Any of these methods; none named means all of the service.
    pub methods: Vec<Arc<str>>,
}

impl GrpcMatch {
    /// Splits `/service/method`.
    fn split(path: &str) -> Option<(&str, &str)> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
    }

    fn matches(&self, path: &str) -> bool {
        Self::split(path).is_some_and(|(service, method)| {
            service == &*self.service
                && (self.methods.is_empty() || self.methods.iter().any(|m| &**m == method))
        })
    }

    /// By the bytes themselves: a gRPC server routes by them and decodes nothing.
    fn allows(&self, request: &Request<'_>) -> bool {
        let raw = request.path.raw();
        request.is_grpc() && request.path.strict() == Some(raw) && self.matches(raw)
    }

    fn miss(&self, request: &Request<'_>) -> Option<Miss> {
        let path = request.path.raw();
        match Self::split(path) {
            _ if self.allows(request) => None,
            _ if !request.is_grpc() => Some(Miss::NotGrpc),
            None => Some(Miss::Path { got: path.into(), expected: "gRPC /service/method".into() }),
            Some((service, _)) if service != &*self.service => {
                Some(Miss::GrpcService { got: service.into(), expected: self.service.clone() })
            }
            Some((_, method)) => {
                Some(Miss::GrpcMethod { got: method.into(), expected: self.methods.clone() })
            }
        }
    }

    /// A deny holds under any method, version and content type.
    fn denies(&self, request: &Request<'_>) -> bool {
        request.path.any_reading(|reading| self.matches(reading))
    }
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
        let nearest =
            http.chain(grpc).reduce(|best, miss| if miss.depth() > best.depth() { miss } else { best });
        Some(nearest.unwrap_or(Miss::NoCondition))
    }

    /// Whether a deny with these conditions takes the request.
    #[must_use]
    pub fn denies(&self, request: &Request<'_>) -> bool {
        self.http.iter().any(|item| item.denies(request)) || self.grpc.iter().any(|item| item.denies(request))
    }
}
