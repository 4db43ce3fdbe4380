//! The demo: real traffic under a real policy, with a table of what had to come and what came.
//!
//! Everything in it is real: two nodes of network namespaces, the product's own processes, policies from
//! `examples/shop`, curl and tonic as clients. Called by `sluice-demo`.

pub mod live;
pub mod rows;
pub mod stage;
pub mod table;

use crate::cluster;
use crate::demo::stage::Stage;
use crate::demo::table::Style;
use crate::world::{Family, World, take_down_all, yield_to_signal};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What the demo is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The manifests: `examples/shop`, or a directory like it.
    pub examples: PathBuf,
    /// Leave the world up and print how to play with it.
    pub keep: bool,
    /// Colours.
    pub style: Style,
    /// One line of JSON for each line of the demo, on standard output; the text goes to standard error.
    pub json: bool,
}

/// Whether standard output is for JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// Where the examples are: in the working directory, else in the checkout that this was built in.
#[must_use]
pub fn examples() -> PathBuf {
    let here = Path::new("examples/shop");
    if here.is_dir() { here.to_owned() } else { cluster::repository().join("examples/shop") }
}

/// Runs the demo; whether every line was as expected.
///
/// # Errors
/// When the world or a part in it does not come up.
pub fn run(options: &Options) -> Result<bool> {
    let style = options.style;
    JSON.store(options.json, Ordering::Relaxed);
    for tool in ["ip", "nsenter", "curl"] {
        if std::process::Command::new(tool).arg("--version").output().is_err() {
            bail!("the demo needs `{tool}`: apt-get install -y iproute2 util-linux curl");
        }
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the demo needs root, to create network namespaces and load eBPF programs: run it with sudo");
    }
    say(&style.bold("sluice: policies for requests, on real traffic"));
    say("");
    let mut stage = Stage::build(options)?;
    let mut good = rows::play(&mut stage, style)?;
    good &= live::edit(&mut stage, style)?;
    good &= live::audit(&mut stage, style)?;
    say("");
    say(&if good {
        style.good("Every line is as expected.")
    } else {
        style.bad("Some lines are not as expected; they are marked above.")
    });
    if options.keep {
        keep(&stage, style)?;
    }
    Ok(good)
}

/// Prints how to play with the world, and waits until it is told to go.
fn keep(stage: &Stage, style: Style) -> Result<()> {
    let world = &stage.cluster.world;
    let frontend = world.pod("shop/frontend");
    let cart = world.pod("shop/cart").ip(Family::V4);
    let enter = format!("nsenter --net={}", frontend.netns.path().display());
    let here = stage.cluster.manifests();
    let log = stage.cluster.world.dir().join("proxy-node-b.log");
    say("");
    say(&style.bold("The world stays up. In another terminal:"));
    say("");
    say(&format!("  enter the frontend   {enter} bash"));
    say(&format!("  ask the cart         {enter} curl -i http://{cart}:8080/api/v1/items"));
    say(&format!("  edit the policy      $EDITOR {}", here.join("cart.yaml").display()));
    say(&format!("  watch the verdicts   tail -f {}", log.display()));
    say(&format!("  see what is in force cat {}", stage.cluster.status_file().display()));
    say(&format!("  ask the engine       sluice explain -f {} --from shop/frontend \\", here.display()));
    say("                         --to shop/cart:8080 --http 'DELETE /api/v1/items'");
    say("");
    say("Other pods:");
    for pod in &world.pods {
        say(&format!("  {:<15} {:<11} {}", pod.name, pod.v4, pod.netns.path().display()));
    }
    say("");
    say("Press Ctrl-C here to take it down.");
    wait_for_signal(world)
}

/// The signal handler ends the process; until then the processes of the world are watched.
fn wait_for_signal(world: &World) -> Result<()> {
    while world.dir().exists() {
        std::thread::sleep(Duration::from_millis(500));
    }
    take_down_all();
    bail!("the world's files are gone: somebody else took it down")
}

/// One line of text.
pub(crate) fn say(line: &str) {
    if JSON.load(Ordering::Relaxed) {
        write(std::io::stderr().lock(), line);
    } else {
        write(std::io::stdout().lock(), line);
    }
}

/// One line for programs, where they are who reads.
pub(crate) fn tell(value: &Value) {
    if JSON.load(Ordering::Relaxed) {
        write(std::io::stdout().lock(), &value.to_string());
    }
}

/// A reader that went away takes the world down with the process.
fn write(mut out: impl Write, line: &str) {
    yield_to_signal();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        drop(out);
        take_down_all();
        std::process::exit(1);
    }
}

/// A step that takes a moment: its name at once, its outcome when it is done.
pub(crate) fn step<T>(style: Style, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begin = std::time::Instant::now();
    let done = work().with_context(|| what.to_owned());
    match &done {
        Ok(_) => say(&format!("  {} {what} {}", style.good("✓"), style.dim(&table::millis(begin.elapsed())))),
        Err(_) => say(&format!("  {} {what}", style.bad("✗"))),
    }
    done
}
