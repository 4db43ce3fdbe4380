//! The standard `OTEL_*` variables, read once. Pure but for [`Settings::from_env`].

use super::sampler::Sampler;
use std::time::Duration;

/// What the environment asks for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where spans go, by OTLP over gRPC; `None`: nowhere, and nothing is sampled.
    pub endpoint: Option<String>,
    /// Metadata of each export.
    pub headers: Vec<(String, String)>,
    /// Attributes of every resource.
    pub resource: Vec<(String, String)>,
    /// The bound of one export.
    pub timeout: Duration,
    /// How long spans wait for company.
    pub delay: Duration,
    sampler: Sampler,
}

/// The specification's default of `OTEL_EXPORTER_OTLP_TIMEOUT`.
const TIMEOUT: Duration = Duration::from_secs(10);

/// `OTEL_BSP_SCHEDULE_DELAY` where nobody says otherwise: people watch what they just did, so less than the
/// specification's five seconds.
const DELAY: Duration = Duration::from_secs(1);

impl Settings {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// Which variable is wrong, and what would be right.
    pub fn from_env() -> Result<Self, String> {
        Self::read(|name| std::env::var(name).ok())
    }

    /// Reads variables from wherever they are.
    ///
    /// # Errors
    /// Which variable is wrong, and what would be right.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let traces = |suffix: &str| {
            set(&format!("OTEL_EXPORTER_OTLP_TRACES_{suffix}"))
                .or_else(|| set(&format!("OTEL_EXPORTER_OTLP_{suffix}")))
        };
        let off = set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || set("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
        let endpoint = traces("ENDPOINT").filter(|_| !off);
        if let Some(endpoint) = endpoint.as_deref()
            && !endpoint.starts_with("http://")
        {
            return Err(format!(
                "OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}: write http://host:port of an OTLP/gRPC receiver on the \
                 node; TLS to a collector is not built yet"
            ));
        }
        if let Some(protocol) = traces("PROTOCOL")
            && endpoint.is_some()
            && protocol != "grpc"
        {
            return Err(format!("OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: only grpc is built; unset it"));
        }
        let sampler =
            Sampler::parse(set("OTEL_TRACES_SAMPLER").as_deref(), set("OTEL_TRACES_SAMPLER_ARG").as_deref())?;
        let milliseconds = |name: &str, default: Duration| match set(name) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map(Duration::from_millis)
                .map_err(|_| format!("{name}={text}: write a number of milliseconds")),
        };
        let timeout = if set("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT").is_some() {
            milliseconds("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", TIMEOUT)?
        } else {
            milliseconds("OTEL_EXPORTER_OTLP_TIMEOUT", TIMEOUT)?
        };
        Ok(Self {
            sampler: if endpoint.is_some() { sampler } else { Sampler::OFF },
            headers: pairs(&traces("HEADERS").unwrap_or_default())?,
            resource: pairs(&set("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default())?,
            timeout,
            delay: milliseconds("OTEL_BSP_SCHEDULE_DELAY", DELAY)?,
            endpoint,
        })
    }

    /// Which requests get a span.
    #[must_use]
    pub const fn sampler(&self) -> Sampler {
        self.sampler
    }
}

/// `key=value,key=value`, values percent-encoded where they must be.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items
        .map(|item| {
            let (key, value) = item.split_once('=').ok_or_else(|| format!("{item}: write key=value"))?;
            Ok((key.trim().to_owned(), decoded(value.trim())))
        })
        .collect()
}

fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = (byte == b'%')
            .then(|| after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::sampler::Ids;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn reads_the_standard_variables() {
        let nothing = read(&[]).expect("fine");
        assert!(nothing.endpoint.is_none());
        assert_eq!(
            nothing.sampler().span(None, &Ids::default()),
            None,
            "without an endpoint nothing is sampled"
        );
        let some = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:4317"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, x=y"),
            ("OTEL_RESOURCE_ATTRIBUTES", "k8s.cluster.name=c"),
            ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ])
        .expect("fine");
        assert_eq!(some.endpoint.as_deref(), Some("http://b:4317"), "the signal's own comes first");
        assert_eq!(some.headers, [("api-key".into(), "a b".into()), ("x".into(), "y".into())]);
        assert_eq!((some.delay, some.timeout), (Duration::from_millis(20), TIMEOUT));
        assert!(some.sampler().span(None, &Ids::default()).is_some());
        let off = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:1"), ("OTEL_SDK_DISABLED", "true")]);
        assert!(off.expect("fine").endpoint.is_none());
    }

    #[test]
    fn says_what_is_wrong() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://a:4317"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "a:4317"),
            ("OTEL_TRACES_SAMPLER", "x"),
            ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
            ("OTEL_RESOURCE_ATTRIBUTES", "x"),
        ] {
            let error = read(&[(name, value)]).expect_err(value);
            assert!(error.contains(value), "{error}");
        }
    }
}
