//! The last snapshot on disk: a node starts with it while control is away.

use sluice_policy::Snapshot;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The snapshot's file, and its name until it is whole.
const SNAPSHOT: &str = "snapshot";
const DRAFT: &str = "snapshot.new";

/// Removes what is kept in a directory, and the directory unless there is something else in it.
///
/// # Errors
/// What the kernel says.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    [SNAPSHOT, DRAFT].iter().try_for_each(|name| gone(fs::remove_file(directory.join(name))))?;
    match fs::remove_dir(directory) {
        Err(error)
            if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy) =>
        {
            Ok(())
        }
        done => gone(done),
    }
}

/// What is gone already is as good.
pub(super) fn gone(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// A directory with one snapshot.
#[derive(Clone, Debug)]
pub(super) struct Store {
    directory: PathBuf,
}

impl Store {
    /// In this directory, which is made.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    fn path(&self) -> PathBuf {
        self.directory.join(SNAPSHOT)
    }

    /// The snapshot, if there is a whole one.
    #[must_use]
    pub(super) fn load(&self) -> Option<Snapshot> {
        let path = self.path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "cannot read the last snapshot; wait for control");
                return None;
            }
        };
        sluice_wire::from_bytes(&bytes)
            .inspect_err(
                |error| tracing::error!(path = %path.display(), %error, "the last snapshot is refused"),
            )
            .ok()
    }

    /// Replaces the snapshot: whole, or not at all.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn save(&self, bytes: &[u8]) -> io::Result<()> {
        let draft = self.directory.join(DRAFT);
        let mut file =
            fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, self.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_and_refuses_what_is_damaged() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(&directory.path().join("state")).expect("made");
        assert!(store.load().is_none());
        let mut snapshot = Snapshot { generation: 7, ..Snapshot::default() };
        snapshot
            .classes
            .push(sluice_policy::Class { identity: sluice_policy::Identity::Missing, cidrs: vec![] });
        let bytes = sluice_wire::to_bytes(&snapshot);
        store.save(&bytes).expect("saved");
        assert_eq!(store.load().map(|snapshot| snapshot.generation), Some(7));
        store.save(&bytes[..bytes.len() - 1]).expect("saved");
        assert!(store.load().is_none());
        // Somebody else's file stays, and its directory with it.
        let other = store.directory.join("notes");
        fs::write(&other, "mine").expect("written");
        remove(&store.directory).expect("removed");
        assert!(!store.path().exists() && other.exists());
        fs::remove_file(other).expect("removed");
        remove(&store.directory).expect("removed");
        assert!(!store.directory.exists());
        remove(&store.directory).expect("twice is no error");
    }
}
