//! Our definitions in a real API server: they are taken whole, tell people what they are, and keep what they are given.

use crate::{NEEDS, shared};
use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use sluice_tests::apiserver::ApiServer;
use sluice_tests::harness::test;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("definitions::the_api_server_takes_them_as_they_are", NEEDS, taken_as_they_are),
        test("definitions::explain_tells_what_a_field_is", NEEDS, explain),
        test("definitions::get_shows_what_is_in_force", NEEDS, columns),
        test("definitions::what_is_left_out_gets_its_default", NEEDS, defaults),
        test("definitions::a_field_that_nobody_knows_is_kept_for_us_to_see", NEEDS, unknown_fields),
        test("definitions::what_a_schema_can_refuse_is_refused", NEEDS, refused),
        test("definitions::several_managers_apply_to_one_policy", NEEDS, server_side_apply),
        test("definitions::status_is_a_resource_of_its_own", NEEDS, status),
    ]
}

const KINDS: [&str; 2] = ["l7networkpolicies", "clusterl7networkpolicies"];

fn get(server: &ApiServer, arguments: &[&str]) -> Result<Value> {
    let text = server.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
    serde_json::from_str(&text).context("kubectl get -o json")
}

fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    })
}

/// Neither refused (a rule in CEL that costs too much, a schema that is not structural) nor taken with a complaint.
fn taken_as_they_are() -> Result<()> {
    let server = shared()?;
    for kind in KINDS {
        let found = get(server, &["crd", &format!("{kind}.policy.sluice.dev")])?;
        let conditions = found["status"]["conditions"].as_array().context("conditions")?;
        let is = |name: &str, status: &str| {
            conditions.iter().any(|condition| condition["type"] == name && condition["status"] == status)
        };
        ensure!(is("Established", "True") && is("NamesAccepted", "True"), "{kind}: {conditions:?}");
        let complaint = conditions.iter().find(|condition| condition["type"] == "NonStructuralSchema");
        ensure!(complaint.is_none(), "{kind}: {complaint:?}");
    }
    Ok(())
}

fn explain() -> Result<()> {
    let server = shared()?;
    for (path, words) in [
        ("l7np", &["KIND:", "L7NetworkPolicy", "What may be said to the pods of a namespace"][..]),
        (
            "l7np.spec.ingress.rules.http.path.type",
            &["How it is compared", "PathPrefix", "RegularExpression"],
        ),
        ("l7np.spec.mode", &["Audit", "Enforce"]),
        ("cl7np.spec.tier", &["Admin", "Baseline"]),
        ("l7np.status.conditions", &["lastTransitionTime"]),
    ] {
        let said = server.kubectl(&["explain", path])?;
        for word in words {
            ensure!(said.contains(word), "explain {path} does not say \"{word}\": {said}");
        }
    }
    Ok(())
}

fn columns() -> Result<()> {
    let server = shared()?;
    let namespace = server.namespace(&json!({}))?;
    server.apply(&policy(&namespace, "shown", &json!({"podSelector": {}})).to_string())?;
    let status = json!({"status": {
        "effectiveMode": "Audit", "selectedPods": 4,
        "conditions": [condition("Accepted", "True"), condition("Programmed", "Unknown")],
    }});
    let patch = ["patch", "l7np", "shown", "-n", &namespace, "--subresource=status", "--type=merge", "-p"];
    server.kubectl(&[&patch[..], &[&status.to_string()]].concat())?;
    let said = server.kubectl(&["get", "l7np", "-n", &namespace])?;
    let mut lines = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let head = lines.next().unwrap_or_default();
    ensure!(head == ["NAME", "MODE", "PODS", "ACCEPTED", "PROGRAMMED", "AGE"], "{said}");
    let line = lines.next().unwrap_or_default();
    ensure!(line.get(..5) == Some(&["shown", "Audit", "4", "True", "Unknown"][..]), "{said}");
    let sluice = server.kubectl(&["get", "sluice", "-n", &namespace])?;
    ensure!(sluice.contains("shown"), "the category `sluice` lists our kinds: {sluice}");
    let cluster = server.kubectl(&["get", "cl7np"]).map(|_| ());
    cluster.context("the short name of the cluster's kind")
}

fn condition(name: &str, status: &str) -> Value {
    json!({"type": name, "status": status, "reason": "Test", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1})
}

fn defaults() -> Result<()> {
    let server = shared()?;
    let spec = json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]});
    let taken = server.dry_run(&policy("default", "defaults", &spec))?;
    let spec = &taken.data["spec"];
    for (field, value) in
        [("mode", "Enforce"), ("denyAction", "Drop"), ("denyDetail", "None"), ("isolation", "Direction")]
    {
        ensure!(spec[field] == value, "{field}: {spec}");
    }
    ensure!(spec["ingress"][0]["ports"][0]["protocol"] == "TCP", "{spec}");
    // Whether it is absent decides which directions are isolated, as in NetworkPolicy: nothing may be put in.
    ensure!(spec["policyTypes"].is_null() && spec["egress"].is_null(), "{spec}");
    Ok(())
}

/// Pruned, a misspelt limit of an allow would be gone before anybody saw it, and the rule would allow more.
fn unknown_fields() -> Result<()> {
    let server = shared()?;
    let rule = json!({"form": [], "rules": {"http": [{"pathh": {"type": "Exact", "value": "/a"}}]}});
    let taken =
        server.dry_run(&policy("default", "misspelt", &json!({"podSelector": {}, "ingress": [rule]})))?;
    let kept = &taken.data["spec"]["ingress"][0];
    ensure!(kept["form"] == json!([]), "{kept}");
    ensure!(kept["rules"]["http"][0]["pathh"]["value"] == "/a", "{kept}");
    Ok(())
}

fn refused() -> Result<()> {
    let server = shared()?;
    let rule = |rule: &Value| json!({"podSelector": {}, "ingress": [rule]});
    let http = |http: &Value| rule(&json!({"rules": {"http": [http]}}));
    let many = |count: usize, item: &Value| vec![item.clone(); count];
    for (spec, word) in [
        (json!({"podSelector": {}, "mode": "Maybe"}), "Unsupported value"),
        (json!({"podSelector": {}, "policyTypes": ["Ingress", "Ingress"]}), "Duplicate value"),
        (rule(&json!({"name": "a b"})), "should match"),
        (rule(&json!({"from": [{}]})), "at least 1 properties"),
        (rule(&json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]})), "cidr"),
        (rule(&json!({"from": [{"entities": ["World", "World"]}]})), "Duplicate value"),
        (rule(&json!({"ports": [{"port": 0}]})), "greater than or equal to 1"),
        (rule(&json!({"ports": [{"port": 65_536}]})), "less than or equal to 65535"),
        (rule(&json!({"ports": [{"port": "Not_A_Name"}]})), "should match"),
        (rule(&json!({"ports": [{"port": 80, "protocol": "ICMP"}]})), "Unsupported value"),
        (rule(&json!({"rules": {}})), "at least 1 properties"),
        (http(&json!({"methods": []})), "at least 1 items"),
        (http(&json!({"methods": ["GE T"]})), "should match"),
        (http(&json!({"path": {"type": "Exact", "value": "/".repeat(5000)}})), "Too long"),
        (json!({"podSelector": {}, "ingress": many(65, &json!({}))}), "at most 64 items"),
        (rule(&json!({"rules": {"http": many(129, &json!({}))}})), "at most 128 items"),
        (rule(&json!({"rules": {"tls": {"serverNames": ["a..b"]}}})), "should match"),
    ] {
        let said = match server.dry_run(&policy("default", "refused", &spec)) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        ensure!(said.contains(word), "{} should be refused for \"{word}\": \"{said}\"", short(&spec));
    }
    Ok(())
}

fn short(spec: &Value) -> String {
    spec.to_string().chars().take(200).collect()
}

fn server_side_apply() -> Result<()> {
    let server = shared()?;
    let namespace = server.namespace(&json!({}))?;
    let apply = |manager: &str, spec: &Value| -> Result<String> {
        let manager = format!("--field-manager={manager}");
        let text = policy(&namespace, "shared", spec).to_string();
        let output = server.kubectl_with(&["apply", "--server-side", &manager, "-f", "-"], &text)?;
        Ok(String::from_utf8_lossy(&if output.status.success() { vec![] } else { output.stderr })
            .into_owned())
    };
    let said = apply("team", &json!({"podSelector": {}, "ingress": [{"name": "a"}]}))?;
    ensure!(said.is_empty(), "{said}");
    let said = apply("rollout", &json!({"podSelector": {}, "mode": "Audit"}))?;
    ensure!(said.is_empty(), "another manager sets a field that nobody has set: {said}");
    let said = apply("other", &json!({"podSelector": {}, "mode": "Enforce"}))?;
    ensure!(said.contains("conflict") && said.contains("rollout"), "{said}");
    // Its author applies it again, without a mode: the field stays the other manager's.
    let said = apply("team", &json!({"podSelector": {}, "ingress": [{"name": "b"}]}))?;
    ensure!(said.is_empty(), "{said}");
    let found = get(server, &["l7np", "shared", "-n", &namespace])?;
    ensure!(found["spec"]["mode"] == "Audit", "{found}");
    ensure!(found["spec"]["ingress"][0]["name"] == "b", "{found}");
    ensure!(found["spec"]["ingress"].as_array().is_some_and(|rules| rules.len() == 1), "{found}");
    Ok(())
}

fn status() -> Result<()> {
    let server = shared()?;
    let namespace = server.namespace(&json!({}))?;
    let mut given = policy(&namespace, "told", &json!({"podSelector": {}}));
    given["status"] = json!({"selectedPods": 9});
    server.apply(&given.to_string())?;
    let found = get(server, &["l7np", "told", "-n", &namespace])?;
    ensure!(found["status"].is_null(), "who writes a policy writes no status: {found}");
    let apply = |manager: &str, conditions: Value| {
        let status = json!({
            "apiVersion": given["apiVersion"], "kind": given["kind"], "metadata": given["metadata"],
            "status": {"conditions": conditions},
        });
        let manager = format!("--field-manager={manager}");
        let arguments = ["apply", "--server-side", "--subresource=status", &manager, "-f", "-"];
        let output = server.kubectl_with(&arguments, &status.to_string())?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    // Conditions are a map by type: two managers have one each.
    apply("sluice-control", json!([condition("Accepted", "True")]))?;
    apply("another", json!([condition("Audited", "True")]))?;
    apply("sluice-control", json!([condition("Accepted", "False")]))?;
    let found = get(server, &["l7np", "told", "-n", &namespace])?;
    let conditions = found["status"]["conditions"].as_array().context("conditions")?;
    let of = |name: &str| {
        conditions.iter().find(|condition| condition["type"] == name).map(|condition| &condition["status"])
    };
    ensure!(conditions.len() == 2, "{conditions:?}");
    ensure!(
        of("Accepted") == Some(&json!("False")) && of("Audited") == Some(&json!("True")),
        "{conditions:?}"
    );
    ensure!(found["metadata"]["generation"] == 1, "a status makes no new generation: {found}");
    Ok(())
}
