//! One named network namespace: commands, sysctls and sockets in it.
//!
//! Uses `nsenter` and not `ip netns exec`, which would hide bpffs. Knows nothing of nodes and pods. Called by
//! the world and by tests that open sockets inside one.

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Where `ip netns` keeps its names.
pub const NETNS_DIR: &str = "/run/netns";

/// A network namespace, by its name under `/run/netns`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Creates it. The caller deletes it.
    ///
    /// # Errors
    /// Says what `ip netns add` said.
    pub fn create(name: impl Into<String>) -> Result<Self> {
        let netns = Self { name: name.into() };
        run(Command::new("ip").args(["netns", "add", &netns.name]))?;
        Ok(netns)
    }

    /// The name under `/run/netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(NETNS_DIR).join(&self.name)
    }

    /// A command that will run in it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a command in it and waits.
    ///
    /// # Errors
    /// When it cannot be started. Its exit status is the caller's to judge.
    pub fn output(&self, argv: &[&str]) -> Result<Output> {
        let (program, arguments) = argv.split_first().context("an empty command")?;
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::null());
        command.output().with_context(|| format!("cannot start {argv:?} in {}", self.name))
    }

    /// Runs a command in it, which must succeed; returns what it printed.
    ///
    /// # Errors
    /// With the command and what it wrote to standard error.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        let (program, arguments) = argv.split_first().context("an empty command")?;
        run(self.command(program).args(arguments))
    }

    /// Runs many `ip` commands in one process, in order; all must succeed.
    ///
    /// # Errors
    /// With the lines and what `ip` said.
    pub fn ip_batch(&self, lines: &[String]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut child = self
            .command("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start ip")?;
        let text = lines.join("\n") + "\n";
        child.stdin.take().context("no stdin")?.write_all(text.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip -batch in {}: {}\n{text}", self.name, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Sets sysctls, keys as in `net.ipv4.ip_forward`. Only of this namespace: keys outside `net.` are refused.
    ///
    /// # Errors
    /// With the key.
    pub fn sysctl<K: AsRef<str> + Sync>(&self, settings: &[(K, &str)]) -> Result<()> {
        self.inside(|| {
            for (key, value) in settings {
                let key = key.as_ref();
                if !key.starts_with("net.") {
                    bail!("{key} is not a sysctl of a network namespace");
                }
                let path = format!("/proc/sys/{}", key.replace('.', "/"));
                std::fs::write(&path, value).with_context(|| format!("cannot set {key} to {value}"))?;
            }
            Ok(())
        })?
    }

    /// Runs a closure on a thread of its own inside the namespace. Sockets that it opens stay there.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("no namespace {}", self.name))?;
        std::thread::scope(|scope| {
            let worker = scope.spawn(move || -> Result<T> {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("cannot enter the namespace (root is needed)")?;
                Ok(run())
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a future on a thread and a runtime of its own inside the namespace. Sockets that it opens stay
    /// there; it must not hand its work to another runtime.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn block_on<T: Send, F: Future<Output = T>>(&self, run: impl FnOnce() -> F + Send) -> Result<T> {
        self.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(run()))
        })?
    }
}

/// Runs a command that must succeed; returns what it printed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
