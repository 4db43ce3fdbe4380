//! A cluster as a source of objects: what its API server says, kept as an index that the compiler reads.
//!
//! `store` is that index, a value without I/O; `watch` fills it, one watch a kind (`reflect`); `definitions` says which
//! kinds exist at all; `shared` is where the two meet the controller's loop. Everything behind it is the way that a
//! directory's objects go as well. Nothing here writes to the API server: that is `write`.

pub mod connect;
mod definitions;
pub mod kinds;
mod reflect;
pub mod shared;
pub mod store;
pub mod watch;

pub use connect::{Access, Client};
pub use shared::Shared;
