//! A snapshot as bytes for the disk, so that a node boots into what it had.
//!
//! Magic, version, sum, message. The sum finds rot, a torn write and a truncated file; it is no signature: who may
//! write the file may write its sum. Opens no file itself. Called by the agent.

use crate::{DecodeError, WIRE_VERSION, decode, encode, limits, pb};
use prost::Message as _;
use sluice_policy::Snapshot;

/// The first bytes of the file.
const MAGIC: &[u8; 8] = b"SLUICESN";
/// Magic, version (4), sum (8).
const HEAD: usize = 8 + 4 + 8;

/// Why a stored snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Another file.
    #[error("this is no stored snapshot: delete it, the feed brings a new one")]
    NotASnapshot,
    /// Written by another version.
    #[error(
        "the stored snapshot has format {found}, this build reads {WIRE_VERSION}: delete it, the feed brings a new one"
    )]
    OtherVersion {
        /// The version found.
        found: u32,
    },
    /// Larger than any message.
    #[error("the stored snapshot has {0} bytes, more than any that was ever written")]
    TooLarge(usize),
    /// Rotten, torn or cut.
    #[error("the stored snapshot is damaged: its sum does not match. Delete it, the feed brings a new one")]
    Damaged,
    /// Not a message, or one that breaks a rule.
    #[error(transparent)]
    Refused(#[from] DecodeError),
}

/// The bytes of a snapshot.
#[must_use]
pub fn to_bytes(snapshot: &Snapshot) -> Vec<u8> {
    let body = encode(snapshot).encode_to_vec();
    let mut bytes = Vec::with_capacity(HEAD + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&WIRE_VERSION.to_be_bytes());
    bytes.extend_from_slice(&sum(&body).to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// The snapshot of these bytes.
///
/// # Errors
/// Says what is wrong with them; nothing of them is used then.
pub fn from_bytes(bytes: &[u8]) -> Result<Snapshot, FileError> {
    if bytes.len() > HEAD + limits::MESSAGE_BYTES {
        return Err(FileError::TooLarge(bytes.len()));
    }
    let rest = bytes.strip_prefix(MAGIC).ok_or(FileError::NotASnapshot)?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or(FileError::Damaged)?;
    let (expected, body) = rest.split_first_chunk::<8>().ok_or(FileError::Damaged)?;
    let found = u32::from_be_bytes(*version);
    if found != WIRE_VERSION {
        return Err(FileError::OtherVersion { found });
    }
    if sum(body) != u64::from_be_bytes(*expected) {
        return Err(FileError::Damaged);
    }
    let message = pb::Snapshot::decode(body).map_err(|_| FileError::Damaged)?;
    Ok(decode(message)?)
}

/// FNV-1a over 64 bits. Each step is a bijection of the state, so that no change of a single byte goes unseen.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |state, byte| {
        (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
