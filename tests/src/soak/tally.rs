//! What came of every request: right, wrong, lost; and which policy was in force when.
//!
//! Knows nothing of protocols. Written by the clients, read by the soak.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Kinds of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// HTTP/1.1, connections kept.
    Http1,
    /// HTTP/2, two streams at a time.
    Http2,
    /// gRPC, one call after the other.
    Unary,
    /// gRPC, a stream for up to a minute.
    Stream,
    /// A WebSocket for up to a minute.
    WebSocket,
    /// TLS that is passed through, judged by its server name.
    Tls,
}

impl Kind {
    /// All, in the order they are told.
    pub const ALL: [Self; 6] =
        [Self::Http1, Self::Http2, Self::Unary, Self::Stream, Self::WebSocket, Self::Tls];
}

/// What may become of a request under the policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Allowed by every one of them.
    Always,
    /// Allowed by every other, beginning with the even ones.
    Even,
    /// And beginning with the odd ones.
    Odd,
    /// Allowed by none.
    Never,
}

/// Which policy is in force: acknowledged, or on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn(u64);

impl Turn {
    /// What the rule says, if one policy was in force all the time.
    fn says(self, until: Self, rule: Rule) -> Option<bool> {
        let stable = self == until && self.0.is_multiple_of(2);
        match rule {
            Rule::Always => Some(true),
            Rule::Never => Some(false),
            Rule::Even => stable.then_some(self.0.is_multiple_of(4)),
            Rule::Odd => stable.then_some(!self.0.is_multiple_of(4)),
        }
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Came {
    /// The server's answer.
    Allowed,
    /// The mesh's.
    Denied,
    /// The other end said that it had not begun with it: it may be sent again (RFC 9113 section 8.7), or never went out.
    Again,
    /// No answer, or half of one: why.
    Lost(String),
}

#[derive(Debug, Default)]
struct Counts {
    allowed: u64,
    denied: u64,
    again: u64,
    lost: u64,
    lost_to_kill: u64,
    wrong: u64,
    between: u64,
}

/// All counts.
#[derive(Debug)]
pub struct Tally {
    counts: Mutex<BTreeMap<Kind, Counts>>,
    reasons: Mutex<BTreeMap<String, u64>>,
    turn: AtomicU64,
    open: AtomicUsize,
    stopped: AtomicBool,
    killing: AtomicBool,
    verbose: bool,
}

/// Reasons that are kept apart; more are told together.
const REASONS: usize = 64;

impl Tally {
    /// Nothing yet.
    #[must_use]
    pub fn new(verbose: bool) -> Self {
        Self {
            counts: Mutex::default(),
            reasons: Mutex::default(),
            turn: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            killing: AtomicBool::new(false),
            verbose,
        }
    }

    /// Now.
    #[must_use]
    pub fn turn(&self) -> Turn {
        Turn(self.turn.load(Ordering::SeqCst))
    }

    /// A policy is on its way (`false`), or acknowledged. Returns which of the two policies it is.
    pub fn next(&self, acknowledged: bool) -> bool {
        let now = self.turn.fetch_add(1, Ordering::SeqCst) + 1;
        debug_assert_eq!(now.is_multiple_of(2), acknowledged);
        now.div_ceil(2).is_multiple_of(2)
    }

    /// Enters what came of a request.
    pub fn enter(&self, kind: Kind, rule: Rule, asked: Turn, came: &Came) {
        let said = asked.says(self.turn(), rule);
        let killing = self.killing.load(Ordering::SeqCst);
        // A handshake of TLS that is cut looks the same whoever cut it.
        let cut = killing && kind == Kind::Tls && said == Some(true) && *came == Came::Denied;
        let came = if cut { &Came::Lost("cut".to_owned()) } else { came };
        let wrong = matches!((said, came), (Some(true), Came::Denied) | (Some(false), Came::Allowed));
        if wrong {
            self.because(format!("WRONG {kind:?} {rule:?} {asked:?}: {came:?}"));
        }
        if let Came::Lost(reason) = came
            && !killing
            && !self.is_stopped()
        {
            self.because(format!("lost {kind:?} {rule:?}: {reason}"));
        }
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = counts.entry(kind).or_default();
        counts.wrong += u64::from(wrong);
        counts.between += u64::from(said.is_none());
        match came {
            Came::Allowed => counts.allowed += 1,
            Came::Denied => counts.denied += 1,
            Came::Again => counts.again += 1,
            // What ends with the soak is no loss.
            Came::Lost(_) if self.is_stopped() => {}
            Came::Lost(_) if killing => counts.lost_to_kill += 1,
            Came::Lost(_) => counts.lost += 1,
        }
    }

    fn because(&self, what: String) {
        if self.verbose {
            eprintln!("{what}");
        }
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        if reasons.len() < REASONS || reasons.contains_key(&what) {
            *reasons.entry(what).or_default() += 1;
        }
    }

    /// A connection is open, or is not any more.
    pub fn opened(&self, more: bool) {
        if more {
            self.open.fetch_add(1, Ordering::SeqCst);
        } else {
            self.open.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// How many are.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// From now on what is lost is lost to SIGKILL.
    pub fn killing(&self, on: bool) {
        self.killing.store(on, Ordering::SeqCst);
    }

    /// Ends the clients.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// Whether they shall end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Requests of a kind that were answered by the server.
    #[must_use]
    pub fn answered(&self, kind: Kind) -> u64 {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(&kind).map_or(0, |counts| counts.allowed)
    }

    /// Whether nothing was wrong and nothing lost.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.values().all(|counts| counts.wrong == 0 && counts.lost == 0)
            && Kind::ALL.iter().all(|kind| counts.get(kind).is_some_and(|counts| counts.allowed > 0))
    }

    /// Progress in a few words.
    #[must_use]
    pub fn line(&self) -> String {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |of: fn(&Counts) -> u64| counts.values().map(of).sum::<u64>();
        format!(
            "{} open, {} allowed, {} denied, {} again, {} wrong, {} lost",
            self.open(),
            sum(|counts| counts.allowed),
            sum(|counts| counts.denied),
            sum(|counts| counts.again),
            sum(|counts| counts.wrong),
            sum(|counts| counts.lost),
        )
    }

    /// The table, and why.
    #[must_use]
    pub fn told(&self) -> String {
        let mut text = format!(
            "{:<10}{:>10}{:>10}{:>8}{:>9}{:>7}{:>7}{:>14}\n",
            "kind", "allowed", "denied", "again", "between", "wrong", "lost", "lost to kill"
        );
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, c) in &*counts {
            text.push_str(&format!(
                "{:<10}{:>10}{:>10}{:>8}{:>9}{:>7}{:>7}{:>14}\n",
                format!("{kind:?}"),
                c.allowed,
                c.denied,
                c.again,
                c.between,
                c.wrong,
                c.lost,
                c.lost_to_kill
            ));
        }
        for (reason, count) in &*self.reasons.lock().unwrap_or_else(PoisonError::into_inner) {
            text.push_str(&format!("{count} × {reason}\n"));
        }
        text.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_two_policies_either_is_right() {
        let tally = Tally::new(false);
        assert!(!tally.next(false) && !tally.next(true), "the first is an odd one");
        let odd = tally.turn();
        assert_eq!(odd.says(tally.turn(), Rule::Odd), Some(true));
        assert_eq!(odd.says(tally.turn(), Rule::Even), Some(false));
        tally.enter(Kind::Http1, Rule::Even, odd, &Came::Allowed);
        assert!(tally.line().contains("1 wrong"));
        assert!(tally.next(false));
        assert_eq!(odd.says(tally.turn(), Rule::Odd), None);
        assert_eq!(odd.says(tally.turn(), Rule::Never), Some(false));
        tally.next(true);
        tally.enter(Kind::Http1, Rule::Odd, odd, &Came::Denied);
        tally.enter(Kind::Http1, Rule::Even, tally.turn(), &Came::Allowed);
        assert!(tally.line().contains("1 wrong"), "{}", tally.line());
    }
}
