//! Real peers for the tests and the demo: servers that record what reached them, clients that say what came
//! back. Each speaks plain protocols through ordinary libraries.
//!
//! Knows nothing of policies or of the product. Called by `sluice-peer`, and by tests in their own process.

pub mod cart;
pub mod echo;
pub mod grpc_client;
pub mod http_client;
pub mod ledger;
pub mod raw_client;
pub mod server;

pub use http_client::{Answer, Ask, Version};
pub use ledger::{Ledger, PortStats, Stats};

/// How long a client waits for anything before it says so.
pub const CLIENT_DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);
