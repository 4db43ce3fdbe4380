//! What an operator should be told, as Events: each once, and again when it comes back or stands for long.
//!
//! An Event's name is made of what it says, so that a control that starts again tells nothing twice. Pure: time comes
//! in as an argument. Called by the report.

use crate::nodes::Node;
use crate::write::desired::{Holds, Known, mode_name};
use crate::write::facts::Facts;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What may pass by itself (a pod that starts, a node that takes its time) is told once it has stood so long.
const SETTLED: Duration = Duration::from_secs(5);
/// What comes back is told again after this long.
const AGAIN: Duration = Duration::from_secs(60);
/// What stands is told again this often: an API server forgets Events after an hour.
const REPEAT: Duration = Duration::from_secs(30 * 60);
/// What is over is remembered so long, so that its coming back is known as that.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// Notices that are remembered: more than that are not told, but counted.
const MOST: usize = 20_000;
/// Most bytes of a note (`events.k8s.io/v1`).
const NOTE_BYTES: usize = 1024;
/// Of an object's name, in its Events' names: a name has 253 bytes.
const NAME_BYTES: usize = 200;
/// Who tells.
const CONTROLLER: &str = "sluice.dev/control";

/// Something to be told of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    api_version: String,
    kind: &'static str,
    namespace: String,
    name: String,
    uid: String,
    warning: bool,
    reason: &'static str,
    action: &'static str,
    note: String,
    /// It is told at once: it does not pass by itself.
    at_once: bool,
}

/// Where an Event is: namespace and name.
pub type Place = (String, String);

/// What is told of a policy.
#[must_use]
pub fn of_policy(facts: &Facts, known: &Known) -> Vec<Notice> {
    let policy = &facts.policy;
    let notice = |warning, reason, action, note: &str, at_once| Notice {
        api_version: policy.kind.api_version(policy.kind.versions()[0]),
        kind: policy.kind.name(),
        namespace: policy.namespace.to_string(),
        name: policy.name.to_string(),
        uid: policy.uid.to_string(),
        warning,
        reason,
        action,
        note: note.to_owned(),
        at_once,
    };
    let mut notices = Vec::new();
    let accepted = &known.accepted;
    if accepted.holds != Holds::True {
        notices.push(notice(true, accepted.reason, "Accept", &accepted.message, true));
    }
    let programmed = &known.programmed;
    match programmed.reason {
        // It was just told that it could not be read.
        "NotRead" => {}
        "PartiallyProgrammed" | "NotProgrammed" | "NotEnforced" => {
            notices.push(notice(
                true,
                programmed.reason,
                "Program",
                &without_generation(&programmed.message),
                false,
            ));
        }
        // The status of our own kinds says the rest.
        _ if policy.kind.is_ours() => {}
        "Programmed" => {
            let (generation, mode) = (policy.generation, mode_name(facts.mode));
            let note =
                format!("in force on every node with a pod of it (its generation {generation}, {mode})");
            notices.push(notice(false, "Programmed", "Program", &note, true));
        }
        "NotHeardOf" if !known.unheard => {
            notices.push(notice(
                true,
                "NotHeardOf",
                "Program",
                &without_generation(&programmed.message),
                false,
            ));
        }
        "Off" => notices.push(notice(false, "Off", "Program", &programmed.message, false)),
        _ => {}
    }
    notices
}

/// A message without the number that changes with every snapshot: it would be another Event each time.
fn without_generation(message: &str) -> String {
    let Some((before, after)) = message.split_once(" at generation ") else { return message.to_owned() };
    format!("{before}{}", after.trim_start_matches(|c: char| c.is_ascii_digit()))
}

fn notice_of_node(name: &str, reason: &'static str, action: &'static str, note: &str) -> Notice {
    Notice {
        api_version: "v1".to_owned(),
        kind: "Node",
        namespace: String::new(),
        name: name.to_owned(),
        // As kubelets name their node: `kubectl describe node` looks for it.
        uid: name.to_owned(),
        warning: true,
        reason,
        action,
        note: note.to_owned(),
        at_once: false,
    }
}

/// What is told of a node that has pods that policies are about, and that nobody has heard of.
#[must_use]
pub fn of_absent_node(name: &str) -> Option<Notice> {
    let note = "no sluice-proxy of it is connected, and policies are about its pods: what is in force there is not \
                known. Look whether it runs, and whether it reaches control";
    is_name(name).then(|| notice_of_node(name, "SluiceNotConnected", "Watch", note))
}

/// What is told of a node.
#[must_use]
pub fn of_node(name: &str, node: &Node, now: Instant) -> Vec<Notice> {
    if !is_name(name) {
        return Vec::new();
    }
    let notice = |reason, action, note: &str| notice_of_node(name, reason, action, note);
    let mut notices = Vec::new();
    if node.is_stale(now) {
        let note = "it says nothing of its kernel any more: what is in force there is not known. Look whether its \
                    sluice-proxy hangs";
        notices.push(notice("SluiceStale", "Watch", note));
    }
    let ack = node.ack();
    if let Some(rejected) = ack.map(|ack| &ack.rejected).filter(|rejected| !rejected.is_empty()) {
        let note = format!("it refused its newest snapshot and keeps what it had: {rejected}");
        notices.push(notice("SluiceSnapshotRefused", "Program", &note));
    }
    if let Some(withheld) = node.withheld() {
        let note = format!("it is not sent its newest snapshot and keeps what it had: {withheld}");
        notices.push(notice("SluiceSnapshotWithheld", "Program", &note));
    }
    for drift in ack.map_or(&[][..], |ack| &ack.drift) {
        let note = format!("not as it must be: {}: {}", drift.what, drift.stays);
        notices.push(notice("SluiceDrift", "Program", &note));
    }
    let maps = node.kernel(now).map(|(_, kernel)| &kernel.maps);
    for (map, fill) in maps.into_iter().flatten().filter(|(_, fill)| !fill.warning.is_empty()) {
        // Not the numbers in the warning: they change with every report.
        let note = format!(
            "map {map} is nearly full (room for {}): see sluice-proxy counters on the node",
            fill.max
        );
        notices.push(notice("SluiceMapNearlyFull", "Watch", &note));
    }
    notices
}

/// Whether it can be the name of a Node: nodes give it themselves.
fn is_name(name: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let part = |part: &str| !part.is_empty() && !part.starts_with('-') && !part.ends_with('-');
    name.len() <= 253 && name.bytes().all(fine) && name.split('.').all(part)
}

impl Notice {
    /// Where its Event is.
    #[must_use]
    pub fn place(&self) -> Place {
        // FNV-1a, 64 bits: the same in every release.
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for text in [self.kind, &self.namespace, &self.name, &self.uid, self.reason, &self.note] {
            for byte in text.bytes().chain([0]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
        let name = cut(&self.name, NAME_BYTES).trim_end_matches(['-', '.']);
        // What has no namespace has its Events in this one.
        let namespace = if self.namespace.is_empty() { "default" } else { &self.namespace };
        (namespace.to_owned(), format!("{name}.{hash:016x}"))
    }

    /// Its Event.
    #[must_use]
    pub fn event(&self, time: Timestamp) -> Value {
        let (namespace, name) = self.place();
        let mut regarding = json!({"apiVersion": self.api_version, "kind": self.kind, "name": self.name});
        for (field, value) in [("namespace", &self.namespace), ("uid", &self.uid)] {
            if !value.is_empty() {
                regarding[field] = Value::from(&**value);
            }
        }
        json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"namespace": namespace, "name": name},
            "eventTime": micros(time),
            "reportingController": CONTROLLER,
            "reportingInstance": "sluice-control",
            "type": if self.warning { "Warning" } else { "Normal" },
            "reason": self.reason,
            "action": self.action,
            "note": cut(&self.note, NOTE_BYTES),
            "regarding": regarding,
        })
    }
}

fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or_default()]
}

fn micros(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// What is to be said of a notice.
#[derive(Clone, Debug, PartialEq)]
pub enum Tell {
    /// That it is so.
    First(Value),
    /// That it was so again: its `series`.
    Again(Value),
}

/// What was told.
#[derive(Default)]
pub struct Told {
    notices: BTreeMap<Place, Standing>,
    /// Notices that there was no room for.
    left_out: u64,
}

struct Standing {
    notice: Notice,
    /// Since when it stands; `None`: it is over.
    since: Option<Instant>,
    /// When it was told last.
    told: Option<Instant>,
    times: u32,
}

impl Told {
    /// Takes all that stands now. What of it is to be told, and where.
    pub fn take(&mut self, notices: Vec<Notice>, now: Instant, time: Timestamp) -> Vec<(Place, Tell)> {
        let mut say = Vec::new();
        let mut stands = BTreeSet::new();
        for notice in notices {
            let place = notice.place();
            if !self.notices.contains_key(&place) && self.notices.len() >= MOST {
                self.left_out += 1;
                continue;
            }
            let standing = self.notices.entry(place.clone()).or_insert_with(|| Standing {
                notice,
                since: None,
                told: None,
                times: 0,
            });
            if let Some(tell) = standing.now(now, time) {
                say.push((place.clone(), tell));
            }
            stands.insert(place);
        }
        self.notices.retain(|place, standing| {
            if !stands.contains(place) {
                standing.since = None;
            }
            let last = standing.told.filter(|told| now.saturating_duration_since(*told) < REMEMBERED);
            standing.since.is_some() || last.is_some()
        });
        say
    }

    /// There is an Event of this already, of an earlier control: what to say instead.
    pub fn exists(&mut self, place: &Place, time: Timestamp) -> Option<Tell> {
        let standing = self.notices.get_mut(place)?;
        standing.times = standing.times.max(1) + 1;
        standing.notice.warning.then(|| standing.series(time))
    }

    /// The Event is not there any more: what to say instead.
    #[must_use]
    pub fn gone(&self, place: &Place, time: Timestamp) -> Option<Tell> {
        let standing = self.notices.get(place).filter(|standing| standing.since.is_some())?;
        Some(Tell::First(standing.notice.event(time)))
    }

    /// How many there was no room for.
    #[must_use]
    pub const fn left_out(&self) -> u64 {
        self.left_out
    }
}

impl Standing {
    fn now(&mut self, now: Instant, time: Timestamp) -> Option<Tell> {
        let came_back = self.since.is_none() && self.told.is_some();
        let since = *self.since.get_or_insert(now);
        let Some(told) = self.told else {
            let settled = self.notice.at_once || now.saturating_duration_since(since) >= SETTLED;
            return settled.then(|| {
                (self.told, self.times) = (Some(now), 1);
                Tell::First(self.notice.event(time))
            });
        };
        let age = now.saturating_duration_since(told);
        let again = if came_back { age >= AGAIN } else { age >= REPEAT };
        (again && self.notice.warning).then(|| {
            self.told = Some(now);
            self.times = self.times.saturating_add(1);
            self.series(time)
        })
    }

    fn series(&self, time: Timestamp) -> Tell {
        Tell::Again(json!({"series": {"count": self.times.max(2), "lastObservedTime": micros(time)}}))
    }
}
