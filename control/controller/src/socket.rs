//! The Unix socket that nodes subscribe at: for the owner alone, and never taken from a living control.
//!
//! Knows nothing of what is said over it. Called once at start.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("{0}: another control is listening: stop it, or give another path to --listen")]
    Taken(PathBuf),
    /// Not ours to remove.
    #[error("{0}: there is something that is no socket: remove it, or give another path to --listen")]
    NotASocket(PathBuf),
    /// The file system refuses.
    #[error(
        "{path}: cannot listen: {error}: the directory must exist and be writable, the path be under 108 bytes"
    )]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
}

/// A listening socket; its file goes with it.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Listens at a path, mode 0600. A file that a dead control left is replaced. The process's umask should be 077,
    /// so that the socket is nobody else's between its making and its mode.
    ///
    /// # Errors
    /// Says what is in the way, and what to do.
    pub async fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let fail = |error| SocketError::Io { path: path.to_owned(), error };
        match fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) if tokio::net::UnixStream::connect(path).await.is_ok() => {
                return Err(SocketError::Taken(path.to_owned()));
            }
            Ok(_) => fs::remove_file(path).map_err(fail)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
        let listener = UnixListener::bind(path).map_err(fail)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(fail)?;
        let inode = fs::symlink_metadata(path).map_err(fail)?.ino();
        Ok((Self { path: path.to_owned(), inode }, listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A successor may have bound its own already.
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
