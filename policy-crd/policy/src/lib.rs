//! The pure core: rules, matchers, verdicts, rows and the snapshot of one node.
//!
//! Knows nothing of Kubernetes types, serde, sockets, clocks or environment variables. Everything that
//! it needs travels in its arguments; everything that it decides travels in its results. Control compiles
//! into these types, the proxy and the loader read them, and `explain` walks the same walk.

mod asked;
pub mod class;
mod decider;
pub mod fold;
pub mod grpc;
pub mod header;
pub mod host;
pub mod http;
mod index;
pub mod indexed;
pub mod miss;
mod observe;
pub mod origin;
pub mod path;
pub mod port;
pub mod prefix;
pub mod profile;
pub mod query;
pub mod regex;
pub mod request;
mod row;
pub mod service;
pub mod snapshot;
mod stages;
pub mod trace;
pub mod verdict;
pub mod vip;
mod walk;

pub use asked::Effect;
pub use class::{ClassId, ClassSet};
pub use decider::Decider;
pub use fold::{PortPrefix, Row, RowAction, RowEntry};
pub use grpc::{GrpcMatch, GrpcProtocol};
pub use header::{HeaderMatch, HeaderTest};
pub use host::{HostMatch, NameMatch};
pub use http::{Conditions, HttpMatch, MethodMatch, PathMatch};
pub use indexed::{IndexedProfile, IndexedSide, Profiles};
pub use miss::Miss;
pub use observe::StageKind;
pub use origin::{DenyAction, DenyDetail, Kind, Mode, OnDeny, Origin, Policy, PolicyId, RuleName};
pub use port::{PortRange, PortSet, Protocol};
pub use prefix::{Prefix, PrefixTable};
pub use profile::{
    Direction, IsolatedPorts, Isolation, Layer, LayerKind, Profile, ProfileId, Rule, Scope, Side, TierAction,
    TierRule,
};
pub use query::QueryMatch;
pub use regex::Regex;
pub use request::{HttpVersion, Request};
pub use service::{Backend, Service, ServicePort, Services};
pub use snapshot::{Class, Endpoint, Endpoints, Identity, Snapshot, Source, Workload};
pub use trace::{Trace, Traced};
pub use verdict::{
    Audit, AuditFinding, Connection, Decision, Facts, NearestMiss, Outcome, Reason, SideVerdict, Verdict,
};
pub use vip::{Choice, ServiceRow, ServiceRows, VipPort};
