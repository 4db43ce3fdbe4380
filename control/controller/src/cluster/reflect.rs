//! One list and the watch after it, again and again: what an API server has of one resource, as events.
//!
//! A list is asked of a quorum, in pages, and the watch goes on from the version of its first page. It goes on where
//! it was after a connection that broke, and begins again with a list where the API server says that events are lost
//! (410 Gone) or refuses to go on. kube's own watcher is not taken because it tells neither the version of its lists
//! nor that a watch works again. Knows nothing of what is done with it. Called by the watches of kinds and of
//! definitions.

use crate::cluster::store::Event;
use futures_util::TryStreamExt as _;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, WatchEvent, WatchParams};
use serde_json::Value;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Objects of one page of a list.
const PAGE: u32 = 500;
/// A watch is asked for anew this often: a connection that died without a word is noticed by then.
const WATCH: Duration = Duration::from_secs(60);
/// What the API server may take longer to end a watch than it was asked to.
const GRACE: Duration = Duration::from_secs(5);
/// A page that is not there by then is asked for again.
const LIST: Duration = Duration::from_secs(60);
/// The first wait after a failure, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A watch that ended so soon, and told nothing, is taken for a failure: else it would be asked for without a pause.
const TOO_SOON: Duration = Duration::from_secs(1);
/// Answers of the API server itself that make a watch no better, one after the other, until it begins again with a
/// list: the version that it would go on from may be one that the server will never have (its data was restored from
/// a backup).
const REFUSALS: u32 = 4;

/// What is told of a resource.
pub(super) enum Told {
    /// The API server answers.
    Works,
    /// It does not, or not as it should: why.
    Fails(String),
    /// What it says.
    Event(Event),
}

/// Follows a resource. Never ends by itself.
pub(super) async fn follow(
    api: Api<DynamicObject>,
    resource: &ApiResource,
    fields: Option<String>,
    tell: impl FnMut(Told),
) {
    let mut reflector = Reflector { api, resource, fields, tell, patience: Patience::default() };
    let mut version = None;
    loop {
        version = match version.take() {
            None => match reflector.list().await {
                Ok(version) => Some(version),
                Err(trouble) => reflector.fail("cannot be listed", trouble, None).await,
            },
            Some(version) => reflector.watch(version).await,
        }
    }
}

/// Why something did not work.
enum Trouble {
    /// The API server said no, with this status code.
    Refused(u16, String),
    /// It did not answer, or not in a form that can be read.
    Away(String),
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        if let kube::Error::Api(status) = &error {
            return Self::Refused(status.code, status.message.clone());
        }
        let mut text = error.to_string();
        // What hyper says is behind what kube says.
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            let more = inner.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            source = inner.source();
        }
        Self::Away(text)
    }
}

struct Reflector<'r, T> {
    api: Api<DynamicObject>,
    resource: &'r ApiResource,
    fields: Option<String>,
    tell: T,
    patience: Patience,
}

impl<T: FnMut(Told)> Reflector<'_, T> {
    /// Lists everything; the version from which events follow.
    async fn list(&mut self) -> Result<String, Trouble> {
        let mut parameters =
            ListParams { field_selector: self.fields.clone(), ..ListParams::default() }.limit(PAGE);
        let mut version: Option<String> = None;
        (self.tell)(Told::Event(Event::Listing));
        loop {
            let page = timeout(LIST, self.api.list(&parameters)).await;
            let page = page.map_err(|_| Trouble::Away(format!("no answer within {LIST:?}")))??;
            // Events between two pages come again: it is the first page's that everything is at least as new as.
            version =
                version.or_else(|| page.metadata.resource_version.filter(|version| !version.is_empty()));
            for object in page.items {
                let object = self.value(object);
                (self.tell)(Told::Event(Event::Listed(object)));
            }
            let next = page.metadata.continue_.filter(|next| !next.is_empty());
            if next.is_none() {
                break;
            }
            parameters.continue_token = next;
        }
        let version = version.ok_or_else(|| Trouble::Away("the list has no version".to_owned()))?;
        self.works();
        (self.tell)(Told::Event(Event::Complete { version: version.parse().ok() }));
        Ok(version)
    }

    /// Watches from a version; the version to go on from, or none if a list must come first.
    async fn watch(&mut self, mut version: String) -> Option<String> {
        let seconds = u32::try_from(WATCH.as_secs()).ok();
        let parameters =
            WatchParams { field_selector: self.fields.clone(), timeout: seconds, ..WatchParams::default() };
        let since = Instant::now();
        let started = match timeout(WATCH, self.api.watch(&parameters, &version)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Trouble::Away(format!("no answer within {WATCH:?}"))),
        };
        let mut stream = match started {
            Ok(stream) => pin!(stream),
            Err(trouble) => return self.fail("cannot be watched", trouble, Some(version)).await,
        };
        self.works();
        let mut told = false;
        loop {
            let trouble = match timeout(WATCH + GRACE, stream.try_next()).await {
                Ok(Ok(Some(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                    version = next(&object, version);
                    let object = self.value(object);
                    (self.tell)(Told::Event(Event::Applied(object)));
                    told = true;
                    continue;
                }
                Ok(Ok(Some(WatchEvent::Deleted(object)))) => {
                    version = next(&object, version);
                    let object = self.value(object);
                    (self.tell)(Told::Event(Event::Deleted(object)));
                    told = true;
                    continue;
                }
                Ok(Ok(Some(WatchEvent::Bookmark(bookmark)))) => {
                    version = bookmark.metadata.resource_version;
                    told = true;
                    continue;
                }
                Ok(Ok(Some(WatchEvent::Error(status)))) => Trouble::Refused(status.code, status.message),
                Ok(Err(error)) => error.into(),
                Ok(Ok(None)) if told || since.elapsed() > TOO_SOON => {
                    self.patience = Patience::default();
                    return Some(version);
                }
                Ok(Ok(None)) => Trouble::Away("it ended at once".to_owned()),
                Err(_) => Trouble::Away("nothing came, not even its end".to_owned()),
            };
            return self.fail("the watch broke", trouble, Some(version)).await;
        }
    }

    fn works(&mut self) {
        (self.tell)(Told::Works);
    }

    /// Tells of a failure and waits; the version to go on from, if one is left.
    async fn fail(&mut self, what: &str, trouble: Trouble, version: Option<String>) -> Option<String> {
        // 410 is no trouble: events are lost, which a list makes good.
        if let (Trouble::Refused(410, _), true) = (&trouble, version.is_some()) {
            return None;
        }
        let refused = matches!(trouble, Trouble::Refused(..));
        let reason = match trouble {
            Trouble::Refused(code, reason) => format!("{reason} ({code})"),
            Trouble::Away(reason) => reason,
        };
        (self.tell)(Told::Fails(format!("{what}: {reason}")));
        let wait = self.patience.failed(refused);
        sleep(wait).await;
        version.filter(|_| !self.patience.is_over())
    }

    /// An object as it would be written. Items of a list do not say what they are.
    fn value(&self, object: DynamicObject) -> Value {
        let mut value = serde_json::to_value(object).unwrap_or_default();
        if value.is_object() {
            value["apiVersion"] = Value::from(&*self.resource.api_version);
            value["kind"] = Value::from(&*self.resource.kind);
        }
        value
    }
}

fn next(object: &DynamicObject, before: String) -> String {
    object.metadata.resource_version.clone().filter(|version| !version.is_empty()).unwrap_or(before)
}

/// How long to wait after failures, and when to begin again.
#[derive(Debug, Default)]
struct Patience {
    failures: u32,
    /// Refusals, one after the other.
    refusals: u32,
}

impl Patience {
    fn failed(&mut self, refused: bool) -> Duration {
        self.refusals = if refused { self.refusals + 1 } else { 0 };
        let wait = FIRST_WAIT.saturating_mul(1 << self.failures.min(10)).min(LONGEST_WAIT);
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// Whether to begin again with a list.
    fn is_over(&mut self) -> bool {
        let over = self.refusals >= REFUSALS;
        if over {
            self.refusals = 0;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound() {
        let mut patience = Patience::default();
        let waits: Vec<Duration> = (0..40).map(|_| patience.failed(false)).collect();
        assert_eq!(waits[0], FIRST_WAIT);
        assert!(waits.is_sorted());
        assert_eq!(waits.last(), Some(&LONGEST_WAIT));
    }

    #[test]
    fn a_version_that_the_server_will_never_have_is_given_up() {
        let mut patience = Patience::default();
        for _ in 1..REFUSALS {
            patience.failed(true);
            assert!(!patience.is_over());
        }
        // A server that is away says nothing about the version.
        patience.failed(false);
        assert!(!patience.is_over());
        for _ in 0..REFUSALS {
            patience.failed(true);
        }
        assert!(patience.is_over());
        assert!(!patience.is_over(), "once");
    }
}
