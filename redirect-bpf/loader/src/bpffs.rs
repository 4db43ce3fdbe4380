//! The directory of pins. Mounted where there is none; everything in it carries the ABI's version.

use crate::error::SetupError;
use crate::sys;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use sluice_bpf_abi::ABI_VERSION;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a bpffs that we mounted is named in the table of mounts, so that we unmount no other.
const SOURCE: &str = "sluice";
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// What the kernel itself puts into a new bpffs.
const PRELOADED: [&str; 2] = ["maps.debug", "progs.debug"];
/// What the name of a pin ends with that has not taken its place yet. Without a dot: bpffs keeps those for itself.
pub(crate) const STAGED: &str = "-new";
const REMEDY: &str = "run as root with CAP_SYS_ADMIN, or mount a bpffs there before";

/// Where the pins are.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The directories, on a bpffs that is mounted if need be. A newer version's are left to it, and nothing is
    /// touched, unless `roll_back` says that we take over from it.
    pub(crate) fn open(root: &Path, roll_back: bool) -> Result<Self, SetupError> {
        let pins = Self { root: root.to_owned() };
        let newest = if root.exists() { pins.versions()?.into_iter().max() } else { None };
        if let Some((version, path)) = newest.filter(|(version, _)| *version > ABI_VERSION && !roll_back) {
            return Err(SetupError::Newer { version, path, ours: ABI_VERSION });
        }
        create(root)?;
        if !is_bpffs(root)? {
            mount(
                SOURCE,
                root,
                "bpf",
                MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
                c"mode=0700",
            )
            .map_err(io::Error::from)
            .map_err(SetupError::cannot(format!("mount a bpffs at {}", root.display()), REMEDY))?;
        }
        pins.create()?;
        Ok(pins)
    }

    /// Our own directories.
    pub(crate) fn create(&self) -> Result<(), SetupError> {
        create(&self.maps())?;
        create(&self.links())
    }

    fn version(&self) -> PathBuf {
        self.root.join(format!("v{ABI_VERSION}"))
    }

    /// Where the maps are.
    pub(crate) fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    /// Where the links are.
    pub(crate) fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    /// The pin of an endpoint's hook.
    pub(crate) fn link(&self, device: u32, hook: &str) -> PathBuf {
        self.links().join(format!("{device}-{hook}"))
    }

    /// The same before it has taken the place of the one before.
    pub(crate) fn staged_link(&self, device: u32, hook: &str) -> PathBuf {
        self.links().join(format!("{device}-{hook}{STAGED}"))
    }

    /// The pins of a directory.
    pub(crate) fn list(directory: &Path) -> Result<Vec<PathBuf>, SetupError> {
        let pin = |source| SetupError::Pin { what: "read", path: directory.to_owned(), source };
        let entries = fs::read_dir(directory).map_err(pin)?;
        entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>().map_err(|source| SetupError::Pin {
            what: "read",
            path: directory.to_owned(),
            source,
        })
    }

    /// The same of a directory that need not be on a bpffs.
    pub(crate) fn versions_at(root: &Path) -> Result<Vec<(u32, PathBuf)>, SetupError> {
        Self { root: root.to_owned() }.versions()
    }

    /// What loaders of any version pinned, and where.
    pub(crate) fn versions(&self) -> Result<Vec<(u32, PathBuf)>, SetupError> {
        let version = |path: &Path| path.file_name()?.to_str()?.strip_prefix('v')?.parse().ok();
        Ok(Self::list(&self.root)?.into_iter().filter_map(|path| Some((version(&path)?, path))).collect())
    }

    /// What is there already; nothing where there is no bpffs, and so no pin.
    pub(crate) fn existing(root: &Path) -> Result<Option<Self>, SetupError> {
        Ok((root.exists() && is_bpffs(root)?).then(|| Self { root: root.to_owned() }))
    }

    /// The directory that everything is in.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Removes every pin of every version.
    pub(crate) fn remove(&self) -> Result<(), SetupError> {
        self.versions()?.iter().try_for_each(|(_, directory)| remove_version(directory))
    }

    /// Removes the bpffs if we mounted it, and the directory unless there is something else in it, or on it.
    pub(crate) fn remove_root(root: &Path) -> Result<(), SetupError> {
        if !root.exists() {
            return Ok(());
        }
        if is_bpffs(root)? {
            let ours = Self::list(root)?.iter().all(|path| PRELOADED.iter().any(|name| path.ends_with(name)));
            if ours && is_our_mount(root) {
                unmount(root, UnmountFlags::DETACH)
                    .map_err(io::Error::from)
                    .map_err(SetupError::cannot(format!("unmount {}", root.display()), REMEDY))?;
            }
        }
        match fs::remove_dir(root) {
            Err(source)
                if !matches!(
                    source.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy
                ) =>
            {
                Err(SetupError::Pin { what: "remove", path: root.to_owned(), source })
            }
            _ => Ok(()),
        }
    }
}

/// Removes everything that a version pinned.
pub(crate) fn remove_version(directory: &Path) -> Result<(), SetupError> {
    let mut kinds = Pins::list(directory)?;
    // Links first: nothing may judge by maps that are half gone.
    kinds.sort_by_key(|kind| !kind.ends_with("links"));
    for kind in kinds {
        let remove = if kind.ends_with("links") { remove_link } else { remove_file };
        Pins::list(&kind)?.iter().try_for_each(|pin| remove(pin))?;
        remove_directory(&kind)?;
    }
    remove_directory(directory)
}

/// Removes a pin; one that is gone already is no error.
pub(crate) fn remove_file(path: &Path) -> Result<(), SetupError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SetupError::Pin { what: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Removes the pin of a link, and takes the link off its device at once: the kernel lets go of an unpinned link only
/// when it comes to it, and until then it judges.
pub(crate) fn remove_link(path: &Path) -> Result<(), SetupError> {
    let link = sys::get(path);
    remove_file(path)?;
    // One whose device is gone is off already.
    let _ = link.map(|link| sys::detach(link.as_fd()));
    Ok(())
}

/// Gives a pin the name of another, which goes.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), SetupError> {
    fs::rename(from, to).map_err(|source| SetupError::Pin { what: "rename", path: from.to_owned(), source })
}

pub(crate) fn remove_directory(path: &Path) -> Result<(), SetupError> {
    fs::remove_dir(path).map_err(|source| SetupError::Pin { what: "remove", path: path.to_owned(), source })
}

/// Makes a directory that nobody else looks into, with those above it.
pub(crate) fn create(path: &Path) -> Result<(), SetupError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(SetupError::cannot(format!("create {}", path.display()), REMEDY))
}

pub(crate) fn is_bpffs(path: &Path) -> Result<bool, SetupError> {
    let status = rustix::fs::statfs(path)
        .map_err(io::Error::from)
        .map_err(SetupError::cannot(format!("look at {}", path.display()), REMEDY))?;
    Ok(status.f_type as i64 == BPF_FS_MAGIC)
}

/// Whether what is mounted at the very path is ours.
fn is_our_mount(path: &Path) -> bool {
    let device = |path: &Path| Some(fs::metadata(path).ok()?.dev());
    let here = device(path);
    if here.is_none() || path.parent().and_then(device) == here {
        return false;
    }
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .any(|line| mounted(line).is_some_and(|(device, source)| Some(device) == here && source == SOURCE))
}

/// Device and source in a line of the table of mounts: `36 35 98:0 /root /point options … - type source options`.
fn mounted(line: &str) -> Option<(u64, &str)> {
    let (left, right) = line.split_once(" - ")?;
    let (major, minor) = left.split(' ').nth(2)?.split_once(':')?;
    Some((rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?), right.split(' ').nth(1)?))
}
