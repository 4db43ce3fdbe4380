//! The node's network devices, looked at now and then: a pod's veth may come, go or be another one without any
//! change of the snapshot, and its hooks go with it.
//!
//! Knows nothing of pods. A name that is taken again has another index.

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;

/// The devices of this process's network namespace.
#[derive(Debug)]
pub(super) struct Links {
    socket: OwnedFd,
    seen: BTreeSet<(String, u32)>,
}

impl Links {
    /// Looks for the first time.
    pub(super) fn look() -> io::Result<Self> {
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        let mut links = Self { socket, seen: BTreeSet::new() };
        links.changed();
        Ok(links)
    }

    /// Whether a device came or went since the last look.
    pub(super) fn changed(&mut self) -> bool {
        // What cannot be read now is read the next time.
        let Ok(table) = std::fs::read_to_string("/proc/self/net/dev") else { return false };
        let now: BTreeSet<(String, u32)> = names(&table)
            .filter_map(|name| Some((name.to_owned(), name_to_index(&self.socket, name).ok()?)))
            .collect();
        let changed = now != self.seen;
        self.seen = now;
        changed
    }
}

/// The names in `/proc/net/dev`: two lines of title, then `name: counters`.
fn names(table: &str) -> impl Iterator<Item = &str> {
    table.lines().skip(2).filter_map(|line| Some(line.rsplit_once(':')?.0.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_and_sees_what_is_there() {
        let table = "Inter-|   Receive\n face |bytes\n    lo: 1 2 3\nveth1@if2:0 0\n  a:b: 5\n";
        assert_eq!(names(table).collect::<Vec<_>>(), ["lo", "veth1@if2", "a:b"]);
        let links = Links::look().expect("a socket");
        assert!(links.seen.iter().any(|(name, index)| name == "lo" && *index == 1), "{links:?}");
    }
}
