//! Hooks as filters of clsact qdiscs, where the kernel has no tcx links: below Linux 6.6, or where a node is told so.
//!
//! A filter outlives the loader by itself, and is found again by its priority and handle; the handle carries the ABI's
//! version. Ours come first: at the lowest priority, and the kernel puts a new filter before those of its priority.
//! The thread must be in the device's namespace. Called by `attach`.

use crate::netlink::Netlink;
use crate::tc::{Filter, Side};
use sluice_bpf_abi::ABI_VERSION;
use std::collections::HashSet;
use std::io;
use std::os::fd::BorrowedFd;

/// The first there is; 0 would let the kernel choose.
const PRIORITY: u16 = 1;
/// What our handles begin with: `SL`.
const OURS: u32 = 0x534c_0000;
/// Two handles for each version, so that a filter can be put before another one before the old one goes.
const HANDLES: [u32; 2] = [OURS | ABI_VERSION << 4, OURS | ABI_VERSION << 4 | 1];
/// What the names of the filters on pods' devices begin with.
const PODS: [&str; 2] = ["sluice/from_pod", "sluice/to_pod"];
const SIDES: [Side; 2] = [Side::Ingress, Side::Egress];

pub(crate) fn is_ours(filter: &Filter) -> bool {
    filter.handle & 0xffff_0000 == OURS && filter.priority == PRIORITY && filter.kind == "bpf"
}

/// Whether this program, by the kernel's number, judges first on this side of a device.
pub(crate) fn is_first(device: u32, side: Side, program: u32) -> io::Result<bool> {
    Ok(Netlink::open()?.filters(device, side)?.first().is_some_and(|filter| filter.program == program))
}

/// The filter that judges first there, if it is ours and of this version.
pub(crate) fn first(device: u32, side: Side) -> io::Result<Option<Filter>> {
    let first = Netlink::open()?.filters(device, side)?.into_iter().next();
    Ok(first.filter(|filter| is_ours(filter) && HANDLES.contains(&filter.handle)))
}

/// Puts a program before whatever else judges there; one of ours that is there goes after.
pub(crate) fn attach(device: u32, side: Side, program: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let netlink = Netlink::open()?;
    let there = netlink.filters(device, side)?;
    let first = there.first().filter(|filter| is_ours(filter) && HANDLES.contains(&filter.handle));
    let taken = |handle: &u32| there.iter().any(|filter| is_ours(filter) && filter.handle == *handle);
    // In the place of the one that is first already, else in a new place before all.
    let handle = match first {
        Some(filter) => filter.handle,
        None => HANDLES.into_iter().find(|handle| !taken(handle)).unwrap_or(HANDLES[0]),
    };
    netlink.set_filter(device, side, (PRIORITY, handle), program, name)?;
    for old in there.iter().filter(|filter| is_ours(filter) && filter.handle != handle) {
        netlink.remove_filter(device, side, (PRIORITY, old.handle))?;
    }
    Ok(())
}

/// The pods' devices with filters of ours; the helper's go with it.
pub(crate) fn devices() -> io::Result<HashSet<u32>> {
    let netlink = Netlink::open()?;
    let mut found = HashSet::new();
    for link in netlink.links()?.iter().filter(|link| link.kind == "veth") {
        for side in SIDES {
            if netlink
                .filters(link.index, side)?
                .iter()
                .any(|filter| is_ours(filter) && PODS.iter().any(|name| filter.name.starts_with(name)))
            {
                found.insert(link.index);
            }
        }
    }
    Ok(found)
}

/// Whether a device has the qdisc that filters of both sides are in, whoever made it.
pub(crate) fn has_qdisc(device: u32) -> io::Result<bool> {
    Netlink::open()?.has_clsact(device)
}

/// Gives a device that qdisc.
pub(crate) fn add_qdisc(device: u32) -> io::Result<()> {
    Netlink::open()?.add_clsact(device)
}

/// Takes every filter of ours off a device, and the qdisc too if it is `ours` and nobody else has a filter there;
/// whether it is gone.
pub(crate) fn detach(device: u32, ours: bool) -> io::Result<bool> {
    let netlink = Netlink::open()?;
    let mut others = 0;
    for side in SIDES {
        for filter in netlink.filters(device, side)? {
            if is_ours(&filter) {
                netlink.remove_filter(device, side, (filter.priority, filter.handle))?;
            } else {
                others += 1;
            }
        }
    }
    if ours && others == 0 && netlink.has_clsact(device)? {
        netlink.remove_clsact(device)?;
    }
    Ok(!netlink.has_clsact(device)?)
}

/// The devices there are.
pub(crate) fn all_devices() -> io::Result<HashSet<u32>> {
    Ok(Netlink::open()?.links()?.into_iter().map(|link| link.index).collect())
}
