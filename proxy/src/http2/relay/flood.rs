//! Frames that cost their sender next to nothing: how many of a kind are taken.
//!
//! Time comes in as an argument. Knows nothing of frames or of streams.

use crate::limits::{H2_CONTROL_FRAMES, H2_PINGS, H2_RESETS, H2_SETTINGS, Rate};
use tokio::time::Instant;

/// What is left of one [`Rate`].
#[derive(Debug)]
pub(super) struct Budget {
    rate: Rate,
    left: u32,
    since: Instant,
}

impl Budget {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, left: rate.burst, since: now }
    }

    /// Takes one; `false`: there is none left.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        if self.left == 0 {
            // Only now is it looked what time has brought.
            let millis = now.saturating_duration_since(self.since).as_millis();
            let brought = millis.saturating_mul(u128::from(self.rate.per_second)) / 1000;
            if brought == 0 {
                return false;
            }
            self.left = u32::try_from(brought).unwrap_or(u32::MAX).min(self.rate.burst);
            self.since = now;
        }
        self.left -= 1;
        true
    }

    /// So many more are due.
    pub(super) fn earn(&mut self, count: u32) {
        self.left = self.left.saturating_add(count).min(self.rate.burst);
    }
}

/// What one end of a connection may send.
#[derive(Debug)]
pub(super) struct Floods {
    /// Streams that it resets, or makes us reset.
    pub(super) resets: Budget,
    pub(super) pings: Budget,
    pub(super) settings: Budget,
    /// Empty DATA, PRIORITY, WINDOW_UPDATE, and kinds that nobody knows.
    pub(super) control: Budget,
}

impl Floods {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            resets: Budget::new(H2_RESETS, now),
            pings: Budget::new(H2_PINGS, now),
            settings: Budget::new(H2_SETTINGS, now),
            control: Budget::new(H2_CONTROL_FRAMES, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_and_then_a_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(Rate { burst: 10, per_second: 2 }, start);
        assert_eq!((0..20).filter(|_| budget.take(start)).count(), 10);
        let later = start + Duration::from_secs(2);
        assert_eq!((0..20).filter(|_| budget.take(later)).count(), 4);
        let late = start + Duration::from_secs(1000);
        assert_eq!((0..20).filter(|_| budget.take(late)).count(), 10, "no more than the burst");
        budget.earn(3);
        assert_eq!((0..20).filter(|_| budget.take(late)).count(), 3);
    }
}
