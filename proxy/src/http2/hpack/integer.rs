//! HPACK's integers (RFC 7541 §5.1).

use super::Error;

/// Octets after the prefix: 28 bits. The largest integer that anything here needs is a block's length.
const OCTETS: u32 = 4;

/// Reads an integer whose first octet has a prefix of so many bits; moves `at` behind it.
pub(super) fn read(bytes: &[u8], at: &mut usize, prefix: u8) -> Result<usize, Error> {
    let mut next = || {
        let byte = bytes.get(*at).copied().ok_or(Error::Truncated);
        *at += 1;
        byte
    };
    let most = (1usize << prefix) - 1;
    let mut value = usize::from(next()?) & most;
    if value < most {
        return Ok(value);
    }
    for octet in 0..OCTETS {
        let byte = next()?;
        value += usize::from(byte & 0x7f) << (octet * 7);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error::Integer)
}

/// Writes an integer behind the bits of `first` that are above its prefix.
pub(super) fn write(out: &mut Vec<u8>, first: u8, prefix: u8, value: usize) {
    let most = (1usize << prefix) - 1;
    let low = |value: usize| u8::try_from(value & 0xff).unwrap_or_default();
    if value < most {
        out.push(first | low(value));
        return;
    }
    out.push(first | low(most));
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(low(rest & 0x7f) | 0x80);
        rest >>= 7;
    }
    out.push(low(rest));
}
