//! The API server as the source of objects: what is applied is what is compiled, under the role that we ship.

use crate::plane::{DEADLINE, Plane, l7, pod, policy};
use crate::{NEEDS, shared};
use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use sluice_tests::apiserver::{ApiServer, CONTROL_ACCOUNT, NAMESPACE};
use sluice_tests::harness::test;
use std::time::Duration;

/// A token that a file holds is read again once a minute.
const TOKEN_AGAIN: Duration = Duration::from_secs(150);

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("cluster::what_is_applied_is_compiled", NEEDS, applied),
        test("cluster::the_same_objects_in_a_directory_give_the_same_snapshot", NEEDS, same_as_a_directory),
        test("cluster::a_kind_that_is_defined_later_is_read_then", NEEDS, later_kinds),
        test("cluster::a_version_that_is_not_read_is_told", NEEDS, other_version),
        test("cluster::without_the_role_nothing_is_compiled", NEEDS, without_role),
        test("cluster::with_the_role_nothing_else_is_allowed", NEEDS, least_privilege),
        test("cluster::a_token_that_is_renewed_is_taken", NEEDS, renewed_token),
    ]
}

fn enabled(server: &ApiServer) -> Result<String> {
    server.namespace(&json!({"sluice.dev/dataplane": "enabled"}))
}

fn control(server: &ApiServer) -> Result<Plane> {
    Plane::over(server, &server.account(NAMESPACE, CONTROL_ACCOUNT)?)
}

fn selected(status: &Value, name: &str) -> Option<usize> {
    Some(policy(status, name)?["selectedPods"].as_array()?.len())
}

fn applied() -> Result<()> {
    let server = shared()?;
    let namespace = enabled(server)?;
    let name = format!("L7NetworkPolicy/{namespace}/cart");
    let mut plane = control(server)?;
    let status = plane.ready()?;
    ensure!(status["source"]["complete"] == true, "{:#}", status["source"]);
    ensure!(status["source"]["kinds"]["CiliumCIDRGroup"]["state"] == "Absent", "{:#}", status["source"]);
    pod(server, &namespace, "cart-0", "cart", "10.9.0.2")?;
    server.apply(&l7(&namespace, "cart", "cart").to_string())?;
    let is = |count: usize| {
        let name = name.clone();
        move |status: &Value| selected(status, &name) == Some(count)
    };
    let status = plane.until("the policy selects the pod", DEADLINE, is(1))?;
    ensure!(policy(&status, &name).is_some_and(|policy| policy["accepted"] == true), "{status:#}");
    pod(server, &namespace, "cart-1", "cart", "10.9.0.3")?;
    plane.until("and the one that came later", DEADLINE, is(2))?;
    server.kubectl(&["label", "pod", "cart-0", "-n", &namespace, "app=other", "--overwrite"])?;
    plane.until("and no longer the one that has another label", DEADLINE, is(1))?;
    server.kubectl(&["label", "namespace", &namespace, "sluice.dev/enforcement=audit"])?;
    plane.until("the namespace is audited", DEADLINE, |status| {
        policy(status, &name).is_some_and(|policy| policy["effectiveMode"] == "Audit")
    })?;
    // What a schema cannot say, the compiler says.
    let mut bad = l7(&namespace, "bad", "cart");
    bad["spec"]["ingress"][0]["rules"]["http"][0]["path"] =
        json!({"type": "RegularExpression", "value": "("});
    server.apply(&bad.to_string())?;
    let object = format!("L7NetworkPolicy/{namespace}/bad");
    let status = plane.until("the bad policy is told of", DEADLINE, |status| {
        status["problems"].as_array().into_iter().flatten().any(|problem| problem["object"] == *object)
    })?;
    let problems = status["problems"].as_array().context("problems")?;
    let told = problems.iter().find(|problem| problem["object"] == *object).context("the problem")?;
    ensure!(told["path"] == "spec.ingress[0].rules.http[0].path.value", "{told:#}");
    server.kubectl(&["delete", "l7np", "cart", "bad", "-n", &namespace])?;
    plane.until("the policies are gone", DEADLINE, |status| policy(status, &name).is_none())?;
    let said = plane.process.lines_since(0).join("\n");
    ensure!(!said.contains("WARN") || said.contains("bad"), "nothing was in the way: {said}");
    Ok(())
}

/// Objects come another way, and everything after that is the same.
fn same_as_a_directory() -> Result<()> {
    let server = ApiServer::start()?;
    server.install()?;
    let namespace = enabled(&server)?;
    for number in 0..6 {
        let app = ["cart", "billing"][number % 2];
        pod(&server, &namespace, &format!("{app}-{number}"), app, &format!("10.9.1.{}", 2 + number))?;
    }
    server.apply(&l7(&namespace, "cart", "cart").to_string())?;
    let network = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": namespace, "name": "np"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "billing"}}}]}]},
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": "cart"},
        "spec": {"selector": {"app": "cart"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": namespace, "name": "cart-1", "labels": {"kubernetes.io/service-name": "cart"}},
        "endpoints": [{"addresses": ["10.9.1.2"], "conditions": {"ready": true}}], "ports": [{"port": 8080}],
    });
    let cluster = json!({
        "apiVersion": "policy.sluice.dev/v1alpha1", "kind": "ClusterL7NetworkPolicy", "metadata": {"name": "admin"},
        "spec": {"tier": "Admin", "priority": 3, "subject": {"namespaces": {}},
            "ingress": [{"name": "no", "action": "Deny", "from": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}]},
    });
    for object in [network, service, slice, cluster] {
        server.apply(&object.to_string())?;
    }
    let mut plane = control(&server)?;
    plane.ready()?;
    let mut told = plane.snapshot(&server, "node-a")?;

    let dir = server.dir().join("objects");
    std::fs::create_dir(&dir)?;
    for kind in ["ns", "nodes", "pods", "services", "endpointslices", "netpol", "l7np", "cl7np"] {
        let objects = server.kubectl(&["get", kind, "-A", "-o", "json"])?;
        std::fs::write(dir.join(format!("{kind}.json")), objects)?;
    }
    let mut beside = Plane::start(&server, &["--dir", &dir.display().to_string()])?;
    beside.ready()?;
    let mut read = beside.snapshot(&server, "node-a")?;
    (told.generation, read.generation) = (0, 0);
    ensure!(told.endpoints.len() == 6 && !told.policies.is_empty(), "{} endpoints", told.endpoints.len());
    ensure!(told == read, "another snapshot than that of the same objects in a directory");
    Ok(())
}

/// The definition of a foreign kind with these versions, each served or not.
fn definition(versions: &[(&str, bool)]) -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let version = |(place, (name, served)): (usize, &(&str, bool))| json!({"name": name, "served": served, "storage": place == 0, "schema": schema});
    let versions: Vec<Value> = versions.iter().enumerate().map(version).collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "ciliumnetworkpolicies.cilium.io"},
        "spec": {
            "group": "cilium.io", "scope": "Namespaced",
            "names": {"kind": "CiliumNetworkPolicy", "plural": "ciliumnetworkpolicies", "singular": "ciliumnetworkpolicy",
                "listKind": "CiliumNetworkPolicyList", "shortNames": ["cnp"]},
            "versions": versions,
        },
    })
}

fn told_of_version(status: &Value) -> bool {
    status["problems"].as_array().into_iter().flatten().any(|problem| {
        problem["object"] == "CustomResourceDefinition/ciliumnetworkpolicies.cilium.io"
            && problem["reason"].as_str().is_some_and(|reason| reason.contains("served in v9"))
    })
}

fn later_kinds() -> Result<()> {
    let server = ApiServer::start()?;
    server.install()?;
    let namespace = enabled(&server)?;
    pod(&server, &namespace, "cart-0", "cart", "10.9.2.2")?;
    let mut plane = control(&server)?;
    plane.ready()?;
    let state = |status: &Value| status["source"]["kinds"]["CiliumNetworkPolicy"]["state"].clone();
    ensure!(state(&plane.status()) == "Absent", "{:#}", plane.status());

    server.apply(&definition(&[("v2", true)]).to_string())?;
    plane.until("the kind is listed", DEADLINE, |status| state(status) == "Listed")?;
    let policies = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"namespace": namespace, "name": "p"},
        "spec": {"endpointSelector": {"matchLabels": {"app": "cart"}}, "ingress": [{"fromEntities": ["cluster"]}]},
    });
    server.apply(&policies.to_string())?;
    let name = format!("CiliumNetworkPolicy/{namespace}/p");
    plane.until("its policy selects the pod", DEADLINE, |status| selected(status, &name) == Some(1))?;

    // Served in another version alone, which is not read: what was read stays, and that is told.
    server.apply(&definition(&[("v2", false), ("v9", true)]).to_string())?;
    let status = plane.until("the version is told of", DEADLINE, told_of_version)?;
    ensure!(selected(&status, &name) == Some(1), "no policy opens by that: {status:#}");
    server.apply(&definition(&[("v2", true), ("v9", true)]).to_string())?;
    plane.until("it is read again", DEADLINE, |status| !told_of_version(status))?;

    server.kubectl(&["delete", "crd", "ciliumnetworkpolicies.cilium.io"])?;
    plane.until("the kind is gone", DEADLINE, |status| state(status) == "Absent")?;
    ensure!(policy(&plane.status(), &name).is_none(), "{:#}", plane.status());
    server.apply(&definition(&[("v2", true)]).to_string())?;
    plane.until("the kind is listed again", DEADLINE, |status| state(status) == "Listed")?;
    Ok(())
}

fn other_version() -> Result<()> {
    let server = ApiServer::start()?;
    server.install()?;
    server.apply(&definition(&[("v9", true)]).to_string())?;
    let mut plane = control(&server)?;
    let status = plane.until("the version is told of", DEADLINE, told_of_version)?;
    ensure!(status["source"]["complete"] == true, "the others are read: {status:#}");
    Ok(())
}

fn without_role() -> Result<()> {
    let server = shared()?;
    let namespace = enabled(server)?;
    server.kubectl(&["create", "serviceaccount", "nobody", "-n", &namespace])?;
    let mut plane = Plane::over(server, &server.account(&namespace, "nobody")?)?;
    let status = plane.until("it says what it may not do", DEADLINE, |status| {
        let kinds = status["source"]["kinds"].as_object();
        let says = |kind: &Value| kind["trouble"].as_str().is_some_and(|said| said.contains("forbidden"));
        kinds.is_some_and(|kinds| kinds.values().all(says))
    })?;
    ensure!(status["reads"] == 0, "nothing is made of what it does not know: {status:#}");
    let binding = ["create", "clusterrolebinding", &namespace, "--clusterrole=sluice-control"];
    let account = format!("--serviceaccount={namespace}:nobody");
    server.kubectl(&[&binding[..], &[&account]].concat())?;
    let status = plane.ready()?;
    ensure!(status["source"]["complete"] == true, "{status:#}");
    Ok(())
}

fn least_privilege() -> Result<()> {
    let server = shared()?;
    let account = format!("--as=system:serviceaccount:{NAMESPACE}:{CONTROL_ACCOUNT}");
    let may = |verb: &str, resource: &str| -> Result<bool> {
        let (resource, part) = resource.split_once('/').unwrap_or((resource, ""));
        let question = ["auth", "can-i", verb, resource, &account, &format!("--subresource={part}")];
        let output = server.kubectl_with(&[&question[..], &["-A"]].concat(), "")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim() == "yes")
    };
    for (verb, resource) in [
        ("list", "pods"),
        ("watch", "l7networkpolicies.policy.sluice.dev"),
        ("patch", "l7networkpolicies.policy.sluice.dev/status"),
        ("patch", "clusterl7networkpolicies.policy.sluice.dev/status"),
        ("create", "events.events.k8s.io"),
        ("patch", "events.events.k8s.io"),
    ] {
        ensure!(may(verb, resource)?, "{verb} {resource}");
    }
    for (verb, resource) in [
        ("patch", "l7networkpolicies.policy.sluice.dev"),
        ("update", "l7networkpolicies.policy.sluice.dev/status"),
        ("patch", "networkpolicies.networking.k8s.io/status"),
        ("patch", "pods/status"),
        ("list", "events.events.k8s.io"),
        ("delete", "events.events.k8s.io"),
        ("update", "leases.coordination.k8s.io"),
        ("delete", "leases.coordination.k8s.io"),
        ("create", "events"),
        ("list", "secrets"),
        ("list", "configmaps"),
        ("create", "pods"),
        ("patch", "nodes"),
        ("delete", "networkpolicies.networking.k8s.io"),
        ("update", "l7networkpolicies.policy.sluice.dev"),
        ("list", "customresourcedefinitions.apiextensions.k8s.io"),
        ("impersonate", "users"),
    ] {
        ensure!(!may(verb, resource)?, "{verb} {resource} is not needed");
    }
    for (verb, lease, expected) in [
        ("update", "leases.coordination.k8s.io/sluice-control", "yes"),
        ("create", "leases.coordination.k8s.io", "yes"),
        ("update", "leases.coordination.k8s.io/another", "no"),
        ("delete", "leases.coordination.k8s.io/sluice-control", "no"),
    ] {
        let output = server.kubectl_with(&["auth", "can-i", verb, lease, "-n", NAMESPACE, &account], "")?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(said == expected, "{verb} {lease}: {said}");
    }
    Ok(())
}

fn renewed_token() -> Result<()> {
    let server = shared()?;
    let file = server.dir().join("token");
    std::fs::write(&file, "expired")?;
    let mut plane = Plane::over(server, &server.kubeconfig_with_token_file("token-file", &file)?)?;
    let status = plane.until("the token is refused", DEADLINE, |status| {
        let said = status["source"]["kinds"]["Pod"]["trouble"].as_str();
        said.is_some_and(|said| said.contains("401"))
    })?;
    ensure!(status["reads"] == 0, "{status:#}");
    std::fs::write(&file, server.token(NAMESPACE, CONTROL_ACCOUNT)?)?;
    plane.until("the new token is taken", TOKEN_AGAIN, |status| {
        status["reads"].as_u64() > Some(0) && status["source"]["kinds"]["Pod"]["trouble"].is_null()
    })?;
    Ok(())
}
