//! What the agent knows of its node's kernel, as control is told of it: packets by reason, how full the maps are, what
//! somebody changed behind our back.
//!
//! Numbers are totals, so that a report that is lost costs nothing but time; changes are the latest ones. Says in the
//! log what is new, once. Knows no verdicts, and reads no clock. Called by the engine.

use sluice_redirect::{Counters, Drift, Fill};
use sluice_wire::{limits, pb};
use std::collections::{HashSet, VecDeque};
use tokio::time::Instant;

/// A change of the node, as often as it was found.
#[derive(Debug)]
struct Seen {
    what: String,
    stays: Option<String>,
    times: u64,
    last: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// The last look's.
    found: Vec<Drift>,
    /// The latest first, at most [`limits::DRIFTS`].
    seen: VecDeque<Seen>,
    /// What was put right since the agent began.
    repaired: u64,
    /// The maps that were said to be nearly full.
    full: HashSet<&'static str>,
    /// What was read last.
    packets: Vec<pb::Packets>,
    maps: Vec<pb::MapFill>,
}

/// What a look at the node came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Something is worth a report now.
    pub(super) any: bool,
    /// What could not be put right is not what it was.
    pub(super) stays: bool,
}

impl Findings {
    /// Takes what a look at the node found, and says what was not there the last time.
    pub(super) fn look(&mut self, found: Vec<Drift>, now: Instant) -> News {
        let mut news = News::default();
        for drift in &found {
            self.repaired += u64::from(drift.stays.is_none());
            self.remember(drift, now);
            if self.found.contains(drift) {
                continue;
            }
            news.any = true;
            match &drift.stays {
                None => tracing::warn!(what = drift.what, "somebody changed this node; it is put right"),
                Some(why) => tracing::error!(what = drift.what, why, "this node is not as it must be"),
            }
        }
        let before = std::mem::replace(&mut self.found, found);
        news.stays = before.iter().filter(|drift| drift.stays.is_some()).ne(self.staying());
        news.any |= news.stays;
        news
    }

    fn remember(&mut self, drift: &Drift, now: Instant) {
        let known = self.seen.iter().position(|seen| seen.what == drift.what);
        let before = known.and_then(|at| self.seen.remove(at)).map_or(0, |seen| seen.times);
        let seen =
            Seen { what: drift.what.clone(), stays: drift.stays.clone(), times: before + 1, last: now };
        self.seen.push_front(seen);
        self.seen.truncate(limits::DRIFTS);
    }

    fn staying(&self) -> impl Iterator<Item = &Drift> {
        self.found.iter().filter(|drift| drift.stays.is_some())
    }

    /// What could not be put right, for an ack. Without numbers, so that the same is not told twice.
    pub(super) fn stays(&self) -> Vec<pb::Drift> {
        let drift = |drift: &Drift| {
            let stays = drift.stays.clone().unwrap_or_default();
            pb::Drift { what: drift.what.clone(), stays, ..pb::Drift::default() }
        };
        self.staying().take(limits::DRIFTS).map(drift).collect()
    }

    /// Takes what was read. Where nothing could be, what was read before is told again, with the reason.
    pub(super) fn read(&mut self, counters: &Counters, fill: &[Fill]) {
        self.packets = packets(counters);
        self.maps = fill.iter().map(|fill| self.map(fill)).collect();
    }

    /// The report; `trouble` is why its numbers are older than it, or empty.
    pub(super) fn report(&self, generation: u64, trouble: String, now: Instant) -> pb::FromNode {
        let drift = self.seen.iter().map(|seen| pb::Drift {
            what: seen.what.clone(),
            stays: seen.stays.clone().unwrap_or_default(),
            times: seen.times,
            age_seconds: now.saturating_duration_since(seen.last).as_secs(),
        });
        sluice_wire::kernel(pb::Kernel {
            generation,
            packets: self.packets.clone(),
            maps: self.maps.clone(),
            drift: drift.collect(),
            repaired: self.repaired,
            trouble,
        })
    }

    /// How full a map is. That it is nearly full is logged once, and that it is not any more.
    fn map(&mut self, fill: &Fill) -> pb::MapFill {
        let before = self.full.contains(fill.map);
        let full = fill.is_nearly_full(before);
        if full && !before {
            tracing::warn!("{}", fill.warning());
            self.full.insert(fill.map);
        } else if before && !full {
            tracing::info!(map = fill.map, used = fill.used, max = fill.max, "not nearly full any more");
            self.full.remove(fill.map);
        }
        pb::MapFill {
            map: fill.map.to_owned(),
            used: fill.used as u64,
            max: u64::from(fill.max),
            warning: if full { fill.warning() } else { String::new() },
        }
    }
}

/// Those that there were any of: most reasons never happen.
fn packets(counters: &Counters) -> Vec<pb::Packets> {
    let some = counters.iter().filter(|(_, count)| *count > 0);
    some.map(|(reason, count)| pb::Packets { reason: reason.as_str().to_owned(), count }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_wire::pb::from_node::Message;
    use std::time::Duration;

    fn drift(what: &str, stays: Option<&str>) -> Drift {
        Drift { what: what.to_owned(), stays: stays.map(str::to_owned) }
    }

    fn kernel(message: pb::FromNode) -> pb::Kernel {
        let Some(Message::Report(report)) = message.message else { panic!("no report") };
        report.kernel.expect("what the kernel counts")
    }

    fn reported(findings: &Findings, now: Instant) -> pb::Kernel {
        kernel(findings.report(7, "none".to_owned(), now))
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_put_right_is_named_with_how_often_and_when() {
        let (mut findings, begin) = (Findings::default(), Instant::now());
        assert_eq!(findings.look(vec![drift("rp_filter", None)], begin), News { any: true, stays: false });
        let again = begin + Duration::from_secs(2);
        assert!(!findings.look(vec![drift("rp_filter", None)], again).any, "the same again");
        assert!(!findings.look(Vec::new(), again).any, "nothing is no news");
        assert!(findings.stays().is_empty());
        let kernel = reported(&findings, again + Duration::from_secs(5));
        assert_eq!((kernel.generation, kernel.repaired, kernel.trouble.as_str()), (7, 2, "none"));
        let [only] = &kernel.drift[..] else { panic!("{kernel:?}") };
        assert_eq!((only.what.as_str(), only.stays.as_str()), ("rp_filter", ""));
        assert_eq!((only.times, only.age_seconds), (2, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn what_stays_is_in_the_ack_until_it_does_not() {
        let (mut findings, now) = (Findings::default(), Instant::now());
        let stays = || vec![drift("a hook of eth0", Some("busy"))];
        assert_eq!(findings.look(stays(), now), News { any: true, stays: true });
        assert_eq!(findings.look(stays(), now), News::default(), "told once");
        assert_eq!(findings.stays()[0].stays, "busy");
        assert_eq!(findings.stays()[0].times, 0, "a number would make the same ack a new one");
        assert_eq!(findings.look(Vec::new(), now), News { any: true, stays: true });
        assert!(findings.stays().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_latest_changes_are_kept_and_no_more() {
        let (mut findings, now) = (Findings::default(), Instant::now());
        for at in 0..10 * limits::DRIFTS {
            findings.look(vec![drift(&format!("device {at}"), Some("busy"))], now);
        }
        let kernel = reported(&findings, now);
        assert_eq!(kernel.drift.len(), limits::DRIFTS);
        assert_eq!(kernel.drift[0].what, format!("device {}", 10 * limits::DRIFTS - 1));
        let many = (0..10 * limits::DRIFTS).map(|at| drift(&format!("device {at}"), Some("busy"))).collect();
        findings.look(many, now);
        assert_eq!(findings.stays().len(), limits::DRIFTS);
    }

    #[test]
    fn a_map_about_nine_tenths_does_not_flap() {
        let mut findings = Findings::default();
        let mut full = |used| !findings.map(&Fill { map: "ROWS", used, max: 100 }).warning.is_empty();
        let told: Vec<bool> = [89, 90, 89, 91, 86, 85, 84, 85, 89, 90].map(&mut full).into();
        assert_eq!(told, [false, true, true, true, true, true, false, false, false, true]);
    }
}
