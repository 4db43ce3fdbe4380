//! Network namespaces: entering one for the length of a call, and making one.
//!
//! A thread of its own enters, so that no other code ever runs in the wrong namespace.

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The namespace of this thread.
pub(crate) fn current() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// Runs `work` in a namespace, on a thread of its own.
pub(crate) fn within<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    on_a_thread(|| {
        enter(netns)?;
        work()
    })
}

/// Moves this thread for good.
pub(crate) fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?)
}

/// A new namespace, which lives as long as the descriptor or a socket or a process in it.
pub(crate) fn create() -> io::Result<OwnedFd> {
    on_a_thread(|| {
        // SAFETY: unsharing the network alone touches no memory and no descriptor table; only this
        // short-lived thread changes.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        current()
    })
}

/// Whether two descriptors are of the same namespace.
pub(crate) fn same(a: impl AsFd, b: impl AsFd) -> io::Result<bool> {
    let (a, b) = (rustix::fs::fstat(a)?, rustix::fs::fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

/// Runs on a thread of its own, so that what is changed of it is changed of nothing else.
pub(crate) fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| match std::thread::Builder::new().spawn_scoped(scope, work)?.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
