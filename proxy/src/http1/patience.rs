//! What an HTTP/1 connection waits for beside its peers: a deadline, and that the proxy drains.
//!
//! Made once for each connection and kept: a timer that is made for each wait, and a place among those who hear of the
//! drain, cost more than what is waited for. Knows nothing of HTTP.

use crate::proxy::Proxy;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use tokio::time::{Instant, Sleep, sleep_until};

type Drained = Pin<Box<dyn Future<Output = ()> + Send>>;

/// See the module.
#[derive(Default)]
pub(super) struct Patience {
    sleep: Option<Pin<Box<Sleep>>>,
    drained: Option<(Drained, Waker)>,
}

impl fmt::Debug for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patience").finish_non_exhaustive()
    }
}

impl Patience {
    /// Ready when it is later than this.
    pub(super) fn poll_late(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            // Put off only when it comes: nearly every deadline has moved on by then.
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }

    /// Ready when the proxy drains and this connection has been idle for as long as it may then.
    pub(super) fn poll_drained(&mut self, proxy: &Arc<Proxy>, cx: &mut Context<'_>) -> Poll<()> {
        // It is among those who hear of it already: the locks that this takes are everybody's.
        if let Some((_, waker)) = &self.drained
            && waker.will_wake(cx.waker())
            && !proxy.is_draining()
        {
            return Poll::Pending;
        }
        let proxy = proxy.clone();
        let hears = move || -> Drained { Box::pin(async move { proxy.drained_idle().await }) };
        let (drained, waker) = self.drained.get_or_insert_with(|| (hears(), cx.waker().clone()));
        waker.clone_from(cx.waker());
        drained.as_mut().poll(cx)
    }
}
