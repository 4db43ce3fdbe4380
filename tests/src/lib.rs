//! What the end-to-end tests and the demo are made of: a world of network namespaces, real peers in it, the
//! product's own binaries started in it, and fixtures that say what must come out.
//!
//! Nothing here is linked into the product. Called by the binaries beside it and by `tests/*.rs`.

pub mod apiserver;
pub mod cluster;
pub mod demo;
pub mod engine;
pub mod fixture;
pub mod harness;
pub mod manifests;
pub mod otlp;
pub mod peer;
pub mod proto;
pub mod rig;
pub mod scene;
pub mod soak;
pub mod world;

pub use world::{Attach, Node, NodeSpec, Overlay, Pod, PodSpec, Process, World, WorldBuilder};
