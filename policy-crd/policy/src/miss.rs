//! What a rule failed on, so that a refusal can say how near it was.
//!
//! Built only once a refusal is certain: the hot path never pays for it.

use crate::grpc::GrpcProtocol;
use crate::port::Protocol;
use std::fmt;
use std::sync::Arc;

/// What a rule failed on. Displays as people read it: `method HEAD not in [GET]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// The rule does not name this peer.
    Peer,
    /// Nobody knows who the peer is, and no allow takes it.
    UnknownPeer,
    /// The rule is about requests, which this protocol cannot carry.
    Protocol {
        /// The protocol of the connection.
        protocol: Protocol,
    },
    /// The rule names the peer, on other ports.
    Port {
        /// The protocol of the connection.
        protocol: Protocol,
        /// Its port.
        port: u16,
    },
    /// Nothing has been said yet: each request will be asked.
    NoRequest,
    /// The bytes are no request that anybody could judge.
    Unreadable,
    /// Not a gRPC request by its version, method and content type.
    NotGrpc {
        /// The protocols that would have been.
        expected: Vec<GrpcProtocol>,
    },
    /// Another host, or none.
    Host {
        /// The host sent.
        got: Option<Arc<str>>,
        /// The hosts allowed.
        expected: Vec<Arc<str>>,
    },
    /// An upgrade that the rule does not name.
    Upgrade {
        /// What was asked for.
        got: Arc<str>,
        /// The upgrades allowed.
        expected: Vec<Arc<str>>,
    },
    /// A query parameter.
    Query {
        /// Its name.
        name: Arc<str>,
        /// The condition.
        expected: String,
        /// What was found instead.
        found: &'static str,
    },
    /// TLS to another server name, or to none that can be read.
    ServerName {
        /// The server name asked for.
        got: Option<Arc<str>>,
        /// The server names allowed; empty where the rule is about requests.
        expected: Vec<Arc<str>>,
    },
    /// A request in clear where the rule is about TLS.
    NotTls,
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

/// How far a rule comes that misses: [`Miss::depth`], for those who ask before they know what to say.
pub(crate) mod depth {
    pub(crate) const PEER: u8 = 0;
    pub(crate) const PORT: u8 = 1;
    pub(crate) const NO_CONDITION: u8 = 2;
    pub(crate) const UNREADABLE: u8 = 3;
    pub(crate) const HOST: u8 = 4;
    pub(crate) const AMBIGUOUS_PATH: u8 = 5;
    pub(crate) const PATH: u8 = 6;
    pub(crate) const METHOD: u8 = 7;
    pub(crate) const UPGRADE: u8 = 8;
    pub(crate) const HEADER: u8 = 9;
    pub(crate) const QUERY: u8 = 10;
}

impl Miss {
    /// How far the rule came: the deepest miss is the nearest one.
    #[must_use]
    pub const fn depth(&self) -> u8 {
        match self {
            Self::Peer | Self::UnknownPeer => depth::PEER,
            Self::Port { .. } | Self::Protocol { .. } => depth::PORT,
            Self::NoCondition | Self::NoRequest => depth::NO_CONDITION,
            Self::Unreadable | Self::NotGrpc { .. } | Self::NotTls => depth::UNREADABLE,
            Self::GrpcService { .. } | Self::Host { .. } | Self::ServerName { .. } => depth::HOST,
            Self::AmbiguousPath { .. } => depth::AMBIGUOUS_PATH,
            Self::Path { .. } => depth::PATH,
            Self::Method { .. } | Self::GrpcMethod { .. } => depth::METHOD,
            Self::Upgrade { .. } => depth::UPGRADE,
            Self::Header { .. } => depth::HEADER,
            Self::Query { .. } => depth::QUERY,
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
            Self::UnknownPeer => f.write_str("nobody knows who the peer is"),
            Self::Protocol { protocol } => write!(f, "no request can be read over {protocol}"),
            Self::NoRequest => f.write_str("decided by each request"),
            Self::Port { protocol, port } if protocol.has_ports() => {
                write!(f, "port {port}/{protocol} not named")
            }
            Self::Port { protocol, .. } => write!(f, "protocol {protocol} not named"),
            Self::Unreadable => f.write_str("not readable as HTTP"),
            Self::NotGrpc { expected } if expected[..] == [GrpcProtocol::Grpc] => {
                f.write_str("not a gRPC request (HTTP/2, POST, content-type application/grpc)")
            }
            Self::NotGrpc { expected } => {
                f.write_str("not a request of ")?;
                list(f, &expected.iter().map(|protocol| protocol.as_str().into()).collect::<Vec<_>>())
            }
            Self::Host { got: Some(got), expected } => {
                write!(f, "host {got} not in ")?;
                list(f, expected)
            }
            Self::Host { got: None, expected } => {
                f.write_str("no host, expected ")?;
                list(f, expected)
            }
            Self::Upgrade { got, expected } if expected.is_empty() => {
                write!(f, "upgrade to {got}, which the rule does not name")
            }
            Self::Upgrade { got, expected } => {
                write!(f, "upgrade to {got} not in ")?;
                list(f, expected)
            }
            Self::Query { name, expected, found } => {
                write!(f, "query parameter {name} is {found}, expected {expected}")
            }
            Self::ServerName { expected, .. } if expected.is_empty() => {
                f.write_str("TLS, in which no request can be read")
            }
            Self::ServerName { got: Some(got), expected } => {
                write!(f, "server name {got} not in ")?;
                list(f, expected)
            }
            Self::ServerName { got: None, expected } => {
                f.write_str("no readable server name, expected ")?;
                list(f, expected)
            }
            Self::NotTls => f.write_str("not TLS"),
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
