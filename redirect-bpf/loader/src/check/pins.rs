//! Where the pins go: a bpffs, and what is pinned there already.
//!
//! Whether one can be mounted and keeps a pin is tried in a mount namespace of this thread's own. Called by `check`.

use super::{Finding, scratch};
use crate::bpffs::{self, Pins};
use aya::maps::{Array, MapData};
use rustix::fs::{Access, access};
use rustix::mount::{MountFlags, mount};
use sluice_bpf_abi::ABI_VERSION;
use std::io;
use std::path::Path;

const MOUNT: &str = "mount -t bpf bpf /sys/fs/bpf (in fstab: `bpf /sys/fs/bpf bpf defaults 0 0`), and give --bpffs a \
    directory below it";

/// Both findings. `may`: a mount can be tried.
pub(super) fn look(root: &Path, roll_back: bool, may: bool) -> Vec<Finding> {
    vec![bpffs(root, may), versions(root, roll_back)]
}

fn bpffs(root: &Path, may: bool) -> Finding {
    const CHECK: &str = "pins.bpffs";
    let kernel = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !kernel.lines().any(|line| line.split_whitespace().next_back() == Some("bpf")) {
        let found = "this kernel has no bpffs (CONFIG_BPF_SYSCALL)";
        return Finding::fail(CHECK, found, "boot a kernel with CONFIG_BPF_SYSCALL=y");
    }
    let Some(there) = root.ancestors().find(|path| path.exists()) else {
        return Finding::fail(
            CHECK,
            format!("{} is below no directory", root.display()),
            "give --bpffs a full path",
        );
    };
    if access(there, Access::WRITE_OK).is_err() && may {
        let found = format!("{} cannot be written", there.display());
        return Finding::fail(CHECK, found, "mount it writable, or give --bpffs another directory");
    }
    match bpffs::is_bpffs(there) {
        Ok(true) => return Finding::ok(CHECK, format!("{} is on one", root.display())),
        Ok(false) => {}
        Err(error) => return Finding::fail(CHECK, error.to_string(), MOUNT),
    }
    // The agent will mount one, if it may.
    let none = format!("none at {}", root.display());
    match may.then(try_out) {
        Some(Err(error)) => {
            let found = format!("{none}, and none can be mounted that keeps a pin: {error}");
            Finding::fail(CHECK, found, MOUNT)
        }
        _ => Finding::warn(
            CHECK,
            format!("{none}: the agent mounts one, and its pins go with its mount namespace"),
            MOUNT,
        ),
    }
}

/// Pins a map on a bpffs of this thread's own.
fn try_out() -> io::Result<()> {
    scratch::on_its_own(|directory| {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("sluice-check", directory, "bpf", flags, c"mode=0700")?;
        let array = Array::<MapData, u32>::create(1, 0).map_err(io::Error::other)?;
        array.pin(directory.join("pin")).map_err(io::Error::other)?;
        MapData::from_pin(directory.join("pin")).map(drop).map_err(io::Error::other)
    })
}

fn versions(root: &Path, roll_back: bool) -> Finding {
    const CHECK: &str = "pins.versions";
    if !root.exists() {
        return Finding::ok(CHECK, "nothing is pinned");
    }
    let found = match Pins::versions_at(root) {
        Ok(found) => found,
        Err(error) => {
            return Finding::unknown(
                CHECK,
                error.to_string(),
                "run it as the node's root: `sudo sluice-proxy check`",
            );
        }
    };
    let newest = found.iter().map(|(version, _)| *version).max();
    match newest {
        None => Finding::ok(CHECK, "nothing is pinned"),
        Some(newest) if newest > ABI_VERSION && !roll_back => Finding::fail(
            CHECK,
            format!("a newer version's pins are here: BPF ABI {newest}, and this build speaks {ABI_VERSION}"),
            "run the newer sluice-proxy, or this one with --roll-back",
        ),
        Some(newest) if newest > ABI_VERSION => {
            Finding::ok(CHECK, format!("BPF ABI {newest}, which --roll-back takes over from"))
        }
        Some(newest) if newest < ABI_VERSION => {
            Finding::ok(CHECK, format!("BPF ABI {newest} of an earlier version, which is taken over"))
        }
        Some(_) => Finding::ok(CHECK, format!("BPF ABI {ABI_VERSION}, this build's own")),
    }
}
