//! curl, wrk, nghttp, h2load and Python's h2 against Go's net/http.

use crate::parts::{Part, attempt, python, run, test};
use crate::stage::{Stage, port};
use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use sluice_tests::world::Family;

const CURL: Part = Part::Debian("curl");
const WRK: Part = Part::Debian("wrk");
const NGHTTP: Part = Part::Debian("nghttp");
const H2LOAD: Part = Part::Debian("h2load");
const FRONTEND: &str = "shop/frontend";
/// What curl tells of a transfer.
const TOLD: &str = "%{http_code} %{http_version} %{num_connects} %{size_download}\\n";
/// How long a program may take: what needs seconds at rest.
const SECONDS: u32 = 60;
/// The file of net/http, in bytes.
const FILE: usize = 1 << 20;

pub(crate) fn tests() -> Vec<Trial> {
    let mut tests: Vec<Trial> = [("HTTP/1.1", "--http1.1"), ("HTTP/2", "--http2-prior-knowledge")]
        .into_iter()
        .flat_map(|(name, version)| {
            [
                test(&format!("curl {name}: one connection"), &[CURL], move |s| one_connection(s, version)),
                test(&format!("curl {name}: uploads"), &[CURL], move |s| uploads(s, version)),
                test(&format!("curl {name}: HEAD, ranges, 304"), &[CURL], move |s| parts(s, version)),
            ]
        })
        .collect();
    tests.extend([
        test("curl HTTP/1.0, and an upgrade to h2c", &[CURL], older),
        test("curl over TLS, by its server name", &[CURL], tls),
        test("wrk", &[WRK], wrk),
        test("nghttp", &[NGHTTP], nghttp),
        test("h2load HTTP/2", &[H2LOAD], |stage| h2load(stage, &[])),
        test("h2load HTTP/1.1", &[H2LOAD], |stage| h2load(stage, &["--h1"])),
        test("Python's h2", &[], python_h2),
    ]);
    tests
}

/// Runs curl; every transfer tells of itself.
fn curl(stage: &Stage, arguments: &[&str]) -> Result<String> {
    let mut all = vec!["-sS", "-m", "50", "-o", "/dev/null", "-w", TOLD];
    all.extend(arguments);
    run(stage, FRONTEND, SECONDS, CURL, &all)
}

/// What it told of transfers: code, version, connections opened, bytes. Over one connection, but for HTTP/2: curl 7.88 of
/// Debian cannot reuse one that it opened with prior knowledge ("Error in the HTTP2 framing layer", to any server).
fn transfers(
    stage: &Stage,
    version: &str,
    transfers: &[(&[&str], &str)],
) -> Result<Vec<(String, String, u64, usize)>> {
    let mut told = String::new();
    let mut all = Vec::new();
    for (options, target) in transfers {
        if !all.is_empty() {
            all.extend(["--next", "-sS", "-m", "50", "-o", "/dev/null", "-w", TOLD]);
        }
        all.push(version);
        all.extend(*options);
        all.push(target);
        if version != "--http1.1" {
            told.push_str(&curl(stage, &std::mem::take(&mut all))?);
        }
    }
    if !all.is_empty() {
        told.push_str(&curl(stage, &all)?);
    }
    let lines = told.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let &[code, version, opened, bytes] = &words[..] else { bail!("curl told: {told}") };
        Ok((code.to_owned(), version.to_owned(), opened.parse()?, bytes.parse()?))
    });
    lines.collect()
}

fn one_connection(stage: &Stage, version: &str) -> Result<()> {
    for at in stage.http() {
        let [items, admin] = ["/items", "/admin"].map(|path| format!("http://{at}{path}"));
        let all: [(&[&str], &str); 5] =
            [(&[], &items), (&[], &admin), (&[], &items), (&[], &admin), (&[], &items)];
        let told = transfers(stage, version, &all)?;
        let codes: Vec<&str> = told.iter().map(|line| &*line.0).collect();
        ensure!(codes == ["200", "403", "200", "403", "200"], "{at}: {told:?}");
        let http1 = version == "--http1.1";
        let opened: u64 = told.iter().map(|line| line.2).sum();
        ensure!(!http1 || opened == 1, "{at}: a denial cost the connection: {told:?}");
        let spoken = if http1 { "1.1" } else { "2" };
        ensure!(told.iter().all(|line| line.1 == spoken), "{at}: {told:?}");
    }
    Ok(())
}

fn uploads(stage: &Stage, version: &str) -> Result<()> {
    let file = stage.dir().join(format!("upload{version}"));
    std::fs::write(&file, vec![b'u'; 3_000_000])?;
    let file = file.to_str().context("a path that is text")?;
    let http1 = version == "--http1.1";
    for at in stage.http() {
        let (allowed, denied) = (format!("http://{at}/items/upload"), format!("http://{at}/admin/upload"));
        // Long enough that curl goes on by itself only where nobody told it to.
        let expect = ["-v", "-H", "Expect: 100-continue", "--expect100-timeout", "30"];
        let send = |more: &[&str], target: &str| -> Result<String> {
            let mut all = vec!["-sS", "-m", "50", "-w", "\ntold %{http_code} %{size_upload}\n", version];
            all.extend(more);
            all.extend(["-T", file, target]);
            run(stage, FRONTEND, SECONDS, CURL, &all)
        };
        let told = send(&expect, &allowed)?;
        ensure!(told.contains("\"bytes\":3000000") && told.contains("told 200 3000000"), "{at}: {told}");
        ensure!(!http1 || told.contains("100 Continue"), "{at}: nobody said that it should go on: {told}");
        // A request that is refused before its body: the body never goes out. Over HTTP/2 curl 7.88 of Debian takes an
        // answer that comes before the end of its body for an error, or spins, with any server; Python's h2 does it there.
        if http1 {
            let told = send(&expect, &denied)?;
            ensure!(told.contains("told 403 0"), "{at}: {told}");
            let told = send(&["-H", "Expect:"], &denied)?;
            ensure!(told.contains("told 403"), "{at}: {told}");
        }
        // In chunks, where HTTP/1.1 has them.
        let told = send(&["-H", "Expect:", "-H", "Transfer-Encoding: chunked"], &allowed)?;
        ensure!(told.contains("\"bytes\":3000000"), "{at}: {told}");
        ensure!(!http1 || told.contains("\"chunked\":true"), "{at}: the framing is another one: {told}");
    }
    Ok(())
}

fn parts(stage: &Stage, version: &str) -> Result<()> {
    for at in stage.http() {
        let [file, denied] = ["/items/file", "/admin/file"].map(|path| format!("http://{at}{path}"));
        let all: [(&[&str], &str); 8] = [
            (&[], &file),
            (&["-I"], &file),
            (&["-r", "16-31"], &file),
            (&["-r", "-7"], &file),
            (&["-r", "9999999-"], &file),
            (&["-H", "If-None-Match: \"one\""], &file),
            (&["-I"], &denied),
            (&[], &file),
        ];
        let told = transfers(stage, version, &all)?;
        let codes: Vec<&str> = told.iter().map(|line| &*line.0).collect();
        let want = ["200", "200", "206", "206", "416", "304", "403", "200"];
        ensure!(codes == want, "{at}: {told:?}");
        let bytes: Vec<usize> = told.iter().map(|line| line.3).collect();
        ensure!(bytes[0] == FILE && bytes[2] == 16 && bytes[3] == 7 && bytes[7] == FILE, "{at}: {told:?}");
        ensure!([1, 5, 6].into_iter().all(|at| bytes[at] == 0), "{at}: a body where none is: {told:?}");
        let opened: u64 = told.iter().map(|line| line.2).sum();
        ensure!(version != "--http1.1" || opened == 1, "{at}: another connection: {told:?}");
    }
    Ok(())
}

fn older(stage: &Stage) -> Result<()> {
    for at in stage.http() {
        let (items, admin) = (format!("http://{at}/items"), format!("http://{at}/admin"));
        for (version, spoken) in [("--http1.0", "1"), ("--http2", "1.1")] {
            for (target, code) in [(&items, "200"), (&admin, "403")] {
                let told = curl(stage, &[version, target])?;
                let words: Vec<&str> = told.split(' ').collect();
                ensure!(words[0] == code && words[1].starts_with(spoken), "{at} {version}: {told}");
            }
        }
    }
    Ok(())
}

/// Both protocols in TLS, which nobody reads but for the name.
fn tls(stage: &Stage) -> Result<()> {
    for family in Family::BOTH {
        let at = stage.cart(family, port::TLS);
        for (version, spoken) in [("--http1.1", "1.1"), ("--http2", "2")] {
            for (name, passes) in [("allowed.test", true), ("denied.test", false), ("other.test", false)] {
                let to = format!("{name}:{}:{}", at.port(), at.ip());
                let url = format!("https://{name}:{}/items/file", at.port());
                let arguments =
                    ["-sS", "-k", "-m", "50", "-o", "/dev/null", "-w", TOLD, version, "--resolve", &to, &url];
                let (told, good) = attempt(stage, FRONTEND, SECONDS, CURL, &arguments)?;
                ensure!(good == passes, "{name} at {at}, {version}: {told}");
                let want = if passes { format!("200 {spoken} 1 {FILE}") } else { "000 0 ".to_owned() };
                ensure!(told.contains(&want), "{name} at {at}, {version}: {told}");
            }
            // By its address: no name at all.
            let url = format!("https://{at}/items/file");
            let (told, good) =
                attempt(stage, FRONTEND, SECONDS, CURL, &["-sS", "-k", "-m", "50", version, &url])?;
            ensure!(!good, "no name passes: {told}");
        }
    }
    Ok(())
}

/// The number after a word of a program's summary.
fn after(text: &str, word: &str) -> Option<u64> {
    let rest = text.split_once(word)?.1.trim_start();
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn wrk(stage: &Stage) -> Result<()> {
    for at in stage.http() {
        for (path, denied) in [("/items", false), ("/admin", true)] {
            let url = format!("http://{at}{path}");
            let told =
                run(stage, FRONTEND, SECONDS, WRK, &["-t1", "-c16", "-d1s", "--timeout", "20s", &url])?;
            let requests = told.lines().find(|line| line.contains("requests in"));
            let requests = requests.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
            ensure!(requests.is_some_and(|count| count > 0), "{url}: {told}");
            ensure!(!told.contains("Socket errors"), "{url}: {told}");
            let refused = after(&told, "Non-2xx or 3xx responses:");
            ensure!(refused == requests.filter(|_| denied), "{url}: {told}");
        }
    }
    Ok(())
}

fn nghttp(stage: &Stage) -> Result<()> {
    for at in stage.http() {
        let urls = ["/items/1", "/admin/2", "/items/file", "/items/4", "/admin/5"]
            .map(|path| format!("http://{at}{path}"));
        let mut arguments = vec!["-n", "-s"];
        arguments.extend(urls.iter().map(String::as_str));
        let told = run(stage, FRONTEND, SECONDS, NGHTTP, &arguments)?;
        for (path, code) in
            [("/items/1", "200"), ("/admin/2", "403"), ("/items/file", "200"), ("/admin/5", "403")]
        {
            let line = told.lines().find(|line| line.ends_with(path));
            ensure!(line.is_some_and(|line| line.contains(&format!(" {code} "))), "{at} {path}: {told}");
        }
    }
    Ok(())
}

fn h2load(stage: &Stage, more: &[&str]) -> Result<()> {
    for at in stage.http() {
        // It writes an IPv6 address without its brackets into Host and :authority, which nobody may take for a host.
        let urls = ["/items", "/admin"].map(|path| format!("http://cart.test:8080{path}"));
        let to = format!("--connect-to={at}");
        let mut arguments = vec!["-n", "2000", "-c", "4", &*to];
        if more.is_empty() {
            arguments.extend(["-m", "32"]);
        }
        arguments.extend(more);
        arguments.extend(urls.iter().map(String::as_str));
        let (told, good) = attempt(stage, FRONTEND, SECONDS, H2LOAD, &arguments)?;
        ensure!(good, "{at}: {told}");
        let codes = told.lines().find(|line| line.starts_with("status codes:")).context("no summary")?;
        ensure!(codes == "status codes: 1000 2xx, 0 3xx, 1000 4xx, 0 5xx", "{at}: {told}");
        ensure!(told.contains("0 errored, 0 timeout"), "{at}: {told}");
    }
    Ok(())
}

fn python_h2(stage: &Stage) -> Result<()> {
    let [four, six, service] = stage.http();
    for at in [four, six] {
        python(stage, FRONTEND, "h2_client.py", &[&at, "--one-server"])?;
    }
    python(stage, FRONTEND, "h2_client.py", &[&service])?;
    let denied = stage.lines("httpd").into_iter().find(|line| line.contains("/admin"));
    ensure!(denied.is_none(), "a denied request reached the server: {denied:?}");
    Ok(())
}
