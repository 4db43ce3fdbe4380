//! Where the foreign programs are: in the cache, where xtask puts them, or on PATH.
//!
//! Knows nothing of what they do. Called by the stage and by each test.

use crate::stage::Stage;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use sluice_tests::cluster::repository;
use sluice_tests::harness::{self, Need};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A foreign program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Debian's, by its name in /usr/bin.
    Debian(&'static str),
    /// Of Go, as xtask names it.
    Go(&'static str),
    /// Python, with the packages of requirements.txt.
    Python,
}

impl Part {
    /// Where it is.
    pub(crate) fn path(self) -> Option<PathBuf> {
        let current = cache()?.join("interop/current");
        let made = match self {
            // The program in /usr/bin is a script that looks for the other where it would be installed.
            Self::Debian("chromium-headless-shell") => {
                current.join("debian/usr/lib/chromium/chromium-headless-shell")
            }
            Self::Debian(name) => current.join("debian/usr/bin").join(name),
            Self::Go(name) => current.join("go").join(name),
            Self::Python => current.join("python/bin/python"),
        };
        let on_path = || match self {
            Self::Debian(name) => {
                let path = std::env::var_os("PATH")?;
                std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
            }
            Self::Go(_) | Self::Python => None,
        };
        made.is_file().then_some(made).or_else(on_path)
    }

    /// A need of it: the file that is missing is named.
    fn need(self) -> Need {
        let named = match self {
            Self::Debian(name) | Self::Go(name) => name,
            Self::Python => "interop/current/python",
        };
        Need::Path(self.path().unwrap_or_else(|| PathBuf::from(format!("{named} (run `cargo xtask setup`)"))))
    }
}

fn cache() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
    var("SLUICE_CACHE").or_else(|| var("HOME").map(|home| home.join(".cache/sluice")))
}

/// The libraries that Debian's packages bring, beside those of the system.
pub(crate) fn libraries() -> Vec<PathBuf> {
    let folder = cache().unwrap_or_default().join("interop/current/debian/usr/lib");
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    let own = folder.join(triple);
    vec![own.join("pulseaudio"), own, folder]
}

/// A script of tests/interop.
pub(crate) fn script(name: &str) -> PathBuf {
    repository().join("tests/interop").join(name)
}

/// A test on the shared stage that runs where all these parts are; the servers need Go and Python.
pub(crate) fn test(
    name: &str,
    parts: &[Part],
    run: impl FnOnce(&Stage) -> Result<()> + Send + 'static,
) -> Trial {
    let mut needs = vec![
        Need::Bpf,
        Need::Binary("sluice-peer"),
        Need::Binary("sluice-control"),
        Need::Binary("sluice-proxy"),
    ];
    let servers = [Part::Go("httpd"), Part::Go("interop-server"), Part::Python];
    needs.extend(servers.iter().chain(parts).map(|part| part.need()));
    harness::test(name, needs, || run(Stage::get()?))
}

/// Runs a program in a pod until it ends, no longer than `seconds`; returns what it printed, both outputs as one.
///
/// # Errors
/// With that, when it failed.
pub(crate) fn run(stage: &Stage, pod: &str, seconds: u32, part: Part, arguments: &[&str]) -> Result<String> {
    let (output, good) = attempt(stage, pod, seconds, part, arguments)?;
    ensure!(good, "{part:?} {arguments:?} failed:\n{output}\n{}", stage.tails());
    Ok(output)
}

/// The same, whatever its exit code.
pub(crate) fn attempt(
    stage: &Stage,
    pod: &str,
    seconds: u32,
    part: Part,
    arguments: &[&str],
) -> Result<(String, bool)> {
    let program = part.path().with_context(|| format!("{part:?} is gone"))?;
    let mut command = stage.netns(pod).command("timeout");
    command.args(["-k", "5", &seconds.to_string()]).arg(program).args(arguments);
    with_libraries(&mut command);
    let output = command.output().with_context(|| format!("{part:?} does not start"))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(124) {
        text.push_str(&format!("\n(stopped after {seconds} s)"));
    }
    Ok((text, output.status.success()))
}

/// Debian's programs find the libraries that came with them.
pub(crate) fn with_libraries(command: &mut Command) {
    if let Ok(path) = std::env::join_paths(libraries().iter().filter(|folder| Path::exists(folder))) {
        command.env("LD_LIBRARY_PATH", path);
    }
}

/// Runs a script of tests/interop in a pod; it asserts for itself.
pub(crate) fn python(stage: &Stage, pod: &str, name: &str, arguments: &[&str]) -> Result<String> {
    let script = script(name);
    let mut all = vec!["-u", "-B", script.to_str().context("a path that is text")?];
    all.extend(arguments);
    run(stage, pod, 120, Part::Python, &all)
}
