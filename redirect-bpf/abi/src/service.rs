//! Services: addresses that a translation replaces after hook A has judged them.

use crate::Address;

/// The key of a port of a Service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServiceKey {
    /// One of its addresses.
    pub address: Address,
    /// The port, network order.
    pub port: [u8; 2],
    /// The protocol, as [`RowKey::protocol_of`](crate::RowKey::protocol_of) gives it.
    pub protocol: u8,
    /// Explicit padding.
    pub pad: u8,
}

/// Set in the classes of Services, so that none is a peer's. Their rows have the port 0 and no bits of it: the
/// class stands for one port of the Service already.
pub const SERVICE_CLASS: u32 = 1 << 31;
/// Ports of Services, by address.
pub const MAX_SERVICES: u32 = 65_536;

const _: () = assert!(size_of::<ServiceKey>() == 20 && align_of::<ServiceKey>() == 1);
