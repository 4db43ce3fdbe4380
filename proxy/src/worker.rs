//! The worker process: reads strangers' bytes, and has the least that it needs for that.
//!
//! Holds no BPF map, is another user with one capability and few system calls ([`confine`](crate::confine)), lives in the
//! proxy's network namespace, may gain no privilege, and dies with its agent. Started by
//! [`agent::child`](crate::agent::child) alone; serves no connection before its first snapshot.

use crate::channel::{self, FromWorker, Swapped, ToWorker};
use crate::confine::{User, confine};
use crate::dial::Dialer;
use crate::draft::{Reader, Sink};
use crate::limits::RECORD_LULL;
use crate::proxy::Proxy;
use crate::telemetry::settings::Settings;
use crate::threads::{Begin, Threads};
use anyhow::Context as _;
use bytes::Bytes;
use futures_util::future::join_all;
use rustix::process::{Resource, Signal};
use rustix::thread::LinkNameSpaceType;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Messages that wait for the agent. Few: records wait in their own queue, which drops.
const OUTBOX: usize = 4;

/// How long connections wait in the queue for the first snapshot, rather than be refused by an empty one. A worker
/// that takes another's place has its snapshot in milliseconds, and its clients notice nothing.
const FIRST_SNAPSHOT: Duration = Duration::from_secs(2);

/// Runs until the agent is gone. `patient`: another worker serves the same listeners until this one can. `threads`: how
/// many serve.
///
/// # Errors
/// What could not be set up; nothing was accepted then.
pub fn run(patient: bool, threads: u8, user: User) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("ask to be killed with the agent")?;
    let socket =
        std::io::stdin().as_fd().try_clone_to_owned().context("take the agent's socket from stdin")?;
    let mut descriptors = channel::receive_descriptors(&socket)
        .context("receive the listeners: the worker is started by `sluice-proxy run` alone")?
        .into_iter();
    let netns = descriptors.next().context("receive the network namespace")?;
    // One thread so far: the namespace and the capabilities of this one are every later one's.
    rustix::thread::move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
        .context("enter the proxy's network namespace: CAP_SYS_ADMIN is needed until then")?;
    drop(netns);
    raise_descriptor_limit();
    let settings = Settings::from_env().map_err(anyhow::Error::msg)?;
    confine(user)?;
    // This thread speaks with the agent. It reads no stranger's byte: those who do are `threads`.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let begin = Begin { ready: CancellationToken::new(), patience: (!patient).then_some(FIRST_SNAPSHOT) };
    let result = runtime.block_on(serve(socket, descriptors, begin, threads, &settings));
    // The agent is gone, or has heard all it wanted: what is still open ends with the process.
    runtime.shutdown_background();
    result
}

/// Two descriptors a connection: as many as may be had.
fn raise_descriptor_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without it there are fewer connections; accepting says so when it happens.
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
}

async fn serve(
    socket: OwnedFd,
    listeners: impl Iterator<Item = OwnedFd>,
    begin: Begin,
    threads: u8,
    settings: &Settings,
) -> anyhow::Result<()> {
    // A terminal or a service manager signals the whole group. The agent says what to do; its end is ours. Once
    // listened to, a signal does nothing by itself, for as long as the process lives.
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        drop(signal(kind).context("take SIGTERM and SIGINT, which are the agent's to answer")?);
    }
    let (mut to_agent, mut from_agent) = channel::open(socket).context("open the agent's socket")?;
    let (outbox, mut out) = mpsc::channel(OUTBOX);
    let drained = CancellationToken::new();
    let (proxies, dropped, mut reports) = proxies(threads, settings, &outbox, &drained);
    let mut serving = Threads::start(&proxies, listeners.map(TcpListener::from).collect(), &begin)?;
    let saying = async {
        while let Some((records, message)) = out.recv().await {
            if to_agent.tell(records, &message).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    };
    let hearing = async {
        let mut draining = false;
        while let Ok(Some(message)) = from_agent.receive::<ToWorker>().await {
            if let Some(snapshot) = message.snapshot {
                let swapped = Some(swap(&proxies, message.sequence, snapshot).await);
                begin.ready.cancel();
                let message = FromWorker { swapped, ..FromWorker::default() };
                if outbox.send((Vec::new(), message)).await.is_err() {
                    break;
                }
            }
            if message.drain && !draining {
                draining = true;
                let (proxies, patience) = (proxies.clone(), Duration::from_millis(message.patience));
                let drained = drained.clone();
                tokio::spawn(async move {
                    join_all(proxies.iter().map(|proxy| proxy.drain(patience))).await;
                    // Heard by the reporters, which send what is left first.
                    drained.cancel();
                });
            }
        }
        Ok(())
    };
    let reporting = async {
        while let Some(ended) = reports.join_next().await {
            ended.context("report what happened")?;
        }
        let dropped = dropped.load(Ordering::Relaxed);
        // Nobody hears it: then the other two end as well.
        let _ =
            outbox.send((Vec::new(), FromWorker { drained: true, dropped, ..FromWorker::default() })).await;
        std::future::pending().await
    };
    tokio::select! {
        ended = saying => ended,
        ended = hearing => ended,
        ended = reporting => ended,
        why = serving.ended() => Err(anyhow::anyhow!("a thread that serves has ended ({why}): the agent starts another worker")),
    }
}

/// What is said to the agent: records as they are sent, and the rest of the message.
type Word = (Vec<u8>, FromWorker);

/// One for each thread, what counts their lost records, and what reports the others.
fn proxies(
    threads: u8,
    settings: &Settings,
    outbox: &mpsc::Sender<Word>,
    drained: &CancellationToken,
) -> (Arc<[Arc<Proxy>]>, Arc<AtomicU64>, JoinSet<()>) {
    let dropped = Arc::default();
    let mut proxies: Vec<Arc<Proxy>> = Vec::with_capacity(usize::from(threads));
    let mut reports = JoinSet::new();
    for _ in 0..threads {
        let (sink, records) = Sink::one_of(usize::from(threads), &dropped);
        proxies.push(match proxies.first() {
            None => Proxy::new(Dialer::Transparent, sink, settings.sampler()),
            Some(first) => first.beside(sink),
        });
        reports.spawn(report(records, outbox.clone(), drained.clone()));
    }
    (proxies.into(), dropped, reports)
}

/// Decodes a snapshot whole and puts it in force, or keeps the one before.
async fn swap(proxies: &Arc<[Arc<Proxy>]>, sequence: u64, bytes: Bytes) -> Swapped {
    let proxies = proxies.clone();
    // Regular expressions take milliseconds to build, and every open flow is judged: not on a thread that serves.
    let done = tokio::task::spawn_blocking(move || {
        let snapshot = Arc::new(sluice_wire::from_bytes(&bytes).map_err(|error| error.to_string())?);
        // Each thread has a view of its own, which no other touches; behind them is one snapshot.
        Ok(proxies.iter().map(|proxy| proxy.state.swap(snapshot.clone()) as u64).sum())
    });
    match done.await.unwrap_or_else(|panic| Err(panic.to_string())) {
        Ok(cut) => Swapped { sequence, cut, refused: String::new() },
        Err(refused) => Swapped { sequence, cut: 0, refused },
    }
}

/// Sends one thread's records in batches, until all is drained and all have been sent.
async fn report(mut records: Reader, outbox: mpsc::Sender<Word>, drained: CancellationToken) {
    loop {
        let mut over = tokio::select! {
            biased;
            _ = records.some() => false,
            () = drained.cancelled() => true,
        };
        // A message for each record would cost more than its request: what comes soon goes along.
        if !over {
            tokio::select! {
                () = tokio::time::sleep(RECORD_LULL) => {}
                () = records.many() => {}
                () = drained.cancelled() => over = true,
            }
        }
        let message = FromWorker { dropped: records.dropped(), ..FromWorker::default() };
        if outbox.send((records.take(), message)).await.is_err() || over {
            return;
        }
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
