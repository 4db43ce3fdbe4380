//! Takes a part of the kernel away, from one thread or from a device, for tests of what is then.
//!
//! Part of the feature `crash-points`, which no binary that is shipped has. Called by the datapath's tests.

use crate::sys;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// Takes a link off its device, whoever holds it, as an administrator may.
///
/// # Errors
/// If there is no link of this number, or with the kernel's reason.
pub fn link(id: u32) -> io::Result<()> {
    sys::detach(sys::link(id)?.as_fd())
}

/// Takes what is in a slot out of a map of maps, which is pinned there.
///
/// # Errors
/// If there is no such pin, or with the kernel's reason.
pub fn inner_map(pin: &Path, slot: u32) -> io::Result<()> {
    let map = sys::get(pin)?;
    // SAFETY: the key of a map of maps is a number as long as this.
    unsafe { sys::delete(map.as_fd(), std::ptr::from_ref(&slot).cast()) }
}

const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const NUMBER_OF_THE_CALL: u32 = 0;
/// The lower half of the first argument, where a number is stored with its lower half first.
const FIRST_ARGUMENT: u32 = 16;

/// From now on this thread, and those that it starts, have no socket of IPv6: `EAFNOSUPPORT`, as with `ipv6.disable=1`.
/// What is open stays.
///
/// # Errors
/// If the kernel has no seccomp filters, or this thread may set none.
pub fn ipv6() -> io::Result<()> {
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let error = libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32;
    let mut filter = [
        step(LOAD_WORD, 0, 0, NUMBER_OF_THE_CALL),
        step(JUMP_IF_EQUAL, 0, 3, libc::SYS_socket as u32),
        step(LOAD_WORD, 0, 0, FIRST_ARGUMENT),
        step(JUMP_IF_EQUAL, 0, 1, libc::AF_INET6 as u32),
        step(RETURN, 0, 0, error),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its steps live for the call, which copies them; it concerns this thread alone.
    let done = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, std::ptr::from_ref(&program))
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
