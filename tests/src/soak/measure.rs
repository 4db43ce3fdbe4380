//! What the proxies hold of the machine: memory, descriptors, flows; and whether it grows.
//!
//! Reads /proc and what `sluice-proxy counters` says. Called by the soak.

use crate::cluster::Cluster;
use crate::world::binary;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fmt;
use std::time::Duration;

/// What of the samples is warm-up.
const WARM_UP: f64 = 0.25;
/// Fewer samples than this say nothing of growth.
const ENOUGH: usize = 8;
/// What may grow over the judged time: this part of its mean …
const TOLERATED: f64 = 0.25;
/// … and so much at least, for each measure: kB of memory, descriptors, flows.
const LEAST: [f64; 5] = [16_384.0, 16_384.0, 512.0, 512.0, 4096.0];
const NAMES: [&str; 5] =
    ["agents' RSS, kB", "workers' RSS, kB", "agents' descriptors", "workers' descriptors", "flows"];

/// One look.
#[derive(Clone, Debug)]
pub struct Sample {
    at: Duration,
    /// In the order of [`NAMES`]; of the agents that have the nodes, not of those that drain.
    values: [f64; 5],
    draining: usize,
}

impl Sample {
    /// Looks.
    ///
    /// # Errors
    /// When a node has no proxy.
    pub fn take(cluster: &mut Cluster, at: Duration, draining: usize) -> Result<Self> {
        let mut values = [0.0; 5];
        for node in cluster.world.nodes.clone() {
            let family = cluster.proxy(&node.name)?.family();
            for (index, process) in family.iter().enumerate() {
                // The agent is the first; what it started is workers.
                let role = usize::from(index > 0);
                values[role] += resident(*process).unwrap_or(0.0);
                values[2 + role] += descriptors(*process).unwrap_or(0.0);
            }
            let mut counters = node.netns.command(binary("sluice-proxy")?);
            let output = counters.args(["counters", "-o", "json", "--bpffs"]).arg(&node.bpffs).output()?;
            let said: Value = serde_json::from_slice(&output.stdout)
                .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
            let maps = said["maps"].as_object().context("no maps")?;
            let flows = maps.iter().filter(|(name, _)| name.to_lowercase().contains("flow"));
            values[4] += flows.filter_map(|(_, map)| map["used"].as_f64()).sum::<f64>();
        }
        Ok(Self { at, values, draining })
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [agents, workers, _, descriptors, flows] = self.values;
        write!(
            f,
            "{:>5.0} s · agents {:.0} MB, workers {:.0} MB, {descriptors:.0} descriptors, {flows:.0} flows, {} drain",
            self.at.as_secs_f64(),
            agents / 1024.0,
            workers / 1024.0,
            self.draining
        )
    }
}

fn resident(process: i32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

fn descriptors(process: i32) -> Option<f64> {
    Some(std::fs::read_dir(format!("/proc/{process}/fd")).ok()?.count() as f64)
}

/// All samples.
#[derive(Debug, Default)]
pub struct Measures {
    samples: Vec<Sample>,
    /// Agents that took over.
    pub hand_overs: u64,
}

impl Measures {
    /// One more.
    pub fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// Whether nothing grows, and a line for each measure.
    #[must_use]
    pub fn judge(&self) -> (bool, String) {
        let skip = (self.samples.len() as f64 * WARM_UP).ceil() as usize;
        let judged = &self.samples[skip.min(self.samples.len())..];
        if judged.len() < ENOUGH {
            return (true, format!("{} samples: too few to judge growth", self.samples.len()));
        }
        let (mut flat, mut text) = (true, String::new());
        for (index, name) in NAMES.iter().enumerate() {
            let points: Vec<(f64, f64)> =
                judged.iter().map(|sample| (sample.at.as_secs_f64(), sample.values[index])).collect();
            let (mean, grown) = growth(&points);
            let tolerated = (mean * TOLERATED).max(LEAST[index]);
            let good = grown <= tolerated;
            flat &= good;
            let mark = if good { "flat" } else { "GROWS" };
            text.push_str(&format!(
                "{name:<22} mean {mean:>10.0}, grew by {grown:>9.0} (at most {tolerated:.0}): {mark}\n"
            ));
        }
        (flat, text.trim_end().to_owned())
    }
}

/// The mean, and by how much the line of least squares rises from the first point to the last.
fn growth(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / count, y + point.1 / count));
    let over = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>();
    let under = points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>();
    let span = points.last().map_or(0.0, |last| last.0) - points.first().map_or(0.0, |first| first.0);
    (y, if under > 0.0 { over / under * span } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measures(value: impl Fn(f64) -> f64) -> Measures {
        let mut measures = Measures::default();
        for turn in 0..40_u32 {
            let at = Duration::from_secs(u64::from(turn) * 10);
            measures.add(Sample { at, values: [value(f64::from(turn)), 0.0, 0.0, 0.0, 0.0], draining: 0 });
        }
        measures
    }

    #[test]
    fn what_grows_is_told_from_what_goes_up_and_down() {
        assert!(measures(|turn| 50_000.0 + 5000.0 * (turn % 6.0)).judge().0);
        assert!(measures(|turn| if turn < 9.0 { turn * 5000.0 } else { 50_000.0 }).judge().0, "warm-up");
        let (flat, text) = measures(|turn| 50_000.0 + 1000.0 * turn).judge();
        assert!(!flat && text.contains("agents' RSS, kB") && text.contains("GROWS"), "{text}");
        assert_eq!(growth(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]), (3.0, 4.0));
    }
}
