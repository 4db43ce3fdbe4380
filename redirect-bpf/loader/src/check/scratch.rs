//! A node and two pods of this check's own: three network namespaces without a name, and mounts that nobody else sees.
//!
//! All of it is held by descriptors and threads alone, so that nothing is left however the process ends, and nothing of
//! the machine's is touched. Knows nothing of policies. Called by `packets` and `pins`.

use crate::families::has_v6;
use crate::netlink::{End, Mac, Metrics, Netlink, Way};
use crate::netns;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Addresses for documentation (RFC 5737, RFC 3849), which are nobody's.
const POD_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 11), Ipv4Addr::new(192, 0, 2, 12)];
const POD_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 11), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 12)];
/// What the pods call the node.
const GATEWAY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)), IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1))];
const MTU: u32 = 1_500;

/// Runs on a thread with mounts of its own, in an empty directory of its own in the place of `/run`.
pub(super) fn on_its_own<T: Send>(work: impl FnOnce(&Path) -> io::Result<T> + Send) -> io::Result<T> {
    netns::on_a_thread(|| {
        // SAFETY: unsharing mounts (and with them the working directory) touches no memory and no descriptor table;
        // only this short-lived thread and those that it starts see it.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        mount("sluice-check", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0700,size=1m")?;
        let directory = Path::new("/run/check");
        fs::create_dir(directory)?;
        work(directory)
    })
}

/// A pod.
pub(super) struct Pod {
    pub(super) netns: OwnedFd,
    /// Its addresses: IPv4, and IPv6 where the kernel has it.
    pub(super) addresses: Vec<IpAddr>,
}

/// The node and its pods.
pub(super) struct World {
    pub(super) node: OwnedFd,
    pub(super) pods: [Pod; 2],
}

impl World {
    /// Makes it; on a thread of [`on_its_own`], since the loader looks for pods under `/run/netns`.
    pub(super) fn make() -> io::Result<Self> {
        let node = netns::create()?;
        forward(node.as_fd())?;
        fs::create_dir("/run/netns")?;
        let pods = [pod(node.as_fd(), 0)?, pod(node.as_fd(), 1)?];
        Ok(Self { node, pods })
    }
}

fn forward(node: BorrowedFd<'_>) -> io::Result<()> {
    netns::within(node, || {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        if has_v6() {
            fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0")?;
            fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "0")?;
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        }
        let netlink = Netlink::open()?;
        netlink.link("lo")?.map_or(Ok(()), |lo| netlink.up(lo.index))
    })
}

/// A pod on a routed veth.
fn pod(node: BorrowedFd<'_>, number: u8) -> io::Result<Pod> {
    let pod = netns::create()?;
    // Where a container runtime keeps them.
    let place = format!("/run/netns/check-{number}");
    fs::File::create_new(&place)?;
    mount_bind(format!("/proc/self/fd/{}", pod.as_raw_fd()), &place)?;
    let (outer, name) = ([2, 0, 0, 0, 1, number], format!("check{number}"));
    let inner: Mac = [2, 0, 0, 0, 2, number];
    let v4 = IpAddr::V4(POD_V4[usize::from(number)]);
    let v6 = has_v6().then_some(IpAddr::V6(POD_V6[usize::from(number)]));
    let addresses: Vec<IpAddr> = std::iter::once(v4).chain(v6).collect();
    let device = netns::within(node, || {
        let netlink = Netlink::open()?;
        netlink.add_veth(End { name: &name, mac: outer }, End { name: "eth0", mac: inner }, pod.as_fd())?;
        let device = netlink.link(&name)?.ok_or(io::ErrorKind::NotFound)?.index;
        netlink.up(device).map(|()| device)
    })?;
    netns::within(pod.as_fd(), || {
        if has_v6() {
            fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0")?;
        }
        let netlink = Netlink::open()?;
        let device = netlink.link("eth0")?.ok_or(io::ErrorKind::NotFound)?.index;
        netlink.up(device)?;
        for address in &addresses {
            let via = GATEWAY[usize::from(address.is_ipv6())];
            netlink.add_global_address(device, *address)?;
            netlink.neighbour(device, via, outer)?;
            let metrics = Metrics::of(address.is_ipv6(), MTU, MTU);
            netlink.route(address.is_ipv6(), Way::Default { via, device, metrics })?;
        }
        Ok(())
    })?;
    netns::within(node, || {
        let netlink = Netlink::open()?;
        for address in &addresses {
            netlink.route(address.is_ipv6(), Way::Host { address: *address, device })?;
            netlink.neighbour(device, *address, inner)?;
        }
        Ok(())
    })?;
    Ok(Pod { netns: pod, addresses })
}
