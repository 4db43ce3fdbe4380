//! Boots another kernel under qemu, in software, and runs some of the datapath's tests there.
//!
//! `deploy/kernel/boot.sh` builds the initramfs and boots; what it needs is installed here, and what the tests said is
//! counted here. Takes minutes, and is part of nothing else. See docs/kernels.md.

use crate::count::{Said, understand};
use crate::place::Place;
use crate::{setup, step};
use anyhow::{bail, ensure};
use std::path::Path;

/// The oldest kernel that the datapath was seen running on.
pub(crate) const OLDEST: &str = "linux-image-6.1.0-56-cloud-amd64";
/// What is asked of it: the programs pass its verifier and are attached, some connections pass and some do not, answers
/// pass under default deny, what is for the proxy goes nowhere without one and to it where there is one, and in the end
/// nothing is left.
const TESTS: [&str; 6] = [
    "l4: tcp allow",
    "l4: replies pass under default deny",
    "l4: udp and icmp",
    "life: without the proxy",
    "l7: routed veths",
    "life: nothing is left",
];
/// Seconds for one test, boot included: software emulation is some twenty times slower.
const SECONDS: usize = 400;
/// A command that the script runs, and the package that brings it.
const TOOLS: [(&str, &str); 3] = [
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/bin/cpio", "cpio"),
    ("/usr/bin/objcopy", "binutils"),
];

/// Runs tests, or those that are named, under the kernel of a Debian package. Whether all passed.
pub(crate) fn run(place: &Place, package: &str, tests: &[String]) -> anyhow::Result<bool> {
    let missing: Vec<&str> =
        TOOLS.into_iter().filter(|(tool, _)| !Path::new(tool).exists()).map(|(_, package)| package).collect();
    if !missing.is_empty()
        && let Some(lacking) = setup::install(place, &missing)?
    {
        bail!("the kernel cannot be booted: {lacking}");
    }
    let tests: Vec<&str> =
        if tests.is_empty() { TESTS.to_vec() } else { tests.iter().map(String::as_str).collect() };
    // What was downloaded is used again; another kernel has a place of its own.
    let work = place.cache.join("kernel").join(package);
    std::fs::create_dir_all(&work)?;
    let build = ["test", "--locked", "--package", "sluice-tests", "--test", "datapath", "--no-run"];
    step::command("the datapath's tests", &mut place.cargo(&build))?;
    let mut boot = place.command(place.root.join("deploy/kernel/boot.sh"));
    boot.arg(package).args(&tests).env("WORK", &work).env("LIMIT", (SECONDS * tests.len()).to_string());
    let name = format!("{} tests under {package}", tests.len());
    let (lines, good) = step::step(&name, |watch| step::stream(&mut boot, |line| watch.line(&name, line)))?;
    let passed = said(&lines);
    ensure!(good, "{}\nthe script failed", step::telling(&lines));
    // A test that did not run says nothing of the kernel.
    ensure!(passed >= tests.len(), "{}\n{passed} of {} passed", step::telling(&lines), tests.len());
    Ok(true)
}

/// Prints what the kernel and its tests said; how many passed.
fn said(lines: &[String]) -> usize {
    let mut passed = 0;
    for line in lines.iter().map(|line| line.trim_end()) {
        match understand(line) {
            Said::Test { end, .. } => {
                passed += usize::from(end == "ok");
                step::say(line);
            }
            _ if line.starts_with("--- Linux") => step::say(line),
            _ => {}
        }
    }
    passed
}

#[cfg(test)]
mod tests {
    use super::said;

    #[test]
    fn only_what_passed_counts() {
        let lines = [
            "--- Linux 6.1",
            "test l4: tcp ... ok\r",
            "test l4: udp ... FAILED",
            "test x ... ignored, no tcx",
        ];
        assert_eq!(said(&lines.map(str::to_owned)), 1);
    }
}
