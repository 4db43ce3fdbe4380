//! The hand-over of a node from an agent that runs to the one that takes its place.
//!
//! The one that runs has a *door*, a Unix socket beside its state. The one that starts knocks, and is given the
//! proxy's network namespace, the listeners and the snapshot in force. It sets itself up beside the other; once its
//! worker has that snapshot it says that it is ready, and from then on accepts alone, while the other's connections
//! live to their end. Until then nothing is given up: if the new one fails, the old one goes on.
//!
//! Both are root's, on one node. Knows nothing of rows or of workers.

use super::store::gone;
use crate::channel::{self, Receiver, Sender};
use anyhow::Context as _;
use bytes::Bytes;
use prost::Message;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// How long the one that starts may take until it is ready: it loads programs, starts a worker and writes all rows.
const READY: Duration = Duration::from_secs(30);

/// How long the one that runs may take to answer the door.
const ANSWER: Duration = Duration::from_secs(10);

/// How often a door is tried that was closed in our face: the one behind it may just have handed over to a third.
const TRIES: u32 = 5;
const BETWEEN: Duration = Duration::from_millis(200);

/// What the one that runs says, after the descriptors.
#[derive(Clone, PartialEq, Message)]
struct Offer {
    /// The snapshot that it has in force, as sluice-wire writes it to a file. A newer version reads it or asks control.
    #[prost(bytes = "bytes", optional, tag = "1")]
    snapshot: Option<Bytes>,
}

/// What the one that starts says.
#[derive(Clone, PartialEq, Message)]
struct Word {
    /// Its worker serves.
    #[prost(bool, tag = "1")]
    ready: bool,
}

/// What is handed over.
#[derive(Debug)]
pub(super) struct Goods {
    /// The proxy's network namespace.
    pub(super) netns: OwnedFd,
    /// Its listeners.
    pub(super) listeners: Vec<TcpListener>,
}

impl Goods {
    /// The same once more.
    ///
    /// # Errors
    /// If there are no descriptors left.
    pub(super) fn duplicate(&self) -> io::Result<Self> {
        let listeners = self.listeners.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?;
        Ok(Self { netns: self.netns.try_clone()?, listeners })
    }
}

/// Where the next one knocks.
#[derive(Debug)]
pub(super) struct Door {
    listener: UnixListener,
    path: PathBuf,
}

impl Door {
    /// Opens it, in the place of one that another agent left or leaves.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let draft = draft(path);
        gone(fs::remove_file(&draft))?;
        let listener = UnixListener::bind(&draft)?;
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o600))?;
        fs::rename(&draft, path)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Waits for somebody of our own user.
    pub(super) async fn knock(&self) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((line, _)) if is_ours(&line) => return line,
                Ok(_) => tracing::warn!("somebody of another user knocks at the hand-over socket"),
                Err(_) => tokio::time::sleep(BETWEEN).await,
            }
        }
    }

    /// Closes it for good, unless it is another's by now.
    pub(super) fn close(self) {
        // The file is ours as long as it leads to us.
        let _ = fs::remove_file(self.path);
    }
}

/// The door's name until it is open.
fn draft(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Removes the door that an agent left which ended without closing it.
///
/// # Errors
/// What the kernel says.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    gone(fs::remove_file(path)).and_then(|()| gone(fs::remove_file(draft(path))))
}

fn is_ours(line: &UnixStream) -> bool {
    line.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}

/// Gives everything to the one that starts, and waits until it is ready.
///
/// # Errors
/// If it never is: then nothing was given up.
pub(super) async fn give(line: UnixStream, goods: &Goods, snapshot: Option<Bytes>) -> io::Result<()> {
    let line = line.into_std()?;
    let mut descriptors: Vec<BorrowedFd<'_>> = vec![goods.netns.as_fd()];
    descriptors.extend(goods.listeners.iter().map(|listener| listener.as_fd()));
    channel::send_descriptors(&line, &descriptors)?;
    let (mut sender, mut receiver) = channel::open(line.into())?;
    let answer = async {
        sender.send(&Offer { snapshot }).await?;
        receiver.receive::<Word>().await
    };
    match tokio::time::timeout(READY, answer).await {
        // Said back, so that it knows that this was in time.
        Ok(Ok(Some(word @ Word { ready: true }))) => sender.send(&word).await,
        Ok(Ok(_)) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// What was taken from the one that runs, and the line to it.
#[derive(Debug)]
pub(super) struct Taken {
    /// Ours now as well.
    pub(super) goods: Goods,
    /// What is in force.
    pub(super) snapshot: Option<Bytes>,
    line: (Sender, Receiver),
}

impl Taken {
    /// The line, to say that we are ready or to hear that it is too late.
    pub(super) fn split(self) -> (Goods, Line) {
        (self.goods, Line(self.line))
    }
}

/// The line to the one that hands over.
#[derive(Debug)]
pub(super) struct Line((Sender, Receiver));

impl Line {
    /// Says that we serve.
    ///
    /// # Errors
    /// If the other is gone, or has taken it back.
    pub(super) async fn ready(&mut self) -> io::Result<()> {
        self.0.0.send(&Word { ready: true }).await?;
        match tokio::time::timeout(ANSWER, self.0.1.receive::<Word>()).await {
            Ok(Ok(Some(Word { ready: true }))) => Ok(()),
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Ends when the other is gone, or has taken it back.
    pub(super) async fn lost(&mut self) {
        let _ = self.0.1.receive::<Offer>().await;
    }
}

/// Knocks at the door of the agent that runs. `None`: there is none.
///
/// # Errors
/// If somebody is there and does not hand over.
pub(super) async fn take(path: &Path) -> anyhow::Result<Option<Taken>> {
    for _ in 0..TRIES {
        let there = path.to_owned();
        match tokio::task::spawn_blocking(move || knock(&there)).await? {
            Ok(None) => return Ok(None),
            Ok(Some((line, descriptors))) if !descriptors.is_empty() => {
                return receive(line, descriptors).await.map(Some);
            }
            Ok(Some(_)) => {}
            Err(error) => return Err(error).with_context(|| format!("knock at {}", path.display())),
        }
        tokio::time::sleep(BETWEEN).await;
    }
    anyhow::bail!("the agent behind {} does not hand over: stop it first", path.display())
}

type Knocked = (BlockingStream, Vec<OwnedFd>);

fn knock(path: &Path) -> io::Result<Option<Knocked>> {
    use io::ErrorKind::{ConnectionRefused, InvalidInput, NotFound};
    let line = match BlockingStream::connect(path) {
        // Nobody ever was, or one that ended without closing its door; or the path is too long for a door.
        Err(error) if matches!(error.kind(), NotFound | ConnectionRefused | InvalidInput) => return Ok(None),
        line => line?,
    };
    line.set_read_timeout(Some(ANSWER))?;
    let descriptors = match channel::receive_descriptors(&line) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Vec::new(),
        received => received?,
    };
    Ok(Some((line, descriptors)))
}

async fn receive(line: BlockingStream, descriptors: Vec<OwnedFd>) -> anyhow::Result<Taken> {
    let mut descriptors = descriptors.into_iter();
    let netns = descriptors.next().context("no network namespace was handed over")?;
    let listeners = descriptors.map(TcpListener::from).collect();
    let (sender, mut receiver) =
        channel::open(line.into()).context("open the line to the agent that runs")?;
    let offer = tokio::time::timeout(ANSWER, receiver.receive::<Offer>()).await;
    let Offer { snapshot } = offer
        .context("the agent that runs fell silent")?
        .context("hear what the agent that runs offers")?
        .context("the agent that runs offers nothing any more")?;
    Ok(Taken { goods: Goods { netns, listeners }, snapshot, line: (sender, receiver) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goods() -> Goods {
        let netns = fs::File::open("/proc/self/ns/net").expect("opened").into();
        Goods { netns, listeners: vec![TcpListener::bind("127.0.0.1:0").expect("bound")] }
    }

    #[tokio::test]
    async fn what_is_given_is_taken_and_a_failure_gives_nothing_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("door");
        assert!(take(&path).await.expect("no error").is_none(), "there is no door");
        let door = Door::open(&path).expect("opened");
        let goods = goods();
        let address = goods.listeners[0].local_addr().expect("bound");
        for ready in [false, true] {
            let giving = async {
                let line = door.knock().await;
                give(line, &goods, Some(Bytes::from_static(b"snapshot"))).await
            };
            let taking = async {
                let taken = take(&path).await.expect("no error").expect("somebody is there");
                assert_eq!(taken.snapshot.as_deref(), Some(&b"snapshot"[..]));
                let (goods, mut line) = taken.split();
                assert_eq!(goods.listeners[0].local_addr().expect("bound"), address);
                if ready {
                    line.ready().await.expect("said");
                }
            };
            let (given, ()) = tokio::join!(giving, taking);
            assert_eq!(given.is_ok(), ready, "{given:?}");
        }
        // A new door takes the old one's place, and the old one's end leaves it alone only if it is told so.
        let next = Door::open(&path).expect("opened again");
        drop(door);
        assert!(path.exists());
        next.close();
        assert!(take(&path).await.expect("no error").is_none(), "the door is closed");
    }
}
