//! `sluice-proxy`: the data plane of one node.
//!
//! Two processes of one binary. The [`agent`] is privileged: it owns the loader, the feed, the listeners and the
//! telemetry's sockets, and reads no stranger's byte. The [`worker`] is its child: it lives in the proxy's network
//! namespace, reads HTTP, asks the verdict engine and forwards or answers. This crate knows nothing of Kubernetes
//! and never talks to its API.

pub mod agent;
pub mod answer;
pub mod channel;
pub mod check;
pub mod cli;
pub mod confine;
pub mod counters;
pub mod detect;
pub mod dial;
pub mod draft;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod http1;
pub mod http2;
pub mod judge;
pub mod limits;
pub mod proxy;
pub mod record;
pub mod seccomp;
pub mod service;
pub mod share;
pub mod stall;
pub mod state;
pub mod telemetry;
pub mod threads;
pub mod tls;
pub mod tunnel;
pub mod turns;
pub mod worker;
