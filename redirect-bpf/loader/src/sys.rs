//! The bpf(2) calls that aya does not make.
//!
//! Knows nothing of what the links are for. Called by `bpffs`, and by `elements`, which knows what is in a map.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_DETACH: libc::c_long = 34;

/// What is done to many (Linux 5.6; of tries 5.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    /// Reads the next ones.
    Lookup = 24,
    /// Writes these.
    Update = 26,
    /// Removes these.
    Delete = 27,
}

/// `union bpf_attr` of `BPF_MAP_DELETE_ELEM`, which takes nothing behind the key.
#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
}

/// `union bpf_attr` of `BPF_OBJ_GET`.
#[repr(C)]
struct ObjectGet {
    path: u64,
    fd: u32,
    flags: u32,
}

/// `union bpf_attr` of `BPF_LINK_DETACH`.
#[repr(C)]
struct LinkDetach {
    link: u32,
}

/// `union bpf_attr` of [`Batch`].
#[repr(C)]
struct MapBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Removes one element.
///
/// # Safety
/// `key` points at a key of the map.
pub(crate) unsafe fn delete(map: BorrowedFd<'_>, key: *const u8) -> io::Result<()> {
    let mut attributes = Element { map: map.as_raw_fd() as u32, pad: 0, key: key as u64 };
    call(BPF_MAP_DELETE_ELEM, &mut attributes).map(|_| ())
}

/// What the kernel reads and writes where many elements are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Many {
    /// Where the walk is: nothing at its beginning. As long as a key and at least four bytes.
    pub(crate) from: *const u8,
    /// Where it will be then.
    pub(crate) to: *mut u8,
    /// Keys.
    pub(crate) keys: *mut u8,
    /// Values.
    pub(crate) values: *mut u8,
    /// How many there is room for, or are there.
    pub(crate) count: usize,
}

/// Many elements; how many it has come to, and what ended it.
///
/// # Safety
/// Every pointer that the command needs points at as much as it reads or writes of this map; the others are null.
pub(crate) unsafe fn many(command: Batch, map: BorrowedFd<'_>, many: Many) -> (usize, io::Result<()>) {
    let mut attributes = MapBatch {
        in_batch: many.from as u64,
        out_batch: many.to as u64,
        keys: many.keys as u64,
        values: many.values as u64,
        count: many.count as u32,
        map: map.as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    let done = call(command as libc::c_long, &mut attributes).map(|_| ());
    // The kernel has written back how many there were.
    ((attributes.count as usize).min(many.count), done)
}

/// What is pinned there.
pub(crate) fn get(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let fd = call(BPF_OBJ_GET, &mut ObjectGet { path: name.as_ptr() as u64, fd: 0, flags: 0 })?;
    // SAFETY: the kernel has just made the descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The link of this number.
#[cfg(feature = "crash-points")]
pub(crate) fn link(id: u32) -> io::Result<OwnedFd> {
    const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
    // `union bpf_attr` of it begins with the number.
    let fd = call(BPF_LINK_GET_FD_BY_ID, &mut LinkDetach { link: id })?;
    // SAFETY: the kernel has just made the descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes a link off its device now, and not when its last holder is done with it (Linux 5.9).
pub(crate) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    call(BPF_LINK_DETACH, &mut LinkDetach { link: link.as_raw_fd() as u32 }).map(|_| ())
}

fn call<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: the attributes live for the call and are as long as is said; what they point at, a path that ends with
    // a zero byte, the caller holds as long.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}
