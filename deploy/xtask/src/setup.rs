//! What the machine must have: Debian's packages for the demo and the tests.
//!
//! Installs only what is missing, says what it does, and says what to do where it may not. Called first by `demo`,
//! `test` and `setup`. The API server that some tests use is `apiserver.rs`'s.

use crate::place::Place;
use crate::step;
use anyhow::bail;
use std::path::Path;

/// A command that something here runs, and the package that brings it.
const TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
    ("ping", "iputils-ping"),
    ("curl", "curl"),
    ("nft", "nftables"),
    ("iptables-restore", "iptables"),
    ("conntrack", "conntrack"),
];

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    /// Everything is here.
    Ready,
    /// Something is missing and cannot be installed from here: why, and what to do.
    Lacking(String),
}

/// Whether we may create network namespaces and install packages.
pub(crate) fn is_root() -> bool {
    // The owner of /proc/self is the effective user; no call into C is needed.
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

fn missing(path: &str) -> Vec<&'static str> {
    // Debian keeps ip, nft and mount out of a user's PATH.
    let places: Vec<&str> = path.split(':').chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"]).collect();
    let has = |tool: &str| places.iter().any(|place| Path::new(place).join(tool).exists());
    TOOLS.iter().filter(|(tool, _)| !has(tool)).map(|(_, package)| *package).collect()
}

/// Installs what is missing.
pub(crate) fn machine(place: &Place) -> anyhow::Result<Machine> {
    let path = std::env::var("PATH").unwrap_or_default();
    let packages = missing(&path);
    if packages.is_empty() {
        step::say("machine: every tool is here");
        return Ok(Machine::Ready);
    }
    if let Some(lacking) = install(place, &packages)? {
        return Ok(Machine::Lacking(lacking));
    }
    let still = missing(&path);
    if !still.is_empty() {
        bail!("apt-get is done, and the commands of {} are still not found", still.join(" "));
    }
    Ok(Machine::Ready)
}

/// Installs Debian packages; why not, where it may not.
pub(crate) fn install(place: &Place, packages: &[&str]) -> anyhow::Result<Option<String>> {
    let list = packages.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        return Ok(Some(format!("this is no Debian: install what brings {list}")));
    }
    if !is_root() {
        return Ok(Some(format!("run `sudo apt-get install -y --no-install-recommends {list}`")));
    }
    step::say(&format!("machine: installing {list}"));
    let apt = |arguments: &[&str]| {
        let mut command = place.command("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    step::command("apt-get update", &mut apt(&["-q", "update"]))?;
    let mut install = apt(&["-q", "install", "-y", "--no-install-recommends"]);
    step::command("apt-get install", install.args(packages))?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_has_its_package() {
        assert!(TOOLS.iter().all(|(tool, package)| !tool.is_empty() && !package.is_empty()));
        // What a directory holds is found through PATH; the sbin directories count for everybody.
        assert!(missing("/nowhere").len() <= TOOLS.len());
    }
}
