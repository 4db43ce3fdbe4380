//! `CiliumCIDRGroup`s and the items of a CIDR set, which name a CIDR or such groups.
//!
//! Knows nothing of pods or addresses. A group that is not there or in doubt makes the rule doubtful that names it.

use super::peers::prefix;
use crate::peers::{PeerItem, contains, parse_cidr};
use crate::report::Report;
use crate::selector::{Labels, Selector};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use sluice_crd::{CiliumCidrGroupObject, CiliumCidrRule, Part, Problem, Severity};
use sluice_policy::Prefix;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most prefixes that one policy may take from groups, exceptions counted with each CIDR they hold for: a short list
/// of names must not become a long one of prefixes. Published block lists have some thousands.
const MAX_FROM_GROUPS: usize = 1 << 17;

/// One group.
#[derive(PartialEq)]
struct Group {
    /// `None`: any selector may mean it.
    labels: Option<Labels>,
    /// `None`: in doubt.
    cidrs: Option<Vec<Prefix>>,
}

/// The groups of a cluster, by name.
#[derive(PartialEq)]
pub(crate) struct Groups(BTreeMap<Arc<str>, Group>);

impl Groups {
    /// Reads the CIDRs of every group, whether or not a policy names it. Of two with one name both are in doubt
    /// already.
    pub(crate) fn new(objects: &[CiliumCidrGroupObject], problems: &mut Vec<Problem>) -> Self {
        let mut groups: BTreeMap<Arc<str>, Group> = BTreeMap::new();
        for object in objects {
            let cidrs = cidrs(object, problems);
            let group = Group { labels: object.labels.clone(), cidrs };
            groups
                .entry(object.name.clone())
                .and_modify(|first| {
                    first.cidrs = None;
                    if first.labels != group.labels {
                        first.labels = None;
                    }
                })
                .or_insert(group);
        }
        Self(groups)
    }
}

fn cidrs(object: &CiliumCidrGroupObject, problems: &mut Vec<Problem>) -> Option<Vec<Prefix>> {
    let mut out = object.sound.then(Vec::new);
    let Part::Whole(items) = &object.external_cidrs else { return None };
    for (index, item) in items.iter().enumerate() {
        let parsed = item.value().filter(|_| item.is_sound()).map(|text| parse_cidr(text));
        if let Some(Err(reason)) = &parsed {
            let path = format!("spec.externalCIDRs[{index}]");
            let reason = format!("{reason}; the group grants nothing, and is everything to a deny");
            problems.push(object.source.problem(Severity::Error, &path, reason, "correct it"));
        }
        match (parsed, &mut out) {
            (Some(Ok(cidr)), Some(out)) => out.push(cidr),
            _ => out = None,
        }
    }
    let mut out = out?;
    out.sort_unstable();
    out.dedup();
    Some(out)
}

/// The groups as one policy sees them.
pub(super) struct View<'a> {
    groups: &'a Groups,
    /// Prefixes taken from them so far.
    taken: Cell<usize>,
}

impl<'a> View<'a> {
    pub(super) fn new(groups: &'a Groups) -> Self {
        Self { groups, taken: Cell::new(0) }
    }

    /// One item of a CIDR set. `None`: in doubt, and told.
    pub(super) fn item(
        &self,
        given: &CiliumCidrRule,
        path: &str,
        report: &mut Report<'_>,
    ) -> Option<Vec<PeerItem>> {
        match (&given.cidr, &given.cidr_group_ref, &given.cidr_group_selector) {
            (Some(cidr), None, None) => {
                let base = prefix(cidr, false, &format!("{path}.cidr"), report);
                let except = excepted(given, base, path, report)?;
                Some(vec![PeerItem::Outside { cidr: base?, except }])
            }
            (None, Some(name), None) => {
                let except = excepted(given, None, path, report);
                let path = format!("{path}.cidrGroupRef");
                let cidrs = self.named(name, &path, report)?;
                self.without(cidrs.iter().copied(), &except?, &path, report)
            }
            (None, None, Some(selector)) => {
                let except = excepted(given, None, path, report);
                let path = format!("{path}.cidrGroupSelector");
                let mut cidrs: Vec<Prefix> =
                    self.selected(selector, &path, report)?.into_iter().flatten().copied().collect();
                cidrs.sort_unstable();
                cidrs.dedup();
                self.without(cidrs.into_iter(), &except?, &path, report)
            }
            _ => {
                let reason = "an item is a cidr, a cidrGroupRef or a cidrGroupSelector";
                report.error(path, reason, "write one of them");
                None
            }
        }
    }

    fn named(&self, name: &str, path: &str, report: &mut Report<'_>) -> Option<&'a Vec<Prefix>> {
        let shown = name.escape_debug();
        let Some(group) = self.groups.0.get(name).filter(|_| !name.is_empty()) else {
            report.error(path, format!("there is no CiliumCIDRGroup \"{shown}\""), "write or correct it");
            return None;
        };
        if group.cidrs.is_none() {
            let reason = format!("nobody knows what the CiliumCIDRGroup \"{shown}\" holds");
            report.error(path, reason, "correct the group");
        }
        group.cidrs.as_ref()
    }

    fn selected(
        &self,
        given: &LabelSelector,
        path: &str,
        report: &mut Report<'_>,
    ) -> Option<Vec<&'a Vec<Prefix>>> {
        let selector = Selector::new(given)
            .map_err(|bad| report.error(&format!("{path}.{}", bad.path), bad.reason, bad.remedy))
            .ok()?;
        let (mut out, mut doubt) = (Vec::new(), false);
        for (name, group) in &self.groups.0 {
            match (&group.labels, &group.cidrs) {
                (Some(labels), _) if !selector.matches(labels) => {}
                (Some(_), Some(cidrs)) => out.push(cidrs),
                _ => {
                    let reason =
                        format!("nobody knows what the CiliumCIDRGroup \"{}\" holds", name.escape_debug());
                    report.error(path, reason, "correct the group");
                    doubt = true;
                }
            }
        }
        if out.is_empty() && !doubt {
            let reason = "no CiliumCIDRGroup has these labels: the item names nobody";
            report.warn(path, reason, "label a group so");
        }
        (!doubt).then_some(out)
    }

    /// The CIDRs without the exceptions that lie in them; without those that lie in an exception.
    fn without(
        &self,
        cidrs: impl ExactSizeIterator<Item = Prefix>,
        except: &[Prefix],
        path: &str,
        report: &mut Report<'_>,
    ) -> Option<Vec<PeerItem>> {
        let wanted = cidrs.len().saturating_mul(except.len().saturating_add(1));
        let taken = self.taken.get().saturating_add(wanted);
        if taken > MAX_FROM_GROUPS {
            let reason = format!("groups and exceptions come to more than {MAX_FROM_GROUPS} prefixes");
            report.error(path, reason, "write several policies, or fewer CIDRs");
            return None;
        }
        self.taken.set(taken);
        let kept = cidrs.filter(|cidr| !except.iter().any(|except| contains(*except, *cidr)));
        let item = |cidr: Prefix| PeerItem::Outside {
            cidr,
            except: except.iter().copied().filter(|except| contains(cidr, *except)).collect(),
        };
        Some(kept.map(item).collect())
    }
}

/// `except`, sorted. Of a CIDR it lies within; of groups, whose CIDRs its author may not know, anywhere.
fn excepted(
    given: &CiliumCidrRule,
    base: Option<Prefix>,
    path: &str,
    report: &mut Report<'_>,
) -> Option<Vec<Prefix>> {
    let mut except = Some(Vec::new());
    for (index, text) in given.except.iter().flatten().enumerate() {
        let path = format!("{path}.except[{index}]");
        let inner = prefix(text, false, &path, report);
        let inside = inner.filter(|inner| base.is_none_or(|base| contains(base, *inner)));
        if inner.is_some() && inside.is_none() {
            report.error(&path, format!("{text} is not in the cidr"), "an exception lies within its cidr");
        }
        match (inside, &mut except) {
            (Some(inside), Some(except)) => except.push(inside),
            _ => except = None,
        }
    }
    let mut except = except?;
    except.sort_unstable();
    except.dedup();
    Some(except)
}
