//! A process of a world: started in a namespace, its lines kept and waited for, ended by its number.
//!
//! Knows nothing of what runs in it. Called by the world, the cluster, and tests.

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lines kept of one process; the oldest go first. A test that floods still sees its end.
const MAX_LINES: usize = 100_000;
/// How often an ended process is looked for.
const POLL: Duration = Duration::from_millis(5);

/// What a process wrote, both streams in the order they were read.
#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: VecDeque<String>,
    /// Lines dropped from the front.
    dropped: usize,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: String) {
        let mut state = self.lock();
        if state.lines.len() == MAX_LINES {
            state.lines.pop_front();
            state.dropped += 1;
        }
        state.lines.push_back(line);
        self.changed.notify_all();
    }
}

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Log>,
    file: PathBuf,
}

impl Process {
    /// Starts a command; its output goes to a file in `dir` and is kept for [`Process::wait_line`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: impl Into<String>, dir: &Path, command: &mut Command) -> Result<Self> {
        let name = name.into();
        let file = dir.join(format!("{name}.log"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {name}: {command:?}"))?;
        super::cleanup::remember(dir, child.id())?;
        let log = Arc::new(Log::default());
        let sink = Arc::new(Mutex::new(File::options().create(true).append(true).open(&file)?));
        let out = child.stdout.take().context("no stdout")?;
        let err = child.stderr.take().context("no stderr")?;
        follow(out, Arc::clone(&log), Arc::clone(&sink));
        follow(err, Arc::clone(&log), sink);
        Ok(Self { name, child, log, file })
    }

    /// The name it was started under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file that has its output.
    #[must_use]
    pub fn log_file(&self) -> &Path {
        &self.file
    }

    /// How many lines it has written: the place to wait from.
    #[must_use]
    pub fn mark(&self) -> usize {
        let state = self.log.lock();
        state.dropped + state.lines.len()
    }

    /// The lines written since a mark.
    #[must_use]
    pub fn lines_since(&self, mark: usize) -> Vec<String> {
        let state = self.log.lock();
        state.lines.iter().skip(mark.saturating_sub(state.dropped)).cloned().collect()
    }

    /// Waits for a line that satisfies the condition, written at or after the mark.
    ///
    /// # Errors
    /// After the deadline, or when the process ended; with the last lines it wrote.
    pub fn wait_line(
        &mut self,
        mark: usize,
        deadline: Duration,
        what: &str,
        is: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let end = Instant::now() + deadline;
        let mut next = mark;
        loop {
            let ended = self.child.try_wait()?;
            let mut state = self.log.lock();
            let skip = next.saturating_sub(state.dropped);
            if let Some(line) = state.lines.iter().skip(skip).find(|line| is(line)) {
                return Ok(line.clone());
            }
            next = state.dropped + state.lines.len();
            let left = end.saturating_duration_since(Instant::now());
            if let Some(status) = ended {
                drop(state);
                bail!("{} ended ({status}) before {what}:\n{}", self.name, self.tail(30));
            }
            if left.is_zero() {
                drop(state);
                bail!("{} did not show {what} within {deadline:?}:\n{}", self.name, self.tail(30));
            }
            state = self
                .log
                .changed
                .wait_timeout(state, left.min(Duration::from_millis(100)))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            drop(state);
        }
    }

    /// The last lines it wrote.
    #[must_use]
    pub fn tail(&self, count: usize) -> String {
        let state = self.log.lock();
        let skip = state.lines.len().saturating_sub(count);
        state.lines.iter().skip(skip).map(|line| format!("  {line}\n")).collect()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| anyhow!("{} has no number", self.name))?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Sends a signal to it and to everything that it started.
    ///
    /// # Errors
    /// When one of them is gone.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        for number in self.family() {
            let pid = Pid::from_raw(number).ok_or_else(|| anyhow!("{} has no number", self.name))?;
            kill_process(pid, signal).with_context(|| format!("cannot signal {number} of {}", self.name))?;
        }
        Ok(())
    }

    /// The numbers of it and of everything that it started.
    #[must_use]
    pub fn family(&self) -> Vec<i32> {
        let mut family: Vec<i32> = i32::try_from(self.child.id()).into_iter().collect();
        let parents = parents();
        let mut next = 0;
        while let Some(parent) = family.get(next).copied() {
            family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
            next += 1;
        }
        family
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When its state cannot be read.
    pub fn running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// After the deadline; the process goes on.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("{} still runs after {deadline:?}:\n{}", self.name, self.tail(30));
            }
            std::thread::sleep(POLL);
        }
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        if self.running()? {
            self.signal(Signal::TERM)?;
        }
        self.wait(deadline)
    }

    /// SIGKILL, and waits for its end.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        if self.running()? {
            self.child.kill()?;
        }
        Ok(self.child.wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every process with its parent.
fn parents() -> Vec<(i32, i32)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        Some((pid, rest.split_whitespace().nth(1)?.parse().ok()?))
    })
    .collect()
}

/// Copies a stream, line by line, to the log and to the file, until it ends.
fn follow(stream: impl Read + Send + 'static, log: Arc<Log>, file: Arc<Mutex<File>>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            let _ = writeln!(file.lock().unwrap_or_else(PoisonError::into_inner), "{text}");
            log.push(text);
            line.clear();
        }
    });
}

/// Waits until a condition holds.
///
/// # Errors
/// After the deadline, with what was waited for.
pub fn eventually(what: &str, deadline: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + deadline;
    loop {
        if holds().with_context(|| format!("while waiting for: {what}"))? {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("did not come true within {deadline:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A binary of the workspace: beside this executable, or in the target directory.
///
/// # Errors
/// Names the places looked at and how to build it.
pub fn binary(name: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let beside = exe.parent().map(Path::to_path_buf);
    // Test binaries live in target/debug/deps, the others one above.
    let above = beside.as_deref().and_then(Path::parent).map(Path::to_path_buf);
    let target = std::env::var_os("CARGO_TARGET_DIR").map(|dir| PathBuf::from(dir).join("debug"));
    let places: Vec<PathBuf> =
        [beside, above, target].into_iter().flatten().map(|dir| dir.join(name)).collect();
    places.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        let looked: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
        anyhow!(
            "no binary {name} (looked at {}): build it with `cargo build --workspace --bins`",
            looked.join(", ")
        )
    })
}
