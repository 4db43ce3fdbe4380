//! Conditions on a request: HTTP and gRPC matches, and what they missed by.
//!
//! A matcher is asked with a polarity. For an allow everything must be known and unambiguous; for a deny one
//! suspicious reading is enough. Knows nothing of sockets, of hyper or of who asks.

use crate::path::{self, Path};
use crate::regex::Regex;
use std::fmt;
use std::sync::Arc;

/// The HTTP version that a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// The facts of one request.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The version.
    pub version: HttpVersion,
    /// The method, as sent: methods are case-sensitive (RFC 9110 §9.1).
    pub method: &'a str,
    /// The path, without the query.
    pub path: Path<'a>,
    /// `Host` or `:authority`, as sent.
    pub host: Option<&'a str>,
    /// Every header field in order; names in lower case.
    pub headers: &'a [(&'a str, &'a [u8])],
}

impl Request<'_> {
    /// The values of a header.
    fn values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s [u8]> {
        self.headers.iter().filter(move |(n, _)| *n == name).map(|(_, value)| *value)
    }

    /// Values of every header that some server takes for this one: `_` beside `-`.
    fn loose_values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s [u8]> {
        let same = move |other: &str| {
            other.len() == name.len()
                && other.bytes().zip(name.bytes()).all(|(a, b)| {
                    let fold = |c: u8| if c == b'_' { b'-' } else { c.to_ascii_lowercase() };
                    fold(a) == fold(b)
                })
        };
        self.headers.iter().filter(move |(n, _)| same(n)).map(|(_, value)| *value)
    }

    /// Whether this is a gRPC request by all its marks: HTTP/2, POST, `application/grpc` or
    /// `application/grpc+…`.
    fn is_grpc(&self) -> bool {
        let mut types = self.values("content-type");
        let grpc = types.next().is_some_and(|value| {
            value
                .strip_prefix(b"application/grpc")
                .is_some_and(|rest| rest.is_empty() || rest[0] == b'+' || rest[0] == b';')
        });
        grpc && types.next().is_none() && self.version == HttpVersion::Http2 && self.method == "POST"
    }
}

/// Whether a match is asked for an allow or for a deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polarity {
    /// Everything must be known.
    Allow,
    /// Any suspicion is enough.
    Deny,
}

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
        path.any_reading(|reading| self.matches(reading))
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

/// A header condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderMatch {
    /// The field name, in lower case.
    pub name: Arc<str>,
    /// What of it.
    pub test: HeaderTest,
}

/// What a header must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HeaderTest {
    /// Exactly this value.
    Exact(Arc<str>),
    /// The whole value matches.
    Regex(Regex),
    /// Present, with any value.
    Present,
    /// Not present.
    Absent,
}

impl fmt::Display for HeaderTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(value) => write!(f, "Exact {value}"),
            Self::Regex(regex) => write!(f, "RegularExpression {}", regex.source()),
            Self::Present => write!(f, "Present"),
            Self::Absent => write!(f, "Absent"),
        }
    }
}

impl HeaderMatch {
    fn test_value(&self, value: &[u8]) -> bool {
        match &self.test {
            HeaderTest::Exact(expected) => value == expected.as_bytes(),
            HeaderTest::Regex(regex) => regex.is_match(value),
            HeaderTest::Present => true,
            HeaderTest::Absent => false,
        }
    }

    fn allows(&self, request: &Request<'_>) -> Result<(), Miss> {
        // `_` beside `-` is the same header to CGI-like servers: seen beside the name, it is ambiguous.
        let mut values = request.loose_values(&self.name);
        let found = match (values.next(), values.next()) {
            (None, _) => "absent",
            (Some(_), Some(_)) => "given more than once",
            (Some(_), None) => match request.values(&self.name).next() {
                None => "spelt with _",
                Some(value) if self.test_value(value) => return Ok(()),
                Some(_) if self.test == HeaderTest::Absent => "present",
                Some(_) => "different",
            },
        };
        if self.test == HeaderTest::Absent && found == "absent" {
            return Ok(());
        }
        Err(Miss::Header { name: self.name.clone(), expected: self.test.to_string(), found })
    }

    fn denies(&self, request: &Request<'_>) -> bool {
        let mut values = request.loose_values(&self.name).peekable();
        match self.test {
            HeaderTest::Absent => values.peek().is_none() || request.values(&self.name).next().is_none(),
            _ => values.any(|value| {
                self.test_value(value)
                    || self.test_value(value.trim_ascii())
                    || decoded(value).is_some_and(|plain| self.test_value(&plain))
                    || value.split(|b| *b == b',').any(|part| self.test_value(part.trim_ascii()))
            }),
        }
    }
}

/// The value with its percent-escapes decoded, if it has any.
fn decoded(value: &[u8]) -> Option<Vec<u8>> {
    if !value.contains(&b'%') {
        return None;
    }
    let hex = |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16));
    let mut out = Vec::with_capacity(value.len());
    let mut at = 0;
    while let Some(&byte) = value.get(at) {
        match (byte, hex(value.get(at + 1)), hex(value.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or(b'%'));
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Some(out)
}

impl HttpMatch {
    fn allows(&self, request: &Request<'_>) -> Result<(), Miss> {
        let named = self.methods.iter().any(|method| &**method == request.method);
        if !named && (!self.methods.is_empty() || request.method == "CONNECT") {
            return Err(Miss::Method { got: request.method.into(), expected: self.methods.clone() });
        }
        if let Some(path) = &self.path {
            match request.path.strict() {
                None => return Err(Miss::AmbiguousPath { got: request.path.raw().into() }),
                Some(strict) if !path.matches(strict) => {
                    return Err(Miss::Path { got: strict.into(), expected: path.to_string() });
                }
                Some(_) => {}
            }
        }
        self.headers.iter().try_for_each(|header| header.allows(request))
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

    fn allows(&self, request: &Request<'_>) -> Result<(), Miss> {
        if !request.is_grpc() {
            return Err(Miss::NotGrpc);
        }
        // The bytes themselves: a gRPC server routes by them and decodes nothing.
        let path = request.path.raw();
        match Self::split(path) {
            Some((service, _)) if service != &*self.service => {
                Err(Miss::GrpcService { got: service.into(), expected: self.service.clone() })
            }
            Some((_, method)) if !self.matches(path) => {
                Err(Miss::GrpcMethod { got: method.into(), expected: self.methods.clone() })
            }
            Some(_) => Ok(()),
            None => Err(Miss::Path { got: path.into(), expected: "gRPC /service/method".into() }),
        }
    }

    /// A deny holds under any method, version and content type.
    fn denies(&self, request: &Request<'_>) -> bool {
        request.path.any_reading(|reading| self.matches(reading))
    }
}

impl Conditions {
    /// Whether an allow with these conditions grants the request; else the nearest miss.
    ///
    /// # Errors
    /// What the item that came furthest failed on.
    pub fn allows(&self, request: &Request<'_>) -> Result<(), Miss> {
        let mut nearest: Option<Miss> = None;
        let http = self.http.iter().map(|item| item.allows(request));
        let grpc = self.grpc.iter().map(|item| item.allows(request));
        for result in http.chain(grpc) {
            match result {
                Ok(()) => return Ok(()),
                Err(miss) if nearest.as_ref().is_none_or(|best| miss.depth() > best.depth()) => {
                    nearest = Some(miss);
                }
                Err(_) => {}
            }
        }
        Err(nearest.unwrap_or(Miss::NoCondition))
    }

    /// Whether a deny with these conditions takes the request.
    #[must_use]
    pub fn denies(&self, request: &Request<'_>) -> bool {
        self.http.iter().any(|item| item.denies(request)) || self.grpc.iter().any(|item| item.denies(request))
    }
}

/// What a rule failed on. Displays as people read it: `method HEAD not in [GET]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// The rule does not name this peer.
    Peer,
    /// The rule names the peer, on other ports.
    Port {
        /// The protocol of the connection.
        protocol: crate::port::Protocol,
        /// Its port.
        port: u16,
    },
    /// The bytes are no request that anybody could judge.
    Unreadable,
    /// Not a gRPC request by its version, method and content type.
    NotGrpc,
    /// Another gRPC service.
    GrpcService {
        /// The service called.
        got: Arc<str>,
        /// The service allowed.
        expected: Arc<str>,
    },
    /// Another gRPC method.
    GrpcMethod {
        /// The method called.
        got: Arc<str>,
        /// The methods allowed.
        expected: Vec<Arc<str>>,
    },
    /// Another HTTP method.
    Method {
        /// The method sent.
        got: Arc<str>,
        /// The methods allowed.
        expected: Vec<Arc<str>>,
    },
    /// A path that servers read differently.
    AmbiguousPath {
        /// The path sent.
        got: Arc<str>,
    },
    /// Another path.
    Path {
        /// The path, normalised.
        got: Arc<str>,
        /// The condition.
        expected: String,
    },
    /// A header.
    Header {
        /// Its name.
        name: Arc<str>,
        /// The condition.
        expected: String,
        /// What was found instead.
        found: &'static str,
    },
    /// The rule has an empty list of conditions, which nothing meets.
    NoCondition,
}

impl Miss {
    /// How far the rule came: the deepest miss is the nearest one. A wrong method on the right path is nearer
    /// than the wrong path, so the method ranks above it although it is tested first.
    #[must_use]
    pub const fn depth(&self) -> u8 {
        match self {
            Self::Peer => 0,
            Self::Port { .. } => 1,
            Self::NoCondition => 2,
            Self::Unreadable | Self::NotGrpc => 3,
            Self::GrpcService { .. } => 4,
            Self::AmbiguousPath { .. } => 5,
            Self::Path { .. } => 6,
            Self::Method { .. } | Self::GrpcMethod { .. } => 7,
            Self::Header { .. } => 8,
        }
    }
}

/// Longest list printed in a miss: a message is read by people.
const SHOWN: usize = 8;

fn list(f: &mut fmt::Formatter<'_>, items: &[Arc<str>]) -> fmt::Result {
    f.write_str("[")?;
    for (index, item) in items.iter().take(SHOWN).enumerate() {
        write!(f, "{}{item}", if index == 0 { "" } else { ", " })?;
    }
    f.write_str(if items.len() > SHOWN { ", …]" } else { "]" })
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer => f.write_str("peer not selected"),
            Self::Port { protocol, port } if protocol.has_ports() => {
                write!(f, "port {port}/{protocol} not named")
            }
            Self::Port { protocol, .. } => write!(f, "protocol {protocol} not named"),
            Self::Unreadable => f.write_str("not readable as HTTP"),
            Self::NotGrpc => f.write_str("not a gRPC request (HTTP/2, POST, content-type application/grpc)"),
            Self::GrpcService { got, expected } => write!(f, "gRPC service {got} is not {expected}"),
            Self::GrpcMethod { got, expected } => {
                write!(f, "gRPC method {got} not in ")?;
                list(f, expected)
            }
            Self::Method { got, expected } => {
                write!(f, "method {got} not in ")?;
                list(f, expected)
            }
            Self::AmbiguousPath { got } => write!(f, "path {got} is read differently by different servers"),
            Self::Path { got, expected } => write!(f, "path {got} does not match {expected}"),
            Self::Header { name, expected, found } => {
                write!(f, "header {name} is {found}, expected {expected}")
            }
            Self::NoCondition => f.write_str("the rule's list of conditions is empty"),
        }
    }
}
