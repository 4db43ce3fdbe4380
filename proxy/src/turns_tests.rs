//! Shares of turns, counted; no clock is asked.

use super::*;
use std::sync::atomic::AtomicUsize;

const QUIET: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const BUSY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 3));

/// Is ready again and again, so many times.
struct Busy {
    left: usize,
    had: Arc<AtomicUsize>,
}

impl Future for Busy {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.had.fetch_add(1, Ordering::Relaxed);
        self.left -= 1;
        if self.left == 0 {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Starts so many tasks of an endpoint; what each has had.
fn crowd(turns: &Arc<Turns>, endpoint: IpAddr, count: usize, left: usize) -> Vec<Arc<AtomicUsize>> {
    let seat = turns.seat(endpoint);
    let start = |_| {
        let had = Arc::new(AtomicUsize::new(0));
        tokio::spawn(seat.task(Busy { left, had: had.clone() }));
        had
    };
    (0..count).map(start).collect()
}

fn sum(all: &[Arc<AtomicUsize>]) -> usize {
    all.iter().map(|had| had.load(Ordering::Relaxed)).sum()
}

#[tokio::test]
async fn an_endpoint_with_a_thousand_busy_tasks_takes_no_more_turns_than_its_share() {
    let turns = Arc::<Turns>::default();
    let busy = crowd(&turns, BUSY, 1000, usize::MAX);
    let other = crowd(&turns, OTHER, 30, usize::MAX);
    // Both crowds are in line by then.
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    let (of_busy, of_other) = (sum(&busy), sum(&other));
    let quiet = turns.seat(QUIET).task(Busy { left: 100, had: Arc::default() });
    tokio::spawn(quiet).await.expect("it ends");
    let (of_busy, of_other) = (sum(&busy) - of_busy, sum(&other) - of_other);
    // The quiet one has at least one in each pass.
    let most = 101 * TURNS_SHARED as usize;
    assert!(of_busy <= most, "{of_busy} turns of the busy one beside 100 of the quiet one");
    // A crowd of thirty has as much as one of a thousand, to within the pass that is under way.
    assert!(of_busy.abs_diff(of_other) <= 2 * TURNS_SHARED as usize, "{of_busy} and {of_other}");
    // No one of a crowd has more than its fellows, nor less: first come, first served.
    for crowd in [&busy, &other] {
        let had: Vec<_> = crowd.iter().map(|had| had.load(Ordering::Relaxed)).collect();
        let (least, most) = (had.iter().min().expect("some"), had.iter().max().expect("some"));
        assert!(most - least <= 1, "from {least} to {most}");
    }
}

#[tokio::test]
async fn nobody_starves_and_all_of_it_is_done() {
    let turns = Arc::<Turns>::default();
    let crowds = [crowd(&turns, BUSY, 500, 20), crowd(&turns, OTHER, 3, 20)];
    let all = 503 * 20;
    // Each pass does something: so many turns of the runtime are more than enough, and a clock is not asked.
    for _ in 0..all {
        if crowds.iter().map(|crowd| sum(crowd)).sum::<usize>() == all {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(crowds.iter().map(|crowd| sum(crowd)).sum::<usize>(), all);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let queue = lock(&turns.queue);
    assert!(queue.accounts.is_empty() && queue.crowded.is_empty(), "{queue:?}");
}

#[tokio::test]
async fn who_leaves_while_it_waits_takes_nobody_s_turn() {
    let turns = Arc::<Turns>::default();
    let seat = turns.seat(BUSY);
    let had = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> =
        (0..50).map(|_| tokio::spawn(seat.task(Busy { left: usize::MAX, had: had.clone() }))).collect();
    tokio::task::yield_now().await;
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    let last = tokio::spawn(seat.task(Busy { left: 3, had: Arc::default() }));
    last.await.expect("it has its turns");
    for task in tasks {
        assert!(task.await.expect_err("aborted").is_cancelled());
    }
    drop(seat);
    assert!(lock(&turns.queue).accounts.is_empty());
}

/// How many turns it has in this pass.
fn of_one_pass(seat: &Seat) -> u32 {
    let mut had = 0;
    while seat.take() {
        had += 1;
    }
    had
}

#[test]
fn who_is_alone_has_more_turns_until_another_comes() {
    let turns = Arc::<Turns>::default();
    let (busy, quiet) = (turns.seat(BUSY), turns.seat(QUIET));
    for _ in 0..3 {
        assert_eq!(of_one_pass(&busy), TURNS);
        turns.rest();
    }
    assert!(quiet.take());
    turns.rest();
    for _ in 0..TURNS_MEMORY {
        assert_eq!(of_one_pass(&busy), TURNS_SHARED);
        turns.rest();
    }
    assert_eq!(of_one_pass(&busy), TURNS);
}
