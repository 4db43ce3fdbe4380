//! The worker process: reads strangers' bytes, and has the least that it needs for that.
//!
//! Holds no BPF map and no capability but `CAP_NET_ADMIN` (for sockets that carry the client's address), lives in
//! the proxy's network namespace, may gain no privilege, and dies with its agent. Started by
//! [`agent::child`](crate::agent::child) alone; serves no connection before its first snapshot.

use crate::channel::{self, FromWorker, Swapped, ToWorker};
use crate::dial::Dialer;
use crate::draft::{Reader, Sink};
use crate::limits::RECORD_LULL;
use crate::proxy::Proxy;
use crate::telemetry::settings::Settings;
use anyhow::Context as _;
use bytes::Bytes;
use rustix::process::{Resource, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType};
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Messages that wait for the agent. Few: records wait in their own queue, which drops.
const OUTBOX: usize = 4;

/// How long connections wait in the queue for the first snapshot, rather than be refused by an empty one. A worker
/// that takes another's place has its snapshot in milliseconds, and its clients notice nothing.
const FIRST_SNAPSHOT: Duration = Duration::from_secs(2);

/// Runs until the agent is gone. `patient`: another worker serves the same listeners until this one can.
///
/// # Errors
/// What could not be set up; nothing was accepted then.
pub fn run(patient: bool) -> anyhow::Result<()> {
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
    confine()?;
    let settings = Settings::from_env().map_err(anyhow::Error::msg)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let result = runtime.block_on(serve(socket, descriptors, patient, &settings));
    // The agent is gone, or has heard all it wanted: what is still open ends now.
    runtime.shutdown_background();
    result
}

/// Gives up every capability but one, for good.
fn confine() -> anyhow::Result<()> {
    rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
    let kept = CapabilitySet::NET_ADMIN;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
        .context("drop capabilities: CAP_NET_ADMIN must be among them")
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
    patient: bool,
    settings: &Settings,
) -> anyhow::Result<()> {
    // A terminal or a service manager signals the whole group. The agent says what to do; its end is ours. Once
    // listened to, a signal does nothing by itself, for as long as the process lives.
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        drop(signal(kind).context("take SIGTERM and SIGINT, which are the agent's to answer")?);
    }
    let (mut to_agent, mut from_agent) = channel::open(socket).context("open the agent's socket")?;
    let (sink, records) = Sink::new();
    let proxy = Proxy::new(Dialer::Transparent, sink, settings.sampler());
    let ready = CancellationToken::new();
    for listener in listeners {
        let listener = TcpListener::from(listener);
        listener.set_nonblocking(true).context("take a listener")?;
        let listener = tokio::net::TcpListener::from_std(listener).context("take a listener")?;
        let (proxy, ready) = (proxy.clone(), ready.clone());
        tokio::spawn(async move {
            if patient {
                ready.cancelled().await;
            } else {
                let _ = tokio::time::timeout(FIRST_SNAPSHOT, ready.cancelled()).await;
            }
            proxy.accept(listener, true).await;
        });
    }
    let (outbox, mut out) = mpsc::channel(OUTBOX);
    let (drained, when_drained) = oneshot::channel();
    let mut drained = Some(drained);
    tokio::spawn(report(records, outbox.clone(), when_drained));
    let saying = async {
        while let Some((records, message)) = out.recv().await {
            if to_agent.tell(records, &message).await.is_err() {
                return;
            }
        }
    };
    let hearing = async {
        while let Ok(Some(message)) = from_agent.receive::<ToWorker>().await {
            if let Some(snapshot) = message.snapshot {
                let swapped = Some(swap(&proxy, message.sequence, snapshot).await);
                ready.cancel();
                let message = FromWorker { swapped, ..FromWorker::default() };
                if outbox.send((Vec::new(), message)).await.is_err() {
                    return;
                }
            }
            if message.drain
                && let Some(drained) = drained.take()
            {
                let (proxy, patience) = (proxy.clone(), Duration::from_millis(message.patience));
                tokio::spawn(async move {
                    proxy.drain(patience).await;
                    // Heard by the reporter, which sends what is left first.
                    let _ = drained.send(());
                });
            }
        }
    };
    tokio::select! {
        () = saying => {}
        () = hearing => {}
    }
    Ok(())
}

/// Decodes a snapshot whole and puts it in force, or keeps the one before.
async fn swap(proxy: &Arc<Proxy>, sequence: u64, bytes: Bytes) -> Swapped {
    let proxy = proxy.clone();
    // Regular expressions take milliseconds to build, and every open flow is judged: not on a thread that serves.
    let done = tokio::task::spawn_blocking(move || {
        sluice_wire::from_bytes(&bytes)
            .map(|snapshot| proxy.state.swap(Arc::new(snapshot)) as u64)
            .map_err(|error| error.to_string())
    });
    match done.await.unwrap_or_else(|panic| Err(panic.to_string())) {
        Ok(cut) => Swapped { sequence, cut, refused: String::new() },
        Err(refused) => Swapped { sequence, cut: 0, refused },
    }
}

/// Sends records in batches, then that all have been sent.
async fn report(
    mut records: Reader,
    outbox: mpsc::Sender<(Vec<u8>, FromWorker)>,
    mut drained: oneshot::Receiver<()>,
) {
    loop {
        let mut over = tokio::select! {
            biased;
            _ = records.some() => false,
            _ = &mut drained => true,
        };
        // A message for each record would cost more than its request: what comes soon goes along.
        if !over {
            tokio::select! {
                () = tokio::time::sleep(RECORD_LULL) => {}
                () = records.many() => {}
                _ = &mut drained => over = true,
            }
        }
        let message = FromWorker { dropped: records.dropped(), drained: over, ..FromWorker::default() };
        if outbox.send((records.take(), message)).await.is_err() || over {
            return;
        }
    }
}
