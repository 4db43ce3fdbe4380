//! One step at a time: what it does, how long it took, and all of its output only where it failed.
//!
//! Knows nothing of what the steps are. Called by every command here.

use anyhow::{Context as _, bail};
use std::cell::Cell;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// A child that says nothing for this long hangs. The longest silence seen is a cold compile of some 3 minutes.
const SILENCE: Duration = Duration::from_secs(15 * 60);
/// Lines that wait for the reader.
const LINES: usize = 1024;
/// Lines kept of one child for a failure: the rest is cut from the middle.
const KEPT: usize = 20_000;

/// Prints what comes next.
pub(crate) fn say(text: &str) {
    println!("▸ {text}");
}

/// In a log, where nothing can be drawn over, a long step says this often how far it is.
const SPEAK: Duration = Duration::from_secs(20);
/// What of a line is shown while it runs.
const SHOWN: usize = 60;

/// Shows that a step goes on.
pub(crate) struct Watch {
    start: Instant,
    spoken: Cell<Instant>,
    drawn: Cell<bool>,
}

impl Watch {
    /// Takes a line of what runs.
    pub(crate) fn line(&self, name: &str, line: &str) {
        let line: String = line.trim().chars().take(SHOWN).collect();
        if line.is_empty() || line.starts_with('{') {
            return;
        }
        let seconds = self.start.elapsed().as_secs();
        if watched() {
            print!("\r▸ {name} … {seconds} s, {line}\x1b[K");
        } else if self.spoken.get().elapsed() > SPEAK {
            self.spoken.set(Instant::now());
            print!("\n  {seconds} s, {line}");
        } else {
            return;
        }
        let _ = std::io::stdout().flush();
        self.drawn.set(true);
    }
}

/// Runs a piece of work as a step.
pub(crate) fn step<T>(name: &str, work: impl FnOnce(&Watch) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    let watch = Watch { start, spoken: Cell::new(start), drawn: Cell::new(false) };
    print!("▸ {name} … ");
    let _ = std::io::stdout().flush();
    let done = work(&watch);
    match (watch.drawn.get(), watched()) {
        (true, true) => print!("\r▸ {name} … \x1b[K"),
        (true, false) => print!("\n  "),
        (false, _) => {}
    }
    let mark = if done.is_ok() { "done" } else { "FAILED" };
    println!("{mark} ({:.1} s)", start.elapsed().as_secs_f32());
    done
}

/// Runs a command as a step; its output is shown only if it fails.
pub(crate) fn command(name: &str, command: &mut Command) -> anyhow::Result<()> {
    step(name, |watch| {
        let (lines, good) = stream(command, |line| watch.line(name, line))?;
        if !good {
            bail!("{}\n`{}` failed", telling(&lines), shown(command));
        }
        Ok(())
    })
}

/// What a failed command said, without cargo's messages for programs and its progress.
pub(crate) fn telling(lines: &[String]) -> String {
    const PROGRESS: [&str; 7] =
        ["Compiling ", "Checking ", "Blocking ", "Downloading ", "Downloaded ", "Fresh ", "{\"reason\""];
    let says = |line: &&String| !PROGRESS.iter().any(|word| line.trim_start().starts_with(word));
    lines.iter().filter(says).map(String::as_str).collect::<Vec<_>>().join("\n")
}

/// Becomes the command: terminal, signals and exit code are its own. Returns only if it does not start.
pub(crate) fn become_command(command: &mut Command) -> anyhow::Error {
    let error = command.exec();
    anyhow::Error::new(error).context(format!("`{}` does not start", shown(command)))
}

/// The command as it would be typed.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs a command, both outputs as one; each line goes to `seen` as it comes. Returns the lines and whether it
/// succeeded. A child that falls silent for [`SILENCE`] is stopped.
pub(crate) fn stream(
    command: &mut Command,
    mut seen: impl FnMut(&str),
) -> anyhow::Result<(Vec<String>, bool)> {
    let (reader, writer) = std::io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("`{}` does not start", shown(command)))?;
    // The command keeps its ends of the pipe; without this the reading would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (told, lines) = sync_channel::<String>(LINES);
    let reading = std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if told.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut kept = Vec::new();
    let hung = loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) => {
                seen(&line);
                if kept.len() == KEPT {
                    kept.drain(KEPT / 4..KEPT / 2);
                }
                kept.push(line);
            }
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => break true,
        }
    };
    if hung {
        kept.push(format!("stopped: nothing was said for {} minutes", SILENCE.as_secs() / 60));
        child.kill().context("cannot stop the child")?;
    } else {
        let _ = reading.join();
    }
    let status = child.wait()?;
    Ok((kept, status.success() && !hung))
}

/// Whether somebody watches: progress may be drawn over.
pub(crate) fn watched() -> bool {
    std::io::stdout().is_terminal()
}
