//! Keys: the hashes that rules are filed under and requests are looked up by.
//!
//! A key is 64 bits of a seeded hash. Where two things have one key their lists are one list: whoever looks gets a
//! rule too many and never one too few, and the rule's own test decides.

use crate::port::Protocol;
use std::hash::{BuildHasher, Hasher, RandomState};

/// Slashes of a path that are looked at. A `PathPrefix` of more segments is filed under its first ones: what a
/// request costs does not grow with the slashes that it has.
pub(super) const MAX_DEPTH: usize = 16;

/// Labels of a host name that are looked at, from its end: names have at most 127 (RFC 1035 §2.3.4), policies a few.
pub(super) const MAX_LABELS: usize = 16;

/// What something is filed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key(u64);

/// What a key is of, so that a path is no host.
#[derive(Clone, Copy)]
enum Kind {
    Group = 1,
    Port,
    Exact,
    Prefix,
    Name,
    Suffix,
}

impl Key {
    fn of(kind: Kind, hash: u64) -> Self {
        // Any odd number does: kinds must not undo each other.
        Self(hash ^ (kind as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// The seed of one side's keys.
#[derive(Debug, Default)]
pub(super) struct Seed(RandomState);

impl Seed {
    /// Peers of a group.
    pub(super) fn group(&self, group: u32) -> Key {
        Key::of(Kind::Group, self.0.hash_one(group))
    }

    /// One port of a protocol.
    pub(super) fn port(&self, protocol: Protocol, port: u16) -> Key {
        Key::of(Kind::Port, self.0.hash_one((protocol as u8, port)))
    }

    /// One port, whatever the protocol.
    pub(super) fn any_port(&self, port: u16) -> Key {
        Key::of(Kind::Port, self.0.hash_one((u8::MAX, port)))
    }

    /// The keys of a path: as a whole, and up to each of its slashes.
    pub(super) fn path(&self, path: &[u8], case: Case) -> PathKeys {
        let mut hasher = self.0.build_hasher();
        let mut keys = PathKeys { exact: Key(0), prefixes: [Key(0); MAX_DEPTH], len: 0 };
        let mut from = 0;
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in slashes.chain([path.len()]).take(MAX_DEPTH) {
            case.write(&path[from..end], &mut hasher);
            keys.prefixes[keys.len] = Key::of(Kind::Prefix, hasher.finish());
            keys.len += 1;
            from = end;
        }
        case.write(&path[from..], &mut hasher);
        keys.exact = Key::of(Kind::Exact, hasher.finish());
        keys
    }

    /// A whole name of a host.
    pub(super) fn name(&self, name: &str) -> Key {
        Key::of(Kind::Name, self.0.hash_one(name))
    }

    /// The names under this one.
    pub(super) fn under(&self, name: &str) -> Key {
        let labels = name.bytes().rev().enumerate().filter(|(_, byte)| *byte == b'.');
        let cut = labels.map(|(at, _)| at).nth(MAX_LABELS - 1);
        Key::of(Kind::Suffix, self.0.hash_one(cut.map_or(name, |at| &name[name.len() - at..])))
    }

    /// The keys of a name: its own, and those that it is under.
    pub(super) fn names(&self, name: &str) -> NameKeys {
        let mut keys = NameKeys { keys: [self.name(name); MAX_LABELS + 1], len: 1 };
        let dots = name.bytes().enumerate().rev().filter(|(_, byte)| *byte == b'.').map(|(at, _)| at);
        for at in dots.take(MAX_LABELS) {
            keys.keys[keys.len] = Key::of(Kind::Suffix, self.0.hash_one(&name[at + 1..]));
            keys.len += 1;
        }
        keys
    }
}

/// The keys of one name of a host.
#[derive(Clone, Copy, Debug)]
pub(super) struct NameKeys {
    keys: [Key; MAX_LABELS + 1],
    len: usize,
}

impl NameKeys {
    pub(super) fn all(&self) -> &[Key] {
        &self.keys[..self.len]
    }
}

/// Whether letters are told apart by their case: allows do, denies do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    Told,
    Folded,
}

impl Case {
    /// Hashes bytes; in small pieces either way, so that both hash alike what has no upper case.
    fn write(self, bytes: &[u8], hasher: &mut impl Hasher) {
        let mut folded = [0; 64];
        for piece in bytes.chunks(folded.len()) {
            match self {
                Self::Told => hasher.write(piece),
                Self::Folded => {
                    let folded = &mut folded[..piece.len()];
                    folded.copy_from_slice(piece);
                    folded.make_ascii_lowercase();
                    hasher.write(folded);
                }
            }
        }
    }
}

/// The keys of one path.
#[derive(Clone, Copy, Debug)]
pub(super) struct PathKeys {
    /// As a whole.
    pub(super) exact: Key,
    prefixes: [Key; MAX_DEPTH],
    len: usize,
}

impl PathKeys {
    /// Up to each slash, and with its end, as far as there are not too many.
    pub(super) fn prefixes(&self) -> &[Key] {
        &self.prefixes[..self.len]
    }

    /// What the path and everything below it has: the last of its prefixes.
    pub(super) fn prefix(&self) -> Key {
        self.prefixes().last().copied().unwrap_or(self.exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_the_key_of_each_of_its_prefixes() {
        let seed = Seed::default();
        let prefix = |path: &str| seed.path(path.as_bytes(), Case::Told).prefix();
        for (path, prefixes) in [
            ("/a/b", vec!["", "/a", "/a/b"]),
            ("/a/", vec!["", "/a", "/a/"]),
            ("/", vec!["", "/"]),
            ("", vec![""]),
            ("*", vec!["*"]),
            ("a/b", vec!["a", "a/b"]),
            ("//a", vec!["", "/", "//a"]),
        ] {
            let expected: Vec<Key> = prefixes.into_iter().map(prefix).collect();
            assert_eq!(seed.path(path.as_bytes(), Case::Told).prefixes(), expected, "{path}");
        }
        let exact = |path: &[u8], case| seed.path(path, case).exact;
        assert_ne!(exact(b"/a", Case::Told), prefix("/a"));
        assert_ne!(exact(b"/a/b", Case::Told), exact(b"/ab", Case::Told));
        assert_ne!(exact(b"/A", Case::Told), exact(b"/a", Case::Told));
        let long = "/aB".repeat(100);
        for path in ["/Admin/X", "/", &long] {
            let lower = path.to_ascii_lowercase();
            assert_eq!(exact(path.as_bytes(), Case::Folded), exact(lower.as_bytes(), Case::Told), "{path}");
        }
    }

    #[test]
    fn what_is_deep_is_filed_under_its_first_segments() {
        let seed = Seed::default();
        let deep = "/x".repeat(MAX_DEPTH + 5);
        let deeper = format!("{deep}/y/z");
        let [deep, deeper] = [&deep, &deeper].map(|path| seed.path(path.as_bytes(), Case::Told));
        assert!(deeper.prefixes().contains(&deep.prefix()));
        assert_ne!(deep.exact, deeper.exact);
        let name = format!("{}com", "a.".repeat(MAX_LABELS + 5));
        let below = format!("b.c.{name}");
        assert!(seed.names(&below).all().contains(&seed.under(&name)));
        let keys = seed.names("x.example.com");
        assert!(keys.all().contains(&seed.under("example.com")));
        assert!(keys.all().contains(&seed.name("x.example.com")));
        assert!(!keys.all().contains(&seed.under("x.example.com")));
    }
}
