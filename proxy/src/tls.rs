//! Reads the server name from a TLS ClientHello, and nothing else of it.
//!
//! Pure: takes bytes, gives an opinion. Whatever two servers could read differently is unreadable; a hello that asks
//! for encryption of its own names nobody. Knows nothing of policies, sockets or keys.

use crate::limits::{CLIENT_HELLO_BYTES, CLIENT_HELLO_RECORDS, SERVER_NAME_BYTES};

/// `ContentType.handshake` (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
/// The longest plaintext of one record (RFC 8446 §5.1).
const RECORD_BYTES: usize = 1 << 14;
/// `HandshakeType.client_hello` (RFC 8446 §4).
const CLIENT_HELLO: u8 = 1;
/// `server_name` (RFC 6066 §3).
const SERVER_NAME: u16 = 0;
/// `encrypted_client_hello` (RFC 9849 §5), and the draft before it: the name beside it is not who is meant. A client
/// that only pretends to encrypt cannot be told apart, by design.
const ENCRYPTED: [u16; 2] = [0xfe0d, 0xffce];

/// What the first bytes of a TLS connection say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// More is needed to tell.
    More,
    /// A whole ClientHello; its server name in lower case and without a trailing dot, if it has one in the clear.
    Name(Option<String>),
    /// No ClientHello that every server reads alike.
    Unreadable,
}

/// Whether these may be the first bytes of a TLS connection: a handshake record of TLS 1.0 or later.
#[must_use]
pub fn begins(bytes: &[u8]) -> Option<bool> {
    match bytes {
        [] | [HANDSHAKE] => None,
        [HANDSHAKE, 3, ..] => Some(true),
        _ => Some(false),
    }
}

/// Reads the ClientHello at the beginning of a connection, over as many records as it was cut into.
#[must_use]
pub fn client_hello(bytes: &[u8]) -> Hello {
    let mut message = Vec::new();
    let mut rest = bytes;
    for _ in 0..CLIENT_HELLO_RECORDS {
        let Some((head, after)) = rest.split_first_chunk::<5>() else {
            return if begins(rest) == Some(false) { Hello::Unreadable } else { Hello::More };
        };
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        // An empty handshake record is forbidden (RFC 8446 §5.1).
        if head[0] != HANDSHAKE || head[1] != 3 || length == 0 || length > RECORD_BYTES {
            return Hello::Unreadable;
        }
        // What has come of this record is looked at before the rest of it: a wrong type is known at once.
        let body = &after[..after.len().min(length)];
        message.extend_from_slice(body);
        match whole(&message) {
            Err(()) => return Hello::Unreadable,
            Ok(Some(hello)) => return read(hello).map_or(Hello::Unreadable, Hello::Name),
            Ok(None) if body.len() < length => return Hello::More,
            Ok(None) => rest = &after[length..],
        }
    }
    Hello::Unreadable
}

/// The body of the ClientHello, once all of it is there. `Err`: it is none, or too long, or more comes after it.
fn whole(message: &[u8]) -> Result<Option<&[u8]>, ()> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(());
    }
    let Some((head, body)) = message.split_first_chunk::<4>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes([0, head[1], head[2], head[3]])).map_err(|_| ())?;
    match body.len() {
        _ if length > CLIENT_HELLO_BYTES => Err(()),
        have if have < length => Ok(None),
        have if have == length => Ok(Some(body)),
        // A client has nothing to say before its server has answered.
        _ => Err(()),
    }
}

/// Takes lengths and what they span off the front of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|two| u16::from_be_bytes([two[0], two[1]]))
    }

    /// A vector with a length of one byte.
    fn short(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }

    /// A vector with a length of two bytes.
    fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    fn ends(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// RFC 8446 §4.1.2. `None`: it is not well-formed to the last byte.
fn read(hello: &[u8]) -> Option<Option<String>> {
    let mut reader = Reader(hello);
    let version = reader.take(2)?;
    let _random = reader.take(32)?;
    let session = reader.short()?;
    let suites = reader.long()?;
    let compressions = reader.short()?;
    if version[0] != 3 || session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 {
        return None;
    }
    if compressions.is_empty() {
        return None;
    }
    if reader.0.is_empty() {
        // TLS 1.2 and earlier do without extensions (RFC 5246 §7.4.1.2).
        return Some(None);
    }
    let mut extensions = Reader(reader.long()?);
    reader.ends()?;
    let (mut seen, mut name, mut encrypted) = (Vec::new(), None, false);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let body = extensions.long()?;
        // No two of one type (RFC 8446 §4.2). At most one extension for every four bytes: the list is bounded.
        seen.push(kind);
        match kind {
            SERVER_NAME => name = Some(host_name(body)?),
            kind if ENCRYPTED.contains(&kind) => encrypted = true,
            _ => {}
        }
    }
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    if seen.len() != count {
        return None;
    }
    Some(name.filter(|_| !encrypted))
}

/// RFC 6066 §3: a list of one name, of the one type there is.
fn host_name(extension: &[u8]) -> Option<String> {
    let mut reader = Reader(extension);
    let mut list = Reader(reader.long()?);
    reader.ends()?;
    let kind = list.u8()?;
    let name = list.long()?;
    list.ends()?;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if kind != 0 || name.is_empty() || name.len() > SERVER_NAME_BYTES || !name.iter().all(plain) {
        return None;
    }
    let text = std::str::from_utf8(name).ok()?.to_ascii_lowercase();
    let text = text.strip_suffix('.').unwrap_or(&text);
    let sound = !text.is_empty() && text.split('.').all(|label| !label.is_empty() && label.len() <= 63);
    sound.then(|| text.to_owned())
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
