//! What the client sends: requests, which are judged; bodies, which go on; and what ends them.

use super::message::{self, Asked};
use super::stream::{At, Carries, Half, Stream};
use super::{Came, Link, Pending, Relay};
use crate::answer::{Denial, Refusal};
use crate::draft::Draft;
use crate::http2::frame::{self, Bad, HEAD_BYTES, Head, code, flag};
use crate::http2::hpack::Block;
use crate::http2::{no_stream, stream as rewriting, unreadable};
use crate::judge::{self, Judged};
use crate::limits::{H2_STREAM_WINDOW, H2_STREAMS};
use crate::proxy::Proxy;
use crate::state::Said;
use crate::telemetry::context::Context;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use sluice_policy::{Reason, Verdict};
use std::sync::Arc;

impl Proxy {
    /// Writes a stream's record, once.
    pub(super) fn finish_stream(&self, stream: &mut Stream) {
        if let Some(mut record) = stream.record.take() {
            record.bytes_up = stream.up.count;
            record.bytes_down = if stream.at == At::Ours { 0 } else { stream.down.count };
            self.records.finish(*record);
        }
    }

    /// The `traceparent` that goes on in place of the one sent, where a span is recorded.
    fn span_of(&self, said: &judge::Said, record: &mut Draft) -> Option<String> {
        let of = |wanted: &'static str| said.headers.iter().filter(move |(name, _)| name == wanted);
        let parent = Context::of(of("traceparent").map(|(_, value)| value.as_bytes()));
        let span = self.sampler.span(parent, &self.ids)?;
        let states: Vec<_> = parent
            .iter()
            .flat_map(|_| of("tracestate"))
            .map(|(_, value)| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        record.spanned(&span, &states.join(","));
        parent.map(|parent| parent.header(span.context.span_id))
    }
}

impl Relay {
    pub(super) fn client_block(
        &mut self,
        head: Head,
        raw: Option<&[u8]>,
        bytes: &[u8],
        block: Block,
    ) -> Result<(), Bad> {
        let came = Came { head, raw, bytes, block: &block };
        let id = head.stream;
        if id.is_multiple_of(2) {
            return Err(Bad::Connection(code::PROTOCOL_ERROR));
        }
        if let Some(place) = self.find(id) {
            return self.client_trailers(place, &came);
        }
        if id <= self.last {
            came.keep_back(&mut self.server);
            return self.closed(id);
        }
        self.last = id;
        let leaving = self.leaving.as_ref().is_some_and(|leaving| leaving.heard);
        if self.streams.len() >= H2_STREAMS as usize || leaving || self.refusing || self.link == Link::Gone {
            came.keep_back(&mut self.server);
            self.count_reset()?;
            // Nobody has looked at it: it may be sent again.
            self.client.reset(id, code::REFUSED_STREAM);
            self.remember(id);
            return Ok(());
        }
        if !self.places.set(self.streams.len() + 1) {
            came.keep_back(&mut self.server);
            self.count_reset()?;
            no_stream(&self.proxy, &self.who);
            self.client.reset(id, code::REFUSED_STREAM);
            self.remember(id);
            return Ok(());
        }
        if block.over {
            came.keep_back(&mut self.server);
            return self.oversize(&head);
        }
        let asked = match message::request(&block.lines, came.end(), self.offers) {
            Ok(asked) => asked,
            Err(message::Malformed) => {
                came.keep_back(&mut self.server);
                unreadable(&self.proxy, &self.who, Reason::ParseError);
                return Err(Bad::Stream(code::PROTOCOL_ERROR));
            }
        };
        self.judge(asked, head, raw, bytes, block)
    }

    fn judge(
        &mut self,
        asked: Asked,
        head: Head,
        raw: Option<&[u8]>,
        bytes: &[u8],
        block: Block,
    ) -> Result<(), Bad> {
        let Asked { said, odd, method, length, mut rewrite } = asked;
        let leg = self.who.leg;
        let said = Arc::new(said);
        // Before the view is loaded: then either the judge sees a new snapshot, or its swap sees the flow.
        let flow = self.proxy.state.open_beside(leg, Said::Request(said.clone()), &self.wake);
        let view = self.proxy.state.view();
        let judged = rewriting::judged(&said, odd.as_ref(), &view, &leg);
        let mut record = self.ends.begin(&view, &leg, "http/2");
        record.describe(&said);
        rewrite.traceparent = self.proxy.span_of(&said, &mut record);
        record.judged(&judged.verdict);
        let refusal = refusal(&judged, odd, &said, &mut rewrite);
        let mut stream = self.stream(&head, &said, record);
        stream.flow = Some(flow);
        stream.up.expect(length);
        stream.to_head = method == Method::HEAD;
        if method == Method::CONNECT {
            stream.carries = Carries::Asked;
        }
        if !stream.grpc {
            self.asked.get_or_insert(self.now);
        }
        self.streams.push(Box::new(stream));
        let place = self.streams.len() - 1;
        let came = Came { head, raw, bytes, block: &block };
        if let Some(refusal) = refusal {
            came.keep_back(&mut self.server);
            self.refuse(place, &refusal);
            return Ok(());
        }
        if self.link == Link::Open {
            self.send_request(place, &came, &rewrite);
        } else {
            self.link = Link::Dialling;
            self.pending = Some(Pending { head, bytes: bytes.to_vec(), block, rewrite });
        }
        Ok(())
    }

    fn stream(&self, head: &Head, said: &Arc<judge::Said>, record: Draft) -> Stream {
        let mut up = Half::new(self.server.initial, i64::from(H2_STREAM_WINDOW));
        up.received = head.has(flag::END_STREAM);
        Stream {
            id: head.stream,
            at: At::Open,
            carries: Carries::Message,
            up,
            down: Half::new(self.client.initial, i64::from(self.offered)),
            said: said.clone(),
            flow: None,
            since: self.now,
            record: Some(Box::new(record)),
            grpc: said.is_grpc(),
            to_head: false,
            answered: false,
            interims: 0,
            unwanted: None,
        }
    }

    /// Sends the request of a stream to the server, or keeps it until the server takes more.
    pub(super) fn send_request(&mut self, place: usize, came: &Came<'_>, rewrite: &message::Rewrite) {
        let rewrite = Some(rewrite).filter(|rewrite| !rewrite.is_none());
        let most = self.server.streams as usize;
        // Looked at one by one only where they could be too many.
        let full = self.streams.len() > most
            && self.streams.iter().filter(|stream| stream.at == At::Open).count() > most;
        let stream = &mut self.streams[place];
        if stream.said.protocol.is_some() && !self.server.connects {
            came.keep_back(&mut self.server);
            return self.refuse(place, &Refusal::NoUpgrade);
        }
        if self.holding || full {
            let block = came.resolved(rewrite);
            came.keep_back(&mut self.server);
            stream.at = At::Held(block, came.end());
            self.holding = true;
            return;
        }
        came.pass(&mut self.server, rewrite);
        stream.up.sent = came.end();
        self.last_sent = stream.id;
    }

    /// Sends the requests that the server takes now, the oldest first.
    pub(super) fn admit(&mut self) {
        if self.link != Link::Open || !self.holding {
            return;
        }
        let mut open = self.streams.iter().filter(|stream| stream.at == At::Open).count();
        for stream in &mut self.streams {
            if open >= self.server.streams as usize {
                return;
            }
            if let At::Held(block, end) = &mut stream.at {
                self.server.send_block(stream.id, *end, block);
                stream.up.sent = *end;
                self.last_sent = stream.id;
                stream.at = At::Open;
                stream.flush_up(&mut self.client, &mut self.server);
                open += 1;
            }
        }
        self.holding = false;
    }

    /// Sends the request that the connection was dialled for, if it still may.
    pub(super) fn send_pending(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        let Pending { head, bytes, block, rewrite } = pending;
        let came = Came { head, raw: None, bytes: &bytes, block: &block };
        match self.find(head.stream).filter(|place| self.streams[*place].at == At::Open) {
            Some(place) => {
                // They have been guessed until now.
                self.streams[place].up.window = self.server.initial;
                self.streams[place].down.granted = i64::from(self.offered);
                self.send_request(place, &came, &rewrite);
            }
            None => came.keep_back(&mut self.server),
        }
    }

    fn client_trailers(&mut self, place: usize, came: &Came<'_>) -> Result<(), Bad> {
        let stream = &mut self.streams[place];
        let checked = (|| {
            stream.up.still_open()?;
            // A second head that ends nothing is none (§8.1), and a tunnel has data alone (§8.5).
            if !came.end() || came.block.over || stream.carries != Carries::Message {
                return Err(Bad::Stream(code::PROTOCOL_ERROR));
            }
            let fields =
                message::trailers(&came.block.lines).map_err(|_| Bad::Stream(code::PROTOCOL_ERROR))?;
            stream.up.end()?;
            let in_place = fields.iter().all(|(name, value)| message::is_trailer(name, value));
            let view = self.proxy.state.view();
            if stream.at == At::Ours || (in_place && stream.said.admits(&view, &self.who.leg, fields)) {
                Ok(())
            } else {
                Err(Bad::Stream(code::PROTOCOL_ERROR))
            }
        })();
        if checked.is_err() || stream.at == At::Ours || stream.unwanted.is_some() {
            came.keep_back(&mut self.server);
            return checked;
        }
        if stream.at == At::Open && stream.up.is_empty() {
            came.pass(&mut self.server, None);
            stream.up.sent = true;
        } else {
            stream.up.trail(came.resolved(None));
            came.keep_back(&mut self.server);
        }
        Ok(())
    }

    pub(super) fn client_data(&mut self, head: &Head, raw: &[u8], body: &[u8]) -> Result<(), Bad> {
        self.client.granted -= i64::try_from(head.length).unwrap_or(i64::MAX);
        if self.client.granted < 0 {
            return Err(Bad::Connection(code::FLOW_CONTROL_ERROR));
        }
        let Some(place) = self.find(head.stream) else {
            self.client.credit(head.length);
            self.idle(super::End::Client, head.stream)?;
            return self.closed(head.stream);
        };
        let stream = &mut self.streams[place];
        if let Err(bad) = stream.up.take(head, body.len()) {
            self.client.credit(head.length);
            return Err(bad);
        }
        if stream.at == At::Ours || stream.unwanted.is_some() {
            self.client.credit(raw.len() - HEAD_BYTES);
            return Ok(());
        }
        let agreed = stream.carries != Carries::Asked;
        let open = stream.at == At::Open && self.link == Link::Open && agreed;
        stream.up.data(&mut self.client, &mut self.server, raw, body, open);
        if !self.crowded || stream.up.is_empty() {
            return Ok(());
        }
        // Its endpoint holds enough. Not to read on would be to hear no window either.
        if let Some(mut record) = stream.record.take() {
            record.judged(&judge::refuse(Reason::Limit));
            Refusal::Crowded.error().clone_into(&mut record.error);
            self.proxy.records.finish(*record);
        }
        Err(Bad::Stream(code::ENHANCE_YOUR_CALM))
    }

    pub(super) fn client_reset(&mut self, id: u32, code: u32) -> Result<(), Bad> {
        self.count_reset()?;
        let Some(place) = self.find(id) else { return self.idle(super::End::Client, id) };
        let stream = &mut self.streams[place];
        if let Some(record) = &mut stream.record
            && stream.at != At::Ours
        {
            "client_closed".clone_into(&mut record.error);
        }
        if stream.at == At::Open && self.link == Link::Open {
            self.server.reset(id, code);
        }
        self.remove(place);
        Ok(())
    }

    fn count_reset(&mut self) -> Result<(), Bad> {
        match self.client.floods.resets.take(self.now) {
            true => Ok(()),
            false => Err(Bad::Connection(code::ENHANCE_YOUR_CALM)),
        }
    }

    /// A frame that needs an open stream, on one that has ended.
    fn closed(&self, id: u32) -> Result<(), Bad> {
        match self.forgotten.contains(&id) {
            true => Ok(()),
            false => Err(Bad::Connection(code::STREAM_CLOSED)),
        }
    }

    /// A frame was wrong, and its stream pays for it.
    pub(super) fn client_stream_broke(&mut self, id: u32, code: u32) -> Result<(), Bad> {
        self.idle(super::End::Client, id)?;
        self.count_reset()?;
        let Some(place) = self.find(id) else {
            self.client.reset(id, code);
            self.remember(id);
            return Ok(());
        };
        let stream = &mut self.streams[place];
        if stream.at == At::Open && self.link == Link::Open {
            self.server.reset(id, code);
        }
        if let Some(record) = &mut stream.record {
            "client_closed".clone_into(&mut record.error);
        }
        self.reset_client(place, code);
        Ok(())
    }

    /// Nothing that the client says can be read any longer.
    pub(super) fn client_broke(&mut self, code: u32) {
        frame::write_go_away(&mut self.client.out, self.last, code);
        let flood = code == code::ENHANCE_YOUR_CALM;
        unreadable(&self.proxy, &self.who, if flood { Reason::Limit } else { Reason::ParseError });
        self.client_left();
    }

    /// The client has gone, and so has what it asked for.
    pub(super) fn client_left(&mut self) {
        for mut stream in std::mem::take(&mut self.streams) {
            if let Some(record) = &mut stream.record {
                "client_closed".clone_into(&mut record.error);
            }
            self.proxy.finish_stream(&mut stream);
        }
        self.over = true;
    }

    /// The head is too large to be read whole.
    fn oversize(&mut self, head: &Head) -> Result<(), Bad> {
        let view = self.proxy.state.view();
        let mut record = self.who.record(&view, "http/2");
        record.judged(&judge::refuse(Reason::Limit));
        let said = Arc::new(judge::Said {
            version: sluice_policy::HttpVersion::Http2,
            method: String::new(),
            path: String::new(),
            query: None,
            host: None,
            headers: Vec::new(),
            protocol: None,
        });
        let stream = self.stream(head, &said, record);
        self.streams.push(Box::new(stream));
        self.refuse(self.streams.len() - 1, &Refusal::HeadTooLarge);
        Ok(())
    }

    /// Answers in the server's place, if the client has no answer yet.
    pub(super) fn refuse(&mut self, place: usize, refusal: &Refusal) {
        let stream = &mut self.streams[place];
        if let Some(record) = &mut stream.record {
            record.grpc_status = stream.grpc.then(|| refusal.grpc_status());
        }
        let told = stream.record.as_ref().is_some_and(|record| record.tells());
        let no_fields = HeaderMap::new();
        let (status, fields, body) = if stream.answered {
            (None, if stream.grpc { refusal.grpc_trailers() } else { no_fields }, None)
        } else {
            let (response, body) = refusal.http2(stream.grpc, stream.to_head, told);
            let (parts, ()) = response.into_parts();
            if let Some(record) = &mut stream.record {
                record.status = u32::from(parts.status.as_u16());
                refusal.error().clone_into(&mut record.error);
            }
            (Some(parts.status), parts.headers, body)
        };
        self.proxy.finish_stream(stream);
        stream.up.forget(&mut self.client);
        stream.down.replace(&mut self.server, body.as_deref().unwrap_or_default());
        stream.at = At::Ours;
        stream.flow = None;
        if status.is_none() && fields.is_empty() {
            // The answer has begun, and no protocol has words for this.
            return self.reset_client(place, code::CANCEL);
        }
        stream.answered = true;
        stream.down.sent = body.is_none();
        let block = message::encode(status, &fields);
        self.client.send_block(stream.id, body.is_none(), &block);
    }

    /// Closes the streams that have lost their permission.
    pub(super) fn revoke(&mut self) {
        let taken = |stream: &Stream| Some((stream.id, stream.flow.as_ref()?.taken()?.clone()));
        let taken: Vec<_> = self.streams.iter().filter_map(|stream| taken(stream)).collect();
        for (id, verdict) in taken {
            if let Some(place) = self.find(id) {
                self.revoke_one(place, &verdict, &Refusal::Denied(Denial::of(&verdict)));
            }
        }
        self.flush();
    }

    fn revoke_one(&mut self, place: usize, verdict: &Verdict, refusal: &Refusal) {
        let stream = &mut self.streams[place];
        let waits = self.pending.as_ref().is_some_and(|pending| pending.head.stream == stream.id);
        let sent = stream.at == At::Open && !waits;
        if sent && self.link == Link::Open {
            self.server.reset(stream.id, code::CANCEL);
        }
        stream.flow = None;
        let Some(mut record) = stream.record.take() else {
            // It has its answer; the rest of the request goes nowhere.
            stream.at = At::Ours;
            return stream.up.forget(&mut self.client);
        };
        record.judged(verdict);
        if !stream.answered {
            record.status = if stream.grpc { 200 } else { u32::from(refusal.status().as_u16()) };
        }
        if stream.grpc {
            record.grpc_status = Some(refusal.grpc_status());
        }
        if sent {
            "revoked".clone_into(&mut record.error);
        }
        (record.bytes_up, record.bytes_down) = (stream.up.count, stream.down.count);
        self.proxy.records.finish(*record);
        self.refuse(place, refusal);
    }
}

/// Why the request does not go on, if it does not; else what of it goes on otherwise.
fn refusal(
    judged: &Judged,
    odd: Option<Refusal>,
    said: &judge::Said,
    rewrite: &mut message::Rewrite,
) -> Option<Refusal> {
    if let Some(odd) = odd.filter(|_| judged.malformed) {
        return Some(odd);
    }
    if judged.is_denied() {
        return Some(Refusal::Denied(Denial::of(&judged.verdict)));
    }
    let path = judged.path.as_ref()?;
    let target = match &said.query {
        Some(query) => format!("{path}?{query}"),
        None => path.clone(),
    };
    if PathAndQuery::try_from(target.as_str()).is_err() {
        return Some(Refusal::Malformed(":path"));
    }
    rewrite.path = Some(target);
    None
}
