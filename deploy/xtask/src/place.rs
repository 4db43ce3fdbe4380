//! Where things are: the checkout, the cache, cargo, and the commands made with them.
//!
//! Knows nothing of tests. Called by every command here.

use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest compiler: `rust-version` of the workspace.
const OLDEST: (u32, u32) = (1, 95);

/// The checkout and the cache.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The workspace's root.
    pub(crate) root: PathBuf,
    /// What outlives a clone: tools, and what is built.
    pub(crate) cache: PathBuf,
    /// Where the workspace is built.
    pub(crate) target: PathBuf,
}

impl Place {
    /// From the environment.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let root =
            root.canonicalize().with_context(|| format!("{}: the checkout is gone", root.display()))?;
        let cache = match (std::env::var_os("SLUICE_CACHE"), std::env::var_os("HOME")) {
            (Some(cache), _) => PathBuf::from(cache),
            (None, Some(home)) => Path::new(&home).join(".cache/sluice"),
            (None, None) => bail!("neither SLUICE_CACHE nor HOME is set: set SLUICE_CACHE to a directory"),
        };
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| cache.join("target"), PathBuf::from);
        // Cargo takes it from where it runs, which is the root.
        let target = root.join(target);
        Ok(Self { root, cache, target })
    }

    /// A command in the checkout.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("SLUICE_CACHE", &self.cache);
        command
    }

    /// A cargo command. The variables with which cargo started us would make it rebuild things.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                command.env_remove(name);
            }
        }
        command.args(arguments).env("CARGO_TERM_COLOR", "never");
        command
    }

    /// A binary of the workspace, built before.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.target.join("debug").join(name)
    }
}

/// Whether the compiler is new enough.
pub(crate) fn check_compiler(place: &Place) -> anyhow::Result<()> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output =
        place.command(rustc).arg("--version").output().context("rustc does not start: install Rust")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match version(&text) {
        Some(found) if found >= OLDEST => Ok(()),
        _ => bail!(
            "\"{}\" is older than Rust {}.{}, which the workspace needs: `rustup update stable`",
            text.trim(),
            OLDEST.0,
            OLDEST.1
        ),
    }
}

/// Major and minor of `rustc 1.95.0 (…)`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("rustc ")?.split('.').map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_says_its_version() {
        assert_eq!(version("rustc 1.95.0 (59807616e 2026-04-14)"), Some((1, 95)));
        assert_eq!(version("rustc 1.98.0-nightly (f 2026-07-01)"), Some((1, 98)));
        assert_eq!(version("command not found"), None);
        assert!(version("rustc 1.94.1").expect("a version") < OLDEST);
    }
}
