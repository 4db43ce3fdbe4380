//! How much one policy may hold. The schema that the API server checks and the compiler take the same numbers
//! from here, so that what is stored is never more than what is judged.
//!
//! The product of nested lists bounds what the API server's CEL rules may cost (10,000,000 units an expression,
//! 100,000,000 a CRD): with 256 alternatives instead of 128 it refuses the CRD.

/// Rules of one list (`ingress`, `egress`, `ingressDeny`, `egressDeny`).
pub const MAX_RULES: usize = 64;
/// Items of `from` or `to`.
pub const MAX_PEERS: usize = 64;
/// Items of `ports`.
pub const MAX_PORTS: usize = 64;
/// Exceptions of one `ipBlock`.
pub const MAX_EXCEPT: usize = 64;
/// Service accounts of one peer.
pub const MAX_SERVICE_ACCOUNTS: usize = 64;
/// Entities of one peer: there are no more.
pub const MAX_ENTITIES: usize = 5;
/// Labels, or expressions, of one selector.
pub const MAX_SELECTOR: usize = 32;
/// Values of one expression of a selector.
pub const MAX_SELECTOR_VALUES: usize = 64;

/// Alternatives of `rules.http` or of `rules.grpc`: every request to the port may be compared with all of them.
pub const MAX_MATCHES: usize = 128;
/// Methods of one alternative: more than are registered with IANA.
pub const MAX_METHODS: usize = 64;
/// Hosts of one alternative.
pub const MAX_HOSTS: usize = 32;
/// Headers of one alternative, and query parameters of one.
pub const MAX_HEADERS: usize = 32;
/// Upgrades of one alternative: there is one.
pub const MAX_UPGRADES: usize = 1;
/// Protocols of one gRPC alternative: there are no more.
pub const MAX_PROTOCOLS: usize = 3;
/// Server names of `rules.tls`.
pub const MAX_SERVER_NAMES: usize = 64;
/// Regular expressions of one policy: each costs every node memory, and the node has a bound for all.
pub const MAX_REGEXES: usize = 128;

/// Longest rule name: it travels in every verdict.
pub const MAX_RULE_NAME: usize = 253;
/// Longest path, header value, query value or regular expression: longer ones are rare in requests and refused by
/// many servers.
pub const MAX_VALUE: usize = 4096;
/// Longest name of a header or a query parameter.
pub const MAX_FIELD_NAME: usize = 256;
/// Longest method, of HTTP or of gRPC.
pub const MAX_METHOD: usize = 256;
/// Longest gRPC service, with its package.
pub const MAX_SERVICE: usize = 512;
/// Longest host or server name: the longest that DNS has (RFC 1035 §2.3.4), and a wildcard's `*.`.
pub const MAX_HOST: usize = 255;
/// Longest name of a namespace or value of a label (RFC 1123).
pub const MAX_LABEL: usize = 63;
/// Longest key of a label: a prefix, a slash and a name.
pub const MAX_LABEL_KEY: usize = 317;
/// Longest name of an object.
pub const MAX_OBJECT_NAME: usize = 253;
/// Longest CIDR: `ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255/128`.
pub const MAX_CIDR: usize = 49;
/// Longest port name (RFC 6335 §5.1).
pub const MAX_PORT_NAME: usize = 15;
/// Greatest port.
pub const MAX_PORT: i32 = 65_535;
/// Greatest priority of a cluster's policy; the least is 0, and the lower is asked first.
pub const MAX_PRIORITY: i32 = 1000;
/// Conditions of a status: one for each type.
pub const MAX_CONDITIONS: usize = 8;
