//! Which requests get a span: the `OTEL_TRACES_SAMPLER` family, and the ids.
//!
//! Pure but for the ids. Knows nothing of HTTP or of export.

use super::context::{Context, SAMPLED};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// A sampler, as the OpenTelemetry SDK specification names them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    parent_based: bool,
    ratio: f64,
}

/// The span of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The trace and the span.
    pub context: Context,
    /// The caller's span.
    pub parent: Option<[u8; 8]>,
}

impl Sampler {
    /// Records nothing: no endpoint is configured.
    pub const OFF: Self = Self { parent_based: false, ratio: 0.0 };

    /// The sampler with this name and argument; `parentbased_always_on` where none is named.
    ///
    /// # Errors
    /// What is wrong with the name or the argument, and what would be right.
    pub fn parse(name: Option<&str>, argument: Option<&str>) -> Result<Self, String> {
        let ratio = || match argument {
            None | Some("") => Ok(1.0),
            Some(text) => text
                .parse::<f64>()
                .ok()
                .filter(|ratio| (0.0..=1.0).contains(ratio))
                .ok_or_else(|| format!("OTEL_TRACES_SAMPLER_ARG={text}: write a ratio from 0 to 1")),
        };
        let (parent_based, ratio) = match name.unwrap_or_default() {
            "" | "parentbased_always_on" => (true, 1.0),
            "parentbased_always_off" => (true, 0.0),
            "parentbased_traceidratio" => (true, ratio()?),
            "always_on" => (false, 1.0),
            "always_off" => (false, 0.0),
            "traceidratio" => (false, ratio()?),
            other => {
                return Err(format!(
                    "OTEL_TRACES_SAMPLER={other}: write always_on, always_off, traceidratio or one of them with \
                     parentbased_ before it"
                ));
            }
        };
        Ok(Self { parent_based, ratio })
    }

    /// The span of a request with this parent, if one is to be recorded.
    #[must_use]
    pub fn span(&self, parent: Option<Context>, ids: &Ids) -> Option<Span> {
        // Nobody asks for one: most proxies have no collector, and no request needs an id then.
        if parent.is_none() && self.ratio <= 0.0 {
            return None;
        }
        let trace_id = parent.map_or_else(|| ids.trace_id(), |parent| parent.trace_id);
        let take = match parent {
            Some(parent) if self.parent_based => parent.sampled(),
            _ => self.takes(trace_id),
        };
        take.then(|| Span {
            context: Context {
                trace_id,
                span_id: ids.span_id(),
                flags: parent.map_or(0, |parent| parent.flags) | SAMPLED,
            },
            parent: parent.map(|parent| parent.span_id),
        })
    }

    /// The specification's ratio sampler: by the trace's last 56 bits, so that all nodes agree.
    fn takes(&self, trace_id: [u8; 16]) -> bool {
        if self.ratio >= 1.0 {
            return true;
        }
        let mut low = [0; 8];
        low[1..].copy_from_slice(&trace_id[9..]);
        // Exact: both are below 2^56 where it matters, and the bound needs no more than f64 has.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let bound = (self.ratio * (1u64 << 56) as f64) as u64;
        u64::from_be_bytes(low) < bound
    }
}

/// Makes ids nobody can guess: a counter under the keyed hash of the standard library.
#[derive(Debug, Default)]
pub struct Ids {
    key: RandomState,
    next: AtomicU64,
}

impl Ids {
    fn word(&self) -> u64 {
        loop {
            let word = self.key.hash_one(self.next.fetch_add(1, Ordering::Relaxed));
            // All zero is invalid.
            if word != 0 {
                return word;
            }
        }
    }

    fn span_id(&self) -> [u8; 8] {
        self.word().to_be_bytes()
    }

    fn trace_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.word().to_be_bytes());
        id[8..].copy_from_slice(&self.word().to_be_bytes());
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(flags: u8) -> Context {
        Context { trace_id: [7; 16], span_id: [9; 8], flags }
    }

    #[test]
    fn follows_its_parent_or_its_ratio() {
        let ids = Ids::default();
        let default = Sampler::parse(None, None).expect("default");
        assert!(default.span(None, &ids).is_some_and(|span| span.parent.is_none()));
        assert_eq!(default.span(Some(parent(0)), &ids), None, "an unsampled parent has no span");
        let span = default.span(Some(parent(SAMPLED)), &ids).expect("sampled parent");
        assert_eq!((span.parent, span.context.trace_id), (Some([9; 8]), [7; 16]));
        assert_ne!(span.context.span_id, [9; 8]);
        let always = Sampler::parse(Some("always_on"), None).expect("always_on");
        assert!(always.span(Some(parent(0)), &ids).is_some());
        let off = Sampler::parse(Some("parentbased_always_off"), None).expect("off");
        assert_eq!(off.span(None, &ids), None);
        assert!(off.span(Some(parent(SAMPLED)), &ids).is_some());
        assert_eq!(Sampler::OFF.span(Some(parent(SAMPLED)), &ids), None);
    }

    #[test]
    fn a_ratio_takes_about_its_share() {
        let ids = Ids::default();
        let half = Sampler::parse(Some("traceidratio"), Some("0.5")).expect("ratio");
        let taken = (0..10_000).filter(|_| half.span(None, &ids).is_some()).count();
        assert!((4_500..5_500).contains(&taken), "{taken}");
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert!(Sampler::parse(Some("sometimes"), None).is_err());
        assert!(Sampler::parse(Some("traceidratio"), Some("2")).is_err());
    }
}
