//! How records go to the agent: together, soon, and all of them at the end. Time is the tests': it goes on when nothing
//! else does.

use super::*;
use crate::draft::{Draft, Sink};
use crate::fuzzing;
use crate::judge::Leg;
use crate::limits::RECORDS_WORTH;
use crate::record::Record;
use crate::state::View;
use prost::Message as _;
use std::net::SocketAddr;
use tokio::time::Instant;

fn draft() -> Draft {
    let leg = Leg::new(SocketAddr::new(fuzzing::CLIENT, 40_000), SocketAddr::new(fuzzing::SERVER, 8080));
    Draft::begin(&View::default(), &leg, "tcp")
}

struct Agent {
    sink: Sink,
    words: mpsc::Receiver<Word>,
    drained: CancellationToken,
}

impl Agent {
    fn start() -> Self {
        let (sink, records) = Sink::new();
        let (outbox, words) = mpsc::channel(OUTBOX);
        let drained = CancellationToken::new();
        tokio::spawn(report(records, outbox, drained.clone()));
        Self { sink, words, drained }
    }

    /// The records of the next message, and how long it took.
    async fn next(&mut self) -> Option<(Vec<Record>, Duration)> {
        let since = Instant::now();
        let (bytes, _) = self.words.recv().await?;
        Some((FromWorker::decode(&*bytes).expect("a message").records, since.elapsed()))
    }
}

#[tokio::test(start_paused = true)]
async fn few_records_wait_a_little_for_others() {
    let mut agent = Agent::start();
    agent.sink.finish(draft());
    tokio::time::sleep(RECORD_LULL / 2).await;
    agent.sink.finish(draft());
    let (records, waited) = agent.next().await.expect("a message");
    assert_eq!(records.len(), 2, "one message");
    assert!(waited <= RECORD_LULL, "{waited:?}");
    // And nothing is sent where nothing happens.
    tokio::time::sleep(RECORD_LULL * 100).await;
    assert!(agent.words.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn many_records_wait_for_none() {
    let mut agent = Agent::start();
    for _ in 0..RECORDS_WORTH {
        agent.sink.finish(draft());
    }
    let (records, waited) = agent.next().await.expect("a message");
    assert_eq!((records.len(), waited), (RECORDS_WORTH, Duration::ZERO));
    // They need not come at once.
    agent.sink.finish(draft());
    tokio::time::sleep(RECORD_LULL / 2).await;
    for _ in 1..RECORDS_WORTH {
        agent.sink.finish(draft());
    }
    let (records, waited) = agent.next().await.expect("a message");
    assert_eq!((records.len(), waited), (RECORDS_WORTH, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn what_is_left_goes_when_all_is_drained_and_waits_for_nothing() {
    let mut agent = Agent::start();
    agent.sink.finish(draft());
    tokio::task::yield_now().await;
    agent.drained.cancel();
    let (records, waited) = agent.next().await.expect("a message");
    assert_eq!((records.len(), waited), (1, Duration::ZERO));
    assert!(agent.next().await.is_none(), "the last");
}
