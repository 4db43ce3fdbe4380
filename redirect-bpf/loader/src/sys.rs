//! The bpf(2) calls that aya does not make.
//!
//! Knows nothing of what the links are for, nor of what flows mean. Called by `bpffs` and `flows`.

use sluice_bpf_abi::{FlowEntry, FlowKey};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_LINK_DETACH: libc::c_long = 34;

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

/// `union bpf_attr` of `BPF_MAP_LOOKUP_BATCH`.
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

/// Where a walk over the flow table is, and what the last call brought.
pub(crate) struct Batch {
    keys: Vec<FlowKey>,
    values: Vec<FlowEntry>,
    filled: usize,
    place: Option<u32>,
}

impl Batch {
    /// For so many entries a call.
    pub(crate) fn new(size: usize) -> Self {
        Self {
            keys: vec![FlowKey::default(); size],
            values: vec![FlowEntry::default(); size],
            filled: 0,
            place: None,
        }
    }

    /// What the last call brought.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&FlowKey, &FlowEntry)> {
        self.keys.iter().zip(&self.values).take(self.filled)
    }
}

/// The next entries of the flow table; whether there are more (Linux 5.6). It marks none as used.
pub(crate) fn lookup_batch(flows: BorrowedFd<'_>, batch: &mut Batch) -> io::Result<bool> {
    let mut next = 0_u32;
    let mut attributes = MapBatch {
        in_batch: batch.place.as_ref().map_or(0, |place| std::ptr::from_ref(place) as u64),
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: batch.keys.as_mut_ptr() as u64,
        values: batch.values.as_mut_ptr() as u64,
        count: batch.keys.len() as u32,
        map: flows.as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    let done = call(BPF_MAP_LOOKUP_BATCH, &mut attributes);
    // The kernel has written back how many there were.
    batch.filled = (attributes.count as usize).min(batch.keys.len());
    batch.place = Some(next);
    match done {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => {
            batch.filled = 0;
            Err(error)
        }
    }
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
