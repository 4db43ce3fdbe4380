//! What control and the nodes say to each other: versioned messages, decoded into valid types or refused whole.
//!
//! Knows the pure core's types and nothing of manifests, sockets or files. Control encodes, the proxy decodes;
//! both open their own transports. A message that breaks any rule of [`decode()`] is refused with the field's name,
//! so that a node keeps what it had instead of enforcing half of something.

pub mod codec;
mod decode;
mod encode;
mod file;
pub mod limits;
mod services;

pub use decode::{DecodeError, decode};
pub use encode::encode;
pub use file::{FileError, from_bytes, to_bytes};

use std::time::Duration;
use tonic::transport::Channel;

/// The version of [`pb::Snapshot`] that this build speaks. Grows with every change after which an older decoder
/// would allow more than was meant.
pub const WIRE_VERSION: u32 = 3;

/// How often a node says what it knows of its kernel. Often enough that somebody who looks sees the last seconds, and
/// seldom enough that 5,000 nodes, which is what Kubernetes is built for, are a thousand small messages a second.
pub const REPORT_PERIOD: Duration = Duration::from_secs(5);
/// A node that has said nothing of its kernel for so long is stale: what is in force there is not known. Four periods:
/// one report may be lost, and one late on a busy node.
pub const STALE_AFTER: Duration = Duration::from_secs(20);

/// The generated messages, client and server.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines, clippy::large_futures)]
pub mod pb {
    tonic::include_proto!("sluice.wire.v1");
}

/// The client of a feed, for nodes.
pub type FeedClient = pb::feed_client::FeedClient<Channel>;
pub use pb::feed_server::{Feed, FeedServer};

/// A client that takes messages up to [`limits::MESSAGE_BYTES`] (tonic's own bound is 4 MiB).
#[must_use]
pub fn feed_client(channel: Channel) -> FeedClient {
    FeedClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES)
}

/// A server that takes acks and reports up to [`limits::FROM_NODE_BYTES`], with no more than
/// [`limits::FROM_NODE_ENTRIES`] in them.
#[must_use]
pub fn feed_server<T: Feed>(feed: T) -> FeedServer<T> {
    FeedServer::new(feed).max_decoding_message_size(limits::FROM_NODE_BYTES)
}

/// Whether the message is one that a node takes by its size; gRPC would refuse it without a word to the sender.
///
/// # Errors
/// How large it is, and what to do.
pub fn fits(snapshot: &pb::Snapshot) -> Result<(), String> {
    let bytes = prost::Message::encoded_len(snapshot);
    if bytes <= limits::MESSAGE_BYTES - ENVELOPE {
        return Ok(());
    }
    Err(format!(
        "the snapshot has {bytes} bytes and a node takes {}: fewer policies, or fewer pods per policy",
        limits::MESSAGE_BYTES - ENVELOPE
    ))
}

/// What [`to_node`] and a file's head add to a snapshot.
const ENVELOPE: usize = 64;

/// The message that carries a snapshot to a node.
#[must_use]
pub fn to_node(snapshot: pb::Snapshot) -> pb::ToNode {
    pb::ToNode { message: Some(pb::to_node::Message::Snapshot(snapshot)) }
}

/// The first message of a node.
#[must_use]
pub fn hello(node: &str, last_generation: u64) -> pb::FromNode {
    let hello = pb::Hello { node: node.to_owned(), wire_version: WIRE_VERSION, last_generation };
    pb::FromNode { message: Some(pb::from_node::Message::Hello(hello)) }
}

/// The message that carries what a node knows of its kernel.
#[must_use]
pub fn kernel(kernel: pb::Kernel) -> pb::FromNode {
    let report = pb::Report { kernel: Some(kernel), ..pb::Report::default() };
    pb::FromNode { message: Some(pb::from_node::Message::Report(report)) }
}

/// The message that carries an ack.
#[must_use]
pub fn ack(ack: pb::Ack) -> pb::FromNode {
    pb::FromNode { message: Some(pb::from_node::Message::Ack(ack)) }
}
