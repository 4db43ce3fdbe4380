//! Trace context and sampling, decided in the worker; spans and their export, in the agent.
//!
//! Nothing here decides anything about a flow.

pub mod context;
pub mod export;
pub mod sampler;
pub mod settings;
pub mod span;
