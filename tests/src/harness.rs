//! The contract of every test binary here: libtest-mimic's output, and a test that cannot run is shown as
//! ignored with its reason, never as passed. With `SLUICE_REQUIRE_ALL=1` it fails instead.
//!
//! Knows nothing of what is tested. Called by the test binaries' `main`.

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::process::{Command, ExitCode};

/// Set to `1` by continuous integration: what cannot run is a failure.
pub const REQUIRE_ALL: &str = "SLUICE_REQUIRE_ALL";

/// Set to `1` for the long form of what has a short one.
pub const LONG: &str = "SLUICE_LONG";

/// Whether the long form is asked for.
#[must_use]
pub fn long() -> bool {
    std::env::var(LONG).is_ok_and(|value| value == "1")
}

/// What a test needs of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// Root, network namespaces, and the tools that build worlds.
    World,
    /// A world, and a kernel that takes our programs.
    Bpf,
    /// The same, and tcx links.
    Tcx,
    /// A file or directory that a clone alone does not have.
    Path(std::path::PathBuf),
    /// A binary of the workspace.
    Binary(&'static str),
    /// kube-apiserver, etcd and kubectl.
    ApiServer,
}

/// Why the need cannot be met here, or nothing.
#[must_use]
pub fn missing(needs: &[Need]) -> Option<String> {
    needs.iter().find_map(|need| match need {
        Need::World => missing_world(),
        Need::Bpf => missing_world().or_else(|| missing_bpf((5, 15), "for the eBPF programs")),
        Need::Tcx => missing_world().or_else(|| missing_bpf((6, 6), "for tcx links")),
        Need::ApiServer => missing_root().or_else(crate::apiserver::missing),
        Need::Path(path) => (!path.exists()).then(|| format!("{} does not exist", path.display())),
        Need::Binary(name) => crate::world::binary(name).err().map(|error| error.to_string()),
    })
}

/// Files of tests lie below /run, where the next run finds what a killed one has left.
fn missing_root() -> Option<String> {
    let root = rustix::process::geteuid().is_root();
    (!root).then(|| "needs root, for its files in /run".to_owned())
}

fn missing_world() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, to create network namespaces".to_owned());
    }
    ["ip", "nsenter"].into_iter().find_map(|tool| {
        let found = Command::new(tool).arg("-V").output().is_ok();
        (!found).then(|| format!("needs the command `{tool}` (apt-get install iproute2 util-linux)"))
    })
}

fn missing_bpf(oldest: (u32, u32), what: &str) -> Option<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|part| part.trim().parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < oldest {
        let (major, minor) = oldest;
        return Some(format!("needs Linux {major}.{minor} or newer {what}, this is {}", release.trim()));
    }
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let bpf = filesystems.lines().any(|line| line.split_whitespace().next_back() == Some("bpf"));
    (!bpf).then(|| "needs a kernel with bpffs (CONFIG_BPF_SYSCALL)".to_owned())
}

/// A test that runs where its needs are met.
pub fn test(
    name: impl Into<String>,
    needs: impl Into<Vec<Need>>,
    run: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> Trial {
    let needs = needs.into();
    Trial::ignorable_test(name, move || {
        if let Some(reason) = missing(&needs) {
            if std::env::var(REQUIRE_ALL).is_ok_and(|value| value == "1") {
                return Err(Failed::from(format!("{reason}; {REQUIRE_ALL}=1 makes that a failure")));
            }
            return Ok(Completion::ignored_with(reason));
        }
        match run() {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => {
                let state = crate::world::last_state();
                let hint = if state.is_empty() {
                    format!("({}=1 shows the state of the world at the end)", crate::world::DESCRIBE)
                } else {
                    state
                };
                Err(Failed::from(format!("{error:#}\n{hint}")))
            }
        }
    })
}

/// Runs the tests of one binary; at most `threads` at once unless the caller says otherwise.
#[must_use]
pub fn main(threads: usize, tests: Vec<Trial>) -> ExitCode {
    crate::world::install_signal_handler();
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(threads);
    libtest_mimic::run(&arguments, tests).exit_code()
}
