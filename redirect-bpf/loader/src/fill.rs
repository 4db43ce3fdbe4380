//! How full the maps of a node are, what is in them, and when that is worth a word.
//!
//! Counts what the loader itself has written, and what it found when it walked. Knows no verdicts. Filled by
//! `generation`, `node` and `reading`, read by the agent.

use sluice_bpf_abi::map;

/// From so many hundredths on a map is nearly full. What is left, some 26,000 rows or flows of the large maps, is what
/// somebody has to act in: the next change of policy may be the one that does not fit, and then none of it is in force.
pub const NEARLY_FULL: u64 = 90;
/// It is not any more once it is below so many: a map whose entries come and go about the first number is told once.
pub const EASED: u64 = 85;

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Its name.
    pub map: &'static str,
    /// Entries in force.
    pub used: usize,
    /// Entries that there is room for.
    pub max: u32,
}

impl Fill {
    /// In hundredths, rounded down. A map without room is full.
    #[must_use]
    pub fn hundredths(&self) -> u64 {
        (self.used as u64).saturating_mul(100).checked_div(u64::from(self.max)).unwrap_or(100)
    }

    /// Whether it is nearly full, if it was `before` or was not.
    #[must_use]
    pub fn is_nearly_full(&self, before: bool) -> bool {
        self.hundredths() >= if before { EASED } else { NEARLY_FULL }
    }

    /// That it is nearly full, what happens then, and what to do.
    #[must_use]
    pub fn warning(&self) -> String {
        let Self { map, used, max } = self;
        let hundredths = self.hundredths();
        let (what, remedy) = meaning(map);
        let then = if *map == map::FLOWS {
            "when it is full, the flow that was silent for the longest is forgotten for each new one"
        } else {
            "a generation that does not fit is refused whole, and the one before stays in force"
        };
        format!("map {map} is {hundredths} % full: {used} {what} of at most {max}; {then}. {remedy}")
    }
}

/// What the entries of a map are, and what makes fewer of them.
pub(crate) fn meaning(name: &str) -> (&'static str, &'static str) {
    match name {
        map::ROWS => ("rows", "Fewer distinct ports, peers or CIDRs in policies make fewer"),
        map::CLASSES => (
            "address prefixes",
            "Fewer CIDRs in policies make fewer, and fewer pods that policies tell apart",
        ),
        map::SERVICES => {
            ("ports of Services", "Fewer Services, or fewer ports and addresses of them, make fewer")
        }
        map::FLOWS => (
            "flows",
            "Look which pods open so many (the counters flow_quota and open_rate, the flow records), and run fewer of \
             them on this node",
        ),
        map::ENDPOINTS => (
            "endpoints and bridge ports",
            "Run fewer pods on this node, or have fewer other devices on its bridges",
        ),
        _ => (
            "addresses of nodes and endpoints, and devices",
            "Run fewer pods on this node, or have fewer nodes and devices with addresses of their own",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_from_nine_tenths_on_and_until_it_has_eased() {
        let fill = |used| Fill { map: map::ROWS, used, max: 1000 };
        for (used, before, full) in [
            (899, false, false),
            (900, false, true),
            (850, true, true),
            (849, true, false),
            (2000, true, true),
        ] {
            assert_eq!(fill(used).is_nearly_full(before), full, "{used} {before}");
        }
        assert!(Fill { map: map::ROWS, used: 0, max: 0 }.is_nearly_full(false));
        assert_eq!(Fill { map: map::ROWS, used: usize::MAX, max: 1 }.hundredths(), u64::MAX);
    }

    /// Of each map: its name, the count, the limit, what happens, and what to do.
    #[test]
    fn a_warning_says_it_all() {
        for map in [map::ROWS, map::CLASSES, map::SERVICES, map::ENDPOINTS, map::LOCALS, map::FLOWS] {
            let text = Fill { map, used: 944, max: 1024 }.warning();
            let (what, remedy) = meaning(map);
            for part in [&format!("map {map} is 92 % full: 944 {what} of at most 1024; "), remedy] {
                assert!(text.contains(part), "{text}");
            }
        }
    }
}
