//! The steps of a node's life at which the process may die, each with a name.
//!
//! A test lets a process of its own die at the n-th of them, to see what it leaves (the feature `crash-points`).
//! Without that feature, which no binary that is shipped has, a step is nothing. Knows nothing of what the steps
//! do. Called by whatever changes the kernel.

/// A step that is done: what follows may never come.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) const fn point(_name: &str) {}

#[cfg(feature = "crash-points")]
pub use armed::arm;
#[cfg(feature = "crash-points")]
pub(crate) use armed::point;

#[cfg(feature = "crash-points")]
mod armed {
    use rustix::process::{Signal, getpid, kill_process};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// The step to die at, counted from 1. 0: none.
    static FATAL: AtomicUsize = AtomicUsize::new(0);
    static DONE: AtomicUsize = AtomicUsize::new(0);

    /// From now on the `n`-th step is this process's last.
    pub fn arm(n: usize) {
        DONE.store(0, Ordering::SeqCst);
        FATAL.store(n, Ordering::SeqCst);
    }

    pub(crate) fn point(name: &str) {
        if DONE.fetch_add(1, Ordering::SeqCst) + 1 != FATAL.load(Ordering::SeqCst) {
            return;
        }
        eprintln!("dies after: {name}");
        let _ = kill_process(getpid(), Signal::KILL);
        // The signal is on its way; nothing more is to happen here.
        loop {
            std::thread::park();
        }
    }
}
