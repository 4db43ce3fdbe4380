//! What lenient decoders make of bytes: overlong UTF-8, `%u002f`, and characters that only look like ASCII.
//!
//! A decoder that checks nothing reads `%c0%ae` as a dot (Unicode 15 §3.9 forbids it: CVE-2000-0884 and every list of
//! path traversals since), one that maps to a code page or normalises to NFKC reads `／` (U+FF0F) as a slash. Knows
//! nothing of segments.

/// Bytes as a lenient decoder reads them, look-alikes of ASCII as what they look like. `None`: as anybody does.
pub(super) fn text(bytes: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(bytes.len());
    let mut differs = false;
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        let (c, len) = match first {
            0..=0x7f => (char::from(first), 1),
            _ => character(rest),
        };
        let folded = look_alike(c);
        differs |= folded != Some(c) || !is_shortest(c, len);
        match folded {
            Some(folded) => out.push(folded),
            None => out.push_str(".."),
        }
        rest = tail.get(len - 1..).unwrap_or_default();
    }
    differs.then_some(out)
}

/// Whether some decoder finds a character in these bytes that parts a path, and which is not there as such.
pub(super) fn hides_structure(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        let mut len = 1;
        if !first.is_ascii() {
            let (c, read) = character(rest);
            if look_alike(c)
                .is_none_or(|c| matches!(c, '/' | '\\' | '.' | '%' | ';' | '?' | '#') || c.is_control())
            {
                return true;
            }
            len = read;
        }
        rest = tail.get(len - 1..).unwrap_or_default();
    }
    false
}

/// Whether a character has this many bytes in UTF-8.
const fn is_shortest(c: char, len: usize) -> bool {
    c.len_utf8() == len
}

/// The first character, and its bytes: by its lead byte alone, as decoders do that check nothing.
fn character(bytes: &[u8]) -> (char, usize) {
    let (len, bits) = match bytes.first() {
        Some(0xc0..=0xdf) => (2, 0x1f),
        Some(0xe0..=0xef) => (3, 0x0f),
        Some(0xf0..=0xf7) => (4, 0x07),
        Some(0xf8..=0xfb) => (5, 0x03),
        Some(0xfc..=0xfd) => (6, 0x01),
        _ => return (char::REPLACEMENT_CHARACTER, 1),
    };
    let Some((first, tail)) = bytes.get(..len).and_then(<[u8]>::split_first) else {
        return (char::REPLACEMENT_CHARACTER, 1);
    };
    let code = tail.iter().fold(u32::from(first & bits), |code, byte| code << 6 | u32::from(byte & 0x3f));
    let sound = tail.iter().all(|byte| byte & 0xc0 == 0x80);
    match char::from_u32(code) {
        // What is no continuation is masked into one by some; that matters only where ASCII comes of it.
        Some(c) if sound || c.is_ascii() => (c, len),
        _ => (char::REPLACEMENT_CHARACTER, 1),
    }
}

/// The ASCII that a character is taken for: full-width and small forms (NFKC), Windows' best fit, and letters whose
/// other case is ASCII. `None`: two dots.
fn look_alike(c: char) -> Option<char> {
    Some(match c {
        '\u{ff01}'..='\u{ff5e}' => {
            // The block is ASCII from `!` to `~`, in order.
            u8::try_from(u32::from(c) - 0xff01 + 0x21).map_or(c, char::from)
        }
        '\u{2044}' | '\u{2215}' | '\u{29f8}' => '/',
        '\u{2216}' | '\u{29f5}' | '\u{29f9}' | '\u{fe68}' => '\\',
        '\u{2024}' | '\u{fe52}' => '.',
        '\u{2025}' | '\u{2026}' => return None,
        '\u{fe6a}' => '%',
        '\u{37e}' | '\u{fe54}' => ';',
        '\u{fe56}' => '?',
        '\u{fe5f}' => '#',
        '\u{130}' | '\u{131}' => 'i',
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other,
    })
}

/// `%u002f` as the character that it stands for, as IIS and old scripts have it; other text as it is.
pub(super) fn without_percent_u(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("%u").or_else(|| rest.find("%U")) {
        let (before, escape) = rest.split_at(at);
        let code = escape.get(2..6).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let (c, len) = code.and_then(char::from_u32).map_or(('%', 1), |c| (c, 6));
        out.push_str(before);
        out.push(c);
        rest = &escape[len..];
    }
    if out.is_empty() && rest.len() == text.len() {
        return None;
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlong_forms_and_look_alikes_are_ascii_to_some() {
        for (bytes, read) in [
            (&b"\xc0\xae\xc0\xae"[..], ".."),
            (b"\xc0\xaf", "/"),
            (b"\xc1\x9c", "\\"),
            (b"\xe0\x80\xaf", "/"),
            (b"\xf0\x80\x80\xae", "."),
            (b"\xf8\x80\x80\x80\xae", "."),
            (b"\xfc\x80\x80\x80\x80\xae", "."),
            (b"\xc0\x2e", "."),
            (b"\xc0\x6e", "."),
            (b"\xe0\x40\xae", "."),
            ("／．＼".as_bytes(), "/.\\"),
            ("ａｄｍｉｎ".as_bytes(), "admin"),
            ("‥∕".as_bytes(), "../"),
            (b"\xc1\xa1dmin", "admin"),
        ] {
            assert_eq!(text(bytes).as_deref(), Some(read), "{bytes:x?}");
        }
        for plain in ["", "/admin", "/café", "/日本", "/\u{10ffff}"] {
            assert_eq!(text(plain.as_bytes()), None, "{plain}");
        }
    }

    #[test]
    fn what_parts_a_path_is_found_and_letters_are_not() {
        for bytes in
            [&b"\xc0\xae"[..], b"x\xc0\xafy", b"\xe0\x80\xaf", "／".as_bytes(), "…".as_bytes(), b"\xc0\x80"]
        {
            assert!(hides_structure(bytes), "{bytes:x?}");
        }
        for bytes in [&b"/a.b"[..], "/café".as_bytes(), "ａ".as_bytes(), b"caf\xe9", b"\xfc", b"\xc0"] {
            assert!(!hides_structure(bytes), "{bytes:x?}");
        }
    }

    #[test]
    fn percent_u_is_a_character() {
        assert_eq!(without_percent_u("/%u002e%U002E/admin").as_deref(), Some("/../admin"));
        assert_eq!(without_percent_u("/%uff0fa%u1").as_deref(), Some("/／a%u1"));
        assert_eq!(without_percent_u("/admin"), None);
    }
}
