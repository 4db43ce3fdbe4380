//! Follows a directory: says when it may have changed, never what.
//!
//! Kernel notifications make it quick, a slow look at names, sizes and times makes it sure: notifications get
//! lost (limits, network file systems, a directory that is replaced). Knows nothing of manifests; reads none.
//! Called by the controller's loop.

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// How patient to be.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A change is read after this long without another: editors and `kubectl` write in bursts.
    pub quiet: Duration,
    /// A directory that never falls quiet is read this long after the first change anyway.
    pub longest: Duration,
    /// The directory is looked at this often, whatever the kernel said.
    pub rescan: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(20),
            longest: Duration::from_millis(200),
            rescan: Duration::from_secs(2),
        }
    }
}

/// Entries looked at: as many manifests as are read, and as much again beside them.
const ENTRIES: usize = 20_000;

/// Follows a directory until shutdown: each message says that it may have changed since the last one was taken, the
/// first comes at once. What changes while the receiver reads the directory is told by the next message.
#[must_use]
pub fn follow(dir: &Path, timing: Timing, shutdown: CancellationToken) -> mpsc::Receiver<()> {
    // One waiting message says as much as many.
    let (told, changes) = mpsc::channel(1);
    let mut follower = Follower::new(dir, timing);
    let task = async move {
        loop {
            follower.changed().await;
            if told.send(()).await.is_err() {
                return;
            }
        }
    };
    tokio::spawn(async move { shutdown.run_until_cancelled_owned(task).await });
    changes
}

struct Follower {
    dir: PathBuf,
    timing: Timing,
    ticks: Interval,
    wake: mpsc::Receiver<()>,
    waker: mpsc::Sender<()>,
    /// The watcher and the directory's device and inode at that time.
    watch: Option<(RecommendedWatcher, Option<(u64, u64)>)>,
    /// The last thing said about notifications, to say it once.
    complaint: Option<String>,
    seen: Option<u64>,
}

impl Follower {
    fn new(dir: &Path, timing: Timing) -> Self {
        let mut ticks = tokio::time::interval(timing.rescan);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (waker, wake) = mpsc::channel(1);
        Self { dir: dir.to_owned(), timing, ticks, wake, waker, watch: None, complaint: None, seen: None }
    }

    async fn changed(&mut self) {
        loop {
            let told = tokio::select! {
                _ = self.wake.recv() => true,
                _ = self.ticks.tick() => false,
            };
            if told {
                self.settle().await;
            }
            self.arm();
            let now = self.look().await;
            if told || self.seen.is_none() || self.seen != now {
                self.seen = now;
                return;
            }
        }
    }

    /// Waits until a burst of changes is over, or has gone on for too long.
    async fn settle(&mut self) {
        let end = Instant::now() + self.timing.longest;
        loop {
            let until = end.min(Instant::now() + self.timing.quiet);
            match tokio::time::timeout_at(until, self.wake.recv()).await {
                Ok(Some(())) if Instant::now() < end => {}
                _ => return,
            }
        }
    }

    /// Watches the directory, anew if it is another one than before.
    fn arm(&mut self) {
        let place = fs::metadata(&self.dir).ok().map(|meta| (meta.dev(), meta.ino()));
        if self.watch.as_ref().is_some_and(|(_, watched)| *watched == place) {
            return;
        }
        self.watch = None;
        if place.is_none() {
            return;
        }
        match watcher(&self.dir, self.waker.clone()) {
            Ok(watcher) => {
                self.watch = Some((watcher, place));
                self.complaint = None;
            }
            Err(error) => self.complain(&error),
        }
    }

    fn complain(&mut self, error: &notify::Error) {
        let complaint = error.to_string();
        if self.complaint.as_ref() != Some(&complaint) {
            tracing::warn!(
                "{}: no notifications from the kernel ({complaint}); changes are seen within {:?}. Raise \
                 fs.inotify.max_user_watches or max_user_instances if that is too slow",
                self.dir.display(),
                self.timing.rescan
            );
            self.complaint = Some(complaint);
        }
    }

    async fn look(&self) -> Option<u64> {
        let dir = self.dir.clone();
        tokio::task::spawn_blocking(move || fingerprint(&dir)).await.ok()
    }
}

/// Whether an event may mean other content. Our own reading makes events too: taking them would never end.
fn matters(kind: &EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if *access != AccessKind::Close(AccessMode::Write))
}

fn watcher(dir: &Path, waker: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_err() || event.is_ok_and(|event| matters(&event.kind)) {
            // Full: a wake-up is waiting already.
            let _ = waker.try_send(());
        }
    })?;
    watcher.watch(dir, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Names, places, sizes and times of the entries, in one number. Symlinks count as what they point to, so that a
/// `ConfigMap`'s swapped `..data` shows. Sub-directories are not read, so they do not count.
fn fingerprint(dir: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    match fs::read_dir(dir) {
        Err(error) => error.raw_os_error().hash(&mut hasher),
        Ok(entries) => {
            let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).take(ENTRIES).collect();
            paths.sort_unstable();
            for path in paths {
                let facts = fs::metadata(&path).ok().filter(|meta| !meta.is_dir());
                facts
                    .map(|m| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.mode()))
                    .hash(&mut hasher);
                path.hash(&mut hasher);
            }
        }
    }
    hasher.finish()
}
