//! One allowed request and its answer: both bodies stream at once, and either end may be the first to stop.
//!
//! Knows nothing of how the request was judged; told by its flow when the permission is gone.

use super::Upstream;
use super::body::{Broken, Pump, read_more};
use super::head::{self, Bad, Changes, Framing, RequestHead, ResponseHead, Upgrade};
use crate::answer::{Denial, Refusal};
use crate::draft::Draft;
use crate::judge;
use crate::limits::{EXPECT_TIMEOUT, HEAD_BYTES, INTERIM_ANSWERS, REQUEST_TIMEOUT};
use crate::proxy::{Accepted, Proxy};
use crate::share::Charge;
use crate::stall::{self, Deadline};
use crate::state::OpenFlow;
use crate::tunnel;
use bytes::{Buf as _, BytesMut};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use tokio::io::AsyncWriteExt as _;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// One exchange.
#[derive(Debug)]
pub(super) struct Exchange<'a> {
    pub(super) proxy: &'a Proxy,
    pub(super) head: &'a RequestHead,
    pub(super) changes: &'a Changes,
    pub(super) flow: &'a OpenFlow,
    pub(super) said: &'a judge::Said,
    pub(super) leg: judge::Leg,
}

/// How the connections go on.
#[derive(Debug)]
pub(super) enum After {
    /// Both may carry the next request.
    Reusable,
    /// The answer is whole; the connection ends.
    Close,
    /// The answer is not whole: the client must see that.
    Abort,
    /// What the server says cannot be read. The request is all there, and so are the answer's bytes.
    Unreadable(&'static str),
    /// There was no answer; this is ours, and the last one.
    Answer(Refusal),
    /// There was no answer; this is ours. The request came whole, so the client may ask again.
    Revoked(Refusal),
}

/// How far an exchange came, for those who look at it from outside.
#[derive(Debug, Default)]
struct Progress {
    up: AtomicU64,
    down: AtomicU64,
    status: AtomicU16,
    uploaded: AtomicBool,
    /// The server has said that it wants the body.
    continued: Notify,
}

/// How an answer ended.
#[derive(Debug)]
enum Answered {
    /// Whole; whether the connection ends with it.
    Whole(bool),
    /// The connection is something else now: a WebSocket or a tunnel, as the request asked.
    Switched,
}

/// How an answer failed.
#[derive(Debug)]
enum Failed {
    /// The server closed before it said anything.
    Nothing,
    /// What it said is no answer. Not a byte of it was taken.
    Bad(&'static str),
    /// It answers what nobody asked.
    Unasked(&'static str),
    /// It stopped in the middle.
    Truncated,
    /// The client went away.
    Client,
}

impl Exchange<'_> {
    pub(super) async fn run(
        &self,
        client: &mut Accepted,
        upstream: &mut Upstream,
        record: &mut Draft,
        deadline: &mut Deadline,
    ) -> After {
        let progress = Progress::default();
        let reused = upstream.reused;
        let after = {
            let (mut client_read, mut client_write) = client.stream.split();
            let (mut server_read, mut server_write) = upstream.stream.split();
            let upload = self.upload(
                &mut client_read,
                (&mut client.buf, &mut client.charge),
                &mut server_write,
                &progress,
            );
            let download = self.download(&mut server_read, &mut upstream.buf, &mut client_write, &progress);
            let late = deadline.at(Instant::now() + REQUEST_TIMEOUT);
            tokio::pin!(upload, download, late);
            let (mut uploading, mut waiting) = (true, true);
            loop {
                tokio::select! {
                    // First: an answer that is here already is not cut in its last bytes.
                    biased;
                    done = &mut download => break match done {
                        Ok(Answered::Switched) => None,
                        done => Some(self.downloaded(&done, reused, &progress, record)),
                    },
                    verdict = self.flow.revoked() => {
                        record.judged(verdict);
                        "revoked".clone_into(&mut record.error);
                        let refusal = Refusal::Denied(Denial::of(verdict));
                        // Without a body it is whole before anything of it was sent on.
                        let whole = self.head.framing == Framing::Empty
                            || progress.uploaded.load(Ordering::Relaxed);
                        break Some(match progress.status.load(Ordering::Relaxed) {
                            0 if whole && !self.head.close => After::Revoked(refusal),
                            0 => After::Answer(refusal),
                            _ => After::Abort,
                        });
                    }
                    done = &mut upload, if uploading => match done {
                        // The server reads no more; it may still answer.
                        Ok(()) | Err(Broken::Receiver) => uploading = false,
                        Err(broken) => break Some(upload_broken(&broken, &progress, record)),
                    },
                    () = &mut late, if waiting => {
                        waiting = false;
                        if progress.status.load(Ordering::Relaxed) == 0 {
                            let whole = progress.uploaded.load(Ordering::Relaxed);
                            break Some(After::Answer(if whole { Refusal::Late } else { Refusal::BodyTimeout }));
                        }
                    }
                }
            }
        };
        let after = match after {
            Some(after) => after,
            None => Box::pin(self.switched(client, upstream, &progress, record)).await,
        };
        record.status = u32::from(progress.status.load(Ordering::Relaxed));
        record.bytes_up = progress.up.load(Ordering::Relaxed);
        record.bytes_down = progress.down.load(Ordering::Relaxed);
        after
    }

    /// Carries what the connection has become, unread, until either end is done or the permission is gone.
    async fn switched(
        &self,
        client: &mut Accepted,
        upstream: &mut Upstream,
        progress: &Progress,
        record: &mut Draft,
    ) -> After {
        let (from_client, from_server) = (client.buf.split().freeze(), upstream.buf.split().freeze());
        let both = tunnel::both(
            (&mut client.stream, from_client, &progress.up),
            (&mut upstream.stream, from_server, &progress.down),
        );
        tokio::select! {
            ended = both => match ended {
                Ok(()) => After::Close,
                Err(error) => {
                    error.kind().to_string().clone_into(&mut record.error);
                    After::Abort
                }
            },
            verdict = self.flow.revoked() => {
                record.judged(verdict);
                "revoked".clone_into(&mut record.error);
                After::Abort
            }
        }
    }

    fn downloaded(
        &self,
        done: &Result<Answered, Failed>,
        reused: bool,
        progress: &Progress,
        record: &mut Draft,
    ) -> After {
        let (after, error) = match done {
            Ok(Answered::Whole(false)) if !self.head.close && progress.uploaded.load(Ordering::Relaxed) => {
                return After::Reusable;
            }
            Ok(_) => return After::Close,
            // On a connection that served before, an end without an answer is the server's idle close: the client
            // knows from its own connection's end that the request may be sent again. Nobody retries for it.
            Err(Failed::Nothing) if reused => (After::Abort, "server_closed"),
            Err(Failed::Nothing) => (After::Answer(Refusal::BadAnswer("none came")), "server_closed"),
            Err(Failed::Bad(what)) if progress.uploaded.load(Ordering::Relaxed) => {
                (After::Unreadable(what), "bad_answer")
            }
            Err(Failed::Bad(what) | Failed::Unasked(what)) => {
                (After::Answer(Refusal::BadAnswer(what)), "bad_answer")
            }
            Err(Failed::Truncated) => (After::Abort, "answer_truncated"),
            Err(Failed::Client) => (After::Abort, "client_closed"),
        };
        error.clone_into(&mut record.error);
        after
    }

    /// Sends the request on, then watches the client: it may half-close, or leave.
    async fn upload(
        &self,
        client: &mut ReadHalf<'_>,
        (buf, charge): (&mut BytesMut, &mut Charge),
        server: &mut WriteHalf<'_>,
        progress: &Progress,
    ) -> Result<(), Broken> {
        let mut head = self.head.forward(self.changes);
        if self.head.expects {
            // A server that refuses a body unseen must not be sent it: it would be its next request.
            stall::write_all(server, &head).await.map_err(|_| Broken::Receiver)?;
            head.clear();
            let _ = tokio::time::timeout(EXPECT_TIMEOUT, progress.continued.notified()).await;
        }
        let admits = |trailers| self.said.admits(&self.proxy.state.view(), &self.leg, trailers);
        let mut pump = Pump::new(client, buf, server, &progress.up, head).admitting(&admits).hurrying();
        pump.run(self.head.framing).await?;
        progress.uploaded.store(true, Ordering::Relaxed);
        // What comes now is the next request, or the client's end.
        while buf.len() < HEAD_BYTES && charge.set(buf.len()) {
            match read_more(client, buf).await {
                Ok(0) => {
                    // Not while a request waits that is still to be sent.
                    if buf.is_empty() {
                        let _ = server.shutdown().await;
                    }
                    break;
                }
                Ok(_) => {}
                Err(_) => return Err(Broken::Sender),
            }
        }
        Ok(())
    }

    /// Brings the answer back.
    async fn download(
        &self,
        server: &mut ReadHalf<'_>,
        buf: &mut BytesMut,
        client: &mut WriteHalf<'_>,
        progress: &Progress,
    ) -> Result<Answered, Failed> {
        for _ in 0..=INTERIM_ANSWERS {
            let head = self.answer_head(server, buf).await?;
            if self.switches(&head) {
                progress.status.store(head.status, Ordering::Relaxed);
                stall::write_all(client, &head.forward(false)).await.map_err(|_| Failed::Client)?;
                return Ok(Answered::Switched);
            }
            match head.status {
                101 => return Err(Failed::Unasked("it switches protocols, which nobody asked for")),
                100..=199 => {
                    if head.status == 100 {
                        progress.continued.notify_one();
                    }
                    stall::write_all(client, &head.forward(false)).await.map_err(|_| Failed::Client)?;
                    continue;
                }
                status => progress.status.store(status, Ordering::Relaxed),
            }
            let closing = !head.close && self.proxy.is_draining();
            let mut pump = Pump::new(server, buf, client, &progress.down, head.forward(closing));
            return match pump.run(head.framing).await {
                Ok(()) if head.framing == Framing::UntilClose => Ok(Answered::Whole(true)),
                // More than the answer: whatever it is, it answers nothing that was asked.
                Ok(()) => Ok(Answered::Whole(head.close || closing || !buf.is_empty())),
                Err(Broken::Receiver) => Err(Failed::Client),
                Err(_) => Err(Failed::Truncated),
            };
        }
        Err(Failed::Unasked("too many interim answers"))
    }

    /// Whether the server agrees to what the request asked the connection to become.
    fn switches(&self, answer: &ResponseHead) -> bool {
        match self.head.upgrade {
            Upgrade::WebSocket => answer.is_websocket(),
            // RFC 9110 §9.3.6: any 2xx, whatever it says of a body.
            _ => self.head.method() == "CONNECT" && matches!(answer.status, 200..=299),
        }
    }

    async fn answer_head(
        &self,
        server: &mut ReadHalf<'_>,
        buf: &mut BytesMut,
    ) -> Result<ResponseHead, Failed> {
        let mut looked = 0;
        let what = |bad| match bad {
            Bad::Malformed(what) => Failed::Bad(what),
            Bad::TargetTooLong | Bad::TooLarge => Failed::Bad("its head is too large"),
        };
        loop {
            if let Some(end) = head::find_end(buf, looked).map_err(what)? {
                let head = ResponseHead::parse(&buf[..end], self.head.method() == "HEAD").map_err(what)?;
                buf.advance(end);
                return Ok(head);
            }
            looked = buf.len();
            match read_more(server, buf).await {
                Ok(0) | Err(_) if buf.is_empty() => return Err(Failed::Nothing),
                Ok(0) | Err(_) => return Err(Failed::Bad("it stops in its head")),
                Ok(_) => {}
            }
        }
    }
}

/// The request's body broke: the server must not take what came for the whole.
fn upload_broken(broken: &Broken, progress: &Progress, record: &mut Draft) -> After {
    match broken {
        Broken::Framing(what) if progress.status.load(Ordering::Relaxed) == 0 => {
            After::Answer(Refusal::Malformed(what))
        }
        Broken::Slow if progress.status.load(Ordering::Relaxed) == 0 => After::Answer(Refusal::BodyTimeout),
        Broken::Slow => {
            "body_timeout".clone_into(&mut record.error);
            After::Abort
        }
        Broken::Framing(_) => {
            "malformed_request".clone_into(&mut record.error);
            After::Abort
        }
        Broken::Sender | Broken::Receiver => {
            "client_closed".clone_into(&mut record.error);
            After::Abort
        }
    }
}
