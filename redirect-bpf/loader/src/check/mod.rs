//! Whether a node can run the datapath, and why not: found out by trying, not by versions.
//!
//! Reads the node and changes nothing of it. What has to be tried out is tried in namespaces of its own, for the
//! network and for mounts, which end with the threads that made them, however those end. Knows nothing of the cluster
//! nor of how findings are printed. Called by `sluice-proxy check`.

mod devices;
mod kernel;
mod node;
mod packets;
mod pins;
mod rights;
mod scratch;

use crate::attach::Hooks;
use crate::families::has_v6;
use crate::node::NodeConfig;
use rights::Rights;
use std::sync::mpsc;
use std::time::Duration;

/// What was found of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// As it must be.
    Ok,
    /// It runs, and something will be missed.
    Warn,
    /// It could not be looked at.
    Unknown,
    /// The node cannot run the datapath like this.
    Fail,
}

impl Status {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Unknown => "unknown",
            Self::Fail => "fail",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at: `area.thing`. Never changes its meaning.
    pub check: String,
    /// How it is.
    pub status: Status,
    /// What there is, in words.
    pub found: String,
    /// What to do about it; nothing where all is well.
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self { check: check.into(), status: Status::Ok, found: found.into(), remedy: None }
    }

    fn bad(
        check: impl Into<String>,
        status: Status,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { check: check.into(), status, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn warn(check: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::bad(check, Status::Warn, found, remedy)
    }

    fn fail(check: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::bad(check, Status::Fail, found, remedy)
    }

    fn unknown(check: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::bad(check, Status::Unknown, found, remedy)
    }
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The kernel's release.
    pub kernel: String,
    /// How hooks would be attached; `None` where that could not be asked.
    pub hooks: Option<Hooks>,
    /// Whether the kernel has IPv6.
    pub ipv6: bool,
    /// One of each check, some of several.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst of all. [`Status::Ok`] and [`Status::Warn`]: the node can run the datapath.
    #[must_use]
    pub fn worst(&self) -> Status {
        self.findings.iter().map(|finding| finding.status).max().unwrap_or(Status::Unknown)
    }
}

/// A look at files, sysctls and devices.
const QUICK: Duration = Duration::from_secs(10);
/// The verifier takes a second or two for all programs on an idle core.
const PROGRAMS: Duration = Duration::from_secs(60);
/// Some forty connections, of which those that are refused in silence take half a second.
const PACKETS: Duration = Duration::from_secs(90);
/// What takes longer than it may.
const TOO_LONG: &str = "look at the kernel's log (`dmesg`) and try again when the node has less to do";

/// Looks at the node of this thread's network namespace, as `config` would have it run.
#[must_use]
pub fn run(config: &NodeConfig) -> Report {
    let mut findings = Vec::new();
    let rights = Rights::look(&mut findings);
    findings.extend(kernel::look());
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let may = rights.may();
    let hooks = may.then(|| config.hooks.decide());
    let flows = config.flows;
    findings.extend(match hooks {
        Some(hooks) => bounded("kernel.programs", PROGRAMS, move || kernel::try_out(flows, hooks)),
        None => vec![rights.lacking("kernel.programs", "load the programs")],
    });
    let (bpffs, roll_back) = (config.bpffs.clone(), config.roll_back);
    findings.extend(bounded("pins.bpffs", QUICK, move || pins::look(&bpffs, roll_back, may)));
    findings.extend(bounded("node.sysctls", QUICK, node::look));
    let (name, had) = (config.name.clone(), rights.clone());
    findings.extend(bounded("pods.devices", QUICK, move || devices::look(&name, &had)));
    findings.extend(match hooks {
        Some(hooks) => {
            let config = NodeConfig { hooks, ..config.clone() };
            bounded("packets.setup", PACKETS, move || packets::look(&config))
        }
        None => vec![rights.lacking("packets.setup", "send packets through the hooks")],
    });
    Report { kernel, hooks, ipv6: has_v6(), findings }
}

/// Runs a part on a thread of its own, and does not wait for it longer than that.
fn bounded(
    check: &'static str,
    limit: Duration,
    work: impl FnOnce() -> Vec<Finding> + Send + 'static,
) -> Vec<Finding> {
    let (tell, told) = mpsc::channel();
    let thread = std::thread::Builder::new().name(check.to_owned()).spawn(move || {
        let _ = tell.send(work());
    });
    let ended = match thread {
        Ok(_) => told.recv_timeout(limit).map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => format!("it did not end within {} s", limit.as_secs()),
            mpsc::RecvTimeoutError::Disconnected => "it ended without a word".to_owned(),
        }),
        Err(error) => Err(format!("no thread can be started: {error}")),
    };
    ended.unwrap_or_else(|why| vec![Finding::unknown(check, why, TOO_LONG)])
}

/// A line of `/proc` or `/sys`; `None` where it is not there or may not be read.
fn line(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_not_waited_for_and_what_dies_is_told() {
        let hangs = bounded("a.b", Duration::from_millis(20), || {
            std::thread::sleep(Duration::from_millis(500));
            Vec::new()
        });
        assert_eq!(hangs[0].status, Status::Unknown);
        assert!(hangs[0].found.contains("did not end"), "{hangs:?}");
        let dies = bounded("a.b", QUICK, || std::panic::resume_unwind(Box::new(())));
        assert!(dies[0].found.contains("without a word"), "{dies:?}");
        assert_eq!(bounded("a.b", QUICK, || vec![Finding::ok("a.b", "c")]), [Finding::ok("a.b", "c")]);
    }

    #[test]
    fn the_worst_counts() {
        let report = |findings| Report { kernel: String::new(), hooks: None, ipv6: true, findings };
        let (ok, warn) = (Finding::ok("a", ""), Finding::warn("b", "", ""));
        let (unknown, fail) = (Finding::unknown("c", "", ""), Finding::fail("d", "", ""));
        assert_eq!(report(vec![]).worst(), Status::Unknown);
        assert_eq!(report(vec![warn.clone(), ok.clone()]).worst(), Status::Warn);
        assert_eq!(report(vec![unknown.clone(), warn, ok]).worst(), Status::Unknown);
        assert_eq!(report(vec![fail, unknown]).worst(), Status::Fail);
    }
}
