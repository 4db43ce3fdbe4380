//! The sizes that a message may have. Each is far above what a node needs and below what would hurt it.
//!
//! What one object may say is bounded where it is lowered, with a problem on that object. A limit here that a
//! single object could reach would let it keep a whole node from its next snapshot.

/// One message from control. A node of 250 pods among 100,000 others takes some 20 MB.
pub const MESSAGE_BYTES: usize = 64 << 20;
/// One message from a node: its endpoints with a reason each, or a batch of records.
pub const FROM_NODE_BYTES: usize = 4 << 20;
/// Elements of all lists in one message from a node: every endpoint twice, or a batch of 512 records. An empty element
/// takes two bytes of the message and some 300 of memory.
pub const FROM_NODE_ENTRIES: usize = 1 << 14;
/// Changes of a node that a report names, the latest: more are as bad.
pub const DRIFTS: usize = 32;
/// Reasons that packets are counted by: several times as many as there are.
pub const COUNTERS: usize = 256;
/// Maps of a node's kernel: several times as many as there are.
pub const MAPS: usize = 64;
/// The name of a counter or a map.
pub const COUNTER_BYTES: usize = 64;
/// A sentence of a node for people: a reason with its remedy.
pub const SENTENCE_BYTES: usize = 1 << 12;
/// Policies that reach one node.
pub const POLICIES: usize = 1 << 16;
/// Peer classes: the kernel's rows multiply with them.
pub const CLASSES: usize = 1 << 16;
/// CIDRs noted on a class, for people.
pub const CLASS_CIDRS: usize = 1 << 16;
/// Prefixes of the address table: the kernel's map holds no more.
pub const ADDRESSES: usize = 1 << 18;
/// Pods that telemetry can name.
pub const WORKLOADS: usize = 1 << 20;
/// Endpoints of one node; the kubelet's own default is 110 pods.
pub const ENDPOINTS: usize = 1 << 12;
/// Addresses of one endpoint or workload: dual stack needs two.
pub const POD_ADDRESSES: usize = 64;
/// Rules of one deny list or one layer.
pub const RULES: usize = 1 << 16;
/// Isolations of one layer.
pub const ISOLATIONS: usize = 1 << 16;
/// Scopes of one rule: one for each number that its named ports have somewhere.
pub const SCOPES: usize = 1 << 18;
/// Port ranges of one scope or isolation.
pub const RANGES: usize = 1 << 16;
/// Distinct conditions.
pub const CONDITIONS: usize = 1 << 16;
/// Matches of one list of conditions.
pub const MATCHES: usize = 1 << 12;
/// Methods of one match.
pub const METHODS: usize = 1 << 10;
/// Protocols of one gRPC match: there are three.
pub const GRPC_PROTOCOLS: usize = 8;
/// Headers or query parameters of one match.
pub const HEADERS: usize = 1 << 8;
/// Distinct regular expressions. Each may take `sluice_policy::regex::REGEX_SIZE_LIMIT` bytes and milliseconds.
pub const REGEXES: usize = 1 << 14;
/// Names of objects, nodes, service accounts, rules. Kubernetes has 253 bytes; a directory of manifests has no API
/// server that says so.
pub const NAME_BYTES: usize = 1 << 16;
/// The canonical form of an identity: labels with their values.
pub const IDENTITY_BYTES: usize = 1 << 24;
/// A method, a path, a header's value, a regular expression.
pub const TEXT_BYTES: usize = 1 << 16;
/// Services of one snapshot: each is some hundred bytes, and clusters have a pod network's worth at most.
pub const SERVICES: usize = 1 << 16;
/// Ports of one Service: the API server takes no more in one `EndpointSlice`.
pub const SERVICE_PORTS: usize = 1 << 10;
/// Backends of one port of a Service: 100 `EndpointSlices` of their largest size.
pub const BACKENDS: usize = 1 << 17;
