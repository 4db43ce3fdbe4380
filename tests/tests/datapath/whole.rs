//! A node's whole state as text, place by place, to be compared with what it was: links, addresses, rules, routes,
//! netfilter, qdiscs, filters, tcx programs, sysctls, namespaces, files, mounts; and the BPF objects of ours that there
//! are, by the kernel's numbers.
//!
//! Reads only, and knows nothing of what should be there. Called by the tests of what is left when all is taken away.

use anyhow::{Context, Result};
use aya::maps::{MapInfo, loaded_maps};
use aya::programs::{SchedClassifier, TcAttachType, loaded_links, loaded_programs};
use sluice_tests::world::{NETNS_DIR, Netns};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const QUESTIONS: [&[&str]; 10] = [
    &["ip", "-d", "-o", "link"],
    &["ip", "-o", "addr"],
    &["ip", "rule"],
    &["ip", "-6", "rule"],
    &["ip", "route", "show", "table", "all"],
    &["ip", "-6", "route", "show", "table", "all"],
    &["ip", "netns", "list-id"],
    &["nft", "list", "ruleset"],
    &["tc", "qdisc", "show"],
    &["ip", "xfrm", "policy"],
];
/// What the kernel counts or computes by itself.
const LIVE: [&str; 2] = ["net/netfilter/nf_conntrack_count", "net/ipv4/tcp_mem"];

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Whole(BTreeMap<String, String>);

impl Whole {
    /// Of a node's namespace and of directories; `prefix` is what the names of the world's namespaces begin with.
    pub(crate) fn of(netns: &Netns, directories: &[PathBuf], prefix: &str) -> Result<Self> {
        let mut all = BTreeMap::new();
        for question in QUESTIONS {
            let answer = netns.run(question)?;
            let still = answer.lines().map(still);
            all.extend(still.map(|line| (format!("{}: {line}", question.join(" ")), String::new())));
        }
        for device in devices(netns)? {
            for side in ["ingress", "egress"] {
                let filters = netns.run(&["tc", "filter", "show", "dev", &device, side])?;
                all.insert(format!("filters: {device} {side}"), filters);
            }
            all.insert(format!("tcx: {device}"), format!("{:?}", tcx(netns, &device)?));
        }
        netns.inside(|| sysctls(Path::new("/proc/sys/net"), &mut all))?;
        for entry in fs::read_dir(NETNS_DIR)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(prefix) {
                all.insert(format!("namespace: {name}"), String::new());
            }
        }
        for directory in directories {
            files(directory, &mut all);
            let mounts = fs::read_to_string("/proc/self/mounts")?;
            let at = format!(" {} ", directory.display());
            let here: Vec<&str> = mounts.lines().filter(|line| line.contains(&at)).collect();
            all.insert(format!("mounts: {}", directory.display()), here.join("\n"));
        }
        Ok(Self(all))
    }

    /// What is there and was not, was there and is not, or is another.
    pub(crate) fn since(&self, before: &Self) -> Vec<String> {
        let new = self.0.iter().filter_map(|(what, is)| match before.0.get(what) {
            None => Some(format!("new: {what} {is}")),
            Some(was) => (was != is).then(|| format!("{what}: {was:?} became {is:?}")),
        });
        let gone =
            before.0.keys().filter(|what| !self.0.contains_key(*what)).map(|what| format!("gone: {what}"));
        new.chain(gone).collect()
    }
}

/// A line without what runs: a bridge's timers.
fn still(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let timed = |at: usize| at > 0 && words[at - 1].ends_with("timer");
    let kept = words.iter().enumerate().filter(|(at, _)| !timed(*at));
    kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
}

fn devices(netns: &Netns) -> Result<Vec<String>> {
    let text = netns.run(&["ip", "-o", "link"])?;
    let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
    Ok(text.lines().filter_map(name).collect())
}

/// The programs on both sides, by the kernel's numbers. None below Linux 6.6.
fn tcx(netns: &Netns, device: &str) -> Result<Vec<u32>> {
    netns.inside(|| {
        let sides = [TcAttachType::Ingress, TcAttachType::Egress];
        let programs = sides.into_iter().filter_map(|side| SchedClassifier::query_tcx(device, side).ok());
        programs.flat_map(|(_, programs)| programs).map(|program| program.id()).collect()
    })
}

fn sysctls(directory: &Path, all: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sysctls(&path, all);
        } else if !LIVE.iter().any(|live| path.ends_with(live))
            // Some can only be written.
            && let Ok(value) = fs::read_to_string(&path)
        {
            all.insert(format!("sysctl: {}", path.display()), value);
        }
    }
}

fn files(path: &Path, all: &mut BTreeMap<String, String>) {
    if !path.exists() {
        return;
    }
    all.insert(format!("file: {}", path.display()), String::new());
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        files(&entry.path(), all);
    }
}

/// BPF objects, by the kernel's numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Objects {
    pub(crate) maps: BTreeSet<u32>,
    pub(crate) programs: BTreeSet<u32>,
    pub(crate) links: BTreeSet<u32>,
}

impl Objects {
    /// What hangs on a node's devices, and what is pinned as a map in a directory.
    pub(crate) fn of(netns: &Netns, maps: &Path) -> Result<Self> {
        let mut found = Self::default();
        for device in devices(netns)? {
            found.programs.extend(tcx(netns, &device)?);
            for side in ["ingress", "egress"] {
                let filters = netns.run(&["tc", "filter", "show", "dev", &device, side])?;
                found.programs.extend(numbers(&filters));
            }
        }
        for entry in fs::read_dir(maps).with_context(|| format!("{}", maps.display()))?.flatten() {
            found.maps.insert(MapInfo::from_pin(entry.path())?.id());
        }
        let links = loaded_links().filter_map(Result::ok);
        let ours = links.filter(|link| found.programs.contains(&link.program_id()));
        found.links = ours.map(|link| link.id()).collect();
        Ok(found)
    }

    /// Those that are there still.
    pub(crate) fn alive(&self) -> Self {
        let maps: BTreeSet<u32> = loaded_maps().filter_map(Result::ok).map(|map| map.id()).collect();
        let programs: BTreeSet<u32> =
            loaded_programs().filter_map(Result::ok).map(|program| program.id()).collect();
        let links: BTreeSet<u32> = loaded_links().filter_map(Result::ok).map(|link| link.id()).collect();
        Self {
            maps: self.maps.intersection(&maps).copied().collect(),
            programs: self.programs.intersection(&programs).copied().collect(),
            links: self.links.intersection(&links).copied().collect(),
        }
    }
}

/// The programs of filters, as `tc` shows them: `… direct-action not_in_hw id 17 name … tag …`.
fn numbers(filters: &str) -> impl Iterator<Item = u32> {
    let ours = filters.lines().filter(|line| line.contains("sluice/"));
    ours.filter_map(|line| line.split(" id ").nth(1)?.split(' ').next()?.parse().ok())
}
