//! One end of the relay: what it said of itself, what it may still send, and what waits to be sent to it.
//!
//! Knows nothing of the other end or of streams' contents.

use super::flood::Floods;
use crate::http2::frame::{
    self, Bad, HEAD_BYTES, Head, MAX_WINDOW, code, kind, setting, write_block, write_number,
};
use crate::http2::hpack::{Decoder, FLUSH};
use crate::limits::{
    H2_BLOCK_BYTES, H2_BLOCK_FRAMES, H2_CONNECTION_WINDOW, H2_OUT_BYTES, H2_TABLE_BYTES, H2_UPDATES_PER_DATA,
};
use tokio::time::Instant;

/// The windows that every connection and every stream begin with (RFC 9113 §6.9.2).
const FIRST_WINDOW: u32 = 65_535;

/// A header block that has not come whole.
#[derive(Debug)]
pub(super) struct Assembly {
    /// Of its first frame.
    pub(super) head: Head,
    pub(super) block: Vec<u8>,
    frames: u32,
    pub(super) since: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Side {
    /// What is to be written to it.
    pub(super) out: Vec<u8>,
    /// How much of that has been written.
    pub(super) written: usize,
    /// Since when it has taken nothing of that.
    pub(super) stalled: Option<Instant>,
    /// What was read of it and is no whole frame.
    pub(super) rest: Vec<u8>,
    pub(super) decoder: Decoder,
    /// Its decoder's table is the one that the other end's blocks build: they go on as they are.
    pub(super) mirror: bool,
    /// The next block of ours has to empty its decoder's table.
    flush: bool,
    /// What it takes, on all streams together.
    pub(super) room: i64,
    /// What it may still send, on all streams together.
    pub(super) granted: i64,
    /// What was read of it and waits for the other end's windows.
    pub(super) kept: usize,
    /// What has gone on and was not granted again.
    owed: u32,
    /// What it takes on a new stream.
    pub(super) initial: i64,
    /// How many streams it takes.
    pub(super) streams: u32,
    /// It takes extended CONNECT (RFC 8441 §3).
    pub(super) connects: bool,
    /// It has said its settings.
    pub(super) heard: bool,
    pub(super) assembly: Option<Assembly>,
    pub(super) floods: Floods,
}

impl Side {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            out: Vec::new(),
            written: 0,
            stalled: None,
            rest: Vec::new(),
            decoder: Decoder::default(),
            mirror: true,
            flush: false,
            room: i64::from(FIRST_WINDOW),
            granted: i64::from(H2_CONNECTION_WINDOW),
            kept: 0,
            owed: 0,
            initial: i64::from(FIRST_WINDOW),
            streams: u32::MAX,
            connects: false,
            heard: false,
            assembly: None,
            floods: Floods::new(now),
        }
    }

    /// Tells it our settings, and our window for all streams.
    pub(super) fn greet(&mut self, settings: &[(u16, u32)]) {
        frame::write_settings(&mut self.out, settings);
        write_number(&mut self.out, kind::WINDOW_UPDATE, 0, H2_CONNECTION_WINDOW - FIRST_WINDOW);
    }

    /// What waits to be written.
    pub(super) fn waiting(&self) -> usize {
        self.out.len() - self.written
    }

    /// So much waits that nothing more is read which would add to it.
    pub(super) fn is_full(&self) -> bool {
        self.waiting() >= H2_OUT_BYTES
    }

    /// Its table is not the other end's any more, for good.
    pub(super) fn part(&mut self) {
        if self.mirror {
            self.mirror = false;
            self.flush = true;
        }
    }

    /// Sends a block that needs no table.
    pub(super) fn send_block(&mut self, stream: u32, end: bool, block: &[u8]) {
        if std::mem::take(&mut self.flush) {
            let flushing = [&[FLUSH], block].concat();
            write_block(&mut self.out, stream, end, &flushing);
        } else {
            write_block(&mut self.out, stream, end, block);
        }
    }

    pub(super) fn reset(&mut self, stream: u32, code: u32) {
        write_number(&mut self.out, kind::RST_STREAM, stream, code);
    }

    /// A frame of a body was sent to it: it may answer with windows.
    pub(super) fn sent_data(&mut self) {
        self.floods.control.earn(H2_UPDATES_PER_DATA);
    }

    /// So much of what was kept has gone on, or is forgotten.
    pub(super) fn release(&mut self, length: usize) {
        self.kept = self.kept.saturating_sub(length);
        self.credit(length);
    }

    /// The memory that it costs now, but for its table.
    pub(super) fn held(&self) -> usize {
        let assembly = self.assembly.as_ref().map_or(0, |assembly| assembly.block.len());
        self.out.len() + self.rest.len() + self.kept + assembly
    }

    /// It may send so much again, on all streams together.
    pub(super) fn credit(&mut self, length: usize) {
        self.owed += u32::try_from(length).unwrap_or(u32::MAX);
        if self.owed >= H2_CONNECTION_WINDOW / 4 {
            write_number(&mut self.out, kind::WINDOW_UPDATE, 0, self.owed);
            self.granted += i64::from(self.owed);
            self.owed = 0;
        }
    }

    /// Its window for all streams opens.
    pub(super) fn widen(&mut self, more: u32) -> Result<(), Bad> {
        self.room += i64::from(more);
        if self.room > i64::from(MAX_WINDOW) {
            return Err(Bad::Connection(code::FLOW_CONTROL_ERROR));
        }
        Ok(())
    }

    /// Takes its settings; returns by how much the window of every open stream changed.
    pub(super) fn settings(&mut self, settings: &[(u16, u32)]) -> i64 {
        let before = self.initial;
        for (name, value) in settings {
            match *name {
                // Ours are as large as the smallest that anybody begins with: a smaller one cannot be kept up with.
                setting::HEADER_TABLE_SIZE if (*value as usize) < H2_TABLE_BYTES => self.part(),
                setting::INITIAL_WINDOW_SIZE => self.initial = i64::from(*value),
                setting::MAX_CONCURRENT_STREAMS => self.streams = *value,
                setting::ENABLE_CONNECT_PROTOCOL => self.connects = *value == 1,
                _ => {}
            }
        }
        frame::write_settings_ack(&mut self.out);
        self.heard = true;
        self.initial - before
    }

    /// Keeps the beginning of a block.
    pub(super) fn assemble(&mut self, head: &Head, block: &[u8], now: Instant) {
        self.assembly = Some(Assembly { head: *head, block: block.to_vec(), frames: 1, since: now });
    }

    /// Adds to it; returns it when it is whole.
    pub(super) fn continued(&mut self, payload: &[u8], last: bool) -> Result<Option<Assembly>, Bad> {
        let assembly = self.assembly.as_mut().ok_or(Bad::Connection(code::PROTOCOL_ERROR))?;
        assembly.frames += 1;
        if assembly.frames > H2_BLOCK_FRAMES || assembly.block.len() + payload.len() > H2_BLOCK_BYTES {
            return Err(Bad::Connection(code::ENHANCE_YOUR_CALM));
        }
        assembly.block.extend_from_slice(payload);
        Ok(if last { self.assembly.take() } else { None })
    }

    /// Passes a frame on as it is.
    pub(super) fn pass(&mut self, raw: &[u8]) {
        debug_assert!(raw.len() >= HEAD_BYTES, "a whole frame");
        self.out.extend_from_slice(raw);
    }
}
