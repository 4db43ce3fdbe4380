//! What the worker gives up before it reads the first stranger's byte: its user, capabilities, groups, and nearly all of
//! the kernel. For good.
//!
//! One capability stays, `CAP_NET_RAW`: each socket to a server carries the client's address (`IP_TRANSPARENT`), for which
//! the kernel wants it or `CAP_NET_ADMIN` (`do_ip_setsockopt`, `net/ipv4/ip_sockglue.c`, and `ipv6_sockglue.c`), and only
//! the latter changes routes and devices. What else it is for, raw and packet sockets, the filter of system calls takes
//! away. Without it the agent would have to open each socket, and be on the way of each connection. Called by the worker
//! while it has one thread.

use crate::seccomp;
use anyhow::Context as _;
use rustix::fs::{Gid, Uid};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Whom the worker runs as, unless told otherwise: a number that nobody else has. Above it are nogroup and what images call
/// nonroot (65532), below systemd's dynamic users (61184 to 65519).
pub const WORKER_ID: u32 = 65_525;

/// Whom the worker runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Its user.
    pub uid: u32,
    /// Its only group.
    pub gid: u32,
}

impl Default for User {
    fn default() -> Self {
        Self { uid: WORKER_ID, gid: WORKER_ID }
    }
}

/// What stays.
const KEPT: CapabilitySet = CapabilitySet::NET_RAW;

/// Gives everything up.
///
/// # Errors
/// What could not be given up: then nothing must be read.
pub fn confine(user: User) -> anyhow::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
    // Nothing is executed any more, so this stops nobody; and who lacks CAP_SETPCAP goes on without it.
    for capability in CapabilitySet::all().difference(KEPT).iter() {
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    rustix::thread::set_keep_capabilities(true).context("keep a capability")?;
    rustix::thread::set_thread_groups(&[]).context("leave every group: CAP_SETGID is needed")?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .context("take the worker's group: CAP_SETGID is needed")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .context("take the worker's user: CAP_SETUID is needed")?;
    rustix::thread::set_keep_capabilities(false).context("keep no more capabilities")?;
    let sets = CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
        .context("drop capabilities: CAP_NET_RAW must be among them")?;
    rustix::thread::clear_ambient_capability_set().context("drop ambient capabilities")?;
    // Nobody of the same user looks into it, and no core of it, with what strangers said, is left anywhere.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("be not dumpable")?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .context("leave no core")?;
    // Another user's wish is forgotten.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("ask to be killed with the agent")?;
    seccomp::apply().context("allow no more system calls than are needed")
}
