//! The worker as a child: started, spoken to, started again when it dies.
//!
//! Reads no stranger's byte. While there is no worker, nobody accepts: flows that L7 rules govern are refused.

use crate::channel::{self, FromWorker, Receiver, Sender, ToWorker};
use crate::confine::User;
use rustix::process::Signal;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// The first wait before a dead worker is started again, and the longest: a worker that dies at once must not keep
/// the node busy with starting it.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// A worker that lived so long starts over with the first wait.
const HEALTHY: Duration = Duration::from_secs(30);

/// What a worker is started with.
#[derive(Debug)]
pub struct Launch {
    /// The binary; `/proc/self/exe` but in tests.
    pub binary: PathBuf,
    /// The proxy's network namespace.
    pub netns: OwnedFd,
    /// Its listeners.
    pub listeners: Vec<TcpListener>,
    /// How many threads serve them; at least one.
    pub threads: u8,
    /// Whom it runs as.
    pub user: User,
    /// Another worker serves them until this one has its first snapshot.
    pub patient: bool,
}

/// What the engine hears of the worker.
#[derive(Debug)]
pub enum Event {
    /// It lives; send it its snapshot. The newest order counts, so sending never waits.
    Up(watch::Sender<ToWorker>),
    /// It says something.
    Says(FromWorker),
    /// It is gone.
    Down,
}

/// Starts one worker. Call it from the main thread: the worker asks to be killed when its parent thread ends.
///
/// # Errors
/// What the kernel says.
pub fn start(launch: &Launch) -> io::Result<(Child, Sender, Receiver)> {
    let (ours, theirs) = channel::pair()?;
    let child = Command::new(&launch.binary)
        .arg("worker")
        .arg(format!("--threads={}", launch.threads))
        .arg(format!("--worker-uid={}", launch.user.uid))
        .arg(format!("--worker-gid={}", launch.user.gid))
        .args(launch.patient.then_some("--patient"))
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut descriptors: Vec<BorrowedFd<'_>> = vec![launch.netns.as_fd()];
    descriptors.extend(launch.listeners.iter().map(|listener| listener.as_fd()));
    channel::send_descriptors(&ours, &descriptors)?;
    let (sender, receiver) = channel::open(ours)?;
    Ok((child, sender, receiver))
}

/// Keeps a worker running until told to stop. Once it drains, none is started again, and our copies of the listeners
/// are closed: when the worker has closed its own, nobody waits in a queue that nobody serves.
pub async fn supervise(
    mut launch: Launch,
    events: mpsc::Sender<Event>,
    drain: CancellationToken,
    stop: CancellationToken,
) {
    let mut backoff = BACKOFF.0;
    while !stop.is_cancelled() {
        let began = tokio::time::Instant::now();
        match start(&launch) {
            Ok(worker) => {
                let close_listeners = async {
                    drain.cancelled().await;
                    launch.listeners.clear();
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = attend(worker, &events, &stop) => {}
                    () = close_listeners => {}
                }
            }
            Err(error) => tracing::error!(%error, "cannot start the worker; L7 flows are refused"),
        }
        if events.send(Event::Down).await.is_err() || drain.is_cancelled() {
            return;
        }
        backoff = if began.elapsed() > HEALTHY { BACKOFF.0 } else { (backoff * 2).min(BACKOFF.1) };
        tokio::select! {
            () = tokio::time::sleep(backoff) => {}
            () = drain.cancelled() => return,
        }
    }
}

/// Carries messages until the worker is gone, or has to be.
async fn attend(
    (mut child, mut to_worker, mut from_worker): (Child, Sender, Receiver),
    events: &mpsc::Sender<Event>,
    stop: &CancellationToken,
) {
    let (inbox, mut orders) = watch::channel(ToWorker::default());
    if events.send(Event::Up(inbox)).await.is_err() {
        return;
    }
    let saying = async {
        while orders.changed().await.is_ok() {
            let order = orders.borrow_and_update().clone();
            to_worker.send(&order).await?;
        }
        // The engine speaks to another worker by now, or to none.
        std::future::pending::<io::Result<()>>().await
    };
    let hearing = async {
        while let Some(message) = from_worker.receive().await? {
            if events.send(Event::Says(message)).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let ended = tokio::select! {
        ended = saying => ended,
        ended = hearing => ended,
        () = stop.cancelled() => Ok(()),
    };
    // It exits by itself when the channel closes; if it hangs, it must not outlive this.
    drop((to_worker, from_worker));
    let status = tokio::time::timeout(Duration::from_secs(1), child.wait()).await;
    if status.is_err() {
        let _ = child.kill().await;
    }
    if !stop.is_cancelled() {
        let how = match &status {
            Ok(Ok(status)) => end_of(*status),
            Ok(Err(error)) => format!("nobody knows how: {error}"),
            Err(_) => "it did not end by itself, and was killed".to_owned(),
        };
        tracing::error!(how, ?ended, "the worker is gone; L7 flows are refused until it is back");
    }
}

/// How it ended, in words.
fn end_of(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) if signal == Signal::SYS.as_raw() => "it asked the kernel for something that it never needs, and was \
             killed for that (seccomp): a bug of ours, or somebody has broken into it; the kernel's log (type=1326) has \
             the number of the call"
            .to_owned(),
        Some(signal) => format!("it was killed by signal {signal}"),
        None => format!("it ended with {status}; why is above"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_how_a_worker_ended() {
        let text = |wait| end_of(ExitStatus::from_raw(wait));
        assert!(text(31).contains("seccomp") && text(31 | 0x80).contains("seccomp"), "{}", text(31));
        assert_eq!(text(9), "it was killed by signal 9");
        assert!(text(256).contains("exit status: 1"), "{}", text(256));
    }
}
