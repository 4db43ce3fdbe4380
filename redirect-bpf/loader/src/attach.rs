//! Hooks A and B on the endpoints' veths, as pinned tcx links, or as filters where there are none: they outlive the
//! loader, and a new loader replaces their program without a gap.

use crate::bpffs::{self, Pins};
use crate::clsact;
use crate::crash;
use crate::error::SetupError;
use crate::tc::Side;
use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use rustix::io::Errno;
use sluice_bpf_abi::{ABI_VERSION, program};
use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// The two hooks of an endpoint: program and side.
const HOOKS: [(&str, TcAttachType); 2] =
    [(program::FROM_POD, TcAttachType::Ingress), (program::TO_POD, TcAttachType::Egress)];

/// Attempts to load a program: as many as libbpf makes (`PROG_LOAD_ATTEMPTS`).
const LOADS: usize = 5;

/// The classifier of this name.
pub(crate) fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, SetupError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| SetupError::Object { what: "program", name: name.to_owned() })
}

/// Loads a classifier. Where a signal comes while the kernel verifies it, the kernel says to try again.
pub(crate) fn load(classifier: &mut SchedClassifier) -> Result<(), ProgramError> {
    for _ in 1..LOADS {
        match classifier.load() {
            Err(error) if caused_by(&error, Errno::AGAIN) => {}
            done => return done,
        }
    }
    classifier.load()
}

/// How hooks are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hooks {
    /// tcx links where the kernel has them, else filters.
    #[default]
    Auto,
    /// Pinned tcx links: Linux 6.6.
    Tcx,
    /// Filters of clsact qdiscs: Linux 5.15.
    Clsact,
}

impl Hooks {
    /// Which of the two it is on this kernel: the kernel is asked, not its version.
    pub(crate) fn decide(self) -> Self {
        let tcx = || SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok();
        match self {
            Self::Auto if tcx() => Self::Tcx,
            Self::Auto => Self::Clsact,
            told => told,
        }
    }
}

/// Attaches a program that goes with the loader, or with its device. The thread must be in the device's namespace.
pub(crate) fn attach_unpinned(
    ebpf: &mut Ebpf,
    hooks: Hooks,
    name: &'static str,
    (index, device): (u32, &str),
    side: TcAttachType,
) -> Result<(), SetupError> {
    let classifier = classifier(ebpf, name)?;
    if hooks == Hooks::Clsact {
        // The device is ours, and the qdisc goes with it.
        clsact::add_qdisc(index).map_err(|error| attach_error(name, device, &error))?;
        return filter(classifier, name, index, device, side);
    }
    classifier
        .attach_with_options(device, side, TcAttachOptions::TcxOrder(LinkOrder::first()))
        .map_err(|error| attach_error(name, device, &error))?;
    is_first(classifier, hooks, name, (index, device), side).and_then(|first| listed(first, name, device))
}

/// Attaches such a program again if it is gone, or not asked first any more; whether it was. The thread must be in the
/// device's namespace.
pub(crate) fn hold_unpinned(
    ebpf: &mut Ebpf,
    hooks: Hooks,
    name: &'static str,
    at: (u32, &str),
    side: TcAttachType,
) -> Result<bool, SetupError> {
    let own = classifier(ebpf, name)?;
    if is_first(own, hooks, name, at, side)? {
        return Ok(false);
    }
    if hooks != Hooks::Clsact {
        // The kernel has no program twice on one side of a device, and moves none. With this its link goes.
        let failed = |error| attach_error(name, "be loaded again", &error);
        own.unload().map_err(failed)?;
        load(own).map_err(failed)?;
    }
    attach_unpinned(ebpf, hooks, name, at, side).map(|()| true)
}

/// Gives the programs of this loader to every hook that an earlier one left. Links of devices that are gone are
/// forgotten. The thread must be in the node's namespace.
pub(crate) fn take_over(ebpf: &mut Ebpf, pins: &Pins, hooks: Hooks) -> Result<(), SetupError> {
    for path in Pins::list(&pins.links())? {
        let Some(pin) = parse(&path) else { continue };
        match replace(classifier(ebpf, pin.hook)?, &path) {
            // One that died between pinning a link and giving it its name.
            Ok(()) if pin.staged => bpffs::rename(&path, &pins.link(pin.device, pin.hook))?,
            Ok(()) => {}
            Err(error) if caused_by(&*error, Errno::NOLINK) => bpffs::remove_file(&path)?,
            // The endpoint keeps the program it has: to let the link go would let the endpoint go.
            Err(error) => return Err(attach_error(pin.hook, &path.display().to_string(), &error)),
        }
        crash::point("take a link over");
    }
    if hooks == Hooks::Clsact {
        for device in filtered()? {
            for (hook, side) in HOOKS {
                filter(classifier(ebpf, hook)?, hook, device, &device.to_string(), side)?;
                crash::point("take a filter over");
            }
        }
    }
    Ok(())
}

/// The devices that have hooks of ours. The thread must be in the node's namespace.
pub(crate) fn devices(pins: &Pins) -> Result<HashSet<u32>, SetupError> {
    let links = Pins::list(&pins.links())?;
    let mut devices = filtered()?;
    devices.extend(pins.noted_qdiscs()?);
    devices.extend(links.iter().filter_map(|path| parse(path)).map(|pin| pin.device));
    Ok(devices)
}

/// The devices with filters.
fn filtered() -> Result<HashSet<u32>, SetupError> {
    clsact::devices()
        .map_err(SetupError::cannot("list the filters of the node's devices", "CAP_NET_ADMIN is needed"))
}

/// Attaches both hooks to a device, before whatever else is there, if they are not there yet, and asks the kernel
/// whether they are; whether anything had to be done. The thread must be in the node's namespace.
pub(crate) fn attach(
    ebpf: &mut Ebpf,
    pins: &Pins,
    hooks: Hooks,
    index: u32,
    device: &str,
) -> Result<bool, SetupError> {
    let mut changed = false;
    for (hook, side) in HOOKS {
        let classifier = classifier(ebpf, hook)?;
        if holds(pins, hooks, hook, (index, device), side)? {
            continue;
        }
        changed = true;
        match hooks {
            Hooks::Clsact => {
                qdisc(pins, hook, (index, device))?;
                filter(classifier, hook, index, device, side)?;
            }
            _ => link(classifier, pins, hook, (index, device), side)?,
        }
        let first = is_first(classifier, hooks, hook, (index, device), side)?;
        listed(first, hook, device)?;
    }
    Ok(changed)
}

/// Whether a hook of ours is asked before any other. Its program may be that of a loader that is taking over from us:
/// to put ours back would be to fight it.
fn holds(
    pins: &Pins,
    hooks: Hooks,
    hook: &'static str,
    (index, device): (u32, &str),
    side: TcAttachType,
) -> Result<bool, SetupError> {
    if hooks == Hooks::Clsact {
        let first =
            clsact::first(index, side_of(side)).map_err(|error| attach_error(hook, device, &error))?;
        return Ok(first.is_some());
    }
    let Ok(link) = PinnedLink::from_pin(pins.link(index, hook)) else { return Ok(false) };
    let program = FdLink::from(link).info().map_err(|error| attach_error(hook, device, &error))?.program_id();
    let (_, there) =
        SchedClassifier::query_tcx(device, side).map_err(|error| attach_error(hook, device, &error))?;
    Ok(there.first().is_some_and(|first| first.id() == program))
}

/// Whether a program of this name, and not ours, is first at the ingress of a device.
pub(crate) fn has_successor(ebpf: &mut Ebpf, hooks: Hooks, name: &str, (index, device): (u32, &str)) -> bool {
    let Some(own) = classifier(ebpf, name).ok().and_then(|own| own.info().ok()).map(|info| info.id()) else {
        return false;
    };
    if hooks == Hooks::Clsact {
        return clsact::first(index, Side::Ingress)
            .is_ok_and(|first| first.is_some_and(|first| first.program != own));
    }
    let there = SchedClassifier::query_tcx(device, TcAttachType::Ingress).map(|(_, there)| there);
    there.is_ok_and(|there| {
        there.first().is_some_and(|first| first.id() != own && first.name_as_str() == Some(name))
    })
}

fn link(
    classifier: &mut SchedClassifier,
    pins: &Pins,
    hook: &'static str,
    (index, device): (u32, &str),
    side: TcAttachType,
) -> Result<(), SetupError> {
    let (path, staged) = (pins.link(index, hook), pins.staged_link(index, hook));
    // What an attempt before left half done. Its link is not the only one: the old pin is there still.
    bpffs::remove_link(&staged)?;
    let first = || TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = match classifier.attach_with_options(device, side, first()) {
        // It is there, behind another.
        Err(error) if caused_by(&error, Errno::EXIST) => {
            reload(classifier, pins, hook, index)?;
            classifier.attach_with_options(device, side, first())
        }
        other => other,
    };
    let id = id.map_err(|error| attach_error(hook, device, &error))?;
    let link = classifier.take_link(id).map_err(|error| attach_error(hook, device, &error))?;
    let link = FdLink::try_from(link).map_err(|error| attach_error(hook, device, &error))?;
    crash::point("attach a hook");
    link.pin(&staged).map_err(|error| attach_error(hook, device, &error))?;
    crash::point("pin a hook");
    // Over the pin of a link that does not hold any more, if there is one: until here both of them judged.
    bpffs::rename(&staged, &path)?;
    crash::point("name a hook");
    Ok(())
}

/// The kernel has no program twice on one side of a device, and does not move it. So it is loaded once more, to be put
/// before what came before it, while the one that is there still judges. The other devices get the new one as well.
fn reload(
    classifier: &mut SchedClassifier,
    pins: &Pins,
    hook: &'static str,
    displaced: u32,
) -> Result<(), SetupError> {
    let failed = |error| attach_error(hook, "be loaded again", &error);
    classifier.unload().map_err(failed)?;
    load(classifier).map_err(failed)?;
    for path in Pins::list(&pins.links())? {
        match parse(&path) {
            Some(pin) if pin.hook == hook && pin.device != displaced => {
                match replace(classifier, &path) {
                    // Its device is gone.
                    Err(error) if caused_by(&*error, Errno::NOLINK) => {}
                    done => done.map_err(|error| attach_error(hook, &path.display().to_string(), &error))?,
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Gives a device its qdisc, unless it has one; and notes that it is ours, unless it is another's.
fn qdisc(pins: &Pins, hook: &'static str, (index, device): (u32, &str)) -> Result<(), SetupError> {
    let failed = |error: io::Error| attach_error(hook, device, &error);
    if clsact::has_qdisc(index).map_err(failed)? {
        return Ok(());
    }
    pins.note_qdisc(index)?;
    crash::point("note a qdisc");
    clsact::add_qdisc(index).map_err(failed)?;
    crash::point("make a qdisc");
    Ok(())
}

fn filter(
    classifier: &SchedClassifier,
    hook: &'static str,
    index: u32,
    device: &str,
    side: TcAttachType,
) -> Result<(), SetupError> {
    let program = classifier.fd().map_err(|error| attach_error(hook, device, &error))?;
    clsact::attach(index, side_of(side), program.as_fd(), &format!("sluice/{hook}/v{ABI_VERSION}"))
        .map_err(|error| attach_error(hook, device, &error))?;
    crash::point("attach a hook");
    Ok(())
}

/// Takes both hooks off a device. The thread must be in the node's namespace.
pub(crate) fn detach(pins: &Pins, index: u32) -> Result<(), SetupError> {
    detach_links(pins, index)?;
    detach_filters(pins, index)
}

/// Forgets what was noted of devices that are gone: their numbers may be others' by and by. The thread must be in the
/// node's namespace.
pub(crate) fn forget_gone(pins: &Pins) -> Result<(), SetupError> {
    let noted = pins.noted_qdiscs()?;
    if noted.is_empty() {
        return Ok(());
    }
    let there = clsact::all_devices()
        .map_err(SetupError::cannot("list the node's devices", "CAP_NET_ADMIN is needed"))?;
    noted.difference(&there).try_for_each(|device| pins.forget_qdisc(*device))
}

/// Takes what is attached the other way off a device.
pub(crate) fn detach_others(pins: &Pins, hooks: Hooks, index: u32) -> Result<(), SetupError> {
    if hooks == Hooks::Clsact { detach_links(pins, index) } else { detach_filters(pins, index) }
}

fn detach_links(pins: &Pins, index: u32) -> Result<(), SetupError> {
    for (hook, _) in HOOKS {
        for path in [pins.staged_link(index, hook), pins.link(index, hook)] {
            bpffs::remove_link(&path)?;
        }
        crash::point("detach a hook");
    }
    Ok(())
}

fn detach_filters(pins: &Pins, index: u32) -> Result<(), SetupError> {
    let noted = pins.noted_qdiscs()?.contains(&index);
    let gone = match clsact::detach(index, noted) {
        // The device is gone, and its filters with it.
        Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(true),
        other => other.map_err(SetupError::cannot(
            format!("take the filters off device {index}"),
            "CAP_NET_ADMIN is needed",
        )),
    };
    crash::point("detach the filters");
    // Where somebody else has a filter in our qdisc by now, it stays ours, and goes when theirs have.
    if gone? { pins.forget_qdisc(index) } else { Ok(()) }
}

fn replace(classifier: &mut SchedClassifier, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let link = SchedClassifierLink::try_from(FdLink::from(PinnedLink::from_pin(path)?))?;
    let id = classifier.attach_to_link(link)?;
    // The pin keeps it; this process need not.
    drop(classifier.take_link(id)?);
    Ok(())
}

/// Whether this is why, or why that is.
fn caused_by(error: &(dyn std::error::Error + 'static), errno: Errno) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.raw_os_error() == Some(errno.raw_os_error()))
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether the kernel says that this very program is attached, and asked before any other.
fn is_first(
    classifier: &SchedClassifier,
    hooks: Hooks,
    name: &'static str,
    (index, device): (u32, &str),
    side: TcAttachType,
) -> Result<bool, SetupError> {
    let own = classifier.info().map_err(|error| attach_error(name, device, &error))?.id();
    if hooks == Hooks::Clsact {
        return clsact::is_first(index, side_of(side), own)
            .map_err(|error| attach_error(name, device, &error));
    }
    let (_, there) =
        SchedClassifier::query_tcx(device, side).map_err(|error| attach_error(name, device, &error))?;
    Ok(there.first().is_some_and(|program| program.id() == own))
}

fn listed(first: bool, name: &'static str, device: &str) -> Result<(), SetupError> {
    if first { Ok(()) } else { Err(attach_error(name, device, &"the kernel does not list it as the first")) }
}

const fn side_of(side: TcAttachType) -> Side {
    match side {
        TcAttachType::Egress => Side::Egress,
        _ => Side::Ingress,
    }
}

fn attach_error(program: &'static str, device: &str, reason: &dyn std::fmt::Display) -> SetupError {
    SetupError::Attach { program, device: device.to_owned(), reason: reason.to_string() }
}

/// What the name of a link's pin says.
struct Pin {
    device: u32,
    hook: &'static str,
    /// Not yet in the place of the one before.
    staged: bool,
}

fn parse(path: &Path) -> Option<Pin> {
    let (device, rest) = path.file_name()?.to_str()?.split_once('-')?;
    let hook = rest.strip_suffix(bpffs::STAGED).unwrap_or(rest);
    let (hook, _) = HOOKS.iter().find(|(known, _)| *known == hook)?;
    Some(Pin { device: device.parse().ok()?, hook, staged: rest.ends_with(bpffs::STAGED) })
}
