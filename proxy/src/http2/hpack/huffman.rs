//! HPACK's Huffman code (RFC 7541 appendix B), read strictly.
//!
//! The code is canonical: among codes of one length they rise with the symbol, and longer ones follow shorter ones. So
//! the lengths are all that has to be written down.

use super::Error;
use std::sync::LazyLock;

/// The end of a string: never written, and an error where it is read.
const EOS: usize = 256;

/// The length of each symbol's code, in bits.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// The longest code.
const LONGEST: u32 = 30;

/// Codes up to this length are found by one look: all of those that text is made of.
const SHORT: u32 = 9;

/// The code, turned round.
struct Code {
    /// By the next [`SHORT`] bits: the symbol and its length; length 0 where the code is longer.
    short: [(u8, u8); 1 << SHORT],
    /// By length: where the codes of that length start, from the top of 32 bits, and where their symbols do.
    first: [(u32, usize); LONGEST as usize + 2],
    /// Symbols by code.
    symbols: [u16; 257],
}

static CODE: LazyLock<Box<Code>> = LazyLock::new(|| {
    let mut code = Box::new(Code {
        short: [(0, 0); 1 << SHORT],
        first: [(u32::MAX, 0); LONGEST as usize + 2],
        symbols: [0; 257],
    });
    let (mut next, mut place) = (0u64, 0);
    for length in 1..=LONGEST {
        let step = 1u64 << (32 - length);
        code.first[length as usize] = (u32::try_from(next).unwrap_or(u32::MAX), place);
        for symbol in (0..=EOS).filter(|symbol| u32::from(LENGTHS[*symbol]) == length) {
            code.symbols[place] = u16::try_from(symbol).unwrap_or_default();
            if length <= SHORT {
                let from = usize::try_from(next >> (32 - SHORT)).unwrap_or_default();
                let entry = (u8::try_from(symbol).unwrap_or_default(), LENGTHS[symbol]);
                code.short[from..from + (1 << (SHORT - length))].fill(entry);
            }
            place += 1;
            next += step;
        }
    }
    code
});

/// Appends what the bytes stand for.
pub(super) fn decode(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let code = &**CODE;
    // Bits that were read and not used, from the top.
    let (mut bits, mut count) = (0u64, 0u32);
    let mut rest = bytes.iter();
    loop {
        while count <= 56
            && let Some(byte) = rest.next()
        {
            bits |= u64::from(*byte) << (56 - count);
            count += 8;
        }
        if count < 8 && is_padding(bits, count) {
            return Ok(());
        }
        let top = u32::try_from(bits >> 32).unwrap_or_default();
        let (symbol, length) = match code.short[(top >> (32 - SHORT)) as usize] {
            (_, 0) => long(code, top)?,
            (symbol, length) => (symbol, u32::from(length)),
        };
        if length > count {
            return Err(Error::Huffman);
        }
        out.push(symbol);
        bits <<= length;
        count -= length;
    }
}

/// The rest of the last octet: fewer than eight bits, all of them ones.
fn is_padding(bits: u64, count: u32) -> bool {
    count == 0 || bits >> (64 - count) == (1 << count) - 1
}

fn long(code: &Code, top: u32) -> Result<(u8, u32), Error> {
    for length in SHORT + 1..=LONGEST {
        let (first, place) = code.first[length as usize];
        let (next, after) = code.first[length as usize + 1];
        // The last length has no next one, and every code there is.
        let last = length == LONGEST;
        if (last || top < next) && top >= first {
            let offset = ((top - first) >> (32 - length)) as usize;
            let symbol = code.symbols.get(place + offset).filter(|_| last || place + offset < after);
            return match symbol.map(|symbol| u8::try_from(*symbol)) {
                Some(Ok(symbol)) => Ok((symbol, length)),
                // EOS.
                _ => Err(Error::Huffman),
            };
        }
    }
    Err(Error::Huffman)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the encoder of a client would: the code is the one that is decoded, which the RFC's examples hold to its word.
    fn encode(text: &[u8]) -> Vec<u8> {
        let mut codes = [(0u32, 0u8); 257];
        let mut next = 0u64;
        for length in 1..=30u8 {
            for symbol in (0..257).filter(|symbol| LENGTHS[*symbol] == length) {
                codes[symbol] = (u32::try_from(next >> (32 - length)).unwrap(), length);
                next += 1u64 << (32 - length);
            }
        }
        assert_eq!(next, 1 << 32, "the code is complete");
        let mut bits = String::new();
        for byte in text {
            let (code, length) = codes[usize::from(*byte)];
            bits.push_str(&format!("{code:0width$b}", width = usize::from(length)));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        (0..bits.len() / 8).map(|at| u8::from_str_radix(&bits[at * 8..at * 8 + 8], 2).unwrap()).collect()
    }

    fn decoded(bytes: &[u8]) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        decode(bytes, &mut out).map(|()| out)
    }

    #[test]
    fn every_symbol_and_every_length_of_padding() {
        for first in 0..=255u8 {
            for second in [0, b'0', b'a', b'X', b'~', 0xff, 10, 22] {
                let text = [first, second, first, b'e'];
                for length in 1..=4 {
                    assert_eq!(decoded(&encode(&text[..length])), Ok(text[..length].to_vec()));
                }
            }
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decoded(&encode(&all)), Ok(all));
    }

    #[test]
    fn strict_about_the_end() {
        // 'a' is 00011: three ones pad it.
        assert_eq!(decoded(&[0b0001_1111]), Ok(b"a".to_vec()));
        for (bytes, why) in [
            (&[0b0001_1110][..], "padding of zeros"),
            (&[0b0001_1011], "padding of zeros"),
            (&[0b0001_1111, 0xff], "padding of eleven ones"),
            (&[0xff], "eight ones"),
            (&[0xff, 0xff], "sixteen ones"),
            (&[0xff, 0xff, 0xff, 0xff], "EOS"),
            (&[0xff, 0xff, 0xff, 0xfc], "EOS, then zeros"),
            (&[0xff, 0xff], "a long code that ends"),
        ] {
            assert_eq!(decoded(bytes), Err(Error::Huffman), "{why}");
        }
        assert_eq!(decoded(&[]), Ok(Vec::new()));
    }
}
