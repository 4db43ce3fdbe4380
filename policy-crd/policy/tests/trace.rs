//! A trace tells what the walk did: it agrees with the verdict, with each rule asked alone, and with what happens
//! when the rule that decided is taken away.

mod common;

use common::shares::{CLASSES, Share, share};
use common::{allow, connection, get, isolate, policy};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use sluice_policy::trace::{MAX_LISTED, RuleResult, Stage, StageEnd, TracedRule};
use sluice_policy::{
    ClassId, Connection, Decision, Effect, Facts, Kind, LayerKind, Miss, Mode, PathMatch, Protocol, Reason,
    Rule, Side, SideVerdict, StageKind, TierAction, Trace,
};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// What is asked of a side.
#[derive(Clone, Copy, Debug)]
enum Said {
    Nothing,
    Get(&'static str),
    Tls(Option<&'static str>),
    Unknown,
}

impl Said {
    fn ask<T>(self, then: impl FnOnce(Facts<'_>) -> T) -> T {
        match self {
            Self::Nothing => then(Facts::Connection),
            Self::Get(path) => then(Facts::Request(&get(path))),
            Self::Tls(name) => then(Facts::Tls(name)),
            Self::Unknown => then(Facts::Unknown),
        }
    }
}

fn question() -> impl Strategy<Value = (Connection, Said)> {
    let said = prop_oneof![
        4 => Just(Said::Nothing),
        4 => prop::sample::select(vec!["/a", "/b", "/c", "/a/../b", "/a%2fb"]).prop_map(Said::Get),
        1 => prop::sample::select(vec![Some("a.example"), None]).prop_map(Said::Tls),
        1 => Just(Said::Unknown),
    ];
    let from_host = prop_oneof![8 => Just(false), 1 => Just(true)];
    let protocol = prop_oneof![5 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp), 1 => Just(Protocol::Icmp)];
    let port = prop_oneof![Just(80u16), Just(443), Just(0), any::<u16>()];
    (0..CLASSES, protocol, port, said, from_host).prop_map(|(peer, protocol, port, said, from_host)| {
        let said = if protocol == Protocol::Tcp { said } else { Said::Nothing };
        let port = if protocol.has_ports() { port } else { 8 };
        (Connection { peer: ClassId(peer), protocol, port, from_host }, said)
    })
}

fn modes() -> impl Strategy<Value = [Mode; 3]> {
    let mode = || prop_oneof![3 => Just(Mode::Enforce), 1 => Just(Mode::Audit)];
    [mode(), mode(), mode()]
}

fn build(shares: [&Share; 3], modes: [Mode; 3]) -> Side {
    let mut side = Side::default();
    for (share, mode) in shares.into_iter().zip(modes) {
        share.add(&mut side, mode);
    }
    side
}

fn traced(side: &Side, connection: &Connection, said: Said) -> (SideVerdict, Trace) {
    said.ask(|facts| side.trace(connection, facts))
}

fn matched(rule: &TracedRule) -> bool {
    rule.result == RuleResult::Matched
}

/// The step that the verdict stands on: the last that is not a Pass and not silent.
fn last_word(trace: &Trace) -> Option<&Stage> {
    let passes = |stage: &Stage| stage.deciding().is_some_and(|r| r.effect == Effect::Tier(TierAction::Pass));
    trace.stages.iter().rfind(|stage| stage.end != StageEnd::Next && !passes(stage))
}

/// The rules of a stage as the side has them, of those that take part.
fn rules_of(side: &Side, kind: StageKind, mode: Mode) -> usize {
    let count = |rules: &[Rule]| rules.iter().filter(|rule| rule.policy.mode == mode).count();
    let tier = |tier: &[sluice_policy::TierRule]| tier.iter().filter(|t| t.rule.policy.mode == mode).count();
    match kind {
        StageKind::Admin => tier(&side.admin),
        StageKind::Deny => count(&side.deny),
        StageKind::Layer(LayerKind::K) => count(&side.layers[0].allow),
        StageKind::Layer(LayerKind::L) => count(&side.layers[1].allow),
        StageKind::Baseline => tier(&side.baseline),
        StageKind::Host => 0,
    }
}

/// What must hold of a stage alone.
fn check_stage(side: &Side, stage: &Stage, continued: bool) -> Result<(), TestCaseError> {
    let rules = &stage.rules.rules;
    // A tier that goes on after a conditional Pass shows what is left of it.
    if !continued {
        prop_assert_eq!(rules.len() + stage.rules.more, rules_of(side, stage.kind, Mode::Enforce));
        let audited = &stage.audited;
        prop_assert_eq!(audited.rules.len() + audited.more, rules_of(side, stage.kind, Mode::Audit));
    }
    prop_assert!(rules.iter().all(|rule| rule.policy.mode == Mode::Enforce));
    prop_assert!(stage.audited.rules.iter().all(|rule| rule.policy.mode == Mode::Audit));
    prop_assert!(!stage.is_silent() || stage.end == StageEnd::Next);
    let audited = stage.would_isolate.as_ref();
    prop_assert!(audited.is_none_or(|policy| stage.is_silent() && policy.mode == Mode::Audit));
    match stage.end {
        StageEnd::Decided(place) | StageEnd::Supposed(place) => {
            prop_assert!(matched(&rules[place]), "{stage:?}");
            prop_assert!(!rules[..place].iter().any(matched), "{stage:?}");
        }
        StageEnd::Refused(nearest) => {
            let depths = rules.iter().map(|rule| match &rule.result {
                RuleResult::Matched => None,
                RuleResult::Missed(miss) => Some(miss.depth()),
            });
            let depths: Option<Vec<u8>> = depths.collect();
            let depths = depths.ok_or_else(|| TestCaseError::fail("refused beside a rule that matches"))?;
            let deepest = depths.iter().max();
            prop_assert_eq!(nearest, depths.iter().position(|depth| Some(depth) == deepest));
        }
        StageEnd::Next if stage.is_silent() => {}
        StageEnd::Next => prop_assert!(!rules.iter().any(matched), "{stage:?}"),
    }
    Ok(())
}

/// What must hold between the trace and the verdict.
fn check_verdict(verdict: &SideVerdict, trace: &Trace) -> Result<(), TestCaseError> {
    let Some(last) = last_word(trace) else {
        prop_assert_eq!((verdict.decision, verdict.reason), (Decision::Allow, Reason::NotIsolated));
        return Ok(());
    };
    if let Some(rule) = last.deciding() {
        prop_assert_eq!(verdict.rule.as_ref(), Some(&rule.name));
        prop_assert_eq!(verdict.policy.as_ref(), Some(&rule.policy));
        prop_assert_eq!(verdict.decision == Decision::Deny, rule.effect.refuses());
        prop_assert_eq!(&verdict.nearest_miss, &None);
        return Ok(());
    }
    prop_assert_eq!(verdict.decision, Decision::Deny);
    prop_assert_eq!(&verdict.rule, &None);
    match (&verdict.nearest_miss, last.nearest()) {
        (None, None) => prop_assert_eq!(&verdict.policy, &last.isolated_by),
        (Some(miss), Some(rule)) => {
            prop_assert_eq!((&miss.policy, &miss.rule), (&rule.policy, &rule.name));
            prop_assert_eq!(&rule.result, &RuleResult::Missed(miss.miss.clone()));
        }
        differ => prop_assert!(false, "{differ:?}"),
    }
    Ok(())
}

/// A rule alone on a side, asked the same.
fn alone(rule: &Rule, effect: Effect) -> Side {
    let enforced = policy(rule.policy.id.0, Kind::L7NetworkPolicy, Mode::Enforce);
    let rule = Rule { policy: enforced.clone(), ..rule.clone() };
    let mut side = Side::default();
    match effect {
        Effect::Deny | Effect::Tier(TierAction::Deny) => side.deny.push(rule),
        Effect::Allow | Effect::Tier(_) => {
            side.layers[0].isolation.push(isolate(&enforced));
            side.layers[0].allow.push(rule);
        }
    }
    side
}

/// Each rule that is listed does alone what the trace says of it, and its miss is a miss of its own.
fn check_rules(side: &Side, trace: &Trace, connection: &Connection, said: Said) -> Result<(), TestCaseError> {
    for traced in trace.stages.iter().flat_map(|s| s.rules.rules.iter().chain(&s.audited.rules)) {
        let same = |rule: &&Rule| rule.policy == traced.policy && rule.name == traced.name;
        let rule = side.rules().find(same).ok_or_else(|| TestCaseError::fail("a rule of nobody"))?;
        // Alone it stands in a layer, which the node itself does not meet.
        let connection = Connection { from_host: false, ..*connection };
        let verdict = said.ask(|facts| alone(rule, traced.effect).judge(&connection, facts));
        prop_assert_eq!(matched(traced), verdict.rule.is_some(), "{:?}", traced);
        prop_assert_ne!(&traced.result, &RuleResult::Missed(Miss::NoCondition));
        if let (RuleResult::Missed(miss), Some(nearest)) = (&traced.result, &verdict.nearest_miss) {
            prop_assert_eq!(miss, &nearest.miss);
        }
    }
    Ok(())
}

/// The side without the rule of this name.
fn without(side: &Side, gone: &TracedRule) -> Side {
    let stays = |rule: &Rule| rule.policy != gone.policy || rule.name != gone.name;
    let mut side = side.clone();
    side.admin.retain(|tiered| stays(&tiered.rule));
    side.baseline.retain(|tiered| stays(&tiered.rule));
    side.deny.retain(stays);
    side.layers.iter_mut().for_each(|layer| layer.allow.retain(stays));
    side
}

/// Without the rule that decided the next that matches takes over, and without any the stage decides otherwise.
fn check_removal(
    side: &Side,
    trace: &Trace,
    connection: &Connection,
    said: Said,
) -> Result<bool, TestCaseError> {
    let Some((at, stage, gone)) =
        trace.stages.iter().enumerate().find_map(|(at, stage)| Some((at, stage, stage.deciding()?)))
    else {
        return Ok(false);
    };
    let (_, after) = traced(&without(side, gone), connection, said);
    let heir = stage.rules.rules.iter().filter(|rule| matched(rule)).nth(1);
    let same = after.stages.get(at).filter(|now| now.kind == stage.kind);
    prop_assert_eq!(same.and_then(Stage::deciding), heir);
    if let (None, Some(now)) = (heir, same) {
        let refused = matches!(now.end, StageEnd::Refused(_));
        prop_assert_eq!(refused, matches!(stage.kind, StageKind::Layer(_)));
    }
    Ok(true)
}

#[test]
fn a_trace_tells_what_the_walk_did() {
    let config = ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() };
    let seen: RefCell<BTreeMap<String, u32>> = RefCell::default();
    let strategy = (share(0), share(1), share(2), modes(), question());
    let result = TestRunner::new(config).run(&strategy, |(a, b, c, modes, (connection, said))| {
        let side = build([&a, &b, &c], modes);
        let (verdict, trace) = traced(&side, &connection, said);
        prop_assert_eq!(&verdict, &said.ask(|facts| side.judge(&connection, facts)));
        prop_assert_eq!(trace.peer, connection.peer);
        let mut admin = false;
        for stage in &trace.stages {
            check_stage(&side, stage, admin && stage.kind == StageKind::Admin)?;
            admin |= stage.kind == StageKind::Admin;
            let end = format!("{:?} {:?}", stage.kind, stage.end);
            *seen.borrow_mut().entry(end.split('(').take(3).collect()).or_default() += 1;
        }
        check_verdict(&verdict, &trace)?;
        check_rules(&side, &trace, &connection, said)?;
        if check_removal(&side, &trace, &connection, said)? {
            *seen.borrow_mut().entry("removed".into()).or_default() += 1;
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    let seen = seen.into_inner();
    println!("ends of stages seen: {seen:?}");
    let often = |words: &[&str]| -> u32 {
        seen.iter().filter(|(end, _)| words.iter().all(|word| end.contains(word))).map(|(_, n)| n).sum()
    };
    for words in [
        &["Admin", "Decided"][..],
        &["Admin", "Supposed"],
        &["Deny", "Decided"],
        &["LayerK", "Decided"],
        &["LayerK", "Refused"],
        &["LayerL", "Decided"],
        &["LayerL", "Refused"],
        &["Baseline", "Decided"],
        &["removed"],
    ] {
        assert!(often(words) >= 8, "{words:?} {seen:?}");
    }
}

/// Whoever is not watched may take short cuts past rules that cannot match; whoever is watched sees all of them.
#[test]
fn many_rules_watched_and_unwatched_come_to_the_same() {
    const POLICIES: u32 = 60;
    let config = ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() };
    let shares: Vec<_> = (0..POLICIES).map(share).collect();
    let mode = prop_oneof![9 => Just(Mode::Enforce), 1 => Just(Mode::Audit)];
    let modes = prop::collection::vec(mode, POLICIES as usize);
    let strategy = (shares, modes, prop::collection::vec(question(), 40));
    let seen: RefCell<[u32; 2]> = RefCell::default();
    let result = TestRunner::new(config).run(&strategy, |(shares, modes, questions)| {
        // The Admin tier or a deny for everybody would decide most of it: of the first policies some sides have none.
        let bare = (modes.iter().filter(|mode| **mode == Mode::Audit).count() % 3) * 20;
        let mut side = Side::default();
        for (at, (share, mode)) in shares.iter().zip(&modes).enumerate() {
            share.add(&mut side, *mode);
            if at < bare {
                side.admin.clear();
                side.deny.clear();
            }
        }
        for (connection, said) in questions {
            let (verdict, trace) = traced(&side, &connection, said);
            prop_assert_eq!(&verdict, &said.ask(|facts| side.judge(&connection, facts)));
            check_verdict(&verdict, &trace)?;
            seen.borrow_mut()[usize::from(verdict.decision == Decision::Allow)] += 1;
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    let [denied, allowed] = seen.into_inner();
    println!("{denied} denied, {allowed} allowed");
    assert!(denied > 100 && allowed > 100, "{denied} {allowed}");
}

#[test]
fn stages_that_were_not_asked_are_named() {
    let np = policy(0, Kind::NetworkPolicy, Mode::Enforce);
    let l7 = policy(1, Kind::L7NetworkPolicy, Mode::Enforce);
    let mut side = Side::default();
    side.layers[0].isolation.push(isolate(&np));
    side.layers[1].isolation.push(isolate(&l7));
    side.layers[1].allow.push(allow(&l7, [ClassId(1)], &[80], None));
    let (verdict, trace) = side.trace(&connection(ClassId(1), 80), Facts::Connection);
    assert_eq!(verdict.decision, Decision::Deny);
    assert_eq!(trace.not_asked, [StageKind::Layer(LayerKind::L)]);
    side.layers[0].allow.push(allow(&np, [ClassId(1)], &[80], None));
    let (verdict, trace) = side.trace(&connection(ClassId(1), 80), Facts::Connection);
    assert_eq!(verdict.decision, Decision::Allow);
    assert_eq!((trace.stages.len(), trace.not_asked.len()), (2, 0));
}

#[test]
fn of_many_rules_those_that_matter_are_listed() {
    let l7 = policy(0, Kind::L7NetworkPolicy, Mode::Enforce);
    let mut side = Side::default();
    side.layers[1].isolation.push(isolate(&l7));
    let near = common::conditions("PUT", PathMatch::prefix("/items"));
    for at in 0..1000u32 {
        let (peer, conditions) = if at == 900 { (1, Some(near.clone())) } else { (2 + at % 7, None) };
        let mut rule = allow(&l7, [ClassId(peer)], &[80], conditions);
        rule.name = format!("rule-{at}").into();
        side.layers[1].allow.push(rule);
    }
    let ask = |side: &Side, method| {
        let request = sluice_policy::Request { method, ..get("/items") };
        side.trace(&connection(ClassId(1), 80), Facts::Request(&request))
    };
    for method in ["GET", "PUT"] {
        let (verdict, trace) = ask(&side, method);
        let stage = trace.stages.last().expect("layer L");
        let listed = &stage.rules;
        assert_eq!((listed.rules.len(), listed.more), (MAX_LISTED, 1000 - MAX_LISTED));
        // As far as they came equally near: the first of them.
        let names: Vec<&str> = listed.rules.iter().map(|rule| &*rule.name).collect();
        let mut first: Vec<String> = (0..MAX_LISTED - 1).map(|at| format!("rule-{at}")).collect();
        first.push("rule-900".into());
        assert_eq!(names, first);
        let shown = if method == "PUT" { stage.deciding() } else { stage.nearest() }.expect("shown");
        assert_eq!(shown.name, "rule-900".into());
        let named = verdict.rule.or(verdict.nearest_miss.map(|miss| miss.rule));
        assert_eq!(named, Some("rule-900".into()));
    }
    // With more that match than can be listed it is the first of them that decides.
    for rule in &mut side.layers[1].allow {
        *rule = Rule { name: rule.name.clone(), ..allow(&l7, [ClassId(1)], &[80], None) };
    }
    let (_, trace) = ask(&side, "GET");
    assert_eq!(trace.stages.last().map(|stage| stage.end), Some(StageEnd::Decided(0)));
}
