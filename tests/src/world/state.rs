//! A world's state as text, for a test that failed.
//!
//! Reads only. Called by the world.

use super::{Netns, World};
use std::fmt::Write;
use std::fs;

/// What is asked in each namespace.
const QUESTIONS: &[&[&str]] = &[
    &["ip", "-br", "addr"],
    &["ip", "-4", "route", "show", "table", "all"],
    &["ip", "-6", "route", "show", "table", "all"],
    &["ip", "-s", "-o", "link"],
    &["ip", "rule"],
    &["ip", "neigh"],
    &["ss", "-tanp"],
];
/// Lines of each process's log that are shown.
const LOG_LINES: usize = 40;

pub(super) fn describe(world: &World) -> String {
    let mut text = format!("=== world {} ===\n", world.prefix);
    describe_netns(&mut text, "underlay", &world.underlay);
    for node in &world.nodes {
        describe_netns(&mut text, &format!("node {}", node.name), &node.netns);
    }
    for pod in world.pods.iter().chain(&world.outside) {
        describe_netns(&mut text, &format!("pod {}", pod.name), &pod.netns);
    }
    for entry in fs::read_dir(&world.dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let log = fs::read_to_string(&path).unwrap_or_default();
            let skip = log.lines().count().saturating_sub(LOG_LINES);
            let _ = writeln!(text, "--- the end of {}", path.display());
            log.lines().skip(skip).for_each(|line| {
                let _ = writeln!(text, "    {line}");
            });
        }
    }
    text
}

fn describe_netns(text: &mut String, what: &str, netns: &Netns) {
    let _ = writeln!(text, "--- {what} ({})", netns.name());
    for question in QUESTIONS {
        let answer =
            netns.output(question).map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let answer = answer.unwrap_or_else(|error| format!("{error:#}"));
        let lines = answer.lines().filter(|line| !line.contains("table local") && !line.is_empty());
        let lines: Vec<&str> = lines.collect();
        if !lines.is_empty() {
            let _ = writeln!(text, "  {}", question.join(" "));
            lines.iter().for_each(|line| {
                let _ = writeln!(text, "    {line}");
            });
        }
    }
}
