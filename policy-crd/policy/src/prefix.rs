//! IP prefixes and a longest-prefix table over both families.
//!
//! IPv4 lives in `::ffff:0:0/96`, here as in the kernel's maps, so that one table answers for both.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// The bits of an address, IPv4 as v4-mapped IPv6.
#[must_use]
pub fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// An IP prefix over the v4-mapped space. Host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    bits: u128,
    len: u8,
}

impl Prefix {
    /// All of IPv4 and IPv6.
    pub const EVERYTHING: Self = Self { bits: 0, len: 0 };

    /// The prefix of one address.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self { bits: bits(address), len: 128 }
    }

    /// `address/len` in the address's own family; host bits are cleared. `None` if `len` is too long.
    #[must_use]
    pub fn new(address: IpAddr, len: u8) -> Option<Self> {
        let mapped = match address {
            IpAddr::V4(_) if len <= 32 => len + 96,
            IpAddr::V6(_) if len <= 128 => len,
            _ => return None,
        };
        Some(Self::from_mapped(bits(address), mapped))
    }

    /// The prefix of these mapped bits; host bits are cleared, a length over 128 counts as 128.
    #[must_use]
    pub fn from_mapped(bits: u128, len: u8) -> Self {
        let len = len.min(128);
        Self { bits: bits & mask(len), len }
    }

    /// Parses `10.0.0.0/8` or `fd00::/8`.
    ///
    /// # Errors
    /// Says what is wrong, and what a CIDR looks like.
    pub fn parse(cidr: &str) -> Result<Self, String> {
        let remedy = "write an address, a slash and a prefix length, as 10.0.0.0/8 or fd00::/8";
        let (address, len) =
            cidr.split_once('/').ok_or_else(|| format!("\"{cidr}\" has no prefix length: {remedy}"))?;
        let address: IpAddr =
            address.parse().map_err(|_| format!("\"{address}\" is not an IP address: {remedy}"))?;
        let len: u8 = len.parse().map_err(|_| format!("\"{len}\" is not a prefix length: {remedy}"))?;
        Self::new(address, len)
            .ok_or_else(|| format!("/{len} is too long for {address}: at most /32 for IPv4, /128 for IPv6"))
    }

    /// The mapped bits, network order in the most significant bits.
    #[must_use]
    pub const fn mapped_bits(self) -> u128 {
        self.bits
    }

    /// The length over the mapped space (96 + the length for IPv4).
    #[must_use]
    pub const fn mapped_len(self) -> u8 {
        self.len
    }

    /// Whether the address is in the prefix.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        bits(address) & mask(self.len) == self.bits
    }

    /// Whether `other` lies wholly in this prefix.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.len <= other.len && other.bits & mask(self.len) == self.bits
    }
}

const fn mask(len: u8) -> u128 {
    if len == 0 { 0 } else { u128::MAX << (128 - len) }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = Ipv6Addr::from(self.bits);
        match address.to_ipv4_mapped() {
            Some(v4) if self.len >= 96 => write!(f, "{v4}/{}", self.len - 96),
            _ => write!(f, "{address}/{}", self.len),
        }
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A longest-prefix table: one hash look-up per distinct length, longest first, so a pod's own address is
/// found in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixTable<T> {
    /// Distinct lengths, longest first. At most 129.
    lengths: Vec<u8>,
    entries: HashMap<Prefix, T>,
}

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> PrefixTable<T> {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self { lengths: Vec::new(), entries: HashMap::new() }
    }

    /// Sets the value of a prefix; returns the one it had.
    pub fn insert(&mut self, prefix: Prefix, value: T) -> Option<T> {
        if let Err(at) = self.lengths.binary_search_by(|len| prefix.len.cmp(len)) {
            self.lengths.insert(at, prefix.len);
        }
        self.entries.insert(prefix, value)
    }

    /// The value of the longest prefix that contains the address.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<&T> {
        let bits = bits(address);
        self.lengths.iter().find_map(|&len| self.entries.get(&Prefix::from_mapped(bits, len)))
    }

    /// Every entry, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, &T)> {
        self.entries.iter().map(|(prefix, value)| (*prefix, value))
    }

    /// The number of prefixes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no prefix.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
