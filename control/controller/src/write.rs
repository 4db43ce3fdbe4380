//! What is said back to the API server: the status of our own policies, and Events about every policy and node.
//!
//! The one module that writes there. `facts` is what a reading of the objects says of each policy, `desired` what its
//! status should be, `notices` what an operator should be told, `report` what of it is news; none of them does I/O or
//! sees a clock. `queue` is the order of writing and `writer` does it. Of several control planes one writes: `election`
//! says which, by a Lease that `lease` keeps. No verdict depends on any of it.

pub mod desired;
pub mod election;
pub mod facts;
pub mod lease;
pub mod notices;
pub mod queue;
pub mod report;
pub mod writer;

pub use facts::Facts;
pub use lease::Lead;
pub use report::Reporter;
pub use writer::Writer;
