//! Whose turn it is on a thread: fair shares between endpoints, however many connections each has.
//!
//! The runtime gives each task that is ready a turn, so an endpoint with a thousand busy connections would take a thousand
//! of every thousand and one. Here a *pass* is one go of the runtime over what is ready, and in one pass an endpoint has
//! [`TURNS`], or [`TURNS_SHARED`] where others have some as well; what of it is ready beyond them waits in line, first come, first served, and has its turn in the next pass,
//! which begins as soon as this one is over. Nobody starves, and no time is left idle. A thread that is not busy comes to
//! the end of what is ready before anybody has used his turns up: then this costs two loads and a store for each turn.
//! Knows nothing of connections or protocols. Called by [`Proxy`](crate::proxy::Proxy) and by `http2`, around each of their
//! tasks.

use crate::limits::{TURNS, TURNS_MEMORY, TURNS_SHARED};
use futures_util::task::AtomicWaker;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use tokio::sync::Notify;

/// The turns of one thread. Its locks are nobody else's.
#[derive(Debug, Default)]
pub struct Turns {
    pass: AtomicU64,
    /// Who has begun a pass last: the account's address, as a name.
    last: AtomicUsize,
    /// The pass until which several are taken to be there.
    shared: AtomicU64,
    queue: Mutex<Queue>,
    /// Somebody waits.
    waiting: Notify,
    /// Somebody calls [`Turns::pace`].
    paced: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    /// Who has a seat; nobody else is in it.
    accounts: HashMap<IpAddr, Weak<Account>>,
    /// Whose tasks wait, each once.
    crowded: VecDeque<Arc<Account>>,
}

/// What an endpoint has had in a pass.
#[derive(Debug)]
struct Account {
    endpoint: IpAddr,
    pass: AtomicU64,
    had: AtomicU32,
    line: Mutex<VecDeque<Arc<Ticket>>>,
}

/// A task's place in line.
#[derive(Debug, Default)]
struct Ticket {
    state: AtomicU8,
    waker: AtomicWaker,
}

/// It is not in line, or need not be any more.
const FREE: u8 = 0;
const WAITS: u8 = 1;
/// It is its turn.
const CALLED: u8 = 2;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves the queues whole: each change is one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turns {
    /// Where an endpoint's tasks sit.
    #[must_use]
    pub fn seat(self: &Arc<Self>, endpoint: IpAddr) -> Seat {
        let mut queue = lock(&self.queue);
        let known = queue.accounts.get(&endpoint).and_then(Weak::upgrade);
        let account = known.unwrap_or_else(|| {
            let (pass, had, line) = (AtomicU64::new(0), AtomicU32::new(0), Mutex::default());
            let account = Arc::new(Account { endpoint, pass, had, line });
            queue.accounts.insert(endpoint, Arc::downgrade(&account));
            account
        });
        drop(queue);
        Seat { turns: self.clone(), account }
    }

    /// Begins a new pass: the thread has come to the end of what was ready.
    pub fn rest(&self) {
        self.pass.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins pass after pass as long as anybody waits. For ever: on the thread that has the tasks.
    pub async fn pace(self: Arc<Self>) {
        self.paced.store(true, Ordering::Relaxed);
        loop {
            self.waiting.notified().await;
            loop {
                // Behind whatever is ready now, and what the runtime finds ready then.
                tokio::task::yield_now().await;
                if !self.call() {
                    break;
                }
            }
        }
    }

    /// Somebody has his first turn of a pass.
    fn begin(&self, account: &Arc<Account>, pass: u64) {
        let own = Arc::as_ptr(account).addr();
        let last = self.last.load(Ordering::Relaxed);
        if last != own {
            self.last.store(own, Ordering::Relaxed);
            if last != 0 {
                self.shared.store(pass + TURNS_MEMORY, Ordering::Relaxed);
            }
        }
    }

    /// How many turns there are for each in a pass.
    fn share(&self, pass: u64) -> u32 {
        if pass < self.shared.load(Ordering::Relaxed) { TURNS_SHARED } else { TURNS }
    }

    /// Calls those whose turn it is in the next pass. Whether others wait on.
    fn call(&self) -> bool {
        let pass = self.pass.fetch_add(1, Ordering::Relaxed) + 1;
        let mut queue = lock(&self.queue);
        for _ in 0..queue.crowded.len() {
            let Some(account) = queue.crowded.pop_front() else { break };
            self.begin(&account, pass);
            let share = self.share(pass);
            let mut line = lock(&account.line);
            let mut called = 0;
            while called < share
                && let Some(ticket) = line.pop_front()
            {
                // Who has left meanwhile has none.
                if ticket.state.compare_exchange(WAITS, CALLED, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    ticket.waker.wake();
                    called += 1;
                }
            }
            account.had.store(called, Ordering::Relaxed);
            account.pass.store(pass, Ordering::Relaxed);
            let more = !line.is_empty();
            drop(line);
            if more {
                queue.crowded.push_back(account);
            } else if Arc::strong_count(&account) == 1 {
                queue.accounts.remove(&account.endpoint);
            }
        }
        // Who was first is last in the next one.
        if !queue.crowded.is_empty() {
            queue.crowded.rotate_left(1);
        }
        !queue.crowded.is_empty()
    }
}

/// An endpoint's seat on a thread.
#[derive(Clone, Debug)]
pub struct Seat {
    turns: Arc<Turns>,
    account: Arc<Account>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if Arc::strong_count(&self.account) == 1 {
            lock(&self.turns.queue).accounts.remove(&self.account.endpoint);
        }
    }
}

impl Seat {
    /// The task of it that does `work`.
    pub fn task<F: Future>(&self, work: F) -> Task<F> {
        Task { seat: self.clone(), ticket: None, work: Box::pin(work) }
    }

    /// Takes a turn of this pass, if one is left.
    fn take(&self) -> bool {
        let Account { pass, had, .. } = &*self.account;
        let now = self.turns.pass.load(Ordering::Relaxed);
        let before = if pass.load(Ordering::Relaxed) == now { had.load(Ordering::Relaxed) } else { 0 };
        if before == 0 {
            pass.store(now, Ordering::Relaxed);
            self.turns.begin(&self.account, now);
        } else if before >= self.turns.share(now) {
            return false;
        }
        had.store(before + 1, Ordering::Relaxed);
        true
    }

    fn wait(&self, ticket: &Arc<Ticket>) {
        let mut line = lock(&self.account.line);
        let first = line.is_empty();
        line.push_back(ticket.clone());
        drop(line);
        if first {
            lock(&self.turns.queue).crowded.push_back(self.account.clone());
            self.turns.waiting.notify_one();
        }
        if !self.turns.paced.swap(true, Ordering::Relaxed) {
            tokio::spawn(self.turns.clone().pace());
        }
    }
}

/// A task that does its work when it is its turn.
#[derive(Debug)]
pub struct Task<F> {
    seat: Seat,
    /// Made when it first waits: most never do.
    ticket: Option<Arc<Ticket>>,
    work: Pin<Box<F>>,
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let state = self.ticket.as_ref().map_or(FREE, |ticket| ticket.state.load(Ordering::Acquire));
        let its_turn = match state {
            CALLED => true,
            WAITS => false,
            _ => self.seat.take(),
        };
        if its_turn {
            if state == CALLED
                && let Some(ticket) = &self.ticket
            {
                ticket.state.store(FREE, Ordering::Release);
            }
            return self.work.as_mut().poll(cx);
        }
        let Self { seat, ticket, .. } = &mut *self;
        let ticket = ticket.get_or_insert_default();
        ticket.waker.register(cx.waker());
        if state == FREE {
            ticket.state.store(WAITS, Ordering::Release);
            seat.wait(ticket);
        } else if ticket.state.load(Ordering::Acquire) == CALLED {
            // Called by another thread just now, perhaps by the waker before.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl<F> Drop for Task<F> {
    fn drop(&mut self) {
        if let Some(ticket) = &self.ticket {
            ticket.state.store(FREE, Ordering::Release);
        }
    }
}

#[cfg(test)]
#[path = "turns_tests.rs"]
mod tests;
