//! What the server sends: answers, which are read as strictly as requests and go on; and how it leaves.

use super::message;
use super::side::Side;
use super::stream::{At, Carries, Stream};
use super::{Came, End, Link, Relay};
use crate::answer::Refusal;
use crate::http2::frame::{self, Bad, Head, PREFACE, code, setting};
use crate::limits::{H2_HEADER_LIST_BYTES, H2_STREAM_WINDOW, INTERIM_ANSWERS};
use tokio::time::Instant;

/// What becomes of a block of the server's.
enum Then {
    /// It goes on.
    Pass,
    /// It waits for the body before it.
    Wait,
    /// Nobody wants it.
    Drop,
}

impl Relay {
    /// The server has been connected to.
    pub(super) fn connected(&mut self, now: Instant) {
        self.now = now;
        let parted = !self.server.mirror;
        self.server = Side::new(now);
        self.server.out.extend_from_slice(PREFACE);
        // No more than the client takes: nothing is kept of a reader that reads nothing.
        self.offered = u32::try_from(self.client.initial).unwrap_or(0).min(H2_STREAM_WINDOW);
        self.server.greet(&[
            (setting::ENABLE_PUSH, 0),
            (setting::INITIAL_WINDOW_SIZE, self.offered),
            (setting::MAX_HEADER_LIST_SIZE, H2_HEADER_LIST_BYTES),
        ]);
        // The client's blocks so far did not go there.
        if parted {
            self.server.part();
        }
        self.link = Link::Greeting(now);
    }

    /// It could not be.
    pub(super) fn unreachable(&mut self, refusal: &Refusal) {
        self.link = Link::None;
        if let Some(pending) = self.pending.take() {
            if pending.block.changed {
                self.server.part();
            }
            if let Some(place) =
                self.find(pending.head.stream).filter(|place| self.streams[*place].at == At::Open)
            {
                self.refuse(place, refusal);
            }
        }
        self.flush();
        self.resume();
    }

    pub(super) fn server_block(&mut self, came: &Came<'_>) -> Result<(), Bad> {
        let then = self.answer(came);
        let place = self.find(came.head.stream);
        match (then, place) {
            (Ok(Then::Pass), _) => came.pass(&mut self.client, None),
            (Ok(Then::Wait), Some(place)) => {
                self.streams[place].down.trail(came.resolved(None));
                came.keep_back(&mut self.client);
            }
            (Ok(_), _) => came.keep_back(&mut self.client),
            (Err(bad), _) => {
                came.keep_back(&mut self.client);
                return Err(bad);
            }
        }
        Ok(())
    }

    fn answer(&mut self, came: &Came<'_>) -> Result<Then, Bad> {
        let id = came.head.stream;
        let Some(place) = self.find(id).filter(|place| self.streams[*place].at == At::Open) else {
            self.idle(End::Server, id)?;
            return Ok(Then::Drop);
        };
        let malformed = Bad::Stream(code::PROTOCOL_ERROR);
        let stream = &mut self.streams[place];
        if stream.down.received {
            return Err(Bad::Stream(code::STREAM_CLOSED));
        }
        if came.block.over {
            return Err(malformed);
        }
        if stream.answered && stream.carries == Carries::Tunnel {
            return Err(malformed);
        }
        if stream.answered {
            let fields = message::trailers(&came.block.lines).map_err(|_| malformed)?;
            if !came.end() {
                return Err(malformed);
            }
            stream.down.end()?;
            if let (Some(record), Some(status)) = (&mut stream.record, message::grpc_status(&fields)) {
                record.grpc_status = Some(status);
            }
            if !stream.down.is_empty() {
                return Ok(Then::Wait);
            }
            stream.down.sent = true;
            return Ok(Then::Pass);
        }
        let answered =
            message::answer(&came.block.lines, came.end(), stream.to_head).map_err(|_| malformed)?;
        if answered.status.is_informational() {
            stream.interims += 1;
            if stream.interims > INTERIM_ANSWERS {
                self.server.reset(id, code::ENHANCE_YOUR_CALM);
                self.refuse(place, &Refusal::BadAnswer("none came"));
                return Ok(Then::Drop);
            }
            return Ok(Then::Pass);
        }
        stream.answered = true;
        if let Some(record) = &mut stream.record {
            record.status = u32::from(answered.status.as_u16());
            record.grpc_status = answered.grpc_status;
        }
        stream.down.expect(answered.length);
        if stream.carries == Carries::Asked {
            if answered.status.is_success() {
                stream.carries = Carries::Tunnel;
            } else {
                stream.tunnel_refused(&mut self.client, &mut self.server);
            }
        }
        if came.end() {
            stream.down.end()?;
            stream.down.sent = true;
        }
        Ok(Then::Pass)
    }

    pub(super) fn server_data(&mut self, head: &Head, raw: &[u8], body: &[u8]) -> Result<(), Bad> {
        self.server.granted -= i64::try_from(head.length).unwrap_or(i64::MAX);
        if self.server.granted < 0 {
            return Err(Bad::Connection(code::FLOW_CONTROL_ERROR));
        }
        let Some(place) = self.find(head.stream).filter(|place| self.streams[*place].at == At::Open) else {
            self.server.credit(head.length);
            return self.idle(End::Server, head.stream);
        };
        let stream = &mut self.streams[place];
        let taken = if stream.answered {
            stream.down.take(head, body.len())
        } else {
            Err(Bad::Stream(code::PROTOCOL_ERROR))
        };
        if let Err(bad) = taken {
            self.server.credit(head.length);
            return Err(bad);
        }
        stream.down.data(&mut self.server, &mut self.client, raw, body, true);
        Ok(())
    }

    pub(super) fn server_reset(&mut self, id: u32, code: u32) -> Result<(), Bad> {
        let Some(place) = self.find(id).filter(|place| self.streams[*place].at == At::Open) else {
            return self.idle(End::Server, id);
        };
        let stream = &mut self.streams[place];
        if stream.down.received && !stream.down.sent {
            // The answer is whole, and the client has not taken it all.
            stream.unwanted = Some(code);
            stream.up.forget(&mut self.client);
            return Ok(());
        }
        if let Some(record) = stream.record.as_mut().filter(|_| !stream.down.sent) {
            "server_reset".clone_into(&mut record.error);
        }
        self.reset_client(place, code);
        Ok(())
    }

    /// An answer was wrong, and its stream pays for it.
    pub(super) fn server_stream_broke(&mut self, id: u32, code: u32) -> Result<(), Bad> {
        self.idle(End::Server, id)?;
        self.server.reset(id, code);
        if let Some(place) = self.find(id).filter(|place| self.streams[*place].at == At::Open) {
            if let Some(record) = &mut self.streams[place].record {
                "server_reset".clone_into(&mut record.error);
            }
            self.reset_client(place, code);
        }
        Ok(())
    }

    /// The server takes no more streams, and has not looked at those after `last`.
    pub(super) fn server_leaves(&mut self, last: u32) {
        let unseen = |stream: &Stream| {
            stream.at != At::Ours
                && !stream.answered
                && (stream.id > last || matches!(stream.at, At::Held(..)))
        };
        while let Some(place) = self.streams.iter().position(|stream| unseen(stream)) {
            if let Some(record) = &mut self.streams[place].record {
                "server_closed".clone_into(&mut record.error);
            }
            self.reset_client(place, code::REFUSED_STREAM);
        }
        self.refusing = true;
        self.leave();
    }

    /// Nothing that the server says can be read any longer.
    pub(super) fn server_broke(&mut self, code: u32) {
        frame::write_go_away(&mut self.server.out, 0, code);
        self.server_closed(&Refusal::BadAnswer("no HTTP/2"));
    }

    /// It has not said its settings, or not to the end what it began to say.
    pub(super) fn server_late(&mut self) {
        self.server_closed(&Refusal::Timeout);
    }

    /// The connection to the server has ended. `early`: what it means for a request that waited for its settings.
    pub(super) fn server_closed(&mut self, early: &Refusal) {
        if matches!(self.link, Link::Greeting(_)) {
            return self.unreachable(early);
        }
        self.link = Link::Gone;
        let mut place = 0;
        while let Some(stream) = self.streams.get_mut(place) {
            // What has its whole answer keeps it.
            if stream.at == At::Ours || stream.down.received {
                if stream.at != At::Ours && !stream.up.sent {
                    stream.unwanted = Some(code::NO_ERROR);
                    stream.up.forget(&mut self.client);
                }
                place += 1;
            } else if matches!(stream.at, At::Held(..)) {
                if let Some(record) = &mut stream.record {
                    "server_closed".clone_into(&mut record.error);
                }
                self.reset_client(place, code::REFUSED_STREAM);
            } else if stream.answered {
                if let Some(record) = &mut stream.record {
                    "server_reset".clone_into(&mut record.error);
                }
                self.reset_client(place, code::INTERNAL_ERROR);
            } else {
                self.refuse(place, &Refusal::BadAnswer("none came"));
                place += 1;
            }
        }
        self.leave();
        self.flush();
    }
}
