//! What a rule failed on, so that a refusal can say how near it was.
//!
//! Built only once a refusal is certain: the hot path never pays for it.

use crate::port::Protocol;
use std::fmt;
use std::sync::Arc;

/// What a rule failed on. Displays as people read it: `method HEAD not in [GET]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// The rule does not name this peer.
    Peer,
    /// The rule names the peer, on other ports.
    Port {
        /// The protocol of the connection.
        protocol: Protocol,
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
    /// How far the rule came: the deepest miss is the nearest one.
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
