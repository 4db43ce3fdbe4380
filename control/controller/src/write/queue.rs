//! What is to be written, in which order and not too often: a value without I/O.
//!
//! Of each target the newest wish counts, and one write of it is under way at a time. A target that was refused waits
//! longer each time; when the API server is away, everything does. Knows nothing of what is written. Called by the
//! report.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The first wait of a target that was refused, and the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// The first wait of all when the API server is away, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Targets that are remembered for their waits alone, before those whose wait is over are forgotten.
const REMEMBERED: usize = 1024;

/// How fast a queue goes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Writes under way at a time.
    pub in_flight: usize,
    /// Between the beginnings of two writes.
    pub between: Duration,
    /// Between a write of a target and the next of it.
    pub again: Duration,
    /// Targets that wait; a further one is not taken.
    pub waiting: usize,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is written.
    Written,
    /// There is no such object any more: nobody wants it.
    Gone,
    /// The API server said no.
    Refused,
    /// The API server did not answer, or has too much to do.
    Away,
}

/// A target's waits.
#[derive(Clone, Copy)]
struct Wait {
    until: Instant,
    failures: u32,
}

/// The queue.
pub struct Queue<T, B> {
    pace: Pace,
    wishes: BTreeMap<T, (Instant, B)>,
    order: BTreeSet<(Instant, T)>,
    running: BTreeMap<T, B>,
    waits: BTreeMap<T, Wait>,
    next: Option<Instant>,
    paused: Option<Instant>,
    pauses: u32,
}

impl<T: Ord + Clone, B: Clone> Queue<T, B> {
    /// An empty one.
    #[must_use]
    pub const fn new(pace: Pace) -> Self {
        Self {
            pace,
            wishes: BTreeMap::new(),
            order: BTreeSet::new(),
            running: BTreeMap::new(),
            waits: BTreeMap::new(),
            next: None,
            paused: None,
            pauses: 0,
        }
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.wishes.len()
    }

    /// Whether a write of this target is under way: what stands there is not known.
    #[must_use]
    pub fn is_running(&self, target: &T) -> bool {
        self.running.contains_key(target)
    }

    /// Whether a write of this target waits.
    #[must_use]
    pub fn is_waiting(&self, target: &T) -> bool {
        self.wishes.contains_key(target)
    }

    /// Wishes that this be written. False: too many wait.
    pub fn want(&mut self, target: T, body: B, now: Instant) -> bool {
        if let Some((_, wish)) = self.wishes.get_mut(&target) {
            *wish = body;
            return true;
        }
        if self.wishes.len() >= self.pace.waiting {
            return false;
        }
        let ready = self.waits.get(&target).map_or(now, |wait| wait.until.max(now));
        self.order.insert((ready, target.clone()));
        self.wishes.insert(target, (ready, body));
        true
    }

    /// Nothing needs to be written there any more.
    pub fn unwant(&mut self, target: &T) {
        if let Some((ready, _)) = self.wishes.remove(target) {
            self.order.remove(&(ready, target.clone()));
        }
    }

    /// What to write now, if there is anything. It is under way from now on.
    pub fn next(&mut self, now: Instant) -> Option<(T, B)> {
        if self.due()? > now {
            return None;
        }
        let (_, target) = self.first()?.clone();
        let (ready, body) = self.wishes.remove(&target)?;
        self.order.remove(&(ready, target.clone()));
        self.running.insert(target.clone(), body.clone());
        self.next = Some(now + self.pace.between);
        Some((target, body))
    }

    fn first(&self) -> Option<&(Instant, T)> {
        // As many are skipped as are under way.
        self.order.iter().find(|(_, target)| !self.running.contains_key(target))
    }

    /// When there is something to write; `None`: not before something else happens.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        if self.running.len() >= self.pace.in_flight {
            return None;
        }
        let (ready, _) = self.first()?;
        [Some(*ready), self.next, self.paused].into_iter().flatten().max()
    }

    /// A write is over. What failed is wished again, unless there is a newer wish.
    pub fn done(&mut self, target: &T, outcome: Outcome, now: Instant) {
        let Some(body) = self.running.remove(target) else { return };
        if outcome != Outcome::Away {
            (self.paused, self.pauses) = (None, 0);
        }
        match outcome {
            Outcome::Written => self.wait(target, Wait { until: now + self.pace.again, failures: 0 }, now),
            Outcome::Gone => {
                self.waits.remove(target);
            }
            Outcome::Refused => {
                let failures = self.waits.get(target).map_or(0, |wait| wait.failures);
                let until = now + grown(FIRST_WAIT, failures, LONGEST_WAIT);
                self.wait(target, Wait { until, failures: failures.saturating_add(1) }, now);
                self.again(target, body, now);
            }
            Outcome::Away => {
                // Those that were under way together are away together.
                if self.paused.is_none_or(|until| until <= now) {
                    self.paused = Some(now + grown(FIRST_PAUSE, self.pauses, LONGEST_PAUSE));
                    self.pauses = self.pauses.saturating_add(1);
                }
                self.again(target, body, now);
            }
        }
    }

    fn again(&mut self, target: &T, body: B, now: Instant) {
        match self.wishes.remove(target) {
            // The newer wish waits as well.
            Some((ready, newer)) => {
                self.order.remove(&(ready, target.clone()));
                self.want(target.clone(), newer, now);
            }
            None => {
                self.want(target.clone(), body, now);
            }
        }
    }

    fn wait(&mut self, target: &T, wait: Wait, now: Instant) {
        self.waits.insert(target.clone(), wait);
        if let Some((ready, body)) = self.wishes.remove(target) {
            self.order.remove(&(ready, target.clone()));
            self.want(target.clone(), body, now);
        }
        if self.waits.len() > REMEMBERED + self.wishes.len() {
            self.waits.retain(|_, wait| wait.until > now);
        }
    }
}

fn grown(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace =
        Pace { in_flight: 2, between: Duration::ZERO, again: Duration::from_millis(500), waiting: 4 };

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn the_newest_wish_counts_and_one_write_of_a_target_is_under_way() {
        let (mut queue, now) = (Queue::new(PACE), Instant::now());
        assert!(queue.want('a', 1, now) && queue.want('a', 2, now) && queue.want('b', 1, now));
        assert_eq!(queue.next(now), Some(('a', 2)));
        queue.want('a', 3, now);
        assert_eq!(queue.next(now), Some(('b', 1)), "what is under way is passed over");
        assert_eq!((queue.next(now), queue.due()), (None, None), "two at a time");
        queue.done(&'b', Outcome::Written, now);
        assert_eq!((queue.next(now), queue.due()), (None, None), "its own write is under way");
        queue.done(&'a', Outcome::Written, now);
        assert_eq!(queue.next(now), None, "not again so soon");
        let later = queue.due().expect("it waits");
        assert_eq!(later, now + PACE.again);
        assert_eq!(queue.next(later), Some(('a', 3)));
    }

    #[test]
    fn who_is_refused_waits_longer_each_time_and_holds_nobody_up() {
        let (mut queue, mut now) = (Queue::new(PACE), Instant::now());
        queue.want('a', 1, now);
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert_eq!(queue.next(now), Some(('a', 1)), "it comes again by itself");
            queue.done(&'a', Outcome::Refused, now);
            queue.want('b', 1, now);
            assert_eq!(queue.next(now), Some(('b', 1)));
            queue.done(&'b', Outcome::Gone, now);
            let due = queue.due().expect("it waits");
            waits.push(due - now);
            now = due;
        }
        assert!(waits.is_sorted());
        assert_eq!((waits.first(), waits.last()), (Some(&FIRST_WAIT), Some(&LONGEST_WAIT)));
        queue.next(now);
        queue.done(&'a', Outcome::Written, now);
        queue.want('a', 2, now);
        assert_eq!(queue.due(), Some(now + PACE.again), "forgiven");
    }

    #[test]
    fn while_the_server_is_away_everything_waits_and_the_newest_wish_is_kept() {
        let (mut queue, now) = (Queue::new(PACE), Instant::now());
        for target in ['a', 'b', 'c'] {
            queue.want(target, 1, now);
        }
        queue.next(now);
        queue.next(now);
        queue.want('a', 2, now);
        queue.done(&'a', Outcome::Away, now);
        queue.done(&'b', Outcome::Away, now);
        assert_eq!(queue.due(), Some(now + FIRST_PAUSE), "one pause for both");
        assert_eq!(queue.next(now), None);
        let later = now + seconds(60);
        let mut written = Vec::new();
        while let Some((target, body)) = queue.next(later) {
            queue.done(&target, Outcome::Written, later);
            written.push((target, body));
        }
        written.sort_unstable();
        assert_eq!(written, [('a', 2), ('b', 1), ('c', 1)]);
    }

    #[test]
    fn no_more_wait_than_may_and_what_is_not_wanted_is_not_written() {
        let (mut queue, now) = (Queue::new(PACE), Instant::now());
        for target in 0..4 {
            assert!(queue.want(target, (), now));
        }
        assert!(!queue.want(4, (), now));
        assert!(queue.want(3, (), now), "it waits already");
        queue.unwant(&0);
        assert_eq!(queue.next(now), Some((1, ())));
        assert_eq!(queue.waiting(), 2);
    }
}
