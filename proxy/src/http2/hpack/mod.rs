//! HPACK (RFC 7541): header blocks decoded strictly, and written so that no table is needed to read them.
//!
//! The decoder keeps the sender's table and says of each field how it was written, so that the encoder can copy the
//! bytes that mean the same without a table. Knows nothing of streams, of HTTP's rules or of policy. Called by the
//! relay.

mod decoder;
mod encoder;
mod huffman;
mod integer;
#[cfg(test)]
mod rfc_tests;
mod table;
#[cfg(test)]
mod wire_tests;

pub use decoder::{Block, Decoder, Form, Line, NameForm};
pub use encoder::{Encoder, FLUSH};
pub use table::{Name, Pseudo};

/// Why a block cannot be read. Each is a connection error `COMPRESSION_ERROR` (RFC 9113 §4.3): whoever lost a field
/// has lost the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It ends within a field.
    Truncated,
    /// An integer that no limit here needs.
    Integer,
    /// An index of no entry.
    Index,
    /// A Huffman code that is none: `EOS`, or padding that is too long or not of ones (§5.2).
    Huffman,
    /// A table larger than was agreed, or its size changed in the wrong place or too often (§4.2).
    TableSize,
}
