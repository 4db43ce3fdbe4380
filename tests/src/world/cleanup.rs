//! Takes worlds down: at the end, on panic, on a signal, and those of processes that are dead.
//!
//! Everything is found again by the world's prefix (`sl-<pid>-<number>`), so that a world whose process was
//! killed is as easy to take down as one's own. Ends only processes that the world itself started, or that
//! live in its namespaces. Called by the world and by the binaries' `main`.

use crate::world::netns::NETNS_DIR;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

/// Where worlds keep their files: logs, manifests, mounted bpffs.
pub const STATE_DIR: &str = "/run/sluice-tests";
/// How long a process may take to die of SIGKILL before its namespace is deleted under it.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// Processes that appear while others are killed are looked for this often.
const KILL_ROUNDS: usize = 3;

/// A signal came: everything is being taken down.
static GOING: AtomicBool = AtomicBool::new(false);
/// The prefixes of the worlds of this process that are up.
static UP: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A process, by its number and the time it started: numbers are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Process {
    pid: i32,
    started: u64,
}

impl Process {
    fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        if fields.next()? == "Z" {
            return None;
        }
        // Field 22 of the file is field 20 after the state.
        Some(Self { pid, started: fields.nth(18)?.parse().ok()? })
    }

    fn parse(line: &str) -> Option<Self> {
        let (pid, started) = line.split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, started: started.parse().ok()? })
    }

    fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    fn kill(self) {
        if let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.alive()) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// The directory of a world.
pub(crate) fn state_dir(prefix: &str) -> PathBuf {
    Path::new(STATE_DIR).join(prefix)
}

/// Begins a world: its directory, its owner's name, its place in the list that signals take down.
pub(crate) fn begin(prefix: &str) -> anyhow::Result<PathBuf> {
    UP.lock().unwrap_or_else(PoisonError::into_inner).push(prefix.to_owned());
    let dir = state_dir(prefix);
    fs::create_dir_all(&dir)?;
    let pid = i32::try_from(std::process::id())?;
    if let Some(me) = Process::of(pid) {
        fs::write(dir.join("owner"), format!("{} {}\n", me.pid, me.started))?;
    }
    Ok(dir)
}

/// Remembers a process that the world started, so that it is ended with it.
pub(crate) fn remember(dir: &Path, pid: u32) -> anyhow::Result<()> {
    let Some(process) = i32::try_from(pid).ok().and_then(Process::of) else { return Ok(()) };
    let mut file = fs::OpenOptions::new().create(true).append(true).open(dir.join("pids"))?;
    writeln!(file, "{} {}", process.pid, process.started)?;
    Ok(())
}

/// Ends a world of this process.
pub(crate) fn end(prefix: &str) {
    take_down(prefix);
    UP.lock().unwrap_or_else(PoisonError::into_inner).retain(|up| up != prefix);
}

/// Takes down everything that bears the prefix. Never fails: what is gone is gone.
fn take_down(prefix: &str) {
    let names = namespaces(prefix);
    for _ in 0..KILL_ROUNDS {
        if !kill_all(prefix, &names) {
            break;
        }
    }
    let dir = state_dir(prefix);
    for mount in mounts_under(&dir) {
        quiet(Command::new("umount").arg("-l").arg(mount));
    }
    for name in &names {
        quiet(Command::new("ip").args(["netns", "del", name]));
    }
    let _ = fs::remove_dir_all(dir);
}

/// Takes down the worlds whose process is dead. One that cannot be told apart from a living one stays.
pub fn sweep() {
    let Ok(entries) = fs::read_dir(STATE_DIR) else { return };
    for entry in entries.flatten() {
        let Ok(prefix) = entry.file_name().into_string() else { continue };
        let owner = fs::read_to_string(entry.path().join("owner")).ok();
        let stale =
            owner.and_then(|line| Process::parse(line.trim())).is_some_and(|process| !process.alive());
        if stale && prefix.starts_with("sl-") {
            take_down(&prefix);
        }
    }
}

/// On SIGINT, SIGTERM and SIGHUP takes this process's worlds down and exits with 128 + the signal's number.
pub fn install_signal_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = std::thread::Builder::new().name("signals".to_owned()).spawn(watch_signals);
    });
}

fn watch_signals() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    let number = runtime.block_on(async {
        let mut hangup = signal(SignalKind::hangup()).ok()?;
        let mut interrupt = signal(SignalKind::interrupt()).ok()?;
        let mut terminate = signal(SignalKind::terminate()).ok()?;
        Some(tokio::select! {
            _ = hangup.recv() => 1,
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
        })
    });
    if let Some(number) = number {
        GOING.store(true, Ordering::SeqCst);
        take_down_all();
        std::process::exit(128 + number);
    }
}

/// If a signal is taking this process down, waits for its end: what fails meanwhile is not worth a word.
pub fn yield_to_signal() {
    while GOING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// Takes down every world of this process: for exits that run no destructors.
pub fn take_down_all() {
    let up = UP.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for prefix in up {
        take_down(&prefix);
    }
}

fn namespaces(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return Vec::new() };
    let mine = format!("{prefix}-");
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&mine)).collect()
}

/// Kills the world's processes and waits until they are gone; whether there were any.
fn kill_all(prefix: &str, names: &[String]) -> bool {
    let recorded = fs::read_to_string(state_dir(prefix).join("pids")).unwrap_or_default();
    let mut victims: HashSet<Process> = recorded.lines().filter_map(Process::parse).collect();
    victims.extend(inhabitants(names));
    victims.retain(|process| process.alive());
    for process in &victims {
        process.kill();
    }
    let deadline = Instant::now() + KILL_DEADLINE;
    while victims.iter().any(|process| process.alive()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    !victims.is_empty()
}

/// The processes whose main thread is in one of these namespaces, this process apart.
fn inhabitants(names: &[String]) -> Vec<Process> {
    let inodes: HashSet<(u64, u64)> = names
        .iter()
        .filter_map(|name| fs::metadata(Path::new(NETNS_DIR).join(name)).ok())
        .map(|meta| (meta.dev(), meta.ino()))
        .collect();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| u32::try_from(*pid) != Ok(std::process::id()))
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|meta| inodes.contains(&(meta.dev(), meta.ino())))
        })
        .filter_map(Process::of)
        .collect()
}

/// Mount points below a directory, the innermost first.
fn mounts_under(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut points: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    points
}

fn quiet(command: &mut Command) {
    let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}
