//! The status file: what is in force where, for tests, the demo and people, as JSON.
//!
//! Replaced atomically, and only when it says something new. Nothing reads it back. Called by the controller's loop.

use crate::heard::Kernel;
use crate::nodes::{Node, Nodes};
use serde_json::{Value, json};
use sluice_crd::Problem;
use sluice_wire::{STALE_AFTER, pb};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The status of a whole control plane.
#[must_use]
pub fn status(
    nodes: &Nodes,
    now: Instant,
    reads: u64,
    source: &Value,
    problems: &[Problem],
    policies: &[Value],
) -> Value {
    let by_name: serde_json::Map<String, Value> =
        nodes.iter().map(|(name, node)| (name.to_owned(), node_status(node, now))).collect();
    json!({
        "generation": nodes.generation(),
        "inForce": nodes.is_in_force(now),
        "reads": reads,
        "source": source,
        "nodes": by_name,
        "policies": policies,
        "problems": problems.iter().map(problem_status).collect::<Vec<_>>(),
    })
}

fn node_status(node: &Node, now: Instant) -> Value {
    let ack = node.ack();
    let missing = ack.map_or(&[][..], |ack| &ack.missing);
    let missing: Vec<Value> =
        missing.iter().map(|m| json!({ "endpoint": m.endpoint, "reason": m.reason })).collect();
    json!({
        "connected": node.is_connected(),
        "published": node.published(),
        "acked": ack.filter(|ack| ack.applied).map(|ack| ack.generation),
        "inForce": node.is_in_force(now),
        "stale": node.is_stale(now),
        "warnings": warnings(node, now),
        "withheld": node.withheld(),
        "rejected": ack.map(|ack| ack.rejected.as_str()).filter(|reason| !reason.is_empty()),
        "attached": ack.map_or(&[][..], |ack| &ack.attached),
        "missing": missing,
        "kernel": node.kernel(now).map(|(age, kernel)| kernel_status(age, kernel)),
        "records": node.records,
        "recordsDropped": node.dropped,
    })
}

/// What an operator should know of the node's kernel, in words.
fn warnings(node: &Node, now: Instant) -> Vec<String> {
    let mut all = Vec::new();
    if node.is_stale(now) {
        let bound = STALE_AFTER.as_secs();
        all.push(match node.kernel(now) {
            Some((age, _)) => format!(
                "stale: connected, and silent about its kernel for {} s (more than {bound} s): what is in force there \
                 is not known. Look whether its sluice-proxy hangs",
                age.as_secs()
            ),
            None => format!(
                "stale: connected for more than {bound} s, and never said anything of its kernel: what is in force \
                 there is not known. Look whether its sluice-proxy hangs, or is older than this control"
            ),
        });
    }
    let drift = node.ack().map_or(&[][..], |ack| &ack.drift);
    all.extend(drift.iter().map(|drift| format!("not as it must be: {}: {}", drift.what, drift.stays)));
    if let Some((_, kernel)) = node.kernel(now) {
        if !kernel.trouble.is_empty() {
            all.push(kernel.trouble.clone());
        }
        let full = kernel.maps.values().map(|fill| &fill.warning);
        all.extend(full.filter(|warning| !warning.is_empty()).cloned());
    }
    all
}

fn kernel_status(age: Duration, kernel: &Kernel) -> Value {
    let drift = |drift: &pb::Drift| {
        json!({
            "what": drift.what,
            "repaired": drift.stays.is_empty(),
            "stays": Some(&drift.stays).filter(|why| !why.is_empty()),
            "times": drift.times,
            "ageSeconds": drift.age_seconds.saturating_add(age.as_secs()),
        })
    };
    let maps: serde_json::Map<String, Value> = kernel
        .maps
        .iter()
        .map(|(name, fill)| (name.clone(), json!({ "used": fill.used, "max": fill.max })))
        .collect();
    json!({
        "ageSeconds": age.as_secs(),
        "generation": kernel.generation,
        "packets": kernel.packets,
        "maps": maps,
        "drift": kernel.drift.iter().map(drift).collect::<Vec<_>>(),
        "repaired": kernel.repaired,
        "leftOut": kernel.left_out,
    })
}

/// A problem as JSON.
#[must_use]
pub fn problem_status(problem: &Problem) -> Value {
    json!({
        "file": &*problem.file,
        "line": problem.line,
        "column": problem.column,
        "severity": problem.severity.as_str(),
        "object": problem.object.as_deref(),
        "path": problem.path,
        "reason": problem.reason,
        "remedy": problem.remedy,
        "text": problem.to_string(),
    })
}

/// The file, if one is wanted.
pub struct StatusFile {
    path: Option<PathBuf>,
    last: Option<Value>,
    failed: bool,
}

impl StatusFile {
    /// Writes nothing yet.
    #[must_use]
    pub const fn new(path: Option<PathBuf>) -> Self {
        Self { path, last: None, failed: false }
    }

    /// Replaces the file if the status is another one. A file that cannot be written is said once; control goes on.
    pub fn write(&mut self, status: Value) {
        let Some(path) = &self.path else { return };
        if self.last.as_ref() == Some(&status) {
            return;
        }
        match replace(path, &format!("{status:#}\n")) {
            Ok(()) => {
                self.failed = false;
                self.last = Some(status);
            }
            Err(error) if !self.failed => {
                tracing::warn!("{}: the status cannot be written: {error}", path.display());
                self.failed = true;
            }
            Err(_) => {}
        }
    }
}

/// Readers see the old text or the new one, whole.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
    let mut draft = std::ffi::OsString::from(".");
    draft.push(name);
    draft.push(format!(".{}", std::process::id()));
    let draft = path.with_file_name(draft);
    fs::write(&draft, text)?;
    fs::rename(&draft, path).inspect_err(|_| {
        let _ = fs::remove_file(&draft);
    })
}
