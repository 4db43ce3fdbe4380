//! HPACK's tables (RFC 7541 §2.3): the static one, and the one that a sender's blocks build.
//!
//! An entry shares its bytes with every field that refers to it: a reference of one byte must not cost the kilobytes
//! that it stands for.

use crate::limits::H2_TABLE_BYTES;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use std::collections::VecDeque;
use std::sync::LazyLock;

/// What each entry counts beside its name and value (RFC 7541 §4.1).
const ENTRY_OVERHEAD: usize = 32;

/// The pseudo-header fields of RFC 9113 §8.3 and RFC 8441 §4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Pseudo {
    Authority,
    Method,
    Path,
    Protocol,
    Scheme,
    Status,
}

impl Pseudo {
    /// Its name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Authority => ":authority",
            Self::Method => ":method",
            Self::Path => ":path",
            Self::Protocol => ":protocol",
            Self::Scheme => ":scheme",
            Self::Status => ":status",
        }
    }

    /// The first entry of the static table with this name.
    pub(super) const fn index(self) -> Option<u8> {
        match self {
            Self::Authority => Some(1),
            Self::Method => Some(2),
            Self::Path => Some(4),
            Self::Scheme => Some(6),
            Self::Status => Some(8),
            Self::Protocol => None,
        }
    }
}

/// A field's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// An ordinary one, in lower case.
    Field(HeaderName),
    /// A pseudo-header field's.
    Pseudo(Pseudo),
    /// The name or the value is none that HTTP knows: the message is malformed, the table is not.
    Bad,
}

impl Name {
    /// The name, from the wire.
    pub(super) fn new(bytes: &[u8]) -> Self {
        if bytes.first() != Some(&b':') {
            return HeaderName::from_lowercase(bytes).map_or(Self::Bad, Self::Field);
        }
        match bytes {
            b":authority" => Self::Pseudo(Pseudo::Authority),
            b":method" => Self::Pseudo(Pseudo::Method),
            b":path" => Self::Pseudo(Pseudo::Path),
            b":protocol" => Self::Pseudo(Pseudo::Protocol),
            b":scheme" => Self::Pseudo(Pseudo::Scheme),
            b":status" => Self::Pseudo(Pseudo::Status),
            _ => Self::Bad,
        }
    }

    /// Its text; empty of what is no name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Field(name) => name.as_str(),
            Self::Pseudo(pseudo) => pseudo.as_str(),
            Self::Bad => "",
        }
    }
}

/// One entry of a table, or one field of a block.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: Name,
    pub(super) value: HeaderValue,
    /// What it counts against a table or a list of fields.
    pub(super) size: usize,
    /// How long the name is: [`Name::Bad`] does not know.
    pub(super) name_length: usize,
}

impl Entry {
    pub(super) fn new(name: Name, name_length: usize, value: Bytes) -> Self {
        let size = name_length + value.len() + ENTRY_OVERHEAD;
        match HeaderValue::from_maybe_shared(value) {
            Ok(value) => Self { name, value, size, name_length },
            Err(_) => Self { name: Name::Bad, value: HeaderValue::from_static(""), size, name_length },
        }
    }
}

/// How many entries the static table has.
pub(super) const STATIC_ENTRIES: usize = 61;

/// RFC 7541 appendix A.
#[rustfmt::skip]
const STATIC_TABLE: [(&str, &str); STATIC_ENTRIES] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""),
    ("cache-control", ""), ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""),
    ("content-length", ""), ("content-location", ""), ("content-range", ""), ("content-type", ""),
    ("cookie", ""), ("date", ""), ("etag", ""), ("expect", ""), ("expires", ""), ("from", ""), ("host", ""),
    ("if-match", ""), ("if-modified-since", ""), ("if-none-match", ""), ("if-range", ""),
    ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""), ("location", ""), ("max-forwards", ""),
    ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""), ("referer", ""), ("refresh", ""),
    ("retry-after", ""), ("server", ""), ("set-cookie", ""), ("strict-transport-security", ""),
    ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""), ("www-authenticate", ""),
];

static STATIC: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let entry = |(name, value): &(&'static str, &'static str)| {
        Entry::new(Name::new(name.as_bytes()), name.len(), Bytes::from_static(value.as_bytes()))
    };
    STATIC_TABLE.iter().map(entry).collect()
});

/// A sender's table.
#[derive(Debug)]
pub(super) struct Table {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    most: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, most: H2_TABLE_BYTES }
    }
}

impl Table {
    /// The entry with this index, counted from 1 (RFC 7541 §2.3.3).
    pub(super) fn get(&self, index: usize) -> Option<&Entry> {
        let index = index.checked_sub(1)?;
        match index.checked_sub(STATIC_ENTRIES) {
            None => STATIC.get(index),
            Some(index) => self.entries.get(index),
        }
    }

    /// Adds an entry, and forgets those that it leaves no room for; one that is larger than the table empties it.
    pub(super) fn insert(&mut self, entry: Entry) {
        self.shrink(self.most.saturating_sub(entry.size));
        if entry.size <= self.most {
            self.size += entry.size;
            self.entries.push_front(entry);
        }
    }

    /// Changes how much it may hold.
    pub(super) fn resize(&mut self, most: usize) {
        self.most = most;
        self.shrink(most);
    }

    fn shrink(&mut self, most: usize) {
        while self.size > most
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size;
        }
    }

    #[cfg(test)]
    pub(super) fn contents(&self) -> (usize, Vec<(String, String)>) {
        let text = |entry: &Entry| {
            (entry.name.as_str().to_owned(), String::from_utf8(entry.value.as_bytes().to_vec()).unwrap())
        };
        (self.size, self.entries.iter().map(text).collect())
    }
}
