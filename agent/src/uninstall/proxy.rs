//! The node's Envoy that an agent has started, and what is where it met the agent.
//!
//! Owns: when it may end, and the files of both. Never does: end one that connections go through: they stay open, as all do;
//! nor one that somebody else has started. Called by: `uninstall`, after everything else, when nothing new is redirected to it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::timeout;

use super::{Kind, Removed, Report, gone_is_fine};
use crate::model::DEFAULT_PROXY_ID;
use crate::platform::proxy::{self, Running};
use crate::proxy::admin;
use crate::proxy::place::ProxyPlace;

/// How long it may take to end: it has nothing left to do.
const END: Duration = Duration::from_secs(10);
/// What it counts of its listeners, of which the admin interface is none of the pods'.
const CONNECTIONS: &str = "/stats?filter=%5Elistener%5C..*downstream_cx_active%24";
const OF_ADMIN: &str = "listener.admin.";

/// Takes away what is in a `--proxy-dir`, or only looks.
pub(super) fn take(directory: &Path, report: &mut Report) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report.problems.push(format!("look after the node's proxy: {error}")),
    };
    let place = ProxyPlace::of(directory);
    if runtime.block_on(envoys(&place, report)) {
        files(directory, &place, report);
    }
}

/// Ends what runs there; whether nothing does now.
async fn envoys(place: &ProxyPlace, report: &mut Report) -> bool {
    let running = match Running::find(&place.envoy()) {
        Ok((running, _ended)) => running,
        Err(error) => {
            report
                .problems
                .push(format!("look for the node's proxy in {}: {error}", place.envoy().display()));
            return false;
        }
    };
    let Some((newest, before)) = running.split_last() else { return true };
    if let Some(before) = before.first() {
        report.left.push(format!(
            "the node's proxy, pid {}, which takes over from pid {}: run it again when that has ended",
            newest.pid(),
            before.pid()
        ));
        return false;
    }
    let pid = newest.pid();
    match connections(place).await {
        Ok(0) => {}
        Ok(count) => {
            let (connections, go) = if count == 1 { ("connection", "goes") } else { ("connections", "go") };
            report.left.push(format!(
                "the node's proxy, pid {pid}: {count} {connections} of pods {go} through it, and would end with it; \
                 run it again later, or end it: kill -TERM {pid}"
            ));
            return false;
        }
        Err(problem) => {
            report
                .left
                .push(format!("the node's proxy, pid {pid}, whose connections are not known: {problem}"));
            return false;
        }
    }
    let removed = Removed { kind: Kind::Proxy, name: format!("pid {pid}") };
    if !report.dry_run
        && let Err(problem) = end(running).await
    {
        report.problems.push(format!("end the node's proxy, pid {pid}: {problem}"));
        return false;
    }
    report.removed.push(removed);
    true
}

/// How many connections of pods it has.
async fn connections(place: &ProxyPlace) -> Result<u64, String> {
    // Anybody may make a socket there, and say that there are none.
    let status = fs::symlink_metadata(place.admin()).map_err(|error| error.to_string())?;
    if status.uid() != DEFAULT_PROXY_ID {
        return Err(format!("{} is not its own", place.admin().display()));
    }
    let text = admin::ask(&place.admin(), CONNECTIONS).await.map_err(|error| error.to_string())?;
    counted(&String::from_utf8_lossy(&text))
}

/// `listener.outbound;shop;cart;.downstream_cx_active: 3`
fn counted(text: &str) -> Result<u64, String> {
    let of_pods = text.lines().filter(|line| !line.starts_with(OF_ADMIN) && !line.is_empty());
    let count =
        |line: &str| line.rsplit_once(": ").and_then(|(_name, count)| count.trim().parse::<u64>().ok());
    of_pods.map(|line| count(line).ok_or_else(|| format!("it counts {line:?}"))).sum()
}

/// Ends it, and takes its cgroup away.
async fn end(running: Vec<Running>) -> Result<(), String> {
    for one in running {
        let cgroup = one.cgroup();
        one.signal(Signal::TERM).map_err(|error| error.to_string())?;
        if timeout(END, one.ended()).await.is_err() {
            return Err(format!("it has not ended within {} s of SIGTERM", END.as_secs()));
        }
        one.bury();
        // Empty now, unless somebody has put something into it.
        cgroup.map(|path| fs::remove_dir(path).ok());
    }
    Ok(())
}

/// What agent and Envoy have left, and the directories if that was all.
fn files(directory: &Path, place: &ProxyPlace, report: &mut Report) {
    let listens = UnixStream::connect(place.admin()).is_ok();
    let admin = Some(place.admin()).filter(|_| !listens);
    let own = [place.ads(), place.bootstrap()].into_iter().chain(admin);
    for path in own.filter(|path| path.symlink_metadata().is_ok()).chain(within(&place.envoy())) {
        remove(Kind::ProxyFile, &path, |path| fs::remove_file(path), report);
    }
    for path in [place.envoy(), directory.to_owned()].iter().filter(|path| is_directory(path)) {
        remove(Kind::ProxyDirectory, path, |path| fs::remove_dir(path), report);
    }
}

/// Whether it is one itself. Anybody may make a link where agent and Envoy meet, and what that leads to is not ours.
fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// What is in the directory of the Envoys, if it is theirs: then nobody else can make anything there.
fn within(directory: &Path) -> Vec<PathBuf> {
    if !proxy::owns(directory) {
        return Vec::new();
    }
    let mut paths: Vec<_> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn remove(kind: Kind, path: &Path, take: impl Fn(&Path) -> io::Result<()>, report: &mut Report) {
    use io::ErrorKind::{DirectoryNotEmpty, ResourceBusy};
    let outcome = if report.dry_run { Ok(()) } else { gone_is_fine(take(path)) };
    match outcome {
        Ok(()) => report.removed.push(Removed { kind, name: path.display().to_string() }),
        Err(error) if error.kind() == DirectoryNotEmpty => {
            report.left.push(format!("{}: there is something in it that is not veer's", path.display()));
        }
        Err(error) if error.kind() == ResourceBusy => {
            report.left.push(format!("{}: something is mounted there", path.display()));
        }
        Err(error) => report.problems.push(format!("remove {}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_link_leads_to_is_left_alone() {
        let [met, elsewhere] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let file = elsewhere.path().join("passwd");
        fs::write(&file, "root").unwrap();
        let place = ProxyPlace::of(met.path());
        std::os::unix::fs::symlink(elsewhere.path(), place.envoy()).unwrap();
        let mut report = Report::default();
        files(met.path(), &place, &mut report);
        assert!(file.exists() && report.removed.is_empty(), "{report:?}");
    }

    #[test]
    fn a_directory_of_somebody_else_stays_as_it_is() {
        let met = tempfile::tempdir().unwrap();
        let place = ProxyPlace::of(met.path());
        fs::create_dir(place.envoy()).unwrap();
        let file = place.envoy().join("envoy.yaml");
        fs::write(&file, "of an Envoy that is nobody's here").unwrap();
        let mut report = Report::default();
        files(met.path(), &place, &mut report);
        assert!(file.exists() && report.removed.is_empty() && report.problems.is_empty(), "{report:?}");
    }

    #[test]
    fn connections_of_pods_are_counted_and_those_of_the_admin_interface_are_not() {
        let text = "listener.admin.downstream_cx_active: 1\n\
                    listener.inbound;shop;a.b;.downstream_cx_active: 2\n\
                    listener.outbound;shop;cart;.downstream_cx_active: 3\n";
        assert_eq!(counted(text), Ok(5));
        assert_eq!(counted(""), Ok(0));
        assert!(counted("listener.outbound;shop;cart;.downstream_cx_active: many\n").is_err());
    }
}
