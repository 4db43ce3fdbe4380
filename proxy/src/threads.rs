//! The worker's threads: each has a runtime, accept queues and connections of its own, which never leave it.
//!
//! A thread that ends ends the worker: one that serves less than it should, and says nothing, would be worse than none,
//! since the kernel gives connections to its queues all the same. Knows nothing of the agent. Called by the worker.

use crate::proxy::Proxy;
use anyhow::Context as _;
use std::convert::Infallible;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// When connections are accepted.
#[derive(Clone, Debug)]
pub struct Begin {
    /// The first snapshot is in force.
    pub ready: CancellationToken,
    /// How long that is waited for; for ever, if another worker serves the same listeners.
    pub patience: Option<Duration>,
}

impl Begin {
    async fn wait(&self) {
        match self.patience {
            Some(patience) => drop(tokio::time::timeout(patience, self.ready.cancelled()).await),
            None => self.ready.cancelled().await,
        }
    }
}

/// Threads that serve until the process ends, each by the proxy of its own.
#[derive(Debug)]
pub struct Threads {
    ended: mpsc::Receiver<String>,
}

impl Threads {
    /// Starts one for each proxy. The listeners of one port, which are of one queue, go to one thread, and to each about
    /// as many queues as to any other.
    ///
    /// # Errors
    /// If there are no threads to be had.
    pub fn start(proxies: &[Arc<Proxy>], listeners: Vec<TcpListener>, begin: &Begin) -> anyhow::Result<Self> {
        let (ending, ended) = mpsc::channel(proxies.len().max(1));
        let shares = shared_out(listeners, proxies.len())?;
        for (index, (proxy, listeners)) in proxies.iter().zip(shares).enumerate() {
            let (proxy, begin) = (proxy.clone(), begin.clone());
            spawn(index, ending.clone(), move || serve(&proxy, listeners, &begin))?;
        }
        Ok(Self { ended })
    }

    /// Ends when one of them has ended, and says why: none ever should.
    pub async fn ended(&mut self) -> String {
        self.ended.recv().await.unwrap_or_else(|| "every thread has ended".to_owned())
    }
}

fn shared_out(listeners: Vec<TcpListener>, threads: usize) -> anyhow::Result<Vec<Vec<TcpListener>>> {
    let mut shares: Vec<Vec<TcpListener>> = (0..threads).map(|_| Vec::new()).collect();
    let mut ports = Vec::new();
    for listener in listeners {
        listener.set_nonblocking(true).context("take a listener")?;
        let port = listener.local_addr().context("take a listener")?.port();
        let queue = ports.iter().position(|known| *known == port).unwrap_or_else(|| {
            ports.push(port);
            ports.len() - 1
        });
        shares.get_mut(queue % threads.max(1)).context("there is no thread to serve")?.push(listener);
    }
    Ok(shares)
}

/// Runs `work` on a thread, and tells when it ends, however that comes.
fn spawn(
    index: usize,
    ending: mpsc::Sender<String>,
    work: impl FnOnce() -> anyhow::Result<Infallible> + Send + 'static,
) -> anyhow::Result<()> {
    let told = move || {
        // What a panic leaves behind nobody looks at again: the process ends.
        let why = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(never)) => match never {},
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "it panicked".to_owned(),
        };
        // There is room for one word of each.
        let _ = ending.try_send(format!("thread {index}: {why}"));
    };
    std::thread::Builder::new()
        .name(format!("serve-{index}"))
        .spawn(told)
        .map(drop)
        .with_context(|| format!("start thread {index}: the process may have no more"))
}

/// Accepts, and serves what it accepted; for ever, since connections live on when no more are accepted.
fn serve(proxy: &Arc<Proxy>, listeners: Vec<TcpListener>, begin: &Begin) -> anyhow::Result<Infallible> {
    let turns = proxy.turns().clone();
    // Nothing is ready any more: all that was has had its turn.
    let rest = move || turns.rest();
    let runtime = Builder::new_current_thread()
        .enable_all()
        .on_thread_park(rest)
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let mut accepting = JoinSet::new();
        accepting.spawn(proxy.turns().clone().pace());
        for listener in listeners {
            let listener = tokio::net::TcpListener::from_std(listener).context("take a listener")?;
            let (proxy, begin) = (proxy.clone(), begin.clone());
            accepting.spawn(async move {
                begin.wait().await;
                proxy.accept(listener, true).await;
            });
        }
        while let Some(ended) = accepting.join_next().await {
            ended.context("accept connections")?;
        }
        std::future::pending().await
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").expect("a free port")
    }

    #[test]
    fn both_families_of_a_queue_go_to_one_thread_and_queues_to_all() {
        let mut listeners = Vec::new();
        for _ in 0..5 {
            let v4 = listener();
            listeners.extend([v4.try_clone().expect("a copy"), v4]);
        }
        let ports = |share: &[TcpListener]| {
            share.iter().map(|one| one.local_addr().expect("bound").port()).collect::<Vec<_>>()
        };
        let shares: Vec<_> = shared_out(listeners, 3).expect("shared").iter().map(|one| ports(one)).collect();
        assert_eq!(shares.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
        for share in &shares {
            assert!(share.chunks(2).all(|pair| pair[0] == pair[1]), "{shares:?}");
        }
        assert!(shared_out(vec![listener()], 0).is_err(), "a listener that nobody serves");
    }

    #[tokio::test]
    async fn the_end_of_a_thread_is_told_a_panic_too() {
        let (ending, ended) = mpsc::channel(2);
        let mut threads = Threads { ended };
        spawn(3, ending.clone(), || panic!("a test's")).expect("started");
        assert_eq!(threads.ended().await, "thread 3: it panicked");
        spawn(4, ending, || anyhow::bail!("no descriptors")).expect("started");
        assert_eq!(threads.ended().await, "thread 4: no descriptors");
    }
}
