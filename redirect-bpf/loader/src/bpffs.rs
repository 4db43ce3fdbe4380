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
    /// The directories, on a bpffs that is mounted if need be.
    pub(crate) fn open(root: &Path) -> Result<Self, SetupError> {
        let pins = Self { root: root.to_owned() };
        create(root)?;
        if !is_bpffs(root)? {
            mount(
                "sluice",
                root,
                "bpf",
                MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
                c"mode=0700",
            )
            .map_err(io::Error::from)
            .map_err(SetupError::cannot(format!("mount a bpffs at {}", root.display()), REMEDY))?;
        }
        create(&pins.maps())?;
        create(&pins.links())?;
        Ok(pins)
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

    /// Removes what loaders of other versions pinned; to be called once this one's hooks are in force.
    pub(crate) fn retire_others(&self) -> Result<(), SetupError> {
        remove_versions(&self.root, |version| version != ABI_VERSION)
    }

    /// Removes every pin of every version, and the bpffs if its root is what we mounted.
    pub(crate) fn remove(root: &Path) -> Result<(), SetupError> {
        if !root.exists() || !is_bpffs(root)? {
            return Ok(());
        }
        remove_versions(root, |_| true)?;
        let ours = Self::list(root)?.iter().all(|path| PRELOADED.iter().any(|name| path.ends_with(name)));
        if is_mount_root(root) && ours {
            unmount(root, UnmountFlags::DETACH)
                .map_err(io::Error::from)
                .map_err(SetupError::cannot(format!("unmount {}", root.display()), REMEDY))?;
        }
        Ok(())
    }
}

fn remove_versions(root: &Path, which: impl Fn(u32) -> bool) -> Result<(), SetupError> {
    for directory in Pins::list(root)? {
        let name = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let version = name.strip_prefix('v').and_then(|number| number.parse().ok());
        if !version.is_some_and(&which) {
            continue;
        }
        // Links first: nothing may judge by maps that are half gone.
        for kind in ["links", "maps"].map(|kind| directory.join(kind)) {
            if kind.exists() {
                let remove = if kind.ends_with("links") { remove_link } else { remove_file };
                Pins::list(&kind)?.iter().try_for_each(|pin| remove(pin))?;
                remove_directory(&kind)?;
            }
        }
        remove_directory(&directory)?;
    }
    Ok(())
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

fn remove_directory(path: &Path) -> Result<(), SetupError> {
    fs::remove_dir(path).map_err(|source| SetupError::Pin { what: "remove", path: path.to_owned(), source })
}

fn create(path: &Path) -> Result<(), SetupError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(SetupError::cannot(format!("create {}", path.display()), REMEDY))
}

fn is_bpffs(path: &Path) -> Result<bool, SetupError> {
    let status = rustix::fs::statfs(path)
        .map_err(io::Error::from)
        .map_err(SetupError::cannot(format!("look at {}", path.display()), REMEDY))?;
    Ok(status.f_type as i64 == BPF_FS_MAGIC)
}

/// Whether something is mounted at the very path.
fn is_mount_root(path: &Path) -> bool {
    let look = || Some(fs::metadata(path).ok()?.dev() != fs::metadata(path.parent()?).ok()?.dev());
    look().unwrap_or(false)
}
