//! Who of several control planes writes: whoever holds a Lease. A value without I/O.
//!
//! As client-go does it: how old a Lease is is measured by this machine's clock since it was seen to change, never by the
//! times that stand in it, so that no clock makes two leaders. Who holds it believes so for less long than the others
//! wait. Called by `lease`.

use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A holder that does not renew for so long has lost it.
pub const DURATION: Duration = Duration::from_secs(10);
/// A holder believes to be one for so long after it began to renew.
pub const BELIEF: Duration = Duration::from_secs(8);
/// It is looked at, and renewed, this often.
pub const PERIOD: Duration = Duration::from_secs(2);

/// What is known of the Lease, as one of those who want it.
#[derive(Debug)]
pub struct Election {
    name: String,
    /// The Lease as it was seen last, by its version, and since when it stands so.
    seen: Option<(String, Instant)>,
    until: Option<Instant>,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Somebody else has it.
    Wait,
    /// There is none: make this one.
    Create(Value),
    /// Take or renew it: put this there in its place.
    Update(Value),
}

impl Election {
    /// One who wants it, under a name that nobody else has.
    #[must_use]
    pub const fn new(name: String) -> Self {
        Self { name, seen: None, until: None }
    }

    /// Until when this one holds it, unless it is renewed.
    #[must_use]
    pub const fn until(&self) -> Option<Instant> {
        self.until
    }

    /// The Lease is as it is given now; `None`: there is none.
    #[must_use]
    pub fn look(&mut self, lease: Option<&Value>, namespace: &str, now: Instant, time: &str) -> Step {
        let Some(lease) = lease else {
            let mut lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": LEASE, "namespace": namespace},
            });
            self.claim(&mut lease, 0, time);
            return Step::Create(lease);
        };
        let version = lease["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| seen != version) {
            self.seen = Some((version.to_owned(), now));
        }
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        let mine = holder == self.name;
        let since = self.seen.as_ref().map_or(now, |(_, since)| *since);
        // Theirs counts, within reason: another release may have another.
        let duration = lease["spec"]["leaseDurationSeconds"].as_u64().map_or(DURATION, Duration::from_secs);
        let over =
            now.saturating_duration_since(since) > duration.clamp(Duration::from_secs(1), 6 * DURATION);
        if !mine && !holder.is_empty() && !over {
            self.until = None;
            return Step::Wait;
        }
        let changes = lease["spec"]["leaseTransitions"].as_u64().unwrap_or_default();
        let mut lease = lease.clone();
        let acquired = lease["spec"]["acquireTime"].take();
        self.claim(&mut lease, if mine { changes } else { changes.saturating_add(1) }, time);
        if mine && acquired.is_string() {
            lease["spec"]["acquireTime"] = acquired;
        }
        Step::Update(lease)
    }

    fn claim(&self, lease: &mut Value, changes: u64, time: &str) {
        lease["spec"] = json!({
            "holderIdentity": self.name,
            "leaseDurationSeconds": DURATION.as_secs(),
            "acquireTime": time,
            "renewTime": time,
            "leaseTransitions": changes,
        });
    }

    /// What was to be put there is there; when that began.
    pub fn won(&mut self, began: Instant) {
        self.until = Some(began + BELIEF);
    }

    /// It is not: somebody else was quicker, or nobody knows. What was won before stands until it is over.
    pub fn lost(&mut self, known: bool) {
        if known {
            self.until = None;
        }
    }

    /// The Lease without a holder, if it is this one: the next need not wait.
    #[must_use]
    pub fn release(&self, lease: &Value, time: &str) -> Option<Value> {
        (lease["spec"]["holderIdentity"] == self.name).then(|| {
            let mut lease = lease.clone();
            lease["spec"]["holderIdentity"] = Value::from("");
            lease["spec"]["leaseDurationSeconds"] = Value::from(1);
            lease["spec"]["renewTime"] = Value::from(time);
            lease
        })
    }
}

/// What the Lease is called.
pub const LEASE: &str = "sluice-control";

#[cfg(test)]
mod tests {
    use super::*;

    /// A Lease as an API server keeps it: what is put there must be of the version that is there.
    struct Server {
        lease: Option<Value>,
        version: u64,
    }

    impl Server {
        fn put(&mut self, mut lease: Value) -> bool {
            let given = lease["metadata"]["resourceVersion"].as_str().map(str::to_owned);
            let there = self.lease.as_ref().map(|_| self.version.to_string());
            if given != there {
                return false;
            }
            self.version += 1;
            lease["metadata"]["resourceVersion"] = Value::from(self.version.to_string());
            self.lease = Some(lease);
            true
        }
    }

    fn turn(one: &mut Election, server: &mut Server, now: Instant) {
        let lease = server.lease.clone();
        match one.look(lease.as_ref(), "n", now, "t") {
            Step::Wait => {}
            Step::Create(lease) | Step::Update(lease) => match server.put(lease) {
                true => one.won(now),
                false => one.lost(true),
            },
        }
    }

    fn leads(one: &Election, now: Instant) -> bool {
        one.until().is_some_and(|until| now < until)
    }

    #[test]
    fn there_is_one_leader_and_another_when_it_is_gone() {
        let mut server = Server { lease: None, version: 0 };
        let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
        let begin = Instant::now();
        let mut taken = None;
        for step in 0..60_u32 {
            let now = begin + PERIOD * step / 2;
            // After half of the time nobody hears of `a`, which may go on believing.
            if step < 30 {
                turn(&mut a, &mut server, now);
            }
            turn(&mut b, &mut server, now);
            assert!(!(leads(&a, now) && leads(&b, now)), "two leaders at step {step}");
            if step > 30 && leads(&b, now) && taken.is_none() {
                taken = Some(now - (begin + PERIOD * 29 / 2));
            }
        }
        let taken = taken.expect("the other one leads");
        assert!(taken > DURATION && taken <= DURATION + PERIOD, "{taken:?}");
        let lease = server.lease.as_ref().expect("there");
        assert_eq!(
            (&lease["spec"]["holderIdentity"], &lease["spec"]["leaseTransitions"]),
            (&json!("b"), &json!(1))
        );
        // `a` was only slow: it is told.
        turn(&mut a, &mut server, begin + PERIOD * 31);
        assert!(a.until().is_none());
    }

    #[test]
    fn two_that_are_equally_quick_are_one_leader() {
        let mut server = Server { lease: None, version: 0 };
        let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
        let now = Instant::now();
        let (one, other) = (a.look(None, "n", now, "t"), b.look(None, "n", now, "t"));
        let (Step::Create(one), Step::Create(other)) = (one, other) else { panic!("both make it") };
        assert!(server.put(one) && !server.put(other));
        a.won(now);
        b.lost(true);
        assert!(leads(&a, now) && !leads(&b, now));
    }

    #[test]
    fn one_that_stops_leaves_it_at_once_and_clocks_mean_nothing() {
        let mut server = Server { lease: None, version: 0 };
        let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
        let now = Instant::now();
        turn(&mut a, &mut server, now);
        let mut lease = server.lease.clone().expect("there");
        lease["spec"]["renewTime"] = Value::from("1970-01-01T00:00:00.000000Z");
        assert!(server.put(lease));
        turn(&mut b, &mut server, now);
        assert!(!leads(&b, now), "an old time in it is no old Lease");
        let lease = server.lease.clone().expect("there");
        assert!(b.release(&lease, "t").is_none(), "it is another's");
        assert!(server.put(a.release(&lease, "t").expect("its own")));
        turn(&mut b, &mut server, now);
        assert!(leads(&b, now));
        // When nobody answers, belief ends by itself.
        b.lost(false);
        assert!(leads(&b, now + BELIEF / 2) && !leads(&b, now + BELIEF));
    }
}
