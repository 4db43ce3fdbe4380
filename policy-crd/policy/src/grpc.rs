//! Conditions on gRPC calls, by service and method, however they are carried.
//!
//! Knows nothing of frames or messages; a call is known by its path and by the marks of its protocol.

use crate::miss::{Miss, depth};
use crate::request::{HttpVersion, Request};
use std::fmt;
use std::sync::Arc;

/// How a call is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GrpcProtocol {
    /// gRPC: HTTP/2, POST, `application/grpc` or `application/grpc+…`.
    Grpc,
    /// gRPC-Web: POST, `application/grpc-web` or `application/grpc-web-text`, also with `+…`.
    GrpcWeb,
    /// Connect: POST, `application/connect+…`, or `application/proto` or `application/json` beside
    /// `connect-protocol-version: 1`. Its GET is a plain HTTP request to be named under `http`.
    Connect,
}

impl GrpcProtocol {
    /// As the API writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "GRPC",
            Self::GrpcWeb => "GRPCWeb",
            Self::Connect => "Connect",
        }
    }

    /// Whether the request has every mark of any.
    pub(crate) fn is_any(request: &Request<'_>) -> bool {
        [Self::Grpc, Self::GrpcWeb, Self::Connect].into_iter().any(|protocol| protocol.marks(request))
    }

    /// Whether the request has every mark of it.
    fn marks(self, request: &Request<'_>) -> bool {
        let Some(media) = request.media_type() else { return false };
        let is = |base: &str| {
            media.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
        };
        let version = || {
            let mut given = request.values("connect-protocol-version");
            given.next() == Some(b"1".as_slice()) && given.next().is_none()
        };
        request.method == "POST"
            && match self {
                Self::Grpc => request.version == HttpVersion::Http2 && is("application/grpc"),
                Self::GrpcWeb => is("application/grpc-web") || is("application/grpc-web-text"),
                Self::Connect => {
                    media.starts_with("application/connect+")
                        || (matches!(media, "application/proto" | "application/json") && version())
                }
            }
    }
}

impl fmt::Display for GrpcProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One item of `rules.grpc`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GrpcMatch {
    /// The fully qualified service, as `shop.v1.Cart`.
    pub service: Arc<str>,
    /// Any of these methods; none named means all of the service.
    pub methods: Vec<Arc<str>>,
    /// Any of these; never empty.
    pub protocols: Vec<GrpcProtocol>,
}

impl GrpcMatch {
    /// Calls of gRPC itself.
    #[must_use]
    pub fn grpc(service: &str, methods: impl IntoIterator<Item = Arc<str>>) -> Self {
        let methods = methods.into_iter().collect();
        Self { service: service.into(), methods, protocols: vec![GrpcProtocol::Grpc] }
    }

    /// Splits `/service/method`.
    pub(crate) fn split(path: &str) -> Option<(&str, &str)> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
    }

    fn matches(&self, path: &str) -> bool {
        Self::split(path).is_some_and(|(service, method)| {
            service == &*self.service
                && (self.methods.is_empty() || self.methods.iter().any(|m| &**m == method))
        })
    }

    /// Whether a deny takes this reading: there are servers that route calls without regard to case.
    fn takes(&self, path: &str) -> bool {
        Self::split(path).is_some_and(|(service, method)| {
            service.eq_ignore_ascii_case(&self.service)
                && (self.methods.is_empty() || self.methods.iter().any(|m| m.eq_ignore_ascii_case(method)))
        })
    }

    fn is_carried(&self, request: &Request<'_>) -> bool {
        request.upgrade.is_none() && self.protocols.iter().any(|protocol| protocol.marks(request))
    }

    /// By the bytes themselves: a gRPC server routes by them and decodes nothing.
    pub(crate) fn allows(&self, request: &Request<'_>) -> bool {
        let raw = request.path.raw();
        self.matches(raw) && self.is_carried(request) && request.path.strict() == Some(raw)
    }

    pub(crate) fn miss(&self, request: &Request<'_>) -> Option<Miss> {
        let path = request.path.raw();
        if self.allows(request) {
            None
        } else if !self.is_carried(request) {
            Some(Miss::NotGrpc { expected: self.protocols.clone() })
        } else if request.path.strict() != Some(path) {
            Some(Miss::AmbiguousPath { got: path.into() })
        } else {
            Some(self.path_miss(path))
        }
    }

    /// The depth of [`miss`](Self::miss), which makes no texts.
    pub(crate) fn miss_depth(&self, request: &Request<'_>) -> Option<u8> {
        let path = request.path.raw();
        if self.allows(request) {
            None
        } else if !self.is_carried(request) {
            Some(depth::UNREADABLE)
        } else if request.path.strict() != Some(path) {
            Some(depth::AMBIGUOUS_PATH)
        } else {
            Some(match Self::split(path) {
                None => depth::PATH,
                Some((service, _)) if service != &*self.service => depth::HOST,
                Some(_) => depth::METHOD,
            })
        }
    }

    /// What spared the request: another service, another method of it, or no call by its path.
    pub(crate) fn deny_miss(&self, request: &Request<'_>) -> Option<Miss> {
        let path = request.path.strict().unwrap_or(request.path.raw());
        (!self.denies(request)).then(|| self.path_miss(path))
    }

    /// What a path fails on.
    fn path_miss(&self, path: &str) -> Miss {
        match Self::split(path) {
            None => Miss::Path { got: path.into(), expected: "gRPC /service/method".into() },
            Some((service, _)) if service != &*self.service => {
                Miss::GrpcService { got: service.into(), expected: self.service.clone() }
            }
            Some((_, method)) => Miss::GrpcMethod { got: method.into(), expected: self.methods.clone() },
        }
    }

    /// A deny holds under any method, version and content type.
    pub(crate) fn denies(&self, request: &Request<'_>) -> bool {
        request.any_path_in_any_case(|reading| self.takes(reading))
    }
}
