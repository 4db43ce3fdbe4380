//! What can be said of an address alone.

use super::HEAD;
use sluice_bpf_abi::Address;

/// Whether an address is `fe80::/10`.
#[inline(always)]
pub(crate) fn is_link_local(address: &Address) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}

/// Whether an address is `::`, which a pod that looks for duplicates sends from, or `0.0.0.0`.
#[inline(always)]
pub(crate) fn is_unspecified(address: &Address) -> bool {
    (is_low(address) && address[15] == 0)
        || (is_mapped(address) && address[12] | address[13] | address[14] | address[15] == 0)
}

/// Whether an address is a multicast group, or `255.255.255.255`.
#[inline(always)]
pub(super) fn is_group(v6: bool, address: &Address) -> bool {
    if v6 {
        return address[0] == 0xff;
    }
    address[12] >> 4 == 0xe || address[12] & address[13] & address[14] & address[15] == 0xff
}

/// The bytes of an address from `first` on, which are in the head at `at`.
#[inline(always)]
pub(super) fn copy(address: &mut Address, first: usize, head: &[u8; HEAD], at: usize) {
    let mut i = first;
    while i < 16 {
        address[i] = head[at + i - first];
        i += 1;
    }
}

#[inline(always)]
pub(super) const fn bad_v4(first: u8) -> bool {
    first == 0 || first == 127
}

#[inline(always)]
pub(super) fn is_mapped(address: &Address) -> bool {
    zero(address, 10) && address[10] == 0xff && address[11] == 0xff
}

/// Whether an address is `::` or `::1`.
#[inline(always)]
pub(super) fn is_low(address: &Address) -> bool {
    zero(address, 15) && address[15] < 2
}

#[inline(always)]
fn zero(address: &Address, bytes: usize) -> bool {
    let mut all = 0;
    let mut i = 0;
    while i < bytes {
        all |= address[i];
        i += 1;
    }
    all == 0
}
