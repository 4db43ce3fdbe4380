//! What a node keeps beside its pins, for whoever takes everything away later: which qdiscs are ours, and that
//! somebody is at work.
//!
//! A bpffs has no files but pins; so a note is an empty directory, which outlives the process that made it as the pins
//! do. It is made before the thing that it stands for: whatever dies in between, nothing of ours is without one. No
//! version is in its name, because what one loader made another one may have to take away. Called by `attach` and
//! `node`.

use crate::bpffs::{self, Pins};
use crate::error::SetupError;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the notes of qdiscs are.
const QDISCS: &str = "qdiscs";
/// How long somebody who is just ending may take: the kernel lets go of what a process held a moment after it, and a
/// process that is being started holds for a moment what its parent does.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is tried.
const BETWEEN: Duration = Duration::from_millis(20);

/// That this process is at work on the node, has it to itself, or alone writes its rows. The kernel takes it back when
/// the process ends, however it does.
#[derive(Debug)]
pub(crate) struct Claim(#[expect(dead_code, reason = "held until it is dropped")] OwnedFd);

impl Claim {
    /// Beside others who are at work: while one agent takes over from another both are.
    pub(crate) fn shared(root: &Path) -> Result<Self, SetupError> {
        Self::take(
            root,
            FlockOperation::NonBlockingLockShared,
            "`uninstall` is at work on this node: wait for its end",
        )
    }

    /// For whoever takes everything away: an agent that runs would put it back.
    pub(crate) fn whole(root: &Path) -> Result<Self, SetupError> {
        Self::take(
            root,
            FlockOperation::NonBlockingLockExclusive,
            "an agent runs on this node, and would put back what is taken away: stop it first",
        )
    }

    /// To put a generation in force, which one process does at a time: an agent that hands the node over may just be at
    /// its last one. Of the directory of the links: that of the maps is held all the time by whoever reads the events,
    /// in the same process as well.
    pub(crate) fn alone(links: &Path) -> Result<Self, SetupError> {
        Self::take(
            links,
            FlockOperation::NonBlockingLockExclusive,
            "another agent puts its rows in force on this node without end: stop one of the two",
        )
    }

    fn take(root: &Path, how: FlockOperation, remedy: &'static str) -> Result<Self, SetupError> {
        let look = SetupError::cannot(format!("open {}", root.display()), "run as root");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(root, flags, Mode::empty()).map_err(io::Error::from).map_err(look)?;
        let end = Instant::now() + PATIENCE;
        loop {
            match flock(&directory, how) {
                Ok(()) => return Ok(Self(directory)),
                Err(Errno::WOULDBLOCK) if Instant::now() < end => std::thread::sleep(BETWEEN),
                Err(Errno::WOULDBLOCK) => {
                    return Err(SetupError::Config { what: format!("{} is in use", root.display()), remedy });
                }
                Err(error) => {
                    let what = format!("lock {}", root.display());
                    return Err(SetupError::cannot(what, "is it a directory of this node?")(error.into()));
                }
            }
        }
    }
}

impl Pins {
    fn qdiscs(&self) -> PathBuf {
        self.root().join(QDISCS)
    }

    /// Notes that the clsact qdisc of a device is ours. To be done before it is made.
    pub(crate) fn note_qdisc(&self, device: u32) -> Result<(), SetupError> {
        bpffs::create(&self.qdiscs().join(device.to_string()))
    }

    /// The devices whose qdisc is ours.
    pub(crate) fn noted_qdiscs(&self) -> Result<HashSet<u32>, SetupError> {
        if !self.qdiscs().exists() {
            return Ok(HashSet::new());
        }
        let device = |path: &PathBuf| path.file_name()?.to_str()?.parse().ok();
        Ok(Self::list(&self.qdiscs())?.iter().filter_map(device).collect())
    }

    /// Forgets what was noted of a device that is gone, or whose qdisc is.
    pub(crate) fn forget_qdisc(&self, device: u32) -> Result<(), SetupError> {
        let path = self.qdiscs().join(device.to_string());
        match fs::remove_dir(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(SetupError::Pin { what: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    /// Forgets everything that was noted.
    pub(crate) fn forget_all(&self) -> Result<(), SetupError> {
        self.noted_qdiscs()?.into_iter().try_for_each(|device| self.forget_qdisc(device))?;
        if self.qdiscs().exists() { bpffs::remove_directory(&self.qdiscs()) } else { Ok(()) }
    }
}
