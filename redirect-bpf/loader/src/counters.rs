//! The kernel's counters, by reason, summed over the CPUs.

use crate::error::SetupError;
use aya::maps::{MapData, PerCpuArray};
use sluice_bpf_abi::{Counter, map};

/// A reading of every counter. They grow for as long as the pins live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters(Vec<u64>);

impl Counters {
    pub(crate) fn read(map: &PerCpuArray<MapData, u64>) -> Result<Self, SetupError> {
        Counter::ALL
            .iter()
            .map(|&counter| {
                let cpus = map.get(&(counter as u32), 0).map_err(|error| SetupError::Map {
                    what: "read",
                    map: map::COUNTERS,
                    reason: error.to_string(),
                })?;
                Ok(cpus.iter().sum())
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or(0)
    }

    /// All of them, with their names.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> {
        Counter::ALL.iter().copied().zip(self.0.iter().copied())
    }

    /// How much each grew since an earlier reading; those that did not are left out.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Vec<(Counter, u64)> {
        self.iter()
            .map(|(counter, now)| (counter, now.saturating_sub(earlier.get(counter))))
            .filter(|(_, grown)| *grown > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an operator reads of a counter is there, and of nothing that is no counter.
    #[test]
    fn every_counter_is_documented() {
        let text = include_str!("../../../docs/datapath-drops.md");
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('|').next());
        let mut told: Vec<&str> =
            rows.flat_map(|cell| cell.split(", ")).map(|name| name.trim_matches(['`', ' '])).collect();
        let mut known: Vec<&str> = Counter::ALL.iter().map(|counter| counter.as_str()).collect();
        told.sort_unstable();
        known.sort_unstable();
        assert_eq!(told, known);
    }
}
