//! Names of hosts: what `hosts` and `rules.tls.serverNames` are compared with.
//!
//! A host is compared in lower case, without its port and its trailing dot. It is what the client says, not who
//! answers. Knows nothing of sockets or of TLS.

use crate::regex::Regex;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// A name, or the names under one. In lower case, without a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NameMatch {
    /// This name.
    Exact(Arc<str>),
    /// `*.example.com`: any name under `example.com`, however deep, and not itself.
    Under(Arc<str>),
    /// Any name one label under this one.
    Label(Arc<str>),
}

impl NameMatch {
    /// Whether a name, in lower case and without a trailing dot, is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let below =
            |suffix: &str| name.strip_suffix(suffix)?.strip_suffix('.').filter(|head| !head.is_empty());
        match self {
            Self::Exact(exact) => name == &**exact,
            Self::Under(suffix) => below(suffix).is_some(),
            Self::Label(suffix) => below(suffix).is_some_and(|head| !head.contains('.')),
        }
    }
}

impl fmt::Display for NameMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Under(suffix) => write!(f, "*.{suffix}"),
            Self::Label(suffix) => write!(f, "(one label).{suffix}"),
        }
    }
}

/// A condition on the host of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostMatch {
    /// By name.
    Name(NameMatch),
    /// The whole name, as it is compared, matches.
    Regex(Regex),
    /// `Host` or `:authority` as sent, with its port and its case, matches: Cilium's `host`.
    Authority(Regex),
}

impl fmt::Display for HostMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Regex(regex) => write!(f, "RegularExpression {}", regex.source()),
            Self::Authority(regex) => write!(f, "authority RegularExpression {}", regex.source()),
        }
    }
}

impl HostMatch {
    /// Whether an allow takes the host.
    pub(crate) fn allows(&self, sent: &str) -> bool {
        match self {
            Self::Name(name) => host(sent).is_some_and(|host| name.matches(&host)),
            Self::Regex(regex) => host(sent).is_some_and(|host| regex.is_match(host.as_bytes())),
            Self::Authority(regex) => host(sent).is_some() && regex.is_match(sent.as_bytes()),
        }
    }

    /// Whether a deny takes it: a host that is missing or cannot be read is any host.
    pub(crate) fn denies(&self, sent: Option<&str>) -> bool {
        let Some(sent) = sent else { return true };
        let Some(host) = host(sent) else { return true };
        match self {
            Self::Name(name) => name.matches(&host),
            Self::Regex(regex) => regex.is_match(host.as_bytes()),
            Self::Authority(regex) => regex.is_match(sent.as_bytes()) || regex.is_match(host.as_bytes()),
        }
    }
}

/// The host of an authority as it is compared; `None` where two servers could read different hosts.
#[must_use]
pub fn host(authority: &str) -> Option<Cow<'_, str>> {
    let (name, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (inner, after) = rest.split_once(']')?;
            let address = inner.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'));
            if inner.is_empty() || !address {
                return None;
            }
            (&authority[..inner.len() + 2], after)
        }
        None => authority.find(':').map_or((authority, ""), |colon| authority.split_at(colon)),
    };
    let digits = match port.strip_prefix(':') {
        Some(digits) => digits,
        None if port.is_empty() => "",
        None => return None,
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    // RFC 3986 §3.2.2 admits more; every server reads these alike.
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let bracketed = name.starts_with('[');
    if name.is_empty()
        || (!bracketed && !name.bytes().all(plain))
        || name.starts_with('.')
        || name.ends_with('.')
    {
        return None;
    }
    Some(if name.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_compared_in_lower_case_without_port_and_dot() {
        for (sent, read) in [
            ("cart", "cart"),
            ("Cart.Shop.SVC.", "cart.shop.svc"),
            ("cart:8080", "cart"),
            ("cart.:8080", "cart"),
            ("cart:", "cart"),
            ("[2001:DB8::1]:80", "[2001:db8::1]"),
            ("[::1]", "[::1]"),
            ("10.0.0.1:80", "10.0.0.1"),
        ] {
            assert_eq!(host(sent).as_deref(), Some(read), "{sent}");
        }
    }

    #[test]
    fn a_host_that_servers_read_differently_has_no_reading() {
        for sent in [
            "", ".", ":80", "a:b", "a:80:80", "user@a", "a/b", "a b", "a\tb", "a%2eb", "a..", ".a", "[::1",
            "[]", "[::1]x", "[a.b/c]", "é", "a,b", "a?b", "a#b", "a\\b",
        ] {
            assert_eq!(host(sent), None, "{sent}");
        }
    }

    #[test]
    fn a_suffix_is_of_labels_and_not_of_letters() {
        let under = NameMatch::Under("example.com".into());
        assert!(under.matches("a.example.com") && under.matches("a.b.example.com"));
        assert!(
            !under.matches("example.com")
                && !under.matches("badexample.com")
                && !under.matches(".example.com")
        );
        let label = NameMatch::Label("example.com".into());
        assert!(label.matches("a.example.com") && !label.matches("a.b.example.com"));
    }
}
