//! Whether the kernel speaks IPv6 at all.
//!
//! Booted with `ipv6.disable=1`, or built without, it has no socket of that family, no sysctl and no route: then a node
//! is set up for IPv4 alone, and what is for the proxy by IPv6 finds nobody there and is dropped. A namespace that only
//! has no address of it, or `disable_ipv6` set, is none of this module's. Called by `helper` and `node`.

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};
use std::path::Path;
use std::sync::Once;

/// Asked of the kernel, not remembered: the module may be loaded later.
pub(crate) fn has_v6() -> bool {
    let none = matches!(socket(AddressFamily::INET6, SocketType::DGRAM, None), Err(Errno::AFNOSUPPORT));
    !none && Path::new("/proc/sys/net/ipv6").exists()
}

/// Says once that there is none.
pub(crate) fn tell() {
    static TOLD: Once = Once::new();
    if !has_v6() {
        TOLD.call_once(|| {
            tracing::warn!(
                "this kernel has no IPv6: the node is set up for IPv4 alone, and flows of IPv6 that L7 rules govern are \
                 refused. Boot it without ipv6.disable=1 if pods are to have IPv6"
            );
        });
    }
}
