//! The first rule of a stage that matches: the one search over rules, for every stage.
//!
//! Through the side's index where there is one; rule by rule where somebody wants to see each. Either way the rule's
//! own test decides. Knows nothing of what comes of it.

use crate::asked::{Asked, Effect};
use crate::index::Probe;
use crate::miss::Miss;
use crate::observe::{Observe, Visit};
use crate::origin::Policy;
use crate::profile::{LayerKind, Rule, Side, TierRule};
use std::sync::Arc;

/// The rules of one stage of a side.
#[derive(Clone, Copy)]
pub(crate) enum Rules<'a> {
    /// The Admin tier.
    Admin(&'a Side),
    /// The denies.
    Deny(&'a Side),
    /// A layer's allows.
    Layer(&'a Side, LayerKind),
    /// The Baseline tier.
    Baseline(&'a Side),
}

impl<'a> Rules<'a> {
    pub(crate) fn len(self) -> usize {
        match self {
            Self::Admin(side) => side.admin.len(),
            Self::Deny(side) => side.deny.len(),
            Self::Layer(side, kind) => side.layers[kind as usize].allow.len(),
            Self::Baseline(side) => side.baseline.len(),
        }
    }

    /// The rule at this place. Only places that a search told are asked for.
    pub(crate) fn at(self, place: usize) -> (&'a Rule, Effect) {
        let tiered = |tiered: &'a TierRule| (&tiered.rule, Effect::Tier(tiered.action));
        match self {
            Self::Admin(side) => tiered(&side.admin[place]),
            Self::Deny(side) => (&side.deny[place], Effect::Deny),
            Self::Layer(side, kind) => (&side.layers[kind as usize].allow[place], Effect::Allow),
            Self::Baseline(side) => tiered(&side.baseline[place]),
        }
    }

    /// The first place from this one on whose rule meets the test, among those that can match.
    fn search(self, probe: &Probe<'_>, from: usize, test: impl FnMut(usize) -> bool) -> Option<usize> {
        let index = probe.index();
        match self {
            Self::Admin(_) => index.admin.first(probe, from, test),
            Self::Deny(_) => index.deny.first(probe, from, test),
            Self::Layer(_, kind) => index.layers[kind as usize].allow.first(probe, from, test),
            Self::Baseline(_) => index.baseline.first(probe, from, test),
        }
    }

    /// The first place whose rule meets the test, among those that reach the connection.
    fn search_reaching(self, probe: &Probe<'_>, test: impl FnMut(usize) -> bool) -> Option<usize> {
        let index = probe.index();
        match self {
            Self::Admin(_) => index.admin.first_reaching(probe, test),
            Self::Deny(_) => index.deny.first_reaching(probe, 0, test),
            Self::Layer(_, kind) => index.layers[kind as usize].allow.first_reaching(probe, 0, test),
            Self::Baseline(_) => index.baseline.first_reaching(probe, test),
        }
    }

    /// The first rule that matches from this place on, with its own.
    pub(crate) fn first<O: Observe>(
        self,
        from: usize,
        asked: Asked<'_>,
        observer: &mut O,
    ) -> Option<(usize, &'a Rule, Effect)> {
        let place = match asked.probe {
            Some(probe) if !O::EVERY_RULE => self.search(probe, from, |place| {
                let (rule, effect) = self.at(place);
                asked.taking.takes(&rule.policy) && rule.matches(effect, asked)
            }),
            _ => self.first_of_all(from, asked, observer),
        }?;
        let (rule, effect) = self.at(place);
        Some((place, rule, effect))
    }

    /// Asks rule by rule.
    fn first_of_all<O: Observe>(self, from: usize, asked: Asked<'_>, observer: &mut O) -> Option<usize> {
        let mut found = None;
        for place in from..self.len() {
            let (rule, effect) = self.at(place);
            let taken = asked.taking.takes(&rule.policy);
            let matched = (taken || O::EVERY_RULE) && rule.matches(effect, asked);
            observer.rule(&Visit { rule, effect, taken, matched, asked });
            if taken && matched && found.is_none() {
                found = Some(place);
                if !O::EVERY_RULE {
                    break;
                }
            }
        }
        found
    }

    /// The first rule that reaches the connection, whatever is said, and meets the test.
    pub(crate) fn first_reaching(
        self,
        asked: Asked<'_>,
        test: impl Fn(&Rule) -> bool,
    ) -> Option<(&'a Rule, Effect)> {
        let meets = |place: usize| {
            let (rule, effect) = self.at(place);
            asked.taking.takes(&rule.policy) && test(rule) && rule.reaches(effect, asked.connection)
        };
        let place = match asked.probe {
            Some(probe) => self.search_reaching(probe, meets),
            None => (0..self.len()).find(|place| meets(*place)),
        }?;
        Some(self.at(place))
    }
}

impl Side {
    /// The allow of a layer that came nearest where none grants, and what it failed on. Only a refusal pays for its
    /// explanation.
    pub(crate) fn nearest(&self, kind: LayerKind, asked: Asked<'_>) -> Option<(&Rule, Miss)> {
        let allow = &self.layers[kind as usize].allow;
        let depth = |place: usize| {
            let rule = &allow[place];
            if asked.taking.takes(&rule.policy) { rule.miss_depth(asked) } else { None }
        };
        let place = match asked.probe {
            Some(probe) => probe.index().layers[kind as usize].nearest(probe, depth),
            None => {
                let depths = (0..allow.len()).filter_map(|place| Some((depth(place)?, place)));
                let furthest = depths.reduce(|best, next| if next.0 > best.0 { next } else { best });
                furthest.map(|(_, place)| place)
            }
        };
        let rule = &allow[place?];
        Some((rule, rule.miss(Effect::Allow, asked)?))
    }

    /// The first policy, of those that are asked for, that isolates this port in a layer; its place.
    pub(crate) fn isolation(
        &self,
        kind: LayerKind,
        asked: Asked<'_>,
        wanted: impl Fn(&Policy) -> bool,
    ) -> Option<usize> {
        let isolations = &self.layers[kind as usize].isolation;
        let isolates = |place: usize| {
            let isolation = &isolations[place];
            asked.taking.takes(&isolation.policy)
                && wanted(&isolation.policy)
                && isolation.ports.contains(asked.connection.protocol, asked.connection.port)
        };
        match asked.probe {
            Some(probe) => probe.index().layers[kind as usize].first_isolation(probe, isolates),
            None => (0..isolations.len()).find(|place| isolates(*place)),
        }
    }

    /// The policy that isolates this port in a layer, if any does, with its place.
    pub(crate) fn isolated_by(&self, kind: LayerKind, asked: Asked<'_>) -> Option<(usize, &Arc<Policy>)> {
        let place = self.isolation(kind, asked, |_| true)?;
        Some((place, &self.layers[kind as usize].isolation[place].policy))
    }
}
