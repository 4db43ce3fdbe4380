//! The second opinion: a slow and obvious interpreter of policies, written from the specifications alone.
//!
//! It reads manifests as JSON, walks plain lists and evaluates selectors on pods; it has no classes, no profiles and
//! no compiled matchers, and it must never borrow any from the engine, not even a helper: a misreading shared is a
//! misreading unseen. The property tests compare its answers with the engine's.
//!
//! | module | says |
//! |---|---|
//! | [`cluster`] | who is who: pods, nodes, namespaces, and whose an address is |
//! | [`selectors`] | label selectors and address blocks |
//! | [`networkpolicy`] | `NetworkPolicy` v1 |
//! | [`l7`] | `L7NetworkPolicy`: peers, ports, isolation, what must be said |
//! | [`tiers`] | `ClusterNetworkPolicy` and `ClusterL7NetworkPolicy` |
//! | [`cilium`] | `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy` |
//! | [`paths`], [`headers`] | how a path, a host, a header and a query parameter are read |
//! | [`verdict`] | the order of tiers, denies and layers, and audit |
//! | [`kernel`] | what the kernel does before anything is said |
//! | [`services`] | the same, of what is sent to a Service |

#![allow(dead_code, reason = "every test binary uses its part")]

pub(crate) mod cilium;
pub(crate) mod cluster;
pub(crate) mod headers;
pub(crate) mod kernel;
pub(crate) mod l7;
pub(crate) mod networkpolicy;
pub(crate) mod paths;
pub(crate) mod selectors;
pub(crate) mod services;
pub(crate) mod tiers;
pub(crate) mod verdict;
