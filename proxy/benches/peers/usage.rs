//! What a process has used so far, as the kernel counts it.

use crate::world::PROXY_CORE;
use std::ops::Sub;
use std::time::Duration;

/// A clock tick of procfs (`USER_HZ` is 100 on every architecture that this runs on).
const TICK: Duration = Duration::from_millis(10);

/// CPU time: of a process since it began, or between two looks at it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// All of it, by the scheduler's count: what softirqs do while the process runs is in it.
    pub(crate) ran: Duration,
    /// Of that in user space, by ticks.
    pub(crate) user: Duration,
    /// Of that in the kernel, by ticks.
    pub(crate) system: Duration,
    /// In softirq on the proxies' core, whoever ran there, by ticks.
    pub(crate) softirq: Duration,
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            ran: self.ran.saturating_sub(before.ran),
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
            softirq: self.softirq.saturating_sub(before.softirq),
        }
    }
}

impl Usage {
    /// Of this process now.
    pub(crate) fn of(pid: u32) -> Self {
        let stat = read(&format!("/proc/{pid}/stat"));
        // What follows the name, which may have spaces and is in parentheses.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |place: usize| TICK * fields.get(place).and_then(|f| f.parse().ok()).unwrap_or(0);
        Self { ran: ran(pid), user: ticks(11), system: ticks(12), softirq: softirq() }
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn ran(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |path: String| read(&path).split(' ').next().and_then(|ran| ran.parse().ok()).unwrap_or(0);
    Duration::from_nanos(tasks.map(|task| of(format!("{}/schedstat", task.path().display()))).sum())
}

fn softirq() -> Duration {
    let name = format!("cpu{PROXY_CORE} ");
    let stat = read("/proc/stat");
    let line = stat.lines().find(|line| line.starts_with(&name)).unwrap_or_default();
    TICK * line.split_whitespace().nth(7).and_then(|ticks| ticks.parse().ok()).unwrap_or(0)
}

/// CPU time before everybody else: where sessions share the machine (`CONFIG_SCHED_AUTOGROUP`), niceness counts within one
/// alone, and a busy neighbour would be what is measured. Given back when dropped.
pub(crate) struct Precedence(());

impl Precedence {
    pub(crate) fn take() -> Self {
        Self::set("-10");
        Self(())
    }

    fn set(nice: &str) {
        // Not everywhere there is one.
        let _ = std::fs::write("/proc/self/autogroup", nice);
    }
}

impl Drop for Precedence {
    fn drop(&mut self) {
        Self::set("0");
    }
}

/// Thousands of connections, at both ends.
pub(crate) fn raise_descriptor_limit() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
}

/// Resident memory of a process, in MB.
pub(crate) fn resident(pid: u32) -> f64 {
    let status = read(&format!("/proc/{pid}/status"));
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) * 1024.0 / 1e6
}
